"""Diffusion as one preconditioned denoiser (Karras et al. 2022, EDM), with the offset noise and sampler of DIAMOND.

Pictures are `[R, H, W, C]` in [-1, 1]; a noise level sigma is `[R]`. Published numbers: Alonso et al. 2024."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array

Denoise = Callable[[Array, Array], Array]
"""`(noisy [R, ...], sigma []) -> clean [R, ...]`."""


class Scales(NamedTuple):
    """How a network F is wrapped: D(x) = skip x + out F(into x, level). Each `[R]`."""

    skip: Array
    out: Array
    into: Array
    level: Array


def wide(x: Array) -> Array:
    """Numbers `[R]` as `[R, 1, 1, 1]`."""
    return x[..., None, None, None]


@dataclass(frozen=True)
class EDM:
    """The numbers of a denoiser and of the noise that it learns from: Karras et al. 2022, table 1, and DIAMOND's."""

    sigma_data: float = 0.5  # Standard deviation of pictures.
    offset: float = 0.3  # That of the noise that all pixels of a channel share.
    mean: float = -0.4  # Of the logarithm of sigma in learning.
    std: float = 1.2
    least: float = 0.002  # Sigma in learning is cut at these.
    most: float = 20.0

    def scales(self, sigma: Array) -> Scales:
        """The preconditioning at noise levels `[R]`; offset noise counts as noise."""
        noise2, data2 = jnp.square(sigma) + self.offset**2, self.sigma_data**2
        skip = data2 / (noise2 + data2)
        return Scales(skip, jnp.sqrt(noise2 * skip), jax.lax.rsqrt(noise2 + data2), jnp.log(noise2) / 8)

    def level(self, normal: Array) -> Array:
        """Noise levels to learn from, log-normal, of standard normal numbers `[R]`."""
        return jnp.clip(jnp.exp(self.mean + self.std * normal), self.least, self.most)

    def noisy(self, clean: Array, sigma: Array, noise: Array, offset: Array) -> Array:
        """Pictures with noise `[R, H, W, C]`, and one number for each channel, `offset [R, 1, 1, C]`, both normal."""
        return clean + wide(sigma) * noise + self.offset * offset

    def target(self, clean: Array, noisy: Array, sigma: Array) -> Array:
        """What the network should put out."""
        scales = self.scales(sigma)
        return (clean - wide(scales.skip) * noisy) / wide(scales.out)

    def clean(self, noisy: Array, output: Array, sigma: Array) -> Array:
        """The clean picture that the network's output stands for, in 8 bits."""
        scales = self.scales(sigma)
        return rounded(wide(scales.skip) * noisy + wide(scales.out) * output)


def rounded(x: Array) -> Array:
    """Pictures in [-1, 1] as 8 bits would show them."""
    return jnp.round(255 * (jnp.clip(x, -1, 1) + 1) / 2) / 255 * 2 - 1


def noise_levels(steps: int, low: float = 0.002, high: float = 5.0, rho: float = 7.0) -> np.ndarray:
    """Noise levels of a sampler, from `high` to `low`, then 0: float32 `[steps + 1]` (Karras et al. 2022, eq. 5)."""
    ends = high ** (1 / rho), low ** (1 / rho)
    return np.append(np.linspace(*ends, steps) ** rho, 0.0).astype(np.float32)


def sample(denoise: Denoise, noise: Array, levels: np.ndarray, heun: bool = False) -> Array:
    """Follow the noise down to a picture, with Euler's or Heun's steps, in one scan (Karras et al. 2022, algorithm 1).

    `noise` is standard normal, whatever the first level is: what DIAMOND's sampler begins with. Heun's steps ask twice
    each, except the last one."""

    def slope(x: Array, sigma: Array) -> Array:
        return (x - denoise(x, sigma)) / sigma

    def euler(x: Array, levels: Array) -> tuple[Array, None]:
        return x + slope(x, levels[0]) * (levels[1] - levels[0]), None

    def improved(x: Array, levels: Array) -> tuple[Array, None]:
        here, gap = slope(x, levels[0]), levels[1] - levels[0]
        there = slope(x + here * gap, levels[1])
        return x + (here + there) / 2 * gap, None

    pairs = jnp.stack([levels[:-1], levels[1:]], -1)
    if not heun:
        return jax.lax.scan(euler, noise, pairs)[0]
    x = jax.lax.scan(improved, noise, pairs[:-1])[0] if len(pairs) > 1 else noise
    return euler(x, pairs[-1])[0]
