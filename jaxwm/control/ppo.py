"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347): advantages, losses, and epochs over a batch.

Equations are those of that paper. T steps, N streams of them, R = T * N rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm.control.actor_critic import lambda_return
from jaxwm.distributions import sg
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, gradient_step
from jaxwm.types import Array, Key, Metrics, PyTree


class Rows(NamedTuple):
    """What an update learns from, `[R, ...]` or `[T, N, ...]`: observations and actions as the network takes them,
    log-probability and value of when they were chosen, advantages, returns, and how much each counts."""

    obs: PyTree
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    returns: Array
    weight: Array


class Outputs(NamedTuple):
    """What the network says of rows `[R]`: log-probability of the action, entropy of the policy, value."""

    log_prob: Array
    entropy: Array
    value: Array


# --- Losses -----------------------------------------------------------------------------------------------------------
def advantages(reward: Array, value: Array, discount: Array, last: Array, lam: float | Array) -> Array:
    """Generalised advantage estimates (eq. 11 and 12): `[T + 1, ...]` in, `[T, ...]` out.
    Arguments are those of `lambda_return`, from which the values of the same states are taken: the sum of
    (gamma lam)^i delta_{t + i} up to the end of an episode, or to a time limit and the value there."""
    return lambda_return(reward, value, discount, last, lam) - value[:-1]


def clipped_surrogate(log_prob: Array, old: Array, advantage: Array, clip: float | Array) -> Array:
    """L^CLIP `[R]` (eq. 7), to be climbed: the lesser of r A and clip(r, 1 - eps, 1 + eps) A, r the ratio to `old`."""
    chex.assert_equal_shape((log_prob, old, advantage))
    ratio = jnp.exp(log_prob - sg(old))
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_loss(value: Array, old: Array, returns: Array, clip: float | Array | None = None) -> Array:
    """L^VF `[R]` (eq. 9), halved; with `clip` the greater of it and that of a value no further than `clip` from `old`,
    which the official code has and the paper does not."""
    chex.assert_equal_shape((value, old, returns))
    plain = 0.5 * jnp.square(value - sg(returns))
    if clip is None:
        return plain
    near = old + jnp.clip(value - old, -clip, clip)
    return jnp.maximum(plain, 0.5 * jnp.square(near - sg(returns)))


def standardised(x: Array, weight: Array) -> Array:
    """`x [R]` less its weighted mean, over its standard deviation."""
    weight = weight / jnp.maximum(weight.sum(), 1e-8)
    mean = (weight * x).sum()
    return (x - mean) / (jnp.sqrt((weight * jnp.square(x - mean)).sum()) + 1e-8)


class Settings(NamedTuple):
    """How to optimise: epsilon of the clip, weights c1 and c2 of value loss and entropy (eq. 9), passes over the batch,
    minibatches of a pass, and whether values are clipped too."""

    clip: float | Array
    value_scale: float | Array
    entropy: float | Array
    epochs: int
    minibatches: int
    clip_value: bool = False


def loss(found: Outputs, rows: Rows, how: Settings, share: Share = ALONE) -> Losses:
    """-(L^CLIP - c1 L^VF + c2 S) (eq. 9) over this device's rows `[R]`, whose advantages are standardised."""
    mean = lambda x: share.weighted_mean(x, rows.weight)  # noqa: E731
    gain = mean(clipped_surrogate(found.log_prob, rows.log_prob, rows.advantage, how.clip))
    value = mean(value_loss(found.value, rows.value, rows.returns, how.clip if how.clip_value else None))
    entropy, moved = mean(found.entropy), found.log_prob - rows.log_prob
    outside = mean((jnp.abs(jnp.expm1(moved)) > how.clip).astype(jnp.float32))
    metrics = {"loss/actor": -gain, "loss/value": value, "entropy": entropy, "clipped": outside}
    return -gain + how.value_scale * value - how.entropy * entropy, ({}, metrics | {"kl": mean(-moved)})


# --- Epochs -----------------------------------------------------------------------------------------------------------
Network = Callable[[PyTree, PyTree, Array], Outputs]
"""`(params, obs [R, ...], action [R, ...]) -> Outputs`."""


def optimise(
    network: Network, state: Any, rows: Rows, how: Settings, tx: optax.GradientTransformation, rate: Any,
    key: Key, part: str | tuple[str, ...] | None = None, share: Share = ALONE,
) -> tuple[Any, Metrics]:  # fmt: skip
    """Pass over all rows `[R, ...]` several times in minibatches, drawn anew in each (algorithm 1, line 6).
    `rate` is the learning rate, one per component, or a function of the state; R must be a multiple of `minibatches`,
    and a minibatch one of the devices. `rows` are those of all devices. Returns the state and means of the metrics."""
    count, many = len(rows.log_prob), how.minibatches
    if count % many:
        raise ValueError(f"{count} rows cannot be split into {many} minibatches: set --minibatches to a divisor")

    def minibatch(state: Any, chosen: Array) -> tuple[Any, Metrics]:
        some = jax.tree.map(lambda x: x[chosen], rows)
        some = share.slice(some._replace(advantage=standardised(some.advantage, some.weight)))
        objective = lambda params: loss(network(params, some.obs, some.action), some, how, share)  # noqa: E731
        now: Any = rate(state) if callable(rate) else rate
        state, _, metrics = gradient_step(state, objective, tx, now, part, share=share)
        return state, metrics

    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(key, how.epochs))
    state, metrics = jax.lax.scan(minibatch, state, orders.reshape(how.epochs * many, -1))
    return state, jax.tree.map(jnp.mean, metrics)
