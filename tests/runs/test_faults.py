"""What goes wrong in long runs: updates that are not finite, environments that die, exploited models."""

import math
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_same
from dreams import judged
from lives import run
from rich.console import Console
from toys import counting_env, on_host, toy_agent

from jaxwm import agents, envs, replay
from jaxwm.agents import dreamer_v3 as v3
from jaxwm.distributions import one_hot
from jaxwm.envs import border
from jaxwm.models import rssm
from jaxwm.models.rssm import Latent
from jaxwm.run import directory, json_files, load, session
from jaxwm.run.plan import Plan
from jaxwm.training import life as life_
from jaxwm.training.evaluation import evaluate
from jaxwm.training.gauge import CONTEXT, gauge
from jaxwm.training.host import EnvironmentDied
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import FOREVER, Collect, Discrete, Dream, Record, Repeat, Spec, Train

# --- Updates that are not finite ----------------------------------------------------------------------------------


def faulty(agent, bad):
    """The same agent, whose update spoils parameters, feedback and one metric where `bad(state)` holds."""
    step = agent.train_steps["average"]

    def update(state, batch, key):
        new, feedback, metrics = step.update(state, batch, key)
        nan = jnp.where(bad(state), jnp.nan, 0.0)
        spoilt = new._replace(params=jax.tree.map(lambda x: x + nan, new.params))
        feedback = {k: jnp.where(bad(state), -1, v) for k, v in feedback.items()}
        return spoilt, feedback, metrics | {"mean": metrics["mean"] + nan}

    return agent._replace(train_steps={"average": step._replace(update=update)})


@pytest.mark.slow
@pytest.mark.parametrize("host", [False, True])
def test_bad_updates_are_skipped_and_counted_member_by_member(host):
    """Member 1, told by its learning rate, never has a finite update: it stays as it began; member 0 is untouched."""
    env = on_host(counting_env(4)) if host else counting_env(4)
    hyper = {"lr": np.array([0.1, 0.5])}
    bad = Trainer(faulty(toy_agent(), lambda s: s.hyper["lr"] > 0.3), env, members=2, capacity=80, hyper=hyper)
    fine = Trainer(toy_agent(), env, members=2, capacity=80, hyper=hyper)
    start = jax.device_get(bad.init(0).agent.params)
    life, cursor, _, _ = run(bad, 60)
    good, _, _, rows = run(fine, 60)
    member = lambda tree, m: jax.tree.map(lambda x: x[m], tree)  # noqa: E731
    assert_same(member(life.agent, 0), member(good.agent, 0))
    assert_same(member(life.ring.data, 0), member(good.ring.data, 0))
    assert_same(member(life.agent.params, 1), member(start, 1))
    assert (np.asarray(life.ring.data.extras["seen"][1]) == 0).all()
    updates = int(life.counters.updates)
    assert life.skipped.total.tolist() == life.skipped.run.tolist() == [0, updates]
    _, _, report = bad.run(life, cursor, 3)
    assert report.faults.keys() == {"mean"} and report.faults["mean"].tolist() == [0, 6]
    assert np.isfinite(report.metrics["mean"][0]) and np.isnan(report.metrics["mean"][1])
    assert np.isfinite(rows[-1]["mean"]).all()


def test_a_good_update_ends_the_row_of_bad_ones():
    """Every third update is bad: a third is skipped, and means are over the good ones."""
    agent = toy_agent()
    step = agent.train_steps["average"]

    def update(state, batch, key):
        new, feedback, metrics = step.update(state, batch, key)
        bad = jax.random.bits(key) % 3 == 0
        return new, feedback, metrics | {"mean": jnp.where(bad, jnp.inf, 7.0)}

    trainer = Trainer(agent._replace(train_steps={"average": step._replace(update=update)}), counting_env(4), 1, 400)
    life, _, _, rows = run(trainer, 400)
    total, updates = int(life.skipped.total[0]), int(life.counters.updates)
    assert 0.2 < total / updates < 0.5 and int(life.skipped.run[0]) < 10
    assert int(life.agent.step[0]) == updates - total
    assert all(row["mean"][0] == 7.0 for row in rows if "mean" in row)


@dataclass(frozen=True)
class ToyConfig:
    envs: int = 4
    capacity: int = 400
    bad_after: int = 10_000


@pytest.fixture
def toy_system(monkeypatch):
    """The toy as an agent of the registry; its updates go bad after some."""

    def make(spec, config):
        return faulty(toy_agent(), lambda state: state.step >= config.bad_after)

    entry = agents.System(make, ToyConfig, {"default": ToyConfig()}, "default", "for tests")
    monkeypatch.setitem(agents.AGENTS, "toy", entry)
    envs.register("toy/Count", counting_env)


def quiet():
    return Console(quiet=True)


def test_a_diverged_run_stops_and_names_step_term_and_checkpoint(toy_system, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "CHUNK_SECONDS", 0.0)  # chunks of one iteration, and a checkpoint after each
    monkeypatch.setattr(session, "SKIP_LIMIT", 20)
    plan = Plan("toy", "toy/Count", ToyConfig(bad_after=10), 4000, 2, episodes=4, checkpoint_minutes=0, gauge=0)
    with pytest.warns(UserWarning, match="not finite after .* environment steps: mean; such updates are skipped"):
        with pytest.raises(session.Diverged) as error:
            session.train(plan, tmp_path / "run", quiet())
    text = str(error.value)
    assert "member 0 had 20 updates in a row that were not finite, until 76 environment steps: mean." in text
    assert "the last good checkpoint is at step 72" in text and "--lr" in text
    loaded = load.load(tmp_path / "run")
    assert loaded.steps == 72 and np.isfinite(loaded.state.params["mean"]).all()


# --- Values that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_replaced_values_are_counted_and_told_once(host, toy_system, tmp_path, monkeypatch):
    """One observation in ten, of each environment, is not a number: a warning, and a column of metrics.jsonl."""
    monkeypatch.setattr(session, "CHUNK_SECONDS", 0.0)
    spec = Spec("toy/NaN", jax.ShapeDtypeStruct((1,), jnp.float32), Discrete(3), 10)
    move = lambda k, s, a: (s + 1, jnp.where(s == 4, jnp.nan, 1.0)[None], 1.0, False, s >= 8)  # noqa: E731
    one = lambda num: envs.from_functions(spec, lambda k: (jnp.int32(0), jnp.ones(1)), move, num)  # noqa: E731
    if host:
        envs.register("toy/NaN", lambda num_envs: envs.from_gymnasium(lambda seed: Sometimes(), num_envs, spec))
    else:
        envs.register("toy/NaN", one)
    plan = Plan("toy", "toy/NaN", ToyConfig(), 80, 1, episodes=4, gauge=0)
    with pytest.warns(UserWarning, match="toy/NaN gave numbers that are not finite in [48] steps so far") as told:
        session.train(plan, tmp_path / "run", quiet())
    rows = json_files.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(told) == 1 and "replaced" not in rows[0] and rows[-1]["replaced"] == 8


class Sometimes:
    """The same environment in gymnasium's form."""

    def reset(self, seed=None):
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, np.nan if self.t == 5 else 1.0, np.float32), 1.0, False, self.t >= 9, {}


# --- JAX's global settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg"), ("jax_debug_nans", True), ("jax_disable_jit", True)],
)
def test_settings_that_jaxwm_does_not_run_with_are_refused(name, value):
    env, before = counting_env(4), getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        for make in (
            lambda: Trainer(toy_agent(), env),
            lambda: envs.make("gymnax/Catch-bsuite"),
            lambda: agents.make("dreamer-v3", env.spec, preset="nano"),
        ):
            with pytest.raises(ValueError, match=f"does not run with {name}={value}: unset {name.upper()}"):
                make()
    finally:
        jax.config.update(name, before)


def test_a_run_goes_on_with_the_settings_it_began_with(toy_system, tmp_path):
    plan = Plan("toy", "toy/Count", ToyConfig(), 80, 1, episodes=4, gauge=0)
    directory.create(tmp_path / "run")
    directory.write_config(tmp_path / "run", plan.to_json())
    with jax.default_matmul_precision("highest"):
        with pytest.raises(ValueError, match="begun with jax_default_matmul_precision=None, and now it is highest"):
            session.resume(tmp_path / "run", quiet())


# --- Environments that die ----------------------------------------------------------------------------------------


def mortal(num_envs: int, deaths: set[int], length: int = 5):
    """A counting environment on the host whose n-th step, for n in `deaths`, fails; counts what was closed."""
    env, seen = on_host(counting_env(num_envs, length)), SimpleNamespace(steps=0, closed=0, seeds=[])

    def reset(keys):
        seen.seeds.append(np.asarray(jax.random.key_data(keys)).tolist())
        return env.reset(keys)

    def step(handle, action):
        seen.steps += 1
        if seen.steps in deaths:
            raise RuntimeError("emulator lost")
        return env.step(handle, action)

    def close(handle):
        seen.closed += 1

    return env._replace(reset=reset, step=step, close=close), seen


def test_a_dead_pool_is_restarted_counted_and_said():
    env, seen = mortal(4, {8, 14})
    trainer = Trainer(toy_agent(), env, members=2, capacity=400)
    with pytest.warns(UserWarning) as told:
        life, _, _, _ = run(trainer, 80)
    assert [str(w.message) for w in told] == [
        f"toy/Count died (RuntimeError: emulator lost): restarted, {n} times so far; its episodes start anew"
        for n in (1, 2)
    ]
    assert trainer.restarts == 2 and seen.closed == 2
    assert len({str(seeds) for seeds in seen.seeds}) == 3  # other seeds, or the same failure might come back
    data, rows = jax.device_get(life.ring.data), int(life.counters.rows)
    first, last = data.is_first[:, :rows], data.is_last[:, :rows]
    np.testing.assert_array_equal(first[:, 1:], last[:, :-1])  # what was going on is marked as ended
    assert last[:, 7].all() and first[:, 8].all() and not data.is_terminal[0, 7].all()
    trainer.close()
    assert seen.closed == 3


def test_a_pool_that_dies_again_and_again_is_an_error():
    env, _ = mortal(4, set(range(5, 100)))
    with pytest.warns(UserWarning) as told, pytest.raises(EnvironmentDied, match="after 3 restarts"):
        run(Trainer(toy_agent(), env, capacity=400), 80)
    assert len(told) == 3


def test_a_restored_host_run_marks_the_end_of_what_was_going_on():
    env, seen = mortal(4, set(), length=50)
    trainer = Trainer(toy_agent(), env, members=2, capacity=400)
    life, _, _, _ = run(trainer, 40)
    last = int(life.counters.rows) - 1
    assert not np.asarray(life.ring.data.is_last[:, last]).any()
    assert np.asarray(trainer.restored(life).ring.data.is_last[:, last]).all()
    assert len(seen.seeds) == 2 and seen.seeds[0] != seen.seeds[1] and seen.closed == 1


def test_a_pool_whose_episodes_never_end_is_an_error():
    """Every life takes six steps and dies at the seventh, before its episode ends."""
    env, _ = mortal(4, set(range(7, 200, 7)), length=50)
    with pytest.warns(UserWarning) as told, pytest.raises(EnvironmentDied, match="10th time without one finished ep"):
        run(Trainer(toy_agent(), env, capacity=400), 400)
    assert len(told) == 9


def test_a_finished_episode_makes_deaths_good():
    env, _ = mortal(4, set(range(7, 130, 7)))
    with pytest.warns(UserWarning) as told:
        run(Trainer(toy_agent(), env, capacity=400), 400)
    assert len(told) > 10


@pytest.mark.parametrize("builds", [{1}, {2, 3}])
def test_a_pool_may_die_while_it_is_built(builds):
    env, seen = mortal(4, {8})

    def reset(keys):
        if len(seen.seeds) + 1 in builds:
            seen.seeds.append("dead")
            raise ConnectionError("no simulator")
        return env.reset(keys)

    trainer = Trainer(toy_agent(), env._replace(reset=reset), capacity=400)
    with pytest.warns(UserWarning, match="toy/Count died") as told:
        life, _, _, _ = run(trainer, 80)
    assert sum("(ConnectionError: no simulator)" in str(w.message) for w in told) == len(builds)
    assert trainer.restarts == len(builds) + 1 and int(life.counters.rows) == 20


@pytest.mark.parametrize("error", [border.Misfit, ValueError])
def test_a_misfit_and_a_wrong_option_are_no_deaths(error):
    env, seen = mortal(4, set())
    where = "step" if error is border.Misfit else "reset"

    def broken(*_):
        raise error("toy/Count: the reward has shape (2,), expected ()")

    with pytest.raises(error, match="the reward has shape"):
        run(Trainer(toy_agent(), env._replace(**{where: broken}), capacity=400), 80)
    assert len(seen.seeds) == (where == "step")


def test_an_evaluation_plays_the_episodes_of_dead_environments_again():
    """Every 12th step fails, in the midst of episodes: none is lost or counted twice."""
    env, seen = mortal(2, set(range(12, 400, 12)))
    keys = life_.member_keys(0, 2)
    state = jax.vmap(toy_agent().init, (0, None))(keys, {"lr": jnp.float32(0)})
    with pytest.warns(UserWarning, match="toy/Count died"):
        scores = evaluate(toy_agent(), env, state, keys, 12, "explore")
    assert scores.complete.all() and scores.total.shape == (2, 12) and scores.total.dtype == np.float64
    assert scores.length.max() == 5 and scores.length.min() >= 4 and len(seen.seeds) == 3
    assert len({str(seeds) for seeds in seen.seeds}) == len(seen.seeds) == seen.closed
    with pytest.warns(UserWarning), pytest.raises(EnvironmentDied):
        evaluate(toy_agent(), mortal(2, set(range(1, 400)))[0], state, keys, 12, "explore")


def test_new_episodes_cut_what_was_going_on():
    """`Collect(fresh)` marks the newest records as the last ones of their episodes, on the host as in the program."""
    schedule = (Repeat(FOREVER, (Collect(24, fresh=True), Train("average", 1))),)
    for env in (counting_env(4, length=50), on_host(counting_env(4, length=50))):
        life, _, _, _ = run(Trainer(toy_agent(schedule=schedule), env, capacity=400), 72)
        data = jax.device_get(life.ring.data)
        assert np.flatnonzero(data.is_first[0, :18, 0]).tolist() == [0, 6, 12]
        assert np.flatnonzero(data.is_last[0, :18, 0]).tolist() == [5, 11]


# --- Sums over long episodes --------------------------------------------------------------------------------------


def test_two_floats_hold_long_sums():
    rewards = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * 10 ** np.float32([4, -3] * 10_000)
    start = jnp.float32(0), jnp.float32(0)
    total, rest = jax.lax.scan(lambda c, x: (life_.add_exactly(*c, x), None), start, jnp.asarray(rewards))[0]
    exact = math.fsum(rewards.tolist())
    assert abs(float(total) + float(rest) - exact) < 1e-6 < abs(float(np.cumsum(rewards)[-1]) - exact)


@pytest.mark.parametrize("host", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_returns_of_long_episodes_are_exact(host):
    """One reward of 1e6 and 999 of 0.01, in training and in evaluations."""
    spec = Spec("t/Sum", jax.ShapeDtypeStruct((1,), jnp.float32), Discrete(3), 1000)
    move = lambda k, s, a: (s + 1, jnp.zeros(1), jnp.where(s == 0, 1e6, 0.01), False, s >= 999)  # noqa: E731
    env = envs.from_functions(spec, lambda k: (jnp.int32(0), jnp.zeros(1)), move, 2)
    env = on_host(env) if host else env
    trainer, keys = Trainer(toy_agent(), env, capacity=400), life_.member_keys(0, 1)
    life, cursor = trainer.init(0), Cursor()
    found = []
    while not found:
        life, cursor, report = trainer.run(life, cursor, 250)
        found += report.episodes
    assert [x["return"] for x in found] == pytest.approx([1000009.99] * 2, abs=1e-3)
    assert [x["length"] for x in found] == [1000] * 2
    total = evaluate(toy_agent(), env, life.agent, keys, 2).total
    np.testing.assert_allclose(total, 1000009.99, atol=1e-3)


# --- The exploitation gauge ---------------------------------------------------------------------------------------

HORIZON = 4


def ring_of(reward, is_last, is_terminal):
    """A ring of one environment that holds just these records."""
    column = lambda x, dtype: jnp.asarray(x, dtype)[:, None]  # noqa: E731
    first = np.concatenate([[True], np.asarray(is_last[:-1], bool)])
    rows = jnp.asarray(len(reward))
    flags = column(first, bool), column(is_last, bool), column(is_terminal, bool)
    data = Record(column(reward, jnp.float32)[..., None], column(reward, jnp.float32), *flags, column(reward, int), {})
    return replay.Ring(data, rows)


def dreamer_of(reward: float, cont: float):
    def imagine(state, context, actions, key, horizon):
        assert context.reward.shape[1] == CONTEXT and actions is None
        shape = (len(context.reward), horizon)
        return Dream(None, jnp.full(shape, reward), jnp.full(shape, cont), jnp.zeros(shape, int), None)

    return toy_agent()._replace(imagine=imagine)


def measured(ring, reward=1.0, cont=1.0):
    out = jax.jit(lambda ring: gauge(dreamer_of(reward, cont), None, ring, jax.random.key(0), HORIZON))(ring)
    return {name: float(value) for name, value in out.items()}


def test_the_gauge_compares_dreamed_and_real_returns():
    zeros = [0] * 6
    ring = ring_of([9, 9, 1, 2, 3, 4], zeros, zeros)
    assert measured(ring, reward=3.0) == {"dreamed": 12.0, "real": 10.0, "gap": 2.0}
    dreamed = 3 * (1 + 0.5 + 0.25 + 0.125)
    assert measured(ring, 3.0, 0.5) == pytest.approx({"dreamed": dreamed, "real": 10.0, "gap": dreamed - 10})


def test_the_gauge_at_the_ends_of_episodes():
    """A true end stops the real rewards only: dreaming on is exploitation. A time limit stops both."""
    end = [0, 0, 0, 1, 0, 0]
    reward = [9, 9, 1, 2, 0, 5]
    assert measured(ring_of(reward, end, end), 3.0) == {"dreamed": 12.0, "real": 3.0, "gap": 9.0}
    assert measured(ring_of(reward, end, [0] * 6), 3.0) == {"dreamed": 6.0, "real": 3.0, "gap": 3.0}


def test_windows_that_start_at_an_end_do_not_count():
    reward = [9, 9, 1, 1, 1, 1, 9, 9, 2, 2, 2, 2]
    end = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert measured(ring_of(reward, end, end))["real"] == 8.0
    all_ends = [0, 1] + [0] * 5 + [1] + [0] * 4
    assert np.isnan(measured(ring_of(reward, all_ends, all_ends))["gap"])


def test_the_trainer_measures_every_member():
    trainer = Trainer(dreamer_of(1.0, 1.0), counting_env(4, length=50), members=2, capacity=400)
    life, _, _, _ = run(trainer, 200)
    out = trainer.gauge(life, HORIZON)
    assert {name: value.shape for name, value in out.items()} == {"dreamed": (2,), "real": (2,), "gap": (2,)}
    np.testing.assert_allclose(out["dreamed"], 4.0)
    assert (np.abs(out["real"] - 4.0) < 1.0).all()  # rewards 0, 1, 2 at random
    assert trainer.gauge(trainer.init(0), HORIZON) == {}  # nothing collected yet


# --- Dreams that are harder to exploit ----------------------------------------------------------------------------

TINY = dict(deter=16, hidden=8, units=8, stoch=4, classes=4, bins=11, batch_size=4, batch_length=6, imag_length=3)


KEY = jax.random.key(0)


def agent_with(**options):
    """A tiny Dreamer V3 on Catch, and its learner."""
    spec, config = envs.make("gymnax/Catch-bsuite").spec, agents.settings("dreamer-v3", "nano", **TINY, **options)
    return v3.make(spec, config), v3.Learner(v3.build(spec, config), spec, config)


@cache
def learner_with(**options):
    """The same with a fresh state."""
    agent, learner = agent_with(**options)
    return agent, learner, jax.jit(agent.init)(KEY, agent.hyper)


def latents_of(learner, batch: tuple[int, ...]):
    """Random latents `[*batch, ...]`."""
    deter = jax.random.normal(jax.random.key(1), (*batch, 16))
    stoch = jax.nn.one_hot(jax.random.randint(jax.random.key(2), (*batch, 4), 0, 4), 4)
    return Latent(deter, stoch)


def test_tempered_probabilities():
    dist = one_hot(jnp.log(jnp.array([0.1, 0.2, 0.7])))
    assert dist.tempered(1.0) is dist
    for temperature in (0.5, 2.0):
        powers = np.array([0.1, 0.2, 0.7]) ** (1 / temperature)
        np.testing.assert_allclose(dist.tempered(temperature).probs, powers / powers.sum(), rtol=1e-5)


@pytest.mark.slow
def test_cold_dreams_do_not_depend_on_the_key():
    """At temperature 0.001 latents are the likeliest ones; at 1 they are samples."""
    for temperature, same in ((1e-3, True), (1.0, False)):
        _, learner, state = learner_with(temperature=temperature)
        start, plan = latents_of(learner, (5,)), jnp.ones((5, 3), jnp.int32)

        @jax.jit
        def roll(key, learner=learner, state=state, start=start, plan=plan):
            steps = jnp.concatenate([plan, plan[:, -1:]], 1).swapaxes(0, 1)
            policy = lambda latent, action: (action, learner.world.encode(action))  # noqa: E731
            uniform, heat = jax.random.uniform(key, (3, 5, 4)), learner.config.temperature
            return rssm.imagine(learner.nets.dyn, state.params["dyn"], start, policy, steps, uniform, heat)[0]

        one, two = roll(jax.random.key(3)), roll(jax.random.key(4))
        assert np.array_equal(one.stoch, two.stoch) == same


@pytest.mark.slow
def test_the_ensemble_exists_only_on_request():
    agent, _, state = learner_with(disagreement=0.5, ensemble=3)
    plain, _ = agent_with()
    assert set(state.params) - set(jax.eval_shape(lambda: plain.init(KEY, plain.hyper)).params) == {"dis"}
    ensemble = jax.device_get(state.params["dis"])
    assert {x.shape[0] for x in jax.tree.leaves(ensemble)} == {3}
    first, second = (jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], ensemble)) for i in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    heads = jax.jit(lambda: {name: plain.init(KEY, plain.hyper).params[name] for name in ("rew", "con")})()
    assert_same(heads, {name: state.params[name] for name in heads})  # the others are what they are without it
    trainer = Trainer(agent, envs.make("gymnax/Catch-bsuite", num_envs=4), 1, 400)
    update, (_, batch, key) = trainer.footprint()["updates"]["all"]
    _, _, metrics = jax.eval_shape(update, jax.eval_shape(lambda: state), batch, key)
    assert {"loss/dis", "dream/disagreement"} <= metrics.keys()


def test_ensemble_loss_is_the_squared_error_of_the_next_latent():
    _, learner, state = learner_with(disagreement=0.5, ensemble=3)
    latents, action = latents_of(learner, (2, 4)), jax.random.randint(jax.random.key(5), (2, 4), 0, 3)
    flags = jnp.zeros((2, 4), bool)
    record = Record(None, jnp.zeros((2, 4)), flags.at[0, 2].set(True), flags, flags, action, {})
    loss = v3.ensemble_loss(learner, state.params, latents, record)
    guess = learner.guesses(state.params, latents.feat()[:, :-1], action[:, :-1])
    assert guess.shape == (3, 2, 3, 16) and loss.shape == (2, 3)
    expected = ((np.asarray(guess) - np.asarray(latents.stoch).reshape(2, 4, 16)[:, 1:]) ** 2).sum((0, 3))
    expected[0, 1] = 0.0  # the latent after it belongs to another episode
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_disagreement_is_taken_off_the_reward():
    """The same parameters with and without the penalty: every dreamed return falls by the discounted spread."""
    _, learner, state = learner_with(disagreement=0.5, ensemble=3)
    _, plain, _ = learner_with()
    feat = latents_of(learner, (4, 5)).feat()
    action = jax.random.randint(jax.random.key(6), (4, 5), 0, 3)
    losses, returns, _, metrics = judged(learner, state.params, state, feat, action)
    _, without, _, _ = judged(plain, state.params, state, feat, action)
    spread = np.asarray(learner.guesses(state.params, feat[:-1], action[:-1])).std(0).mean(-1)
    assert (spread > 0).all() and metrics["dream/disagreement"] == pytest.approx(spread.mean(), rel=1e-5)
    np.testing.assert_allclose(returns[-1] - without[-1], -0.5 * spread[-1], rtol=1e-4, atol=1e-6)
    assert (np.asarray(returns) < np.asarray(without)).all()
    assert np.isfinite(losses["policy"]).all()
