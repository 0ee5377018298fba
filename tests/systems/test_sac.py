"""Soft actor-critic: its losses by hand, on networks that NumPy works out too, and whose gradients go where."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents
from jaxwm.control import sac
from jaxwm.distributions import TanhNormal
from jaxwm.types import Batch, Box, Discrete, Index, Record, Spec

VECTOR = jax.ShapeDtypeStruct((3,), jnp.float32)
SPEC = Spec("own/Numbers", VECTOR, Box(2))
DISCOUNT, TARGET, ROWS = np.float32(0.9), -1.5, 5


# --- The policy ---------------------------------------------------------------------------------------------------


def test_squashed_normals_know_the_density_of_their_samples():
    """It integrates to 1, it is that of `log_prob` inside, and its gradient does not vanish near the bounds."""
    policy = TanhNormal(jnp.float32(0.4), jnp.float32(0.7))
    noise = np.linspace(-4, 4, 2001, dtype=np.float32)
    action, log_prob = jax.device_get(jax.jit(policy.scored)(noise))
    assert np.trapezoid(np.exp(log_prob), action) == pytest.approx(1, abs=1e-3)
    inside = np.abs(action) < 0.99
    np.testing.assert_allclose(log_prob[inside], policy.log_prob(action)[inside], atol=1e-3)
    slope = jax.jit(jax.grad(lambda mean: TanhNormal(mean, jnp.float32(0.1)).scored(jnp.float32(0.0))[1]))(8.0)
    assert slope == pytest.approx(2, abs=1e-3), "log(1 - tanh(u)^2) falls by 2 per unit of u"


# --- The losses ---------------------------------------------------------------------------------------------------


def test_values_targets_and_losses_are_the_papers():
    value, log_prob = np.array([[1.0, 3.0], [2.0, -1.0]], np.float32), np.array([-0.5, 2.0], np.float32)
    alpha, reward, ended = np.float32(0.2), np.array([0.5, 1.0], np.float32), np.array([0.0, 1.0], np.float32)
    soft = sac.soft_value(value, log_prob, alpha)
    np.testing.assert_allclose(soft, [1.1, -1.4], rtol=1e-6)
    target = sac.soft_target(reward, ended, soft, DISCOUNT)
    np.testing.assert_allclose(target, [0.5 + 0.9 * 1.1, 1.0], rtol=1e-6)
    each = 0.5 * ((1 - 1.49) ** 2 + (2 - 1.49) ** 2), 0.5 * ((3 - 1) ** 2 + (-1 - 1) ** 2)
    np.testing.assert_allclose(sac.critic_loss(value, target), each, rtol=1e-5)
    np.testing.assert_allclose(sac.actor_loss(value, log_prob, alpha), [-1.1, 1.4], rtol=1e-6)
    np.testing.assert_allclose(sac.temperature_loss(np.float32(0.3), log_prob, -1.0), [0.45, -0.3], rtol=1e-6)


def test_the_temperature_rises_where_entropy_is_below_its_target():
    slope = jax.jit(jax.grad(lambda a, log_prob: sac.temperature_loss(a, log_prob, TARGET)))
    assert slope(0.0, 2.0) < 0 < slope(0.0, 1.0), "entropies of -2 and -1, a target of -1.5"


def test_what_follows_an_episode_weighs_nothing_and_a_time_limit_is_no_end():
    """Pairs: inside, into a true end, into a time limit, out of an end, across a reset."""
    flags = np.zeros((5, 2), bool)
    first, last, terminal = flags.copy(), flags.copy(), flags.copy()
    last[[1, 2], 1] = terminal[1, 1] = True
    last[3, 0] = first[[3, 4], 1] = True
    obs = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    reward = np.arange(10, dtype=np.float32).reshape(5, 2)
    record = Record(obs, reward, first, last, terminal, np.zeros((5, 2, 2), np.float32), {})
    found = sac.transitions(SPEC, Batch(record, Index(np.arange(5), np.zeros(5)), np.ones(5)))
    np.testing.assert_array_equal(found.weight, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.ended, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.reward, reward[:, 1])
    np.testing.assert_array_equal(found.after, obs[:, 1])


# --- The whole of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    """Networks, their parameters, target critics, transitions and noise."""
    nets = sac.networks(SPEC, 1, 4)
    params, slow = jax.jit(lambda: (nets.init(jax.random.key(0)), nets.init(jax.random.key(1))["critic"]))()
    params["alpha"] = jnp.float32(-0.7)
    rng = np.random.default_rng(0)
    numbers = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    action, ended = np.tanh(numbers(ROWS, 2)), np.array([0, 1, 0, 0, 1], np.float32)
    weight = np.array([1, 1, 0, 1, 1], np.float32)
    data = sac.Transition(numbers(ROWS, 3), action, numbers(ROWS), numbers(ROWS, 3), ended, weight)
    return nets, params, slow, data, numbers(2, ROWS, 2)


def layer(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def drawn(params, obs, noise):
    params = params["params"]
    hidden = np.maximum(layer(params["mlp"]["linear0"], obs), 0)
    raw = layer(params["mean"], hidden) + np.exp(log_std := np.clip(layer(params["std"], hidden), -20, 2)) * noise
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - np.log(1 - np.tanh(raw) ** 2)
    return np.tanh(raw), density.sum(-1)


def valued(params, obs, action):
    out = []
    for q in range(2):
        one = jax.tree.map(lambda x, q=q: x[q], params["params"])
        hidden = np.maximum(layer(one["mlp"]["linear0"], np.concatenate([obs, action], -1)), 0)
        out.append(layer(one["value"], hidden)[:, 0])
    return np.stack(out)


def test_the_loss_is_that_of_numpy(case):
    nets, params, slow, data, noise = case
    total, (_, metrics) = jax.jit(lambda p: sac.loss(nets, p, slow, data, noise, DISCOUNT, TARGET))(params)
    alpha = math.exp(-0.7)
    after, log_after = drawn(params["actor"], data.after, noise[1])
    backup = data.reward + 0.9 * (1 - data.ended) * (valued(slow, data.after, after).min(0) - alpha * log_after)
    action, log_prob = drawn(params["actor"], data.obs, noise[0])
    mean = lambda x: (x * data.weight).sum() / data.weight.sum()  # noqa: E731
    expected = {
        "loss/critic": mean(0.5 * ((valued(params["critic"], data.obs, data.action) - backup) ** 2).sum(0)),
        "loss/actor": mean(alpha * log_prob - valued(params["critic"], data.obs, action).min(0)),
        "loss/alpha": mean(0.7 * (log_prob + TARGET)),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-4), name
    assert float(total) == pytest.approx(sum(expected.values()), rel=1e-4)
    assert float(metrics["entropy"]) == pytest.approx(-mean(log_prob), rel=1e-4)


def test_each_component_follows_its_own_loss(case):
    nets, params, slow, data, noise = case

    def gradient(name):
        part = lambda p: sac.loss(nets, p, slow, data, noise, DISCOUNT, TARGET)[1][1][f"loss/{name}"]  # noqa: E731
        return jax.grad(part)(params)

    whole = jax.jit(jax.grad(lambda p: sac.loss(nets, p, slow, data, noise, DISCOUNT, TARGET)[0]))(params)
    each = jax.jit(lambda: {name: gradient(name) for name in sac.PARTS})()
    for name in sac.PARTS:
        assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(each[name][name])), name
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole[name], each[name][name])
        for other in set(sac.PARTS) - {name}:
            assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(each[name][other])), (name, other)


def test_target_critics_follow_by_tau():
    agent = agents.make("sac", SPEC, units=4, layers=1, tau=0.25, batch_size=2)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    jax.tree.map(np.testing.assert_array_equal, state.slow, state.params["critic"])
    flags = np.zeros((2, 2), bool)
    record = Record(np.ones((2, 2, 3), np.float32), np.ones((2, 2), np.float32), flags, flags, flags,
                    np.zeros((2, 2, 2), np.float32), {})  # fmt: skip
    after, metrics = jax.jit(agent.train_step)(state, Batch(record, Index(np.arange(2), np.zeros(2)), np.ones(2)),
                                               jax.random.key(1))  # fmt: skip
    expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, after.params["critic"], state.slow)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.slow, expected)
    assert np.isfinite([float(x) for x in metrics.values()]).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("own/Discrete", VECTOR, Discrete(2)), "continuous actions .Box.; own/Discrete has"),
        (Spec("own/Image", jax.ShapeDtypeStruct((64, 64, 3), np.uint8), Box(1)), "sac sees vectors of floats"),
    ],
)
def test_environments_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        agents.make("sac", spec)
