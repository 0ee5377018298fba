"""Actor-critic in dreams: lambda-returns, the losses of actor and critic, return normalisation, slow copies.

H horizon, R dreams, time first. Weights, returns and advantages are constants wherever a loss takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm.control.policy import Actor
from jaxwm.distributions import TwoHot, sg, twohot
from jaxwm.types import Array


def lambda_return(reward: Array, bootstrap: Array, discount: Array, last: Array, lam: float | Array) -> Array:
    """Lambda-returns (Sutton & Barto 2018, 12.1), time first: `[T, ...]` in, `[T - 1, ...]` out.
    R_t = r_{t+1} + d_{t+1} ((1 - l_{t+1}) v_{t+1} + l_{t+1} R_{t+1}) with l = lam (1 - last) and R_{T-1} = v_{T-1}.
    `reward[t]` arrives with state t, `discount[t]` is 0 (or small) where state t is terminal, `bootstrap[t]` is the
    value of state t, and `last[t]` marks a state after which the sequence goes on with another episode."""
    chex.assert_equal_shape((reward, bootstrap, discount, last))
    trace = lam * (1.0 - last[1:].astype(jnp.float32))
    direct = reward[1:] + discount[1:] * (1 - trace) * bootstrap[1:]

    def step(following, inputs):
        direct, decay = inputs
        value = direct + decay * following
        return value, value

    inputs = direct, discount[1:] * trace
    _, returns = jax.lax.scan(step, bootstrap[-1], inputs, reverse=True, unroll=min(16, len(direct)))
    return returns


def dream_weights(cont: Array) -> Array:
    """The probability `[H, ...]` that a dream goes on until each of its states, from continues `[H + 1, ...]`.
    The root's own continue counts as well: a dream from an end is worth nothing."""
    return jnp.cumprod(cont, 0)[:-1]


def reinforce(policy: Actor, actions: Array, advantage: Array) -> Array:
    """The score-function estimate `[...]` of the gain: advantages times log-probabilities (Williams 1992)."""
    score = policy.log_prob(sg(actions)) * sg(advantage)
    chex.assert_equal_shape((score, advantage))
    return score


def actor_loss(gain: Array, entropy: Array, weight: Array, scale: Array | float) -> Array:
    """The loss `[...]` of an actor that climbs `gain` and keeps its entropy, whose weight is `scale`."""
    chex.assert_equal_shape((gain, entropy, weight))
    return -weight * (gain + scale * entropy)


def critic_loss(value: Array, returns: Array, weight: Array) -> Array:
    """Half the squared error `[...]` of values that are numbers."""
    chex.assert_equal_shape((value, returns, weight))
    return 0.5 * (weight * jnp.square(value - sg(returns)))


def twohot_critic_loss(value: TwoHot, returns: Array, slow: Array, weight: Array, slow_scale: float) -> Array:
    """The cross-entropy `[...]` of values that are distributions with `returns`, and `slow_scale` times with `slow`."""
    chex.assert_equal_shape((returns, slow, weight))
    target = twohot(returns, value.bins) + slow_scale * twohot(slow, value.bins)
    return weight * value.loss(target)


class ReturnRange(NamedTuple):
    """Moving 5th and 95th percentile of returns (Hafner et al. 2023, eq. 7); starts at 0 without debiasing."""

    low: Array
    high: Array

    def update(self, returns: Array, rate: float = 0.01) -> ReturnRange:
        """Move towards the percentiles of `returns`."""
        low, high = jnp.percentile(returns, jnp.array([5.0, 95.0]))
        return ReturnRange((1 - rate) * self.low + rate * low, (1 - rate) * self.high + rate * high)

    def scale(self) -> Array:
        """What advantages are divided by; never below 1, so that small returns are not blown up."""
        return jnp.maximum(1.0, self.high - self.low)


def initial_range() -> ReturnRange:
    """The range before any return was seen."""
    return ReturnRange(jnp.zeros(()), jnp.zeros(()))


def track(source: Any, target: Any, rate: float | Array) -> Any:
    """A slow copy: `target + rate (source - target)`, leaf by leaf."""
    return jax.tree.map(lambda s, t: rate * s + (1 - rate) * t, source, target)
