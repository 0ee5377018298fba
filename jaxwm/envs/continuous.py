"""Small tasks with continuous actions, pure: the pole on a cart, pushed with any force, and a walk towards a ledge."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_number
from jaxwm.types import Array, Box, Env, Key, PyTree, Spec

GRAVITY, CART, POLE, HALF, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
"""m/s^2; masses in kg; half the pole's length in m; force at action 1 in N; seconds a step."""

FAR, TILTED = 2.4, 12 * math.pi / 180  # where an episode ends: distance of the cart in m, angle of the pole in rad


def cartpole(num_envs: int = 1, *, max_steps: int = 200) -> Env:
    """Gymnasium's CartPole with the force 10 N * action, action in [-1, 1] (Box(1)); reward 1 a step.
    obs = position, velocity, angle, angular velocity, drawn from [-0.05, 0.05] at the start. An episode ends at 2.4 m
    or 12 degrees, or after `max_steps`; its highest return is `max_steps`."""
    check_number("continuous/CartPole: max_steps", max_steps, least=1, whole=True)

    def reset(key: Key) -> tuple[PyTree, Array]:
        place = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return (place, jnp.int32(0)), place

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        place, time = advance(state[0], FORCE * jnp.clip(action[0], -1.0, 1.0)), state[1] + 1
        return (place, time), place, 1.0, fallen(place), time >= max_steps

    obs = jax.ShapeDtypeStruct((4,), jnp.float32)
    return from_functions(Spec("continuous/CartPole", obs, Box(1), max_steps), reset, step, num_envs)


def advance(place: Array, force: Array) -> Array:
    """One Euler step of cart and pole under a force in N (Barto, Sutton & Anderson 1983): `[4] -> [4]`."""
    _, speed, angle, turn = place
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    pushed = (force + POLE * HALF * turn**2 * sin) / (CART + POLE)
    spin = (GRAVITY * sin - cos * pushed) / (HALF * (4.0 / 3.0 - POLE * cos**2 / (CART + POLE)))
    pull = pushed - POLE * HALF * spin * cos / (CART + POLE)
    return place + TAU * jnp.stack([speed, pull, turn, spin])


def fallen(place: Array) -> Array:
    """Whether observations `[..., 4]` are an end, bool `[...]`."""
    return (jnp.abs(place[..., 0]) > FAR) | (jnp.abs(place[..., 2]) > TILTED)


STRIDE, SLIP = 0.1, 0.05  # of the ledge: distance of a step at action 1, standard deviation of where it really ends


def ledge(num_envs: int = 1, *, max_steps: int = 50) -> Env:
    """A walk towards a ledge on slippery ground: the nearer, the better, but who steps over it earns nothing more.
    obs = position x, from [-0.05, 0.05] at the start; a step moves it by 0.1 * action, action in [-1, 1] (Box(1)), and
    a normal slip of 0.05. The reward is the new x; beyond 1 it is 0 and the episode ends. Who plans with the mean of
    the next position walks up to the edge and falls; who knows its spread keeps a distance."""
    check_number("continuous/Ledge: max_steps", max_steps, least=1, whole=True)

    def reset(key: Key) -> tuple[PyTree, Array]:
        place = jax.random.uniform(key, (1,), minval=-0.05, maxval=0.05)
        return (place, jnp.int32(0)), place

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        slip = SLIP * jax.random.normal(key, (1,))
        place, time = jnp.maximum(state[0] + STRIDE * jnp.clip(action, -1.0, 1.0) + slip, -1.0), state[1] + 1
        return (place, time), place, height(place), over(place), time >= max_steps

    obs = jax.ShapeDtypeStruct((1,), jnp.float32)
    return from_functions(Spec("continuous/Ledge", obs, Box(1), max_steps), reset, step, num_envs)


def over(place: Array) -> Array:
    """Whether observations `[..., 1]` are beyond the ledge, bool `[...]`."""
    return place[..., 0] > 1.0


def height(place: Array) -> Array:
    """Reward `[...]` of arriving at observations `[..., 1]`."""
    return jnp.where(over(place), 0.0, place[..., 0])


CONTINUOUS = {"CartPole": cartpole, "Ledge": ledge}
