"""Action masks and policies: illegal actions have no probability, in acting and in what is dreamed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

from jaxwm import agents, envs
from jaxwm.control.policy import action_distribution
from jaxwm.distributions import IMPOSSIBLE, one_hot
from jaxwm.nets.sensors import MASK, with_mask
from jaxwm.spaces import random_action
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Discrete, MultiDiscrete, Record, Spec


def test_illegal_classes_have_no_probability():
    rng = np.random.default_rng(0)
    legal = rng.uniform(size=(64, 5)) < 0.4
    legal[:, 2] |= ~legal.any(1)
    dist = one_hot(jnp.asarray(rng.normal(size=(64, 5)) * 20), 0.1, jnp.asarray(legal))
    probs = np.asarray(dist.probs)
    assert (probs[~legal] == 0).all() and (probs[legal] >= 0.099 / legal.sum(1).max()).all()
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    for uniform in (0.0, 0.5, 1 - 2**-24, 1.0):  # the ends, and beyond
        assert legal[np.arange(64), np.asarray(dist.invert(jnp.full(64, uniform)))].all()
    assert legal[np.arange(64), np.asarray(dist.mode())].all() and np.isfinite(dist.entropy()).all()


def test_masked_policies_have_finite_gradients():
    """Also where an action is illegal, as in recordings of another policy."""
    legal = jnp.array([[True, False, True]])

    def loss(logits):
        policy = action_distribution(Discrete(3), {"logits0": logits}, 0.01, legal)
        return policy.log_prob(jnp.array([1])).sum() + policy.log_prob(jnp.array([0])).sum() + policy.entropy().sum()

    value, grad = jax.value_and_grad(loss)(jnp.array([[300.0, 5.0, -300.0]]))
    assert np.isfinite(value) and value < IMPOSSIBLE / 2 and np.isfinite(grad).all()


def test_random_choices_obey_the_mask_of_each():
    legal = jnp.array([[False, True, True, False, False]] * 200)
    action = np.asarray(random_action(MultiDiscrete((2, 3)), jax.random.key(0), 200, legal))
    assert (action[:, 0] == 1).all() and (action[:, 1] == 0).all()
    legal = jnp.array([[False, False, True, False, True]] * 200)  # nothing for the first choice: anything
    action = np.asarray(random_action(MultiDiscrete((2, 3)), jax.random.key(0), 200, legal))
    assert set(action[:, 0]) == {0, 1} and set(action[:, 1]) == {0, 2}


def gates(num_envs):
    """The observation is 0, 1 or 2, drawn anew each step; only that action is legal, and any other one costs 1."""
    obs = {"place": jax.ShapeDtypeStruct((3,), jnp.bool_), "legal": jax.ShapeDtypeStruct((3,), jnp.bool_)}
    spec = Spec("my/Gates", obs, Discrete(3), 6)

    def show(key, time):
        place = jax.random.randint(key, (), 0, 3)
        return (place, time), {"place": jnp.arange(3) == place, "legal": jnp.arange(3) == place}

    def step(key, state, action):
        place, time = state
        new, obs = show(key, time + 1)
        return new, obs, jnp.where(action == place, 0.0, -1.0), False, time + 1 >= 6

    return envs.from_functions(spec, lambda key: show(key, 0), step, num_envs)


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        pytest.param("dreamer-v1", ["explore"], marks=pytest.mark.slow),
        pytest.param("dreamer-v2", ["greedy"], marks=pytest.mark.slow),
        ("dreamer-v3", ["explore"]),
    ],
)
def test_dreamers_act_and_dream_within_the_mask(name, modes):
    """Untrained: no illegal action, and the decoder has a prediction of the mask, by which dreams are cut."""
    env = gates(8)
    agent = agents.make(name, env.spec, **TINY[name])
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)

    def play(mode):
        def turn(carry, key):
            memory, handle, step = carry
            memory, action, extras = agent.act(state, memory, step, key, mode)
            return (memory, *env.step(handle, action)), (Record(*step, action, extras))

        start = agent.reset(state, 8), *env.reset(jax.random.key(1))
        return jax.lax.scan(turn, start, jax.random.split(jax.random.key(2), 12))[1]

    for mode in modes:
        records = jax.jit(lambda mode=mode: play(mode))()
        legal = np.take_along_axis(np.asarray(records.obs["legal"]), np.asarray(records.action)[..., None], -1)
        assert legal.all(), mode
    context = jax.tree.map(lambda x: x[:3].swapaxes(0, 1), records)
    dream = jax.jit(lambda: agent.imagine(state, context, None, jax.random.key(3), 5))()
    assert dream.action.shape == (8, 5) and "legal" not in dream.obs
    assert MASK in with_mask(env.spec.obs) and f"out_{MASK}" in str(jax.tree.map(jnp.shape, state.params["dec"]))


@pytest.mark.slow
def test_dreamer_learns_what_is_legal_and_dreams_it():
    """After some updates the decoder knows the mask, and no dreamed action leaves it."""
    env = gates(4)
    agent = agents.make("dreamer-v3", env.spec, "nano", prefill=64, batch_size=8, train_ratio=40.0)
    trainer = Trainer(agent, env, capacity=2000)
    life, cursor = trainer.init(0), Cursor()
    for _ in range(3):
        life, cursor, _ = trainer.run(life, cursor, 100)
    state = jax.tree.map(lambda x: x[0], life.agent)
    rows = jax.tree.map(lambda x: x[0, 20:24].swapaxes(0, 1), life.ring.data)
    dream = jax.jit(lambda: agent.imagine(state, rows, None, jax.random.key(0), 4))()
    place = np.asarray(dream.obs["place"])[:, :-1].argmax(-1)
    assert (np.asarray(dream.action)[:, 1:] == place).mean() > 0.9
