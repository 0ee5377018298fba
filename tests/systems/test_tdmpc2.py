"""TD-MPC2: its losses and the value of a plan against plain NumPy, discrete regression, guided plans, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import Cursor, Trainer, agents, envs
from jaxwm.agents import tdmpc2
from jaxwm.control import planning
from jaxwm.control.actor_critic import initial_range
from jaxwm.distributions import SymlogTwoHot, even_bins
from jaxwm.nets.simnorm import Normed, mish, simnorm
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import member_keys
from jaxwm.types import Box, Discrete, Record, Spec

VECTOR = jax.ShapeDtypeStruct((3,), jnp.float32)
SPEC = Spec("own/Numbers", VECTOR, Box(2), 200)
TINY = dict(
    latent=8, group=4, enc_units=6, units=6, layers=1, values=3, bins=11, dropout=0.5, episodic=True, candidates=12,
    elites=4, policy_plans=3, iterations=2, batch_size=4, prefill=20, capacity=100,
)  # fmt: skip
B, H = 5, 3


# --- Parts --------------------------------------------------------------------------------------------------------


def test_simplices_sum_to_one():
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    groups = np.exp(x.reshape(2, 2, 4))
    np.testing.assert_allclose(simnorm(x, 4), (groups / groups.sum(-1, keepdims=True)).reshape(2, 8), rtol=1e-5)


def test_regression_by_classification():
    """Symlog, two nearest bins, cross-entropy; the mean bin through symexp. A value on a bin is hit exactly."""
    bins = even_bins(101, 10.0)
    found = jax.jit(lambda logits, value: (SymlogTwoHot(logits, bins).loss(value), SymlogTwoHot(logits, bins).mean()))
    value = np.float32(3.0)  # symlog 1.386: between the bins 1.2 and 1.4
    share = (np.log(4.0) - 1.2) / 0.2
    logits = np.zeros(101, np.float32)
    logits[56], logits[57] = 2.0, 1.0
    logp = logits - np.log(np.exp(logits).sum())
    cross, mean = found(logits, value)
    assert float(cross) == pytest.approx(-(share * logp[57] + (1 - share) * logp[56]), rel=1e-4)
    assert float(mean) == pytest.approx(np.expm1((np.exp(logp) * np.linspace(-10, 10, 101)).sum()), rel=1e-4)
    exact = np.where([i in (56, 57) for i in range(101)], 0.0, -np.inf).astype(np.float32)
    exact[56], exact[57] = np.log(1 - share), np.log(share)
    assert float(found(exact, value)[1]) == pytest.approx(3.0, rel=1e-4)
    assert float(found(np.zeros(101, np.float32), value)[1]) == 0.0


@pytest.mark.parametrize(
    ("limit", "expected"), [(500, 0.99), (200, 0.975), (1000, 0.995), (10_000, 0.995), (20, 0.95), (None, 0.995)]
)
def test_the_discount_follows_the_length_of_an_episode(limit, expected):
    assert tdmpc2.discount_of(tdmpc2.Config(), limit) == pytest.approx(expected)


# --- Losses -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    """Networks, a state with random weights in all heads, windows with ends in them, noise; all as NumPy."""
    nets = tdmpc2.build(SPEC, tdmpc2.Config(**TINY))
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    blank = jax.eval_shape(nets.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.5 * normal(*x.shape), blank)
    slow = jax.tree.map(lambda x: x + 0.1, params["val"])
    hyper = {"entropy": np.float32(0.1), "tau": np.float32(0.5), "lr": np.float32(1e-3)}
    state = tdmpc2.State(params, None, hyper, np.int32(0), slow, initial_range())
    first, terminal = np.zeros((2, B, H + 1), bool)
    first[1, 2], first[2, 1], terminal[3, 3] = True, True, True
    action = np.tanh(normal(B, H + 1, 2))
    record = Record(normal(B, H + 1, 3), 2 * normal(B, H + 1), first, np.roll(first, -1, 1), terminal, action, {})
    factors = (rng.uniform(size=(3, H, B, 6)) > 0.5).astype(np.float32) * 2
    noise = tdmpc2.Noise(normal(H, B, 2), normal(H + 1, B, 2), np.int32([[2, 0], [1, 2]]), factors)
    return nets, state, record, noise


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def norm(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def hidden(params, x, factors=None):
    x = linear(params["linear0"], x)
    x = norm(params["norm0"], x if factors is None else x * factors)
    return x * np.tanh(np.log1p(np.exp(x)))


def simplex(params, x):
    x = np.exp(norm(params["norm"], linear(params["out"], x))).reshape(*x.shape[:-1], -1, 4)
    return (x / x.sum(-1, keepdims=True)).reshape(*x.shape[:-2], -1)


class ByHand:
    """The networks of `TINY` in NumPy, with double precision."""

    def __init__(self, nets, params):
        self.p = {k: jax.tree.map(lambda x: np.asarray(x, np.float64), v["params"]) for k, v in params.items()}
        self.bins = np.linspace(-10, 10, 11)
        self.enc = lambda obs: np.asarray(jax.jit(nets.world.enc.apply)(params["enc"], obs), np.float64)

    def encode(self, obs):
        return simplex(self.p["emb"], self.enc(obs))

    def head(self, name, *x, factors=None, params=None):
        params = params or self.p[name]
        return linear(params["out"], hidden(params, np.concatenate(x, -1), factors))

    def advance(self, z, a):
        return simplex(self.p["dyn"], hidden(self.p["dyn"], np.concatenate([z, a], -1)))

    def policy(self, z, noise):
        mean, raw = np.split(self.head("pol", z), 2, -1)
        log_std = -10 + 6 * (np.tanh(raw) + 1)
        x = mean + np.exp(log_std) * noise
        density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
        return np.tanh(x), (density - np.log1p(-(np.tanh(x) ** 2))).sum(-1)

    def one(self, q, val=None):
        return jax.tree.map(lambda x: np.asarray(x, np.float64)[q], val["params"] if val else self.p["val"])

    def mean(self, logits):
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        x = (probs * self.bins).sum(-1)
        return np.sign(x) * np.expm1(np.abs(x))

    def cross(self, logits, value):
        target = np.sign(value) * np.log1p(np.abs(value))
        weight = np.maximum(0, 1 - np.abs(target[..., None] - self.bins) / 2)  # the bins are 2 apart
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -(weight * logp).sum(-1)


def expected_losses(case):
    nets, state, record, noise = case
    hand = ByHand(nets, state.params)
    z, actions = [hand.encode(record.obs[:, 0])], record.action.swapaxes(0, 1)[:-1]
    for t in range(H):
        z.append(hand.advance(z[-1], actions[t]))
    z = np.stack(z)
    ahead = hand.encode(record.obs[:, 1:].swapaxes(0, 1))
    after, _ = hand.policy(ahead, noise.target)
    future = np.stack([hand.mean(hand.head("", ahead, after, params=hand.one(q, state.slow))) for q in (2, 0)]).min(0)
    reward, terminal = record.reward[:, 1:].T, record.is_terminal[:, 1:].T
    target = reward + 0.975 * (1 - terminal) * future
    weight = np.ones((H, B))
    weight[1:, 1], weight[:, 2] = 0, 0  # from the first record on that begins another episode
    rho = 0.5 ** np.arange(H)
    mean = lambda x: (rho * (x * weight).sum(1) / weight.sum(1)).mean()  # noqa: E731
    values = [hand.cross(hand.head("", z[:-1], actions, params=hand.one(q), factors=noise.factors[q]), target)
              for q in range(3)]  # fmt: skip
    logit = hand.head("end", z[1:])[..., 0]
    parts = {
        "loss/consistency": mean(((z[1:] - ahead) ** 2).mean(-1)),
        "loss/reward": mean(hand.cross(hand.head("rew", z[:-1], actions), reward)),
        "loss/value": mean(np.mean(values, 0)),
        "loss/end": mean(np.log1p(np.exp(logit)) - logit * terminal),
    }
    action, log_prob = hand.policy(z, noise.policy)
    value = np.mean([hand.mean(hand.head("", z, action, params=hand.one(q))) for q in (1, 2)], 0)
    low, high = (0.5 * np.percentile(value[0], q) for q in (5, 95))
    gain = value / max(1.0, high - low) - 0.1 * log_prob
    counts = np.concatenate([np.ones((1, B)), weight])
    parts["loss/policy"] = -(0.5 ** np.arange(H + 1) * (gain * counts).sum(1) / counts.sum(1)).mean()
    return parts


def test_the_losses_are_those_of_numpy(case):
    nets, state, record, noise = case
    total, (_, metrics) = jax.jit(lambda p: tdmpc2.loss(nets, p, state, record, noise))(state.params)
    expected = expected_losses(case)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=2e-4, abs=1e-5), name
    whole = dict(consistency=20, reward=0.1, value=0.1, end=1, policy=1)
    assert float(total) == pytest.approx(sum(k * expected[f"loss/{n}"] for n, k in whole.items()), rel=2e-4)


def test_the_policy_learns_apart_from_the_model(case):
    """The model's loss gives the policy no gradient, the policy's loss nothing but the policy."""
    nets, state, record, noise = case

    def policy(params):
        _, (latent, weight, _) = tdmpc2.model_loss(nets, params, state.slow, record, noise)
        return tdmpc2.policy_loss(nets, params, state, latent, weight, noise)[0]

    of_model, of_policy = jax.jit(
        lambda p: (jax.grad(lambda p: tdmpc2.model_loss(nets, p, state.slow, record, noise)[0])(p), jax.grad(policy)(p))
    )(state.params)
    for name in state.params:
        moved = [any(np.abs(x).max() > 0 for x in jax.tree.leaves(g[name])) for g in (of_model, of_policy)]
        assert moved == ([False, True] if name == "pol" else [True, False]), name


# --- Plans --------------------------------------------------------------------------------------------------------


def test_the_value_of_a_plan_is_that_of_numpy(case):
    """Rewards up to a predicted end, then the value of the policy's action, all discounted."""
    nets, state, record, _ = case
    rng = np.random.default_rng(3)
    plans, noise = np.tanh(rng.normal(size=(6, H, 2))).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    hand = ByHand(nets, state.params)
    start = hand.encode(record.obs[:1, 0])
    z, total, alive = np.repeat(start, 6, 0), np.zeros(6), np.ones(6)
    for t in range(H):
        total += 0.975**t * alive * hand.mean(hand.head("rew", z, plans[:, t]))
        z = hand.advance(z, plans[:, t])
        alive *= hand.head("end", z)[:, 0] < 0
    last, _ = hand.policy(z, noise)
    value = np.mean([hand.mean(hand.head("", z, last, params=hand.one(q))) for q in (0, 1)], 0)
    pair, latent = np.int32([0, 1]), start[0].astype(np.float32)
    found = jax.jit(lambda plans: tdmpc2.plan_value(nets, state.params, latent, plans, noise, pair))(plans)
    np.testing.assert_allclose(found, total + 0.975**H * alive * value, rtol=1e-3, atol=1e-4)


def test_plans_of_the_policy_compete():
    """With noise too small to find it, the best sequence is the one in memory; it is not there at the next step."""
    target = jnp.array([[0.5, -0.5], [0.2, 0.1], [0.0, 0.9]])
    score = lambda tried, key: -jnp.square(tried - target).sum((1, 2))  # noqa: E731
    action = {}
    for returns in ("mean", "elite", "noisy"):
        planner = planning.mppi(2, 3, 16, 4, 2, 100.0, max_std=1e-3, min_std=1e-4, returns=returns)
        memory = planner.start()._replace(kept=target[None])
        memory, action[returns] = jax.jit(lambda m, p=planner: p.plan(score, m, jax.random.key(0)))(memory)
        assert memory.kept is None
        np.testing.assert_allclose(memory.mean, [[0.2, 0.1], [0.0, 0.9], [0, 0]], atol=1e-3)
    np.testing.assert_allclose(action["elite"], target[0], atol=1e-3)
    assert 0 < np.abs(action["noisy"] - action["elite"]).max() < 1e-2


def test_the_policy_is_followed_in_latents(case):
    nets, state, record, _ = case
    hand, noise = ByHand(nets, state.params), np.random.default_rng(4).normal(size=(H, 2, 2)).astype(np.float32)
    z = np.repeat(hand.encode(record.obs[:1, 0]), 2, 0)
    found = jax.jit(lambda z: tdmpc2.follow(nets, state.params, z, noise))(z[0].astype(np.float32))
    for t in range(H):
        action, _ = hand.policy(z, noise[t])
        np.testing.assert_allclose(found[:, t], action, rtol=1e-4, atol=1e-5)
        z = hand.advance(z, action)


# --- Learning -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_finds_a_target():
    """One step, reward -(a - 1/2)^2 (probe/ContinuousTarget): a random policy gets -7/12."""
    settings = dict(TINY, dropout=0.0, bins=41, most=2.0, batch_size=32, envs=8, prefill=64, first_updates=100, lr=1e-2,
                    candidates=32, elites=8, capacity=1000)  # fmt: skip
    config = agents.settings("tdmpc2", **settings)
    env = envs.make("probe/ContinuousTarget", config.envs)
    agent = agents.build("tdmpc2", env.spec, config)
    trainer = Trainer(agent, env, 1, config.capacity)
    life, cursor = trainer.init(0), Cursor()
    while cursor.segment < 2:
        life, cursor, _ = trainer.run(life, cursor, 256)
    life, cursor, _ = trainer.run(life, cursor, 20)
    scores = evaluate(agent, envs.make("probe/ContinuousTarget", 32), life.agent, member_keys(1, 1), 32)
    assert scores.means().min() >= -0.05, scores.means()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (Spec("own/Discrete", VECTOR, Discrete(2)), {}, "continuous actions .Box.; own/Discrete has"),
        (SPEC, {"latent": 12}, "latent must be a multiple of group .8., not 12"),
        (SPEC, {"policy_plans": 128}, "policy_plans .* at most 127"),
        (SPEC, {"bins": 10}, "odd number of bins"),
        (SPEC, {"discount_least": 0.999}, "discount_most .* at least 0.999"),
    ],
)
def test_what_does_not_fit_is_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        agents.make("tdmpc2", spec, **options)


def test_mish():
    """And a network without hidden layers is linear."""
    x = np.float32([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(mish(x), x * np.tanh(np.log1p(np.exp(x))), rtol=1e-5)
    net = Normed(0, 0, 2)
    params = jax.jit(net.init)(jax.random.key(0), x[None])
    np.testing.assert_allclose(jax.jit(net.apply)(params, x[None]), x[None] @ params["params"]["out"]["kernel"], 1e-5)
