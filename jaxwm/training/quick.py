"""Programs that run once or seldom: on CPUs they are compiled three times as fast, to run a little slower."""

from typing import Any

import jax


def options() -> dict[str, Any] | None:
    """Options of XLA for such a program; none on another backend, or where nothing is optimised anyway."""
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None
    return {"xla_backend_optimization_level": 1}  # numbers are the same as at the default, 3


def jit(fn: Any) -> Any:
    """`jax.jit` with those options."""
    return jax.jit(fn, compiler_options=options())
