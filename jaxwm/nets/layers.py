"""Layers shared by all systems: linear, block-linear, convolution, RMS norm, MLP (flax.linen, init/apply only).

Parameters are float32; `dtype` is the compute dtype. Weights start as truncated normals with variance 1 / fan-in
times `outscale` squared, biases at 0.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.types import Array

Dtype = Any


def apply(module: nn.Module, params: Any, *args: Any, **options: Any) -> Any:
    """`module.apply` without mutable collections, so that the result is what the method returns."""
    return module.apply(params, *args, **options)


def truncated_normal(fan_in: int, outscale: float = 1.0):
    """Initialiser: normal cut at two standard deviations, rescaled to variance `outscale**2 / fan_in`."""
    std = 1.1368 * outscale / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


class Linear(nn.Module):
    """`[..., inputs] -> [..., units]`. The input width is explicit so that rows of the kernel can be applied apart."""

    inputs: int
    units: int
    outscale: float = 1.0
    dtype: Dtype = jnp.float32

    def setup(self):
        self.kernel = self.param("kernel", truncated_normal(self.inputs, self.outscale), (self.inputs, self.units))
        self.bias = self.param("bias", nn.initializers.zeros, (self.units,))

    def __call__(self, x: Array) -> Array:
        return self.rows(x, 0) + self.bias.astype(self.dtype)

    def rows(self, x: Array, start: int) -> Array:
        """The share of the inputs `start .. start + x.shape[-1]` in the product, without bias."""
        kernel = self.kernel[start : start + x.shape[-1]]
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class BlockLinear(nn.Module):
    """Block-diagonal linear layer: `blocks` independent maps.

    `shared` inputs are seen by every block beside the block's own slice. The fan-in of the initialiser is the full
    input width over all blocks, as in the official Dreamer V3, not that of one block.
    """

    inputs: int  # all blocks together, without the shared part
    units: int
    blocks: int
    shared: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, shared: Array | None = None) -> Array:
        own = self.inputs // self.blocks
        width = own + self.shared
        kernel = self.param(
            "kernel", truncated_normal(self.blocks * width), (self.blocks, width, self.units // self.blocks)
        ).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.units,))
        x = x.reshape(*x.shape[:-1], self.blocks, own).astype(self.dtype)
        out = jnp.einsum("...gi,gio->...go", x, kernel[:, :own])
        if shared is not None:  # applied apart, so that the shared part is never repeated in memory
            out += jnp.einsum("...i,gio->...go", shared.astype(self.dtype), kernel[:, own:])
        return out.reshape(*out.shape[:-2], self.units) + bias.astype(self.dtype)


class Conv(nn.Module):
    """Convolution `[B, H, W, C] -> [B, H, W, depth]`, stride 1, same padding."""

    depth: int
    kernel: int = 5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.depth)
        kernel = self.param("kernel", truncated_normal(math.prod(shape[:-1])), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.depth,))
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019)."""

    eps: float = 1e-4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        mean2 = jnp.square(wide).mean(-1, keepdims=True)
        return (wide * (jax.lax.rsqrt(mean2 + self.eps) * scale)).astype(x.dtype)


class NormSilu(nn.Module):
    """RMS norm followed by SiLU: what stands behind every hidden layer."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.silu(RMSNorm(name="norm")(x))


class MLP(nn.Module):
    """`layers` times (linear, RMS norm, SiLU): `[..., inputs] -> [..., units]`."""

    layers: int
    units: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = Linear(x.shape[-1], self.units, dtype=self.dtype, name=f"linear{i}")(x)
            x = NormSilu(name=f"act{i}")(x)
        return x


class Head(nn.Module):
    """An MLP and one output layer per name: `[..., inputs] -> {name: float32 [..., sizes[name]]}`."""

    sizes: dict[str, int]
    layers: int
    units: int
    outscale: float = 1.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(x)
        return {
            name: Linear(x.shape[-1], size, self.outscale, self.dtype, name=name)(x).astype(jnp.float32)
            for name, size in self.sizes.items()
        }
