"""What every benchmark process says and hears: JSON lines out, one request a line in. Standard library only.

A process builds its update, compiles it and runs it once or twice, says one "ready" line, then answers each line that
it reads: "update" with `{"seconds": ...}`, the wall time of one update. It ends when its standard input does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[dict[str, Any]], None]


def arguments() -> argparse.Namespace:
    """What every peer's driver is told: its checkout and the sizes of an update."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--setting", choices=("a", "b"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    return parser.parse_args()


def answers() -> Say:
    """Take standard output for answers alone; whatever else is printed from now on goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda record: print(json.dumps(record), file=out, flush=True)


def timed(update: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """Answers a request by calling `update`, which returns only when its work is done."""

    def answer() -> dict[str, float]:
        began = time.perf_counter()
        update()
        return {"seconds": time.perf_counter() - began}

    return answer


def serve(say: Say, ready: dict[str, Any], requests: dict[str, Callable[[], dict[str, Any]]]) -> None:
    """Say that all is ready, then answer until standard input ends."""
    say(ready)
    for line in sys.stdin:
        say(requests[line.strip()]())
