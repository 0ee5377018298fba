"""Dreams of sequence models: frames of tokens that a transformer predicts one frame after the other.

Letters as in `nets.attention`; H horizon, A width of an action. Three shapes cover the family:

- one token per frame, which holds all of the frame's latents (STORM): `together`;
- K tokens per frame, all predicted in one pass (block teacher forcing, parallel observation prediction): `together`;
- K tokens per frame, each after the one before it (IRIS): `in_turn`.

Both make an `Advance`, one frame of a dream. `rollout` repeats it under a policy, in one scan over a fixed cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm.nets.attention import Cache, Transformer
from jaxwm.nets.layers import apply
from jaxwm.types import Array


class Frame(NamedTuple):
    """One moment of a dream."""

    tokens: Array  # [B, K, ...]: codes, or latents
    hidden: Array  # [B, n, W]: what came out of the transformer at the n inputs that predicted it; 0 at a start


Advance = Callable[[Cache, Frame, Array, Array], tuple[Cache, Frame]]
"""`(cache, frame, action [B, ...], noise [B, ...]) -> (cache, next frame)`."""


def together(
    net: Transformer, params: Any, inputs: Callable[[Array, Array], Array], draw: Callable[[Array, Array], Array]
) -> Advance:
    """Advance by one pass: every token of the next frame is drawn from what comes out of this pass.
    `inputs(tokens, action) [B, n, W]` are what the transformer sees of a frame, `draw(hidden [B, n, W], noise)` the
    tokens of the next one. With n > 1 the transformer's `block` is n, so that the inputs of a frame see each other."""

    def advance(cache: Cache, frame: Frame, action: Array, noise: Array) -> tuple[Cache, Frame]:
        cache, hidden = apply(net, params, cache, inputs(frame.tokens, action), method="extend")
        return cache, Frame(draw(hidden, noise), hidden)

    return advance


def in_turn(
    net: Transformer, params: Any, inputs: Callable[[Array, Array], Array], draw: Callable[[Array, Array], Array],
    embed: Callable[[Array], Array],
) -> Advance:  # fmt: skip
    """Advance token by token: each is drawn from what comes out at the token before it, and is seen next.
    `inputs(tokens, action) [B, n, W]` follow the frame's own tokens, which the cache holds: the embedded action. What
    comes out at the last of them gives token 0 and is the frame's `hidden`. `draw(hidden [B, W], noise [B])` is a token
    `[B]`, `embed(token) [B, W]` the transformer's input. The noise of a frame is `[B, K]`."""

    def advance(cache: Cache, frame: Frame, action: Array, noise: Array) -> tuple[Cache, Frame]:
        chex.assert_equal_shape_prefix((frame.tokens, noise), 2)
        cache, hidden = apply(net, params, cache, inputs(frame.tokens, action), method="extend")

        def one(carry: tuple[Cache, Array], noise: Array) -> tuple[tuple[Cache, Array], Array]:
            cache, last = carry
            token = draw(last, noise)
            cache, out = apply(net, params, cache, embed(token)[:, None], method="extend")
            return (cache, out[:, -1]), token

        (cache, _), tokens = jax.lax.scan(one, (cache, hidden[:, -1]), noise.swapaxes(0, 1))
        return cache, Frame(tokens.swapaxes(0, 1), hidden)

    return advance


class Rollout(NamedTuple):
    """A dream of H frames after its start, time first."""

    frames: Frame  # [H + 1, B, ...], the start first
    actions: Array  # [H + 1, B, ...], taken in them
    seen: Any  # [H + 1, B, ...], what the policy returned with them
    cache: Cache  # after the last frame; the last action was never applied
    memory: Any  # the policy's, after its last action


def rollout(
    advance: Advance, policy: Callable[[Any, Frame, Any], tuple[Any, Array, Any]], cache: Cache, start: Frame,
    plan: Any, noise: Array, memory: Any = (),
) -> Rollout:  # fmt: skip
    """Dream H frames from `start`, whose past is in the cache.
    `policy(memory, frame, plan[t]) -> (memory, action, seen)`, where `plan [H + 1, B, ...]` holds the noise that
    decides, or the actions themselves. `noise [H, B, ...]` decides the tokens."""
    chex.assert_equal(len(jax.tree.leaves(plan)[0]), len(noise) + 1)

    def step(carry: Any, inputs: Any) -> Any:
        (cache, frame, memory), (plan, noise) = carry, inputs
        memory, action, seen = policy(memory, frame, plan)
        cache, after = advance(cache, frame, action, noise)
        return (cache, after, memory), (frame, action, seen)

    most, last = jax.tree.map(lambda x: x[:-1], plan), jax.tree.map(lambda x: x[-1], plan)
    (cache, frame, memory), passed = jax.lax.scan(step, (cache, start, memory), (most, noise))
    memory, action, seen = policy(memory, frame, last)
    join = lambda xs, x: jnp.concatenate([xs, x[None]])  # noqa: E731
    frames, actions, looks = jax.tree.map(join, passed, (frame, action, seen))
    return Rollout(frames, actions, looks, cache, memory)
