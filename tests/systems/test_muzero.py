"""MuZero and EfficientZero: transforms, targets, priorities by hand; value prefixes, reanalysis, probes, resuming."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import same

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
    x = jnp.array([0.0, 3.0, -3.0, 99.0])
    np.testing.assert_allclose(ve.squash(x), [0, 1.003, -1.003, 9.099], rtol=1e-6)
    wide = jnp.concatenate([-jnp.logspace(-3, 5, 50), jnp.logspace(-3, 5, 50)])
    np.testing.assert_allclose(ve.unsquash(ve.squash(wide)), wide, rtol=2e-4)


def test_a_support_keeps_the_number_between_two_bins():
    support = ve.Support(5.0, 11)
    value = jnp.array([0.0, 0.7, -2.3, 12.0])
    logits = jnp.log(ve.twohot(ve.squash(value), support.bins) + 1e-20)
    np.testing.assert_allclose(support.mean(logits), value, atol=1e-4)
    assert support.mean(jnp.zeros(11)) == 0
    # cross-entropy with a uniform guess is ln 11 whatever the target
    np.testing.assert_allclose(support.loss(jnp.zeros((4, 11)), value), np.log(11), rtol=1e-6)


def test_latents_are_scaled_by_row_and_by_plane():
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 2)) * 7
    for latent, axes in ((x, (1, 2)), (x[:, 0, 0], (1,))):
        scaled = ve.scaled(latent)
        np.testing.assert_allclose(scaled.min(axes), 0, atol=1e-6)
        np.testing.assert_allclose(scaled.max(axes), 1, atol=1e-6)
    assert np.isfinite(ve.scaled(jnp.ones((2, 3)))).all()


# --- Targets ------------------------------------------------------------------------------------------------------


def record(rewards, last=(), terminal=(), priority=None) -> Record:
    """One sequence `[1, L]`; `last` and `terminal` are positions."""
    length = len(rewards)
    flags = lambda where: jnp.array([[i in where for i in range(length)]])  # noqa: E731
    first = jnp.array([[i == 0 or i - 1 in last for i in range(length)]])
    obs, reward = jnp.zeros((1, length, 3)), jnp.array([rewards], jnp.float32)
    extras = {"priority": jnp.zeros((1, length)) if priority is None else priority}
    return Record(obs, reward, first, flags(last), flags(terminal), jnp.zeros((1, length), jnp.int32), extras)


VALUES = jnp.array([[10.0, 20, 30, 40, 50, 60]])


def test_n_step_targets_by_hand():
    """K = 2, n = 3, gamma = 1/2: z_0 = r_1 + r_2 / 2 + r_3 / 4 + v_3 / 8."""
    targets = muzero.targets(record([9, 1, 2, 4, 8, 16]), VALUES, 2, 3, 0.5, None)
    np.testing.assert_allclose(targets.value[0], [1 + 1 + 1 + 5, 2 + 2 + 2 + 50 / 8, 4 + 4 + 4 + 60 / 8])
    np.testing.assert_allclose(targets.reward[0, 1:], [1, 2])
    assert targets.value_known.all() and targets.policy_known.all() and targets.real.all()


def test_nothing_is_worth_anything_after_a_terminal():
    """The episode ends with record 1; records 2 and on are of the next one."""
    targets = muzero.targets(record([9, 1, 0, 4, 8, 16], last=[1], terminal=[1]), VALUES, 2, 3, 0.5, None)
    np.testing.assert_allclose(targets.value[0], [1, 0, 0])
    np.testing.assert_allclose(targets.reward[0, 1:], [1, 0])
    assert targets.value_known.all() and targets.reward_known.all(), "absorbing states are learned"
    assert targets.policy_known[0].tolist() == [True, False, False]
    assert targets.real[0].tolist() == [True, True, False]


def test_a_time_limit_is_no_end():
    """Bootstrapped from the last observation, and nothing is learned of what would follow it."""
    targets = muzero.targets(record([9, 1, 0, 4, 8, 16], last=[1]), VALUES, 2, 3, 0.5, None)
    assert targets.value[0, 0] == 1 + 0.5 * 20
    assert targets.value_known[0].tolist() == [True, False, False]
    assert targets.reward_known[0].tolist() == [True, True, False]


def test_a_lost_life_ends_the_future_but_not_the_game():
    targets = muzero.targets(record([9, 1, 2, 4, 8, 16], terminal=[2]), VALUES, 2, 3, 0.5, None)
    np.testing.assert_allclose(targets.value[0], [1 + 1, 2, 0])


def test_old_data_uses_fewer_rewards():
    """One reward at least, three at most: r_1 + v_1 / 2."""
    for used, expected in ((-4.0, 1 + 20 / 2), (1.0, 1 + 20 / 2), (2.0, 1 + 1 + 30 / 4), (7.0, 8.0)):
        targets = muzero.targets(record([9, 1, 2, 4, 8, 16]), VALUES, 2, 3, 0.5, jnp.array([used]))
        assert targets.value[0, 0] == pytest.approx(expected)


# --- Priorities ---------------------------------------------------------------------------------------------------


def ring_with(priorities, rows_before=0) -> replay.Ring:
    """A ring of five rows of two environments in which row r holds reward 10 r + n."""
    ring = None
    for r in range(rows_before + len(priorities)):
        priority = jnp.array(priorities[r - rows_before] if r >= rows_before else [1e9, 1e9], jnp.float32)
        flags = jnp.zeros(2, bool)
        row = Record(jnp.zeros((2, 1)), 10.0 * r + jnp.arange(2), flags, flags, flags, flags, {"priority": priority})
        ring = replay.init(row, 10, 2) if ring is None else ring
        ring = replay.add(ring, row)
    assert ring is not None
    return ring


@pytest.mark.parametrize("before", [0, 3])
def test_sequences_are_drawn_by_the_priority_of_their_last_record(before):
    """Rows 0 and 1 complete no sequence of three, however great their priority; older rows are overwritten."""
    ring = ring_with([[9e9, 9e9], [9e9, 9e9], [1, 0], [4, 0], [0, 16]], before)
    batch = jax.jit(lambda key: replay.prioritised(ring, key, 1400, 3, 0.5, 1.0))(jax.random.key(0))
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
    a, b = jax.random.normal(jax.random.key(0), (2, 5, 3))
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(ve.similarity(a, b), expected, rtol=1e-5)
    into, out = jax.grad(lambda a, b: ve.similarity(a, b).sum(), (0, 1))(a, b)
    assert (out == 0).all() and np.abs(into).max() > 0.1


def small(obs=VECTOR, action=Discrete(3), **options) -> SimpleNamespace:
    spec = Spec("test/Muzero", obs, action)
    config = agents.settings("muzero", "catch", **(TINY | options))
    agent = muzero.make(spec, config)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    return SimpleNamespace(spec=spec, config=config, agent=agent, state=state)


def seen(spec, lead, key=0):
    """A `Step` with leading axes."""
    k_obs, k_reward = jax.random.split(jax.random.key(key))
    obs = spec.obs
    value = (jax.random.uniform(k_obs, (*lead, *obs.shape)) * (255 if obs.dtype == jnp.uint8 else 1)).astype(obs.dtype)
    flags = jnp.zeros(lead, bool)
    return Step(value, jax.random.normal(k_reward, lead), flags, flags, flags)


def batch_for(case, key=0):
    """A batch with extras as `act` makes them."""
    lead = (case.config.batch_size, case.config.length)
    step = seen(case.spec, lead, key)
    num = lead[0] * lead[1]
    rows = jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), step)
    _, action, extras = case.agent.act(case.state, (), rows, jax.random.key(1), "random")
    action, extras = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), (action, extras))
    index = Index(jnp.zeros(lead[0], jnp.int32), jnp.zeros(lead[0], jnp.int32))
    return muzero.Batch(Record(*step, action, extras), index, jnp.ones(lead[0]))


def test_the_loss_of_a_network_that_knows_nothing():
    """Equation 1 where every head is uniform, as at the start: ln 11 for each value and reward, ln 3 for each policy.

    The root counts once, both unrolled steps half; the second sequence ends with record 1, its policies from there on
    are not learned, and it weighs three times as much.
    """
    case = small(residual=False)
    record = batch_for(case).record
    record = jax.tree.map(lambda x: x[:2], record)
    flag = jnp.zeros(record.reward.shape, bool)
    end = flag.at[1, 1].set(True)
    policy = jnp.full_like(record.extras["policy"], 1 / 3)
    record = record._replace(is_last=end, is_terminal=end, extras=record.extras | {"policy": policy})
    nets, weight = muzero.Networks(case.spec, case.config), jnp.array([1.0, 3.0])
    values = jnp.zeros(record.reward.shape)
    targets = muzero.targets(record, values, 2, 2, case.config.discount, None)
    args = case.state.params, record, targets, weight, jnp.float32(0), jax.random.key(0)
    total, (error, _) = muzero.loss(nets, *args)
    each = np.array([(1 + case.config.value_scale * 2) * np.log(11)] * 2) + np.array([2.0, 1.0]) * np.log(3)
    assert float(total) == pytest.approx((np.asarray(weight) * each).mean(), rel=1e-4)
    np.testing.assert_allclose(error, np.abs(targets.value[:, 0]), atol=1e-4)


CASES = {
    "vector": dict(),
    "grid": dict(obs=GRID, residual=True, **ALL | {"decoder": False}),
    "continuous": dict(action=Box(2), sampled=5),
    "image": dict(obs=IMAGE, residual=True, augment=True, search="puct", optimizer="sgd", decay=10),
    "everything": dict(**ALL, search="puct", cooling=10, bootstrap="search", alpha=0.0),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("grid", "continuous", "image", "everything") else ())
        for n in CASES
    ],
)
def test_shapes_types_and_learning(name):
    case = small(**CASES[name])
    agent, state, config = case.agent, case.state, case.config
    options = 3 if isinstance(case.spec.action, Discrete) else config.sampled
    layouts = []
    for mode in ("random", "explore", "greedy"):
        act = jax.jit(lambda step, key, mode=mode: agent.act(state, agent.reset(state, 4), step, key, mode))
        _, action, extras = act(seen(case.spec, (4,)), jax.random.key(0))
        assert same(jax.eval_shape(lambda a: a, action), jax.eval_shape(lambda: spaces.blank(case.spec.action, 4)))
        assert extras["policy"].shape == (4, options) and extras["value"].shape == (4,)
        np.testing.assert_allclose(extras["policy"].sum(-1), 1, rtol=1e-4)
        layouts.append(jax.tree.map(lambda x: (x.shape, str(x.dtype)), extras))
    assert layouts[0] == layouts[1] == layouts[2]
    batch = batch_for(case)
    learn, losses = jax.jit(agent.train_steps["learn"].update), []
    for i in range(30):
        state, feedback, metrics = learn(state, batch, jax.random.key(i))
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
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)

    def turn(carry, key):
        _, action, _ = agent.act(state, (), carry[1], key, mode)
        return env.step(carry[0], action), jnp.take_along_axis(carry[1].obs["legal"], action[:, None], 1)

    start, keys = env.reset(jax.random.key(0)), jax.random.split(jax.random.key(1), 12)
    assert jax.jit(lambda start: jax.lax.scan(turn, start, keys)[1])(start).all()


def test_the_target_network_is_a_copy_every_few_updates():
    case = small()
    learn, first, state = jax.jit(case.agent.train_steps["learn"].update), case.state.target, case.state
    for i in range(4):
        state = learn(state, batch_for(case), jax.random.key(i))[0]
        assert same(state.target, first) == (i < 2), "three updates"
    assert not same(state.target, state.params)


def test_reanalysis_writes_the_search_of_the_target_network():
    """What it feeds back is what acting with the target network finds; no parameter changes."""
    case = small(search="gumbel")
    other = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(7), x.shape), case.state.params)
    state = case.state._replace(target=other)
    step = case.agent.train_steps["reanalyse"]
    assert (step.length, step.batch_size) == (1, case.config.reanalyse)
    batch = jax.tree.map(lambda x: x[:3, :1] if x.ndim > 1 else x, batch_for(case))
    after, feedback, _ = jax.jit(step.update)(state, batch, jax.random.key(0))
    assert same(after, state)
    rows = jax.tree.map(lambda x: x[:, 0], batch.record)
    found = case.agent.act(state._replace(params=other), (), Step(*rows[:5]), jax.random.key(0), "greedy")[2]
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
