"""Ctrl-C and SIGTERM as a wish that is granted at the next good moment."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stoppable(owner: Any, text: str) -> Iterator[None]:
    """SIGINT and SIGTERM set `owner.stopping` and print `text` on `owner.console`; a second one interrupts."""

    def stop(*_: Any) -> None:
        if owner.stopping:
            raise KeyboardInterrupt
        owner.stopping = True
        owner.console.print(text)

    try:
        old = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's worker, say
        old = {}
    try:
        yield
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)
