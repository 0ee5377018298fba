"""Programs that run once or seldom: on CPUs they compile sooner and run a little slower."""

from typing import Any

import jax


def options() -> dict[str, Any] | None:
    """Options of XLA for such a program; none on another backend, or where nothing is optimised anyway."""
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None
    return {"xla_backend_optimization_level": 1}  # 3 is the default


def jit(fn: Any) -> Any:
    """`jax.jit` with those options."""
    return jax.jit(fn, compiler_options=options())
