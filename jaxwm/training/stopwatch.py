"""What the time of a run goes to, part by part, where someone asks; otherwise nothing is measured or waited for."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Measure = Callable[..., Any]
"""`measure(part, fn, *args)` returns `fn(*args)`; a `Stopwatch` does so, and `untimed`."""

PARTS = {
    "env": "simulators, one step of all of them at a time",
    "read": "recordings, from the disk into the replay",
    "policy": "seeing, acting and writing the record",
    "transfer": "copies between host and device",
    "update": "sampling, learning and writing back",
    "program": "collecting and learning in one compiled program: it cannot be taken apart",
    "gauge": "dreams of the exploitation gauge",
    "compile": "programs compiled on the way",
    "save": "checkpoints",
    "idle": "nothing of these: files, progress, bookkeeping",
}
"""Part of a run -> what it is. `idle` is the rest of the time."""


def untimed(part: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn` and no more."""
    del part
    return fn(*args)


class Stopwatch:
    """Seconds of a run by part of it. What is called runs to its end before the next begins: only then does a second
    belong to one part. Simulators and learning do not overlap under a stopwatch, as they do without; results are the
    same."""

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds = dict(seconds or {})

    def __call__(self, part: str, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(*args)`, which counts as `part` until its arrays are there."""
        began = time.perf_counter()
        try:
            return jax.block_until_ready(fn(*args))
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def shares(self, total: float) -> dict[str, tuple[float, float]]:
        """`{part: (seconds, share)}` of `total` seconds in the order of `PARTS`, without those that took none."""
        spent = self.seconds | {"idle": max(0.0, total - sum(self.seconds.values()))}
        return {part: (spent[part], spent[part] / max(total, 1e-9)) for part in PARTS if spent.get(part)}
