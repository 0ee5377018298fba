"""Reward and termination of some tasks as functions of the observation, for systems that plan with them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxwm.envs import continuous
from jaxwm.types import Array


class Known(NamedTuple):
    """Functions of an environment over any leading axes: `reward(obs, action, next obs)`, and whether `next obs` is an
    end, as floats. Actions are those of the agent, in [-1, 1]."""

    reward: Callable[[Array, Array, Array], Array]
    ends: Callable[[Array], Array]


def _pendulum_reward(obs: Array, action: Array, after: Array) -> Array:
    """-(angle^2 + 0.1 speed^2 + 0.001 torque^2) before the step, with obs = cos, sin, speed and a torque of 2 Nm."""
    angle = jnp.arctan2(obs[..., 1], obs[..., 0])
    return -(angle**2 + 0.1 * obs[..., 2] ** 2 + 0.001 * (2 * jnp.clip(action[..., 0], -1, 1)) ** 2)


def _flag(ends: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda after: ends(after).astype(jnp.float32)


KNOWN = {
    "gymnax/Pendulum-v1": Known(_pendulum_reward, lambda after: jnp.zeros(after.shape[:-1])),
    "continuous/CartPole": Known(lambda obs, action, after: jnp.ones(after.shape[:-1]), _flag(continuous.fallen)),
    "continuous/Ledge": Known(lambda obs, action, after: continuous.height(after), _flag(continuous.over)),
}
"""Environments whose reward and termination are known."""
