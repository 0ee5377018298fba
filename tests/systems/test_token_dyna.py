"""Dyna over nearest-neighbour tokens: the stock of codes, the loss of a block, real play as experience, order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import settings

from jaxwm import agents
from jaxwm.agents import token_dyna
from jaxwm.types import Batch, Discrete, Record, Spec

PLANES, ACTIONS = jax.ShapeDtypeStruct((5, 7, 2), np.bool_), 3
IMAGE = jax.ShapeDtypeStruct((64, 64, 3), np.uint8)


def networks(obs=PLANES, **options) -> token_dyna.Networks:
    """Of 2 x 3 patches."""
    sizes = dict(patch=3, codes=6, frames=5, burn_in=2) | options
    return token_dyna.Networks(Spec("my/Planes", obs, Discrete(ACTIONS), 20), settings("token-dyna", **sizes))


def test_the_stock_grows_by_what_is_far_from_it():
    """Every patch is then near a code, codes are patches, none is near another, and what was there stays."""
    rng = np.random.default_rng(0)
    patches = rng.random((60, 2)).astype(np.float32)
    empty = np.full((40, 2), token_dyna.FAR, np.float32)
    grow = jax.jit(partial(token_dyna.grown, threshold=0.05, most=50))
    book, again = np.asarray(grow(empty, patches)), np.asarray(grow(grow(empty, patches[:30]), patches))
    for found in (book, again):
        count = int(token_dyna.size_of(found))
        codes = found[:count]
        assert 4 < count < 40 and (found[count:] == token_dyna.FAR).all()
        apart = np.square(patches[:, None] - codes).sum(-1)
        assert (apart.min(1) <= 0.05).all() and (apart.min(0) == 0).all()
        between = np.square(codes[:, None] - codes).sum(-1) + np.eye(count)
        assert (between > 0.05).all()
    few = np.asarray(jax.jit(partial(token_dyna.grown, threshold=0.05, most=3))(again, patches + 5))
    size = int(token_dyna.size_of(again))
    np.testing.assert_array_equal(few[:size], again[:size])
    assert int(token_dyna.size_of(few)) == size + 3
    full = np.asarray(grow(few, rng.random((60, 2)).astype(np.float32) * 50))
    assert int(token_dyna.size_of(full)) == 40, "a full stock stays as it is"
    np.testing.assert_array_equal(grow(full, patches + 9), full)


@pytest.mark.parametrize("obs", [PLANES, IMAGE], ids=["planes", "image"])
def test_frames_whose_patches_are_known_come_back_exactly(obs):
    nets, rng = networks(obs, patch=3 if obs is PLANES else 16, codes=40), np.random.default_rng(0)
    frame = (
        rng.integers(0, 256, (2, *obs.shape)).astype(np.uint8) if obs is IMAGE else rng.random((2, *obs.shape)) < 0.4
    )

    @jax.jit
    def through(frame):
        patches = nets.patches(frame)
        book = jnp.full((nets.config.codes, patches.shape[-1]), token_dyna.FAR)
        params = {"codes": token_dyna.grown(book, patches.reshape(-1, patches.shape[-1]), 1e-6, 40)}
        tokens = nets.encode(params, frame)
        return tokens, nets.decode(params, tokens), nets.decode(params, jnp.full_like(tokens, 39))

    tokens, shown, unknown = jax.device_get(through(frame))
    assert tokens.shape == (2, nets.world.tokens) and shown.dtype == obs.dtype
    np.testing.assert_array_equal(shown, frame)
    assert not unknown.any()


def test_a_block_predicts_the_same_places_of_the_next_frame():
    """The loss by loops, from the same hidden states; nothing counts across the start of an episode."""
    nets, rng, length = networks(), np.random.default_rng(0), 6
    first = np.zeros((2, length), bool)
    first[0, 3] = first[1, 0] = True
    terminal, reward = rng.random((2, length)) < 0.3, rng.integers(-1, 2, (2, length)).astype(np.float32)
    tokens, action = rng.integers(0, 6, (2, length, 6)), rng.integers(0, ACTIONS, (2, length))
    record, world = Record(None, reward, first, terminal, terminal, action, {}), nets.world

    @jax.jit
    def both(key):
        params = world.init(key)
        hidden = world.window(params, tokens[:, :-1], action[:, :-1], first[:, :-1], None)
        bins, end = world.outcomes(params, hidden[:, :, -1])
        likely = world.next_token(params, hidden).logp
        loss = token_dyna.model_loss(nets, params, tokens, record, key)
        return likely, jax.nn.log_softmax(bins.logits), jax.nn.log_sigmoid(end), jax.nn.log_sigmoid(-end), loss

    token, bins, end, on, (total, (_, metrics)) = jax.device_get(both(jax.random.key(0)))
    losses, frames = {"token": [], "reward": [], "end": []}, []
    for b, t in np.argwhere(~first[:, 1:]):
        losses["token"] += [-token[b, t, k, tokens[b, t + 1, k]] for k in range(6)]
        losses["reward"].append(-bins[b, t, int(reward[b, t + 1]) + 1])
        losses["end"].append(-(end if terminal[b, t + 1] else on)[b, t])
        frames.append((token[b, t, :6].argmax(-1) == tokens[b, t + 1]).all())
    for name, each in losses.items():
        assert metrics[f"loss/{name}"] == pytest.approx(np.mean(each), rel=1e-4), name
    assert total == pytest.approx(sum(map(np.mean, losses.values())), rel=1e-4)
    assert metrics["accuracy/frame"] == pytest.approx(np.mean(frames))


def test_the_model_learns_what_pays():
    """Planes whose left or right half is lit, and an action that pays on that side: reward and end become known."""
    obs = jax.ShapeDtypeStruct((4, 4, 1), np.bool_)
    sizes = dict(patch=2, codes=4, frames=2, width=16, heads=2, layers=1, units=4, burn_in=0, model_batch=32)
    agent = agents.make("token-dyna", Spec("my/Lit", obs, Discrete(2), 1), **sizes, context=1, imag_length=3)
    update = agent.train_steps["model"].update

    def batch(key):
        side, action = jax.random.randint(key, (2, 32), 0, 2)
        lit = jnp.broadcast_to((jnp.arange(4) // 2 == side[:, None])[:, None, None, :, None], (32, 3, 4, 4, 1))
        over = jnp.broadcast_to(jnp.array([False, True, False]), (32, 3))
        reward = jnp.zeros((32, 3)).at[:, 1].set(action == side)
        first = jnp.broadcast_to(jnp.array([True, False, True]), (32, 3))
        return Batch(Record(lit, reward, first, over, over, jnp.stack([action] * 3, 1), {}), None, None)

    @jax.jit
    def learned(key):
        state = agent.init(key, agent.hyper | {"model_lr": 1e-2})
        patches = jnp.array([[0.0] * 4, [1.0] * 4, [0.0, 1.0] * 2, [1.0, 0.0] * 2])
        state = state._replace(params=state.params | {"codes": patches})

        def step(state, key):
            state, _, metrics = update(state, batch(key), key)
            return state, metrics

        return jax.lax.scan(step, state, jax.random.split(key, 150))[1]

    metrics = jax.device_get(learned(jax.random.key(0)))
    assert metrics["loss/reward"][:5].mean() > 0.5 and metrics["loss/reward"][-5:].mean() < 0.05
    assert metrics["loss/end"][-5:].mean() < 0.05 and metrics["accuracy/frame"][-5:].mean() > 0.95


def test_real_play_as_experience():
    """The first frames only remind; what follows an end does not count."""
    nets, rng, length = networks(), np.random.default_rng(0), 6
    flags = np.zeros((3, 2, length), bool)  # first, last, terminal
    flags[0, 0, 4] = flags[1, 0, 3] = flags[2, 0, 3] = flags[1, 1, 5] = True
    obs, reward = rng.random((2, length, *PLANES.shape)) < 0.3, rng.random((2, length)).astype(np.float32)
    record = Record(obs, reward, *flags, rng.integers(0, ACTIONS, (2, length)), {})

    @jax.jit
    def all_of_it(key):
        params = {"policy": nets.policy.init(key)}
        seen = token_dyna.played(nets, params, record)
        memory = nets.policy.burnt_in(params["policy"], obs[:, :2], flags[0, :, :2])
        return seen, memory

    seen, memory = jax.device_get(all_of_it(jax.random.key(0)))
    np.testing.assert_array_equal(seen.obs, obs[:, 2:].swapaxes(0, 1))
    np.testing.assert_array_equal(seen.reward, reward[:, 2:].T)
    assert seen.weight.T.tolist() == [[1, 0, 1, 1], [1, 1, 1, 0]]
    assert seen.cont.T.tolist() == [[1, 0, 1, 1], [1, 1, 1, 1]]
    assert seen.first[2, 0] and seen.last[1, 0]
    np.testing.assert_allclose(seen.memory.hidden, memory.hidden)


def test_what_does_not_fit_is_one_clear_line():
    with pytest.raises(ValueError, match="token-dyna sees one picture"):
        agents.make("token-dyna", Spec("my/Vector", jax.ShapeDtypeStruct((4,), np.float32), Discrete(2)))
    with pytest.raises(ValueError, match=r"context \+ imag_length - 2 must be at most frames, 4"):
        agents.settings("token-dyna", "micro", context=2, imag_length=5)
