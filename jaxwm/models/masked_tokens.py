"""Next frames by filling in masked tokens: the dynamics of Genie, a MaskGIT over space and time.

Chang et al. 2022, sections 3.1 and 3.2; Bruce et al. 2024, section 2.1.

Letters: B batch, T frames, K tokens of a frame, V codes, A codes of actions, W width, S steps of filling in. Token V
stands for "masked". The action of a frame is the one that led to it; A stands for none, at the start of an episode."""

from __future__ import annotations

from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.distributions import OneHot, one_hot
from jaxwm.models.video import SpaceTime
from jaxwm.nets.attention import Cache
from jaxwm.nets.layers import Linear, apply, weight
from jaxwm.types import Array

Inject = Literal["prepend", "add"]


class MaskedTokens(nn.Module):
    """Logits of every token, from the tokens that are shown, the past, and the actions."""

    tokens: int  # K
    codes: int  # V
    actions: int  # A
    layers: int
    heads: int
    width: int
    window: int  # frames that are seen, the one that is predicted included
    inject: Inject = "prepend"
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        small = nn.initializers.normal(0.02)
        self.token = weight(self, "token_table", small, (self.codes + 1, self.width))
        self.action = weight(self, "action_table", small, (self.actions + 1, self.width))
        space = self.tokens + (self.inject == "prepend")
        self.net = SpaceTime(space, self.layers, self.heads, self.width, self.window, self.dtype, self.remat)
        self.out = Linear(self.width, self.codes)

    def __call__(self, tokens: Array, action: Array, first: Array) -> OneHot:
        """The distributions of tokens `[B, T, K]`, from `tokens [B, T, K]`, `action [B, T]`, `first [B, T]`."""
        return self._likely(self.net(self._inputs(tokens, action), first))

    def read(self, tokens: Array, action: Array, first: Array, slots: int) -> Cache:
        """A cache of `slots` frames that holds the given ones."""
        return self.net.read(self._inputs(tokens, action), first, slots)[0]

    def extend(self, cache: Cache, tokens: Array, action: Array) -> tuple[Cache, OneHot]:
        """The same as a call, for one more frame `tokens [B, K]`, `action [B]`, and the cache with it."""
        cache, out = self.net.extend(cache, self._inputs(tokens[:, None], action[:, None]))
        return cache, OneHot(self._likely(out).logp[:, 0])

    def _inputs(self, tokens: Array, action: Array) -> Array:
        chex.assert_shape(tokens, (*action.shape, self.tokens))
        x, action = self.token[tokens], self.action[action][:, :, None]
        return jnp.concatenate([action, x], 2) if self.inject == "prepend" else x + action

    def _likely(self, out: Array) -> OneHot:
        return one_hot(self.out(out[:, :, -self.tokens :]))


def led_to(action: Array, first: Array, none: int) -> Array:
    """The action that led to each of the frames `[B, T]`, from those that led to frames 1 to T - 1."""
    unknown = jnp.full_like(action[:, :1], none)
    return jnp.where(first, none, jnp.concatenate([unknown, action], 1))


def masked(uniform: Array, rate: Array, first: Array) -> Array:
    """Which tokens are masked, bool `[B, T, K]`, from `uniform [B, T, K]` and `rate [B, T]`: none of the first frame of
    a window or an episode, which nothing before it can tell."""
    seen = first.at[:, 0].set(True)
    return (uniform < rate[..., None]) & ~seen[..., None]


def left_masked(tokens: int, steps: int) -> np.ndarray:
    """How many of the tokens stay masked after each step, int `[S]`: K cos(pi s / 2 S), rounded down; at last none."""
    share = np.cos(np.pi / 2 * np.arange(1, steps + 1) / steps)
    return np.floor(tokens * np.maximum(share, 0) + 1e-6).astype(np.int32)


def fill_in(
    net: MaskedTokens, params: Any, cache: Cache, action: Array, noise: Array, temperature: float
) -> tuple[Cache, Array]:
    """Sample the next frame in S steps; `[B, K]`, and the cache with it (Chang et al., section 3.2).

    At each step every masked token is drawn, and the likeliest draws stay: as many as `left_masked` says. The
    temperature falls with the share that is still masked, and is 0 at the last step. `noise [S, B, K]` decides."""
    steps, batch, count = noise.shape
    left = left_masked(count, steps)
    heat = np.maximum(temperature * left / count, 1e-3).astype(np.float32)

    def step(tokens: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        noise, left, heat = inputs
        _, likely = apply(net, params, cache, tokens, action, method="extend")
        drawn = one_hot(likely.logp / heat).invert(noise)
        hidden = tokens == net.codes
        trust = jnp.where(hidden, likely.log_prob(drawn), jnp.inf)
        place = jnp.argsort(jnp.argsort(trust, -1), -1)  # 0 is the least trusted
        return jnp.where(hidden & (place >= left), drawn, tokens), None

    blank = jnp.full((batch, count), net.codes, jnp.int32)
    tokens, _ = jax.lax.scan(step, blank, (noise, jnp.asarray(left), jnp.asarray(heat)))
    return apply(net, params, cache, tokens, action, method="extend")[0], tokens


def dream(
    net: MaskedTokens, params: Any, past: tuple[Array, Array, Array], actions: Array, noise: Array, temperature: float
) -> Array:
    """Tokens `[B, H, K]` of the frames that `actions [B, H]` lead to, after `past`: tokens `[B, T, K]`, the actions
    that led to them `[B, T]`, and flags of starts `[B, T]`. `noise [H, S, B, K]` decides.
    A cache of the window's size goes round, so a dream may be of any length."""
    keep = slice(-min(past[1].shape[1], net.window), None)
    shown = [x[:, keep] for x in past]
    cache = apply(net, params, *shown, slots=net.window, method="read")

    def step(cache: Cache, inputs: tuple[Array, Array]) -> tuple[Cache, Array]:
        return fill_in(net, params, cache, *inputs, temperature)

    _, tokens = jax.lax.scan(step, cache, (actions.swapaxes(0, 1), noise))
    return tokens.swapaxes(0, 1)
