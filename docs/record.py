"""Renew a results file from a finished run.

    python -m docs.record RUN NAME [COMMIT]    # reads RUN/*.json, rewrites results/NAME.json
    python -m docs.tables                      # then print the tables

COMMIT is what was measured, if not what is checked out.

Scores, steps, time, date, versions and commit come from the run; goal, command, table and note stay as they are.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from docs.tables import ROOT, Row


def decimal(value: float) -> Decimal:
    """Two decimals, or none from 100 on."""
    return Decimal(f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}")


def dumped(row: Row) -> str:
    """The row as JSON: decimals as written, short lists on one line."""
    text = json.dumps(row, indent=2, ensure_ascii=False, default=lambda x: f"<{x}>")
    text = re.sub(r'"<(-?[\d.]+)>"', r"\1", text)
    return re.sub(r"\[\s[^\[\]{}]*\s\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def measured(folder: Path, commit: str = "HEAD") -> dict[str, Any]:
    """What a run directory says about its own scores."""
    config = json.loads((folder / "config.json").read_text())
    found = json.loads((folder / "evaluation.json").read_text())
    scores = [decimal(score) for score in found["trained"]]
    return {
        "scores": scores,
        "score": min(scores),
        "random": min(map(decimal, found["random"])),
        "steps": found.get("env_steps"),
        "updates": found["updates"],
        "wall": f"{found['seconds'] / 60:.1f} min",
        "seeds": len(scores),
        "episodes": found["episodes"],
        "date": f"{datetime.fromtimestamp((folder / 'evaluation.json').stat().st_mtime, UTC):%Y-%m-%d}",
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {"jax": config["jax"], "jaxwm": config["jaxwm"]},
        "source": subprocess.check_output(["git", "rev-parse", "--short=7", commit], cwd=ROOT, text=True).strip(),
    }


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__)
        return 2
    folder, path = Path(arguments[0]), ROOT / "results" / f"{arguments[1]}.json"
    row = json.loads(path.read_text(), parse_float=Decimal)
    system = json.loads((folder / "config.json").read_text())
    if (system["agent"], system["env"]) != (row["system"], row["environment"]):
        print(f"{folder} is a run of {system['agent']} on {system['env']}, not of what {path.name} describes")
        return 2
    path.write_text(dumped(row | measured(folder, *arguments[2:])))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
