"""Small worlds with few states, pure: the mazes of Dyna, FrozenLake and Taxi.

An observation is one-hot: bool planes `[rows, columns, 1]` where the state is a place, else a bool vector `[S]`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import border
from jaxwm.envs.pure import check_num_envs, from_functions
from jaxwm.errors import check_number
from jaxwm.types import Array, Discrete, Env, Key, PyTree, Spec, Step

ROWS, COLUMNS, GOAL = 6, 9, (0, 8)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
WALLS = {
    "DynaMaze": [(1, 2), (2, 2), (3, 2), (4, 5), (0, 7), (1, 7), (2, 7)],
    "BlockingMaze": [(3, column) for column in range(8)],
    "ShortcutMaze": [(3, column) for column in range(1, 9)],
}
LATER = {"BlockingMaze": WALLS["ShortcutMaze"], "ShortcutMaze": [(3, column) for column in range(1, 8)]}
"""The walls after the change, which comes after `CHANGES` real steps."""

STARTS = {"DynaMaze": (2, 0), "BlockingMaze": (5, 3), "ShortcutMaze": (5, 3)}
CHANGES = {"DynaMaze": 0, "BlockingMaze": 1000, "ShortcutMaze": 3000}


def maze(task: str, num_envs: int = 1, change: int | None = None, max_steps: int = 10_000) -> Env:
    """The gridworlds of Sutton & Barto (2018), chapter 8: +1 at the goal, which ends the episode, 0 elsewhere.
    `change` is the number of real steps, over all episodes of an environment, after which the walls are others (the way
    is blocked and another opens, or a shortcut opens); walking into a wall stays in place."""
    check_num_envs(num_envs)
    change = CHANGES[task] if change is None else change
    check_number("change", change, least=0, whole=True)
    check_number("max_steps", max_steps, least=1, whole=True)
    free = np.ones((2, ROWS, COLUMNS), bool)  # before and after the change
    for open_cells, walls in zip(free, (WALLS[task], LATER.get(task, WALLS[task])), strict=True):
        open_cells[tuple(np.transpose(walls))] = False
    start, goal, moves = jnp.array(STARTS[task]), jnp.array(GOAL), jnp.array(MOVES)
    last = jnp.array([ROWS - 1, COLUMNS - 1])

    def show(place: Array) -> Array:
        cells = jnp.arange(ROWS * COLUMNS) == place[:, :1] * COLUMNS + place[:, 1:]
        return cells.reshape(-1, ROWS, COLUMNS, 1)

    def reset(key: Key) -> tuple[PyTree, Step]:
        place = jnp.broadcast_to(start, (num_envs, 2))
        none = jnp.zeros(num_envs, bool)
        count = jnp.zeros(num_envs, jnp.int32)
        return (place, count, count, none), Step(show(place), jnp.zeros(num_envs), ~none, none, none)

    def step(state: PyTree, action: Array) -> tuple[PyTree, Step]:
        action = border.traced_action(spec, action, (num_envs,))
        place, total, time, over = state  # `total` outlives episodes, which is why this is no `from_functions`
        wanted = jnp.clip(place + moves[action], 0, last)
        later = jnp.where(jnp.logical_and(change > 0, total >= change), 1, 0)
        open_ = jnp.asarray(free)[later, wanted[:, 0], wanted[:, 1]]
        place = jnp.where(over[:, None], start, jnp.where(open_[:, None], wanted, place))
        time = jnp.where(over, 0, time + 1)
        total = jnp.where(over, total, total + 1)
        done = ~over & (place == goal).all(-1)
        ended = done | (time >= max_steps)
        return (place, total, time, ended), Step(show(place), done.astype(jnp.float32), over, ended, done)

    obs = jax.ShapeDtypeStruct((ROWS, COLUMNS, 1), jnp.bool_)
    spec = Spec(f"tabular/{task}", obs, Discrete(4), max_steps, one_hot=True)
    return Env(spec, reset, step, num_envs, True)


LAKES = {
    "FrozenLake": "SFFF FHFH FFFH HFFG",
    "FrozenLake8x8": "SFFFFFFF FFFFFFFF FFFHFFFF FFFFFHFF FFFHFFFF FHHFFFHF FHFFHFHF FFFHFFFG",
}
LIMITS = {"FrozenLake": 100, "FrozenLake8x8": 200}


def frozen_lake(task: str, num_envs: int = 1, slippery: bool = True) -> Env:
    """Cross a frozen lake from S to G (+1) without falling into a hole H; both end the episode.
    Actions: left, down, right, up. On slippery ice one of the intended direction and its two neighbours is taken, each
    with probability 1/3. Rules and limits (100 steps, 200 for 8x8) as in gymnasium's FrozenLake-v1."""
    grid = np.array([list(row) for row in LAKES[task].split()])
    size, limit = len(grid), LIMITS[task]
    hole, goal = jnp.asarray(grid == "H"), jnp.asarray(grid == "G")
    moves = jnp.array([(0, -1), (1, 0), (0, 1), (-1, 0)])

    def show(place: Array) -> Array:
        return (jnp.arange(size * size) == place[0] * size + place[1]).reshape(size, size, 1)

    def reset(key: Key) -> tuple[PyTree, Array]:
        place = jnp.zeros(2, jnp.int32)
        return (place, jnp.int32(0)), show(place)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        place, time = state
        slip = jax.random.randint(key, (), -1, 2) if slippery else 0
        place = jnp.clip(place + moves[(action + slip) % 4], 0, size - 1)
        won, time = goal[place[0], place[1]], time + 1
        return (place, time), show(place), won, won | hole[place[0], place[1]], time >= limit

    obs = jax.ShapeDtypeStruct((size, size, 1), jnp.bool_)
    return from_functions(Spec(f"tabular/{task}", obs, Discrete(4), limit, one_hot=True), reset, step, num_envs)


STOPS = ((0, 0), (0, 4), (4, 0), (4, 3))  # red, green, yellow, blue
EAST_WALLS = ((0, 1), (1, 1), (3, 0), (3, 2), (4, 0), (4, 2))  # places with a wall on their east side
ABOARD, TAXI_LIMIT = 4, 200


def taxi(num_envs: int = 1) -> Env:
    """Fetch a passenger and bring them to their destination: -1 a step, -10 for a wrong pick-up or drop-off, +20.
    Actions: south, north, east, west, pick up, drop off. State ((row * 5 + column) * 5 + passenger) * 4 + destination,
    500 of them, shown as a bool vector. Rules and limit (200 steps) as in gymnasium's Taxi-v3."""
    stops = jnp.array(STOPS)
    east = jnp.zeros((5, 6), bool).at[tuple(np.array(EAST_WALLS).T)].set(True)

    def show(state: Array) -> Array:
        row, column, passenger, destination = state
        return jnp.arange(500) == ((row * 5 + column) * 5 + passenger) * 4 + destination

    def reset(key: Key) -> tuple[PyTree, Array]:
        place, who, where = jax.random.split(key, 3)
        row, column = jax.random.randint(place, (2,), 0, 5)
        passenger = jax.random.randint(who, (), 0, 4)
        destination = (passenger + jax.random.randint(where, (), 1, 4)) % 4
        state = jnp.stack([row, column, passenger, destination])
        return (state, jnp.int32(0)), show(state)

    def step(key: Key, state: PyTree, action: Array) -> tuple[Any, ...]:
        (row, column, passenger, destination), time = state
        here = (stops == jnp.stack([row, column])).all(-1)  # [4]
        stop = jnp.argmax(here)
        picked = (action == 4) & (passenger < ABOARD) & here[jnp.minimum(passenger, 3)]
        dropped = (action == 5) & (passenger == ABOARD) & here.any()
        done = dropped & (stop == destination)
        wrong = (action == 4) & ~picked | (action == 5) & ~dropped
        reward = jnp.where(done, 20.0, jnp.where(wrong, -10.0, -1.0))
        blocked = jnp.where(action == 2, east[row, column], east[row, column - 1] & (column > 0))
        sideways = jnp.where(blocked, 0, jnp.where(action == 2, 1, jnp.where(action == 3, -1, 0)))
        row = jnp.clip(row + jnp.where(action == 0, 1, jnp.where(action == 1, -1, 0)), 0, 4)
        column = jnp.clip(column + sideways, 0, 4)
        passenger = jnp.where(picked, ABOARD, jnp.where(dropped, stop, passenger))
        after, time = jnp.stack([row, column, passenger, destination]).astype(jnp.int32), time + 1
        return (after, time), show(after), reward, done, time >= TAXI_LIMIT

    spec = Spec("tabular/Taxi", jax.ShapeDtypeStruct((500,), jnp.bool_), Discrete(6), TAXI_LIMIT, one_hot=True)
    return from_functions(spec, reset, step, num_envs)


TABULAR: dict[str, Callable[..., Env]] = {task: partial(maze, task) for task in WALLS}
TABULAR |= {task: partial(frozen_lake, task) for task in LAKES} | {"Taxi": taxi}
