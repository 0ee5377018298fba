"""Choices and a vector at once: spaces, policies, gymnasium's dicts, and the systems that take them."""

from __future__ import annotations

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

from jaxwm import agents, data, envs, spaces
from jaxwm.control.policy import action_distribution, disturb
from jaxwm.data.files import Episode
from jaxwm.envs import border, gym_spaces
from jaxwm.envs.border import Misfit
from jaxwm.replay import Ring, sample
from jaxwm.types import Box, Discrete, Mixed, MultiDiscrete, Record, Spec

SPACE = Mixed((2, 3), 2)


def aim(num_envs):
    """Reward for the first choice that the flag shows, less the distance of the vector from (0.5, -0.5)."""
    spec = Spec("my/Aim", jax.ShapeDtypeStruct((2,), jnp.bool_), SPACE, 4)

    def show(key, time):
        side = jax.random.randint(key, (), 0, 2)
        return (side, time), jnp.arange(2) == side

    def step(key, state, action):
        right = (action[0] == state[0]) - jnp.abs(action[2:] - jnp.array([0.5, -0.5])).sum()
        new, obs = show(key, state[1] + 1)
        return new, obs, right, False, state[1] + 1 >= 4

    return envs.from_functions(spec, lambda key: show(key, 0), step, num_envs)


def test_encoding_noise_and_sizes():
    action = jnp.array([[1.0, 2.0, 0.25, -1.0]])
    assert spaces.encode(SPACE, action).tolist() == [[0, 1, 0, 0, 1, 0.25, -1]]
    assert (spaces.action_size(SPACE), spaces.noise_size(SPACE)) == (7, 4)
    assert spaces.head_sizes(SPACE) == {"logits0": 2, "logits1": 3, "mean": 2, "std": 2}
    assert spaces.blank(SPACE, 5).shape == (5, 4) and spaces.blank(SPACE, 5).dtype == jnp.float32
    drawn = np.asarray(spaces.random_action(SPACE, jax.random.key(0), 500))
    assert set(drawn[:, 0]) == {0, 1} and set(drawn[:, 1]) == {0, 1, 2} and np.ptp(drawn[:, 2:]) > 1.9
    legal = jnp.array([[True, False, False, True, True]] * 500)
    drawn = np.asarray(spaces.random_action(SPACE, jax.random.key(0), 500, legal))
    assert set(drawn[:, 0]) == {0} and set(drawn[:, 1]) == {1, 2}
    mixed = np.asarray(disturb(SPACE, jnp.asarray(drawn), 0.5, jax.random.key(1), legal))
    assert set(mixed[:, 0]) == {0} and set(mixed[:, 1]) == {1, 2} and (mixed[:, 2:] != drawn[:, 2:]).any()


def test_a_policy_is_the_product_of_its_parts():
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = spaces.head_sizes(SPACE)
    out = {name: jax.random.normal(k, (50, n)) for k, (name, n) in zip(keys, sizes.items(), strict=True)}
    whole = action_distribution(SPACE, out)
    choices = action_distribution(MultiDiscrete(SPACE.n), out)
    vector = action_distribution(Box(2), out)
    action = whole.sample(jax.random.key(1))
    parts, numbers = spaces.separate(SPACE, action)
    np.testing.assert_allclose(whole.log_prob(action), choices.log_prob(parts) + vector.log_prob(numbers), rtol=1e-5)
    np.testing.assert_allclose(whole.entropy(), choices.entropy() + vector.entropy(), rtol=1e-5)
    np.testing.assert_allclose(whole.encoded(action), spaces.encode(SPACE, action), atol=1e-6)
    np.testing.assert_allclose(whole.mode()[:, :2], choices.mode())


NATIVE = gym.spaces.Dict(
    {
        "aim": gym.spaces.Box(-2.0, 4.0, (2,), np.float64),
        "keys": gym.spaces.MultiBinary(2),
        "pair": gym.spaces.Tuple((gym.spaces.Discrete(3, start=1), gym.spaces.Box(0, 9, (), np.int64))),
    }
)


class Pad(gym.Env):
    """An environment of gymnasium with a dict of actions, which it keeps."""

    def __init__(self):
        self.observation_space, self.action_space, self.taken = gym.spaces.Box(-1, 1, (1,)), NATIVE, []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_a_dict_of_actions_arrives_as_it_is_known_there():
    made = []
    env = envs.from_gymnasium(lambda seed: made.append(Pad()) or made[-1], 2)
    assert env.spec.action == Mixed((2, 2, 3), 3)
    handle, _ = env.reset(jax.random.split(jax.random.key(0), 1))
    action = np.array([[[1, 0, 2, -1, 1, 1], [0, 1, 0, 0, 7, -1]]], np.float32)
    env.step(handle, action)
    first, second = made[1].taken[0], made[2].taken[0]
    assert first["aim"].tolist() == [-2, 4] and first["keys"].tolist() == [1, 0]
    assert (int(first["pair"][0]), int(first["pair"][1])) == (3, 9)
    assert second["aim"].tolist() == [1, 4] and second["keys"].tolist() == [0, 1]  # clipped
    assert (int(second["pair"][0]), int(second["pair"][1])) == (1, 0)
    for wrong in (0.5, 2.0, -1.0):
        with pytest.raises(Misfit, match="outside of 0 to"):
            env.step(handle, np.concatenate([np.full((1, 2, 1), wrong, np.float32), action[..., 1:]], -1))


def test_composites_of_one_kind_are_plain():
    discrete = gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Discrete(4)))
    assert gym_spaces.action_space(discrete)[0] == MultiDiscrete((2, 4))
    box = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,)), b=gym.spaces.Box(0, 1, (3,)))
    ours, write = gym_spaces.action_space(box)
    assert ours == Box(5) and write(np.zeros((1, 5), np.float32))["b"].tolist() == [[0.5, 0.5, 0.5]]
    with pytest.raises(ValueError, match="the action 'a': an action space of kind Text is not supported"):
        gym_spaces.action_space(gym.spaces.Dict(a=gym.spaces.Text(3)))
    with pytest.raises(ValueError, match="nothing in it"):
        gym_spaces.action_space(gym.spaces.Dict())


def check_system(name, **options):
    """Acting, learning from what was acted, and dreaming; then what the environment would refuse."""
    env = aim(4)
    agent = agents.make(name, env.spec, **TINY[name], **options)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    step = agent.train_steps["all"]

    def live(state, key):
        def turn(carry, key):
            memory, handle, now = carry
            memory, action, extras = agent.act(state, memory, now, key, "explore")
            return (memory, *env.step(handle, action)), Record(*now, action, extras)

        start = agent.reset(state, 4), *env.reset(key)
        rows = jax.lax.scan(turn, start, jax.random.split(key, 20))[1]
        batch = sample(Ring(rows, jnp.asarray(20)), key, step.batch_size, step.length)
        new, _, metrics = step.update(state, batch, key)
        context = jax.tree.map(lambda x: x[:4].swapaxes(0, 1), rows)
        return rows, new, metrics, agent.imagine(state, context, None, key, 3)

    rows, new, metrics, dream = jax.jit(live)(state, jax.random.key(1))
    assert np.isfinite(list(metrics.values())).all()
    for action in (rows.action, dream.action):
        assert action.shape[-1] == 4 and action.dtype == jnp.float32
        assert set(np.unique(action[..., 0])) <= {0, 1} and set(np.unique(action[..., 1])) <= {0, 1, 2}
    old, new = (s.params["pol"]["params"] for s in (state, new))
    for head in ("logits0", "logits1", "std"):  # the mean has no gradient where all advantages are still 0
        assert (old[head]["kernel"] != new[head]["kernel"]).any(), head


@pytest.mark.slow
def test_dreamer_v3_acts_learns_and_dreams():
    check_system("dreamer-v3", warmup=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dreamer-v1", "dreamer-v2"])
def test_older_dreamers_act_learn_and_dream(name):
    check_system(name)


def test_other_systems_say_that_they_cannot():
    for name in ("muzero", "planet", "dyna-q"):
        with pytest.raises(ValueError, match=r"at once, as my/Aim asks: take dreamer-v"):
            agents.make(name, aim(1).spec)


def test_recordings_keep_mixed_actions(tmp_path):
    spec = aim(1).spec
    action = np.array([[1, 2, 0.5, -0.5], [0, 0, 1, 1]], np.float32)
    episode = Episode(np.eye(2, dtype=bool), np.zeros(2, np.float32), action, True)
    data.append(tmp_path / "r", spec, [episode])
    found = data.open_data(tmp_path / "r")
    assert found.spec.action == SPACE and found.read(0, 2).action[:, 0].tolist() == action.tolist()


def test_pure_environments_get_them_clipped_and_checked():
    sent = jnp.array([[1.0, 2.0, 5.0, jnp.nan]])
    assert border.traced_action(aim(1).spec, sent, (1,)).tolist() == [[1, 2, 1, 0]]
    with pytest.raises(Misfit, match=r"expected \(1, 4\)"):
        border.traced_action(aim(1).spec, sent[:, :3], (1,))
    with pytest.raises(ValueError, match="the size of Mixed"):
        Mixed((2,), 0)
    assert Spec("t/x", jax.ShapeDtypeStruct((1,), np.float32), Discrete(2)).action != SPACE
