"""The convolutions of World Models, PlaNet, Dreamer V1 and V2: four of stride 2 in, four transposed ones out, 64 x 64.

Ha & Schmidhuber 2018, appendix A.1; Hafner et al. 2019, appendix A. With depth 32 these are the published sizes: 32,
64, 128, 256 channels in, 1024 numbers between, 128, 64, 32 channels out.

Both kinds are written as one matrix product each, with pixels moved beside it: XLA's own convolutions take three times
as long on a CPU inside a loop, and longer still with a population's kernels."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxwm.nets.layers import ACTIVATIONS, Linear, truncated_normal, weight
from jaxwm.types import Array

SIDE = 64  # Height and width of the images; nothing else fits these kernels.
CHANNELS = (1, 2, 4, 8)  # Channels of the convolutions, in units of `depth`.
KERNELS = (5, 5, 6, 6)  # Kernels of the transposed convolutions: 1, 5, 13, 30 and 64 pixels.


def check_side(shape: tuple[int, ...]) -> None:
    """ValueError unless an image `[H, W, C]` is 64 x 64."""
    if tuple(shape[:2]) != (SIDE, SIDE):
        raise ValueError(
            f"these convolutions want images of {SIDE} x {SIDE}, not {shape[0]} x {shape[1]}: set the environment's "
            f"image size (--env-option image_size={SIDE})"
        )


def shrink(x: Array, kernel: Array) -> Array:
    """Convolution of stride 2 without padding: `[B, H, W, C]` and an even kernel `[k, k, C, D]`, as lax does it."""
    batch, height, width, channels = x.shape
    taps = kernel.shape[0] // 2
    h, w = height // 2 - taps + 1, width // 2 - taps + 1
    x = x[:, : 2 * (h + taps - 1), : 2 * (w + taps - 1)]
    x = x.reshape(batch, h + taps - 1, 2, w + taps - 1, 2, channels).swapaxes(2, 3)
    x = x.reshape(batch, h + taps - 1, w + taps - 1, 4 * channels)  # four pixels side by side
    patches = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(taps) for j in range(taps)], -1)
    return patches @ kernel.reshape(taps, 2, taps, 2, channels, -1).swapaxes(1, 2).reshape(-1, kernel.shape[-1])


def grow(x: Array, kernel: Array) -> Array:
    """Transposed convolution of stride 2 without padding: `[B, H, W, C]` to `[B, 2H + k - 2, 2W + k - 2, D]`."""
    (batch, height, width, channels), (size, _, _, depth) = x.shape, kernel.shape
    taps = -(-size // 2)
    fill = (0, 2 * taps - size)
    even = jnp.pad(kernel[::-1, ::-1], (fill, fill, (0, 0), (0, 0))).reshape(taps, 2, taps, 2, channels, depth)
    # every pixel paints a square of taps x taps cells of 2 x 2 pixels; squares overlap and add up
    squares = (x.reshape(-1, channels) @ even.transpose(4, 0, 2, 1, 3, 5).reshape(channels, -1)).reshape(
        batch, height, width, taps, taps, 4 * depth
    )
    rows, columns = height + taps - 1, width + taps - 1
    cells = jnp.zeros((batch, rows, columns, 4 * depth), x.dtype)
    for i in range(taps):
        for j in range(taps):
            margins = (i, taps - 1 - i), (j, taps - 1 - j)
            cells += jnp.pad(squares[:, :, :, i, j], ((0, 0), *margins, (0, 0)))
    image = cells.reshape(batch, rows, columns, 2, 2, depth).swapaxes(2, 3).reshape(batch, 2 * rows, 2 * columns, depth)
    return image[:, : 2 * height + size - 2, : 2 * width + size - 2]


class StridedEncoder(nn.Module):
    """uint8 images `[..., 64, 64, C] -> [..., 32 * depth]`."""

    depth: int = 32
    act: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        check_side(image.shape[-3:])
        lead = image.shape[:-3]
        x = image.reshape(-1, *image.shape[-3:]).astype(self.dtype) / 255
        for i, channels in enumerate(CHANNELS):
            shape = (4, 4, x.shape[-1], channels * self.depth)
            kernel = weight(self, f"kernel{i}", truncated_normal(16 * x.shape[-1]), shape).astype(self.dtype)
            bias = weight(self, f"bias{i}", nn.initializers.zeros, shape[-1:]).astype(self.dtype)
            x = ACTIVATIONS[self.act](shrink(x, kernel) + bias)
        return x.reshape(*lead, -1)


class StridedDecoder(nn.Module):
    """Features `[..., F] -> [..., 64, 64, channels]`, float32, raw: the mean of a normal, or a sigmoid's argument."""

    channels: int = 3
    depth: int = 32
    act: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array) -> Array:
        lead = feat.shape[:-1]
        x = Linear(feat.shape[-1], 32 * self.depth, dtype=self.dtype, name="spread")(feat)
        x = x.reshape(-1, 1, 1, 32 * self.depth)
        sizes = [4 * self.depth, 2 * self.depth, self.depth, self.channels]
        for i, (size, width) in enumerate(zip(sizes, KERNELS, strict=True)):
            # every output pixel is reached by about (width / 2)^2 taps
            init = truncated_normal(max(1, width * width // 4) * x.shape[-1])
            kernel = weight(self, f"kernel{i}", init, (width, width, x.shape[-1], size)).astype(self.dtype)
            bias = weight(self, f"bias{i}", nn.initializers.zeros, (size,)).astype(self.dtype)
            x = grow(x, kernel) + bias
            x = x if i == len(sizes) - 1 else ACTIVATIONS[self.act](x)
        return x.astype(jnp.float32).reshape(*lead, *x.shape[1:])
