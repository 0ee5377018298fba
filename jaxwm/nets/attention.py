"""A causal transformer with segment masks and a fixed cache of keys and values (Vaswani et al. 2017).

Letters: B batch, T tokens of a window, K tokens of one call, W width, N heads, D width of a head, P slots of a cache.

Learning reads whole windows: `apply(net, params, x, first)`. Acting and dreaming append tokens to a `Cache` that is
allocated once, is carried through `lax.scan`, and never grows: `apply(net, params, cache, x, first, method="extend")`.
Both give the same numbers. A token sees no token of an earlier segment; a segment begins where `first` is set.

A cache is a ring: once all P slots are written, a new token takes the slot of the oldest. Its rows count together, or,
for environments whose episodes begin at different times, each for itself (`empty(apart=True)`, `forget`). Rotary
positions (Su et al. 2021) depend on distances only, so such a window slides without end. Learned positions are numbered
from the start of a segment, and there are only so many of them: a cached row that has used them all begins a new
segment there, and has forgotten what it saw before."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.nets.layers import ACTIVATIONS, Linear, weight
from jaxwm.types import Array

ACTS = ACTIVATIONS | {"gelu": nn.gelu}


class Cache(NamedTuple):
    """Keys and values of the newest P tokens of each row; token i lies in slot `i % P`."""

    keys: tuple[Array, ...]  # one [B, P, N, D] per layer
    values: tuple[Array, ...]  # the same
    start: Array  # int32 [B], the token at which a row's present segment begins
    count: Array  # int32 [], tokens written so far by every row; [B] where rows count apart


def starts(first: Array) -> Array:
    """The token at which the segment of each token begins, int32 `[B, T]`, from flags `first [B, T]`."""
    place = jnp.where(first, jnp.arange(first.shape[1]), 0)
    return jax.lax.cummax(place.astype(jnp.int32), axis=1)


def visible(query: Array, key: Array, start: Array, block: int = 1, window: int | None = None) -> Array:
    """Which keys a query sees, bool `[B, 1, T, S]`.

    Args:
        query: Numbers of the querying tokens, int32 `[T]`, or `[B, T]`.
        key: Numbers of the tokens that may be seen, int32 `[S]`, or `[B, S]`; negative ones are none.
        start: Where the segment of each query begins, int32 `[B, T]`.
        block: Tokens that see each other; 1 for a token that sees nothing after itself.
        window: How many tokens a query sees, itself included; None for all."""
    chex.assert_shape(start, (None, query.shape[-1]))
    query, key = query[..., None], key[..., None, :]
    until = (query // block + 1) * block - 1
    seen = (key <= until) & (key >= start[..., None])
    if window is not None:
        seen &= key > query - window
    return seen[:, None]


def rotate(x: Array, position: Array) -> Array:
    """Turn pairs of entries of `x [B, T, N, D]` by angles that grow with `position [B, T]` (Su et al. 2021, eq. 34)."""
    half = x.shape[-1] // 2
    angle = position[..., None, None] * 10_000.0 ** (-jnp.arange(half) / half)  # [B, T, 1, D / 2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def write(store: Array, new: Array, slot: Array) -> Array:
    """Put `new [B, K, ...]` into `store [B, P, ...]` from `slot` on, one for all rows or one for each `[B]`."""
    put = jax.lax.dynamic_update_slice_in_dim
    return put(store, new, slot, 1) if slot.ndim == 0 else jax.vmap(put, (0, 0, 0, None))(store, new, slot, 0)


class Block(nn.Module):
    """Attention and a layer of hidden units, each added to its input and normed after it, or before ("pre").
    With `hidden` 0 it is attention only."""

    width: int
    heads: int
    hidden: int
    norm: str
    act: str
    rotary: bool
    dtype: Any
    fused: bool

    def setup(self):
        self.qkv = Linear(self.width, 3 * self.width, dtype=self.dtype)
        self.merge = Linear(self.width, self.width, dtype=self.dtype)
        self.inner = Linear(self.width, self.hidden, dtype=self.dtype)
        self.outer = Linear(self.hidden, self.width, dtype=self.dtype)
        self.norms = [nn.LayerNorm(dtype=self.dtype) for _ in range(2)]

    def __call__(
        self, x: Array, position: Array, mask: Array | None, keep: Array | None = None, past: Any = None
    ) -> tuple[Array, Any]:
        """`x [B, T, W]` after the block, and the keys and values `[B, S, N, D]` that it saw.
        `keep [B, T, 2, W]` are the factors of dropout. `past` holds cached keys and values and the slot to write."""
        post = self.norm == "post"
        part, seen = self.attend(x if post else self.norms[0](x), position, mask, past)
        x = x + (part if keep is None else part * keep[:, :, 0])
        x = self.norms[0](x) if post else x
        if not self.hidden:
            return x, seen
        part = self.outer(ACTS[self.act](self.inner(x if post else self.norms[1](x))))
        x = x + (part if keep is None else part * keep[:, :, 1])
        return (self.norms[1](x) if post else x), seen

    def attend(self, x: Array, position: Array, mask: Array | None, past: Any) -> tuple[Array, tuple[Array, Array]]:
        """Attention over the tokens themselves, or over a cache into which they are written first."""
        query, key, value = self.heads_of(x, position)
        if past is not None:
            keys, values, slot = past
            key, value = write(keys, key, slot), write(values, value, slot)
        how = "cudnn" if self.fused and self.dtype != jnp.float32 else "xla"
        out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=how)
        return self.merge(out.reshape(x.shape)), (key, value)

    def heads_of(self, x: Array, position: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values `[B, T, N, D]`."""
        query, key, value = jnp.split(self.qkv(x).reshape(*x.shape[:2], 3 * self.heads, -1), 3, 2)
        if self.rotary:
            query, key = rotate(query, position), rotate(key, position)
        return query, key, value

    def weights(self, x: Array, position: Array, mask: Array) -> Array:
        """How much each token attends to each, the mean of the heads: float32 `[B, T, T]`, rows sum to 1."""
        query, key, _ = self.heads_of(x if self.norm == "post" else self.norms[0](x), position)
        scores = jnp.einsum("btnd,bsnd->bnts", query, key).astype(jnp.float32) / query.shape[-1] ** 0.5
        return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)).mean(1)


class Transformer(nn.Module):
    """`[B, T, W] -> [B, T, W]`: `layers` blocks. Tokens come embedded; positions are added here.

    With `space` it is a spatio-temporal transformer (Xu et al. 2020, Bruce et al. 2024): the rows are the places of
    moments, B = moments x space, one moment's after the other. Before each block looks back along a row, the places of
    a moment see each other."""

    layers: int
    width: int
    heads: int
    hidden: int
    positions: int = 0  # Learned positions; 0 for rotary ones.
    norm: Literal["post", "pre"] = "post"
    """Where norms are: after each part, and after the positions (STORM); or before each part, and at the end (GPT)."""
    act: str = "relu"
    block: int = 1  # Tokens that see each other: the K of a frame that is predicted in parallel, else 1.
    window: int | None = None  # Tokens that each token sees, itself included; None for all.
    space: int = 1  # Rows that see each other at each moment.
    dropout: float = 0.0  # Share of the entries that are left out of what each part of a block adds.
    dtype: Any = jnp.float32
    remat: bool = False  # Compute blocks again for the gradient instead of keeping what is inside of them.
    fused: bool = False  # Attention by cuDNN where `dtype` is a half precision (see `learning.pieces.Routes`).

    def setup(self):
        if self.width % self.heads or (not self.positions and self.width // self.heads % 2):
            raise ValueError(f"a width of {self.width} is not {self.heads} heads of whole, even width")
        make = nn.remat(Block) if self.remat else Block
        shape = self.norm, self.act, not self.positions, self.dtype, self.fused
        self.blocks = [make(self.width, self.heads, self.hidden, *shape) for _ in range(self.layers)]
        if self.space > 1:
            still = self.norm, self.act, False, self.dtype, self.fused
            self.mixers = [make(self.width, self.heads, 0, *still) for _ in range(self.layers)]
            self.places = weight(self, "places_table", nn.initializers.normal(0.02), (self.space, self.width))
        self.edge_norm = nn.LayerNorm(dtype=self.dtype)
        if self.positions:
            init = nn.initializers.normal(0.02)
            self.table = weight(self, "positions_table", init, (self.positions, self.width))

    def __call__(self, x: Array, first: Array | None = None, keep: Array | None = None) -> Array:
        """Whole windows `[B, T, W]`. `first [B, T]` marks starts of segments, without it there is one.
        `keep [B, T, layers, 2, W]` are factors of dropout (`dropout_factors`)."""
        return self._run(x, first, keep)[0]

    def read(self, x: Array, first: Array | None, slots: int) -> tuple[Cache, Array]:
        """The same, and a cache of `slots` slots that holds the windows: what `extend` makes of an empty one, in one
        pass over the T tokens and no slot more. ValueError where the cache is shorter than the windows."""
        if x.shape[1] > slots:
            raise ValueError(f"a cache of {slots} slots does not hold {x.shape[1]} tokens")
        out, seen, start = self._run(x, first, None)
        spare = ((0, 0), (0, slots - x.shape[1]), (0, 0), (0, 0))
        keys, values = (tuple(jnp.pad(part, spare) for part in parts) for parts in zip(*seen, strict=True))
        return Cache(keys, values, start[:, -1], jnp.int32(x.shape[1])), out

    def _run(
        self, x: Array, first: Array | None, keep: Array | None, found: list[Array] | None = None
    ) -> tuple[Array, list[Any], Array]:
        batch, length, _ = x.shape
        if self.positions and length > self.positions:
            raise ValueError(f"a window of {length} tokens is longer than the {self.positions} learned positions")
        start = jnp.zeros((batch, length), jnp.int32) if first is None else starts(first)
        token = jnp.arange(length)
        mask = visible(token, token, start, self.block, self.window)
        return *self._blocks(x, token - start, mask, keep, [None] * self.layers, found), start

    def look(self, x: Array, first: Array | None = None) -> Array:
        """Where the tokens of whole windows look: attention of every block, `[B, layers, T, T]`."""
        found: list[Array] = []
        self._run(x, first, None, found)
        return jnp.stack(found, 1)

    def extend(self, cache: Cache, x: Array, first: Array | None = None) -> tuple[Cache, Array]:
        """Append tokens `[B, K, W]` to the cache: what comes out at them `[B, K, W]`. `first [B, K]` as above.
        K divides the number of slots of a cache that goes round; ValueError where it has fewer than K."""
        (batch, count, _), slots = x.shape, cache.keys[0].shape[1]
        if count > slots:
            raise ValueError(f"a cache of {slots} slots does not hold {count} tokens")
        token = cache.count[..., None] + jnp.arange(count)  # [K], or [B, K]
        first = jnp.zeros((batch, count), bool) if first is None else first
        if self.positions:  # none is left: begin again
            first = first.at[:, 0].set(first[:, 0] | (token[..., -1] - cache.start >= self.positions))
        start = jnp.maximum(jnp.where(first, token, 0), cache.start[:, None])
        start = jax.lax.cummax(start.astype(jnp.int32), axis=1)
        newest = token[..., -1:]
        held = newest - (newest - jnp.arange(slots)) % slots  # the token that each slot holds
        mask = visible(token, held, start, self.block, self.window)
        past = [(keys, values, cache.count % slots) for keys, values in zip(cache.keys, cache.values, strict=True)]
        out, seen = self._blocks(x, token - start, mask, None, past)
        keys, values = zip(*seen, strict=True)
        return Cache(keys, values, start[:, -1], cache.count + count), out

    def _blocks(
        self,
        x: Array,
        position: Array,
        mask: Array,
        keep: Array | None,
        past: list[Any],
        found: list[Array] | None = None,
    ) -> tuple[Array, list[Any]]:
        """All blocks: what comes out, and the keys and values of each. Weights of attention are added to `found`."""
        x, seen = x.astype(self.dtype), []
        if self.positions:
            x = x + self.table.astype(self.dtype)[position]
        x = self.edge_norm(x) if self.norm == "post" else x
        x = x + jnp.tile(self.places, (len(x) // self.space, 1))[:, None].astype(self.dtype) if self.space > 1 else x
        for i, block in enumerate(self.blocks):
            x = self._mix(i, x, position) if self.space > 1 else x
            if found is not None:
                found.append(block.weights(x, position, mask))
            x, pair = block(x, position, mask, None if keep is None else keep[:, :, i].astype(self.dtype), past[i])
            seen.append(pair)
        return (x if self.norm == "post" else self.edge_norm(x)), seen

    def _mix(self, i: int, x: Array, position: Array) -> Array:
        """The places of each moment see each other."""
        (rows, length, width), space = x.shape, self.space
        flat = x.reshape(-1, space, length, width).swapaxes(1, 2).reshape(-1, space, width)
        flat, _ = self.mixers[i](flat, position, None)
        return flat.reshape(-1, length, space, width).swapaxes(1, 2).reshape(rows, length, width)


def empty(net: Transformer, batch: int, slots: int, apart: bool = False) -> Cache:
    """A cache before any token was written; its rows count `apart` where they are to `forget` apart."""
    shape = batch, slots, net.heads, net.width // net.heads
    zeros = lambda: tuple(jnp.zeros(shape, net.dtype) for _ in range(net.layers))  # noqa: E731
    count = jnp.zeros((batch,) if apart else (), jnp.int32)
    return Cache(zeros(), zeros(), jnp.zeros(batch, jnp.int32), count)


def forget(cache: Cache, rows: Array) -> Cache:
    """Empty the marked rows, bool `[B]`, of a cache whose rows count apart."""
    return jax.tree.map(lambda x: jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), jnp.zeros_like(x), x), cache)


def dropout_factors(net: Transformer, uniform: Array) -> Array:
    """Factors of dropout, 0 or 1 / (1 - rate), from `uniform [B, T, layers, 2, W]` in [0, 1) (Srivastava et al.)."""
    return (uniform >= net.dropout) / (1.0 - net.dropout)
