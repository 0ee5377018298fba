"""Ends of MuJoCo tasks as functions of the observation are those of the simulator."""

import jax
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs.known import KNOWN


@pytest.mark.parametrize(
    ("task", "steps"),
    [("InvertedPendulum-v4", 60), ("Hopper-v4", 200), ("Walker2d-v5", 100), ("HalfCheetah-v4", 20), ("Ant-v4", 200)],
)
def test_ends_are_those_of_the_simulator(task: str, steps: int):
    """Under random actions; all but HalfCheetah fall often."""
    env, known = envs.make(f"mujoco/{task}", 8), KNOWN[f"mujoco/{task}"]
    handle, step = env.reset(jax.random.split(jax.random.key(0), 1))
    rng, seen = np.random.default_rng(0), []
    for _ in range(steps):
        before, action = step, rng.uniform(-1, 1, (1, 8, env.spec.action.size)).astype(np.float32)
        handle, step = env.step(handle, action)
        seen.append((before, action, step))
    env.close(handle)
    before, action, after = jax.tree.map(lambda *x: np.stack(x), *seen)
    live = ~after.is_first
    np.testing.assert_array_equal(np.asarray(known.ends(after.obs))[live] > 0, after.is_terminal[live])
    assert after.is_terminal.any() == (task != "HalfCheetah-v4")
    if known.reward:
        reward = known.reward(before.obs, action, after.obs)
        np.testing.assert_allclose(np.asarray(reward)[live], after.reward[live], atol=1e-6)


def test_a_number_that_is_none_is_an_end():
    """As in Gymnasium: a simulation that blew up is not healthy."""
    for task in ("InvertedPendulum-v4", "Hopper-v4", "Walker2d-v5", "Humanoid-v4"):
        obs = np.full((1, 17), np.nan, np.float32)
        assert bool(np.asarray(KNOWN[f"mujoco/{task}"].ends(obs)) > 0), task
