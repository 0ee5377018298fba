"""Actor-critic pieces of the Dreamer family: lambda-returns, return normalisation, slow copies."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.types import Array


def lambda_return(reward: Array, bootstrap: Array, discount: Array, last: Array, lam: float | Array) -> Array:
    """Lambda-returns (Sutton & Barto 2018, 12.1), time first: `[T, ...]` in, `[T - 1, ...]` out.

    R_t = r_{t+1} + d_{t+1} ((1 - l_{t+1}) v_{t+1} + l_{t+1} R_{t+1}) with l = lam (1 - last) and R_{T-1} = v_{T-1}.
    `reward[t]` arrives with state t, `discount[t]` is 0 (or small) where state t is terminal, `bootstrap[t]` is the
    value of state t, and `last[t]` marks a state after which the sequence goes on with another episode.
    """
    trace = lam * (1.0 - last[1:].astype(jnp.float32))
    direct = reward[1:] + discount[1:] * (1 - trace) * bootstrap[1:]

    def step(following, inputs):
        direct, decay = inputs
        value = direct + decay * following
        return value, value

    _, returns = jax.lax.scan(step, bootstrap[-1], (direct, discount[1:] * trace), reverse=True)
    return returns


class ReturnRange(NamedTuple):
    """Moving 5th and 95th percentile of returns (Hafner et al. 2023, eq. 7); starts at 0 without debiasing."""

    low: Array
    high: Array

    def update(self, returns: Array, rate: float = 0.01) -> ReturnRange:
        low, high = jnp.percentile(returns, jnp.array([5.0, 95.0]))
        return ReturnRange((1 - rate) * self.low + rate * low, (1 - rate) * self.high + rate * high)

    def scale(self) -> Array:
        """What advantages are divided by; never below 1, so that small returns are not blown up."""
        return jnp.maximum(1.0, self.high - self.low)


def initial_range() -> ReturnRange:
    return ReturnRange(jnp.zeros(()), jnp.zeros(()))


def track(source: Any, target: Any, rate: float) -> Any:
    """A slow copy: `target + rate (source - target)`, leaf by leaf."""
    return jax.tree.map(lambda s, t: rate * s + (1 - rate) * t, source, target)
