"""Dreamer V3: shapes, the known traps, gradients, populations, dreams and whole runs.

Numbers of the official implementation are in `test_golden.py`; here every expected value follows from a definition.
Compiling dominates the time, so the programs are fixtures: one small population on Catch gives the trained state and
the batch, and each jitted function below is compiled once.
"""

import math
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_close, assert_same
from dreams import judged
from tiny import TINY

from jaxwm import agents, envs, replay
from jaxwm import distributions as d
from jaxwm.agents import dreamer_v3 as v3
from jaxwm.control import actor_critic as ac
from jaxwm.models import rssm
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Batch, Box, Discrete, Index, MultiDiscrete, Record, Spec, Step

SIZES = TINY["dreamer-v3"] | dict(discount_horizon=10.0)
"""Those of the contract tests, whose compiled programs are then found again; the horizon is not compiled in."""


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Compiling is nearly all that these tests do, and takes half as long unoptimised, which tiny networks can bear."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tiny(**options) -> v3.Config:
    return agents.settings("dreamer-v3", "nano", **(SIZES | options))


copy = jax.jit(partial(jax.tree.map, jnp.copy))


def member(tree, index: int = 0):
    """One member of a population, on the host."""
    return jax.tree.map(lambda x: x[index], jax.device_get(tree))


# --- Shapes and dtypes, without computing anything ----------------------------------------------------------------

VECTOR, IMAGE = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
PLANES = jax.ShapeDtypeStruct((6, 5, 2), jnp.bool_)
KINDS = {
    "vector": (VECTOR, Discrete(3), "float32"),
    "image": (IMAGE, Box(2), "bfloat16"),
    "planes": (PLANES, MultiDiscrete((2, 3)), "float32"),
    "dict": ({"image": IMAGE, "vector": VECTOR}, Discrete(3), "bfloat16"),
}
ACTIONS = {"vector": ((), "int32"), "image": ((2,), "float32"), "planes": ((2,), "int32"), "dict": ((), "int32")}


def shape(lead, like):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*lead, *s.shape), s.dtype), like)


def step_shape(lead, obs) -> Step:
    flag = jax.ShapeDtypeStruct(lead, jnp.bool_)
    return Step(shape(lead, obs), jax.ShapeDtypeStruct(lead, jnp.float32), flag, flag, flag)


def described(tree):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


OFTEN = ("planes", "dict")
"""Kinds of the default suite; between them they have every sensor."""


@pytest.fixture(scope="module", params=[pytest.param(k, marks=[pytest.mark.slow] * (k not in OFTEN)) for k in KINDS])
def kind(request):
    """An agent for one kind of observation and action, with the shapes of its state, carry and extras."""
    obs, space, dtype = KINDS[request.param]
    agent = v3.make(Spec("test", obs, space), tiny(dtype=dtype))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda k: agent.init(k, agent.hyper), key)
    carry = jax.eval_shape(lambda s: agent.reset(s, 5), state)
    act = lambda mode: jax.eval_shape(  # noqa: E731
        lambda *a: agent.act(*a, mode), state, carry, step_shape((5,), obs), key
    )
    action, spec = ACTIONS[request.param], Spec("test", obs, space)
    return SimpleNamespace(
        agent=agent, spec=spec, dtype=dtype, state=state, carry=carry, act=act, action=action, key=key
    )


def test_state_is_float32(kind):
    """Whatever the compute dtype: parameters, moments and hyper-parameters are float32, counters int32."""
    for part in (kind.state.params, kind.state.slow, kind.state.returns, kind.state.hyper):
        assert {str(x.dtype) for x in jax.tree.leaves(part)} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(kind.state.opt)} == {"float32", "int32"}
    assert described(kind.state.step) == ((), "int32")
    assert set(kind.state.params) == set(v3.Networks._fields) - {"bar", "dis"}


def record_shape(kind, lead) -> Record:
    trailing, dtype = kind.action
    extras = {
        "deter": jax.ShapeDtypeStruct((*lead, 16), kind.dtype),
        "stoch": jax.ShapeDtypeStruct((*lead, 4), jnp.uint8),
    }
    step, action = step_shape(lead, kind.spec.obs), jax.ShapeDtypeStruct((*lead, *trailing), dtype)
    return Record(*step, action, extras)


def test_update_keeps_the_state_and_returns_scalars(kind):
    agent, number = kind.agent, jax.ShapeDtypeStruct((2,), jnp.int32)
    step = agent.train_steps["all"]
    assert (step.batch_size, step.length, step.sampler) == (2, 5, "online")
    record, weight = record_shape(kind, (2, 5)), jax.ShapeDtypeStruct((2,), jnp.float32)
    batch = Batch(record, Index(number, number), weight)
    state, feedback, metrics = jax.eval_shape(step.update, kind.state, batch, kind.key)
    assert described(state) == described(kind.state)
    assert described(feedback) == {"deter": ((2, 4, 16), kind.dtype), "stoch": ((2, 4, 4), "uint8")}
    assert all(described(x) == ((), "float32") for x in metrics.values())
    several = {f"loss/rec/{name}" for name in kind.spec.obs} if isinstance(kind.spec.obs, dict) else set()
    assert {name for name in metrics if name.startswith("loss/rec")} == {"loss/rec"} | several


# --- One small population on Catch --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catch():
    """Two members after 800 updates on Catch, the metrics of every chunk, and a batch of each."""
    config = tiny()
    env = envs.make("gymnax/Catch-bsuite", num_envs=2)
    agent = v3.make(env.spec, config)
    trainer = Trainer(agent, env, members=2, capacity=config.capacity)
    life, cursor = trainer.init(0), Cursor()
    start, metrics = jax.device_get(life.agent), []
    life, cursor, _ = trainer.run(life, cursor, 20)  # the prefill
    for _ in range(4):
        life, cursor, report = trainer.run(life, cursor, 200)
        metrics.append(report.metrics)
    sample = jax.jit(lambda ring, key: replay.sample(ring, key, 2, 5))
    batches = [sample(life.ring._replace(data=member(life.ring.data, m)), jax.random.key(m)) for m in (0, 1)]
    learner = v3.Learner(v3.build(env.spec, config), env.spec, config)
    return SimpleNamespace(
        config=config, env=env, agent=agent, trainer=trainer, start=start, life=life, cursor=cursor, metrics=metrics,
        batches=batches, learner=learner, states=[member(life.agent, m) for m in (0, 1)],
    )  # fmt: skip


def chunks(trainer, life, cursor, *lengths):
    for length in lengths:
        life, cursor, _ = trainer.run(life, cursor, length)
    return life, cursor


def test_losses_fall(catch):
    """Both members learn to reconstruct a moving dot and to predict rewards and continues.

    The continue loss cannot fall below the entropy of its target, 1 - 1 / horizon in nine records of ten.
    """
    first, last = catch.metrics[0], catch.metrics[-1]
    for name in ("loss/rec", "loss/rew"):
        assert (last[name] < 0.7 * first[name]).all(), (name, first[name], last[name])
    floor = -0.9 * (0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert (last["loss/con"] < first["loss/con"]).all() and (last["loss/con"] > 0.9 * floor).all()
    assert all(np.isfinite(v).all() for row in catch.metrics for v in row.values())
    assert int(catch.life.counters.updates) == catch.life.agent.step[0] == 4 * 200


def test_feedback_refreshes_the_replay(catch):
    """Stored latents are rewritten by training: a row that was acted in long ago no longer holds what acting wrote."""
    life, _ = chunks(catch.trainer, copy(catch.life), catch.cursor, 1)
    old, new = (jax.device_get(x.ring.data) for x in (catch.life, life))
    capacity = old.reward.shape[1]
    kept = np.arange(capacity) != int(catch.life.ring.rows) % capacity
    changed = (new.extras["deter"] != old.extras["deter"]).any(-1)[:, kept]
    # one update of two sequences with four records each; they may overlap
    assert (changed.sum((1, 2)) <= 2 * 4).all() and (changed.sum((1, 2)) >= 4).all()
    assert_same(new.obs[:, kept], old.obs[:, kept])


@pytest.mark.slow
def test_slow_critic_is_a_copy_at_first_and_follows_slowly(catch, step):
    agent = catch.agent
    fresh = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))  # same structure, nothing computed
    assert jax.tree.structure(fresh.slow) == jax.tree.structure(fresh.params["val"])
    for slow, val in zip(jax.tree.leaves(catch.start.slow), jax.tree.leaves(catch.start.params["val"]), strict=True):
        np.testing.assert_array_equal(slow, val)
    state, _ = step(catch.states[0], catch.batches[0], jax.random.key(0))
    follow = lambda slow, val: 0.98 * slow + 0.02 * val  # noqa: E731
    assert_close(state.slow, jax.tree.map(follow, catch.states[0].slow, state.params["val"]))


def test_init_owns_every_leaf():
    """No leaf of a fresh state is another one's buffer: states are donated. Linear layers alone, to stay cheap."""
    spec = Spec("test", VECTOR, Discrete(2))
    agent = v3.make(spec, tiny(deter=4, blocks=1, hidden=4, units=4, stoch=1, bins=3))
    params = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), jax.eval_shape(
        lambda: agent.init(jax.random.key(0), agent.hyper).params))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v3, "init_params", lambda nets, spec, key, ensemble: params)
        state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    val = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.params["val"])}
    assert not val & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.slow)}


# --- Filtering ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filtering(catch):
    """Jitted `sequence(params, record)` and `single(params, carry, step)` in which every latent is the likeliest one.

    Without chance the two can be compared; with it they draw their random numbers in different shapes.
    """
    learner, key, uniform = catch.learner, jax.random.key(0), jnp.zeros((2, 4, 4))
    params, record = catch.states[0].params, catch.batches[0].record
    carry = catch.agent.reset(catch.states[0], 2)
    step = Step(*jax.tree.map(lambda x: x[:, 0], record[:5]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d.OneHot, "invert", lambda self, uniform: self.mode())
        latents = lambda p, r: v3.model_losses(learner, p, {"discount_horizon": 10.0}, r, uniform)[0]  # noqa: E731
        sequence = jax.jit(latents).lower(params, record).compile()
        single = jax.jit(lambda p, c, s: learner.world.filter(p, c, s, key)).lower(params, carry, step).compile()
    return SimpleNamespace(sequence=sequence, single=single)


def plain(batch: Batch) -> Record:
    """A batch's record without episode boundaries."""
    return batch.record._replace(is_first=jnp.zeros_like(batch.record.is_first))


def differs(a, b) -> list[bool]:
    """At which times of `deter [B, T, D]` two latents differ."""
    return (np.asarray(a.deter) != np.asarray(b.deter)).any((0, 2)).tolist()


@pytest.mark.parametrize("time", range(5))
def test_an_action_changes_what_follows_it_only(catch, filtering, time):
    """Latent i belongs to record i + 1; the action of record t, the context's too, first enters record t + 1."""
    params, record = catch.states[0].params, plain(catch.batches[0])
    other = record._replace(action=record.action.at[:, time].set((record.action[:, time] + 1) % 3))
    changed = differs(filtering.sequence(params, record), filtering.sequence(params, other))
    assert changed[:time] == [False] * time
    assert changed[time : time + 1] == [True][: 4 - time]


def test_is_first_forgets_latent_and_action(catch, filtering):
    """Nothing before an episode's first record reaches it: no observation, stored latent or action."""
    params, record = catch.states[0].params, plain(catch.batches[0])
    before = jnp.arange(5) < 3
    change = lambda x, new: jnp.where(before.reshape(1, 5, *[1] * (x.ndim - 2)), new, x)  # noqa: E731
    other = record._replace(
        obs=change(record.obs, ~record.obs),
        action=change(record.action, (record.action + 1) % 3),
        extras={k: change(v, v + 1 if k == "deter" else (v + 1) % 4) for k, v in record.extras.items()},
    )
    first = record.is_first.at[:, 3].set(True)
    one, two = (filtering.sequence(params, r._replace(is_first=first)) for r in (record, other))
    assert differs(one, two) == [True, True, False, False]
    assert_same(one.stoch[:, 2:], two.stoch[:, 2:])
    assert differs(*(filtering.sequence(params, r) for r in (record, other))) == [True] * 4


def test_acting_filters_like_training(catch, filtering):
    """Step by step as in the environment, or as one sequence from the stored context: the same latents.

    The sequence has an episode boundary; what acting stores in the replay is what training continues from.
    """
    params, record = catch.states[0].params, plain(catch.batches[0])
    record = record._replace(is_first=record.is_first.at[:, 0].set(True).at[0, 2].set(True))
    record, carry, walked = jax.device_get(record), catch.agent.reset(catch.states[0], 2), []
    for t in range(5):
        latent = filtering.single(params, carry, Step(*jax.tree.map(lambda x, t=t: x[:, t], record[:5])))
        walked.append(jax.device_get(catch.learner.world.pack(latent)))
        carry = v3.Carry(latent, record.action[:, t])
    extras = jax.tree.map(lambda *x: np.stack(x, 1), *walked)
    latents = catch.learner.world.pack(filtering.sequence(params, record._replace(extras=extras)))
    assert_close(latents, jax.tree.map(lambda x: x[:, 1:], extras))


def test_a_sequence_can_start_from_refreshed_latents(catch, filtering):
    """Feedback lies at the records it was computed for: a sequence read one row later continues from it."""
    params, batch = catch.states[0].params, catch.batches[0]
    ring = catch.life.ring._replace(data=member(catch.life.ring.data))
    row, env = jnp.array([0, 0]), jnp.array([0, 1])
    early = batch._replace(record=replay.take(ring, Index(row, env), 5), index=Index(row, env))
    latents = filtering.sequence(params, early.record)
    ring = jax.jit(replay.update)(ring, early, catch.learner.world.pack(latents))
    late = filtering.sequence(params, replay.take(ring, Index(row + 1, env), 5))
    assert_close(jax.tree.map(lambda x: x[:, :3], late), jax.tree.map(lambda x: x[:, 1:], latents))
    assert_same(ring.data.extras["deter"][0], catch.life.ring.data.extras["deter"][0, 0])  # the context is left alone


# --- Returns and losses in closed form ----------------------------------------------------------------------------


lambda_return = jax.jit(lambda *sequences, lam: ac.lambda_return(*(x[:, None] for x in sequences), lam)[:, 0])


def returns(reward, value, discount, last=None, lam=0.95):
    reward, value, discount = (jnp.asarray(x, jnp.float32) for x in (reward, value, discount))
    last = np.zeros(reward.shape, bool) if last is None else np.asarray(last, bool)
    return lambda_return(reward, value, discount, last, lam=lam)


VALUES = np.array([5.0, -1.0, 2.0, 0.5, 4.0])
REWARDS = np.array([9.0, 1.0, -2.0, 3.0, 0.5])


def test_one_step_and_monte_carlo_returns():
    """lam = 0 is reward plus discounted value of the next state; lam = 1 sums rewards and adds the last value."""
    np.testing.assert_allclose(returns(REWARDS, VALUES, [0.9] * 5, lam=0.0), REWARDS[1:] + 0.9 * VALUES[1:], rtol=1e-6)
    whole = [sum(0.9 ** (k - t - 1) * REWARDS[k] for k in range(t + 1, 5)) + 0.9 ** (4 - t) * 4.0 for t in range(4)]
    np.testing.assert_allclose(returns(REWARDS, VALUES, [0.9] * 5, lam=1.0), whole, rtol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_return_of_a_constant_reward(lam):
    """From exact values, 1 / (1 - gamma), every lambda-return is exact; from values of 0 it is a geometric sum."""
    np.testing.assert_allclose(returns([1.0] * 30, [10.0] * 30, [0.9] * 30, lam=lam), [10.0] * 29, rtol=1e-6)
    short = returns([1.0] * 30, [0.0] * 30, [0.9] * 30, lam=lam)
    rate = 0.9 * lam
    np.testing.assert_allclose(short, [sum(rate**k for k in range(29 - t)) for t in range(29)], rtol=1e-6)


def test_an_episode_end_cuts_the_trace():
    """State 2 is the last of its episode: the return before it uses its value, and nothing that comes later."""
    last, discount = [False, False, True, False, False], np.full(5, 0.9)
    out = returns(REWARDS, VALUES, discount, last, lam=1.0)
    np.testing.assert_allclose(out[1], -2.0 + 0.9 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(out[0], 1.0 + 0.9 * out[1], rtol=1e-6)
    discount[2] = 0.0  # a true end: its value does not count either
    np.testing.assert_allclose(
        returns(REWARDS, VALUES, discount, last, lam=1.0)[:2], [1.0 - 0.9 * 2.0, -2.0], rtol=1e-6
    )


def test_returns_bootstrap_from_the_last_state_and_not_beyond():
    jacobian = jax.jit(jax.jacobian(lambda r, v: returns(r, v, [0.9] * 5), (0, 1)))(REWARDS, VALUES)
    reward, value = map(np.asarray, jacobian)
    np.testing.assert_allclose(np.diag(reward[:, 1:]), 1.0)  # the reward that arrives with the next state, whole
    assert not np.triu(reward[:, 1:].T, 1).any() and not reward[:, 0].any()
    np.testing.assert_allclose(value[3], [0, 0, 0, 0, 0.9], rtol=1e-6)
    np.testing.assert_allclose(value[0, -1], 0.9**4 * 0.95**3, rtol=1e-6)
    assert not np.tril(value).any()  # neither a state's own value nor earlier ones


def test_return_range_is_a_moving_percentile():
    """After n updates with returns 0, 1, ..., 100 the ends are 5 and 95 times 1 - 0.99^n; the scale is at least 1."""
    ranges, update = ac.initial_range(), jax.jit(ac.ReturnRange.update)
    assert ranges.scale() == 1.0
    for n in range(1, 4):
        ranges = update(ranges, np.arange(101, dtype=np.float32))
        np.testing.assert_allclose([ranges.low, ranges.high], np.array([5, 95]) * (1 - 0.99**n), rtol=1e-5)
    np.testing.assert_allclose(ranges.scale(), 90 * (1 - 0.99**3), rtol=1e-5)
    assert ac.ReturnRange(jnp.float32(3.0), jnp.float32(3.5)).scale() == 1.0


@pytest.mark.parametrize("count", [11, 255])
def test_two_hot_starts_at_zero_and_has_a_floor(count):
    """Zero logits mean exactly 0; the best loss for a value between two bins is the entropy of the two shares."""
    bins = d.symexp_bins(count)
    assert d.TwoHot(jnp.zeros((3, count)), bins).mean().tolist() == [0.0] * 3
    place = count // 2
    share = 0.3 * bins[place] + 0.7 * bins[place + 1]
    target = d.twohot(share, bins)
    floor = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    best = jnp.log(jnp.maximum(target, 1e-30))
    loss = jax.jit(lambda logits, target: d.TwoHot(logits, bins).loss(target))
    np.testing.assert_allclose(loss(best, target), floor, rtol=1e-4)
    to_logits, to_target = jax.jit(jax.grad(loss, (0, 1)))(best, target)
    np.testing.assert_allclose(to_logits, 0.0, atol=1e-6)
    assert not to_target.any()  # targets are given, never learned
    assert loss(best + jax.random.normal(jax.random.key(0), (count,)), target) > floor


class Given:
    """A head whose outputs are its parameters: stands in for the networks of a `Learner`."""

    def apply(self, params, feat, method=None):
        return {k: v[: len(feat)] for k, v in params.items()}


def given_learner() -> v3.Learner:
    nets = v3.Networks(None, None, None, *[Given()] * 4)
    return v3.Learner(nets, Spec("test", VECTOR, Discrete(3)), tiny())


def given_state(slow) -> v3.State:
    hyper = dict(lr=0.0, entropy=1e-3, discount_horizon=10.0, lam=0.9)
    hyper = {k: jnp.float32(v) for k, v in hyper.items()}
    return v3.State({}, slow, ac.initial_range(), None, hyper, jnp.int32(0))


def random_logits(seed: int, *shape: int):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_imagination_weights_start_with_the_roots_own_flag():
    """Weights are products of continue flags, the root's included: a dream from a terminal state teaches nothing."""
    learner, cont = given_learner(), np.array([[0.9, 0.5], [0.8, 0.6], [0.7, 0.9], [0.9, 0.9]], np.float32)
    heads = {k: {"bins": random_logits(i, 4, 2, 11)} for i, k in enumerate(("rew", "val"))}
    policy, actions = {"logits0": random_logits(3, 4, 2, 3)}, jnp.array([[0, 1], [2, 1], [0, 0], [1, 1]])

    @jax.jit
    def losses(cont):
        logit = jnp.log(cont) - jnp.log1p(-cont)
        params = heads | {"pol": policy, "con": {"logit": logit[..., None]}}
        return judged(learner, params, given_state(heads["val"]), jnp.zeros((4, 2, 1)), actions)[0]

    full, dead = (jax.device_get(losses(x)) for x in (cont, np.array([[0.45, 1e-9], *cont[1:]], np.float32)))
    for name in ("policy", "value"):
        assert np.abs(full[name]).min() > 0
        np.testing.assert_allclose(dead[name][:, 0], 0.5 * full[name][:, 0], rtol=1e-5)
        np.testing.assert_allclose(dead[name][:, 1], 0.0, atol=1e-6)


def test_replayed_values_are_not_learned_across_an_episode_end():
    """The last record of an episode has no loss, and what follows it does not reach the records before."""
    learner, slow = given_learner(), {"bins": random_logits(1, 5, 2, 11)}
    last = np.arange(5) == np.full((2, 1), 2)
    values = {"bins": random_logits(0, 5, 2, 11)}
    later = (np.arange(5) >= 3).astype(np.float32)

    @jax.jit
    def loss(reward, boot, terminal=False):
        record = Record(None, reward, None, last, last & terminal, None, None)
        return v3.replay_value_loss(learner, {"val": values}, given_state(slow), record, jnp.zeros((2, 5, 1)), boot)

    reward, boot = random_logits(2, 2, 5), random_logits(3, 2, 5)
    out, after = (jax.device_get(x) for x in (loss(reward, boot), loss(reward + later, boot + later)))
    assert out.shape == (4, 2) and not out[2].any()
    assert_same(out[:2], after[:2])
    assert (out[3] != after[3]).all()
    limit, end = (np.asarray(loss(reward, boot + last, terminal)) for terminal in (False, True))
    assert (limit[:2] != out[:2]).all()  # a time limit bootstraps from its last state ...
    assert_same(end[:2], loss(reward, boot, terminal=True)[:2])  # ... a true end does not


def test_free_nats_stop_both_pushes():
    post, prior = (d.one_hot(random_logits(i, 6, 4, 4), 0.01) for i in (0, 1))
    kl = post.kl(prior).sum(-1)
    threshold = float(jnp.median(kl))

    def total(post, prior, free, which):
        return rssm.kl_losses(post, prior, free)[which].sum()

    for which in (0, 1):
        pushes = jax.jit(jax.grad(partial(total, which=which), (0, 1)))
        pushed = [np.asarray(pushes(post, prior, free)[1 - which].logp) for free in (0.0, threshold)]
        assert (np.abs(pushed[0]).sum((1, 2)) > 0).all()
        np.testing.assert_array_equal(np.abs(pushed[1]).sum((1, 2)) > 0, kl > threshold)
        assert not jax.tree.leaves(pushes(post, prior, 0.0)[which])[0].any()


# --- Who learns from which loss -----------------------------------------------------------------------------------

LEARNERS = {
    "rec": {"enc", "dyn", "dec"},
    "rew": {"enc", "dyn", "rew"},
    "con": {"enc", "dyn", "con"},
    "dyn": {"enc", "dyn"},
    "rep": {"enc", "dyn"},
    "policy": {"pol"},
    "value": {"val"},
    "repval": {"enc", "dyn", "val"},
}


@pytest.fixture(scope="module")
def gradients(catch):
    """`{loss: {component: norm}}` of the trained agent without free nats, and the loss's latents, in one program."""
    config = tiny(free_nats=0.0)
    learner = v3.Learner(v3.build(catch.env.spec, config), catch.env.spec, config)

    def terms(params, state, record, noise):
        _, ((latents, _), metrics) = v3.loss(learner, params, state, record, noise)
        return {name: metrics[f"loss/{name}"] for name in LEARNERS}, latents

    @jax.jit
    def jacobian(state, record, noise):
        _, pull, latents = jax.vjp(lambda p: terms(p, state, record, noise), state.params, has_aux=True)
        rows = jnp.eye(len(LEARNERS))
        (grads,) = jax.vmap(pull)({name: rows[i] for i, name in enumerate(LEARNERS)})
        norms = {
            k: sum(jnp.square(x).reshape(len(rows), -1).sum(1) for x in jax.tree.leaves(v)) for k, v in grads.items()
        }
        return norms, latents

    norms, latents = jacobian(catch.states[0], catch.batches[0].record, learner.noise(jax.random.key(0), 2, 5))
    return {name: {c: float(norms[c][i]) for c in norms} for i, name in enumerate(LEARNERS)}, latents


@pytest.mark.parametrize("name", LEARNERS)
def test_each_loss_teaches_its_own_components(gradients, name):
    """The policy learns from dreams alone, and dreams teach nothing else but the critic; no target is differentiated.

    The critic's loss on replayed sequences is the one value loss that also shapes the model (`repval`).
    """
    norms = gradients[0][name]
    assert {component for component, norm in norms.items() if norm > 0} == LEARNERS[name]


def test_feedback_is_what_the_loss_computed(catch, gradients):
    """The latents a loss hands back are the posteriors `[B, T]` of its trained records, context left out."""
    noise = catch.learner.noise(jax.random.key(0), 2, 5)
    state, record = catch.states[0], catch.batches[0].record
    losses = jax.jit(partial(v3.model_losses, catch.learner))
    latents, _, _ = losses(state.params, state.hyper, record, noise.observe)
    assert_close(latents, gradients[1])
    packed = catch.learner.world.pack(gradients[1])
    assert packed["stoch"].shape == (2, 4, 4)
    assert_close(catch.learner.world.unpack(packed), gradients[1])


@pytest.fixture(scope="module")
def barlow(catch):
    """A learner whose latents agree with the encoder, its parameters, and what its model's losses teach, as above."""
    spec, config = catch.env.spec, tiny(representation="barlow", free_nats=0.0)
    learner, names = v3.Learner(v3.build(spec, config), spec, config), ("barlow", "rec", "dyn")

    def terms(params):
        uniform = learner.noise(jax.random.key(0), 2, 5).observe
        state, record = catch.states[0], catch.batches[0].record
        _, losses, metrics = v3.model_losses(learner, params, state.hyper, record, uniform)
        return {name: losses[name] for name in names}, metrics

    @jax.jit
    def jacobian(params):
        _, pull, metrics = jax.vjp(terms, params, has_aux=True)
        (grads,) = jax.vmap(pull)({name: row for name, row in zip(names, jnp.eye(len(names)), strict=True)})
        return jax.tree.map(lambda x: jnp.square(x).reshape(len(names), -1).sum(1), grads), metrics

    params = jax.jit(lambda key: v3.init_params(learner.nets, spec, key))(jax.random.key(1))
    grads, metrics = jax.device_get(jacobian(params))
    total = lambda tree, i: sum(x[i] for x in jax.tree.leaves(tree))  # noqa: E731
    taught = {name: {c for c in grads if total(grads[c], i) > 0} for i, name in enumerate(names)}
    return SimpleNamespace(spec=spec, config=config, taught=taught, metrics=metrics)


@pytest.mark.slow
def test_without_reconstruction_the_decoder_only_watches(barlow):
    """The latents learn to agree with the encoder's tokens, which are constants: it learns through the latents."""
    assert barlow.taught == {"barlow": {"enc", "dyn", "bar"}, "rec": {"dec"}, "dyn": {"enc", "dyn"}}
    assert barlow.metrics["latent/std"] > 0
    assert 1 <= barlow.metrics["latent/rank"] <= barlow.config.deter + barlow.config.stoch * barlow.config.classes


@pytest.mark.parametrize("decoder", [True, False])
def test_dreams_without_reconstruction(decoder):
    """They show what the decoder has learned, and nothing without one; all else is there. Shapes only."""
    spec = Spec("test", PLANES, Discrete(3))
    agent = v3.make(spec, tiny(representation="barlow", decoder=decoder))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda k: agent.init(k, agent.hyper), key)
    assert set(state.params) == set(v3.Networks._fields) - {"dis"} - (set() if decoder else {"dec"})
    record = record_shape(SimpleNamespace(spec=spec, action=((), "int32"), dtype="float32"), (2, 5))
    dream = jax.eval_shape(lambda s, r, k: agent.imagine(s, r, None, k, 3), state, record, key)
    assert described(dream.obs) == (described(shape((2, 3), PLANES)) if decoder else None)
    assert dream.reward.shape == dream.cont.shape == (2, 3)
    if not decoder:
        number, weight = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.float32)
        batch = Batch(record, Index(number, number), weight)
        new, _, metrics = jax.eval_shape(agent.train_steps["all"].update, state, batch, key)
        assert described(new) == described(state) and "loss/rec" not in metrics
        assert {"loss/barlow", "latent/std", "latent/rank"} <= metrics.keys()


# --- Populations --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step(catch):
    """`jit(agent.train_step)`; tracing it a second time is an error."""
    return jax.jit(chex.assert_max_traces(catch.agent.train_step, n=1))


@pytest.fixture(scope="module")
def vmapped(catch):
    return jax.jit(jax.vmap(catch.agent.train_step))


def stacked(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@pytest.mark.slow
def test_one_program_for_every_batch(catch, step):
    for state, batch in zip(catch.states, catch.batches, strict=True):
        new, metrics = step(state, batch, jax.random.key(3))
        assert new.step == state.step + 1 and metrics["loss"] > 0
    assert step._cache_size() == 1


@pytest.mark.slow
def test_vmap_over_members_is_a_loop_over_members(catch, step, vmapped):
    keys = jax.random.split(jax.random.key(5), 2)
    together = vmapped(stacked(*catch.states), stacked(*catch.batches), keys)
    alone = stacked(*(step(*arguments) for arguments in zip(catch.states, catch.batches, keys, strict=True)))
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_members_have_learning_rates_of_their_own(catch, vmapped):
    """Equal but for the learning rate: the parameters move by as much as the rates say, and not at all for 0."""
    state, rates = catch.states[0], jnp.array([0.0, 1e-3])
    both = stacked(state, state)._replace(hyper=stacked(state, state).hyper | {"lr": rates})
    batch, keys = stacked(catch.batches[0], catch.batches[0]), stacked(jax.random.key(1), jax.random.key(1))
    new, _ = vmapped(both, batch, keys)
    still, moved = member(new.params, 0), member(new.params, 1)
    assert_same(still, state.params)
    assert all((x != y).any() for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(still), strict=True))


@pytest.mark.slow
def test_members_have_horizons_of_their_own(catch, vmapped):
    """The horizon is one of the hyper-parameters that may differ, so it must reach the losses."""
    both = stacked(catch.states[0], catch.states[0])
    both = both._replace(hyper=both.hyper | {"discount_horizon": jnp.array([10.0, 100.0])})
    batch, keys = stacked(catch.batches[0], catch.batches[0]), stacked(jax.random.key(1), jax.random.key(1))
    _, metrics = vmapped(both, batch, keys)
    for name in ("loss/con", "loss/repval"):
        assert metrics[name][0] != metrics[name][1], name


# --- Dreams -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagine(catch):
    """Jitted `(state, context, actions, key) -> Dream` of four steps."""
    return jax.jit(lambda *arguments: catch.agent.imagine(*arguments, 4))


def test_open_loop_dreams_follow_the_given_actions(catch, imagine):
    state, context, key = catch.states[0], catch.batches[0].record, jax.random.key(0)
    actions = jnp.array([[0, 1, 2, 1], [2, 2, 0, 1]])
    one, two = (imagine(state, context, actions, key) for _ in range(2))
    assert_same(one, two)
    np.testing.assert_array_equal(one.action, actions)
    other = imagine(state, context, actions.at[:, 2].set(1), key)
    assert differs(one.latent, other.latent) == [False, False, True, True]  # latent i follows action i
    assert differs(one.latent, imagine(state, context, actions, jax.random.key(1)).latent)[-1]
    assert one.obs.dtype == jnp.bool_ and ((one.cont > 0) & (one.cont <= 1)).all()


def test_dreams_ask_the_policy_where_no_actions_are_given(catch, imagine):
    """A policy that always takes action 2 dreams what the plan 2, 2, 2, 2 dreams."""
    state, context, key = catch.states[0], catch.batches[0].record, jax.random.key(0)
    head = state.params["pol"]["params"]
    always = {"kernel": jnp.zeros((8, 3)), "bias": jnp.array([-50.0, -50.0, 50.0])}
    params = state.params | {"pol": {"params": head | {"logits0": always}}}
    sure = state._replace(params=params)
    dreams = [imagine(sure, context, actions, key) for actions in (None, jnp.full((2, 4), 2))]
    taken = np.asarray(dreams[0].action) == 2
    assert taken.mean() > 0.8  # 1 % of the uniform policy stays
    assert imagine(state, context, None, jax.random.key(2)).action.shape == (2, 4)
    if taken.all():
        assert_close(*dreams)


# --- Bad input ----------------------------------------------------------------------------------------------------


def make(obs=VECTOR, **options):
    preset = options.pop("preset", "nano")
    return agents.make("dreamer-v3", Spec("test", obs, Discrete(2)), preset, **options)


def test_bad_observations_are_named():
    with pytest.raises(ValueError, match=r"the sensor 'grid': .* float32 and shape \(3, 4, 5\) look like images"):
        make({"x": VECTOR, "grid": jax.ShapeDtypeStruct((3, 4, 5), jnp.int32)})
    with pytest.raises(ValueError, match="multiples of 16 between 48 and 256, got 50 x 50"):
        make(jax.ShapeDtypeStruct((50, 50, 3), jnp.uint8))
    with pytest.raises(ValueError, match="does not understand the reserved sensor 'to_play'"):
        make({"x": VECTOR, "to_play": jax.ShapeDtypeStruct((), jnp.int32)})


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"deter \(30\) must be a multiple of blocks \(8\)"):
        make(deter=30)
    narrow = make(IMAGE, depth=1)
    with pytest.raises(ValueError, match=r"4 x depth \(1\) must be a multiple of blocks \(8\)"):
        jax.eval_shape(lambda: narrow.init(jax.random.key(0), narrow.hyper))
    with pytest.raises(ValueError, match=r"unknown preset 'tiny' of dreamer-v3; there are 1m, 12m"):
        make(preset="tiny")
    with pytest.raises(ValueError, match=r"has no setting 'imag_lenght'; did you mean imag_length"):
        make(imag_lenght=3)
    with pytest.raises(ValueError, match="unknown agent 'dreamer'; did you mean dreamer-v1, dreamer-v2, dreamer-v3"):
        agents.make("dreamer", Spec("test", VECTOR, Discrete(2)))
    for bins in (1, 40):  # an even number would have two bins at zero
        with pytest.raises(ValueError, match=f"odd number of bins, at least 3, got {bins}"):
            make(bins=bins)
    with pytest.raises(ValueError, match="horizon must be a number above 1"):
        make(horizon=0.0)
    with pytest.raises(ValueError, match="reconstruction needs the decoder: keep it, or take --representation barlow"):
        make(decoder=False)
