"""Pytrees of arrays, compared."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def raw(tree: Any) -> Any:
    """Arrays of a pytree as NumPy, typed keys as their words."""
    typed = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    read = lambda x: jax.random.key_data(x) if typed(x) else x  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(read(x)), tree)


def assert_same(a: Any, b: Any) -> None:
    """Equal bits, leaf by leaf (NaN equals NaN)."""
    jax.tree.map(np.testing.assert_array_equal, raw(a), raw(b))


def assert_close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), raw(a), raw(b))


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees of one structure have equal arrays."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), raw(a), raw(b))))


def layout(tree: Any) -> Any:
    """Shapes and dtypes of arrays or of their shape structs, in the structure of the tree."""
    return jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), tree)
