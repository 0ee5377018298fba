"""Layers shared by all systems: linear, block-linear, convolution, RMS norm, MLP (flax.linen, init/apply only).

Parameters are float32; `dtype` is the compute dtype. Weights start as truncated normals with variance 1 / fan-in
times `outscale` squared, biases at 0."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.nets import convolution
from jaxwm.types import Array


def apply(module: nn.Module, params: Any, *args: Any, **options: Any) -> Any:
    """`module.apply` without mutable collections, so that the result is what the method returns."""
    return module.apply(params, *args, **options)


def cast(params: Any, dtype: Any) -> Any:
    """Weights as the layers compute with them, norms left in float32. Before a loop: inside, every step would cast."""
    one = lambda path, x: x if path[-1].key == "scale" else x.astype(dtype)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, params)


def weight(module: nn.Module, name: str, init: Any, shape: tuple[int, ...]) -> Array:
    """`module.param`, which traces the initialiser whenever a weight is only read: an eighth of all tracing."""
    held = module.has_variable("params", name)
    return module.get_variable("params", name) if held else module.param(name, init, shape)


def truncated_normal(fan_in: int, outscale: float = 1.0):
    """Initialiser: normal cut at two standard deviations, rescaled to variance `outscale**2 / fan_in`."""
    if not outscale:
        return nn.initializers.zeros
    std = 1.1368 * outscale / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


class Linear(nn.Module):
    """`[..., inputs] -> [..., units]`. The input width is explicit so that rows of the kernel can be applied apart."""

    inputs: int
    units: int
    outscale: float = 1.0
    dtype: Any = jnp.float32

    def setup(self):
        self.kernel = weight(self, "kernel", truncated_normal(self.inputs, self.outscale), (self.inputs, self.units))
        self.bias = weight(self, "bias", nn.initializers.zeros, (self.units,))

    def __call__(self, x: Array) -> Array:
        return self.rows(x, 0) + self.bias.astype(self.dtype)

    def rows(self, x: Array, start: int) -> Array:
        """The share of the inputs `start .. start + x.shape[-1]` in the product, without bias."""
        kernel = self.kernel[start : start + x.shape[-1]]
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


def to_blocks(x: Array, blocks: int) -> Array:
    """`[..., D] -> [blocks, ..., D / blocks]`: the layout in which nothing has to be moved between block layers."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, -1), -2, 0)


def from_blocks(x: Array) -> Array:
    """The inverse of `to_blocks`."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)


class BlockLinear(nn.Module):
    """Block-diagonal linear layer: `blocks` independent maps, `[blocks, ..., inputs / blocks]` to `units / blocks`.
    `shared [..., S]` inputs are seen by every block beside the block's own. The fan-in of the initialiser is the full
    input width over all blocks, as in the official Dreamer V3, not that of one block."""

    inputs: int  # all blocks together, without the shared part
    units: int
    blocks: int
    shared: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, shared: Array | None = None) -> Array:
        own, out = self.inputs // self.blocks, self.units // self.blocks
        width = own + self.shared
        init = truncated_normal(self.blocks * width)
        kernel = weight(self, "kernel", init, (self.blocks, width, out)).astype(self.dtype)
        bias = weight(self, "bias", nn.initializers.zeros, (self.units,)).astype(self.dtype)
        lead = x.shape[1:-1]
        x = x.reshape(self.blocks, -1, own).astype(self.dtype)
        y = jnp.einsum("gbi,gio->gbo", x, kernel[:, :own])
        if shared is not None:  # applied apart, so that the shared part is never repeated in memory
            flat = kernel[:, own:].swapaxes(0, 1).reshape(self.shared, self.units)
            y += to_blocks(shared.reshape(-1, self.shared).astype(self.dtype) @ flat, self.blocks)
        return (y + bias.reshape(self.blocks, 1, out)).reshape(self.blocks, *lead, out)


class Conv(nn.Module):
    """Convolution `[B, H, W, C] -> [B, H, W, depth]`, stride 1, same padding; of the image doubled, if so asked."""

    depth: int
    kernel: int = 5
    doubled: bool = False
    routes: Routes = PLAIN
    dtype: Any = jnp.float32
    outscale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.depth)
        init = truncated_normal(math.prod(shape[:-1]), self.outscale)
        kernel = weight(self, "kernel", init, shape).astype(self.dtype)
        bias = weight(self, "bias", nn.initializers.zeros, (self.depth,)).astype(self.dtype)
        convolve = convolution.convolve_own if self.routes.own_gradients else convolution.convolve
        x = x.astype(self.dtype)
        if self.kernel == 1:  # a matrix product: many times faster than XLA's convolution, above all of a population
            return (convolution.double(x) if self.doubled else x) @ kernel[0, 0] + bias
        if self.doubled and self.routes.subpixel:
            return convolution.convolve_doubled(x, kernel, convolve) + bias
        return convolve(convolution.double(x) if self.doubled else x, kernel) + bias


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019); `blocked` ones over all blocks."""

    eps: float = 1e-4
    blocked: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1] * (x.shape[0] if self.blocked else 1)
        scale = weight(self, "scale", nn.initializers.ones, (width,))
        if self.blocked:
            scale = scale.reshape(x.shape[0], *(1,) * (x.ndim - 2), -1)
        wide = x.astype(jnp.float32)
        mean2 = jnp.square(wide).mean((0, -1) if self.blocked else -1, keepdims=True)
        return (wide * (jax.lax.rsqrt(mean2 + self.eps) * scale)).astype(x.dtype)


class NormSilu(nn.Module):
    """RMS norm followed by SiLU: what stands behind every hidden layer."""

    blocked: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.silu(RMSNorm(blocked=self.blocked, name="norm")(x))


ACTIVATIONS = {"relu": nn.relu, "elu": nn.elu, "silu": nn.silu, "tanh": jnp.tanh}
"""Activations without a norm; "norm_silu", with one, is what Dreamer V3 uses throughout."""


class MLP(nn.Module):
    """`layers` times linear and activation (by default RMS norm and SiLU): `[..., inputs] -> [..., units]`."""

    layers: int
    units: int
    dtype: Any = jnp.float32
    act: str = "norm_silu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = Linear(x.shape[-1], self.units, dtype=self.dtype, name=f"linear{i}")(x)
            x = NormSilu(name=f"act{i}")(x) if self.act == "norm_silu" else ACTIVATIONS[self.act](x)
        return x


class Head(nn.Module):
    """An MLP and one output layer per name: `[..., inputs] -> {name: float32 [..., sizes[name]]}`."""

    sizes: dict[str, int]
    layers: int
    units: int
    outscale: float = 1.0
    dtype: Any = jnp.float32
    act: str = "norm_silu"

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = MLP(self.layers, self.units, self.dtype, self.act, name="mlp")(x)
        return {
            name: Linear(x.shape[-1], size, self.outscale, self.dtype, name=name)(x).astype(jnp.float32)
            for name, size in self.sizes.items()
        }
