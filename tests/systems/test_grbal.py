"""GrBAL: the adaptation by hand, windows that keep to an episode, what acting remembers, and motors that it must tell
apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs, spaces
from jaxwm.agents import grbal
from jaxwm.control import planning
from jaxwm.envs.known import KNOWN
from jaxwm.models import ensemble
from jaxwm.types import Batch, Box, Discrete, Record, Spec

SPEC = envs.make("continuous/Pendulum").spec
TINY = agents.settings(
    "grbal", units=8, layers=1, window=4, candidates=16, elites=4, iterations=2, plan_horizon=3, envs=2, trial=10,
    capacity=200, adapt_lr=0.5, adapt_steps=1, learn_adapt_lr=False,
)  # fmt: skip
NET = grbal.network(SPEC, TINY)


def model_of(seed: int):
    weights = NET.init(jax.random.key(seed), jnp.zeros((1, 4)))
    return {"net": weights, "factor": jax.tree.map(lambda _: jnp.zeros(()), weights)}


def some(seed: int, *shape: int) -> grbal.Transitions:
    keys = jax.random.split(jax.random.key(seed), 2)
    inputs, target = jax.random.normal(keys[0], (*shape, 4)), jax.random.normal(keys[1], (*shape, 3))
    return grbal.Transitions(inputs, target, jnp.ones(shape))


# --- The environment ----------------------------------------------------------------------------------------------


def test_with_a_gain_of_one_it_is_gymnasiums_pendulum():
    ours, theirs = envs.make("continuous/Pendulum", 8), envs.make("gymnax/Pendulum-v1", 8)
    (mine, first), (other, _) = ours.reset(jax.random.key(0)), theirs.reset(jax.random.key(1))
    angle, speed = other.state.theta, other.state.theta_dot
    mine = mine._replace(state=(jnp.stack([angle, speed], -1), *mine.state[1:]))
    actions = jax.random.uniform(jax.random.key(2), (20, 8, 1), minval=-1.5, maxval=1.5)
    play = lambda env, state: jax.jit(lambda state: jax.lax.scan(env.step, state, actions)[1])(state)  # noqa: E731
    a, b = play(ours, mine), play(theirs, other)
    np.testing.assert_allclose(a.obs, b.obs, atol=1e-4)
    np.testing.assert_allclose(a.reward, b.reward, atol=1e-3)
    assert first.obs.shape == (8, 3)


def test_gains_are_drawn_for_each_episode_and_may_be_negative():
    env = envs.make("continuous/Pendulum", 500, low=0.4, high=1.6, flip=0.25, max_steps=3)
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    gain = np.asarray(env.metrics(state)["gain"])
    assert (np.abs(gain) >= 0.4).all() and (np.abs(gain) <= 1.6).all() and np.std(np.abs(gain)) > 0.3
    assert 0.2 < (gain < 0).mean() < 0.3
    step, actions = jax.jit(env.step), jnp.ones((500, 1))
    place = state.state[0]
    state, after = step(state, actions)
    turned = 0.05 * (15 * jnp.sin(place[:, 0]) + 6 * gain)
    np.testing.assert_allclose(after.obs[:, 2], jnp.clip(place[:, 1] + turned, -8, 8), atol=1e-5)
    for _ in range(3):
        state, _ = step(state, actions)
    assert not np.allclose(env.metrics(state)["gain"], gain)
    with pytest.raises(ValueError, match="high"):
        envs.make("continuous/Pendulum", low=2.0, high=1.0)


# --- The adaptation -----------------------------------------------------------------------------------------------


def by_hand(weights, data: grbal.Transitions, rate: float):
    """One gradient step on a network with one hidden layer, in NumPy."""
    p = jax.tree.map(np.float64, weights["params"])
    first, last = p["mlp"]["linear0"], p["change"]
    x, y, w = (np.asarray(v, np.float64) for v in data)
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    error = hidden @ last["kernel"] + last["bias"] - y
    slope = 2 * error / error.shape[-1] * (w / w.sum())[:, None]
    back = (slope @ last["kernel"].T) * (hidden > 0)
    return {
        "mlp": {"linear0": {"kernel": first["kernel"] - rate * x.T @ back, "bias": first["bias"] - rate * back.sum(0)}},
        "change": {
            "kernel": last["kernel"] - rate * hidden.T @ slope,
            "bias": last["bias"] - rate * slope.sum(0),
        },
    }


def test_an_adaptation_is_a_gradient_step():
    """Of the mean squared error over what counts; a factor of the step size scales its weight's step alone."""
    model, data = model_of(0), some(1, 4)._replace(weight=jnp.array([1.0, 0, 1, 1]))
    found = jax.jit(lambda m: grbal.adapt(NET, TINY, m, data, jnp.float32(0.5)))(model)["params"]
    expected = by_hand(model["net"], data, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dict(found), expected)
    nothing = data._replace(weight=jnp.zeros(4))
    same = jax.jit(lambda m: grbal.adapt(NET, TINY, m, nothing, jnp.float32(0.5)))(model)
    jax.tree.map(np.testing.assert_array_equal, same, model["net"])


def test_the_loss_is_the_error_after_the_adaptation_and_its_gradient_goes_through_it():
    """Against differences in one direction; without the second order the gradient is another one."""
    model, data, rate = model_of(0), some(2, 3, 8), jnp.float32(0.5)
    loss = lambda config: jax.jit(  # noqa: E731
        jax.value_and_grad(lambda m: grbal.loss(NET, config, m, data, rate), has_aux=True)
    )(model)
    (total, (_, metrics)), slope = loss(TINY)
    each = []
    for b in range(3):
        past, future = (jax.tree.map(lambda x, b=b, part=part: x[b, part], data) for part in (slice(4), slice(4, 8)))
        each.append(
            grbal.squared_error(NET, {"params": jax.tree.map(jnp.float32, by_hand(model["net"], past, 0.5))}, future)
        )
    assert float(total) == pytest.approx(np.mean(each), rel=1e-5) == float(metrics["loss/after"])
    before = grbal.squared_error(NET, model["net"], jax.tree.map(lambda x: x[:, 4:], data)).mean()
    assert float(metrics["loss/before"]) == pytest.approx(float(before), rel=1e-5)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape), model["net"])
    moved = lambda h: model | {"net": jax.tree.map(lambda w, d: w + h * d, model["net"], direction)}  # noqa: E731
    value = jax.jit(lambda m: grbal.loss(NET, TINY, m, data, rate)[0])
    numeric = (value(moved(1e-3)) - value(moved(-1e-3))) / 2e-3
    along = lambda g: sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), g["net"], direction)))  # noqa: E731
    assert float(along(slope)) == pytest.approx(float(numeric), rel=0.02)
    first = loss(dataclasses.replace(TINY, second_order=False))[1]
    assert abs(float(along(first)) - float(numeric)) > 0.1 * abs(float(numeric))
    assert not any(np.any(x) for x in jax.tree.leaves(slope["factor"])), "factors learn where they are asked to"


def test_what_belongs_to_another_episode_weighs_nothing():
    first = jnp.array([[1, 0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0, 0]], bool)
    zero = jnp.zeros((2, 9))
    record = Record(jax.random.normal(jax.random.key(0), (2, 9, 3)), zero, first, first, first, zero[..., None], {})
    params = {"inputs": ensemble.unit(4), "targets": ensemble.unit(3)}
    data = grbal.windows(SPEC, TINY, params, record)
    assert data.weight.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]
    np.testing.assert_allclose(data.target, record.obs[:, 1:] - record.obs[:, :-1])
    np.testing.assert_array_equal(data.inputs[..., :3], record.obs[:, :-1])


# --- Acting -------------------------------------------------------------------------------------------------------


def test_it_adapts_once_enough_was_seen_and_forgets_between_episodes():
    agent = grbal.make(SPEC, TINY)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    still = state._replace(hyper=state.hyper | {"adapt_lr": jnp.float32(0)})
    act = jax.jit(lambda state, carry, step: agent.act(state, carry, step, jax.random.key(1), "greedy"))
    carry, step = agent.reset(state, 2), spaces.blank_step(SPEC, 2)
    for t in range(7):
        obs = jax.random.normal(jax.random.key(t), (2, 3)) * 3
        step = step._replace(obs=obs, is_first=jnp.array([t == 0, t in (0, 5)]))
        plain, (carry, action, _) = act(still, carry, step)[1], act(state, carry, step)
        adapted = np.asarray(carry.count) >= 4
        assert carry.count.tolist() == [min(t, 4), min(t, 4) if t < 5 else t - 5]
        assert (np.asarray(action != plain)[:, 0] <= adapted).all(), "before M transitions the model is as learned"
        if t == 4:
            assert (action != plain).any()
    assert not carry.inputs[1, :3].any() and carry.inputs[1, 3].any()
    np.testing.assert_array_equal(carry.obs, step.obs)


def test_random_shooting_takes_the_best_of_what_it_tries():
    planner = planning.shooting(2, 3, 4000)
    score = lambda plans, key: -jnp.square(plans[:, 0] - jnp.array([0.5, -0.25])).sum(-1)  # noqa: E731
    memory, action = jax.jit(lambda key: planner.plan(score, planner.start(), key))(jax.random.key(0))
    assert np.abs(action - np.array([0.5, -0.25])).max() < 0.05 and memory.mean.shape == (3, 2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec("t/Chosen", jax.ShapeDtypeStruct((3,), jnp.float32), Discrete(3)), "plans over continuous actions"),
        (Spec("t/Unknown", jax.ShapeDtypeStruct((3,), jnp.float32), Box(1)), "reward of t/Unknown is not known"),
    ],
)
def test_what_it_cannot_do_is_one_line(spec, words):
    with pytest.raises(ValueError, match=words):
        agents.make("grbal", spec)


# --- Learning -----------------------------------------------------------------------------------------------------


def played(num: int, length: int, key) -> Record:
    """Random play `[num, length]` of pendulums with motors of either direction."""
    env = envs.make("continuous/Pendulum", num, low=0.4, high=1.6, flip=0.5)

    def turn(carry, key):
        state, step = carry
        action = jax.random.uniform(key, (num, 1), minval=-1)
        return env.step(state, action), Record(*step, action, {})

    records = jax.lax.scan(turn, env.reset(key), jax.random.split(key, length))[1]
    return jax.tree.map(lambda x: x.swapaxes(0, 1), records)


def test_it_learns_to_tell_motors_apart():
    """After sixteen transitions of a pendulum that it has not met, the error is at most 0.7 of what it was."""
    config = agents.settings("grbal", envs=2, adapt_steps=1)
    agent = grbal.make(SPEC, config)

    @jax.jit
    def learned(key):
        data, new = played(64, 33, jax.random.key(0)), played(64, 33, jax.random.key(1))
        pairs = jax.tree.map(lambda x: jnp.stack([x[:, :-1], x[:, 1:]], 2).reshape(-1, 2, *x.shape[2:]), data)
        state = agent.init(key, agent.hyper)
        state = agent.train_steps["scale"].update(state, Batch(pairs, None, jnp.ones(len(pairs.reward))), key)[0]

        def update(state, key):
            rows = jax.random.randint(key, (config.meta_batch,), 0, 64)
            batch = Batch(jax.tree.map(lambda x: x[rows], data), None, jnp.ones(config.meta_batch))
            return agent.train_steps["model"].update(state, batch, key)[0], None

        state, _ = jax.lax.scan(update, state, jax.random.split(key, 400))
        window = grbal.windows(SPEC, config, state.params, new)
        net = grbal.network(SPEC, config)
        return grbal.loss(net, config, state.params["model"], window, state.hyper["adapt_lr"])[1][1]

    metrics = jax.device_get(learned(jax.random.key(2)))
    assert metrics["loss/after"] < 0.7 * metrics["loss/before"], metrics
    assert KNOWN["continuous/Pendulum"].reward is not None
