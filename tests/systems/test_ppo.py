"""Proximal policy optimisation: advantages and losses by hand, and which rows an update sees how often."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import agents
from jaxwm.agents.ppo import Config, as_rows
from jaxwm.control import ppo
from jaxwm.learning.step import fresh_state
from jaxwm.types import Record

GAMMA, LAM = 0.9, 0.8


# --- Advantages ---------------------------------------------------------------------------------------------------


def episodes(seed=0, length=12, streams=3):
    """Rewards, values, flags `[T + 1, N]`: stream 0 has no end, 1 a true end, 2 a time limit."""
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, length + 1, streams)).astype(np.float32)
    last, terminal = np.zeros((2, length + 1, streams), bool)
    last[5, 1:] = terminal[5, 1] = True
    return reward, value, last, terminal


def by_hand(reward, value, last, terminal):
    """The sum of (gamma lam)^i delta_{t + i} (eq. 11 and 12) until an episode ends, one stream and step at a time."""
    steps, streams = reward.shape[0] - 1, reward.shape[1]
    out = np.zeros((steps, streams))
    for n in range(streams):
        for t in range(steps):
            weight = 1.0
            for i in range(t, steps):
                future = 0.0 if terminal[i + 1, n] else GAMMA * value[i + 1, n]
                out[t, n] += weight * (reward[i + 1, n] + future - value[i, n])
                if last[i + 1, n]:
                    break
                weight *= GAMMA * LAM
    return out


def test_advantages_are_the_papers_up_to_the_end_of_an_episode():
    reward, value, last, terminal = episodes()
    found = jax.jit(ppo.advantages)(reward, value, np.float32(GAMMA) * ~terminal, last, LAM)
    kept = ~last[:-1]  # what follows the last step of an episode is a reset
    np.testing.assert_allclose(np.asarray(found)[kept], by_hand(reward, value, last, terminal)[kept], atol=1e-5)


def test_rows_pair_what_was_seen_with_what_followed():
    reward, value, last, terminal = episodes()
    places = np.arange(reward.size, dtype=np.float32).reshape(reward.shape)
    first = np.roll(last, 1, 0)
    extras = {"raw": places.astype(np.int32), "log_prob": -places, "value": value}
    record = Record(places[..., None], reward, first, last, terminal, places.astype(np.int32), extras)
    batch = jax.tree.map(lambda x: x.swapaxes(0, 1), record)
    rows = jax.device_get(jax.jit(as_rows)(batch, np.float32(GAMMA), LAM))
    assert len(rows.log_prob) == 36
    np.testing.assert_array_equal(rows.obs[:, 0], places[:-1].ravel())
    np.testing.assert_array_equal(rows.log_prob, -rows.obs[:, 0])
    np.testing.assert_array_equal(rows.action, rows.obs[:, 0])
    np.testing.assert_array_equal(rows.weight == 0, last[:-1].ravel())
    kept = rows.weight > 0
    expected = by_hand(reward, value, last, terminal).ravel()
    np.testing.assert_allclose(rows.advantage[kept], expected[kept], atol=1e-5)
    np.testing.assert_allclose(rows.returns, rows.advantage + rows.value, atol=1e-6)


# --- Losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "moves"),
    [(1.0, 2.0, 2.0, True), (1.5, 2.0, 2.4, False), (0.5, 2.0, 1.0, True), (0.5, -2.0, -1.6, False),
     (1.5, -2.0, -3.0, True)],
)  # fmt: skip
def test_the_clipped_surrogate_is_equation_7(ratio, advantage, gain, moves):
    """Beyond 1 +- 0.2 nothing is gained by going further in the direction of the advantage."""
    log_ratio, zero = jnp.log(jnp.float32([ratio])), jnp.zeros(1)
    fn = jax.jit(jax.value_and_grad(lambda x: ppo.clipped_surrogate(x, zero, jnp.float32([advantage]), 0.2).sum()))
    found, slope = fn(log_ratio)
    assert float(found) == pytest.approx(gain, rel=1e-5)
    assert bool(slope[0] != 0) == moves


def test_values_are_clipped_on_request():
    value, old, returns = np.array([[1.0, 1.0, 0.1], [0.0, 0.0, 0.0], [2.0, -2.0, 1.0]], np.float32)
    np.testing.assert_allclose(ppo.value_loss(value, old, returns), 0.5 * (value - returns) ** 2)
    near = np.array([0.2, 0.2, 0.1])
    worst = 0.5 * np.maximum((value - returns) ** 2, (near - returns) ** 2)
    np.testing.assert_allclose(ppo.value_loss(value, old, returns, 0.2), worst, rtol=1e-5)


def test_the_loss_is_equation_9_of_rows_that_count():
    rng = np.random.default_rng(0)
    log_prob, old, advantage, value, before, returns, entropy = rng.normal(size=(7, 6)).astype(np.float32) / 2
    weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
    rows = ppo.Rows(np.zeros((6, 1)), np.zeros(6), old, before, advantage, returns, weight)
    how = ppo.Settings(0.2, 0.5, 0.01, 1, 1)
    total, (_, metrics) = jax.jit(lambda: ppo.loss(ppo.Outputs(log_prob, entropy, value), rows, how))()
    ratio, mean = np.exp(log_prob - old), lambda x: (x * weight).sum() / weight.sum()
    gain = mean(np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
    expected = -gain + 0.5 * mean(0.5 * (value - returns) ** 2) - 0.01 * mean(entropy)
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["clipped"]) == pytest.approx(mean(np.abs(ratio - 1) > 0.2), abs=1e-6)
    scaled = np.asarray(jax.jit(ppo.standardised)(advantage, weight))
    assert mean(scaled) == pytest.approx(0, abs=1e-5) and mean(scaled**2) == pytest.approx(1, abs=1e-4)


# --- Epochs -------------------------------------------------------------------------------------------------------


def test_every_epoch_sees_each_row_once():
    """A network whose value is a number of its own for each row: its error's gradient counts the visits."""
    count, epochs, many = 12, 3, 4
    zeros = jnp.zeros(count)
    rows = ppo.Rows(jnp.arange(count), jnp.arange(count), zeros, zeros, zeros, zeros + 1, zeros + 1)

    def network(params, obs, action):
        none, own = jnp.zeros(len(obs)), params["w"][obs]
        return ppo.Outputs(none, none, own - jax.lax.stop_gradient(own))

    sgd = optax.identity()
    params = {"w": jnp.zeros(count)}
    state = fresh_state(params, sgd.init(params), {})
    how = ppo.Settings(0.2, 1.0, 0.0, epochs, many)
    run = jax.jit(lambda state, key: ppo.optimise(network, state, rows, how, sgd, jnp.float32(1.0), key))
    after, metrics = run(state, jax.random.key(0))
    # the value is always 0 and the return 1: every visit moves a row's number by 1 / (rows of a minibatch)
    np.testing.assert_allclose(after.params["w"], epochs / (count / many), rtol=1e-5)
    assert int(after.step) == epochs * many and float(metrics["loss/value"]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="12 rows cannot be split into 5 minibatches"):
        ppo.optimise(network, state, rows, how._replace(minibatches=5), sgd, jnp.float32(1.0), jax.random.key(0))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="minibatches must divide the 128 steps of an update"):
        Config(envs=4, horizon=32, minibatches=5)
    with pytest.raises(ValueError, match=r"capacity must be .* at least 132"):
        Config(envs=4, horizon=32, capacity=128)
    assert agents.settings("ppo", "atari").lr_decay_updates > 0
