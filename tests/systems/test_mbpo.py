"""MBPO: what its ensemble learns from, how it is judged, rollouts of networks with known weights, mixed batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import Cursor, Trainer, agents, envs, replay
from jaxwm.agents import mbpo
from jaxwm.agents.mbpo import Config
from jaxwm.models import ensemble
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import member_keys
from jaxwm.types import Batch, Box, Discrete, Index, Record, Spec

SPEC = Spec("gymnax/Pendulum-v1", jax.ShapeDtypeStruct((2,), jnp.float32), Box(1))  # whose episodes never end
TINY = dict(
    networks=4, elites=2, model_layers=1, model_units=8, weight_decay=(0.0, 0.0), model_batch=16, epochs=3, rollouts=6,
    units=4, layers=1, envs=1, prefill=40, capacity=64, refresh=10, epoch_steps=20, rollout_schedule=(1, 3, 1, 3),
)  # fmt: skip


def settings(**options) -> Config:
    return Config(**{**TINY, **options})


def record(obs, action=None, reward=None, **flags) -> Record:
    """Records `[..., D]`; flags not given are False."""
    lead = obs.shape[:-1]
    none = np.zeros(lead, bool)
    flag = [np.asarray(flags.get(name, none)) for name in ("is_first", "is_last", "is_terminal")]
    action = np.zeros((*lead, 1), np.float32) if action is None else action
    return Record(obs, np.zeros(lead, np.float32) if reward is None else reward, *flag, action, {})


def whole(data: Record, held=None) -> Batch:
    """All pairs of one stream `[T, ...]`, as the sampler would give them."""
    pairs = jax.tree.map(lambda x: np.stack([x[:-1], x[1:]], 1), data)
    count = len(pairs.reward)
    weight = np.ones(count, np.float32) if held is None else held
    return Batch(pairs, Index(np.arange(count), np.zeros(count, np.int32)), weight)


def walk(count=40, seed=0) -> Record:
    """A linear world: x' = 0.9 x + 0.3 a in both numbers, reward the sum of x'."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    obs = np.zeros((count, 2), np.float32)
    obs[0] = rng.normal(size=2)
    for t in range(1, count):
        obs[t] = 0.9 * obs[t - 1] + 0.3 * action[t - 1]
    return record(obs, action, obs.sum(-1))


@pytest.fixture(scope="module")
def learner():
    """An agent, its settings and its first state."""
    config = settings()
    agent = mbpo.make(SPEC, config)
    return agent, config, jax.device_get(jax.jit(agent.init)(jax.random.key(0), agent.hyper))


# --- The model ----------------------------------------------------------------------------------------------------


def test_held_out_records_are_never_learned_from(learner):
    """Other numbers in held-out records change the verdict, and nothing that was learned."""
    _, config, state = learner
    learn = jax.jit(lambda state, batch: mbpo.learn(SPEC, config, state, batch, jax.random.key(1)))
    batch = whole(walk())
    held = np.asarray(jax.jit(ensemble.held_out, static_argnums=2)(batch.index.row, batch.index.env, 0.2))
    assert 3 <= held.sum() <= 15
    shape = lambda x: held.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    noise = batch.record._replace(reward=batch.record.reward + np.where(shape(batch.record.reward), 7, 0))
    (first, _, one), (second, _, two) = learn(state, batch), learn(state, batch._replace(record=noise))
    jax.tree.map(np.testing.assert_array_equal, first.params["model"], second.params["model"])
    assert float(two["held_out_error"]) > float(one["held_out_error"]) + 1
    changed = np.abs(first.params["model"]["kernel0"] - state.params["model"]["kernel0"]).max((1, 2))
    assert (changed > 0).all(), "every network learns"
    networks = first.params["model"]["kernel0"]
    assert not np.allclose(networks[0], networks[1]), "each from a bootstrap of its own"


def test_the_held_out_error_is_a_plain_mean_square(learner):
    state = learner[2]
    data = ensemble.transitions(SPEC, whole(walk(31)).record, reward=True)
    rows, count = np.array([4, 9, 2, 25, 0, 0]), np.int32(4)
    found = jax.jit(mbpo.validate, static_argnums=4)(state.params["model"], data, rows, count, 4)
    inputs = np.broadcast_to(data.inputs[rows[:4]], (4, 4, 3))
    mean = np.asarray(jax.jit(ensemble.predict)(state.params["model"], inputs).mean)
    np.testing.assert_allclose(found, np.square(mean - data.target[rows[:4]]).mean((1, 2)), rtol=1e-5)


def test_what_is_listed_comes_newest_first():
    mask = np.array([1, 0, 1, 1, 0, 1], bool)
    places, count = jax.jit(mbpo.listed, static_argnums=1)(mask, 3)
    assert places.tolist() == [5, 3, 2] and int(count) == 3
    places, count = jax.jit(mbpo.listed)(mask)
    assert places[:4].tolist() == [5, 3, 2, 0] and int(count) == 4


def test_a_retraining_keeps_the_best_of_each_network_and_ends(learner):
    """Errors of four networks over the epochs; patience is 1, so two epochs in vain are the end."""
    _, _, state = learner
    config = settings(patience=1, epochs=10)
    step = jax.jit(lambda state, errors: mbpo.keep_best(config, state, errors))

    def mark(state, epoch):
        model = {n: np.full_like(x, epoch) for n, x in state.params["model"].items()}
        return state._replace(params=state.params | {"model": model})

    errors = [[4.0, 3.0, 2.0, 1.0], [4.0, 1.0, 3.0, 0.995], [1.0, 2.0, 2.0, 2.0], [2.0] * 4, [2.0] * 4]
    for epoch, now in enumerate(errors):
        state, finished = step(mark(state, epoch), np.float32(now))
        assert bool(finished) == (epoch == 4)
    model = jax.device_get(state.params["model"])
    assert model["kernel0"][:, 0, 0].tolist() == [2, 1, 0, 0], "0.995 is less than 1 % better than 1"
    assert (model["max_logvar"] == 4).all(), "bounds are not taken back"
    assert sorted(np.asarray(state.memory.elites).tolist()) in ([0, 1], [0, 3], [1, 3])
    assert np.asarray(state.memory.errors).tolist() == [1, 1, 2, 1]
    late = state.memory._replace(epoch=np.int32(9), stale=np.int32(0))
    _, finished = step(state._replace(memory=late), np.float32(errors[0]))
    assert bool(finished), "ten epochs are the most"
    begun = mbpo.scale(SPEC, state, whole(walk()), jax.random.key(0))[0]
    assert np.isinf(begun.memory.errors).all() and int(begun.memory.epoch) == int(begun.memory.stale) == 0


@pytest.mark.slow
def test_the_model_learns_a_linear_world_and_stops():
    config = settings(model_units=32, epochs=100, model_lr=5e-3, patience=5, capacity=512)
    agent = mbpo.make(SPEC, config)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    batch = whole(walk(512))
    state = jax.jit(lambda s: mbpo.scale(SPEC, s, batch, jax.random.key(0))[0])(state)
    learn = jax.jit(lambda s, key: mbpo.learn(SPEC, config, s, batch, key))
    errors = []
    for epoch in range(config.epochs):
        state, _, metrics = learn(state, jax.random.key(epoch))
        errors.append(float(metrics["held_out_error"]))
        if metrics["finished"]:
            break
    assert epoch < config.epochs - 1 and errors[-1] < 1e-3 < errors[0]


# --- Rollouts -----------------------------------------------------------------------------------------------------


def constant(state, config, logvar=-20.0):
    """Networks that add e + 1 to both numbers and promise a reward of 10 (e + 1), network e, nearly without noise."""
    model = {n: np.zeros_like(x) for n, x in state.params["model"].items()}
    mean = (np.arange(config.networks) + 1)[:, None] * np.array([1.0, 1.0, 10.0])
    model["bias1"][:, 0, :3] = mean
    model["bias1"][:, 0, 3:6] = logvar
    model |= {"max_logvar": np.full(3, 0.5, np.float32), "min_logvar": np.full(3, -40, np.float32)}
    memory = state.memory._replace(elites=np.array([3, 1], np.int32))
    return state._replace(params=state.params | {"model": model}, memory=memory)


def test_each_row_follows_one_elite_and_they_have_equal_shares(learner):
    _, config, state = learner
    state, obs = constant(state, config), np.arange(22, dtype=np.float32).reshape(11, 2)
    ask = jax.jit(lambda key: mbpo.predict(SPEC, config, state, obs, np.zeros((11, 1), np.float32), key))
    seen = np.zeros(11)
    for seed in range(8):
        after, reward, ended, chance = jax.device_get(ask(jax.random.key(seed)))
        step = np.round(after - obs)
        assert set(step.ravel()) == {2.0, 4.0} and (step[:, 0] == step[:, 1]).all(), "elites 1 and 3"
        np.testing.assert_allclose(reward, 10 * step[:, 0], atol=0.1)
        assert 5 <= (step[:, 0] == 2).sum() <= 6 and not ended.any() and not chance.any()
        seen += step[:, 0] == 2
    assert (seen > 0).all() and (seen < 8).all(), "which elite is drawn anew each time"


def test_predictions_are_as_noisy_as_the_model_says(learner):
    _, config, state = learner
    state, obs = constant(state, config, logvar=-4.0), np.zeros((4000, 2), np.float32)
    after, reward, *_ = jax.jit(lambda: mbpo.predict(SPEC, config, state, obs, obs[:, :1], jax.random.key(0)))()
    noise = np.stack([np.asarray(after[:, 0]), np.asarray(reward)])
    noise = noise - np.round(noise / [[2.0], [20.0]]) * [[2.0], [20.0]]
    np.testing.assert_allclose(noise.std(-1), np.exp(-2), rtol=0.05)


def test_rollouts_start_from_real_states_and_stay_where_they_end(learner):
    """The end of this world is learned; every logit is 20 for an observation above 3, by the rounding of one unit."""
    config = settings(ends="learned")
    agent = mbpo.make(SPEC, config)
    state = jax.device_get(jax.jit(agent.init)(jax.random.key(0), agent.hyper))
    model = constant(state, config).params["model"]
    model["bias1"][:, 0, 6] = -20.0
    model["kernel0"][:, 0, 0] = 10.0
    model["bias0"][:, 0, 0] = -20.0  # silu(10 x - 20) is large where x > 2
    model["kernel1"][:, 0, 6] = 10.0
    state = state._replace(params=state.params | {"model": model}, memory=constant(state, config).memory)
    start = record(np.array([[0.0, 1], [1, 1], [0.0, 2], [5, 5], [1, 0], [0, 0]], np.float32)[:, None])
    start = start._replace(is_last=np.array([0, 0, 0, 1, 0, 0], bool)[:, None], reward=np.ones((6, 1), np.float32))
    batch = Batch(start, Index(np.arange(6), np.zeros(6)), np.ones(6))
    steps = {name: jax.jit(agent.train_steps[name].update) for name in ("branch", "extend")}
    rows = []
    for t, name in enumerate(("branch", "extend", "extend", "extend")):
        _, row, _ = steps[name](state, batch, jax.random.key(t))
        rows.append(jax.tree.map(lambda x: x[0], jax.device_get(row)))
        batch = batch._replace(record=jax.tree.map(lambda x: x[:, None], rows[-1]))
    np.testing.assert_array_equal(rows[0].obs, start.obs[:, 0])
    assert rows[0].is_first.all() and not any(row.is_first.any() for row in rows[1:])
    assert not rows[0].reward.any() and all((np.abs(row.action) <= 1).all() for row in rows)
    np.testing.assert_array_equal(rows[0].is_last, start.is_last[:, 0])
    for before, row in itertools.pairwise(rows):
        gone = before.is_last
        np.testing.assert_array_equal(row.obs[gone], before.obs[gone])
        assert (row.is_last[gone]).all() and not row.reward[gone].any()
        step = np.round(row.obs - before.obs)[~gone]
        assert set(step.ravel()) <= {2.0, 4.0}
        np.testing.assert_array_equal(row.is_terminal[~gone], before.obs[~gone, 0] > 2.5)
    assert rows[-1].is_last.all() and not rows[1].is_last[:3].any()
    assert not rows[-1].is_terminal[3], "it was cut, not over, when it was real"


def test_the_length_of_rollouts_follows_the_schedule():
    """Hopper's: 1 until epoch 20, 15 from epoch 150 on; epochs begin after the prefill."""
    config = agents.settings("mbpo", "hopper")
    length = jax.jit(lambda steps: mbpo.rollout_length(config, steps))
    epochs = {0: 1, 20: 1, 29: 1, 30: 2, 85: 8, 149: 14, 150: 15, 400: 15}
    for epoch, expected in epochs.items():
        share = min(max((epoch - 20) / 130, 0), 1)
        assert int(length(5000 + 1000 * epoch + 999)) == expected == int(1 + share * 14), epoch
    assert int(length(0)) == 1
    assert mbpo.rows_kept(config, 15) * config.rollouts == agents.make("mbpo", SPEC, "hopper").train_steps[
        "branch"].writes.capacity == 4 * 16 * 100_000  # fmt: skip
    plain = agents.settings("mbpo", "small")
    assert {int(mbpo.rollout_length(plain, np.int32(n))) for n in (0, 500, 5000, 100_000)} == {1}


# --- Batches ------------------------------------------------------------------------------------------------------


def ring_of(rows: int, streams: int, value: float, first=()) -> replay.Ring:
    """A full ring of rows whose observations are `value + row`; those in `first` begin rollouts."""
    obs = np.broadcast_to(value + np.arange(rows, dtype=np.float32)[:, None, None], (rows, streams, 2))
    begins = np.isin(np.arange(rows), first)[:, None] & np.ones(streams, bool)
    return replay.Ring(jax.tree.map(jnp.asarray, record(obs, is_first=begins)), jnp.int32(rows))


def test_a_batch_has_its_share_of_real_steps_and_whole_imagined_ones():
    config = settings(real_ratio=0.25, batch_size=64, rollout_schedule=(1, 3, 2, 2), retain=1, refresh=20)
    rings = {"real": ring_of(40, 1, 0.0), "imagined": ring_of(9, 6, 1000.0, (0, 3, 6))}
    drawn = jax.jit(lambda key: mbpo.draw(config, None, rings, key, 64))
    for seed in range(5):
        obs = np.asarray(drawn(jax.random.key(seed)).record.obs)[..., 0]
        real = obs[:, 0] < 1000
        assert real.sum() == 16
        np.testing.assert_array_equal(obs[:, 1], obs[:, 0] + 1)
        assert set(obs[~real, 0]) == {1006.0, 1007.0}, "the newest rollouts of 2 steps, inside of them"
    for ratio, count in ((0.0, 0), (1.0, 64)):
        other = settings(real_ratio=ratio, batch_size=64, rollout_schedule=(1, 3, 2, 2))
        obs = jax.jit(lambda key, c=other: mbpo.draw(c, None, rings, key, 64))(jax.random.key(0)).record.obs
        assert int((np.asarray(obs)[:, 0, 0] < 1000).sum()) == count


@pytest.mark.slow  # half a minute, most of it compiling
def test_it_learns_a_probe_from_imagined_steps():
    """A whole life in the smallest world: one step, a reward of -(a - 1/2)^2, and an end that is learned as well."""
    options = dict(ends="learned", elites=3, model_lr=1e-2, epochs=4, rollouts=32, batch_size=32, units=16, lr=1e-2)
    config = settings(**options, refresh=20, rollout_schedule=(1, 3, 1, 1), capacity=400, updates_per_step=4)
    env = envs.make("probe/ContinuousTarget")
    agent = agents.build("mbpo", env.spec, config)
    trainer = Trainer(agent, env, 1, config.capacity)
    life, cursor = trainer.init(0), Cursor()
    life, cursor, _ = trainer.run(life, cursor, config.prefill)
    life, cursor, report = trainer.run(life, cursor, 15)
    assert int(life.counters.steps) == config.prefill + 15 * config.refresh
    assert {"sac/loss/critic", "model/held_out_error", "extend/reward"} <= set(report.metrics)
    ring = jax.tree.map(lambda x: np.asarray(x)[0], life.rings["imagined"].data)
    assert int(life.rings["imagined"].rows) == 30, "a row that branches and one more, each time"
    assert sorted(ring.is_first[:, 0].tolist()) == [False, True], "of which the newest rollouts are kept"
    ended = ring.is_terminal[~ring.is_first[:, 0]]
    assert ended.mean() > 0.4, "the model knows that this is the end"
    scores = evaluate(agent, envs.make("probe/ContinuousTarget", 32), life.agent, member_keys(1, 1), 32)
    assert scores.means().min() > -0.05


# --- Wrong use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elites": 5}, "elites must be .* at most 4"),
        ({"model_layers": 2}, "weight_decay must be 3 numbers"),
        ({"rollout_schedule": (1, 2, 3)}, "rollout_schedule must be four numbers"),
        ({"rollout_schedule": (5, 2, 1, 1)}, "the last epoch of rollout_schedule must be .* at least 5"),
        ({"rollout_schedule": (1, 2, 0, 1)}, "the first length of rollout_schedule must be .* at least 1"),
        ({"real_ratio": 1.5}, "real_ratio must be .* at most 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_environments_that_do_not_fit_are_refused():
    vector, image = jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
    for spec, message in (
        (Spec("own/Discrete", vector, Discrete(2)), "soft actor-critic acts with continuous actions"),
        (Spec("own/Image", image, Box(1)), "mbpo sees vectors of floats"),
        (Spec("own/Unknown", vector, Box(1)), "when an episode of own/Unknown ends is not known: .* --ends learned"),
    ):
        with pytest.raises(ValueError, match=message):
            agents.make("mbpo", spec)
