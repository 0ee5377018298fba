"""Probe environments: tiny, pure, with values known in closed form.

An agent that cannot solve one of them has a bug, and the probe says where: ConstantReward tests the value head's
offset, ObsReward the path from observation to value, TwoStepDiscount bootstrapping and the discount, ActionReward the
policy gradient, ContinuousTarget the same for a Box, Recall the recurrent state, MultiSensor the encoders and the
factorised action, Bounce whether a model of frames keeps two futures apart. Square is footage for systems that find out
actions from video.

Below, r_t is the reward in the `Step` that follows action a_t, V* the optimal value and gamma the discount."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_number
from jaxwm.types import ActionSpace, Array, Box, Discrete, Env, Key, MultiDiscrete, PyTree, Spec

SCALAR = jax.ShapeDtypeStruct((1,), jnp.float32)


def _bandit(name: str, action: ActionSpace, reward: Callable[[Array], Any], num_envs: int) -> Env:
    """One step: obs = 0, a reward of the action, end."""

    def reset(key: Key) -> tuple[PyTree, Array]:
        return (), jnp.zeros(1)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        return (), jnp.zeros(1), reward(action), True, False

    return from_functions(Spec(f"probe/{name}", SCALAR, action, 1), reset, step, num_envs)


def constant_reward(num_envs: int = 1) -> Env:
    """One step, reward 1 whatever the action: obs = 0, r_0 = 1, end. V*(0) = 1; every policy's return is 1.
    There are two equal actions, because a policy over a single one has no entropy to normalise."""
    return _bandit("ConstantReward", Discrete(2), lambda action: 1.0, num_envs)


def action_reward(num_envs: int = 1) -> Env:
    """One step: obs = 0, r_0 = +1 for action 1 and -1 for action 0, end. V*(0) = 1; a uniform policy's return is 0."""
    return _bandit("ActionReward", Discrete(2), lambda action: 2.0 * action - 1.0, num_envs)


def continuous_target(num_envs: int = 1) -> Env:
    """One step: obs = 0, r_0 = -(a - 1/2)^2 with a clipped to [-1, 1], end.
    V*(0) = 0 at a = 1/2; a policy uniform over [-1, 1] returns -(1/3 + 1/4) = -7/12."""
    near = lambda action: -jnp.square(jnp.clip(action[0], -1.0, 1.0) - 0.5)  # noqa: E731
    return _bandit("ContinuousTarget", Box(1), near, num_envs)


def obs_reward(num_envs: int = 1) -> Env:
    """One step: obs = s with s = -1 or +1 (one half each), r_0 = s, end. V*(s) = s; every policy's mean return is 0."""

    def reset(key: Key) -> tuple[Array, Array]:
        sign = jax.random.rademacher(key, (1,), jnp.float32)
        return sign, sign

    def step(key: Key, state: Array, action: Array) -> tuple[Any, ...]:
        return state, state, state[0], True, False

    return from_functions(Spec("probe/ObsReward", SCALAR, Discrete(2), 1), reset, step, num_envs)


def two_step_discount(num_envs: int = 1) -> Env:
    """Two steps: obs = 0, 1, then 2 at the end; r_0 = 0, r_1 = 1. V*(0) = gamma, V*(1) = 1; the return is 1."""

    def reset(key: Key) -> tuple[Array, Array]:
        return jnp.int32(0), jnp.zeros(1)

    def step(key: Key, state: Array, action: Array) -> tuple[Any, ...]:
        state = state + 1
        end = state == 2
        return state, state[None].astype(jnp.float32), end, end, False

    return from_functions(Spec("probe/TwoStepDiscount", SCALAR, Discrete(2), 2), reset, step, num_envs)


def recall(num_envs: int = 1, *, delay: int = 10) -> Env:
    """Remember a cue for `delay` blank steps, then name it.
    obs is bool `[5]`: the cue c, one of four classes, one-hot; then a go flag. The first observation shows the cue, the
    next `delay` are blank (all False), the one after has the go flag; actions count there alone: r = 1 for action c,
    else 0, end. An episode takes delay + 2 actions. The last observation, after the
    answer, shows the cue again: a model is told what it should have remembered whether or not the answer was right.
    V*(t steps after the cue) = gamma^(delay + 1 - t), the optimal return is 1; without memory it is 1/4."""
    check_number("probe/Recall: delay", delay, least=0, whole=True)

    def show(cue: Array, t: Array) -> Array:
        return jnp.append((jnp.arange(4) == cue) & ((t == 0) | (t == delay + 2)), t == delay + 1)

    def reset(key: Key) -> tuple[PyTree, Array]:
        cue, t = jax.random.randint(key, (), 0, 4), jnp.int32(0)
        return (cue, t), show(cue, t)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        cue, t = state
        go = t == delay + 1
        return (cue, t + 1), show(cue, t + 1), go & (action == cue), go, False

    obs = jax.ShapeDtypeStruct((5,), jnp.bool_)
    return from_functions(Spec("probe/Recall", obs, Discrete(4), delay + 2), reset, step, num_envs)


def multi_sensor(num_envs: int = 1) -> Env:
    """One step, two sensors, two actions.
    obs is a dict: `image` uint8 `[64, 64, 3]`, a 16 x 16 square anywhere on black, its colour red, green or
    blue (k = 0, 1, 2); `vector` float32 `[2]`, (s, -s) with s = -1 or +1. The action is MultiDiscrete((2, 3)).
    r_0 = [a_0 = 1 if s > 0 else 0] / 2 + [a_1 = k] / 2, end. V* = 1; a uniform policy's return is 1/4 + 1/6 = 5/12."""

    def show(state: PyTree) -> PyTree:
        sign, colour, corner = state
        offset = jnp.arange(64)[:, None] - corner  # [64, 2]: rows and columns, counted from the square's corner
        inside = (offset >= 0) & (offset < 16)
        lit = inside[:, None, 0, None] & inside[None, :, 1, None] & (jnp.arange(3) == colour)
        return {"image": jnp.where(lit, jnp.uint8(255), jnp.uint8(0)), "vector": jnp.stack([sign, -sign])}

    def reset(key: Key) -> tuple[PyTree, PyTree]:
        a, b, c = jax.random.split(key, 3)
        sign = jax.random.rademacher(a, (), jnp.float32)
        state = (sign, jax.random.randint(b, (), 0, 3), jax.random.randint(c, (2,), 0, 49))
        return state, show(state)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        right = jnp.stack([action[0] == (state[0] > 0), action[1] == state[1]])
        return state, show(state), right.mean(dtype=jnp.float32), True, False

    sensors = {"image": jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8), "vector": jax.ShapeDtypeStruct((2,), jnp.float32)}
    return from_functions(Spec("probe/MultiSensor", sensors, MultiDiscrete((2, 3)), 1), reset, step, num_envs)


SIDE, LEDGE = 8, 3  # of Bounce: rows and columns of the field, and the row in which the ball bounces


def bounce(num_envs: int = 1, *, cells: bool = False) -> Env:
    """Catch a ball that bounces to the left or to the right, one half each: two futures that no model may average.
    A ball falls from row 0 of a field of 8 x 8, one row per step, in a column that is drawn at reset. In row 3 it
    bounces and falls on diagonally, away from the walls that it meets. The player, three cells wide in row 7, starts
    below the ball and moves by one column: Discrete(3) is left, stay, right. When the ball is in row 7 after seven
    steps, r_6 = 1 where the player touches it and -1 elsewhere, end; all other rewards are 0.
    obs is an image, uint8 `[16, 16, 1]`, 2 x 2 pixels per cell (ball 255, player 128), or with `cells` bool
    `[8, 8, 2]`, planes of ball and player. V* = gamma^6 at the start, for who follows the ball; random actions return
    about -0.3. The side of the bounce shows one step after the ball was in row 3; the direction of the ball takes two
    frames to see."""
    place = jnp.arange(SIDE)

    def show(state: PyTree) -> Array:
        row, column, _, player = state
        ball = (place[:, None] == row) & (place == column)
        hand = (place[:, None] == SIDE - 1) & (jnp.abs(place - player) <= 1)
        if cells:
            return jnp.stack([ball, hand], -1)
        grey = jnp.where(ball, jnp.uint8(255), jnp.where(hand, jnp.uint8(128), jnp.uint8(0)))
        return grey.repeat(2, 0).repeat(2, 1)[..., None]

    def reset(key: Key) -> tuple[PyTree, Array]:
        column = jax.random.randint(key, (), 0, SIDE)
        state = jnp.int32(0), column, jnp.int32(0), jnp.clip(column, 1, SIDE - 2)
        return state, show(state)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        row, column, aside, player = state
        aside = jnp.where(row == LEDGE, jax.random.rademacher(key, (), jnp.int32), aside)
        aside = jnp.where((column + aside < 0) | (column + aside >= SIDE), -aside, aside)
        player = jnp.clip(player + action - 1, 1, SIDE - 2)
        state = row + 1, column + aside, aside, player
        end = row + 1 == SIDE - 1
        caught = jnp.where(jnp.abs(column + aside - player) <= 1, 1, -1)
        return state, show(state), end * caught, end, False

    shape, dtype = ((SIDE, SIDE, 2), jnp.bool_) if cells else ((2 * SIDE, 2 * SIDE, 1), jnp.uint8)
    obs = jax.ShapeDtypeStruct(shape, dtype)
    return from_functions(Spec("probe/Bounce", obs, Discrete(3), SIDE - 1), reset, step, num_envs)


def square(num_envs: int = 1, *, size: int = 16, stride: int = 2, max_steps: int = 32) -> Env:
    """A square on black that does what it is told, for video from which actions are to be found out.
    obs is uint8 `[size, size, 1]`, a white 4 x 4 square that begins anywhere on a grid of `stride` pixels. Actions:
    stay, up, down, left, right, by `stride` pixels; beyond an edge it comes back at the other, so that every action
    shows. r = 1 where the square's first column is in the left half, else 0; the time limit is `max_steps`. With an
    even number of columns in the grid a random policy's mean return is `max_steps` / 2."""
    check_number("probe/Square: size", size, least=8, whole=True)
    check_number("probe/Square: stride", stride, least=1, most=size // 3, whole=True)
    check_number("probe/Square: max_steps", max_steps, least=1, whole=True)
    if size % stride:
        raise ValueError(f"probe/Square: size must be a multiple of stride, {stride}, not {size}")
    moves = stride * jnp.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])

    def show(corner: Array) -> Array:
        inside = (jnp.arange(size)[:, None] - corner) % size < 4  # [size, 2]: rows and columns
        return jnp.where(inside[:, None, 0] & inside[None, :, 1], jnp.uint8(255), jnp.uint8(0))[..., None]

    def reset(key: Key) -> tuple[PyTree, Array]:
        corner = stride * jax.random.randint(key, (2,), 0, size // stride)
        return (corner, jnp.int32(0)), show(corner)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        corner, t = (state[0] + moves[action]) % size, state[1] + 1
        return (corner, t), show(corner), corner[1] < size // 2, False, t == max_steps

    obs = jax.ShapeDtypeStruct((size, size, 1), jnp.uint8)
    return from_functions(Spec("probe/Square", obs, Discrete(5), max_steps), reset, step, num_envs)


PROBES = {
    "ConstantReward": constant_reward,
    "ObsReward": obs_reward,
    "TwoStepDiscount": two_step_discount,
    "ActionReward": action_reward,
    "ContinuousTarget": continuous_target,
    "Recall": recall,
    "MultiSensor": multi_sensor,
    "Bounce": bounce,
    "Square": square,
}
