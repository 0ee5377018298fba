"""Waiting for runs in other processes."""

import time
from pathlib import Path

from jaxwm.run import directory


def checkpoints(root: Path) -> int:
    """Environment steps that are safe, of all tasks together."""
    found: dict[Path, int] = {}
    for file in root.glob(f"*/{directory.CHECKPOINTS}/*/checksums.json"):
        run = file.parents[2]
        found[run] = max(found.get(run, 0), int(file.parent.name))
    return sum(found.values())


def wait_for(condition, seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)
