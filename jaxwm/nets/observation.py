"""Encoder and decoder for any mix of sensors: images, 0/1 planes and vectors (Hafner et al. 2023, appendix B).

What happens to an observation follows from its dtype:

- uint8 `[H, W, C]` ("image"): x / 255 - 0.5 through convolutions; reconstructed with squared error;
- bool, any rank ("binary"): as 0/1 numbers through the MLP; reconstructed as independent Bernoullis;
- float32, any rank ("vector"): symlog through the MLP; reconstructed with squared error in symlog space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import symexp, symlog
from jaxwm.nets.layers import MLP, BlockLinear, Conv, Linear, NormSilu
from jaxwm.types import RESERVED, Array

MULTIPLIERS = (2, 3, 4, 4)
"""Channels of the four convolution stages, in units of `depth`."""


def sensors(obs: Any) -> dict[str, Any]:
    """An observation (or its spec) as a dict without the reserved keys; a bare array gets the name "obs"."""
    if not isinstance(obs, Mapping):  # flax freezes the dicts among a module's attributes
        return {"obs": obs}
    return {name: obs[name] for name in sorted(obs) if name not in RESERVED}


def kind(spec: jax.ShapeDtypeStruct) -> str:
    """ "image", "binary" or "vector"; ValueError for anything else."""
    if spec.dtype == jnp.bool_:
        return "binary"
    if spec.dtype == jnp.uint8 and len(spec.shape) == 3:
        return "image"
    if spec.dtype == jnp.float32:
        return "vector"
    raise ValueError(
        f"no encoder for observations of dtype {spec.dtype} and shape {spec.shape}: give images as uint8 [H, W, C], "
        "flags and one-hot classes as bool, numbers as float32"
    )


def kinds(obs: Any) -> dict[str, str]:
    """`{sensor: kind}` of an observation spec; ValueError where an image size does not fit the convolutions."""
    found = {name: kind(spec) for name, spec in sensors(obs).items()}
    if not found:
        raise ValueError("the observation has no sensor besides the reserved keys " + ", ".join(RESERVED))
    images = [sensors(obs)[name].shape for name, what in found.items() if what == "image"]
    for height, width, _ in images:
        if height % 16 or width % 16 or not (3 <= height // 16 <= 16 and 3 <= width // 16 <= 16):
            raise ValueError(
                f"images are halved four times: height and width must be multiples of 16 between 48 and 256, got "
                f"{height} x {width}; set the environment's image size (64 is usual) or give small grids as bool planes"
            )
    if len({shape[:2] for shape in images}) > 1:
        raise ValueError(f"all image sensors must have one height and width, got {images}")
    return found


def flat(x: Array, spec: jax.ShapeDtypeStruct) -> Array:
    """Join the axes of one sensor: `[..., *spec.shape] -> [..., size]`."""
    return x.reshape(*x.shape[: x.ndim - len(spec.shape)], math.prod(spec.shape))


class Encoder(nn.Module):
    """`obs [..., *shapes] -> tokens [..., E]`; any number of leading axes."""

    spec: Any
    depth: int
    units: int
    layers: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, obs: Any) -> Array:
        obs, spec, which = sensors(obs), sensors(self.spec), kinds(self.spec)
        outputs = []
        numbers = [
            flat(symlog(obs[name]) if what == "vector" else obs[name].astype(jnp.float32), spec[name])
            for name, what in which.items()
            if what != "image"
        ]
        if numbers:
            outputs.append(MLP(self.layers, self.units, self.dtype, name="mlp")(jnp.concatenate(numbers, -1)))
        images = [obs[name] for name, what in which.items() if what == "image"]
        if images:
            outputs.append(self.convolve(jnp.concatenate(images, -1)))
        return jnp.concatenate(outputs, -1)

    def convolve(self, image: Array) -> Array:
        lead, shape = image.shape[:-3], image.shape[-3:]
        x = image.reshape(-1, *shape).astype(self.dtype) / 255 - 0.5
        for i, multiplier in enumerate(MULTIPLIERS):
            x = Conv(self.depth * multiplier, dtype=self.dtype, name=f"conv{i}")(x)
            x = max_pool(x)
            x = NormSilu(name=f"act{i}")(x)
        return x.reshape(*lead, -1)


def max_pool(x: Array) -> Array:
    """2 x 2 maximum: `[B, H, W, C] -> [B, H/2, W/2, C]`, as a maximum of four slices (fast where pooling is not)."""
    rows = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


class Decoder(nn.Module):
    """`deter [..., D], stoch [..., Z] -> {sensor: raw prediction}`; see `loss` and `observation` for their meaning."""

    spec: Any
    depth: int
    units: int
    layers: int = 3
    blocks: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, deter: Array, stoch: Array) -> dict[str, Array]:
        spec, which = sensors(self.spec), kinds(self.spec)
        out = {}
        numbers = {name: spec[name] for name, what in which.items() if what != "image"}
        if numbers:
            x = MLP(self.layers, self.units, self.dtype, name="mlp")(jnp.concatenate([stoch, deter], -1))
            for name, s in numbers.items():
                y = Linear(x.shape[-1], math.prod(s.shape), dtype=self.dtype, name=f"out_{name}")(x)
                out[name] = y.reshape(*y.shape[:-1], *s.shape).astype(jnp.float32)
        images = {name: spec[name].shape for name, what in which.items() if what == "image"}
        if images:
            x = self.deconvolve(deter, stoch, next(iter(images.values()))[:2], sum(s[-1] for s in images.values()))
            start = 0
            for name, shape in images.items():
                out[name] = x[..., start : start + shape[-1]]
                start += shape[-1]
        return out

    def deconvolve(self, deter: Array, stoch: Array, size: tuple[int, int], channels: int) -> Array:
        lead = deter.shape[:-1]
        deter, stoch = deter.reshape(-1, deter.shape[-1]), stoch.reshape(-1, stoch.shape[-1])
        height, width, depth = size[0] // 16, size[1] // 16, self.depth * MULTIPLIERS[-1]
        area, g = height * width * depth, self.blocks
        # Each block of the recurrent state paints its own group of channels.
        x = BlockLinear(deter.shape[-1], area, g, dtype=self.dtype, name="from_deter")(deter)
        x = x.reshape(-1, g, height, width, depth // g).transpose(0, 2, 3, 1, 4).reshape(-1, height, width, depth)
        y = Linear(stoch.shape[-1], 2 * self.units, dtype=self.dtype, name="from_stoch")(stoch)
        y = Linear(2 * self.units, area, dtype=self.dtype, name="spread")(NormSilu(name="stoch_act")(y))
        x = NormSilu(name="space_act")(x + y.reshape(x.shape))
        for i, multiplier in reversed(list(enumerate(MULTIPLIERS[:-1]))):
            x = Conv(self.depth * multiplier, dtype=self.dtype, name=f"conv{i}")(double(x))
            x = NormSilu(name=f"act{i}")(x)
        x = Conv(channels, dtype=self.dtype, name="image")(double(x))
        return jax.nn.sigmoid(x.astype(jnp.float32)).reshape(*lead, *x.shape[1:])


def double(x: Array) -> Array:
    """Nearest-neighbour upsampling by two: `[B, H, W, C] -> [B, 2H, 2W, C]`."""
    return x.repeat(2, -2).repeat(2, -3)


def reconstruction_loss(obs: Any, prediction: dict[str, Array], spec: Any) -> dict[str, Array]:
    """`{sensor: [...]}`: negative log-likelihood up to constants, summed over the entries of a sensor."""
    obs, spec = sensors(obs), sensors(spec)
    losses = {}
    for name, what in kinds(spec).items():
        target, guess = obs[name], prediction[name]
        if what == "binary":
            error = jax.nn.softplus(guess) - guess * target
        else:
            target = target.astype(jnp.float32) / 255 if what == "image" else symlog(target)
            error = jnp.square(guess - target)
        losses[name] = flat(error, spec[name]).sum(-1)
    return losses


def observation(prediction: dict[str, Array], spec: Any) -> Any:
    """What the decoder says, in the dtype and structure of the environment's observation (without reserved keys)."""
    out = {}
    for name, what in kinds(spec).items():
        guess = prediction[name]
        if what == "image":
            out[name] = jnp.clip(jnp.round(guess * 255), 0, 255).astype(jnp.uint8)
        else:
            out[name] = guess > 0 if what == "binary" else symexp(guess)
    return out if isinstance(spec, Mapping) else out["obs"]
