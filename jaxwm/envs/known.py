"""Reward and termination of some tasks as functions of the observation, for systems that plan or dream with them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxwm.envs import continuous
from jaxwm.types import Array


class Known(NamedTuple):
    """Functions of an environment over any leading axes: `reward(obs, action, next obs)`, and whether `next obs` is an
    end, as floats. Actions are those of the agent, in [-1, 1]. A reward that the observation does not tell is None."""

    reward: Callable[[Array, Array, Array], Array] | None
    ends: Callable[[Array], Array]


def _pendulum_reward(obs: Array, action: Array, after: Array) -> Array:
    return continuous.swing_reward(obs, jnp.clip(action[..., 0], -1, 1))


def _flag(ends: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda after: ends(after).astype(jnp.float32)


def _never(after: Array) -> Array:
    return jnp.zeros(after.shape[:-1])


def _outside(number: int, low: float, high: float) -> Callable[[Array], Array]:
    """Whether one number of an observation is not strictly between two bounds."""
    return lambda after: ~((after[..., number] > low) & (after[..., number] < high))


def _any(*ends: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return _flag(lambda after: jnp.stack([end(after) for end in ends]).any(0))


def _far(after: Array) -> Array:
    """Whether any number but the first is 100 or more away from 0."""
    return ~(jnp.abs(after[..., 1:]) < 100).all(-1)


_tipped = _flag(lambda after: ~(jnp.abs(after[..., 1]) <= 0.2))

MUJOCO = {
    "Ant": _any(_outside(0, 0.2, 1.0)),
    "HalfCheetah": _never,
    "Hopper": _any(_outside(0, 0.7, jnp.inf), _outside(1, -0.2, 0.2), _far),
    "Humanoid": _any(_outside(0, 1.0, 2.0)),
    "InvertedPendulum": _tipped,
    "Swimmer": _never,
    "Walker2d": _any(_outside(0, 0.8, 2.0), _outside(1, -1.0, 1.0)),
}
"""When an episode of Gymnasium's MuJoCo ends, from the observation: the height comes first, then the angle."""

KNOWN = {
    "gymnax/Pendulum-v1": Known(_pendulum_reward, _never),
    "continuous/Pendulum": Known(_pendulum_reward, _never),
    "continuous/CartPole": Known(lambda obs, action, after: jnp.ones(after.shape[:-1]), _flag(continuous.fallen)),
    "continuous/Ledge": Known(lambda obs, action, after: continuous.height(after), _flag(continuous.over)),
}
KNOWN |= {f"mujoco/{task}{v}": Known(None, ends) for task, ends in MUJOCO.items() for v in ("", "-v4", "-v5")}
KNOWN["mujoco/InvertedPendulum-v4"] = Known(lambda obs, action, after: jnp.ones(after.shape[:-1]), _tipped)
"""Environments whose termination is known, and of most of them the reward."""


def check_reward(name: str, other: str = "") -> None:
    """ValueError unless the reward of an environment is known; `other` is a way out besides making it known."""
    known = [task for task, one in KNOWN.items() if one.reward]
    if name not in known:
        raise ValueError(
            f"the reward of {name} is not known (those of {', '.join(known)} are): add it to "
            f"jaxwm.envs.known.KNOWN{other}"
        )
