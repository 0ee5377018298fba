"""Video as tokens, and what acted in it: the two autoencoders of Genie (Bruce et al. 2024, section 2.1).

Both are spatio-temporal transformers over squares of `patch` pixels, and see no frame after the present one; the
encoder of actions sees the frame that an action led to.

Letters: B batch, T frames, K squares (tokens) of a frame, V codes, W width, D numbers of a code."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from jaxwm.nets.attention import Cache, Transformer
from jaxwm.nets.layers import Linear, weight
from jaxwm.nets.quantiser import (
    Quantised,
    as_floats,
    cosine_quantise,
    cropped,
    from_cells,
    grid,
    padded,
    to_cells,
    unit,
)  # fmt: skip
from jaxwm.types import Array


class SpaceTime(nn.Module):
    """`[B, T, K, W] -> [B, T, K, W]`: a transformer whose tokens see those of their own moment, and the past of their
    own place. Time is told by rotary positions, so that a cache may slide on."""

    space: int  # K
    layers: int
    heads: int
    width: int
    window: int | None = None  # Frames that a token sees, its own included.
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        self.net = Transformer(
            self.layers, self.width, self.heads, 4 * self.width, 0, "pre", "gelu", window=self.window,
            space=self.space, dtype=jnp.dtype(self.dtype), remat=self.remat,
        )  # fmt: skip

    def __call__(self, x: Array, first: Array) -> Array:
        """Whole windows; `first [B, T]` marks frames that begin an episode."""
        return self._frames(self.net(self._rows(x), self._places(first)))

    def read(self, x: Array, first: Array, slots: int) -> tuple[Cache, Array]:
        """The same, and a cache of `slots` frames, as `Transformer.read`."""
        cache, out = self.net.read(self._rows(x), self._places(first), slots)
        return cache, self._frames(out)

    def extend(self, cache: Cache, x: Array) -> tuple[Cache, Array]:
        """Append frames, as `Transformer.extend`."""
        cache, out = self.net.extend(cache, self._rows(x))
        return cache, self._frames(out)

    def _rows(self, x: Array) -> Array:
        chex.assert_shape(x, (None, None, self.space, self.width))
        return x.swapaxes(1, 2).reshape(-1, x.shape[1], self.width)

    def _frames(self, x: Array) -> Array:
        return x.reshape(-1, self.space, *x.shape[1:]).swapaxes(1, 2).astype(jnp.float32)

    def _places(self, first: Array) -> Array:
        return jnp.repeat(first, self.space, 0)


class Patches(nn.Module):
    """Frames `[B, T, H, W, C]` in [0, 1] as squares `[B, T, K, W]`, and back."""

    shape: tuple[int, ...]  # of a frame
    patch: int
    width: int

    def setup(self):
        size = self.patch**2 * self.shape[-1]
        self.into, self.out = Linear(size, self.width), Linear(self.width, size)
        self.norm = nn.LayerNorm()

    def cut(self, frame: Array) -> Array:
        """Embedded squares."""
        chex.assert_shape(frame, (None, None, *self.shape))
        cells = to_cells(padded(frame.reshape(-1, *self.shape), self.patch), self.patch)
        return self.norm(self.into(cells.reshape(*frame.shape[:2], -1, cells.shape[-1])))

    def paint(self, x: Array) -> Array:
        """Frames: numbers for images, logits for 0/1 planes."""
        cells = self.out(x)
        rows = cells.reshape(-1, *grid(self.shape, self.patch), cells.shape[-1])
        return cropped(from_cells(rows, self.patch), self.shape).reshape(*x.shape[:2], *self.shape)


def _codebook(module: nn.Module, codes: int, width: int) -> Array:
    return weight(module, "codebook", lambda key, shape: unit(nn.initializers.normal()(key, shape)), (codes, width))


class VideoTokenizer(nn.Module):
    """Frames as K tokens each, which may depend on earlier frames (ST-ViViT)."""

    shape: tuple[int, ...]
    codes: int
    code_width: int
    patch: int
    layers: int
    heads: int
    width: int
    window: int
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return grid(self.shape, self.patch)

    @property
    def tokens(self) -> int:
        """Tokens of a frame, K."""
        rows, columns = self.grid
        return rows * columns

    def setup(self):
        stack = self.tokens, self.layers, self.heads, self.width, self.window, self.dtype, self.remat
        self.seen, self.shown = (Patches(self.shape, self.patch, self.width) for _ in range(2))
        self.encoder, self.decoder = SpaceTime(*stack), SpaceTime(*stack)
        self.to_latents, self.from_codes = (
            Linear(self.width, self.code_width), Linear(self.code_width, self.width),
        )  # fmt: skip
        self.codebook = _codebook(self, self.codes, self.code_width)

    def __call__(self, frame: Array, first: Array) -> tuple[Quantised, Array]:
        """Tokens `[B, T, K]` with their codes, and what is painted of these, `[B, T, H, W, C]`."""
        found = self.quantise(frame, first)
        return found, self.paint(found.codes, first)

    def quantise(self, frame: Array, first: Array) -> Quantised:
        """The codes of frames `[B, T, H, W, C]`; `first [B, T]`."""
        x = self.encoder(self.seen.cut(as_floats(frame)), first)
        return cosine_quantise(self.to_latents(x), self.codebook)

    def decode(self, tokens: Array, first: Array) -> Array:
        """What is painted of tokens `[B, T, K]`."""
        return self.paint(unit(self.codebook)[tokens], first)

    def paint(self, codes: Array, first: Array) -> Array:
        """The same of codes `[B, T, K, D]`."""
        return self.shown.paint(self.decoder(self.from_codes(codes), first))


class LatentActions(nn.Module):
    """What led from each frame to the next, as one of few codes.

    An extra token at each frame asks what happened; it sees that frame and those before. The decoder sees the frames
    before and, at each square, the code, and paints the frame: the code must hold what the past does not."""

    shape: tuple[int, ...]
    codes: int
    code_width: int
    patch: int
    layers: int
    heads: int
    width: int
    window: int
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        rows, columns = grid(self.shape, self.patch)
        stack = self.layers, self.heads, self.width, self.window, self.dtype, self.remat
        self.seen, self.shown = (Patches(self.shape, self.patch, self.width) for _ in range(2))
        self.encoder, self.decoder = SpaceTime(rows * columns + 1, *stack), SpaceTime(rows * columns, *stack)
        self.to_latents, self.from_codes = (
            Linear(self.width, self.code_width), Linear(self.code_width, self.width),
        )  # fmt: skip
        self.question = weight(self, "question_table", nn.initializers.normal(0.02), (self.width,))
        self.codebook = _codebook(self, self.codes, self.code_width)

    def __call__(self, frame: Array, first: Array) -> tuple[Quantised, Array]:
        """Codes of the T - 1 steps between frames `[B, T, H, W, C]`, and the frames 1 to T - 1 painted with them."""
        found = self.quantise(frame, first)
        return found, self.predict(frame[:, :-1], found.codes, first[:, :-1])

    def quantise(self, frame: Array, first: Array) -> Quantised:
        """The codes `[B, T - 1]` that led to frames 1 to T - 1; one at a frame that begins an episode means nothing."""
        x = self.seen.cut(as_floats(frame))
        asked = jnp.broadcast_to(self.question, (*x.shape[:2], 1, self.width))
        found = self.encoder(jnp.concatenate([asked, x], 2), first)[:, 1:, 0]
        return cosine_quantise(self.to_latents(found), self.codebook)

    def predict(self, frame: Array, codes: Array, first: Array) -> Array:
        """The frames after frames `[B, T, H, W, C]`, from codes `[B, T, D]`."""
        chex.assert_equal_shape_prefix((frame, codes, first), 2)
        x = self.shown.cut(as_floats(frame)) + self.from_codes(codes)[:, :, None]
        return self.shown.paint(self.decoder(x, first))
