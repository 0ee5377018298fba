"""STORM: its losses against NumPy, what acting and dreaming see, and that nothing crosses the end of an episode."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_close
from tiny import TINY, settings

from jaxwm import agents
from jaxwm.agents import storm
from jaxwm.control import actor_critic as ac
from jaxwm.distributions import symexp_bins
from jaxwm.nets import attention
from jaxwm.nets.layers import apply
from jaxwm.types import Batch, Discrete, Index, Record, Spec, Step

B, L, S, C, W, BINS = 2, 6, 4, 4, 8, 11
SPEC = Spec("test", jax.ShapeDtypeStruct((5,), jnp.bool_), Discrete(3), 10)
Key = jax.random.key


def learner(**options: Any) -> storm.Learner:
    config = settings("storm", **options)
    return storm.Learner(storm.build(SPEC, config), SPEC, config)


@cache
def weights() -> Any:
    """Parameters in which no bias and no head is 0."""
    params = jax.jit(lambda key: storm.init_params(learner().nets, key))(Key(0))
    leaves, structure = jax.tree.flatten(jax.device_get(params))
    rng = np.random.default_rng(1)
    noisy = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, noisy)


def record(key: Any = Key(2), length: int = L) -> Record:
    """Random records `[B, length]`; in row 1 an episode ends at record 2, a terminal one."""
    keys = jax.random.split(key, 3)
    flag = jnp.zeros((B, length), bool)
    return Record(
        obs=jax.random.bernoulli(keys[0], 0.5, (B, length, 5)),
        reward=jax.random.normal(keys[1], (B, length)),
        is_first=flag.at[1, 3].set(True),
        is_last=flag.at[1, 2].set(True),
        is_terminal=flag.at[1, 2].set(True),
        action=jax.random.randint(keys[2], (B, length), 0, 3),
        extras={},
    )


# --- The model in NumPy -------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def norm(x: np.ndarray, params: Any) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def linear(x: np.ndarray, params: Any) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def turned(x: np.ndarray, place: int) -> np.ndarray:
    """The complex numbers a + ib of a head's two halves, turned by an angle for each."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * place * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], -1)


def transformer(x: np.ndarray, params: Any, first: np.ndarray, heads: int = 2) -> np.ndarray:
    """Outputs `[T, W]` for the tokens `x [T, W]` of one row, token by token, over the tokens of its own episode."""
    x, width = norm(x, params["edge_norm"]), x.shape[-1] // heads
    for layer in range(2):
        p = params[f"blocks_{layer}"]
        q, k, v = np.split(linear(x, p["qkv"]).reshape(len(x), 3 * heads, width), 3, 1)
        mixed = np.zeros_like(q)
        for t in range(len(x)):
            start = max(s for s in range(t + 1) if s == 0 or first[s])
            for h in range(heads):
                keys = np.stack([turned(k[s, h], s) for s in range(start, t + 1)])
                scores = softmax(keys @ turned(q[t, h], t) / np.sqrt(width))
                mixed[t, h] = scores @ v[start : t + 1, h]
        x = norm(x + linear(mixed.reshape(len(x), -1), p["merge"]), p["norms_0"])
        x = norm(x + linear(np.maximum(0, linear(x, p["inner"])), p["outer"]), p["norms_1"])
    return x


def crossed(logits: np.ndarray, number: float, bins: np.ndarray) -> float:
    """Cross-entropy of a two-hot target."""
    above = int(np.searchsorted(bins, number))
    share = (number - bins[above - 1]) / (bins[above] - bins[above - 1])
    logp = np.log(softmax(logits))
    return -((1 - share) * logp[above - 1] + share * logp[above])


def test_losses_of_the_model_by_hand():
    """The transformer and every loss in float64; what follows an end is neither seen nor predicted from before it."""
    scales = dict(rec_scale=0.7, rew_scale=2.0, con_scale=3.0, dyn_scale=0.5, rep_scale=0.1, free_nats=2.0, unimix=0.1)
    it = learner(**scales)
    params, seen = weights(), record()
    uniform = jax.random.uniform(Key(3), (B, L, S))

    @jax.jit
    def run(params):
        model = params["model"]
        total, (_, metrics) = storm.model_loss(it, model, seen, uniform)
        post = it.world.infer(model, seen.obs)
        stoch = it.world.latents.draw(post, uniform)
        token = it.world.token(model, stoch[:, :-1], seen.action[:, :-1])
        hidden = apply(it.world.net, model["net"], token, seen.is_first[:, :-1])
        heads = {name: apply(getattr(it.nets, name), model[name], hidden) for name in ("rew", "con")}
        heads["prior"] = apply(it.world.prior, model["prior"], hidden)
        nothing = jnp.zeros((B, L, 0))
        return (
            total,
            metrics,
            post.logp,
            token,
            hidden,
            heads,
            apply(it.world.dec, model["dec"], nothing, stoch.reshape(B, L, -1)),
        )

    found = jax.tree.map(lambda x: np.asarray(x, np.float64), run(params))
    total, metrics, post, token, hidden, heads, decoded = found
    net = jax.tree.map(lambda x: np.asarray(x, np.float64), params["model"]["net"]["params"])
    first = np.asarray(seen.is_first)
    ours = np.stack([transformer(token[b], net, first[b]) for b in range(B)])
    np.testing.assert_allclose(hidden, ours, rtol=1e-4, atol=1e-5)

    prior = np.log(0.9 * softmax(heads["prior"]["logits"].reshape(B, L - 1, S, C)) + 0.1 / C)
    kl = (np.exp(post[:, 1:]) * (post[:, 1:] - prior)).sum((-1, -2))
    assert (kl < 2.0).any() and (kl > 2.0).any(), "the free nats are tested on both sides"
    inside = ~first[:, 1:]
    bins, reward = np.asarray(symexp_bins(BINS), np.float64), np.asarray(seen.reward)[:, 1:]
    logit, over = heads["con"]["logit"][..., 0], np.asarray(seen.is_terminal)[:, 1:]
    rew = [crossed(heads["rew"]["bins"][b, t], reward[b, t], bins) for b, t in np.argwhere(inside)]
    guess, obs = decoded["obs"], np.asarray(seen.obs, np.float64)
    expected = {
        "dyn": np.maximum(kl, 2.0)[inside].mean(),
        "rep": np.maximum(kl, 2.0)[inside].mean(),
        "rew": np.mean(rew),
        "con": (np.log1p(np.exp(logit)) - logit * ~over)[inside].mean(),
        "rec": (np.log1p(np.exp(guess)) - guess * obs).sum(-1).mean(),
    }
    for name, number in expected.items():
        assert metrics[f"loss/{name}"] == pytest.approx(number, rel=1e-4), name
    assert total == pytest.approx(sum(scales[f"{name}_scale"] * x for name, x in expected.items()), rel=1e-4)


def test_a_dream_is_evaluated_by_hand():
    """Lambda-returns, weights from the root on, and both targets of the critic, in NumPy."""
    it, horizon, gamma, lam = learner(imag_length=3), 3, 0.9, 0.8
    params = weights()
    feat = jax.random.normal(Key(4), (horizon + 1, B, S * C + W))
    hidden, ended = jax.random.normal(Key(5), (horizon + 1, B, W)), jnp.array([False, True])
    slow = jax.tree.map(lambda x: x + 0.1, params["val"])
    hyper = dict(discount=jnp.float32(gamma), lam=jnp.float32(lam))
    state = storm.State(params, slow, ac.initial_range(), None, hyper, jnp.int32(0))

    @jax.jit
    def run(val, state):
        loss, seen = storm.evaluate_dream(it, val, state, feat, hidden, ended)
        model = state.params["model"]
        heads = it.reward(model, hidden).logits, it.continues(model, hidden), it.value(val, feat).logits
        return loss, seen, heads, it.value(state.slow, feat).logits

    out = jax.tree.map(lambda x: np.asarray(x, np.float64), run(params["val"], state))
    loss, seen, (reward, logit, value), slow = out
    bins = np.asarray(symexp_bins(BINS), np.float64)
    r, v, w = (softmax(x) @ bins for x in (reward, value, slow))
    goes = 1 / (1 + np.exp(-logit))
    goes[0] = 1.0, 0.0
    for b in range(B):
        future = v[-1, b]
        for t in reversed(range(horizon)):
            future = r[t + 1, b] + gamma * goes[t + 1, b] * ((1 - lam) * v[t + 1, b] + lam * future)
            weight = np.prod(gamma * goes[: t + 1, b])
            both = crossed(value[t, b], future, bins) + crossed(value[t, b], w[t, b], bins)
            assert seen.returns[t, b] == pytest.approx(future, rel=1e-3, abs=1e-3)
            assert seen.weight[t, b] == pytest.approx(weight, rel=1e-4, abs=1e-7)
            assert loss[t, b] == pytest.approx(weight * both, rel=1e-3, abs=1e-5)
    assert not loss[:, 1].any(), "a dream from the end of an episode teaches nothing"


# --- What is seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_crosses_the_end_of_an_episode_unless_asked(across):
    """Other records before the new episode of row 1 change what is predicted in it only if windows run across."""
    it = learner(across_episodes=across)
    params, seen = weights(), record()
    before = seen._replace(obs=seen.obs.at[1, :3].set(~seen.obs[1, :3]), action=(seen.action + 1) % 3)
    before = before._replace(action=seen.action.at[1, :3].set(before.action[1, :3]))

    @jax.jit
    def outputs(params, seen):
        stoch = it.world.latents.draw(it.world.infer(params["model"], seen.obs), jnp.full((B, L, S), 0.5))
        token = it.world.token(params["model"], stoch, seen.action)
        return apply(it.world.net, params["model"]["net"], token, it.world.first(seen))

    moved = np.abs(outputs(params, before) - outputs(params, seen)).max(-1) > 1e-5
    assert moved[1, :3].all() and not moved[0].any()
    assert moved[1, 3:].all() if across else not moved[1, 3:].any()
    uniform = jax.random.uniform(Key(3), (B, L, S))
    loss = jax.jit(lambda reward: storm.model_loss(it, params["model"], seen._replace(reward=reward), uniform)[0])
    jump = loss(seen.reward.at[1, 3].add(5.0)) != loss(seen.reward)  # what arrives with the first record
    assert bool(jump) == across


def test_acting_sees_what_learning_sees():
    """Step by step over the cache, two episodes long: outputs, and the frame from which a dream would start."""
    it = learner()
    agent = storm.make(SPEC, it.config)
    params, seen = weights(), record()
    state = storm.State(params, params["val"], ac.initial_range(), None, {}, jnp.int32(0))

    @jax.jit
    def act(state, carry, step, key):
        return agent.act(state, carry, step, key, "explore")

    carry, actions, outputs, latents = jax.jit(agent.reset, static_argnums=1)(state, B), [], [], []
    for t in range(L):
        step = Step(*jax.tree.map(lambda x, t=t: x[:, t], seen[:5]))
        key = jax.random.fold_in(Key(6), t)
        latents.append(jax.random.uniform(jax.random.split(key)[0], (B, S)))
        carry, action, extras = act(state, carry, step, key)
        assert extras == {}
        actions.append(action)
        outputs.append(carry.hidden)
    taken, uniform = seen._replace(action=jnp.stack(actions, 1)), jnp.stack(latents, 1)

    @jax.jit
    def learn(params):
        model = params["model"]
        stoch = it.world.latents.dream(it.world.infer(model, taken.obs), uniform)
        whole = apply(it.world.net, model["net"], it.world.token(model, stoch, taken.action), taken.is_first)
        at = lambda n: it.world.see(model, jax.tree.map(lambda x: x[:, :n], taken), uniform[:, :n], 2)[1].hidden[:, 0]  # noqa: E731
        return whole, at(L), at(4)

    whole, last, new = learn(params)
    assert_close(jnp.stack(outputs, 1), whole, 1e-4, 1e-5)
    assert_close(last, whole[:, L - 2], 1e-4, 1e-5)
    assert new[0].any() and not new[1].any(), "at the first record of an episode there is no past"


def test_a_dream_goes_on_as_the_records_would():
    """Given the frames that were dreamed as records, the model predicts from them what the dream did."""
    it = learner()
    params, context = weights(), record(length=4)
    noise = it.noise(Key(7), B, 4, 3)

    @jax.jit
    def run(params):
        feat, hidden, actions = it.rollout(params, context, noise)
        model, stoch = params["model"], feat[..., : S * C].reshape(4, B, S, C)
        seen = it.world.latents.dream(it.world.infer(model, context.obs), noise.observe)
        every = jnp.concatenate([seen[:, :-1], stoch.swapaxes(0, 1)], 1)  # [B, 3 + 4]
        taken = jnp.concatenate([context.action[:, :-1], actions.T], 1)
        first = jnp.pad(context.is_first, ((0, 0), (0, 3)))
        whole = apply(it.world.net, model["net"], it.world.token(model, every, taken), first)
        drawn = it.world.latents.dream(it.world.predict(model, whole[:, 3:-1]), noise.imagine)
        return hidden, whole, stoch, drawn

    hidden, whole, stoch, drawn = run(params)
    assert_close(hidden[1:], whole[:, 3:-1].swapaxes(0, 1), 1e-4, 1e-5)
    assert_close(hidden[0, 0], whole[0, 2], 1e-4, 1e-5)
    assert not hidden[0, 1].any(), "row 1 starts at the first record of an episode"
    np.testing.assert_array_equal(stoch[1:], drawn.swapaxes(0, 1))


@pytest.mark.slow
def test_dropout_is_for_learning_only():
    it = learner(dropout=0.5)
    factors = attention.dropout_factors(it.world.net, jax.random.uniform(Key(8), (B, L - 1, 2, 2, W)))
    params, uniform = weights()["model"], jax.random.uniform(Key(3), (B, L, S))
    loss = jax.jit(lambda factors: storm.model_loss(it, params, record(), uniform, factors)[0])
    assert loss(factors) != loss(jnp.ones_like(factors))


# --- Learning -----------------------------------------------------------------------------------------------------


def paying(key: Any, rows: int, length: int) -> Batch:
    """Episodes of one step whose reward is +1 for action 1 and -1 for the others, `[rows, length]`."""
    action = jax.random.randint(key, (rows, length), 0, 3)
    shift = jax.random.randint(jax.random.fold_in(key, 1), (rows, 1), 0, 2)
    last = (jnp.arange(length) + shift) % 2 == 1
    reward = jnp.where(last, jnp.where(jnp.roll(action, 1, 1) == 1, 1.0, -1.0), 0.0)
    obs = jnp.zeros((rows, length, 5), bool)
    index = Index(jnp.arange(rows), jnp.zeros(rows, jnp.int32))
    return Batch(Record(obs, reward, ~last, last, last, action, {}), index, jnp.ones(rows))


def test_it_learns_which_action_pays():
    """Updates on random play only: the policy takes the action that pays, and the critic knows what it is worth.
    The slow critic holds the other back, so its value needs some hundred updates more than the policy."""
    options = dict(width=16, units=16, bins=41, discount=0.5, lr=1e-2, behaviour_lr=1e-2, free_nats=0.0, dreams=16)
    it = learner(**options, batch_size=8, entropy=1e-2)
    agent = storm.make(SPEC, it.config)
    sizes = {name: (step.batch_size, step.length) for name, step in agent.train_steps.items()}

    @jax.jit
    def learn(key):
        def update(state, key):
            batches = {name: paying(jax.random.fold_in(key, i), *size) for i, (name, size) in enumerate(sizes.items())}
            return agent.train_step(state, batches, key)

        state, metrics = jax.lax.scan(update, agent.init(key, agent.hyper), jax.random.split(key, 700))
        stoch = it.world.latents.dream(
            it.world.infer(state.params["model"], jnp.zeros((1, 5), bool)), jnp.full((1, S), 0.5)
        )
        feat = it.feat(stoch, jnp.zeros((1, 16)))
        chance = it.actor(state.params["pol"], feat).parts[0].probs[0]
        return metrics["loss/rew"], chance, it.value(state.params["val"], feat).mean()[0]

    loss, chance, value = jax.device_get(learn(Key(9)))
    assert loss[-10:].mean() < 0.5 * loss[:10].mean()
    assert chance[1] > 0.8 and value == pytest.approx(2 * chance[1] - 1, abs=0.1), (chance, value)


# --- Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 10}, "odd number of bins"),
        ({"context": 1}, "context"),
        ({"dropout": 1.0}, "dropout"),
        ({"classes": 300}, "classes"),
        ({"positions": "learned", "context": 8, "imag_length": 57}, "the number of learned positions"),
        ({"positions": "sine"}, "positions"),
    ],
)
def test_bad_settings_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        agents.settings("storm", "published", **options)


def test_sizes_are_the_published_ones():
    config = agents.settings("storm", "published")
    transformer = storm.build(SPEC, config).world.net
    assert (config.stoch, config.classes, config.context, config.imag_length, config.dreams) == (32, 32, 8, 16, 1024)
    assert (transformer.layers, transformer.width, transformer.heads, transformer.hidden) == (2, 512, 8, 1024)
    assert storm.schedule(config)[1].body[0].steps == 1, "one update of each part for every step"  # type: ignore[union-attr]
    assert TINY["storm"]["dropout"] > 0
