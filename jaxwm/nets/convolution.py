"""Convolutions of stride 1 with same padding, and how to make them fast.

Two exact rewritings, both optional. XLA's gradient of a kernel gets many times slower on CPUs where the batch is large
or stands inside a loop; written as an ordinary convolution whose batch axis is the input channels, it does not. And a
convolution of an image that was doubled by repeating pixels sees each pixel four times: summing the kernel's taps first
gives the same numbers from the small image with 9 instead of 25 products a pixel."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array


def convolve(x: Array, kernel: Array, padding: int | None = None) -> Array:
    """`x [B, H, W, I], kernel [K, K, I, O] -> [B, H', W', O]`; with padding K // 2 the size stays."""
    pad = kernel.shape[0] // 2 if padding is None else padding
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=axes)


@jax.custom_vjp
def convolve_own(x: Array, kernel: Array) -> Array:
    """`convolve` for odd kernels, with gradients that are ordinary convolutions."""
    return convolve(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    # every input channel is an image, the batch its channels, and dy the kernel
    channels, errors = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    dw = convolve(channels, errors, kernel.shape[0] // 2).transpose(1, 2, 0, 3)
    return dx, dw


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
