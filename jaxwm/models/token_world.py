"""A world model over tokens: frames and actions in turn through a transformer, heads for tokens, rewards and ends.

Micheli et al. 2023, section 2.2; with `parallel` Dedieu et al. 2025, block teacher forcing.

Letters: B batch, T frames of a window, K tokens of a frame, V codes, W width. A frame's tokens are followed by its
action, so that a window has T (K + 1) positions. Token by token, an action predicts token 0 of the next frame, and
token k predicts token k + 1. In parallel, the tokens and the action of a frame see each other, and token k predicts
token k of the next frame. Either way the action predicts the reward that arrives with the next frame, and the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.distributions import OneHot, TwoHot, one_hot
from jaxwm.learning.share import ALONE, Share
from jaxwm.models.outcomes import drawn_outcomes, outcome_losses, reward_bins
from jaxwm.models.tokens import Advance, Frame, in_turn, together
from jaxwm.nets.attention import Cache, Transformer, dropout_factors, empty
from jaxwm.nets.layers import Head, Linear, apply
from jaxwm.types import ActionSpace, Array, Key, Record


class Past(NamedTuple):
    """The last frames before a dream, C of them."""

    tokens: Array  # int32 [B, C, K]
    action: Array  # [B, C - 1, ...], taken in all but the last
    first: Array  # bool [B, C]


def newest(past: Past, tokens: Array, action: Array) -> Past:
    """The last C frames after `tokens [B, T, K]` followed, under `action [B, T, ...]` from the last frame on."""
    keep = lambda old, new: jnp.concatenate([old, new], 1)[:, new.shape[1] :]  # noqa: E731
    first = keep(past.first, jnp.zeros(tokens.shape[:2], bool))
    return Past(keep(past.tokens, tokens), keep(past.action, action), first)


def accuracies(guess: OneHot, target: Array, before: Array, same: Array, share: Share) -> dict[str, Array]:
    """Shares of likeliest tokens `[B, T, K]` that are right, of all and of those that changed since the frame before,
    and how many these are. Only tokens count whose frame follows the one before, `same [B, T, K]`."""
    chex.assert_equal_shape((target, before, same))
    right, changed = (guess.mode() == target).astype(jnp.float32), (before != target).astype(jnp.float32)
    return {
        "accuracy": share.weighted_mean(right, same),
        "accuracy/changed": share.weighted_mean(right, same * changed),
        "changed": share.weighted_mean(changed, same),
    }


@dataclass(frozen=True)
class TokenWorld:
    """The model over explicit parameters."""

    space: ActionSpace
    tokens: int  # of a frame, K
    codes: int  # of the vocabulary, V
    frames: int  # of a window, T
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    sign_rewards: bool = True  # learn only the sign of rewards
    bins: int = 255  # of rewards that are not signs
    parallel: bool = False  # all tokens of a frame at once
    dtype: Any = jnp.float32

    @property
    def size(self) -> int:
        """Positions of a frame, K + 1."""
        return self.tokens + 1

    @property
    def gpt(self) -> Transformer:
        """The transformer."""
        return Transformer(
            self.layers, self.width, self.heads, 4 * self.width, self.frames * self.size, "pre", "gelu",
            block=self.size if self.parallel else 1, dropout=self.dropout, dtype=jnp.dtype(self.dtype),
        )  # fmt: skip

    @property
    def parts(self) -> dict[str, Any]:
        """The other modules, but for the table of tokens, with the width of what comes in."""
        head, action = partial(Head, layers=1, units=self.width, act="relu"), spaces.action_size(self.space)
        return {
            "action": (Linear(action, self.width), action),
            "next": (head({"token": self.codes}), self.width),
            "reward": (head({"bins": len(reward_bins(self.sign_rewards, self.bins))}), self.width),
            "end": (head({"logit": 1}), self.width),
        }

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters."""
        keys = iter(jax.random.split(key, 6))
        params = {name: module.init(next(keys), jnp.zeros((1, width))) for name, (module, width) in self.parts.items()}
        params["gpt"] = self.gpt.init(next(keys), jnp.zeros((1, 1, self.width)))
        return params | {"token": 0.02 * jax.random.normal(next(keys), (self.codes, self.width))}

    def part(self, params: Any, name: str, x: Array) -> Any:
        """One of `parts`."""
        return apply(self.parts[name][0], params[name], x)

    # --- Inputs -------------------------------------------------------------------------------------------------------
    def embed_action(self, params: Any, action: Array) -> Array:
        """Actions `[..., *]` as inputs `[..., W]`."""
        return self.part(params, "action", spaces.encode(self.space, action))

    def embed(self, params: Any, tokens: Array, action: Array) -> Array:
        """Inputs `[B, T (K + 1), W]` of frames `tokens [B, T, K]`, each followed by its action."""
        chex.assert_shape(tokens, (*action.shape[:2], self.tokens))
        parts = params["token"][tokens], self.embed_action(params, action)[:, :, None]
        x = jnp.concatenate(parts, 2)
        return x.reshape(len(x), -1, x.shape[-1])

    def starts(self, first: Array) -> Array:
        """Which inputs begin an episode, `[B, T (K + 1)]`, from flags of frames `[B, T]`."""
        wide = jnp.pad(first[..., None], ((0, 0), (0, 0), (0, self.tokens)))
        return wide.reshape(len(first), -1)

    # --- Predictions --------------------------------------------------------------------------------------------------
    def window(self, params: Any, tokens: Array, action: Array, first: Array, key: Key, share: Share = ALONE) -> Array:
        """What the transformer makes of windows, with dropout: `[B, T, K + 1, W]`."""
        x, keep = self.embed(params, tokens, action), None
        if self.dropout:
            keep = dropout_factors(self.gpt, share.uniform(key, (*x.shape[:2], self.layers, 2, x.shape[-1])))
        hidden = apply(self.gpt, params["gpt"], x, self.starts(first), keep)
        return hidden.astype(jnp.float32).reshape(*tokens.shape[:2], self.size, -1)

    def next_token(self, params: Any, hidden: Array) -> OneHot:
        """The distribution of the next token, from `hidden [..., W]`."""
        return one_hot(self.part(params, "next", hidden.astype(jnp.float32))["token"])

    def outcomes(self, params: Any, hidden: Array) -> tuple[TwoHot, Array]:
        """Reward and the logit of the end `[...]`, from `hidden [..., W]` at an action."""
        hidden = hidden.astype(jnp.float32)
        reward = TwoHot(self.part(params, "reward", hidden)["bins"], reward_bins(self.sign_rewards, self.bins))
        return reward, self.part(params, "end", hidden)["logit"][..., 0]

    def outcome_losses(self, params: Any, hidden: Array, record: Record, share: Share) -> dict[str, Array]:
        """Mean cross-entropies of rewards and ends of records `[B, T + 1]`, from `hidden [B, T, W]` at the actions."""
        return outcome_losses(*self.outcomes(params, hidden), record, self.sign_rewards, share)

    def drawn(self, params: Any, hidden: Array, uniform: Array) -> tuple[Array, Array]:
        """Rewards and continues, 0 or 1, that `uniform [..., 2]` decides, from `hidden [..., W]` at actions."""
        return drawn_outcomes(*self.outcomes(params, hidden), uniform, self.sign_rewards)

    # --- Dreams -------------------------------------------------------------------------------------------------------
    def advance(self, params: Any) -> Advance:
        """One frame of a dream; the noise of a frame is `[B, K]`."""
        if self.parallel:
            inputs = lambda tokens, action: self.embed(params, tokens[:, None], action[:, None])  # noqa: E731
            draw = lambda hidden, noise: self.next_token(params, hidden[:, :-1]).invert(noise)  # noqa: E731
            return together(self.gpt, params["gpt"], inputs, draw)
        inputs = lambda tokens, action: self.embed_action(params, action)[:, None]  # noqa: E731
        draw = lambda hidden, noise: self.next_token(params, hidden).invert(noise)  # noqa: E731
        return in_turn(self.gpt, params["gpt"], inputs, draw, lambda token: params["token"][token])

    @property
    def unseen(self) -> int:
        """Positions of a dream's first frame that its cache does not hold yet: the action, or all, in parallel."""
        return self.size if self.parallel else 1

    def longest(self, past: int) -> int:
        """Frames that fit the window after `past` frames."""
        return self.frames - past + self.parallel

    def begin(self, params: Any, past: Past, horizon: int) -> tuple[Cache, Frame]:
        """A cache with room for `horizon` frames after a past, and the past's last frame."""
        length = past.tokens.shape[1]
        chex.assert_scalar_in(horizon, 1, self.longest(length))
        shown = length * self.size - self.unseen
        start = Frame(past.tokens[:, -1], jnp.zeros((len(past.first), self.unseen, self.width), self.gpt.dtype))
        if not shown:
            return empty(self.gpt, len(past.first), horizon * self.size), start
        blank = spaces.blank(self.space, len(past.first))[:, None]  # of the last frame: not chosen yet
        x = self.embed(params, past.tokens, jnp.concatenate([past.action, blank], 1))[:, :shown]
        first = self.starts(past.first)[:, :shown]
        cache, _ = apply(self.gpt, params["gpt"], x, first, shown + horizon * self.size, method="read")
        if self.parallel:  # the last frame comes later, and may begin an episode
            cache = cache._replace(start=jnp.where(past.first[:, -1], cache.count, cache.start))
        return cache, start
