"""MuZero and EfficientZero: transforms, targets, priorities by hand; value prefixes, reanalysis, probes, resuming."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import layout, same

from jaxwm import agents, envs, replay, spaces
from jaxwm.agents import muzero
from jaxwm.models import value_equivalent as ve
from jaxwm.nets.layers import apply
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Box, Discrete, Index, Record, Spec, Step

TINY = dict(
    simulations=4, width=8, units=8, layers=1, bins=11, bound=5.0, envs=2, batch_size=4, unroll=2, td_steps=2,
    train_ratio=2.0, reanalyse=3, prefill=20, capacity=100, projection=8, target_every=3,
)  # fmt: skip
ALL = dict(consistency=1.0, prefix=True, correction=20, decoder=True)
VECTOR, GRID = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((10, 10, 4), jnp.bool_)
IMAGE = jax.ShapeDtypeStruct((48, 48, 3), jnp.uint8)


# --- The value transform ------------------------------------------------------------------------------------------


def test_values_are_squashed_as_published():
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x: 3 -> 1.003, not 0.997 + 0.006 as the misprint would give for -3."""
    x = np.array([0.0, 3.0, -3.0, 99.0], np.float32)
    wide = np.logspace(-3, 5, 50, dtype=np.float32)
    wide = np.concatenate([-wide, wide])
    squashed, back = jax.jit(lambda x, wide: (ve.squash(x), ve.unsquash(ve.squash(wide))))(x, wide)
    np.testing.assert_allclose(squashed, [0, 1.003, -1.003, 9.099], rtol=1e-6)
    np.testing.assert_allclose(back, wide, rtol=2e-4)


def test_a_support_keeps_the_number_between_two_bins():
    support = ve.Support(5.0, 11)
    value, uniform = np.array([0.0, 0.7, -2.3, 12.0], np.float32), np.zeros((4, 11), np.float32)

    @jax.jit
    def results(value, uniform):
        logits = jnp.log(ve.twohot(ve.squash(value), support.bins) + 1e-20)
        return support.mean(logits), support.mean(uniform[0]), support.loss(uniform, value)

    kept, middle, loss = results(value, uniform)
    np.testing.assert_allclose(kept, value, atol=1e-4)
    assert middle == 0
    # cross-entropy with a uniform guess is ln 11 whatever the target
    np.testing.assert_allclose(loss, np.log(11), rtol=1e-6)


def test_latents_are_scaled_by_row_and_by_plane():
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32) * 7
    latents = x, x[:, 0, 0], np.ones((2, 3), np.float32)
    *scaled, flat = jax.device_get(jax.jit(lambda latents: [ve.scaled(latent) for latent in latents])(latents))
    for latent, axes in zip(scaled, ((1, 2), (1,)), strict=True):
        np.testing.assert_allclose(latent.min(axes), 0, atol=1e-6)
        np.testing.assert_allclose(latent.max(axes), 1, atol=1e-6)
    assert np.isfinite(flat).all()


# --- Targets ------------------------------------------------------------------------------------------------------


def record(rewards, last=(), terminal=(), priority=None) -> Record:
    """One sequence `[1, L]`; `last` and `terminal` are positions."""
    length = len(rewards)
    flags = lambda where: np.array([[i in where for i in range(length)]])  # noqa: E731
    first = np.array([[i == 0 or i - 1 in last for i in range(length)]])
    obs, reward = np.zeros((1, length, 3), np.float32), np.array([rewards], np.float32)
    extras = {"priority": np.zeros((1, length), np.float32) if priority is None else priority}
    return Record(obs, reward, first, flags(last), flags(terminal), np.zeros((1, length), np.int32), extras)


VALUES = np.array([[10.0, 20, 30, 40, 50, 60]], np.float32)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def jitted_targets(*args):
    return muzero.targets(*args)


def targets_of(record, used=None) -> muzero.Targets:
    """Targets with K = 2, n = 3, gamma = 1/2 and the values `VALUES`."""
    return jax.device_get(jitted_targets(record, VALUES, 2, 3, 0.5, used))


def test_n_step_targets_by_hand():
    """K = 2, n = 3, gamma = 1/2: z_0 = r_1 + r_2 / 2 + r_3 / 4 + v_3 / 8."""
    targets = targets_of(record([9, 1, 2, 4, 8, 16]))
    np.testing.assert_allclose(targets.value[0], [1 + 1 + 1 + 5, 2 + 2 + 2 + 50 / 8, 4 + 4 + 4 + 60 / 8])
    np.testing.assert_allclose(targets.reward[0, 1:], [1, 2])
    assert targets.value_known.all() and targets.policy_known.all() and targets.real.all()


def test_nothing_is_worth_anything_after_a_terminal():
    """The episode ends with record 1; records 2 and on are of the next one."""
    targets = targets_of(record([9, 1, 0, 4, 8, 16], last=[1], terminal=[1]))
    np.testing.assert_allclose(targets.value[0], [1, 0, 0])
    np.testing.assert_allclose(targets.reward[0, 1:], [1, 0])
    assert targets.value_known.all() and targets.reward_known.all(), "absorbing states are learned"
    assert targets.policy_known[0].tolist() == [True, False, False]
    assert targets.real[0].tolist() == [True, True, False]


def test_a_time_limit_is_no_end():
    """Bootstrapped from the last observation, and nothing is learned of what would follow it."""
    targets = targets_of(record([9, 1, 0, 4, 8, 16], last=[1]))
    assert targets.value[0, 0] == 1 + 0.5 * 20
    assert targets.value_known[0].tolist() == [True, False, False]
    assert targets.reward_known[0].tolist() == [True, True, False]


def test_a_lost_life_ends_the_future_but_not_the_game():
    targets = targets_of(record([9, 1, 2, 4, 8, 16], terminal=[2]))
    np.testing.assert_allclose(targets.value[0], [1 + 1, 2, 0])


def test_old_data_uses_fewer_rewards():
    """One reward at least, three at most: r_1 + v_1 / 2."""
    for used, expected in ((-4.0, 1 + 20 / 2), (1.0, 1 + 20 / 2), (2.0, 1 + 1 + 30 / 4), (7.0, 8.0)):
        targets = targets_of(record([9, 1, 2, 4, 8, 16]), np.array([used], np.float32))
        assert targets.value[0, 0] == pytest.approx(expected)


# --- Priorities ---------------------------------------------------------------------------------------------------


def ring_with(priorities, rows_before=0) -> replay.Ring:
    """A ring of five rows of two environments in which row r holds reward 10 r + n."""
    ring = None
    for r in range(rows_before + len(priorities)):
        priority = np.array(priorities[r - rows_before] if r >= rows_before else [1e9, 1e9], np.float32)
        flags, reward = np.zeros(2, bool), np.array([10 * r, 10 * r + 1], np.float32)
        row = Record(np.zeros((2, 1)), reward, flags, flags, flags, flags, {"priority": priority})
        ring = first_row(row) if ring is None else next_row(ring, row)
    assert ring is not None
    return ring


first_row = jax.jit(lambda row: replay.add(replay.init(row, 10, 2), row))
next_row = jax.jit(replay.add)
sequences = jax.jit(lambda ring, key: replay.prioritised(ring, key, 1400, 3, 0.5, 1.0))


@pytest.mark.parametrize("before", [0, 3])
def test_sequences_are_drawn_by_the_priority_of_their_last_record(before):
    """Rows 0 and 1 complete no sequence of three, however great their priority; older rows are overwritten."""
    ring = ring_with([[9e9, 9e9], [9e9, 9e9], [1, 0], [4, 0], [0, 16]], before)
    batch = jax.device_get(sequences(ring, jax.random.key(0)))
    ends = batch.record.reward[:, -1] - 10 * before
    drawn = {int(end): int((ends == end).sum()) for end in np.unique(ends)}
    assert drawn.keys() == {20, 30, 41}, "priority 0 is never drawn"
    for end, share in ((20, 1 / 7), (30, 2 / 7), (41, 4 / 7)):  # 1 ** 0.5, 4 ** 0.5, 16 ** 0.5
        assert drawn[end] == pytest.approx(1400 * share, abs=2), "stratified"
    np.testing.assert_array_equal(batch.record.reward[:, 0], batch.record.reward[:, -1] - 20)
    weight = {int(end): float(batch.weight[ends == end][0]) for end in drawn}
    assert weight == {20: pytest.approx(1), 30: pytest.approx(1 / 2), 41: pytest.approx(1 / 4)}


# --- The networks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_value_prefixes_are_sums_that_start_anew():
    """Rewards add up to the prefix that is predicted; after the third step it begins at 0 again."""
    net = ve.Net(VECTOR, 2, {"logits0": 2}, ve.Support(5.0, 11), width=4, units=4, prefix=3)
    params = net.init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros((1, 2)))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    latents = jax.random.uniform(jax.random.key(1), (6, 2, 4))
    memory, rewards, prefixes = apply(net, params, 2, method=ve.Net.fresh), [], []
    for i, latent in enumerate(latents):
        if i == 3:
            assert same(memory, apply(net, params, 2, method=ve.Net.fresh))
        logits, reward, memory = apply(net, params, latent, memory, method=ve.Net.reward)
        rewards.append(reward)
        prefixes.append(net.support.mean(logits))
    for start in (0, 3):
        sums = np.cumsum(rewards[start : start + 3], 0)
        np.testing.assert_allclose(sums, prefixes[start : start + 3], atol=1e-5)
    assert np.abs(np.array(rewards)).min() > 1e-4


def test_consistency_has_no_gradient_into_its_target():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    alike = jax.value_and_grad(lambda a, b: (lambda each: (each.sum(), each))(ve.similarity(a, b)), (0, 1), True)
    (_, each), (into, out) = jax.device_get(jax.jit(alike)(a, b))
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    assert (out == 0).all() and np.abs(into).max() > 0.1


def small(obs=VECTOR, action=Discrete(3), **options) -> SimpleNamespace:
    """An agent of these settings, its first state and its jitted functions."""
    return built(Spec("test/Muzero", obs, action), agents.settings("muzero", "catch", **(TINY | options)))


@functools.cache
def built(spec: Spec, config: muzero.Config) -> SimpleNamespace:
    agent = muzero.make(spec, config)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    updates = {name: jax.jit(step.update) for name, step in agent.train_steps.items()}
    act = jax.jit(agent.act, static_argnums=4)
    return SimpleNamespace(spec=spec, config=config, agent=agent, state=state, act=act, **updates)


def seen(spec, lead, key=0):
    """A `Step` with leading axes."""
    rng, obs = np.random.default_rng(key), spec.obs
    value = (rng.uniform(size=(*lead, *obs.shape)) * (255 if obs.dtype == jnp.uint8 else 1)).astype(obs.dtype)
    flags = np.zeros(lead, bool)
    return Step(value, rng.normal(size=lead).astype(np.float32), flags, flags, flags)


def batch_for(case, key=0):
    """A batch with extras as `act` makes them."""
    lead = (case.config.batch_size, case.config.length)
    step = seen(case.spec, lead, key)
    num = lead[0] * lead[1]
    rows = jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), step)
    _, action, extras = jax.device_get(case.act(case.state, (), rows, jax.random.key(1), "random"))
    action, extras = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), (action, extras))
    index = Index(np.zeros(lead[0], np.int32), np.zeros(lead[0], np.int32))
    return muzero.Batch(Record(*step, action, extras), index, np.ones(lead[0], np.float32))


def test_the_loss_of_a_network_that_knows_nothing():
    """Equation 1 where every head is uniform, as at the start: ln 11 for each value and reward, ln 3 for each policy.

    The root counts once, both unrolled steps half; the second sequence ends with record 1, its policies from there on
    are not learned, and it weighs three times as much.
    """
    case = small(residual=False)
    record = batch_for(case).record
    record = jax.tree.map(lambda x: x[:2], record)
    end = np.zeros(record.reward.shape, bool)
    end[1, 1] = True
    policy = np.full_like(record.extras["policy"], 1 / 3)
    record = record._replace(is_last=end, is_terminal=end, extras=record.extras | {"policy": policy})
    nets, weight = muzero.Networks(case.spec, case.config), np.array([1, 3], np.float32)
    values = np.zeros(record.reward.shape, np.float32)
    targets = jax.device_get(jitted_targets(record, values, 2, 2, case.config.discount, None))
    args = case.state.params, record, targets, weight, np.float32(0), jax.random.key(0)
    total, (error, _) = jax.jit(functools.partial(muzero.loss, nets))(*args)
    each = np.array([(1 + case.config.value_scale * 2) * np.log(11)] * 2) + np.array([2.0, 1.0]) * np.log(3)
    assert float(total) == pytest.approx((weight * each).mean(), rel=1e-4)
    np.testing.assert_allclose(error, np.abs(targets.value[:, 0]), atol=1e-4)


CASES = {
    "vector": dict(),
    "grid": dict(obs=GRID, residual=True, **ALL | {"decoder": False}),
    "continuous": dict(action=Box(2), sampled=5),
    "image": dict(obs=IMAGE, residual=True, augment=True, search="puct", optimizer="sgd", decay=10),
    "everything": dict(**ALL, search="puct", cooling=10, bootstrap="search", alpha=0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shapes_types_and_learning(name):
    case = small(**CASES[name])
    agent, state, config = case.agent, case.state, case.config
    options = 3 if isinstance(case.spec.action, Discrete) else config.sampled
    layouts = []
    for mode in ("random", "explore", "greedy"):
        step = seen(case.spec, (3,))
        _, action, extras = jax.device_get(case.act(state, agent.reset(state, 3), step, jax.random.key(0), mode))
        assert layout(action) == layout(jax.eval_shape(lambda: spaces.blank(case.spec.action, 3)))
        assert extras["policy"].shape == (3, options) and extras["value"].shape == (3,)
        np.testing.assert_allclose(extras["policy"].sum(-1), 1, rtol=1e-4)
        layouts.append(jax.tree.map(lambda x: (x.shape, str(x.dtype)), extras))
    assert layouts[0] == layouts[1] == layouts[2]
    batch = batch_for(case)
    losses = []
    for i in range(30):
        state, feedback, metrics = case.learn(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert feedback["priority"].shape == (4, 1) and (feedback["priority"] > 0).all()
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < losses[0]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    context = jax.tree.map(lambda x: x[:2], batch.record)
    dream = jax.jit(lambda s: agent.imagine(s, context, None, jax.random.key(0), 3))(state)
    assert dream.reward.shape == (2, 3) and (dream.obs is None) == (not config.decoder)


@pytest.mark.parametrize("mode", ["random", pytest.param("explore", marks=pytest.mark.slow)])
def test_only_legal_moves_are_made(mode):
    env = envs.make("pgx/TicTacToe", 4, opponent="random")
    agent = agents.make("muzero", env.spec, "catch", **TINY)

    @jax.jit
    def legal(key):
        state = agent.init(key, agent.hyper)

        def turn(carry, key):
            _, action, _ = agent.act(state, (), carry[1], key, mode)
            return env.step(carry[0], action), jnp.take_along_axis(carry[1].obs["legal"], action[:, None], 1)

        return jax.lax.scan(turn, env.reset(key), jax.random.split(jax.random.key(1), 12))[1]

    assert legal(jax.random.key(0)).all()


def test_the_target_network_is_a_copy_every_few_updates():
    case = small()
    first, state = case.state.target, case.state
    for i in range(4):
        state = case.learn(state, batch_for(case), jax.random.key(i))[0]
        assert same(state.target, first) == (i < 2), "three updates"
    assert not same(state.target, state.params)


def test_reanalysis_writes_the_search_of_the_target_network():
    """What it feeds back is what acting with the target network finds; no parameter changes."""
    case = small(search="gumbel")
    rng = np.random.default_rng(7)
    moved = lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32)  # noqa: E731
    other = jax.tree.map(moved, jax.device_get(case.state.params))
    state = case.state._replace(target=other)
    step = case.agent.train_steps["reanalyse"]
    assert (step.length, step.batch_size) == (1, case.config.reanalyse)
    batch = jax.tree.map(lambda x: x[:3, :1] if x.ndim > 1 else x, batch_for(case))
    after, feedback, _ = case.reanalyse(state, batch, jax.random.key(0))
    assert same(after, state)
    rows = jax.tree.map(lambda x: x[:, 0], batch.record)
    found = case.act(state._replace(params=other), (), Step(*rows[:5]), jax.random.key(0), "greedy")[2]
    np.testing.assert_allclose(feedback["policy"][:, 0], found["policy"], atol=1e-5)
    np.testing.assert_allclose(feedback["value"][:, 0], found["value"], atol=1e-5)


def test_residual_networks_want_planes():
    with pytest.raises(ValueError, match="--no-residual"):
        small(residual=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 2}, "bins"),
        ({"unroll": 0}, "unroll"),
        ({"discount": 1.5}, "discount"),
        ({"search": "minimax"}, "search"),
        ({"simulations": 0}, "simulations"),
        ({"capacity": 5}, "capacity"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        agents.settings("muzero", "catch", **(TINY | options))


# --- Probes and runs ----------------------------------------------------------------------------------------------


def trained(env_name: str, iterations: int, **options) -> SimpleNamespace:
    config = agents.settings("muzero", "catch", **(TINY | dict(reanalyse=8, prefill=100, capacity=600) | options))
    env = envs.make(env_name, num_envs=config.envs)
    trainer = Trainer(muzero.make(env.spec, config), env, 1, config.capacity)
    life, cursor = trainer.init(0), Cursor()
    while int(life.counters.updates) < iterations:
        life, cursor, _ = trainer.run(life, cursor, 50)
    return SimpleNamespace(agent=trainer.agent, env=env, state=jax.tree.map(lambda x: x[0], life.agent))


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, dict(consistency=1.0, prefix=True)], ids=["muzero", "efficientzero"])
def test_values_and_actions_of_probes(extra):
    """ActionReward pays 1 for one action and -1 for the other; TwoStepDiscount 1 after its second step, any action."""
    options = dict(
        envs=8, width=16, units=32, bins=21, bound=2.0, batch_size=32, lr=3e-3, train_ratio=16.0, discount=0.5,
        simulations=8, **extra,
    )  # fmt: skip
    done = trained("probe/ActionReward", 1500, **options)
    step = done.env.reset(jax.random.key(0))[1]
    _, action, extras = done.agent.act(done.state, (), step, jax.random.key(1), "greedy")
    assert (action == 1).all() and (extras["policy"][:, 1] > 0.8).all()
    done = trained("probe/TwoStepDiscount", 1500, **options)
    step = done.env.reset(jax.random.key(0))[1]
    value = done.agent.act(done.state, (), step, jax.random.key(1), "greedy")[2]["value"]
    np.testing.assert_allclose(value, 0.5, atol=0.1)
