"""The next frame and its reward from a stack of frames, an action and a few random bits (Kaiser et al. 2020, SimPLe).

R rows, K frames of a stack, H x W x C a frame, A numbers of an encoded action, Z bits, n tokens of them, V = 2^chunk
values of a token, U units. Frames are uint8 images or bool planes."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import OneHot, TwoHot, one_hot, symexp_bins
from jaxwm.nets import lstm
from jaxwm.nets.layers import Conv, Head, Linear, NormSilu, truncated_normal, weight
from jaxwm.nets.lstm import LSTM
from jaxwm.nets.quantiser import as_floats, cropped, from_cells, padded, to_cells
from jaxwm.nets.residual import ROUTES
from jaxwm.types import Array

SHADES = 256  # Values of a pixel.


# --- Stacks -----------------------------------------------------------------------------------------------------------
def push(stack: Array, frame: Array, first: Array | bool = False) -> Array:
    """Stacks `[R, K, H, W, C]` with one more frame `[R, H, W, C]`; one that is the `first` of an episode fills it."""
    chex.assert_equal_shape((stack[:, 0], frame))
    moved = jnp.concatenate([stack[:, 1:], frame[:, None]], 1)
    alone = jnp.broadcast_to(frame[:, None], stack.shape)
    return jnp.where(jnp.reshape(first, (-1, 1, 1, 1, 1)), alone, moved)


def stacked(frame: Array, first: Array, count: int) -> Array:
    """The stack `[R, count, H, W, C]` after frames `[R, T, H, W, C]`; what came before them is taken to be their first
    one, and of other episodes nothing is in it."""
    stack = jnp.broadcast_to(frame[:, :1], (len(frame), count, *frame.shape[2:]))
    for t in range(1, frame.shape[1]):
        stack = push(stack, frame[:, t], first[:, t])
    return stack


# --- Bits -------------------------------------------------------------------------------------------------------------
def to_tokens(bits: Array, chunk: int) -> Array:
    """Numbers `[..., Z]`, of which those above 0 are ones, as int32 tokens `[..., Z / chunk]`."""
    ones = (bits > 0).reshape(*bits.shape[:-1], -1, chunk)
    return (ones * 2 ** jnp.arange(chunk)).sum(-1, dtype=jnp.int32)


def to_bits(tokens: Array, chunk: int) -> Array:
    """The inverse, -1 or 1: float32 `[..., Z]`."""
    ones = tokens[..., None] // 2 ** jnp.arange(chunk) % 2
    return (2.0 * ones - 1.0).reshape(*tokens.shape[:-1], -1)


# --- Layers -----------------------------------------------------------------------------------------------------------
class Inject(nn.Module):
    """What a vector `[R, V]` does to planes `[R, H, W, C]`: it scales them by sigmoids, and adds."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, vector: Array) -> Array:
        both = Linear(vector.shape[-1], 2 * x.shape[-1], dtype=self.dtype, name="both")(vector)
        scale, shift = jnp.split(both[:, None, None], 2, -1)
        return x * jax.nn.sigmoid(scale) + shift


class Down(nn.Module):
    """Frames `[R, H, W, C']` as planes of falling size, the smallest last: cells of `patch` x `patch` pixels, which
    know their place, halved `levels` times, with channels doubled at most `doublings` times."""

    depth: int
    patch: int
    levels: int
    doublings: int
    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frame: Array) -> list[Array]:
        linear = partial(Linear, dtype=self.dtype)
        x = to_cells(padded(frame, self.patch), self.patch)
        x = linear(x.shape[-1], self.depth, name="cells")(x)
        place = weight(self, "place", truncated_normal(1), x.shape[1:])
        planes = [x + place.astype(self.dtype)]
        for i in range(self.levels):
            x = to_cells(padded(planes[-1], 2), 2)
            x = linear(x.shape[-1], self.depth * 2 ** min(i + 1, self.doublings), name=f"halve{i}")(x)
            conv = Conv(x.shape[-1], self.kernel, routes=ROUTES, dtype=self.dtype, name=f"conv{i}")
            planes.append(NormSilu(name=f"act{i}")(conv(x)))
        return planes


class Up(nn.Module):
    """The way back: from the smallest planes `[R, h, w, c]` to those of `planes[0]`, each told the action again."""

    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, planes: list[Array], action: Array) -> Array:
        for i, skip in reversed(list(enumerate(planes[:-1]))):
            x = Linear(x.shape[-1], 4 * skip.shape[-1], dtype=self.dtype, name=f"grow{i}")(x)
            x = cropped(from_cells(x, 2), skip.shape[1:]) + skip
            x = NormSilu(name=f"act{i}")(Inject(self.dtype, name=f"action{i}")(x, action))
            if i:
                conv = Conv(x.shape[-1], self.kernel, routes=ROUTES, dtype=self.dtype, name=f"conv{i}")
                x = NormSilu(name=f"after{i}")(conv(x))
        return x


class Mix(nn.Module):
    """Residual layers between all cells of the smallest planes `[R, h, w, c]`."""

    count: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        flat = x.reshape(len(x), -1)
        for i in range(self.count):
            linear = Linear(flat.shape[-1], flat.shape[-1], dtype=self.dtype, name=f"linear{i}")
            flat = flat + NormSilu(name=f"act{i}")(linear(flat))
        return flat.reshape(x.shape)


class Seen(NamedTuple):
    """What the network makes of a stack and an action: planes of all sizes, the smallest of them with the action."""

    planes: list[Array]
    bottom: Array
    action: Array


class Predictor(nn.Module):
    """The network: `look`, then bits from `infer` (who knows the next frame) or `draw` (who does not), then `paint`."""

    shape: tuple[int, int, int]  # of a frame
    binary: bool  # planes of cells instead of pixels
    depth: int
    patch: int
    levels: int
    doublings: int
    kernel: int
    mixes: int
    bits: int  # Z; 0: the network is deterministic
    chunk: int
    lstm_units: int
    rewards: int  # bins of the reward
    dtype: Any = jnp.float32

    def setup(self):
        sizes = self.depth, self.patch, self.levels, self.doublings, self.kernel, self.dtype
        self.down, self.up, self.act_in = Down(*sizes), Up(self.kernel, self.dtype), Inject(self.dtype)
        self.before, self.after = Mix(self.mixes, self.dtype), Mix(self.mixes, self.dtype)
        shades = 1 if self.binary else SHADES
        self.colours = Linear(self.depth, self.patch**2 * self.shape[-1] * shades, dtype=self.dtype)
        self.reward_head = Head({"bins": self.rewards}, 1, self.depth, dtype=self.dtype)
        if self.bits:
            self.down_seen, self.bits_in = Down(*sizes), Inject(self.dtype)
            self.lstm = LSTM(self.lstm_units, self.lstm_units)
            self.code, self.begin = nn.Dense(self.bits), nn.Dense(self.lstm_units)
            self.next_bits = Linear(self.lstm_units, 2**self.chunk)
            self.embed = Linear(2**self.chunk, self.lstm_units)

    def __call__(self, stack: Array, action: Array) -> Any:
        """Touches every parameter, for `init`."""
        seen, bits = self.look(stack, action), None
        if self.bits:
            bits = self.infer(stack, stack[:, -1])
            self.likely(seen, to_tokens(bits, self.chunk))
        return self.paint(seen, bits)

    def look(self, stack: Array, action: Array) -> Seen:
        """Stacks `[R, K, H, W, C]` and encoded actions `[R, A]`."""
        planes = self.down(self._flat(stack))
        return Seen(planes, self.before(self.act_in(planes[-1], action)), action)

    def infer(self, stack: Array, target: Array) -> Array:
        """What tells the next frame `[R, H, W, C]` from others: `[R, Z]`, before it is squashed to bits."""
        both = jnp.concatenate([stack, target[:, None]], 1)
        return self.code(self.down_seen(self._flat(both))[-1].reshape(len(both), -1).astype(jnp.float32))

    def likely(self, seen: Seen, tokens: Array) -> OneHot:
        """How likely each token `[R, n]` is after those before it: `[R, n, V]` log-probabilities."""
        known = self.embed(jax.nn.one_hot(tokens[:, :-1], 2**self.chunk))
        inputs = jnp.concatenate([self._first_input(seen)[:, None], known], 1)
        start, none = lstm.initial(len(tokens), self.lstm_units), jnp.zeros(tokens.shape, bool)
        return one_hot(self.next_bits(self.lstm.unroll(start, self.lstm.project(inputs), none)[1]))

    def draw(self, seen: Seen, uniform: Array) -> Array:
        """Tokens int32 `[R, n]` that `uniform [R, n]` decides, one after the other."""
        state, inputs, tokens = lstm.initial(len(uniform), self.lstm_units), self._first_input(seen), []
        for i in range(uniform.shape[1]):
            state = self.lstm.advance(state, self.lstm.project(inputs), jnp.zeros(len(uniform), bool))
            tokens.append(one_hot(self.next_bits(state.hidden)).invert(uniform[:, i]))
            inputs = self.embed(jax.nn.one_hot(tokens[-1], 2**self.chunk))
        return jnp.stack(tokens, 1)

    def paint(self, seen: Seen, bits: Array | None, keep: Array | float = 1.0) -> tuple[Array, Array]:
        """Logits of every pixel `[R, H, W, C, 256]`, or of every cell `[R, H, W, C]`, and of the reward `[R, bins]`.
        Where `keep [R]` is 0 the bits are left out."""
        x = seen.bottom
        if bits is not None:
            keep = jnp.reshape(keep, (-1, 1, 1, 1))
            x = keep * self.bits_in(x, bits) + (1 - keep) * x
        x = self.after(x.astype(self.dtype))
        top = self.up(x, seen.planes, seen.action)
        judged = jnp.concatenate([x.reshape(len(x), -1), top.mean((1, 2))], -1)
        out = cropped(from_cells(self.colours(top), self.patch), self.shape).astype(jnp.float32)
        out = out if self.binary else out.reshape(*out.shape[:-1], self.shape[-1], SHADES)
        return out, self.reward_head(judged)["bins"]

    def _flat(self, stack: Array) -> Array:
        """Stacks `[R, K, H, W, C]` as numbers `[R, H, W, K C]`."""
        x = as_floats(stack).astype(self.dtype).transpose(0, 2, 3, 1, 4)
        return x.reshape(*x.shape[:3], -1)

    def _first_input(self, seen: Seen) -> Array:
        return self.begin(seen.bottom.reshape(len(seen.bottom), -1).astype(jnp.float32))


# --- What the outputs mean --------------------------------------------------------------------------------------------
def frame_error(logits: Array, frame: Array) -> Array:
    """The cross-entropy of every pixel, or cell, of frames `[..., H, W, C]` with the logits of `Predictor.paint`."""
    if frame.dtype == jnp.bool_:
        chex.assert_equal_shape((logits, frame))
        return jax.nn.softplus(logits) - logits * frame
    chosen = jnp.take_along_axis(logits, frame[..., None].astype(jnp.int32), -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - chosen


def likeliest(logits: Array, like: Any) -> Array:
    """The frame of the likeliest pixels, or cells, in the dtype of `like`."""
    return logits > 0 if like.dtype == jnp.bool_ else logits.argmax(-1).astype(jnp.uint8)


def reward_of(logits: Array, signs: bool) -> TwoHot:
    """The reward behind logits `[..., bins]`: one of three signs, or any number."""
    return TwoHot(logits, jnp.array([-1.0, 0.0, 1.0]) if signs else symexp_bins(logits.shape[-1]))
