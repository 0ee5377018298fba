"""SimPLe: stacks, bits, what a window is learned from, its losses in closed form, dreams and what PPO makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs, replay
from jaxwm.agents import simple
from jaxwm.models import frame_predictor as video
from jaxwm.types import Box, Discrete, Record, Spec

SPEC = Spec("own/Board", jax.ShapeDtypeStruct((4, 3, 2), np.bool_), Discrete(3), 10)
IMAGE = Spec("own/Image", jax.ShapeDtypeStruct((16, 16, 1), np.uint8), Discrete(3), 10)
TINY = dict(
    stack=2, targets=3, depth=4, levels=1, kernel=1, bits=6, chunk=2, lstm_units=4, units=8, dreams=4, imag_length=3,
    epochs=1, minibatches=2, model_batch=4, envs=1, capacity=100, cutoff=0.0,
)  # fmt: skip
SURE = simple.Shares(*np.float32([1, 0, 0, 0]))  # all bits discrete and from the encoder, none dropped


def settings(**options) -> simple.Config:
    return agents.settings("simple", **{**TINY, **options})


def filled(tree, seed: int = 0, scale: float = 0.5):
    """Random numbers in the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: scale * rng.normal(size=x.shape).astype(np.float32), tree)


def networks(spec: Spec = SPEC, **options) -> tuple[simple.Networks, dict]:
    """Networks and random weights."""
    nets = simple.Networks(spec, settings(**options))
    return nets, filled(jax.eval_shape(nets.init, jax.random.key(0)))


def records(rows: int, length: int, seed: int = 0, spec: Spec = SPEC) -> Record:
    """Random records of one long episode each."""
    rng = np.random.default_rng(seed)
    lead, none = (rows, length), np.zeros((rows, length), bool)
    frame = rng.integers(0, 256, (*lead, *spec.obs.shape)) if spec.obs.dtype == np.uint8 else rng.random(
        (*lead, *spec.obs.shape)) < 0.5  # fmt: skip
    action = rng.integers(0, 3, lead).astype(np.int32)
    return Record(frame.astype(spec.obs.dtype), rng.integers(-1, 2, lead).astype(np.float32), none, none, none, action,
                  {})  # fmt: skip


def quiet(rows: int, config: simple.Config, targets: int | None = None) -> simple.Noise:
    """Random numbers that turn no bit round."""
    lead = (rows,) if targets is None else (targets, rows)
    wide = lambda *size: np.full((*lead, *size), 0.999, np.float32)  # noqa: E731
    hard = wide(config.bits) * 0
    return simple.Noise(wide(config.bits), hard, wide(config.bits), wide(config.tokens), wide(), wide())


# --- Stacks and bits ----------------------------------------------------------------------------------------------


def test_a_stack_holds_one_episode():
    frame = np.arange(1, 6).reshape(1, 5, 1, 1, 1) * np.ones((2, 1, 1, 1, 1))
    first = np.zeros((2, 5), bool)
    first[1, 3] = True
    stack = jax.jit(video.stacked, static_argnums=2)(frame, first, 3)
    assert stack[:, :, 0, 0, 0].tolist() == [[3, 4, 5], [4, 4, 5]]
    short = jax.jit(video.stacked, static_argnums=2)(frame[:, :2], first[:, :2], 3)
    assert short[0, :, 0, 0, 0].tolist() == [1, 1, 2]


def test_tokens_are_bits():
    bits = np.float32([[0.3, -0.1, -2.0, 5.0, 1.0, 1.0]])
    tokens = video.to_tokens(bits, 2)
    assert tokens.tolist() == [[1, 2, 3]]
    np.testing.assert_array_equal(video.to_bits(tokens, 2), np.sign(bits))
    assert video.to_tokens(bits, 3).tolist() == [[1, 7]]


def test_bits_become_discrete_and_some_are_turned_round():
    """The gradient is that of tanh, whatever is used."""
    raw = np.float32([[0.5, -0.5, 0.2, 2.0]])
    noise = quiet(1, settings(bits=4))._replace(flip=np.float32([[0.05, 0.5, 0.5, 0.5]]),
                                                hard=np.float32([[0.1, 0.1, 0.9, 0.1]]))  # fmt: skip
    used = jax.jit(lambda raw: simple.discrete(raw, noise, 0.1, 0.5))
    clean, bits = used(raw)
    assert clean.tolist() == [[1, -1, 1, 1]]
    np.testing.assert_allclose(bits, [[-1, -1, np.tanh(0.2), 1]], rtol=1e-5)
    slope = jax.jit(jax.grad(lambda raw: used(raw)[1].sum()))(raw)
    np.testing.assert_allclose(slope, 1 - np.tanh(raw) ** 2, rtol=1e-4)


def test_the_schedules_of_learning():
    config = simple.Config()
    at = lambda updates: [float(x) for x in simple.shares(config, jnp.float32(updates))]  # noqa: E731
    assert at(0) == pytest.approx([0, 0, 0, 1])
    assert at(10_000) == pytest.approx([0.25, 0.125, 0.25, 0.6])
    assert at(50_000) == pytest.approx([1, 0.5, 1, 0.2])
    assert [float(x) for x in simple.shares(settings(ramp=0, drop_ramp=0), jnp.float32(0))] == pytest.approx(
        [1, 0.5, 0.5, 0.2]
    )


# --- Windows ------------------------------------------------------------------------------------------------------


def ended() -> Record:
    """Two windows `[2, 2 + 3]`: an episode, and one that ends with record 2; frames are numbered."""
    record = records(2, 5)
    frame = (np.arange(5)[:, None, None, None] == np.arange(24).reshape(4, 3, 2)) | np.zeros((2, 1, 1, 1, 1), bool)
    last, first = np.zeros((2, 2, 5), bool)
    last[1, 2], first[1, 3] = True, True
    return record._replace(obs=frame, reward=np.ones((2, 5), np.float32), is_first=first, is_last=last)


def number(frame) -> list:
    return np.asarray(frame).reshape(*frame.shape[:-3], -1).argmax(-1).tolist()


def test_nothing_is_learned_across_the_end_of_an_episode():
    nets = simple.Networks(SPEC, settings(still=False))
    seen = simple.window(nets, ended())
    assert number(seen.stack) == [[0, 1], [0, 1]] and number(seen.target) == [[2, 2], [3, 3], [4, 4]]
    assert np.asarray(seen.weight).tolist() == [[1, 1], [1, 0], [1, 1]]
    assert np.asarray(seen.first).tolist() == [[False, False], [False, True], [False, False]]
    np.testing.assert_array_equal(seen.action, ended().action[:, 1:4].T)


def test_or_that_nothing_moves_after_it():
    nets = simple.Networks(SPEC, settings(still=True))
    seen = simple.window(nets, ended())
    assert number(seen.target) == [[2, 2], [3, 2], [4, 2]]
    assert np.asarray(seen.reward).tolist() == [[1, 1], [1, 0], [1, 0]]
    assert np.asarray(seen.weight).all() and not np.asarray(seen.first).any()
    begun = ended()._replace(is_first=np.eye(5, dtype=bool)[[2, 2]], is_last=np.eye(5, dtype=bool)[[1, 1]])
    assert number(simple.window(nets, begun).target) == [[1, 1]] * 3, "the stack's last frame was the end"


# --- Losses -------------------------------------------------------------------------------------------------------


def test_the_error_of_pixels_and_cells():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 3, 1, 256)).astype(np.float32)
    image = rng.integers(0, 256, (2, 3, 3, 1)).astype(np.uint8)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logp, image[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(video.frame_error(logits, image), -chosen, rtol=1e-4)
    np.testing.assert_array_equal(video.likeliest(logits, image), logits.argmax(-1))
    cell, on = logits[..., 0], image > 99
    np.testing.assert_allclose(video.frame_error(cell, on), -np.log(1 / (1 + np.exp(np.where(on, -cell, cell)))), 1e-4)
    np.testing.assert_array_equal(video.likeliest(cell, on), cell > 0)


@pytest.fixture(scope="module")
def found():
    """The losses of one target, with and without the cut-off, and what the network says."""
    nets, params = networks()
    record = records(4, 3)
    args = record.obs[:, :2], record.action[:, 1], record.obs[:, 2], record.reward[:, 2]

    def outputs(params):
        seen = nets.part(params, "look", args[0], jax.nn.one_hot(args[1], 3))
        raw = nets.part(params, "infer", args[0], args[2])
        bits = jnp.where(raw > 0, 1.0, -1.0)
        return raw, nets.part(params, "likely", seen, video.to_tokens(raw, 2)).logp, nets.part(
            params, "paint", seen, bits), nets.part(params, "paint", seen, None)  # fmt: skip

    cut = simple.Networks(SPEC, settings(cutoff=0.7))
    noise, dropped = quiet(4, nets.config), SURE._replace(drop=np.float32(1))
    run = lambda nets, how: simple.step_losses(nets, params["model"], *args, noise, how)  # noqa: E731
    return args, jax.jit(lambda: (outputs(params["model"]), run(nets, SURE), run(cut, SURE), run(nets, dropped)))()


def test_the_losses_of_a_target(found):
    (_, _, target, reward), ((raw, logp, painted, _), (losses, own), (cut, _), _) = found
    cell = lambda logits: np.log1p(np.exp(np.where(target, -logits, logits)))  # noqa: E731
    logits, bins = np.asarray(painted[0], np.float64), np.asarray(painted[1])
    np.testing.assert_allclose(losses["frame"], cell(logits).mean((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(cut["frame"], np.maximum(cell(logits), 0.7).mean((1, 2, 3)), rtol=1e-4)
    np.testing.assert_array_equal(own, logits > 0)
    chosen = bins - np.log(np.exp(bins).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses["reward"], -chosen[np.arange(4), reward.astype(int) + 1], rtol=1e-4)
    tokens = np.asarray(video.to_tokens(raw, 2))
    each = np.take_along_axis(np.asarray(logp), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses["bits"], -each.sum(-1), rtol=1e-4)


def test_without_bits_the_frame_is_the_same_whatever_comes(found):
    (_, _, target, _), ((_, _, _, blind), _, _, (losses, _)) = found
    cell = np.log1p(np.exp(np.where(target, -blind[0], blind[0])))
    np.testing.assert_allclose(losses["frame"], cell.mean((1, 2, 3)), rtol=1e-4)


def test_bits_are_drawn_as_they_are_predicted():
    """The LSTM that draws token after token is the one that judges them all at once."""
    nets, params = networks()
    record, rows = records(1, 2), 4000

    @jax.jit
    def run(uniform):
        seen = nets.part(params["model"], "look", record.obs, jax.nn.one_hot(record.action[:, 1], 3))
        many = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), seen)
        tokens = nets.part(params["model"], "draw", many, uniform)
        return tokens, jnp.exp(nets.part(params["model"], "likely", many, tokens).log_prob(tokens).sum(-1))

    tokens, chance = jax.device_get(run(np.random.default_rng(0).random((rows, 3)).astype(np.float32)))
    codes, place, count = np.unique(tokens @ [1, 4, 16], return_index=True, return_counts=True)
    assert len(codes) > 8
    np.testing.assert_allclose(count / rows, chance[place], atol=0.03)
    assert chance[place].sum() == pytest.approx(1, abs=0.05)


def test_windows_are_the_mean_of_their_targets():
    """And a window's own frames go into the next stack."""
    nets, params = networks(frame_scale=2.0)
    record = records(4, 5)
    seen, noise = simple.window(nets, record), quiet(4, nets.config, 3)
    half = SURE._replace(own=np.float32(0.5))

    @jax.jit
    def run():
        losses, stack, parts = simple.model_loss(nets, params["model"], seen, noise, SURE), seen.stack, []
        for t in range(3):
            now = jax.tree.map(lambda x, t=t: x[t], (seen.action, seen.target, seen.reward, noise))
            each, _ = simple.step_losses(nets, params["model"], stack, *now, SURE)
            parts.append(2 * each["frame"] + each["reward"] + each["bits"])
            stack = video.push(stack, now[1])
        mine = simple.model_loss(nets, params["model"], seen, noise._replace(own=0 * noise.own), half)
        return losses, jnp.stack(parts).mean(), mine[0]

    (total, (_, metrics)), expected, own = run()
    assert float(total) == pytest.approx(float(expected), rel=1e-4)
    assert float(own) != pytest.approx(float(total), rel=1e-4) and float(metrics["skill"]) <= 1


# --- Dreams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, pytest.param(IMAGE, marks=pytest.mark.slow)])
def test_a_dream_is_the_model_step_by_step(spec):
    nets, params = networks(spec)
    stack, horizon = records(2, 2, spec=spec).obs, 3
    rng = np.random.default_rng(1)
    actions, uniform = rng.integers(0, 3, (horizon, 2)).astype(np.int32), rng.random((horizon, 2, 3)).astype(np.float32)
    end, found = jax.jit(lambda: simple.roll(nets, params, stack, actions, uniform, True))()
    step = jax.jit(lambda stack, action, uniform: nets.predict(params["model"], stack, action, uniform))
    for t in range(horizon):
        frame, reward, tokens = step(stack, actions[t], uniform[t])
        np.testing.assert_array_equal(found.frame[t], frame)
        np.testing.assert_array_equal(found.tokens[t], tokens)
        np.testing.assert_allclose(found.reward[t], reward, rtol=1e-4, atol=1e-5)
        assert frame.dtype == spec.obs.dtype and (np.abs(reward) <= 1).all()
        stack = np.concatenate([stack[:, 1:], np.asarray(frame)[:, None]], 1)
    np.testing.assert_array_equal(end, stack)


def test_what_ppo_learns_from_in_dreams():
    """Advantages by hand from the rows themselves; the dream of a last record counts nothing."""
    nets, params = networks()
    record = records(4, 2)
    record = record._replace(is_last=np.eye(4, 2, -1, bool))  # row 1's first, row 2's second record
    record.is_last[:] = [[0, 0], [0, 0], [0, 1], [0, 0]]
    hyper = {"discount": np.float32(0.9), "lam": np.float32(0.8)}
    state = simple.State(params, None, hyper, np.int32(0), np.int32(0))
    rows = jax.device_get(jax.jit(lambda: simple.experience(nets, state, record, jax.random.key(0)))())
    assert rows.log_prob.shape == (4 * 3,) and rows.obs.shape == (12, 2, 4, 3, 2)
    assert rows.weight.reshape(4, 3).tolist() == [[1] * 3, [1] * 3, [0] * 3, [1] * 3]

    @jax.jit
    def judged(obs, action):
        policy, value = nets.judge(params["policy"], obs)
        return policy.log_prob(action), value

    log_prob, value = judged(rows.obs, rows.action)
    np.testing.assert_allclose(rows.value, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.log_prob, log_prob, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.returns, rows.advantage + rows.value, rtol=1e-4, atol=1e-5)
    # what is left of A_t after 0.9 * 0.8 * A_{t+1} is r + 0.9 V' - V: the same reward that a dream of its own gives
    gain, value = rows.advantage.reshape(4, 3), rows.value.reshape(4, 3)
    reward = (gain[:, :-1] - 0.72 * gain[:, 1:]) - 0.9 * value[:, 1:] + value[:, :-1]
    assert (np.abs(reward) <= 1.001).all() and np.abs(reward).max() > 0.01


# --- Learning -----------------------------------------------------------------------------------------------------


def fresh(agent, seed: int = 0):
    """The agent's first state, with weights from NumPy: its own initialisers take long to compile."""
    rng = np.random.default_rng(seed)

    def one(path, x):
        name = path[-1].key
        if name in ("kernel", "place"):
            return (rng.normal(size=x.shape) / (1 if name == "place" else np.sqrt(x.shape[0]))).astype(np.float32)
        return np.full(x.shape, name == "scale", np.float32)

    blank = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), blank)
    params = jax.tree_util.tree_map_with_path(one, blank.params)
    return zeros._replace(params=params, hyper={k: np.float32(v) for k, v in agent.hyper.items()})


@pytest.mark.slow
def test_both_futures_of_a_bounce_are_dreamed():
    """On probe/Bounce, on from the frame in which the ball bounces: a dream has one ball, on either side."""
    rows, updates = 64, 1000
    env = envs.make("probe/Bounce", rows, cells=True)
    config = agents.settings(
        "simple", stack=2, targets=1, depth=64, patch=8, levels=0, bits=4, chunk=4, lstm_units=8, units=8,
        model_batch=rows, model_lr=3e-3, frame_scale=100.0, drop_bits=0.1, predicted_bits=0.0, bit_noise=0.05,
    )  # fmt: skip
    agent, nets = agents.build("simple", env.spec, config), simple.Networks(env.spec, config)

    def row(carry, key):
        action = jax.random.randint(key, (rows,), 0, 3)
        handle, after = env.step(carry[0], action)
        return (handle, after), Record(*carry[1], action, {})

    @jax.jit
    def played(key):
        return jax.lax.scan(row, env.reset(key), jax.random.split(key, 32))[1]

    @jax.jit
    def learned(state, records, key):
        ring = replay.Ring(records, jnp.int32(32))

        def update(state, key):
            state, _, metrics = agent.train_steps["model"].update(state, replay.sample(ring, key, rows, 3), key)
            return state, metrics["skill"]

        state, skill = jax.lax.scan(update, state, jax.random.split(key, updates))
        return state.params["model"], skill[-20:].mean()

    records = played(jax.random.key(0))
    params, skill = learned(fresh(agent), records, jax.random.key(1))
    stack, stay = records.obs[2:4].swapaxes(0, 1), jnp.ones(rows, jnp.int32)  # the ball in rows 2 and 3
    uniform = np.random.default_rng(0).random((20, rows, 1)).astype(np.float32)
    frames = jax.jit(lambda: jax.vmap(lambda u: nets.predict(params, stack, stay, u)[0])(uniform))()
    ball, column = np.asarray(frames[..., 0]), np.asarray(stack[:, 1, ..., 0]).any(1).argmax(-1)
    moved = ball[:, :, 4].argmax(-1) - column
    one = (ball.sum((2, 3)) == 1) & ball[:, :, 4].any(-1) & (np.abs(moved) == 1)
    right = (moved == 1)[one & (column > 0) & (column < 7)].mean()
    assert skill > 0.9 and one.mean() > 0.8 and 0.3 < right < 0.7, (skill, one.mean(), right)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (Spec("own/Box", SPEC.obs, Box(2)), {}, "simple chooses among discrete actions; own/Box has"),
        (Spec("own/Vector", jax.ShapeDtypeStruct((3,), np.float32), Discrete(2)), {}, "simple sees one picture"),
        (SPEC, {"bits": 7}, "bits must be a multiple of chunk .2., not 7"),
        (SPEC, {"minibatches": 5}, "minibatches must divide the 12 steps"),
        (SPEC, {"capacity": 4}, "capacity .* at least 5"),
    ],
)
def test_what_does_not_fit_is_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        agents.make("simple", spec, **{**TINY, **options})
