"""Convolutions of stride 1 with same padding, and how to make them fast.

Three exact rewritings, all optional. XLA's gradient of a kernel gets many times slower on CPUs where the batch is large
or stands inside a loop; written as an ordinary convolution whose batch axis is the input channels, it does not. Few
channels make narrow matrix products, which CPUs are slow at; two neighbouring pixels taken as one, with twice the
channels, make wide ones. And a convolution of an image that was doubled by repeating pixels sees each pixel four times:
summing the kernel's taps first gives the same numbers from the small image with 9 instead of 25 products a pixel."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array

FEW, WIDE = 16, 64
"""Channels on either side up to which pixels are taken in pairs, and those from which the gradient of a small kernel is
a few matrix products. Measured in benchmarks/NOTES.md."""


def convolve(x: Array, kernel: Array, padding: int | None = None) -> Array:
    """`x [B, H, W, I], kernel [K, L, I, O] -> [B, H', W', O]`; with padding K // 2 and L // 2, the default, the size
    stays."""
    pads = (size // 2 if padding is None else padding for size in kernel.shape[:2])
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(p, p) for p in pads], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_pairs(x: Array, kernel: Array) -> Array:
    """`convolve` of odd kernels, where W is even, by one convolution of pairs of neighbours in a row."""
    size, (batch, height, width, _) = kernel.shape[0], x.shape
    reach = (size // 2 + 1) // 2  # of the kernel, in pairs
    place, of, tap = np.ogrid[: 2 * (2 * reach + 1), :2, :size]  # a pixel of the pairs in reach, one of ours, a tap
    taps = jnp.asarray(place - 2 * reach == of + tap - size // 2, kernel.dtype)
    wide = jnp.einsum("pqt,htio->hpiqo", taps, kernel).reshape(size, 2 * reach + 1, 2 * x.shape[-1], -1)
    return convolve(x.reshape(batch, height, width // 2, -1), wide).reshape(batch, height, width, -1)


def _convolve_fast(x: Array, kernel: Array) -> Array:
    narrow = max(kernel.shape[2:]) <= FEW and x.shape[2] % 2 == 0
    return convolve_pairs(x, kernel) if narrow else convolve(x, kernel)


@jax.custom_vjp
def convolve_own(x: Array, kernel: Array) -> Array:
    """`convolve` for odd kernels as CPUs are fast at it, with gradients that are ordinary convolutions or
    matrix products."""
    return _convolve_fast(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_fast(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = _convolve_fast(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    if len(kernel) <= 3 and kernel.shape[-1] >= WIDE:
        return dx, _by_taps(x, dy, len(kernel))
    # every input channel is an image, the batch its channels, and dy the kernel
    channels, errors = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    dw = convolve(channels, errors, len(kernel) // 2).transpose(1, 2, 0, 3)
    return dx, dw


def _by_taps(x: Array, dy: Array, size: int) -> Array:
    """The gradient of a kernel by one matrix product for each tap: `[K, K, I, O]`."""
    pad, (_, height, width, channels), errors = size // 2, x.shape, dy.reshape(-1, dy.shape[-1])
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = (x[:, i : i + height, j : j + width] for i in range(size) for j in range(size))
    dw = jnp.stack([part.reshape(-1, channels).T @ errors for part in seen])
    return dw.reshape(size, size, channels, -1)


convolve_own.defvjp(_forward, _backward)


def double(x: Array) -> Array:
    """Nearest-neighbour upsampling by two: `[B, H, W, C] -> [B, 2H, 2W, C]`."""
    return x.repeat(2, -2).repeat(2, -3)


def _taps(size: int) -> np.ndarray:
    """0/1 `[2, taps, size]`: which tap at low resolution each tap of the kernel reads, for even and odd pixels."""
    reach = size // 2
    low = [[(phase + tap) // 2 for tap in range(-reach, reach + 1)] for phase in (0, 1)]
    width = max(max(row) for row in low)
    return np.array([[[float(t == at) for at in row] for t in range(-width, width + 1)] for row in low], np.float32)


def convolve_doubled(x: Array, kernel: Array, convolution=convolve) -> Array:
    """`convolve(double(x), kernel)` by one convolution at the resolution of `x` (Shi et al. 2016)."""
    taps = jnp.asarray(_taps(kernel.shape[0]), kernel.dtype)
    small = jnp.einsum("pai,qbj,ijco->abcpqo", taps, taps, kernel)
    rows, columns, depth, *phases = small.shape
    y = convolution(x, small.reshape(rows, columns, depth, -1))
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, *phases).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, 2 * height, 2 * width, phases[-1])
