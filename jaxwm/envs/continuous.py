"""Small tasks with continuous actions, pure: the pole on a cart, pushed with any force, a walk towards a ledge, and a
pendulum whose motor is another one in each episode."""

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


TORQUE, TURN, SWING = (
    2.0,
    8.0,
    0.05,
)  # of the pendulum: Nm at action 1 and gain 1; highest speed in rad/s; seconds a step


def pendulum(
    num_envs: int = 1, *, max_steps: int = 200, low: float = 1.0, high: float = 1.0, flip: float = 0.0
) -> Env:  # fmt: skip
    """Gymnasium's Pendulum with a motor of its own in each episode: the torque is gain * 2 Nm * action, action in
    [-1, 1] (Box(1)). The size of the gain is drawn from [`low`, `high`] at the start, its sign is negative with
    probability `flip`, and it is not shown; 1 is Gymnasium's own. obs = cos, sin of the angle (0 is upright), angular
    speed. The reward is -(angle^2 + 0.1 speed^2 + 0.001 (2 action)^2) before the step; an episode ends after
    `max_steps`."""
    check_number("continuous/Pendulum: max_steps", max_steps, least=1, whole=True)
    check_number("continuous/Pendulum: low", low, least=0)
    check_number("continuous/Pendulum: high", high, least=low)
    check_number("continuous/Pendulum: flip", flip, least=0, most=1)

    def reset(key: Key) -> tuple[PyTree, Array]:
        k_place, k_size, k_sign = jax.random.split(key, 3)
        place = jax.random.uniform(k_place, (2,), minval=-1.0) * jnp.array([jnp.pi, 1.0])
        size = jax.random.uniform(k_size, minval=low, maxval=high)
        gain = jnp.where(jax.random.bernoulli(k_sign, flip), -size, size)
        return (place, gain, jnp.int32(0)), shown(place)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        place, gain, time = state[0], state[1], state[2] + 1
        push = jnp.clip(action[0], -1.0, 1.0)
        after = swung(place, gain * push)
        return (after, gain, time), shown(after), swing_reward(shown(place), push), False, time >= max_steps

    obs = jax.ShapeDtypeStruct((3,), jnp.float32)
    spec = Spec("continuous/Pendulum", obs, Box(1), max_steps)
    return from_functions(spec, reset, step, num_envs, metrics=lambda state: {"gain": state[1]})


def shown(place: Array) -> Array:
    """Cosine and sine of the angle, and the speed: angle and speed `[..., 2] -> [..., 3]`."""
    return jnp.stack([jnp.cos(place[..., 0]), jnp.sin(place[..., 0]), place[..., 1]], -1)


def swung(place: Array, push: Array) -> Array:
    """One step of a rod of 1 kg and 1 m, g = 10 m/s^2, under a torque of 2 Nm * push: `[..., 2] -> [..., 2]`."""
    angle, speed = place[..., 0], place[..., 1]
    speed = jnp.clip(speed + SWING * (15.0 * jnp.sin(angle) + 3.0 * TORQUE * push), -TURN, TURN)
    return jnp.stack([angle + SWING * speed, speed], -1)


def swing_reward(obs: Array, push: Array) -> Array:
    """Reward `[...]` of an action `[...]` in [-1, 1] at observations `[..., 3]`."""
    angle = jnp.arctan2(obs[..., 1], obs[..., 0])
    return -(angle**2 + 0.1 * obs[..., 2] ** 2 + 0.001 * (TORQUE * push) ** 2)


CONTINUOUS = {"CartPole": cartpole, "Ledge": ledge, "Pendulum": pendulum}
