"""The contract of an environment, on every suite: what `reset` and `step` return, next-step reset, flags, seeds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import same
from worlds import EXTRAS, actions, check_step, check_stream, host_roll, roll, zeros

from jaxwm import envs
from jaxwm.types import Env, Step

PURE = [
    f"{suite}/{task}"
    for suite in ("continuous", "gymnax", "minatar", "pgx", "probe", "tabular")
    for task in envs.names()[suite]
    if "MNIST" not in task  # downloaded when it is made
]


class World(NamedTuple):
    """An environment, how many steps to play, and what its episodes do within them."""

    name: str
    options: dict[str, Any] = {}  # noqa: RUF012
    steps: int = 40
    ends: bool = True  # at least one episode ends
    rewards: tuple[float, ...] | None = None  # all that may come, raw
    kind: str = "any"  # "limit": every end is a time limit; "end": every end is a true one


WORLDS = [
    World("gymnax/Catch-bsuite", rewards=(-1, 0, 1), kind="end"),
    World("gymnax/CartPole-v1", {"max_steps": 20}, rewards=(0, 1)),
    World("gymnax/Pendulum-v1", {"max_steps": 7}, kind="limit"),
    World("gymnax/FrozenLake-misc", rewards=(0, 1)),
    World("minatar/Breakout", {"max_steps": 9}),
    World("tabular/DynaMaze", {"max_steps": 15}, rewards=(0, 1)),
    World("tabular/FrozenLake", rewards=(0, 1)),
    World("tabular/Taxi", rewards=(-10, -1, 0, 20), ends=False),
    World("probe/Recall", {"delay": 2}, rewards=(0, 1), kind="end"),
    World("probe/MultiSensor", rewards=(0, 0.5, 1), kind="end"),
    World("probe/Bounce", rewards=(-1, 0, 1), kind="end"),
    World("continuous/CartPole", {"max_steps": 12}, rewards=(0, 1)),
    World("pgx/TicTacToe", rewards=(-1, 0, 1), kind="end"),
    World("pgx/ConnectFour", {"opponent": "random"}, rewards=(-1, 0, 1), steps=50),
    World("classic/CartPole-v1", {"max_steps": 15}, rewards=(0, 1), steps=60),
    World("classic/Pendulum-v1", {"max_steps": 9}, kind="limit"),
    World("atari/Pong", {"max_frames": 200}, steps=60, rewards=(-1, 0, 1)),
    World("dmc/CartpoleSwingup", steps=12, ends=False),
    World("box2d/LunarLander", steps=150),
    World("vizdoom/TakeCover", {"max_tics": 60}, steps=35, rewards=(0, 4)),
    World("vizdoom/Basic", {"max_tics": 100}, steps=35, rewards=(-4, 0, 100)),
    World("mujoco/Hopper-v4", steps=200, kind="end"),
    World("mujoco/HalfCheetah", {"max_steps": 90}, steps=200, kind="limit"),
    World("mujoco/InvertedPendulum", steps=200, rewards=(0, 1), kind="end"),
    World("procgen/CoinrunEasy", {"num_levels": 1}, steps=200, ends=False),
    World("procgen/LeaperHard", {"action_repeat": 4}, steps=130),
    World("procgen/StarpilotEasy", {"backgrounds": False}, steps=200),
    World("minigrid/Empty-5x5-v0", steps=200),
    World("minigrid/DoorKey-8x8", {"max_steps": 90}, steps=200),
    World("minigrid/Dynamic-Obstacles-6x6", steps=200),
    World("babyai/GoToRedBall", {"words": 8}, steps=200),
    World("babyai/PickupLoc", {"max_steps": 90}, steps=200),
    World("babyai/UnlockLocal", {"max_steps": 90}, steps=200),
    World("metaworld/Reach", {"max_steps": 90}, steps=200, kind="limit"),
    World("robotics/FetchReach", steps=200, rewards=(-1, 0), kind="limit"),
    World("robotics/PointMaze_UMaze", {"max_steps": 90}, steps=200, rewards=(0, 1)),
    World("robotics/AdroitHandDoor", {"max_steps": 30}, steps=60, kind="limit"),
    World("toy/Taxi", steps=201, rewards=(-10, -1, 0, 20)),
    World("toy/Catch", steps=200, rewards=(-1, 0, 1), kind="end"),
    World("toy/Blackjack", steps=200, rewards=(-1, 0, 1, 1.5), kind="end"),
    World("highway/Highway", steps=60),
    World("highway/Roundabout", steps=60),
    World("highway/Intersection-v1", steps=60),
    World("football/academy_empty_goal_close", steps=30, ends=False, rewards=(-1, 0, 1)),
    World("jumanji/Game2048", steps=200, ends=False),
    World("jumanji/Tetris", steps=200),
    World("jumanji/RubiksCube-partly-scrambled", steps=50, kind="limit"),
    World("playground/Go1JoystickFlatTerrain", {"max_steps": 15}, steps=30),
    World("myosuite/myoElbowPose1D6MRandom", {"max_steps": 20}, steps=50),
]
"""At least one of each suite. Options only make episodes short."""

MORE = [
    World("vizdoom/D3Battle", {"max_tics": 60, "frame_skip": 6}, steps=20),
    World("football/academy_run_to_score", steps=200, rewards=(-1, 0, 1)),
    World("football/1_vs_1_easy", steps=200, ends=False, rewards=(-1, 0, 1)),
    World("metaworld/DoorOpen-v3", {"goal": False}, steps=200, ends=False),
    World("metaworld/Push", {"action_repeat": 2, "max_steps": 40}, steps=200, kind="limit"),
    World("playground/PandaPickCube", steps=200),
    World("playground/SpotGetup", {"max_steps": 90}, steps=200, kind="limit"),
    World("myosuite/myoHandReachFixed", {"max_steps": 90}, steps=200),
    World("myosuite/MyoHandAppleLift", {"max_steps": 90}, steps=200),
    World("jumanji/Cleaner", steps=200),
    World("highway/Parking", steps=510),
]
"""Others of the suites in which a step takes long."""


@pytest.mark.parametrize("name", PURE)
def test_steps_of_pure_environments_fit_their_spec(name: str):
    """Shapes and types only: the state keeps its layout, and nothing is weakly typed."""
    env = envs.make(name, num_envs=2)
    assert env.pure and env.num_envs == 2 and env.spec.name == name
    action = jnp.asarray(zeros(env.spec.action, (2,)))
    state, step = jax.eval_shape(env.reset, jax.random.key(0))
    check_step(step, env.spec, (2,))
    for _ in range(2):
        after, step = jax.eval_shape(env.step, state, action)
        check_step(step, env.spec, (2,))
        assert jax.tree.map(_aval, after) == jax.tree.map(_aval, state)
        state = after
    assert all(leaf.shape[0] == 2 and not leaf.weak_type for leaf in jax.tree.leaves(state))


def _aval(x: Any) -> tuple[Any, ...]:
    return x.shape, str(x.dtype), x.weak_type


def play(env: Env, seed: int, action: np.ndarray) -> Step:
    """Steps `[T + 1, N, ...]` of one member, whichever kind the environment is."""
    if env.pure:
        return roll(env, jax.random.key(seed), action)
    steps = host_roll(env, jax.random.split(jax.random.key(seed), 1), action[:, None])
    return jax.tree.map(lambda x: x[:, 0], steps)


@pytest.mark.parametrize(
    "world", [*WORLDS, *(pytest.param(world, marks=pytest.mark.slow) for world in MORE)], ids=lambda world: world.name
)
def test_a_stream_of_steps_keeps_the_contract(world: World):
    env = envs.make(world.name, num_envs=3, **world.options)
    assert env.num_envs == 3 and env.spec.name == world.name
    rng = np.random.default_rng(0)
    action = actions(env.spec.action, (world.steps, 3), rng)
    steps = play(env, 3, action)
    for t in (0, 1, world.steps):
        check_step(jax.tree.map(lambda x, t=t: x[t], steps), env.spec, (3,))
    check_stream(steps)
    assert not world.ends or steps.is_last.any(), "no episode ended: the test looks at too little"
    assert not (steps.is_terminal & ~steps.is_last).any(), "what is terminal is the last step"
    assert world.kind != "limit" or not steps.is_terminal.any()
    assert world.kind != "end" or steps.is_terminal[steps.is_last].all()
    assert np.isfinite(steps.reward).all()
    if world.rewards is not None:
        assert set(np.unique(steps.reward)) <= set(world.rewards)
    if env.spec.max_steps is not None:
        assert longest(steps) <= env.spec.max_steps
    # the seed decides all, and the action of a step that resets nothing
    ignored = np.where(steps.is_last[:-1].reshape(action.shape[:2] + (1,) * (action.ndim - 2)), 0 * action, action)
    again = play(env, 3, ignored.astype(action.dtype))
    assert same(steps, again)


def longest(steps: Step) -> int:
    """Steps of the longest episode."""
    length, most = np.zeros(steps.reward.shape[1], int), 0
    for first in steps.is_first:
        length = np.where(first, 0, length + 1)
        most = max(most, int(length.max()))
    return most


def test_every_suite_is_played():
    assert {world.name.split("/")[0] for world in WORLDS} == set(envs.names()) - {"my", *EXTRAS}


@pytest.mark.parametrize("name", ["tabular/FrozenLake", "classic/CartPole-v1", "gymnax/Pendulum-v1"])
def test_other_seeds_are_other_episodes(name: str):
    env = envs.make(name, num_envs=2)
    action = actions(env.spec.action, (25, 2), np.random.default_rng(0))
    assert not same(play(env, 0, action).obs, play(env, 1, action).obs)
