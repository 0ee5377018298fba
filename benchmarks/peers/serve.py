"""What every benchmark process says and hears: JSON lines out, one request a line in. Standard library only.

A process builds its update, compiles it and runs it once or twice, says one "ready" line, then answers each line that
it reads: "update" with `{"seconds": ...}`, the wall time of one update. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Say = Callable[[dict[str, Any]], None]


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
