"""How good dreamed frames are, and whether the actions in them matter: numbers on recordings that nothing learned from.

Letters: B batch, H frames of a dream, R pairs, N and A sizes of a table."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from jaxwm.nets.quantiser import as_floats
from jaxwm.types import Array

FINEST = 1 / (12 * 255**2)
"""The squared error that rounding to 8 bits alone makes: no frame is told to be nearer than that (58.9 dB)."""


def frame_error(seen: Array, real: Array) -> Array:
    """Mean squared error of frames `[B, H, *, *, C]` in [0, 1]: `[B, H]`."""
    chex.assert_equal_shape((seen, real))
    return jnp.square(as_floats(seen) - as_floats(real)).mean((2, 3, 4))


def psnr(error: Array) -> Array:
    """Peak signal-to-noise ratio in dB of mean squared errors `[...]`."""
    return -10 * jnp.log10(jnp.maximum(error, FINEST))


def mean_where(x: Array, valid: Array) -> Array:
    """The mean of `x [...]` where it is valid; 0 where nothing is."""
    return (x * valid).sum() / jnp.maximum(valid.sum(), 1)


def table(rows: Array, columns: Array, counted: Array, shape: tuple[int, int]) -> Array:
    """How often pairs `[R]` occur where they are counted, `[N, A]`."""
    return jnp.zeros(shape).at[rows, columns].add(counted.astype(jnp.float32))


def entropy(counts: Array) -> Array:
    """Nats of a distribution of which there are `counts [...]`, corrected for few of them (Miller 1955)."""
    total = jnp.maximum(counts.sum(), 1.0)
    share = counts / total
    raw = -(share * jnp.log(jnp.where(share > 0, share, 1.0))).sum()
    return raw + ((counts > 0).sum() - 1) / (2 * total)


def information(counts: Array) -> Array:
    """Mutual information of rows and columns of a table of counts `[N, A]`, as a share of the rows' entropy."""
    rows, columns = entropy(counts.sum(1)), entropy(counts.sum(0))
    return jnp.clip((rows + columns - entropy(counts)) / jnp.maximum(rows, 1e-6), 0.0, 1.0)
