"""A U-Net of residual blocks that a condition steers by adaptive group norm, and its first half as an encoder.

Ronneberger et al. 2015; Dhariwal & Nichol 2021 for the conditioning; Alonso et al. 2024 for sizes and attention.

R rows, H height, W width, C channels, E width of the condition, A width of an action, K past frames."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import sg
from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.nets.layers import Conv, Linear, weight
from jaxwm.types import Array

GROUP, EPS, HEAD = 32, 1e-5, 8  # Channels of a group and its epsilon, channels of a head of attention.


def parts(channels: int, size: int) -> int:
    """Groups of about `size` channels: the most that divide them, at least one."""
    return max(n for n in range(1, max(1, channels // size) + 1) if channels % n == 0)


def standardised(x: Array) -> Array:
    """Planes `[R, H, W, C]` with mean 0 and variance 1 within each group of channels, in float32 (Wu & He 2018)."""
    rows, height, width, channels = x.shape
    y = x.astype(jnp.float32).reshape(rows, height * width, parts(channels, GROUP), -1)
    y = y - y.mean((1, 3), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + EPS)
    return y.reshape(x.shape)


class GroupNorm(nn.Module):
    """Group norm of planes `[R, H, W, C]` with a scale and a shift: learned ones, or made of a condition `[R, E]`."""

    @nn.compact
    def __call__(self, x: Array, cond: Array | None = None) -> Array:
        y, width = standardised(x), x.shape[-1]
        if cond is None:
            scale = weight(self, "scale", nn.initializers.ones, (width,))
            shift = weight(self, "shift", nn.initializers.zeros, (width,))
            return (y * scale + shift).astype(x.dtype)
        scale, shift = jnp.split(Linear(cond.shape[-1], 2 * width, name="steer")(cond)[:, None, None], 2, -1)
        return (y * (1 + scale) + shift).astype(x.dtype)


class Attention(nn.Module):
    """Self-attention among the cells of planes `[R, H, W, C]`, with a way around it; it adds nothing at first."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rows, width = len(x), x.shape[-1]
        flat = GroupNorm(name="norm")(x).reshape(rows, -1, width)
        seen = Linear(width, 3 * width, dtype=self.dtype, name="in")(flat)
        seen = seen.reshape(rows, -1, 3, parts(width, HEAD), width // parts(width, HEAD))
        out = jax.nn.dot_product_attention(seen[:, :, 0], seen[:, :, 1], seen[:, :, 2])
        return x + Linear(width, width, 0.0, self.dtype, name="out")(out.reshape(x.shape))


class Residual(nn.Module):
    """Two convolutions under a condition with a way around them: `[R, H, W, C] -> [R, H, W, channels]`. What they add
    is 0 at first."""

    channels: int
    attention: bool = False
    routes: Routes = PLAIN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> Array:
        conv = partial(Conv, self.channels, routes=self.routes, dtype=self.dtype)
        around = x if x.shape[-1] == self.channels else conv(1, name="around")(x)
        y = conv(3, name="in")(nn.silu(GroupNorm(name="norm0")(x, cond)))
        y = conv(3, outscale=0.0, name="out")(nn.silu(GroupNorm(name="norm1")(y, cond)))
        return Attention(self.dtype, name="attention")(around + y) if self.attention else around + y


class Halve(nn.Module):
    """A 3 x 3 convolution of stride 2, zeros around: `[R, H, W, C] -> [R, H / 2, W / 2, C]`, as one matrix product."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        seen = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
        return Linear(9 * channels, channels, dtype=self.dtype, name="conv")(jnp.concatenate(seen, -1))


class Descent(nn.Module):
    """The first half of a U-Net: `blocks` residual blocks at each size, the first of `channels` at full size, and two
    with attention at the last one. Returns planes, and all that a second half needs, first to last."""

    channels: tuple[int, ...]
    blocks: int
    routes: Routes = PLAIN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> tuple[Array, list[Array]]:
        block = partial(Residual, routes=self.routes, dtype=self.dtype)
        skips = []
        for i, channels in enumerate(self.channels):
            x = Halve(self.dtype, name=f"halve{i}")(x) if i else x
            skips.append(x)
            for j in range(self.blocks):
                x = block(channels, name=f"block{i}_{j}")(x, cond)
                skips.append(x)
        for j in range(2):
            x = block(self.channels[-1], True, name=f"middle{j}")(x, cond)
        return x, skips


def whole(x: Array, sizes: int) -> Array:
    """Planes `[R, H, W, C]` with zeros below and to the right, so that they can be halved `sizes - 1` times."""
    more = [-side % 2 ** (sizes - 1) for side in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)))


class UNet(nn.Module):
    """`[R, H, W, channels[0]] -> [R, H, W, channels[0]]` under a condition `[R, E]`."""

    channels: tuple[int, ...]
    blocks: int
    routes: Routes = PLAIN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> Array:
        height, width = x.shape[1:3]
        options: dict[str, Any] = dict(routes=self.routes, dtype=self.dtype)
        down = Descent(self.channels, self.blocks, name="down", **options)
        x, skips = down(whole(x, len(self.channels)), cond)
        for i in reversed(range(len(self.channels))):
            if i < len(self.channels) - 1:
                x = Conv(x.shape[-1], 3, True, name=f"double{i}", **options)(x)
            widths = [self.channels[i]] * self.blocks + [self.channels[max(0, i - 1)]]
            for j, channels in enumerate(widths):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = Residual(channels, name=f"up{i}_{j}", **options)(x, cond)
        return x[:, :height, :width]


class Waves(nn.Module):
    """Numbers `[R]` as cosines and sines `[R, width]` at random frequencies that stay as they begin."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        frequencies = sg(weight(self, "frequencies", nn.initializers.normal(1.0), (self.width // 2,)))
        angle = 2 * math.pi * x[:, None] * frequencies
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class FrameNet(nn.Module):
    """What a denoiser makes of a noisy frame, its noise level and its past.

    `noisy [R, H, W, C]`, `level [R]`, `past [R, H, W, K * C]`, oldest frame first, actions `[R, K, A]`, of which those
    count that are `known [R, K]`, and a memory `[R, *]` where there is one; `[R, H, W, C]` in float32, 0 at first."""

    channels: tuple[int, ...]
    blocks: int
    cond: int  # width of the condition, a multiple of K
    routes: Routes = PLAIN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, noisy: Array, level: Array, past: Array, action: Array, known: Array, memory: Array | None = None
    ) -> Array:
        each = Linear(action.shape[-1], self.cond // action.shape[1], name="action")(action) * known[..., None]
        seen = Waves(self.cond, name="level")(level) + each.reshape(len(noisy), -1)
        if memory is not None:
            seen = seen + Linear(memory.shape[-1], self.cond, name="memory")(memory)
        cond = Linear(self.cond, self.cond, name="cond1")(nn.silu(Linear(self.cond, self.cond, name="cond0")(seen)))
        options: dict[str, Any] = dict(routes=self.routes, dtype=self.dtype)
        x = Conv(self.channels[0], 3, name="stem", **options)(jnp.concatenate([past, noisy], -1))
        x = UNet(self.channels, self.blocks, name="unet", **options)(x, cond)
        x = nn.silu(GroupNorm(name="norm")(x))
        return Conv(noisy.shape[-1], 3, outscale=0.0, name="out", **options)(x).astype(jnp.float32)
