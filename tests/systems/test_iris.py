"""IRIS and its pieces against independent loops: codes, who predicts what, dreams, returns, order."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_close
from cells import planes
from tiny import settings

from jaxwm import agents, schedule, spaces
from jaxwm.agents import iris
from jaxwm.control.frame_policy import FramePolicy, dreamed, reinforce_loss, tempered
from jaxwm.control.policy import action_distribution
from jaxwm.models.token_world import Past, TokenWorld, newest
from jaxwm.nets import convolution, layers, quantiser
from jaxwm.types import Box, Collect, Discrete, MultiDiscrete, Spec, Train

PLANES = jax.ShapeDtypeStruct((5, 7, 2), np.bool_)
IMAGE = jax.ShapeDtypeStruct((64, 64, 3), np.uint8)
ACTIONS, CODES = 3, 6
records = partial(planes, PLANES.shape, ACTIONS)


@cache
def made(action=Discrete(ACTIONS), **options) -> SimpleNamespace:
    """A tiny agent of 2 x 3 tokens, its networks and its first state."""
    sizes = dict(patch=3, codes=CODES, frames=5, context=2, imag_length=4, burn_in=2) | options
    spec, config = Spec("my/Planes", PLANES, action, 20), settings("iris", **sizes)
    agent = iris.make(spec, config)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    return SimpleNamespace(agent=agent, nets=iris.Networks(spec, config), config=config, state=state)


# --- Codes --------------------------------------------------------------------------------------------------------


def test_nearest_codes_and_the_losses_of_quantising():
    rng = np.random.default_rng(0)
    latents, book = rng.normal(size=(4, 3, 2)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    expected = np.array([[np.square(z - book).sum(-1).argmin() for z in row] for row in latents])

    @jax.jit
    def all_of_it(latents, book):
        found = quantiser.quantise(latents, book)
        value = lambda z, e: (quantiser.quantise(z, e).codes * np.arange(24.0).reshape(4, 3, 2)).sum()  # noqa: E731
        through = jax.grad(value, (0, 1))(latents, book)
        pulls = jax.grad(lambda z, e: quantiser.quantise(z, e).commitment_loss, (0, 1))(latents, book)
        draws = jax.grad(lambda z, e: quantiser.quantise(z, e).codebook_loss, (0, 1))(latents, book)
        return found, through, pulls, draws

    found, through, pulls, draws = jax.device_get(all_of_it(latents, book))
    np.testing.assert_array_equal(found.tokens, expected)
    np.testing.assert_allclose(found.codes, book[expected], rtol=1e-5)
    gap = np.square(latents - book[expected]).mean()
    assert found.codebook_loss == pytest.approx(gap, rel=1e-5) == pytest.approx(found.commitment_loss, rel=1e-5)
    np.testing.assert_allclose(through[0], np.arange(24.0).reshape(4, 3, 2))  # straight through
    assert not through[1].any(), "reconstruction does not move the codebook"
    np.testing.assert_allclose(pulls[0], 2 * (latents - book[expected]) / latents.size, rtol=1e-4, atol=1e-7)
    assert not pulls[1].any() and not draws[0].any() and draws[1].any()


@pytest.mark.parametrize("cell", [1, 3, 4])
def test_cells_are_cut_and_joined_without_loss(cell):
    frame = np.random.default_rng(0).random((2, *PLANES.shape)).astype(np.float32)
    whole = np.asarray(quantiser.padded(frame, cell))
    rows, columns = quantiser.grid(PLANES.shape, cell)
    assert whole.shape == (2, rows * cell, columns * cell, 2)
    cells = np.asarray(quantiser.to_cells(whole, cell))
    np.testing.assert_array_equal(cells[1, 1, 1].reshape(cell, cell, 2), whole[1, cell : 2 * cell, cell : 2 * cell])
    np.testing.assert_array_equal(quantiser.cropped(quantiser.from_cells(cells, cell), PLANES.shape), frame)


def test_a_convolution_of_one_cell_is_a_matrix_product():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    for doubled in (False, True):
        conv = layers.Conv(6, 1, doubled)

        @jax.jit
        def both(x, conv=conv, doubled=doubled):
            params = conv.init(jax.random.key(0), x)
            seen = convolution.double(x) if doubled else x
            return conv.apply(params, x), convolution.convolve(seen, params["params"]["kernel"])

        found, expected = both(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dead_codes_are_counted_and_revived():
    """Token 2 is seen; codes 0 and 5 have been idle for too long and become latents of the batch, where asked for."""
    book = np.arange(CODES * 4, dtype=np.float32).reshape(CODES, 4)
    params = {"tokenizer": {"params": {"codebook": book}}}
    state = iris.State(params, {}, {}, np.int32(0), np.array([3, 0, 3, 1, 0, quantiser.IDLE], np.int32))
    latents = 100 + np.arange(8, dtype=np.float32).reshape(1, 2, 4)

    def after(idle: int):
        count = partial(iris.count_codes, settings("iris", codes=CODES, revive=idle), share=iris.ALONE)
        return jax.device_get(jax.jit(count)(state, np.array([[2, 2]]), latents, jax.random.key(0)))

    revived, metrics = after(4)
    assert metrics["codes/used"] == pytest.approx(1 / CODES) == metrics["codes/dead"]
    assert revived.memory.tolist() == [0, 1, 0, 2, 1, 0]
    new = revived.params["tokenizer"]["params"]["codebook"]
    np.testing.assert_array_equal(new[1:5], book[1:5])
    assert all(row.tolist() in latents[0].tolist() for row in new[[0, 5]])
    kept, _ = after(0)
    assert kept.memory.tolist() == [4, 1, 0, 2, 1, quantiser.IDLE + 1]
    np.testing.assert_array_equal(kept.params["tokenizer"]["params"]["codebook"], book)


def test_codes_restart_where_the_vocabulary_is_worst():
    """A latent that has a code of its own is not drawn, however common it is."""
    book = np.array([[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]], np.float32)
    latents = np.concatenate([np.zeros((500, 2)), np.array([[3.0, -3.0]])]).astype(np.float32)
    new = jax.jit(quantiser.revive)(book, np.array([False, True, True]), latents, jax.random.key(0))
    np.testing.assert_array_equal(new, [[0.0, 0.0], [3.0, -3.0], [3.0, -3.0]])


def test_reconstruction_errors():
    painted, on = np.array([-2.0, 0.5, 3.0], np.float32), np.array([True, False, True])
    likely = 1 / (1 + np.exp(-painted))
    expected = -np.where(on, 10 * np.log(likely), np.log(1 - likely))
    np.testing.assert_allclose(quantiser.reconstruction_error(painted, on, 10.0), expected, rtol=1e-5)
    image = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(quantiser.reconstruction_error(painted, image, 10.0), [2.0, 0.3, 2.0], rtol=1e-5)


# --- World model --------------------------------------------------------------------------------------------------


def test_every_position_predicts_what_the_paper_says():
    """The loss by loops over positions, from the same hidden states."""
    one, first = made(), [(0, 3), (1, 0)]
    record = records(2, one.config.frames + 1, first)
    tokens = np.random.default_rng(1).integers(0, CODES, (2, one.config.frames + 1, 6)).astype(np.int32)
    world, params = one.nets.world, one.state.params["model"]

    @jax.jit
    def both(params):
        hidden = world.window(params, tokens[:, :-1], record.action[:, :-1], record.is_first[:, :-1], None)
        reward, end = world.outcomes(params, hidden[:, :, -1])
        likely = world.next_token(params, hidden).logp
        loss = iris.model_loss(one.nets, params, tokens, record, jax.random.key(0))
        return likely, jax.nn.log_softmax(reward.logits), jax.nn.log_sigmoid(end), jax.nn.log_sigmoid(-end), loss

    token, reward, end, on, (total, (_, metrics)) = jax.device_get(both(params))
    losses = {"token": [], "reward": [], "end": []}
    right, changed = [], []
    for b in range(2):
        for t in range(one.config.frames):
            for k in range(5):
                losses["token"].append(-token[b, t, k, tokens[b, t, k + 1]])
                if t and not record.is_first[b, t]:
                    right.append(token[b, t, k].argmax() == tokens[b, t, k + 1])
                    changed.append(tokens[b, t - 1, k + 1] != tokens[b, t, k + 1])
            if record.is_first[b, t + 1]:
                continue
            losses["token"].append(-token[b, t, 6, tokens[b, t + 1, 0]])
            losses["reward"].append(-reward[b, t, int(np.sign(record.reward[b, t + 1])) + 1])
            losses["end"].append(-(end if record.is_terminal[b, t + 1] else on)[b, t])
            if t:
                right.append(token[b, t, 6].argmax() == tokens[b, t + 1, 0])
                changed.append(tokens[b, t, 0] != tokens[b, t + 1, 0])
    for name, each in losses.items():
        assert metrics[f"loss/{name}"] == pytest.approx(np.mean(each), rel=1e-4), name
    assert total == pytest.approx(sum(map(np.mean, losses.values())), rel=1e-4)
    right, changed = np.array(right), np.array(changed)
    assert metrics["accuracy"] == pytest.approx(right.mean()) and metrics["changed"] == pytest.approx(changed.mean())
    assert metrics["accuracy/changed"] == pytest.approx(right[changed].mean())


@pytest.mark.parametrize("parallel", [False, True])
def test_what_a_prediction_depends_on(parallel):
    """Frames before it, in its own episode; of its own frame what comes before it, or all of it in parallel."""
    world = TokenWorld(Discrete(ACTIONS), 3, CODES, 4, 1, 2, 8, parallel=parallel)
    params = jax.jit(world.init)(jax.random.key(0))
    tokens, action = np.zeros((1, 4, 3), np.int32), np.zeros((1, 4), np.int32)
    first = np.array([[True, False, True, False]])
    hidden = jax.jit(lambda tokens, action: world.window(params, tokens, action, first, None))
    before = np.asarray(hidden(tokens, action))
    assert before.shape == (1, 4, 4, 8)

    def moved(t: int, k: int) -> list[list[int]]:
        """Positions `(frame, place)` that another token k, or action, of frame t changes."""
        other = tokens.copy(), action.copy()
        if k < 3:
            other[0][0, t, k] = 1
        else:
            other[1][0, t] = 1
        return np.argwhere((np.asarray(hidden(*other)) != before).any(-1)[0]).tolist()

    assert moved(0, 1) == [[0, k] for k in range(0 if parallel else 1, 4)] + [[1, k] for k in range(4)]
    assert moved(1, 3) == ([[1, k] for k in range(4)] if parallel else [[1, 3]]), "an action is seen by the next frame"
    assert moved(2, 3) == ([[2, k] for k in range(4)] if parallel else [[2, 3]]) + [[3, k] for k in range(4)]


@pytest.mark.parametrize("parallel", [False, True])
def test_a_dream_is_the_window_that_it_makes(parallel):
    """What the cache gives token by token, the whole window gives at once; a past may begin an episode."""
    world = TokenWorld(Discrete(ACTIONS), 3, CODES, 6, 2, 2, 8, parallel=parallel)
    params = jax.jit(world.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    past = Past(rng.integers(0, CODES, (2, 3, 3)), rng.integers(0, ACTIONS, (2, 2)), np.zeros((2, 3), bool))
    past.first[0, 1] = past.first[1, 2] = True
    horizon, noise = 3, rng.random((3, 2, 3)).astype(np.float32)
    actions = rng.integers(0, ACTIONS, (horizon, 2))

    @jax.jit
    def both(params):
        cache, frame = world.begin(params, past, horizon)
        advance, found = world.advance(params), []
        for t in range(horizon):
            cache, frame = advance(cache, frame, actions[t], noise[t])
            found.append(frame)
        tokens, hidden = (jnp.stack([getattr(f, name) for f in found], 1) for name in ("tokens", "hidden"))
        all_tokens = jnp.concatenate([past.tokens, tokens], 1)
        all_actions = jnp.concatenate([past.action, actions.T], 1)
        first = jnp.pad(past.first, ((0, 0), (0, horizon - 1)))
        window = world.window(params, all_tokens[:, :-1], all_actions, first, None)
        return tokens, hidden, window, newest(past, tokens, actions.T)

    tokens, hidden, window, after = jax.device_get(both(params))
    assert_close(hidden[:, :, -1], window[:, 2:, -1], 1e-4, 1e-5)
    np.testing.assert_array_equal(after.tokens, tokens)
    np.testing.assert_array_equal(after.action, actions.T[:, 1:])
    assert not after.first.any()


# --- Policy -------------------------------------------------------------------------------------------------------


def test_the_policy_learns_by_reinforce_with_lambda_returns():
    """The loss by loops; the memory starts anew where an episode does."""
    rng, (horizon, batch), frame = np.random.default_rng(0), (4, 3), jax.ShapeDtypeStruct((2, 3, 1), np.bool_)
    policy = FramePolicy(frame, Discrete(ACTIONS), 1, 1, 4)
    memory, obs = policy.reset(batch), rng.random((horizon, batch, 2, 3, 1)) < 0.5
    cont = np.ones((horizon, batch), np.float32)
    cont[1, 0] = cont[0, 2] = 0.0
    action, reward = rng.integers(0, ACTIONS, (horizon, batch)), rng.normal(size=(horizon, batch)).astype(np.float32)
    hyper = {"discount": 0.9, "lam": 0.8, "entropy": 0.3}

    @jax.jit
    def both(key):
        params = jax.tree.map(lambda x: x + 0.1, policy.init(key))
        seen = dreamed(obs, action, reward, cont, np.array([True, False, False]), memory)
        dist, value = policy.behave(params, obs, memory, seen.first)
        return seen.weight, dist.parts[0].logp, value, reinforce_loss(policy, params, hyper, seen)

    weights, logp, value, (total, (_, metrics)) = jax.device_get(both(jax.random.key(0)))
    actor, critic = [], []
    for b in range(batch):
        returns = value[-1, b]
        for t in reversed(range(horizon - 1)):
            discount = 0.9 * cont[t + 1, b]
            returns = reward[t + 1, b] + discount * (0.2 * value[t + 1, b] + 0.8 * returns)
            weight = cont[: t + 1, b].prod()
            assert weights[t, b] == weight
            entropy = -(np.exp(logp[t, b]) * logp[t, b]).sum()
            score = logp[t, b, action[t, b]] * (returns - value[t, b])
            actor.append(-weight * (score + 0.3 * entropy))
            critic.append(weight * (returns - value[t, b]) ** 2)
    assert metrics["loss/actor"] == pytest.approx(np.mean(actor), rel=1e-4)
    assert metrics["loss/critic"] == pytest.approx(np.mean(critic), rel=1e-4)
    assert total == pytest.approx(np.mean(actor) + np.mean(critic), rel=1e-4)


def test_dreams_for_learning_begin_with_the_last_frame():
    one = made()
    record = records(3, 3, [(0, 1), (1, 2)])
    record.is_last[2, 2] = True  # over: nothing is learned there
    dream = jax.jit(lambda params, key: one.nets.dreams.experience(params, record, 4, key))
    found = jax.device_get(dream(one.state.params, jax.random.key(0)))
    shown = jax.jit(lambda p, x: one.nets.decode(p, one.nets.encode(p, x)))(one.state.params, record.obs[:, -1])
    np.testing.assert_array_equal(found.obs[0], shown)
    assert found.first.tolist() == [[False, True, False]] + [[False] * 3] * 3
    assert found.cont[0].tolist() == [1, 1, 0] and set(np.unique(found.cont)) <= {0, 1}
    assert not found.reward[0].any() and set(np.unique(found.reward)) <= {-1, 0, 1}
    assert found.action.shape == found.reward.shape == (4, 3)


def test_long_dreams_go_on_from_the_last_frames():
    """Given actions are followed, and the first stretch does not depend on what comes after it."""
    one = made()
    context = records(2, 3)
    actions = np.random.default_rng(0).integers(0, ACTIONS, (2, 7)).astype(np.int32)
    run = jax.jit(one.agent.imagine, static_argnums=4)
    dream = jax.device_get(run(one.state, context, actions, jax.random.key(0), 7))
    np.testing.assert_array_equal(dream.action, actions)
    other = actions.copy()
    other[:, 3:] = 0
    again = jax.device_get(run(one.state, context, other, jax.random.key(0), 7))
    np.testing.assert_array_equal(dream.obs[:, :3], again.obs[:, :3])
    assert dream.latent["tokens"].shape == (2, 7, 2, 3)
    shown = jax.jit(one.nets.decode)(one.state.params, dream.latent["tokens"].reshape(2, 7, 6))
    np.testing.assert_array_equal(dream.obs, shown)


@pytest.mark.parametrize("space", [Discrete(3), MultiDiscrete((2, 3)), Box(2)], ids=str)
def test_evaluation_samples_from_a_cooler_policy(space):
    parts = {name: jnp.zeros((500, size)).at[:, 0].set(1.0) for name, size in spaces.head_sizes(space).items()}
    policy = action_distribution(space, parts)
    cool = np.asarray(tempered(policy, 0.5, jax.random.key(0)))
    np.testing.assert_array_equal(tempered(policy, 0.0, jax.random.key(0)), policy.mode())
    if isinstance(space, Box):
        np.testing.assert_array_equal(cool, policy.mode())
        return
    share = np.exp(2.0) / (np.exp(2.0) + 2)  # of option 0 among three, whose logit 1 counts twice
    place = cool if isinstance(space, Discrete) else cool[:, 1]
    assert (place == 0).mean() == pytest.approx(share, abs=0.06)


# --- Order and sizes ----------------------------------------------------------------------------------------------


def test_the_published_order_and_sizes():
    config = iris.PRESETS["published"]
    assert config == iris.Config()
    rounds, rest = iris.schedule(config)
    assert (rounds.times, rest.times) == (500, 100) and rounds.body[0] == Collect(200)
    updates = {word.name: word.updates for word in rounds.body if isinstance(word, Train)}
    counts = {
        name: [int(function(steps)) for steps in (999, 1000, 4999, 5000, 9999, 10_000)]
        for name, function in updates.items()
    }
    assert counts == {
        "tokenizer": [0, 200, 200, 200, 200, 200], "model": [0, 0, 0, 200, 200, 200], "policy": [0, 0, 0, 0, 0, 200],
    }  # fmt: skip
    nets = iris.Networks(Spec("my/Game", IMAGE, Discrete(18)), config)
    assert nets.tokenizer.tokens == 16 and nets.tokenizer.grid == (4, 4)
    assert nets.world.gpt.positions == 340 and nets.world.longest(1) == 19
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    params = jax.eval_shape(lambda: nets.init(jax.random.key(0)))
    assert params["tokenizer"]["params"]["codebook"].shape == (512, 512)
    assert 25e6 > count(params) > 10e6  # DIAMOND's table counts 30 million, with the two networks of a perceptual loss


def test_what_does_not_fit_is_one_clear_line():
    with pytest.raises(ValueError, match=r"sees one picture.*take dreamer-v3"):
        agents.make("iris", Spec("my/Vector", jax.ShapeDtypeStruct((4,), np.float32), Discrete(2)))
    with pytest.raises(ValueError, match="the policy halves images four times"):
        agents.make("iris", Spec("my/Icon", jax.ShapeDtypeStruct((8, 8, 3), np.uint8), Discrete(2)))
    with pytest.raises(ValueError, match=r"context \+ imag_length - 1 must be at most frames, 8"):
        agents.settings("iris", "micro", context=5)


def test_parts_that_join_later_say_so_and_do_not_wait_for_recordings():
    words = schedule.in_words(iris.schedule(iris.PRESETS["published"]))
    assert "    200 x model, from 5,000 environment steps on" in words
    loaded = schedule.offline(iris.schedule(iris.PRESETS["published"]), 1000, 1000)
    assert [word.updates for word in loaded[1].body] == [200, 200, 200]
