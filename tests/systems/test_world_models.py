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
from jaxwm.__main__ import main
from jaxwm.agents import world_models
from jaxwm.control.evolution import cma_es
from jaxwm.distributions import Mixture, mixture
from jaxwm.models.mdn_rnn import MDNRNN
from jaxwm.nets import strided
from jaxwm.nets.layers import apply
from jaxwm.nets.lstm import LSTMState
from jaxwm.run.json_files import read_jsonl
from jaxwm.types import Batch, Box, Discrete, Index, MultiDiscrete, Record, Spec, Step

IMAGE = jax.ShapeDtypeStruct((64, 64, 3), np.uint8)
TINY = dict(
    codes=3, depth=1, units=4, envs=4, random_steps=160, vision_updates=2, vision_batch=4, memory_updates=2,
    memory_batch=4, memory_length=6, generations=2, population=4, rollouts=3, dream_length=12, capacity=1000,
)  # fmt: skip


# --- Convolutions -------------------------------------------------------------------------------------------------


def test_strided_convolutions_are_those_of_lax():
    how = (2, 2), "VALID"
    names = ("NHWC", "HWIO", "NHWC")
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    down = [(normal(2, side, side, 3), normal(4, 4, 3, 5)) for side in (14, 31)]
    up = [(normal(2, side, side, 3), normal(w, w, 3, 5)) for side, w in ((1, 5), (5, 5), (13, 6))]

    @jax.jit
    def both(down, up):
        ours = [strided.shrink(*each) for each in down] + [strided.grow(*each) for each in up]
        theirs = [jax.lax.conv_general_dilated(*each, *how, dimension_numbers=names) for each in down]
        return ours, theirs + [jax.lax.conv_transpose(*each, *how, dimension_numbers=names) for each in up]

    for found, expected in zip(*both(down, up), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


# --- Mixture density ----------------------------------------------------------------------------------------------


def test_log_likelihood_of_a_mixture():
    rng = np.random.default_rng(0)
    logits, mean, log_std = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
    value = rng.normal(size=(2, 4)).astype(np.float32)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    std = np.exp(log_std)
    density = (share * np.exp(-0.5 * ((value[..., None] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))).sum(-1)
    found = jax.jit(Mixture.log_prob)(Mixture(logits, mean, log_std), value)
    np.testing.assert_allclose(found, np.log(density), rtol=1e-4)
    raw = np.stack([logits, mean, log_std], 1).reshape(2, -1)  # [B, 3 * Z * K]
    found = jax.jit(lambda raw, value: mixture(raw, 5).log_prob(value))(raw, value)
    np.testing.assert_allclose(found, np.log(density), rtol=1e-4)
    narrow = jax.device_get(jax.jit(mixture, static_argnums=1)(np.full((1, 3), -50.0, np.float32), 1))
    assert narrow.log_std[0, 0, 0] == -5, "a mixture cannot become a point"


def test_samples_follow_the_mixture_and_its_temperature():
    one = Mixture(*np.array([np.log([0.2, 0.8]), [-5, 5], np.log([0.5, 1])], np.float32))

    @jax.jit
    def samples(temperature):
        return one.tempered(temperature).pick(*world_models.dream_noise(jax.random.key(0), (20_000,)))

    for temperature in (0.25, 1.0, 2.0):
        odds = np.array([0.2, 0.8]) ** (1 / temperature)
        odds /= odds.sum()
        values = np.asarray(samples(temperature))
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
    first = np.zeros((1, 6), bool)
    first[0, [0, 4]] = True

    @jax.jit
    def unrolled(key):
        params = net.init(key, code[:, 0], action[:, 0])
        last, hidden = apply(net, params, net.initial(1), code, action, first, method="unroll")
        return params, last, hidden, apply(net, params, hidden, method="predict")

    params, last, hidden, guess = jax.device_get(unrolled(jax.random.key(0)))
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
    goal, scale = np.array([[1, -2, 3, 0.5], [1, 10, 0.1, 1]], np.float32)
    evolution = cma_es(12, 4, std=0.1)
    start = jax.jit(evolution.init)(jax.random.key(0), np.zeros(4, np.float32))
    assert start.mean.tolist() == [0.0] * 4 and float(start.std) == pytest.approx(0.1)

    def generation(state, key):
        candidates, state = evolution.ask(key, state)
        fitness = 5 - (scale * jnp.square(candidates - goal)).sum(-1)
        return evolution.tell(key, candidates, fitness, state), fitness.max()

    climb = jax.jit(lambda s: jax.lax.scan(generation, s, jax.random.split(jax.random.key(1), 150)))
    state, best = jax.device_get(climb(start))
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
        self.act, self.imagine = (jax.jit(f, static_argnums=4) for f in (self.agent.act, self.agent.imagine))
        self.reset, self.encode = jax.jit(self.agent.reset, static_argnums=1), jax.jit(self.nets.encode)

    @functools.cached_property
    def state(self):
        """The first state. Its V is that of every agent here: the key and the sizes are the same."""
        if self is agent_of():
            return jax.jit(self.agent.init)(jax.random.key(0), self.agent.hyper)

        @jax.jit
        def rest(key):
            state = self.agent.init(key, self.agent.hyper)
            return state._replace(params={name: part for name, part in state.params.items() if name != "vision"})

        state = rest(jax.random.key(0))
        return state._replace(params=state.params | {"vision": agent_of().state.params["vision"]})


@functools.cache
def agent_of(action=Discrete(3), **options) -> Made:
    return Made(action, options)


def test_one_output_is_cut_into_equal_parts():
    nets = agent_of().nets
    output = np.array([-1.0, -0.34, -0.33, 0.0, 0.33, 0.34, 1.0], np.float32)[:, None]
    assert jax.jit(nets.as_action)(output).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert jax.jit(nets.as_numbers)(np.array([0, 1, 2])).tolist() == [[-1.0], [0.0], [1.0]]
    box = agent_of(Box(2), bias=True).nets
    np.testing.assert_allclose(box.as_action(np.array([[0.3, -1.0]], np.float32)), np.float32([[0.3, -1.0]]))


def test_the_controller_is_linear_in_code_and_state():
    one, rng = agent_of(Box(2), bias=True), np.random.default_rng(0)
    weights = rng.normal(size=(5, 1, one.nets.weights)).astype(np.float32)
    z, h, c = (rng.normal(size=(5, 7, size)).astype(np.float32) for size in (3, 4, 4))
    assert one.nets.weights == (3 + 4 + 4 + 1) * 2
    found = jax.jit(one.nets.control)(weights, z, LSTMState(h, c))
    for p in range(5):
        kernel, bias = weights[p, 0, :22].reshape(11, 2), weights[p, 0, 22:]
        expected = np.tanh(np.concatenate([z[p], h[p], c[p]], -1) @ kernel + bias)
        np.testing.assert_allclose(found[p], expected, atol=1e-4)


def step_of(num: int, first: bool) -> Step:
    no = np.zeros(num, bool)
    return Step(np.zeros((num, 64, 64, 3), np.uint8), np.zeros(num, np.float32), no | first, no, no)


def test_random_play_keeps_its_actions_for_a_while():
    one, state = agent_of(repeat=4), agent_of().state
    act = lambda carry, first, t: one.act(state, carry, step_of(500, first), jax.random.key(t), "random")  # noqa: E731
    carry, last = one.reset(state, 500), None
    changes = []
    for t in range(40):
        carry, action, extras = act(carry, False, t)
        if last is not None and t > 10:
            changes.append(np.mean(last != action))
        last = np.asarray(action)
    assert np.mean(changes) == pytest.approx(1 / 4 * 2 / 3, abs=0.01)  # a third of new actions is the old one
    assert np.bincount(last, minlength=3) / 500 == pytest.approx(1 / 3, abs=0.08)
    assert not np.asarray(extras["mean"]).any()
    fresh = act(carry, True, 0)[1]
    assert np.bincount(fresh, minlength=3) / 500 == pytest.approx(1 / 3, abs=0.08)


def test_extras_have_one_structure_and_candidates_play_for_real():
    one = agent_of(real=True, population=4, rollouts=1, done=False, envs=4)
    carry, step, key = one.reset(one.state, 4), step_of(4, True), jax.random.key(0)
    shapes = [one.act.eval_shape(one.state, carry, step, key, mode) for mode in ("random", "explore", "greedy")]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0][1] == jax.ShapeDtypeStruct((4,), jnp.int32) and shapes[0][2]["mean"].shape == (4, 3)
    loud = np.zeros((4, one.nets.weights), np.float32)
    loud[0], loud[3] = 50, -50
    memory = one.state.memory._replace(candidates=loud)
    params = jax.tree.map(lambda x: x, one.state.params)
    params["vision"]["params"]["mean"]["bias"] = np.full(3, 5, np.float32)
    params["vision"]["params"]["log_var"]["bias"] = np.full(3, -20, np.float32)
    state = one.state._replace(memory=memory, params=params)
    play = lambda mode: one.act(state, carry, step, key, mode)[1]  # noqa: E731
    assert play("explore").tolist() == [2, 1, 1, 0] and play("greedy").tolist() == [1, 1, 1, 1]


# --- Learning by hand ---------------------------------------------------------------------------------------------


def record_of(length: int, batch: int = 2, seed: int = 0, **fields) -> Record:
    rng = np.random.default_rng(seed)
    no, zero = np.zeros((batch, length), bool), np.zeros((batch, length), np.float32)
    extras = {name: rng.normal(size=(batch, length, 3)).astype(np.float32) for name in ("mean", "log_var")}
    obs = rng.integers(0, 255, (batch, length, 64, 64, 3)).astype(np.uint8)
    return Record(obs, zero, no, no, no, zero.astype(np.int32), extras)._replace(**fields)


def batch_of(record: Record) -> Batch:
    rows = np.arange(len(record.reward))
    return Batch(record, Index(rows, rows), np.ones(len(rows), np.float32))


def flags_of(batch: int, length: int, *where: tuple[int, int]) -> np.ndarray:
    """Flags `[B, L]` that are set in some places."""
    flags = np.zeros((batch, length), bool)
    for place in where:
        flags[place] = True
    return flags


def test_loss_of_the_autoencoder():
    one = agent_of()
    image = record_of(1).obs
    key = jax.random.key(3)
    state, _, metrics = one.update["vision"](one.state, batch_of(record_of(1)), key)
    codes = one.encode(one.state.params, image[:, 0])
    mean, log_var = np.asarray(codes["mean"]), np.asarray(codes["log_var"])
    code = mean + np.exp(log_var / 2) * np.asarray(jax.random.normal(key, (2, 3)))
    decode = jax.jit(functools.partial(apply, one.nets.vision, method="decode"))
    painted = np.asarray(decode(one.state.params["vision"], code))
    error = ((painted - image[:, 0] / 255) ** 2).sum((1, 2, 3)).mean()
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1).sum(-1)
    assert float(metrics["squared_error"]) == pytest.approx(error, rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(kl.mean(), rel=1e-3)
    assert float(metrics["loss"]) == pytest.approx(error + np.maximum(kl, 0.5 * 3).mean(), rel=1e-4)
    assert same(state.params["memory"], one.state.params["memory"])
    assert not same(state.params["vision"], one.state.params["vision"])


def test_loss_of_the_memory_counts_transitions_inside_episodes():
    one = agent_of(reward=True)
    first, end, action = flags_of(2, 4, (0, 2)), flags_of(2, 4, (1, 3)), np.array([[0, 1, 2, 0]] * 2, np.int32)
    reward = np.arange(8, dtype=np.float32).reshape(2, 4)
    record = record_of(4, is_first=first, is_terminal=end, action=action, reward=reward)
    key = jax.random.key(5)
    _, _, metrics = one.update["memory"](one.state, batch_of(record), key)
    noise = np.asarray(jax.random.normal(key, (2, 4, 3)))
    code = record.extras["mean"] + np.exp(record.extras["log_var"] / 2) * noise
    nets, params = one.nets, one.state.params

    @jax.jit
    def step(lstm, code, action, first, following):
        lstm = nets.advance(params, lstm, code, nets.as_numbers(action), first)
        guess = nets.predict(params, lstm.hidden)
        return lstm, guess.code.log_prob(following)[0].mean(), guess.done[0], guess.reward[0]

    losses = {"code": [], "done": [], "reward": []}
    for b in range(2):
        lstm = LSTMState(*np.zeros((2, 1, one.config.units), np.float32))
        for t in range(3):
            now = slice(t, t + 1)
            lstm, log_prob, done, guess = step(lstm, code[b, now], action[b, now], first[b, now], code[b, t + 1])
            if (b, t + 1) == (0, 2):
                continue  # what follows is another episode
            losses["code"].append(-float(log_prob))
            chance = 1 / (1 + np.exp(-float(done)))
            losses["done"].append(-10 * np.log(chance) if end[b, t + 1] else -np.log(1 - chance))
            losses["reward"].append((float(guess) - reward[b, t + 1]) ** 2)
    for name, each in losses.items():
        assert len(each) == 5 and float(metrics[f"loss/{name}"]) == pytest.approx(np.mean(each), rel=1e-3)
    assert float(metrics["loss"]) == pytest.approx(sum(np.mean(each) for each in losses.values()), rel=1e-3)


def ring_of(rows: int, num_envs: int, capacity: int, firsts) -> replay.Ring:
    """A ring whose images and rewards tell the row they were written in."""
    one = record_of(1, num_envs)
    example = jax.tree.map(lambda x: x[:, 0], one)
    ring, add = jax.jit(lambda row: replay.init(row, capacity * num_envs, num_envs))(example), jax.jit(replay.add)
    for t in range(rows):
        obs, reward = np.full((num_envs, 64, 64, 3), t, np.uint8), np.full(num_envs, t, np.float32)
        first = np.array([(t, n) in firsts for n in range(num_envs)])
        ring = add(ring, example._replace(obs=obs, reward=reward, is_first=first))
    return ring


def test_dreams_start_where_episodes_did():
    one = agent_of(rollouts=200)
    ring = ring_of(11, 2, 8, {(0, 0), (1, 1), (4, 0), (9, 1)})  # the first three rows are overwritten
    draw = jax.jit(one.agent.train_steps["controller"].sampler, static_argnums=3)
    batch = jax.device_get(draw(None, ring, jax.random.key(0), one.config.rollouts))
    found = set(zip(batch.index.row.tolist(), batch.index.env.tolist(), strict=True))
    assert found == {(4, 0), (9, 1)} and batch.record.is_first.all() and batch.record.reward.shape == (200, 1)
    assert set(batch.record.reward[:, 0].tolist()) == {4.0, 9.0}


def test_all_rows_get_their_codes():
    one = agent_of()
    ring = ring_of(37, 4, 40, {(0, 0)})
    step, state = one.agent.train_steps["encode"], one.state
    word = next(w for w in one.agent.schedule if getattr(w, "name", "") == "encode")
    times = int(word.updates(jnp.asarray(37 * 4)))
    assert times == 3

    @jax.jit
    def encode(state, ring):
        batch = step.sampler(state, ring, jax.random.key(0), step.batch_size)
        state, feedback, _ = step.update(state, batch, jax.random.key(0))
        return state, replay.update(ring, batch, feedback)

    for _ in range(times):
        state, ring = encode(state, ring)
    ring = jax.device_get(ring)
    expected = one.encode(state.params, ring.data.obs[:37])
    for name in ("mean", "log_var"):
        np.testing.assert_allclose(ring.data.extras[name][:37], expected[name], atol=1e-4)
    state, _, _ = one.update["vision"](state, batch_of(record_of(1)), jax.random.key(0))
    assert int(state.memory.encoded) == 0, "codes of another V are stale"


# --- Dreams -------------------------------------------------------------------------------------------------------


def by_hand(one, done_bias: float = -5.0, gates=None):
    """M made by hand: codes stand still at 0, the end is decided by the LSTM's first cell."""
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), one.state.params["memory"])
    inner = params["params"]
    inner["end"]["bias"][:] = done_bias
    inner["mdn"]["bias"].reshape(3, -1)[2] = -5
    for place, value in (gates or {}).items():
        inner["gates"]["kernel"][place] = value
    return one.state._replace(params=one.state.params | {"memory": params})


def test_returns_of_dreams():
    one = agent_of()
    weights, starts = np.zeros((2, one.nets.weights), np.float32), np.zeros((3, 3), np.float32)

    @jax.jit
    def returns(params):
        return world_models.dreamed_returns(one.nets, params, weights, starts, jax.random.key(0), jnp.ones(()))

    forever, over = by_hand(one, -5.0), by_hand(one, 5.0)
    assert returns(forever.params).tolist() == [[12 * 4.0] * 3] * 2, "horizon times the worth of a step"
    assert returns(over.params).tolist() == [[0.0] * 3] * 2


def deadly(one):
    """Staying or going left ends the dream at once; going right never does."""
    units, codes = one.config.units, one.config.codes
    gates = {(codes, 2 * units): 10.0, (codes + 1, 0): 0.0}  # the action is what fills the first cell
    state = by_hand(one, 0.5, gates)
    inner = state.params["memory"]["params"]
    inner["gates"]["bias"][:units] = 10
    inner["gates"]["bias"][units : 2 * units] = -20
    inner["gates"]["bias"][3 * units :] = 10
    inner["end"]["kernel"][0, 0] = -1
    return state


@pytest.mark.slow
def test_evolution_inside_a_dream_finds_the_way_to_live():
    one = agent_of(population=16, rollouts=4, std=0.5)
    state, step = deadly(one), one.update["controller"]
    record = record_of(1, 4)
    fixed = {name: np.full((4, 1, 3), value, np.float32) for name, value in (("mean", 1), ("log_var", -20))}
    batch, earned = batch_of(record._replace(extras=fixed)), []
    for i in range(25):
        state, feedback, metrics = step(state, batch, jax.random.key(i))
        assert feedback == {}
        earned.append(float(metrics["dream_return"]))
    assert earned[0] == 0.0 and earned[-1] == 12 * 4.0
    np.testing.assert_array_equal(state.params["controller"], state.opt["controller"].mean)


def test_real_returns_end_with_the_first_episode():
    one = agent_of(real=True, population=2, rollouts=2, envs=4, done=False, dream_length=4)
    last = flags_of(4, 5, (0, 2), (3, 1))
    reward = np.array([[0, 1, 1, 100, 100], [0, 2, 2, 2, 2], [0, 3, 3, 3, 3], [0, 4, 100, 0, 0]], np.float32)
    record = record_of(5, 4, is_last=last, reward=reward)
    step = one.agent.train_steps["controller"]
    assert step.batch_size == 4 and step.length == 5 and step.sampler == "latest"
    state, _, metrics = one.update["controller"](one.state, batch_of(record), jax.random.key(0))
    assert float(metrics["mean"]) == (2 + 8 + 12 + 4) / 4 and float(metrics["best"]) == (2 + 12) / 2
    assert not same(state.memory.candidates, one.state.memory.candidates)


def test_imagined_steps_go_on_from_the_context():
    one = agent_of()
    record, imagine = record_of(4), one.imagine
    actions = np.array([[0, 1, 2, 2, 1], [2, 2, 2, 2, 2]], np.int32)
    dream = imagine(one.state, record, actions, jax.random.key(0), 5)
    assert dream.obs.shape == (2, 5, 64, 64, 3) and dream.obs.dtype == jnp.uint8
    assert dream.reward.shape == dream.cont.shape == (2, 5) and dream.action.tolist() == actions.tolist()
    assert dream.latent["code"].shape == (2, 5, 3)
    own = imagine(one.state, record, None, jax.random.key(0), 5)
    assert own.action.shape == (2, 5) and set(np.ravel(own.action).tolist()) == {1}, "zero weights stay"
    past = record._replace(action=np.where(np.arange(4) == 0, np.int32(2), record.action))
    other = imagine(one.state, past, actions, jax.random.key(0), 5)
    assert not same(other.latent, dream.latent), "the context's actions count"
    cut = lambda r: r._replace(is_first=flags_of(2, 4, (0, 3), (1, 3)))  # noqa: E731
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


@pytest.mark.slow
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
