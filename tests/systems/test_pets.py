"""PETS: its losses by hand, its rollouts on networks with known weights, and a linear world that it must learn."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs, replay
from jaxwm.__main__ import main
from jaxwm.agents import pets
from jaxwm.agents.pets import Config
from jaxwm.envs.known import KNOWN
from jaxwm.envs.pure import from_functions
from jaxwm.models import ensemble
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import Cursor, member_keys
from jaxwm.training.trainer import Trainer
from jaxwm.types import Batch, Box, Discrete, Index, Record, Spec

TINY = dict(
    planner="cem",
    units=16,
    layers=1,
    weight_decay=(0.0, 0.0),
    epochs=1.0,
    plan_horizon=3,
    candidates=8,
    elites=4,
    iterations=2,
    trial=20,
)
ARGUMENTS = (
    "--units 16 --layers 1 --decay 0 0 --epochs 1 --horizon 3 --candidates 8 --elites 4 --iterations 2 --trial 20"
)

# --- The environment ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cart_moves_as_in_gymnax():
    """The discrete CartPole pushes with 10 N to either side."""
    ours, theirs = envs.make("continuous/CartPole", num_envs=64), envs.make("gymnax/CartPole-v1", num_envs=64)
    (mine, _), (other, step) = ours.reset(jax.random.key(0)), theirs.reset(jax.random.key(1))
    mine = mine._replace(state=(step.obs, mine.state[1]))
    here, there = jax.jit(ours.step), jax.jit(theirs.step)
    ended = np.zeros(64, bool)
    for t in range(40):
        action = jax.random.randint(jax.random.key(t), (64,), 0, 2)
        mine, a = here(mine, 2.0 * action[:, None] - 1)
        other, b = there(other, action)
        np.testing.assert_allclose(a.obs[~ended], b.obs[~ended], atol=2e-5)
        np.testing.assert_array_equal(a.is_terminal[~ended], b.is_terminal[~ended])
        ended |= np.asarray(a.is_last)
    assert ended.sum() > 30


def test_the_ledge_pays_height_until_someone_falls():
    """Each step moves by 0.1 * action and a slip of 0.05; beyond 1 there is no reward, only an end."""
    env = envs.make("continuous/Ledge", num_envs=2000, max_steps=30)
    state, step = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    start, advance = step.obs[:, 0], jax.jit(env.step)
    move = lambda state, force: jax.device_get(advance(state, np.full((2000, 1), force, np.float32)))  # noqa: E731
    state, step = move(state, -0.5)
    moved = step.obs[:, 0] - start
    assert abs(float(moved.mean()) + 0.05) < 0.005 and abs(float(moved.std()) - 0.05) < 0.003
    np.testing.assert_allclose(step.reward, step.obs[:, 0], atol=1e-6)
    for _ in range(9):
        state, step = move(state, 5.0)  # as far as an action goes
    standing = step.obs[:, 0] <= 1
    assert 0.1 < float(standing.mean()) < 0.95, "some have fallen, some have not"
    for _ in range(12):
        state, step = move(state, 1.0)
        gone = step.obs[:, 0] > 1
        np.testing.assert_array_equal(step.is_terminal, gone)
        earned = np.where(gone | step.is_first, 0.0, step.obs[:, 0])
        np.testing.assert_allclose(step.reward, earned, atol=1e-6)


def test_the_cart_takes_any_force_and_stops_after_its_limit():
    env = envs.make("continuous/CartPole", max_steps=3)
    state, step = jax.jit(env.reset)(jax.random.key(0))
    assert np.abs(step.obs).max() <= 0.05
    advance = jax.jit(env.step)
    move = lambda state, force: jax.device_get(advance(state, np.full((1, 1), force, np.float32)))  # noqa: E731
    half, full, rest, beyond = (move(state, force)[1].obs for force in (0.5, 1.0, 0.0, 7.0))
    np.testing.assert_allclose(full - rest, 2 * (half - rest), atol=1e-6)
    np.testing.assert_array_equal(full, beyond)
    for last in (False, False, True):
        state, step = move(state, 0.0)
        assert bool(step.is_last[0]) == last and not step.is_terminal[0] and step.reward[0] == 1


@pytest.mark.parametrize("name", [name for name in KNOWN if not name.startswith("mujoco/")])
def test_known_rewards_and_ends_are_those_of_the_environment(name):
    env = envs.make(name, num_envs=32)
    (state, step), move = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    known = jax.jit(lambda before, action, after: (KNOWN[name].reward(before, action, after), KNOWN[name].ends(after)))
    actions = np.random.default_rng(1).uniform(-1.3, 1.3, (30, 32, 1)).astype(np.float32)
    ended = np.zeros(32, bool)
    for action in actions:
        before, (state, step) = step.obs, jax.device_get(move(state, action))
        reward, ends = jax.device_get(known(before, action, step.obs))
        np.testing.assert_allclose(reward[~ended], step.reward[~ended], atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(ends[~ended] > 0, step.is_terminal[~ended])
        ended |= step.is_last


# --- The ensemble against closed forms ----------------------------------------------------------------------------


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def test_log_variances_are_bounded_and_the_likelihood_is_gaussian():
    raw, least, most = np.linspace(-30, 30, 13), -10.0, 0.5
    upper = most - softplus(most - raw)
    expected = least + softplus(upper - least)
    found = jax.device_get(jax.jit(ensemble.bound)(*map(np.float32, (raw, least, most))))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # two softplus overshoot the upper bound by log(1 + exp(-10.5)) and no more
    assert found[0] == pytest.approx(least, abs=1e-4) and found[-1] == pytest.approx(most, abs=1e-4)
    mean, logvar, target = np.array([[1.0, -2.0], [0.3, -1.0], [0.5, -1.0]], np.float32)
    log_density = -0.5 * (np.log(2 * np.pi) + logvar + (target - mean) ** 2 / np.exp(logvar))
    found = jax.jit(ensemble.nll)(ensemble.Prediction(mean, logvar, np.zeros(0, np.float32)), target)
    np.testing.assert_allclose(found, -2 * log_density - np.log(2 * np.pi), rtol=1e-5)


def model_of(config: Config, size=3, actions=1, seed=0):
    outputs = size + (config.reward == "learned")
    key = jax.random.key(seed)
    logits = int(config.reward == "learned")
    sizes = config.networks, size + actions, config.units, config.layers, outputs, logits
    return jax.device_get(fresh_model(key, *sizes))


fresh_model = jax.jit(ensemble.init, static_argnums=range(1, 7))


def by_hand(model, config: Config, inputs, target, ended, weight) -> float:
    """The loss with NumPy loops over networks."""
    total, size = 0.0, target.shape[-1]
    for e in range(config.networks):
        hidden = inputs[e] @ model["kernel0"][e] + model["bias0"][e]
        hidden = hidden / (1 + np.exp(-hidden))
        out = hidden @ model["kernel1"][e] + model["bias1"][e]
        mean, raw = out[:, :size], out[:, size : 2 * size]
        upper = model["max_logvar"] - softplus(model["max_logvar"] - raw)
        logvar = model["min_logvar"] + softplus(upper - model["min_logvar"])
        each = (mean - target[e]) ** 2
        each = (each if config.deterministic else each / np.exp(logvar) + logvar).mean(-1)
        if config.reward == "learned":
            p = 1 / (1 + np.exp(-out[:, 2 * size]))
            each = each - ended[e] * np.log(p) - (1 - ended[e]) * np.log(1 - p)
        total += (each * weight[e]).sum() / weight[e].sum()
    for i, rate in enumerate(config.weight_decay):
        total += rate / 2 * (model[f"kernel{i}"] ** 2).sum()
    if config.bounds == "learned" and not config.deterministic:
        total += config.bound_scale * (model["max_logvar"].sum() - model["min_logvar"].sum())
    return float(total)


@pytest.mark.parametrize(
    "options", [{}, {"bounds": "fixed"}, {"deterministic": True}, {"reward": "learned"}], ids=lambda o: str([*o])
)
def test_the_loss_is_the_papers(options):
    config = Config(**{**TINY, "networks": 2, "particles": 2, "weight_decay": (0.1, 0.3), **options})
    model = model_of(config)
    rng = np.random.default_rng(0)
    inputs, target = rng.normal(size=(2, 6, 4)), rng.normal(size=(2, 6, 3 + (config.reward == "learned")))
    ended, weight = rng.integers(0, 2, (2, 6)).astype(float), rng.integers(0, 3, (2, 6)).astype(float)
    data = inputs, target, ended, weight
    fn = jax.jit(jax.value_and_grad(functools.partial(pets.loss, config), has_aux=True))
    (total, _), grads = fn(model, ensemble.Transitions(*[x.astype(np.float32) for x in data]))
    expected = by_hand(model, config, *data)
    assert float(total) == pytest.approx(expected, rel=1e-4)
    learned = config.bounds == "learned" and not config.deterministic
    assert bool(np.abs(grads["max_logvar"]).sum() > 0) == learned


def test_bootstraps_are_poisson_and_never_drawn_anew():
    row = np.arange(4000)
    env, network, bootstrap = row % 3, row % 5, jax.jit(ensemble.bootstrap)
    draws = np.asarray(bootstrap(np.uint32(7), row, env, network))
    assert draws.mean() == pytest.approx(1, abs=0.06) and draws.var() == pytest.approx(1, abs=0.1)
    assert (draws == 0).mean() == pytest.approx(np.exp(-1), abs=0.03)
    order = np.random.default_rng(0).permutation(4000)[:100]  # other rows beside it change nothing
    again = bootstrap(np.uint32(7), row[order], env[order], network[order])
    np.testing.assert_array_equal(again, draws[order])
    for changed in ((8, row, env, network), (7, row, env, network + 1), (7, row, env + 1, network)):
        other = np.asarray(bootstrap(np.uint32(changed[0]), *changed[1:]))
        assert np.corrcoef(other, draws)[0, 1] == pytest.approx(0, abs=0.06)


def constant_steps(networks: int, size: int = 1):
    """A world where network e adds e + 1 to the observation, reward 1, and the episode ends above 10."""

    def transition(obs, action, noise):
        after = obs + jnp.arange(1.0, networks + 1)[:, None, None]
        return after, jnp.ones(obs.shape[:2]), (after[..., 0] <= 10).astype(jnp.float32)

    return transition


@functools.partial(jax.jit, static_argnums=(2, 3))
def roll_out(start, actions, particles, mix):
    """Particles in the world of three networks."""
    return ensemble.rollout(constant_steps(3), start, actions, jax.random.key(0), 3, particles, 1, mix)


def test_particles_keep_their_network_or_change_it():
    start, actions = np.zeros((4, 1), np.float32), np.zeros((4, 6, 2), np.float32)
    kept, mixed = (jax.device_get(roll_out(start, actions, 6, mix)) for mix in (False, True))
    assert kept.obs.shape == (6, 3, 2, 4, 1) and kept.reward.shape == (6, 3, 2, 4)
    expected = np.arange(1, 7)[:, None] * np.arange(1, 4)
    np.testing.assert_array_equal(kept.obs[..., 0], np.broadcast_to(expected[:, :, None, None], (6, 3, 2, 4)))
    np.testing.assert_array_equal(mixed.obs[0], kept.obs[0])
    assert (mixed.obs[-1] != kept.obs[-1]).any()
    # each network still moves a third of the particles, so that the mean is 2 a step
    np.testing.assert_allclose(mixed.obs.mean((1, 2, 3, 4)), 2 * np.arange(1, 7), rtol=1e-6)


def test_who_has_died_earns_nothing_more():
    """Network 1 ends after 11 steps, 2 after 6, 3 after 4; the step that ends still counts."""
    start, actions = np.zeros((2, 1), np.float32), np.zeros((2, 12, 1), np.float32)
    found, mixed = (jax.device_get(roll_out(start, actions, 3, mix)) for mix in (False, True))
    np.testing.assert_array_equal(found.reward.sum(0)[:, 0], np.array([[11.0] * 2, [6.0] * 2, [4.0] * 2]))
    np.testing.assert_allclose(found.returns(), [7.0, 7.0], rtol=1e-6)
    # who is above 10 was so after the step before: life travels with the particle through every shuffle
    np.testing.assert_array_equal(mixed.alive, mixed.obs[..., 0] <= 10)


# --- A linear world -----------------------------------------------------------------------------------------------

NOISE = 0.05


def linear_world(num_envs: int = 1):
    """x' = 0.9 x + 0.5 a + noise of standard deviation 0.05 (a scalar); reward -x'^2; ends where |x'| > 3."""

    def reset(key):
        x = jax.random.uniform(key, (1,), minval=-2, maxval=2)
        return x, x

    def step(key, x, action):
        x = 0.9 * x + 0.5 * action + NOISE * jax.random.normal(key, (1,))
        return x, x, -jnp.square(x[0]), jnp.abs(x[0]) > 3, False

    spec = Spec("own/Linear", jax.ShapeDtypeStruct((1,), jnp.float32), Box(1), 30)
    return from_functions(spec, reset, step, num_envs)


def train(env, turns: int, members: int = 1, **options) -> SimpleNamespace:
    config = agents.settings("pets", "small", **options)
    agent = agents.find("pets").make(env.spec, config)
    trainer = Trainer(agent, env, members, config.capacity, max_iterations=8)
    life, cursor, episodes = trainer.init(0), Cursor(), []
    for _ in range(turns):
        life, cursor, report = trainer.run(life, cursor, 1)
        episodes += report.episodes
    return SimpleNamespace(agent=agent, trainer=trainer, life=life, cursor=cursor, episodes=episodes, config=config)


@pytest.fixture(scope="module")
def learned() -> SimpleNamespace:
    """An agent of the linear world, with a learned reward; state of its only member."""
    options = TINY | dict(
        candidates=64, elites=8, units=32, trial=400, epochs=120.0, lr=5e-3, reward="learned", capacity=1000, envs=1
    )
    found = train(linear_world(), 2, **options)
    found.state = jax.tree.map(lambda x: x[0], jax.device_get(found.life.agent))
    return found


def test_the_ensemble_learns_a_linear_world_and_its_noise(learned):
    """After 400 steps the mean is right to a third of the noise, and the predicted noise is the true one."""
    transition = pets.transition(linear_world().spec, learned.config, learned.state.params)
    x, a = np.meshgrid(*(np.linspace(-most, most, n, dtype=np.float32) for most, n in ((1, 7), (0.9, 5))))
    start, actions = x.reshape(-1, 1), a.reshape(-1, 1, 1)
    roll = jax.jit(lambda key: ensemble.rollout(transition, start, actions, key, 5, 2000, 2, mix=False))
    found = jax.device_get(roll(jax.random.key(0)))
    obs, truth = found.obs[0, ..., 0], 0.9 * x.ravel() + 0.5 * a.ravel()  # [E, Q, C]
    error = obs.mean((0, 1)) - truth
    assert np.sqrt(np.square(error).mean()) < NOISE / 3
    assert float(obs.std(1).mean()) == pytest.approx(NOISE, rel=0.2)
    reward, near = found.reward[0].mean((0, 1)), np.abs(truth) < 1
    np.testing.assert_allclose(reward[near], -np.square(truth)[near], atol=0.2)
    assert found.alive.min() > 0.9


def test_dreams_follow_the_linear_world(learned):
    step = np.array(
        [[[0.3], [1.0]], [[0.0], [-1.0]]], np.float32
    )  # [B, 2, D]: two contexts, of which the last record counts
    blank = np.zeros((2, 2), np.float32)
    context = Record(step, blank, blank > 1, blank > 1, blank > 1, blank[..., None], {})
    given = np.array([[0.5, -0.5, 0.0], [0.2, 0.2, 0.2]], np.float32)[..., None]
    imagine = jax.jit(learned.agent.imagine, static_argnums=4)
    dream = jax.device_get(imagine(learned.state, context, given, jax.random.key(0), 3))
    expected = np.zeros((2, 3))
    for b, x in enumerate((1.0, -1.0)):
        for t in range(3):
            x = expected[b, t] = 0.9 * x + 0.5 * float(given[b, t, 0])
    np.testing.assert_allclose(dream.obs[..., 0], expected, atol=0.15)
    assert dream.reward.shape == dream.cont.shape == (2, 3) and dream.latent.shape == (2, 3, 1)
    assert (dream.cont > 0.9).all() and (dream.cont <= 1).all()
    own = jax.device_get(imagine(learned.state, context, None, jax.random.key(0), 7))  # longer than a plan
    assert own.action.shape == (2, 7, 1) and (np.abs(own.action) <= 1).all()
    assert own.action[0, 0, 0] < 0 < own.action[1, 0, 0], "the plan goes towards 0, where the reward is"


def test_plans_in_the_learned_world_beat_chance(learned):
    env = linear_world(20)
    planned, chance = (
        evaluate(learned.agent, env, learned.life.agent, member_keys(1, 1), 20, mode).means()[0]
        for mode in ("greedy", "random")
    )
    assert planned > chance / 2


def test_scales_are_those_of_all_transitions_within_episodes(learned):
    data = jax.tree.map(lambda x: np.asarray(x)[0], learned.life.ring.data)
    rows = 401  # scales were fitted after the first trial
    obs, first, last = data.obs[:rows, 0], data.is_first[:rows, 0], data.is_last[:rows, 0]
    keep = ~first[1:] & ~last[:-1]
    inputs = np.concatenate([obs, data.action[:rows, 0]], 1)[:-1][keep]
    found = learned.state.params["inputs"]
    np.testing.assert_allclose(found.mean, inputs.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.std, inputs.std(0), rtol=1e-4)
    targets = (obs[1:] - obs[:-1])[keep]
    np.testing.assert_allclose(learned.state.params["targets"].std[:1], targets.std(0), rtol=1e-4)


empty_ring = jax.jit(lambda row: replay.init(row, 10, 2))
next_row, pairs_of = jax.jit(replay.add), jax.jit(replay.all_pairs)


@pytest.mark.parametrize(("written", "kept"), [(3, 3), (5, 5), (8, 5)])
def test_every_pair_of_the_replay_is_read_once(written, kept):
    """Rows are numbered; of eight, a ring of five holds the last five."""
    none, zero = np.zeros(2, bool), np.zeros((2, 1), np.float32)
    row = lambda t: Record(zero + t, zero[:, 0], none, none, none, zero, {})  # noqa: E731
    ring = empty_ring(row(0))
    for t in range(written):
        ring = next_row(ring, row(t))
    batch = jax.device_get(pairs_of(ring))
    good = np.asarray(batch.weight) > 0
    pairs = sorted(map(tuple, np.asarray(batch.record.obs[good, :, 0])))
    assert pairs == sorted(2 * [(t, t + 1) for t in range(written - kept, written - 1)])


# --- The agent ----------------------------------------------------------------------------------------------------


@functools.cache
def agent_of(planner: str) -> SimpleNamespace:
    """An agent and its jitted functions; a first state and a first step, which do not depend on the planner."""
    env = envs.make("continuous/CartPole", num_envs=3)
    agent = agents.make("pets", env.spec, **TINY | {"planner": planner})
    act, reset = jax.jit(agent.act, static_argnums=4), jax.jit(agent.reset, static_argnums=1)
    if planner != "cem":
        return SimpleNamespace(**vars(agent_of("cem")) | dict(agent=agent, act=act, reset=reset))
    state, step = jax.jit(lambda key: (agent.init(key, agent.hyper), env.reset(key)[1]))(jax.random.key(0))
    return SimpleNamespace(agent=agent, act=act, reset=reset, state=state, step=step)


@pytest.mark.parametrize("planner", ["cem", "icem", "mppi"])
def test_every_mode_gives_actions_of_the_right_kind(planner):
    one = agent_of(planner)
    carry = one.reset(one.state, 3)
    for mode in ("random", "explore", "greedy"):
        after, action, extras = one.act(one.state, carry, one.step, jax.random.key(0), mode)
        assert action.shape == (3, 1) and action.dtype == jnp.float32 and (np.abs(action) <= 1).all() and extras == {}
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), carry)
    assert len(np.unique(action)) == 3, "every environment has a key of its own"
    with pytest.raises(ValueError, match="mode must be one of"):
        one.agent.act(one.state, carry, one.step, jax.random.key(0), "best")


def test_plans_are_forgotten_where_an_episode_begins():
    one = agent_of("cem")
    new = one.reset(one.state, 3)
    old, begin = new._replace(mean=np.ones((3, 3, 1), np.float32)), np.array([True, False, True])
    step = one.step._replace(is_first=begin)
    actions, fresh = (
        np.asarray(one.act(one.state, carry, step, jax.random.key(0), "greedy")[1]) for carry in (old, new)
    )
    np.testing.assert_array_equal(actions == fresh, begin[:, None])


@pytest.fixture(scope="module")
def short() -> SimpleNamespace:
    """Two members after four trials of at most 20 steps."""
    return train(envs.make("continuous/CartPole", max_steps=20), 4, 2, **TINY)


def test_a_trial_is_seen_to_its_end_and_updates_follow_the_data(short):
    """Poles that stand for 20 steps are counted in the last row of their trial; nothing is compiled twice."""
    whole = [episode["env_steps"] for episode in short.episodes if episode["length"] == 20]
    assert whole and all((steps + 1) % 21 == 0 for steps in whole)
    assert int(short.life.counters.rows) == 4 * 21 and len(short.trainer._program.programs) == 2
    updates = sum(1 + round(21 * k / short.config.batch_size) for k in (1, 2, 3))
    assert int(short.life.counters.updates) == updates


def test_what_the_train_steps_report():
    one = agent_of("cem")
    flat = np.zeros((320, 2), np.float32)
    record = Record(np.zeros((320, 2, 4), np.float32), flat, *[flat.astype(bool)] * 3, flat[..., None], {})
    batch = Batch(record, Index(*np.zeros((2, 320), np.int32)), np.ones(320, np.float32))
    batches = {"scale": batch, "model": batch}
    _, metrics = jax.eval_shape(one.agent.train_step, one.state, batches, jax.random.key(0))
    assert metrics.keys() == {"loss", "squared_error", "logvar", "grad_norm", "transitions"}
    _, _, scaled = jax.jit(one.agent.train_steps["scale"].update)(one.state, batch, jax.random.key(0))
    assert scaled["transitions"] == 320


# --- Wrong use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 7}, "particles must be a multiple of the 5 networks, not 7"),
        ({"layers": 2}, "decay must be 3 numbers, one per layer and one for the output"),
        ({"elites": 500}, "elites must be .* at most 8"),
        ({"planner": "shooting"}, "planner must be one of 'cem', 'icem', 'mppi'"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"epochs": -1.0}, "epochs must be a number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**{**TINY, **options})


def test_environments_that_do_not_fit_are_refused():
    vector, image = jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
    for spec, message in (
        (Spec("own/Discrete", vector, Discrete(2)), "pets plans over continuous actions"),
        (Spec("own/Image", image, Box(1)), "pets sees vectors of floats"),
        (Spec("own/Unknown", vector, Box(1)), "the reward of own/Unknown is not known .* --reward learned"),
    ):
        with pytest.raises(ValueError, match=message):
            agents.make("pets", spec)


# --- Learning -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_trains_and_scores(tmp_path, capsys):
    """Two members, which two devices share where there are two."""
    command = f"train pets --env continuous/CartPole --members 2 --steps 42 --episodes 2 --run {tmp_path / 'run'}"
    assert main([*command.split(), *ARGUMENTS.split()]) == 0
    assert "trained (greedy)" in capsys.readouterr().out and (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("propagation", ["TSinf", "TS1"])
def test_poles_stand_and_dreams_are_drawn(tmp_path, capsys, propagation):
    run = str(tmp_path / "run")
    command = f"train pets --env continuous/CartPole --members 3 --steps 1206 --episodes 20 --run {run}"
    assert main([*command.split(), "--propagation", propagation]) == 0
    assert min(json.loads((tmp_path / "run" / "evaluation.json").read_text())["trained"]) >= 190
    assert main(f"dream {run} --context 2 --horizon 20 --episodes 2 --sequences 32".split()) == 0
    assert (tmp_path / "run" / "dreams" / "dreams.json").exists()


@pytest.mark.slow
def test_pendulums_swing_up_within_ten_trials():
    env = envs.make("gymnax/Pendulum-v1")
    trained = train(env, 10, 3)
    scores = evaluate(trained.agent, envs.make("gymnax/Pendulum-v1", 20), trained.life.agent, member_keys(1, 3), 20)
    assert scores.means().min() >= -300
