"""How often JAX compiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import jax

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_seen = SimpleNamespace(count=0)


def _listen(event: str, *_: Any, **__: Any) -> None:
    _seen.count += event == _LOWERED


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def compiles() -> Iterator[SimpleNamespace]:
    """Counts the programs that are lowered inside of the block, found in a cache on disk or not, as `.count`."""
    found, before = SimpleNamespace(count=0), _seen.count
    yield found
    found.count = _seen.count - before
