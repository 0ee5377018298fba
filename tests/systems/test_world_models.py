"""World Models: densities, cells and sizes by independent numbers, dreams whose best controller is known, real runs."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import same
from toys import blinking
from worlds import check_step, check_stream, host_roll

from jaxwm import agents, envs, replay
from jaxwm.agents import world_models
from jaxwm.cli import main
from jaxwm.control.evolution import cma_es
from jaxwm.distributions import Mixture, mixture
from jaxwm.models.mdn_rnn import MDNRNN, LSTMState
from jaxwm.nets import strided
from jaxwm.nets.layers import apply
from jaxwm.run.json_files import read_jsonl
from jaxwm.types import Batch, Box, Discrete, Index, MultiDiscrete, Record, Spec, Step

IMAGE = jax.ShapeDtypeStruct((64, 64, 3), np.uint8)
TINY = dict(
    codes=3, depth=1, units=4, envs=4, random_steps=160, vision_updates=2, vision_batch=4, memory_updates=2,
    memory_batch=4, memory_length=6, generations=2, population=4, rollouts=3, dream_length=12, capacity=1000,
)  # fmt: skip


# --- Convolutions -------------------------------------------------------------------------------------------------


def test_strided_convolutions_are_those_of_lax():
    names = ("NHWC", "HWIO", "NHWC")
    k_x, k_w = jax.random.split(jax.random.key(0))
    for side in (14, 31):
        x, kernel = jax.random.normal(k_x, (2, side, side, 3)), jax.random.normal(k_w, (4, 4, 3, 5))
        expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=names)
        np.testing.assert_allclose(strided.shrink(x, kernel), expected, atol=1e-4)
    for side, width in ((1, 5), (5, 5), (13, 6)):
        x, kernel = jax.random.normal(k_x, (2, side, side, 3)), jax.random.normal(k_w, (width, width, 3, 5))
        expected = jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=names)
        np.testing.assert_allclose(strided.grow(x, kernel), expected, atol=1e-4)


# --- Mixture density ----------------------------------------------------------------------------------------------


def test_log_likelihood_of_a_mixture():
    rng = np.random.default_rng(0)
    logits, mean, log_std = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
    value = rng.normal(size=(2, 4)).astype(np.float32)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    std = np.exp(log_std)
    density = (share * np.exp(-0.5 * ((value[..., None] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))).sum(-1)
    found = Mixture(logits, mean, log_std).log_prob(value)
    np.testing.assert_allclose(found, np.log(density), rtol=1e-4)
    raw = np.stack([logits, mean, log_std], 1).reshape(2, -1)  # [B, 3 * Z * K]
    np.testing.assert_allclose(mixture(raw, 5).log_prob(value), np.log(density), rtol=1e-4)
    narrow = mixture(jnp.full((1, 3), -50.0), 1)
    assert narrow.log_std[0, 0, 0] == -5, "a mixture cannot become a point"


def test_samples_follow_the_mixture_and_its_temperature():
    one = Mixture(jnp.log(jnp.array([0.2, 0.8])), jnp.array([-5.0, 5.0]), jnp.log(jnp.array([0.5, 1.0])))
    noise = world_models.dream_noise(jax.random.key(0), (20_000,))
    for temperature in (0.25, 1.0, 2.0):
        odds = np.array([0.2, 0.8]) ** (1 / temperature)
        odds /= odds.sum()
        values = np.asarray(one.tempered(temperature).pick(*noise))
        low, high = values[values < 0], values[values > 0]
        assert len(low) / len(values) == pytest.approx(odds[0], abs=0.01)
        assert high.mean() == pytest.approx(5.0, abs=0.05)
        assert high.std() == pytest.approx(1.0 * temperature**0.5, rel=0.03)
        if temperature >= 1:
            assert low.std() == pytest.approx(0.5 * temperature**0.5, rel=0.05)


# --- LSTM ---------------------------------------------------------------------------------------------------------


def test_the_cell_is_an_lstm_and_starts_anew_with_each_episode():
    net = MDNRNN(codes=2, actions=1, units=3, mixtures=2)
    rng = np.random.default_rng(0)
    code, action = rng.normal(size=(1, 6, 2)).astype(np.float32), rng.normal(size=(1, 6, 1)).astype(np.float32)
    params = net.init(jax.random.key(0), code[:, 0], action[:, 0])
    first = np.zeros((1, 6), bool)
    first[0, [0, 4]] = True
    last, hidden = apply(net, params, net.initial(1), code, action, first, method="unroll")
    kernel, bias = (np.asarray(params["params"]["gates"][name]) for name in ("kernel", "bias"))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    h = c = np.zeros(3)
    for t in range(6):
        if first[0, t]:
            h = c = np.zeros(3)
        gates = np.concatenate([code[0, t], action[0, t], [first[0, t]], h]) @ kernel + bias
        new, keep, fresh, out = np.split(gates, 4)
        c = sigmoid(keep + 1) * c + sigmoid(new) * np.tanh(fresh)
        h = sigmoid(out) * np.tanh(c)
        np.testing.assert_allclose(hidden[0, t], h, atol=1e-5)
    np.testing.assert_allclose(last.cell[0], c, atol=1e-5)
    guess = apply(net, params, hidden, method="predict")
    assert guess.code.mean.shape == (1, 6, 2, 2) and guess.done.shape == (1, 6) and guess.reward is None


# --- Sizes --------------------------------------------------------------------------------------------------------


def count(tree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("preset", "action", "vision", "memory", "controller"),
    [("carracing", Box(3), 4_348_547, 422_368, 867), ("takecover", Discrete(3), 4_446_915, 1_678_785, 1_088)],
)
def test_published_sizes(preset, action, vision, memory, controller):
    """The tables in appendices A.1 to A.3 of the paper."""
    config = world_models.PRESETS[preset]
    nets = world_models.Networks(Spec("my/Game", IMAGE, action), config)
    params = jax.eval_shape(lambda: nets.init(jax.random.key(0)))
    assert {name: count(part) for name, part in params.items()} == {
        "vision": vision, "memory": memory, "controller": controller,
    }  # fmt: skip
    assert world_models.PRESETS["takecover"] == world_models.Config()


# --- Evolution ----------------------------------------------------------------------------------------------------


def test_evolution_finds_the_top_of_a_hill():
    goal, scale = jnp.array([1.0, -2.0, 3.0, 0.5]), jnp.array([1.0, 10.0, 0.1, 1.0])
    evolution = cma_es(12, 4, std=0.1)
    start = evolution.init(jax.random.key(0), jnp.zeros(4))
    assert start.mean.tolist() == [0.0] * 4 and float(start.std) == pytest.approx(0.1)

    def generation(state, key):
        candidates, state = evolution.ask(key, state)
        fitness = 5 - (scale * jnp.square(candidates - goal)).sum(-1)
        return evolution.tell(key, candidates, fitness, state), fitness.max()

    state, best = jax.jit(lambda s: jax.lax.scan(generation, s, jax.random.split(jax.random.key(1), 150)))(start)
    np.testing.assert_allclose(state.mean, goal, atol=1e-2)
    assert best[0] < 0 and best[-1] == pytest.approx(5, abs=1e-3)


# --- Actions ------------------------------------------------------------------------------------------------------


class Made:
    """An agent with its networks; what has to be compiled is, when it is asked for."""

    def __init__(self, action, options):
        spec = Spec("my/Game", IMAGE, action)
        self.config = agents.settings("world-models", "takecover-small", **(TINY | options))
        self.agent, self.nets = world_models.make(spec, self.config), world_models.Networks(spec, self.config)
        self.update = {name: jax.jit(step.update) for name, step in self.agent.train_steps.items()}

    @functools.cached_property
    def state(self):
        return jax.jit(self.agent.init)(jax.random.key(0), self.agent.hyper)


@functools.cache
def agent_of(action=Discrete(3), **options) -> Made:
    return Made(action, options)


def test_one_output_is_cut_into_equal_parts():
    nets = agent_of().nets
    output = jnp.array([-1.0, -0.34, -0.33, 0.0, 0.33, 0.34, 1.0])[:, None]
    assert nets.as_action(output).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert nets.as_numbers(jnp.array([0, 1, 2])).tolist() == [[-1.0], [0.0], [1.0]]
    box = agent_of(Box(2)).nets
    np.testing.assert_allclose(box.as_action(jnp.array([[0.3, -1.0]])), [[0.3, -1.0]])


def test_the_controller_is_linear_in_code_and_state():
    one, rng = agent_of(Box(2), bias=True), np.random.default_rng(0)
    weights = rng.normal(size=(5, 1, one.nets.weights)).astype(np.float32)
    z, h, c = rng.normal(size=(5, 7, 3)), rng.normal(size=(5, 7, 4)), rng.normal(size=(5, 7, 4))
    assert one.nets.weights == (3 + 4 + 4 + 1) * 2
    found = one.nets.control(jnp.asarray(weights), jnp.asarray(z), LSTMState(jnp.asarray(h), jnp.asarray(c)))
    for p in range(5):
        kernel, bias = weights[p, 0, :22].reshape(11, 2), weights[p, 0, 22:]
        expected = np.tanh(np.concatenate([z[p], h[p], c[p]], -1) @ kernel + bias)
        np.testing.assert_allclose(found[p], expected, atol=1e-4)


def step_of(num: int, first: bool) -> Step:
    obs = jnp.zeros((num, 64, 64, 3), jnp.uint8)
    no = jnp.zeros(num, bool)
    return Step(obs, jnp.zeros(num), no | first, no, no)


def test_random_play_keeps_its_actions_for_a_while():
    one = agent_of(repeat=4)
    act = jax.jit(lambda carry, key: one.agent.act(one.state, carry, step_of(500, False), key, "random"))
    carry, last = one.agent.reset(one.state, 500), None
    changes = []
    for t in range(40):
        carry, action, extras = act(carry, jax.random.key(t))
        if last is not None and t > 10:
            changes.append(np.mean(last != action))
        last = np.asarray(action)
    assert np.mean(changes) == pytest.approx(1 / 4 * 2 / 3, abs=0.01)  # a third of new actions is the old one
    assert np.bincount(last, minlength=3) / 500 == pytest.approx(1 / 3, abs=0.08)
    assert not np.asarray(extras["mean"]).any()
    fresh = one.agent.act(one.state, carry, step_of(500, True), jax.random.key(0), "random")[1]
    assert np.bincount(fresh, minlength=3) / 500 == pytest.approx(1 / 3, abs=0.08)


def test_extras_have_one_structure_and_candidates_play_for_real():
    one = agent_of(real=True, population=4, rollouts=1, done=False, envs=4)
    shapes = []
    for mode in ("random", "explore", "greedy"):
        carry = one.agent.reset(one.state, 4)
        out = jax.eval_shape(
            lambda m=mode, c=carry: one.agent.act(one.state, c, step_of(4, True), jax.random.key(0), m)
        )
        shapes.append(out)
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0][1] == jax.ShapeDtypeStruct((4,), jnp.int32) and shapes[0][2]["mean"].shape == (4, 3)
    loud = jnp.zeros((4, one.nets.weights)).at[0].set(50.0).at[3].set(-50.0)
    memory = one.state.memory._replace(candidates=loud)
    params = jax.tree.map(lambda x: x, one.state.params)
    params["vision"]["params"]["mean"]["bias"] = jnp.full(3, 5.0)
    params["vision"]["params"]["log_var"]["bias"] = jnp.full(3, -20.0)
    state = one.state._replace(memory=memory, params=params)
    act = jax.jit(one.agent.act, static_argnums=4)
    play = lambda mode: act(state, one.agent.reset(state, 4), step_of(4, True), jax.random.key(0), mode)[1]  # noqa: E731
    assert play("explore").tolist() == [2, 1, 1, 0] and play("greedy").tolist() == [1, 1, 1, 1]


# --- Learning by hand ---------------------------------------------------------------------------------------------


def record_of(length: int, batch: int = 2, seed: int = 0, **fields) -> Record:
    rng = np.random.default_rng(seed)
    no = jnp.zeros((batch, length), bool)
    extras = {name: jnp.asarray(rng.normal(size=(batch, length, 3)), jnp.float32) for name in ("mean", "log_var")}
    obs = jnp.asarray(rng.integers(0, 255, (batch, length, 64, 64, 3)), jnp.uint8)
    base = Record(obs, jnp.zeros((batch, length)), no, no, no, jnp.zeros((batch, length), jnp.int32), extras)
    return base._replace(**fields)


def batch_of(record: Record) -> Batch:
    rows = jnp.arange(len(record.reward))
    return Batch(record, Index(rows, rows), jnp.ones(len(rows)))


def test_loss_of_the_autoencoder():
    one = agent_of()
    image = record_of(1).obs
    key = jax.random.key(3)
    state, _, metrics = one.update["vision"](one.state, batch_of(record_of(1)), key)
    codes = one.nets.encode(one.state.params, image[:, 0])
    mean, log_var = np.asarray(codes["mean"]), np.asarray(codes["log_var"])
    code = mean + np.exp(log_var / 2) * np.asarray(jax.random.normal(key, (2, 3)))
    painted = np.asarray(apply(one.nets.vision, one.state.params["vision"], jnp.asarray(code), method="decode"))
    error = ((painted - np.asarray(image[:, 0]) / 255) ** 2).sum((1, 2, 3)).mean()
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1).sum(-1)
    assert float(metrics["squared_error"]) == pytest.approx(error, rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(kl.mean(), rel=1e-3)
    assert float(metrics["loss"]) == pytest.approx(error + np.maximum(kl, 0.5 * 3).mean(), rel=1e-4)
    assert same(state.params["memory"], one.state.params["memory"])
    assert not same(state.params["vision"], one.state.params["vision"])


def test_loss_of_the_memory_counts_transitions_inside_episodes():
    one = agent_of(reward=True)
    flags = jnp.zeros((2, 4), bool)
    first, end, action = flags.at[0, 2].set(True), flags.at[1, 3].set(True), jnp.array([[0, 1, 2, 0]] * 2)
    reward = jnp.arange(8.0).reshape(2, 4)
    record = record_of(4, is_first=first, is_terminal=end, action=action, reward=reward)
    key = jax.random.key(5)
    _, _, metrics = one.update["memory"](one.state, batch_of(record), key)
    noise = np.asarray(jax.random.normal(key, (2, 4, 3)))
    code = np.asarray(record.extras["mean"]) + np.exp(np.asarray(record.extras["log_var"]) / 2) * noise
    nets, params = one.nets, one.state.params
    losses = {"code": [], "done": [], "reward": []}
    for b in range(2):
        lstm = nets.memory.initial(1)
        for t in range(3):
            action = nets.as_numbers(record.action[b, t : t + 1])
            lstm = nets.advance(params, lstm, jnp.asarray(code[b, t : t + 1]), action, record.is_first[b, t : t + 1])
            if (b, t + 1) == (0, 2):
                continue  # what follows is another episode
            guess = nets.predict(params, lstm.hidden)
            losses["code"].append(-float(guess.code.log_prob(jnp.asarray(code[b, t + 1]))[0].mean()))
            chance = 1 / (1 + np.exp(-float(guess.done[0])))
            end = bool(record.is_terminal[b, t + 1])
            losses["done"].append(-10 * np.log(chance) if end else -np.log(1 - chance))
            losses["reward"].append((float(guess.reward[0]) - float(record.reward[b, t + 1])) ** 2)
    for name, each in losses.items():
        assert len(each) == 5 and float(metrics[f"loss/{name}"]) == pytest.approx(np.mean(each), rel=1e-3)
    assert float(metrics["loss"]) == pytest.approx(sum(np.mean(each) for each in losses.values()), rel=1e-3)


def ring_of(rows: int, num_envs: int, capacity: int, firsts) -> replay.Ring:
    """A ring whose images and rewards tell the row they were written in."""
    one = record_of(1, num_envs)
    example = jax.tree.map(lambda x: x[:, 0], one)
    ring, add = replay.init(example, capacity * num_envs, num_envs), jax.jit(replay.add)
    for t in range(rows):
        obs = jnp.full((num_envs, 64, 64, 3), t, jnp.uint8)
        first = jnp.array([(t, n) in firsts for n in range(num_envs)])
        record = example._replace(obs=obs, reward=jnp.full(num_envs, float(t)), is_first=first)
        ring = add(ring, record)
    return ring


def test_dreams_start_where_episodes_did():
    one = agent_of(rollouts=200)
    ring = ring_of(11, 2, 8, {(0, 0), (1, 1), (4, 0), (9, 1)})  # the first three rows are overwritten
    batch = one.agent.train_steps["controller"].sampler(None, ring, jax.random.key(0), one.config.rollouts)
    found = set(zip(batch.index.row.tolist(), batch.index.env.tolist(), strict=True))
    assert found == {(4, 0), (9, 1)} and batch.record.is_first.all() and batch.record.reward.shape == (200, 1)
    assert set(batch.record.reward[:, 0].tolist()) == {4.0, 9.0}


def test_all_rows_get_their_codes():
    one = agent_of(envs=2)
    ring = ring_of(37, 2, 40, {(0, 0)})
    step, state = one.agent.train_steps["encode"], one.state
    word = next(w for w in one.agent.schedule if getattr(w, "name", "") == "encode")
    times = int(word.updates(jnp.asarray(37 * 2)))
    assert times == 3
    for _ in range(times):
        batch = step.sampler(state, ring, jax.random.key(0), step.batch_size)
        state, feedback, _ = one.update["encode"](state, batch, jax.random.key(0))
        ring = replay.update(ring, batch, feedback)
    expected = one.nets.encode(state.params, ring.data.obs[:37])
    for name in ("mean", "log_var"):
        np.testing.assert_allclose(ring.data.extras[name][:37], expected[name], atol=1e-4)
    state, _, _ = one.update["vision"](state, batch_of(record_of(1)), jax.random.key(0))
    assert int(state.memory.encoded) == 0, "codes of another V are stale"


# --- Dreams -------------------------------------------------------------------------------------------------------


def by_hand(one, done_bias: float = -5.0, gates=None):
    """M made by hand: codes stand still at 0, the end is decided by the LSTM's first cell."""
    params = jax.tree.map(jnp.zeros_like, one.state.params["memory"])
    inner = params["params"]
    inner["end"]["bias"] = jnp.full(1, done_bias)
    inner["mdn"]["bias"] = inner["mdn"]["bias"].reshape(3, -1).at[2].set(-5.0).ravel()
    for place, value in (gates or {}).items():
        inner["gates"]["kernel"] = inner["gates"]["kernel"].at[place].set(value)
    return one.state._replace(params=one.state.params | {"memory": params})


def test_returns_of_dreams():
    one = agent_of()
    forever = by_hand(one, -5.0)
    weights, starts = jnp.zeros((2, one.nets.weights)), jnp.zeros((3, 3))
    returns = world_models.dreamed_returns(one.nets, forever.params, weights, starts, jax.random.key(0), jnp.ones(()))
    assert returns.tolist() == [[12 * 4.0] * 3] * 2, "horizon times the worth of a step"
    over = by_hand(one, 5.0)
    returns = world_models.dreamed_returns(one.nets, over.params, weights, starts, jax.random.key(0), jnp.ones(()))
    assert returns.tolist() == [[0.0] * 3] * 2


def deadly(one):
    """Staying or going left ends the dream at once; going right never does."""
    units, codes = one.config.units, one.config.codes
    gates = {(codes, 2 * units): 10.0, (codes + 1, 0): 0.0}  # the action is what fills the first cell
    state = by_hand(one, 0.5, gates)
    inner = state.params["memory"]["params"]
    inner["gates"]["bias"] = inner["gates"]["bias"].at[:units].set(10.0).at[units : 2 * units].set(-20.0)
    inner["gates"]["bias"] = inner["gates"]["bias"].at[3 * units :].set(10.0)
    inner["end"]["kernel"] = inner["end"]["kernel"].at[0, 0].set(-1.0)
    return state


@pytest.mark.slow
def test_evolution_inside_a_dream_finds_the_way_to_live():
    one = agent_of(population=16, rollouts=4, std=0.5)
    state, step = deadly(one), one.update["controller"]
    record = record_of(1, 4)
    fixed = {"mean": jnp.ones((4, 1, 3)), "log_var": jnp.full((4, 1, 3), -20.0)}
    batch, earned = batch_of(record._replace(extras=fixed)), []
    for i in range(25):
        state, feedback, metrics = step(state, batch, jax.random.key(i))
        assert feedback == {}
        earned.append(float(metrics["dream_return"]))
    assert earned[0] == 0.0 and earned[-1] == 12 * 4.0
    np.testing.assert_array_equal(state.params["controller"], state.opt["controller"].mean)


def test_real_returns_end_with_the_first_episode():
    one = agent_of(real=True, population=2, rollouts=2, envs=4, done=False, dream_length=4)
    last = jnp.zeros((4, 5), bool).at[0, 2].set(True).at[3, 1].set(True)
    reward = jnp.array([[0, 1, 1, 100, 100], [0, 2, 2, 2, 2], [0, 3, 3, 3, 3], [0, 4, 100, 0, 0]], jnp.float32)
    record = record_of(5, 4, is_last=last, reward=reward)
    step = one.agent.train_steps["controller"]
    assert step.batch_size == 4 and step.length == 5 and step.sampler == "latest"
    state, _, metrics = one.update["controller"](one.state, batch_of(record), jax.random.key(0))
    assert float(metrics["mean"]) == (2 + 8 + 12 + 4) / 4 and float(metrics["best"]) == (2 + 12) / 2
    assert not same(state.memory.candidates, one.state.memory.candidates)


def test_imagined_steps_go_on_from_the_context():
    one = agent_of()
    record, imagine = record_of(4), jax.jit(one.agent.imagine, static_argnums=4)
    actions = jnp.array([[0, 1, 2, 2, 1], [2, 2, 2, 2, 2]])
    dream = imagine(one.state, record, actions, jax.random.key(0), 5)
    assert dream.obs.shape == (2, 5, 64, 64, 3) and dream.obs.dtype == jnp.uint8
    assert dream.reward.shape == dream.cont.shape == (2, 5) and dream.action.tolist() == actions.tolist()
    assert dream.latent["code"].shape == (2, 5, 3)
    own = imagine(one.state, record, None, jax.random.key(0), 5)
    assert own.action.shape == (2, 5) and set(own.action.ravel().tolist()) == {1}, "zero weights stay"
    past = record._replace(action=record.action.at[:, 0].set(2))
    other = imagine(one.state, past, actions, jax.random.key(0), 5)
    assert not same(other.latent, dream.latent), "the context's actions count"
    cut = lambda r: r._replace(is_first=r.is_first.at[:, 3].set(True))  # noqa: E731
    a, b = (imagine(one.state, cut(r), actions, jax.random.key(0), 5) for r in (record, past))
    assert same(a, b), "a new episode knows nothing of the one before"
    calm = by_hand(one, 0.0)
    cont = imagine(calm, record, actions, jax.random.key(0), 5).cont
    np.testing.assert_allclose(cont, 10 / 11, rtol=1e-5), "a logit of 0 is one end to ten goings on"


# --- Mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec("my/Vector", jax.ShapeDtypeStruct((4,), np.float32), Discrete(2)), "one image"),
        (Spec("my/Big", jax.ShapeDtypeStruct((96, 96, 3), np.uint8), Box(3)), "64 x 64"),
        (Spec("my/Many", IMAGE, MultiDiscrete((2, 2))), "Discrete or Box"),
        (Spec("my/Two", {"a": IMAGE, "b": IMAGE}, Discrete(2)), "one image"),
    ],
)
def test_environments_that_do_not_fit(spec, words):
    with pytest.raises(ValueError, match=words):
        agents.make("world-models", spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"population": 1}, "population"),
        ({"done": False}, "neither end nor pay"),
        ({"real": True}, "population x rollouts, 12, not 4"),
        ({"mixtures": 0}, "mixtures"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        agents.settings("world-models", "takecover-small", **(TINY | options))


# --- Environments -------------------------------------------------------------------------------------------------


def test_take_cover_keeps_the_contract_and_pays_tics():
    env = envs.make("vizdoom/TakeCover", num_envs=2, max_tics=240)
    assert not env.pure and env.spec.obs == IMAGE and env.spec.action == Discrete(3) and env.spec.max_steps == 60
    action = np.ones((130, 1, 2), np.int32)
    steps = host_roll(env, jax.random.split(jax.random.key(0), 1), action)
    check_step(jax.tree.map(lambda x: x[1], steps), env.spec, (1, 2))
    check_stream(steps)
    paid = ~steps.is_first & ~steps.is_terminal
    np.testing.assert_array_equal(steps.reward, np.where(paid, 4.0, 0.0))
    assert steps.is_terminal.any(), "who stays is hit"
    fast = envs.make("vizdoom/TakeCover", max_tics=240, frame_skip=2)
    again = host_roll(fast, jax.random.split(jax.random.key(0), 1), action[:9, :, :1])
    assert set(np.unique(again.reward)) == {0.0, 2.0}


def test_pools_open_beside_the_threads_of_blas():
    """Four games start from threads of their own, each by a fork, in which OpenBLAS joins its threads."""
    script = textwrap.dedent("""
        import os
        import jax, numpy as np, scipy.linalg
        from jaxwm import envs
        matrix = np.random.default_rng(0).normal(size=(600, 600))
        for i in range(3):
            scipy.linalg.eigh(matrix + matrix.T), np.linalg.eigh(matrix + matrix.T)
            env = envs.make("vizdoom/TakeCover", num_envs=4, max_tics=240)
            handle, step = env.reset(jax.random.split(jax.random.key(i), 1))
            env.close(handle)
        print("opened", step.obs.shape, flush=True)
        os._exit(0)
    """)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            said, _ = process.communicate(timeout=120)
        finally:  # the games are children that outlive a killed Python
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert "opened (1, 4, 64, 64, 3)" in said


@pytest.mark.slow
def test_take_cover_goes_left_and_right():
    """The brown wall of the side to which one goes fills that half of the view."""
    env = envs.make("vizdoom/TakeCover", num_envs=2)
    action = np.broadcast_to(np.array([[0, 2]], np.int32), (60, 1, 2))
    images = host_roll(env, jax.random.split(jax.random.key(0), 1), action).obs[:, 0].astype(float)
    brown = (images[..., 0] - images[..., 2]).mean(2)  # [T, 2, 64], over the rows
    leaning = brown[..., :16].mean(-1) - brown[..., 48:].mean(-1)
    assert leaning[:, 0].max() > 10 and leaning[:, 1].min() < -10
    assert leaning[:, 0].mean() > leaning[:, 1].mean() + 5


@pytest.mark.slow
def test_car_racing_at_another_size():
    env, keys = envs.make("box2d/CarRacing", image_size=64), jax.random.split(jax.random.key(0), 1)
    assert env.spec.obs == IMAGE and env.spec.action == Box(3)
    action = np.zeros((4, 1, 1, 3), np.float32)
    small, whole = host_roll(env, keys, action), host_roll(envs.make("box2d/CarRacing"), keys, action)
    check_stream(small)
    road = whole.obs[-1, 0, 0, :84].astype(float)  # without the status bar
    np.testing.assert_allclose(small.obs[-1, 0, 0].mean((0, 1)), road.mean((0, 1)), atol=3)
    with pytest.raises(ValueError, match="no image"):
        envs.make("box2d/LunarLander", image_size=64)
    with pytest.raises(ValueError, match="frame_skip"):
        envs.make("vizdoom/TakeCover", frame_skip=0)


# --- Runs ---------------------------------------------------------------------------------------------------------


def flags() -> list[str]:
    return [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.slow
def test_the_command_line_trains_evaluates_and_dreams(tmp_path):
    envs.register("my/Blinking", blinking)
    folder = tmp_path / "run"
    begin = f"train world-models --env my/Blinking --steps 160 --episodes 4 --gauge 3 --run {folder}"
    assert main(begin.split() + flags() + ["--alive", "1"]) == 0
    rows = [row for row in read_jsonl(folder / "metrics.jsonl")]
    named = set().union(*rows)
    for name in ("vision/loss", "encode/rows", "memory/loss/done", "controller/dream_return", "gauge/gap"):
        assert name in named, name
    assert rows[-1]["env_steps"] == 160 and (folder / "evaluation.json").exists()
    assert main(f"dream {folder} --context 2 --horizon 3 --episodes 2 --sequences 4".split()) == 0
    assert (folder / "dreams" / "dream.gif").exists()
