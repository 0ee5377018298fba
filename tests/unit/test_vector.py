"""Vector environments of gymnasium, in each mode of the automatic reset, next to the same environments one by one."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import jax
import numpy as np
import pytest
from worlds import check_stream, host_roll

from jaxwm import envs
from jaxwm.envs.border import Misfit

KEYS = jax.random.split(jax.random.key(0), 2)
MODES = gym.vector.AutoresetMode


class Count(gym.Env):
    """Counts its steps from a seeded start; ends after 3 of them, in every other episode by a time limit."""

    def __init__(self, steps: int = 3):
        self.observation_space = gym.spaces.Dict(
            {"count": gym.spaces.Box(0, 100, (), np.int64), "odd": gym.spaces.Discrete(2, start=4)}
        )
        self.action_space = gym.spaces.Discrete(3, start=1)
        self.steps, self.episode = steps, 0

    def look(self):
        return {"count": np.int64(self.count), "odd": 4 + self.count % 2}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time, self.count = self.episode + 1, 0, int(self.np_random.integers(50))
        return self.look(), {}

    def step(self, action):
        assert self.action_space.contains(int(action))
        self.time, self.count = self.time + 1, self.count + 1
        last = self.time == self.steps
        return self.look(), 0.5 * self.time, last and self.episode % 2 == 0, last and self.episode % 2 == 1, {}


def vector(count, mode, kind=gym.vector.SyncVectorEnv, **options):
    return kind([partial(Count, **options)] * count, autoreset_mode=mode)


def played(mode, **options):
    env = envs.from_gymnasium_vector(lambda count: vector(count, mode, **options), num_envs=3)
    return env, host_roll(env, KEYS, np.zeros((14, 2, 3), np.int32))


def test_next_step_is_what_single_environments_give():
    """The same streams, seed for seed."""
    env, steps = played(MODES.NEXT_STEP)
    single = envs.from_gymnasium(lambda seed: Count(), num_envs=3)
    assert env.spec.obs == single.spec.obs and env.spec.action == single.spec.action
    jax.tree.map(np.testing.assert_array_equal, steps, host_roll(single, KEYS, np.zeros((14, 2, 3), np.int32)))
    assert steps.is_last.any() and steps.is_terminal.any() and (steps.is_last & ~steps.is_terminal).any()


@pytest.mark.parametrize("mode", [MODES.SAME_STEP, MODES.DISABLED])
def test_other_modes_lose_no_end_and_no_reward(mode):
    """Episodes are a step shorter, from the second observation on; returns and last observations are whole."""
    _, steps = played(mode)
    check_stream(steps)
    _, whole = played(MODES.NEXT_STEP)

    def episodes(steps):
        found = []
        for m, n in np.ndindex(2, 3):
            ends = np.flatnonzero(steps.is_last[:, m, n])
            for start, end in zip(np.concatenate([[0], ends[:-1] + 1]), ends, strict=True):
                span = slice(start, end + 1), m, n
                count, reward = steps.obs["count"][span], steps.reward[span]
                found.append((float(count[-1, 0]), float(reward.sum()), bool(steps.is_terminal[span][-1])))
                assert (np.diff(count.ravel()) == 1).all() and steps.is_first[start, m, n]
        return sorted(found)[: 2 * 3 * 2]

    def of_first_two(steps):
        first = [np.flatnonzero(steps.is_last[:, m, n])[1] for m, n in np.ndindex(2, 3)]
        return episodes(jax.tree.map(lambda x: x[: max(first) + 1], steps))

    assert of_first_two(steps) == of_first_two(whole)


def test_an_episode_of_one_step_is_not_shown():
    _, steps = played(MODES.SAME_STEP, steps=1)
    assert steps.is_last[1].all() and not (steps.is_first & steps.is_last).any()


@pytest.mark.slow
def test_processes_of_their_own():
    env = envs.from_gymnasium_vector(lambda count: vector(count, MODES.SAME_STEP, gym.vector.AsyncVectorEnv), 2)
    check_stream(host_roll(env, KEYS[:1], np.zeros((9, 1, 2), np.int32)))


def test_what_is_no_vector_environment_or_does_not_say_how_it_resets():
    with pytest.raises(ValueError, match="has no single_observation_space"):
        envs.from_gymnasium_vector(lambda count: Count())
    silent = vector(1, MODES.NEXT_STEP)
    silent.metadata = {}
    with pytest.raises(ValueError, match="does not say how it resets"):
        envs.from_gymnasium_vector(lambda count: silent)
    env = envs.from_gymnasium_vector(lambda count: vector(count, MODES.SAME_STEP))
    handle, _ = env.reset(KEYS[:1])
    plain = handle.pool.native.step
    handle.pool.native.step = lambda action: (*plain(action)[:4], {})
    with pytest.raises(Misfit, match="info has no 'final_obs'"):
        for _ in range(3):
            handle, _ = env.step(handle, np.zeros((1, 1), np.int32))
