"""Genie: masks, losses, who sees what, dreams through a cache, labels, scores, and a world that it must find out."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY
from tiny import settings as tiny_settings
from toys import footage

from jaxwm import agents, data, envs, load, schedule
from jaxwm.__main__ import main
from jaxwm.agents import genie
from jaxwm.data import Episode
from jaxwm.learning import optim
from jaxwm.models import frame_scores, masked_tokens
from jaxwm.models.video import LatentActions
from jaxwm.nets import quantiser
from jaxwm.nets.layers import apply
from jaxwm.types import Batch, Box, Discrete, Index, Spec

BATCH, FRAMES, TOKENS, CODES = 3, 4, 4, 8


@pytest.fixture(scope="module")
def made() -> Any:
    """A tiny Genie for footage of a square, its networks, a state and a batch of windows."""
    source, config = footage(BATCH), tiny_settings("genie", patch=4, action_patch=4)
    agent, nets = genie.make(source.spec, config), genie.Networks(source.spec, config)
    rows = source.read(8, FRAMES)  # an episode begins at the third frame
    record = jax.tree.map(lambda x: np.ascontiguousarray(x.swapaxes(0, 1)), rows)
    index = Index(np.zeros(BATCH, np.int32), np.arange(BATCH, dtype=np.int32))
    batch = Batch(record, index, np.ones(BATCH, np.float32))
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    return SimpleNamespace(agent=agent, nets=nets, config=config, state=state, batch=batch, record=record)


# --- Masks --------------------------------------------------------------------------------------------------------


def test_the_first_frame_of_a_window_or_an_episode_is_never_masked():
    first = np.array([[False, False, True, False]])
    rate = np.array([[1.0, 1.0, 1.0, 0.5]], np.float32)
    uniform = np.array([[[0.0, 0.9]] * 3 + [[0.4, 0.6]]], np.float32)
    found = np.asarray(masked_tokens.masked(uniform, rate, jnp.asarray(first)))
    np.testing.assert_array_equal(found, [[[False, False], [True, True], [False, False], [True, False]]])


def test_how_many_tokens_stay_masked():
    """16 cos(pi s / 8) for s = 1 to 4; one step fills in all."""
    np.testing.assert_array_equal(masked_tokens.left_masked(16, 4), [14, 11, 6, 0])
    np.testing.assert_array_equal(masked_tokens.left_masked(9, 1), [0])
    np.testing.assert_array_equal(masked_tokens.left_masked(3, 2), [2, 0])


def test_an_action_belongs_to_the_frame_that_it_led_to():
    first = jnp.array([[False, False, True, False]])
    found = masked_tokens.led_to(jnp.array([[1, 2, 3]]), first, 9)
    np.testing.assert_array_equal(found, [[9, 1, 9, 3]])


# --- Losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", [pytest.param("window", marks=pytest.mark.slow), "frame"])
def test_dynamics_learn_from_masked_tokens_only(made, per):
    """The loss by loops, with the mask that the key gives."""
    nets = genie.Networks(made.nets.spec, tiny_settings("genie", patch=4, mask_per=per, mask_least=0.3))
    tokens = np.random.default_rng(0).integers(0, CODES, (BATCH, FRAMES, TOKENS)).astype(np.int32)
    action, first = np.ones((BATCH, FRAMES), np.int32), jnp.asarray(made.record.is_first)
    params, key = made.state.params["dynamics"], jax.random.key(1)
    uniform = np.asarray(jax.random.uniform(key, (BATCH, FRAMES, TOKENS + 1)))
    hidden = np.zeros((BATCH, FRAMES, TOKENS), bool)
    for b, t, k in np.ndindex(hidden.shape):
        rate = 0.3 + 0.7 * uniform[b, 0 if per == "window" else t, 0]
        hidden[b, t, k] = t > 0 and not first[b, t] and uniform[b, t, k + 1] < rate

    @jax.jit
    def both(params):
        guess = apply(nets.dynamics, params, jnp.where(hidden, CODES, tokens), action, first)
        return guess.logp, genie.dynamics_loss(nets, params, tokens, action, first, key)

    logp, (loss, (_, metrics)) = jax.device_get(both(params))
    terms = [-logp[b, t, k, tokens[b, t, k]] for b, t, k in np.argwhere(hidden)]
    right = [logp[b, t, k].argmax() == tokens[b, t, k] for b, t, k in np.argwhere(hidden)]
    assert loss == pytest.approx(np.mean(terms), rel=1e-5)
    assert metrics["accuracy/masked"] == pytest.approx(np.mean(right))


def test_autoencoders_have_three_terms_each(made):
    """Squared error, codebook, a quarter of the commitment; for actions only frames that follow another count."""
    nets, params, record = made.nets, made.state.params, made.record

    @jax.jit
    def all_of_it(params):
        seen = apply(nets.tokenizer, params["tokenizer"], record.obs, record.is_first)
        told = apply(nets.actor, params["actions"], record.obs, record.is_first)
        tokens = genie.tokenizer_loss(nets, params["tokenizer"], record.obs, record.is_first)
        return seen, told, tokens, genie.action_loss(nets, params["actions"], record.obs, record.is_first)

    (found, painted), (codes, ahead), (total, (_, parts)), (other, (_, more)) = jax.device_get(all_of_it(params))
    real, follows = record.obs / 255, ~record.is_first[:, 1:]
    error = np.square(painted - real).mean()
    assert parts["loss/reconstruction"] == pytest.approx(error, rel=1e-5)
    assert total == pytest.approx(error + 1.25 * found.codebook_loss, rel=1e-5)
    error = np.square(ahead - real[:, 1:]).mean((2, 3, 4))[follows].mean()
    assert more["loss/reconstruction"] == pytest.approx(error, rel=1e-5)
    assert other == pytest.approx(error + 1.25 * codes.codebook_loss, rel=1e-5)
    np.testing.assert_allclose(np.square(found.latents).sum(-1), 1, rtol=1e-3)


def test_codes_are_compared_by_angle():
    rng = np.random.default_rng(0)
    latents, book = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    near = (unit(latents) @ unit(book).T).argmax(-1)
    for scale in (0.1, 7.0):
        np.testing.assert_array_equal(quantiser.cosine_quantise(scale * latents, book).tokens, near)


def test_packed_adam_is_adam():
    tree = {"a": {"kernel": np.ones((3, 5), np.float32)}, "b": {"bias": np.ones(7, np.float32)}}
    grads = jax.tree.map(lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape) - 3, tree)
    adam = optim.adam(10.0, 1e-8)

    @jax.jit
    def steps(grads):
        found = []
        for tx in (optim.decayed(adam, 0.1), optim.decayed(optim.packed(adam), 0.1)):
            state = tx.init(tree)
            for _ in range(2):
                direction, state = tx.update(grads, state, tree)
            found.append(direction)
        return found

    plain, packed = steps(grads)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), plain, packed)


# --- Who sees what ------------------------------------------------------------------------------------------------


def test_tokens_see_their_moment_and_the_past_of_their_episode(made):
    """Which predictions change with the token at (t, k): those of its frame and of later ones before the next start."""
    first = jnp.array([[False, False, True, False]])
    tokens, action = jnp.zeros((1, FRAMES, TOKENS), jnp.int32), jnp.zeros((1, FRAMES), jnp.int32)
    call = jax.jit(lambda *x: apply(made.nets.dynamics, made.state.params["dynamics"], *x, first).logp)
    before = call(tokens, action)
    reached = {0: [0, 1], 1: [1], 2: [2, 3], 3: [3]}
    for t, frames in reached.items():
        for other in ((tokens.at[0, t, 1].set(3), action), (tokens, action.at[0, t].set(2))):
            moved = np.abs(np.asarray(call(*other) - before)).max((0, 3))
            assert np.flatnonzero(moved.max(1) > 1e-6).tolist() == frames
            assert (moved[frames] > 1e-6).all(), "every place of the frame sees it"


def test_latent_actions_see_the_next_frame_and_its_picture_does_not(made):
    """The code of a step depends on the frame after it; with codes given, no frame is painted from itself."""
    actor, params, record = made.nets.actor, made.state.params["actions"], made.record
    first = np.zeros_like(record.is_first)
    frame = record.obs.copy()
    frame[:, 2] = 255 - frame[:, 2]

    @jax.jit
    def both(frame):
        latents = apply(actor, params, frame, first, method="quantise").latents
        codes = jnp.ones((*first.shape, made.config.action_width))
        return latents, apply(actor, params, frame, codes, first, method="predict")

    (seen, painted), (other, repainted) = both(record.obs), both(frame)
    moved = np.abs(np.asarray(seen - other)).max((0, 2)) > 1e-6
    assert moved.tolist() == [False, True, True], "codes of the steps into frames 1, 2 and 3"
    moved = np.abs(np.asarray(painted - repainted)).max((0, 2, 3, 4)) > 1e-6
    assert moved.tolist() == [False, False, True, True], "what is painted after frames 0 to 3"
    assert isinstance(actor, LatentActions)


def test_a_cache_says_what_a_whole_window_says(made):
    """Frame by frame through the cache, and all at once."""
    net, params = made.nets.dynamics, made.state.params["dynamics"]
    tokens = np.random.default_rng(0).integers(0, CODES, (2, FRAMES, TOKENS)).astype(np.int32)
    action, first = np.ones((2, FRAMES), np.int32), np.array([[False, True, False, False]] * 2)

    @jax.jit
    def both(params):
        whole = apply(net, params, tokens, action, first).logp
        cache = apply(net, params, tokens[:, :2], action[:, :2], first[:, :2], FRAMES, method="read")
        later = []
        for t in (2, 3):
            cache, likely = apply(net, params, cache, tokens[:, t], action[:, t], method="extend")
            later.append(likely.logp)
        return whole[:, 2:], jnp.stack(later, 1)

    whole, later = both(params)
    np.testing.assert_allclose(whole, later, atol=1e-5)


def test_filling_in_keeps_what_is_trusted(made):
    """Nothing stays masked, the same noise gives the same frame, and a cold dream is the likeliest in one step."""
    net, params = made.nets.dynamics, made.state.params["dynamics"]
    tokens, action, first = np.zeros((2, 1, TOKENS), np.int32), np.full((2, 1), 4, np.int32), np.zeros((2, 1), bool)

    @jax.jit
    def run(noise):
        cache = apply(net, params, tokens, action, first, FRAMES, method="read")
        _, likely = apply(net, params, cache, np.full((2, TOKENS), CODES), np.ones(2, np.int32), method="extend")
        fill = partial(masked_tokens.fill_in, net, params, cache, np.ones(2, np.int32), temperature=0.0)
        return fill(noise)[1], fill(noise[:1])[1], likely.mode()

    noise = np.random.default_rng(0).random((3, 2, TOKENS)).astype(np.float32)
    several, once, likeliest = run(noise)
    assert (np.asarray(several) < CODES).all()
    np.testing.assert_array_equal(once, likeliest)


def test_dreams_are_longer_than_the_window(made):
    """A dream of 9 frames with a window of 4; what a context holds beyond the window is cut."""
    context = jax.tree.map(lambda x: np.concatenate([x, x], 1), made.record)
    dream = jax.jit(partial(made.agent.imagine, horizon=9))(made.state, context, None, jax.random.key(0))
    assert dream.obs.shape == (BATCH, 9, 8, 8, 1) and dream.obs.dtype == jnp.uint8
    assert dream.latent["tokens"].shape == (BATCH, 9, 2, 2) and dream.action.shape == (BATCH, 9)
    assert not np.asarray(dream.reward).any() and (np.asarray(dream.cont) == 1).all()


# --- Labels and scores --------------------------------------------------------------------------------------------


def test_labels_count_what_met_what():
    """The first two steps inside episodes; a button that was never seen takes the commonest code."""
    nets = genie.Networks(footage(1).spec, tiny_settings("genie", labels=3))
    action, codes = jnp.array([[2, 2, 0, 3]]), jnp.array([[1, 1, 2]])
    first = jnp.array([[True, False, False, True]])
    table = genie.labelled(nets, action, codes, first)
    np.testing.assert_array_equal(table, [[0] * 4, [0] * 4, [0, 2, 0, 0], [0] * 4])
    params = {"labels": jnp.array([[0.0, 0, 5, 1], [3, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 9]])}
    np.testing.assert_array_equal(nets.pressed(params, jnp.array([0, 1, 2, 3])), [2, 0, 3, 3])
    np.testing.assert_array_equal(nets.meant(params, jnp.array([0, 1, 2, 3])), [1, 3, 0, 3])


def test_information_of_tables_that_are_known():
    """A permutation tells all, independent columns nothing; few counts are corrected by their number."""
    information = jax.jit(frame_scores.information)
    half = jnp.array([[500.0, 0], [500, 0], [0, 500], [0, 500]])  # of two bits one
    assert information(1000 * jnp.eye(4)[:, jnp.array([2, 0, 3, 1])]) == pytest.approx(1.0, abs=1e-2)
    assert information(jnp.full((4, 2), 1000.0)) == pytest.approx(0.0, abs=1e-3)
    assert information(half) == pytest.approx(0.5, abs=1e-2)
    assert frame_scores.entropy(jnp.array([2.0, 2.0, 0.0])) == pytest.approx(np.log(2) + 1 / 8)


def test_psnr():
    seen, real = np.zeros((1, 2, 2, 2, 1), np.uint8), np.zeros((1, 2, 2, 2, 1), np.uint8)
    real[0, 1] = 51  # a fifth
    error = frame_scores.frame_error(seen, real)
    np.testing.assert_allclose(error, [[0, 0.04]], rtol=1e-5)
    np.testing.assert_allclose(frame_scores.psnr(error), [[58.92, -10 * np.log10(0.04)]], rtol=1e-3)


def test_scores_are_named_numbers(made):
    found = jax.jit(made.agent.scores)(made.state, made.batch, jax.random.key(0))
    assert set(found) == {
        "psnr", "psnr/tokenizer", "psnr/buttons", "delta psnr", "delta psnr/permuted", "delta psnr/single", "skill",
        "token accuracy", "token accuracy/changed", "tokens used", "actions used", "information", "button accuracy",
    }  # fmt: skip
    assert all(x.shape == () and np.isfinite(x) for x in found.values())
    assert 0 < found["actions used"] <= 1 and 0 <= found["information"] <= 1


# --- Settings -----------------------------------------------------------------------------------------------------


def test_orders():
    words = lambda **options: schedule.in_words(genie.schedule(agents.settings("genie", **options)))  # noqa: E731
    line = lambda *names: ["    load 1 row of the recordings", *(f"    1 x {name}" for name in names)]  # noqa: E731
    staged = words(order="staged", tokenizer_updates=5, action_updates=7)
    assert staged[1:] == [
        "repeat 5 times:", *line("tokenizer"), "repeat 7 times:", *line("actions"), "repeat forever:", *line("dynamics")
    ]  # fmt: skip
    joint = words(order="joint", tokenizer_updates=0)
    assert joint[1:] == ["repeat forever:", *line("tokenizer", "actions", "dynamics")]
    assert words(actions="true", tokenizer_updates=5)[1:] == [
        "repeat 5 times:", *line("tokenizer"), "repeat forever:", *line("dynamics")
    ]  # fmt: skip


def test_what_it_refuses():
    image = jax.ShapeDtypeStruct((8, 8, 1), np.uint8)
    for spec, options, message in (
        (Spec("t/Box", image, Box(2)), {}, "one choice at a time"),
        (Spec("t/Film", image, None), dict(actions="true"), "holds none: take latent"),
        (Spec("t/Vector", jax.ShapeDtypeStruct((3,), np.float32), Discrete(2)), {}, "genie sees one picture"),
    ):
        with pytest.raises(ValueError, match=message):
            agents.make("genie", spec, **(TINY["genie"] | options))
    with pytest.raises(ValueError, match="frames must be"):
        agents.settings("genie", frames=2)


def test_true_actions_and_film_have_no_labels():
    """With the game's own actions there are no latent ones; without any, actions are codes."""
    spec = footage(1).spec
    true = genie.make(spec, tiny_settings("genie", actions="true"))
    assert list(true.train_steps) == ["tokenizer", "dynamics"]
    assert set(jax.eval_shape(lambda: true.init(jax.random.key(0), true.hyper)).params) == {"tokenizer", "dynamics"}
    film = genie.make(Spec("t/Film", spec.obs, None), tiny_settings("genie", action_codes=3))
    assert "labels" not in jax.eval_shape(lambda: film.init(jax.random.key(0), film.hyper)).params


# --- The square ---------------------------------------------------------------------------------------------------


def test_the_square_goes_where_it_is_told():
    env = envs.make("probe/Square", 1, size=8, max_steps=4)
    handle, step = jax.jit(env.reset)(jax.random.key(3))
    move, corner = jax.jit(env.step), lambda step: step.obs[0, ..., 0] > 0
    before = np.asarray(corner(step))
    assert before.sum() == 16
    for action, shift in ((1, (-2, 0)), (4, (0, 2)), (0, (0, 0)), (2, (2, 0))):
        handle, step = move(handle, np.array([action]))
        before = np.roll(before, shift, (0, 1))
        np.testing.assert_array_equal(corner(step), before)
    assert step.is_last[0] and not step.is_terminal[0]
    with pytest.raises(ValueError, match="size must be a multiple of stride, 2, not 9"):
        envs.make("probe/Square", size=9)


def test_dynamics_find_out_a_rule():
    """Two tokens: the first is the action, the second what the first was before. Learned without an error."""
    net = masked_tokens.MaskedTokens(2, 4, 4, 1, 2, 16, 4)
    adam, rng = optim.packed(optim.adam(10.0, 1e-8)), np.random.default_rng(0)

    def windows(count: int) -> Any:
        action = rng.integers(0, 4, (count, 4)).astype(np.int32)
        tokens = np.stack([action, np.concatenate([rng.integers(0, 4, (count, 1)), action[:, :-1]], 1)], 2)
        return tokens.astype(np.int32), action, np.zeros((count, 4), bool)

    def loss(params, tokens, action, first):
        guess = apply(net, params, jnp.where((jnp.arange(4) == 3)[:, None], 4, tokens), action, first)
        return -guess.log_prob(tokens)[:, 3].mean()

    @jax.jit
    def learn(params, batches):
        def step(carry, batch):
            params, opt = carry
            value, grads = jax.value_and_grad(loss)(params, *batch)
            direction, opt = adam.update(grads, opt, params)
            return (jax.tree.map(lambda p, d: p - 1e-2 * d, params, direction), opt), value

        return jax.lax.scan(step, (params, adam.init(params)), batches)

    params = jax.jit(net.init)(jax.random.key(0), *windows(1))
    batches = [windows(32) for _ in range(150)]
    (params, _), losses = learn(params, jax.tree.map(lambda *x: np.stack(x), *batches))
    assert losses[-1] < 0.05 < 1 < losses[0]
    tokens, action, first = windows(16)
    past = tokens[:, :3], action[:, :3], first[:, :3]
    noise = rng.random((1, 1, 16, 2)).astype(np.float32)  # in one step: it learned from frames that are all masked
    found = jax.jit(lambda p: masked_tokens.dream(net, p, past, action[:, 3:], noise, 0.0))(params)
    np.testing.assert_array_equal(found[:, 0], tokens[:, 3])


# --- The command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The square at random."""
    path = tmp_path_factory.mktemp("recorded") / "square"
    words = ["--env", "probe/Square", "--env-option", "size=8", "max_steps=9", "--episodes", "40"]
    assert main(["record", "--random", *words, "--out", str(path)]) == 0
    return path


def flags(**options: Any) -> list[str]:
    chosen = TINY["genie"] | dict(patch=4, action_patch=4) | options
    return [word for key, value in chosen.items() for word in (f"--{key.replace('_', '-')}", str(value))]


@pytest.mark.slow
def test_it_trains_on_recordings_scores_and_dreams(recorded, tmp_path, capsys):
    run = tmp_path / "run"
    begin = ["train", "genie", "--data", str(recorded), "--members", "2", "--updates", "8", *flags()]
    assert main([*begin, "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "delta psnr" in out.replace("\n", " ") or "psnr" in out
    assert "watch" not in out and "jaxwm dream" in out
    found = json.loads((run / "evaluation.json").read_text())
    assert len(found["scores"]["information"]["trained"]) == 2 and "return" not in found["scores"]
    assert np.asarray(load(run).state.params["labels"]).sum() > 0, "labels come from the last batch"
    assert main(["dream", str(run), "--context", "3", "--horizon", "3", "--sequences", "4", "--episodes", "2"]) == 0
    assert {"dream.gif", "error.png"} <= {path.name for path in run.rglob("*")}
    assert main(["watch", str(run)]) == 2 and "nothing acts" in capsys.readouterr().err


@pytest.mark.slow
def test_film_without_actions_learns_and_labels_come_later(recorded, tmp_path, capsys):
    """Learn from frames only; then a recording with actions fills the table, with all else frozen; a resumed run is the
    same run."""
    opened = data.open_recording(recorded)
    film = [Episode(e.obs, e.reward, None, e.terminal) for _, e in opened.pieces()]
    data.append(tmp_path / "film", Spec("t/Film", opened.spec.obs, None), film)
    begin = ["train", "genie", "--data", str(tmp_path / "film"), "--members", "1", *flags()]
    assert main([*begin, "--updates", "6", "--run", str(tmp_path / "a")]) == 0
    assert main(["resume", str(tmp_path / "a"), "--updates", "12"]) == 0
    assert main([*begin, "--updates", "12", "--run", str(tmp_path / "b")]) == 0
    a, b = (load(tmp_path / name).state for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    capsys.readouterr()
    assert main(["dream", str(tmp_path / "a")]) == 2 and "holds no actions" in capsys.readouterr().err
    parts = ["tokenizer", "actions", "dynamics"]
    words = ["train", "genie", "--data", str(recorded), "--members", "1", "--updates", "5", *flags()]
    words += ["--from", str(tmp_path / "a"), "--from-parts", *parts, "--freeze", *parts]
    assert main([*words, "--run", str(tmp_path / "c")]) == 0
    c = load(tmp_path / "c").state
    jax.tree.map(np.testing.assert_array_equal, {name: a.params[name] for name in parts},
                 {name: c.params[name] for name in parts})  # fmt: skip
    assert np.asarray(c.params["labels"]).sum() > 0
