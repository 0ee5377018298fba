"""What the time of a run went to, as its stopwatch tells: profile.json in the run directory, and a table."""

from pathlib import Path

from rich.table import Column, Table

from jaxwm.run import directory, json_files
from jaxwm.training.stopwatch import PARTS, Stopwatch


def write(folder: Path, stopwatch: Stopwatch, total: float) -> Table:
    """Add what `stopwatch` measured in `total` seconds to the profile of a run directory; the table of all sessions."""
    file, seconds = folder / directory.PROFILE, dict(stopwatch.seconds)
    before = json_files.read_json(file) if file.exists() else {"total": 0.0, "seconds": {}}
    for part, spent in before["seconds"].items():
        if part != "idle":
            seconds[part] = seconds.get(part, 0.0) + spent
    total += before["total"]
    parts = Stopwatch(seconds).shares(total)
    shares = {part: round(share, 4) for part, (_, share) in parts.items()}
    spent = {part: round(second, 3) for part, (second, _) in parts.items()}
    json_files.write_json(file, {"total": round(total, 3), "seconds": spent, "shares": shares})
    return table(parts, total)


def table(parts: dict[str, tuple[float, float]], total: float) -> Table:
    """`{part: (seconds, share)}` for the terminal."""
    right = dict(justify="right", no_wrap=True)
    columns = Column("part"), Column("seconds", **right), Column("share", **right), Column("what")  # type: ignore[arg-type]
    words = "each part was waited for, so nothing overlapped"
    out = Table(*columns, title=f"where {total:,.1f} s of training went", caption=words)
    for part, (seconds, share) in parts.items():
        out.add_row(part, f"{seconds:,.2f}", f"{100 * share:.1f} %", PARTS[part])
    return out
