"""Encoder and decoder for any mix of sensors (see `nets.sensors`): images, 0/1 planes and vectors.

`encode` and `reconstruct` apply them, images a few at a time."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.distributions import symlog
from jaxwm.learning.pieces import PLAIN, Routes, loss_over_pieces, map_pieces, merge, split
from jaxwm.nets.layers import MLP, BlockLinear, Conv, Linear, NormSilu, apply, to_blocks
from jaxwm.nets.sensors import flat, kinds, reconstruction_loss, rows, sensors
from jaxwm.nets.strided import StridedDecoder, StridedEncoder
from jaxwm.types import Array

MULTIPLIERS = (2, 3, 4, 4)  # Channels of the four convolution stages, in units of `depth`.


class Encoder(nn.Module):
    """`obs [..., *shapes] -> tokens [..., E]`; any number of leading axes."""

    spec: Any
    depth: int
    units: int
    layers: int = 3
    dtype: Any = jnp.float32
    routes: Routes = PLAIN
    act: str = "norm_silu"
    """Of the MLP and the convolutions; without a norm these are the strided ones of older systems (`nets.strided`)."""

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
            outputs.append(MLP(self.layers, self.units, self.dtype, self.act, name="mlp")(jnp.concatenate(numbers, -1)))
        images = [obs[name] for name, what in which.items() if what == "image"]
        if images:
            image = jnp.concatenate(images, -1)
            plain = self.act != "norm_silu"
            outputs.append(StridedEncoder(self.depth, self.act, self.dtype)(image) if plain else self.convolve(image))
        return jnp.concatenate(outputs, -1)

    def convolve(self, image: Array) -> Array:
        """Images `[..., H, W, C]` as numbers `[..., E]`."""
        lead, shape = image.shape[:-3], image.shape[-3:]
        x = image.reshape(-1, *shape).astype(self.dtype) / 255 - 0.5
        for i, multiplier in enumerate(MULTIPLIERS):
            x = Conv(self.depth * multiplier, routes=self.routes, dtype=self.dtype, name=f"conv{i}")(x)
            x = max_pool(x)
            x = NormSilu(name=f"act{i}")(x)
        return x.reshape(*lead, -1)


def max_pool(x: Array) -> Array:
    """2 x 2 maximum: `[B, H, W, C] -> [B, H/2, W/2, C]`, as a maximum of four slices (fast where pooling is not)."""
    height, width, channels = (x.shape[1] // 2, x.shape[2] // 2, x.shape[3])
    x = x[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2, channels)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class Decoder(nn.Module):
    """`deter [..., D], stoch [..., Z] -> {sensor: raw prediction}`; see `reconstruction_loss` and `observation`.
    Where D is 0 all is decoded from the second part.
    It has two independent parts: `numbers` for all sensors but images, and `paint(canvas(...))` for images."""

    spec: Any
    depth: int
    units: int
    deter: int
    stoch: int
    layers: int = 3
    blocks: int = 8
    dtype: Any = jnp.float32
    routes: Routes = PLAIN
    act: str = "norm_silu"  # As for the encoder.

    def setup(self):
        spec, dtype = sensors(self.spec), self.dtype
        self.vectors = {name: spec[name].shape for name, what in kinds(self.spec).items() if what != "image"}
        self.images = {name: spec[name].shape for name, what in kinds(self.spec).items() if what == "image"}
        if self.vectors:
            self.mlp = MLP(self.layers, self.units, dtype, self.act)
            for name, shape in self.vectors.items():
                setattr(self, f"out_{name}", Linear(self.units, math.prod(shape), dtype=dtype))
        channels = sum(shape[-1] for shape in self.images.values())
        if self.images and self.act != "norm_silu":
            self.strided = StridedDecoder(channels, self.depth, self.act, dtype)
        elif self.images:
            height, width, _ = next(iter(self.images.values()))
            self.size = height // 16, width // 16, self.depth * MULTIPLIERS[-1]
            if self.size[-1] % self.blocks:
                text = f"{MULTIPLIERS[-1]} x depth ({self.depth}) must be a multiple of blocks ({self.blocks})"
                raise ValueError(f"{text} where there are images: each block paints its own channels")
            area = math.prod(self.size)
            if self.deter:
                self.from_deter = BlockLinear(self.deter, area, self.blocks, dtype=dtype)
            self.from_stoch = Linear(self.stoch, 2 * self.units, dtype=dtype)
            self.stoch_act = NormSilu()
            self.spread = Linear(2 * self.units, area, dtype=dtype)
            self.space_act = NormSilu()
            for i, multiplier in enumerate(MULTIPLIERS[:-1]):
                setattr(self, f"conv{i}", Conv(self.depth * multiplier, doubled=True, routes=self.routes, dtype=dtype))
                setattr(self, f"act{i}", NormSilu())
            self.image = Conv(channels, doubled=True, routes=self.routes, dtype=dtype)

    def __call__(self, deter: Array, stoch: Array) -> dict[str, Array]:
        return self.numbers(deter, stoch) | (self.paint(self.canvas(deter, stoch)) if self.images else {})

    def numbers(self, deter: Array, stoch: Array) -> dict[str, Array]:
        """Predictions `[..., *shape]` of the sensors that are not images."""
        if not self.vectors:
            return {}
        x = self.mlp(jnp.concatenate([stoch, deter], -1))
        out = {name: getattr(self, f"out_{name}")(x).astype(jnp.float32) for name in self.vectors}
        return {name: y.reshape(*y.shape[:-1], *self.vectors[name]) for name, y in out.items()}

    def canvas(self, deter: Array, stoch: Array) -> Array:
        """What images are painted from: `[..., H / 16, W / 16, C]`, or `[..., 1, 1, C]` where these are strided."""
        if self.act != "norm_silu":
            return jnp.concatenate([deter, stoch], -1)[..., None, None, :]
        lead, (height, width, depth), g = deter.shape[:-1], self.size, self.blocks
        y = self.spread(self.stoch_act(self.from_stoch(stoch)))
        if not self.deter:
            return self.space_act(y.reshape(*lead, height, width, depth))
        # Each block of the recurrent state paints its own group of channels.
        x = self.from_deter(to_blocks(deter, g)).reshape(g, -1, height, width, depth // g)
        x = x.transpose(1, 2, 3, 0, 4).reshape(*lead, height, width, depth)
        return self.space_act(x + y.reshape(x.shape))

    def paint(self, canvas: Array) -> dict[str, Array]:
        """Images `[..., H, W, C]`: values in 0..1, or around it where the convolutions are strided."""
        x = canvas.reshape(-1, *canvas.shape[-3:])
        if self.act != "norm_silu":
            x = self.strided(x[:, 0, 0]) + 0.5
        else:
            for i in reversed(range(len(MULTIPLIERS) - 1)):
                x = getattr(self, f"act{i}")(getattr(self, f"conv{i}")(x))
            x = jax.nn.sigmoid(self.image(x).astype(jnp.float32))
        x = x.reshape(*canvas.shape[:-3], *x.shape[1:])
        ends = np.cumsum([shape[-1] for shape in self.images.values()])[:-1]
        return dict(zip(self.images, jnp.split(x, ends, -1), strict=True))


def shows_images(spec: Any) -> bool:
    """Whether there are images among the sensors."""
    return "image" in kinds(spec).values()


def encode(enc: Encoder, params: Any, obs: Any, spec: Any, routes: Routes = PLAIN) -> Array:
    """Tokens `[..., E]` of observations; `params` are the encoder's own."""
    lead, flat = rows(obs, spec)
    pieces = split(flat, routes.images if shows_images(spec) else 0)
    tokens = map_pieces(partial(apply, enc), params, pieces)
    return merge(tokens).reshape(*lead, -1)


def reconstruct(
    dec: Decoder, params: Any, deter: Array, stoch: Array, obs: Any, spec: Any, routes: Routes = PLAIN
) -> tuple[Array, dict[str, Array]]:
    """Mean loss over all sensors, and that of each where there are several; `params` are the decoder's own."""
    numbers = apply(dec, params, deter, stoch, method="numbers")
    losses = {k: v.mean() for k, v in reconstruction_loss(obs, numbers, spec).items()}
    total = sum(losses.values(), jnp.zeros(()))
    if shows_images(spec):
        canvas = apply(dec, params, deter, stoch, method="canvas")
        places = canvas.reshape(-1, *canvas.shape[2:])

        def paint(params, canvas, obs, _):
            painted = apply(dec, params, canvas, method="paint")
            parts = reconstruction_loss(obs, painted, spec)
            sums = {name: part.sum() for name, part in parts.items()}
            return sum(sums.values(), jnp.zeros(())), sums

        size, (_, targets) = routes.images, rows(obs, spec)
        loss, sums = loss_over_pieces(paint, params, split(places, size), split(targets, size))
        losses |= {name: part.sum() / len(places) for name, part in sums.items()}
        total += loss / len(places)
    return total, {f"loss/rec/{name}": loss for name, loss in losses.items()} if len(losses) > 1 else {}
