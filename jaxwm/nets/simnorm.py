"""Simplicial normalisation, and the layers of TD-MPC2 that lead to it (Hansen et al. 2024, section 3.1, appendix H)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.nets.layers import Linear
from jaxwm.types import Array


def simnorm(x: Array, group: int) -> Array:
    """A softmax over every `group` entries of `x [..., L]`: L / group simplices side by side, in float32."""
    groups = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, group)
    return jax.nn.softmax(groups).reshape(x.shape)


def mish(x: Array) -> Array:
    """x tanh(softplus(x)) (Misra 2020)."""
    return x * jnp.tanh(jax.nn.softplus(x))


class Normed(nn.Module):
    """`layers` times linear, layer norm and Mish, then a linear layer: `[..., inputs] -> float32 [..., outputs]`.
    With `group` that layer is normed as well and ends in `simnorm`. `factors [..., units]` multiply what comes out of
    the first linear layer: 0 or 1 / (1 - rate) are dropout."""

    layers: int
    units: int
    outputs: int
    group: int = 0
    outscale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, factors: Array | None = None) -> Array:
        for i in range(self.layers):
            x = Linear(x.shape[-1], self.units, dtype=self.dtype, name=f"linear{i}")(x)
            x = x if factors is None or i else x * factors.astype(x.dtype)
            x = mish(nn.LayerNorm(dtype=self.dtype, name=f"norm{i}")(x))
        x = Linear(x.shape[-1], self.outputs, self.outscale, dtype=self.dtype, name="out")(x)
        if not self.group:
            return x.astype(jnp.float32)
        return simnorm(nn.LayerNorm(dtype=self.dtype, name="norm")(x), self.group)
