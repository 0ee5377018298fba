"""Schedules, chunks, populations and checkpoints, on a toy agent whose numbers can be checked by hand."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_same, raw
from lives import run
from tiny import build
from toys import ToyState, counting_env, on_host, toy_agent

from jaxwm import envs, replay
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.schedule import segments
from jaxwm.training.evaluation import evaluate
from jaxwm.training.flops import flops
from jaxwm.training.life import Cursor, member_keys
from jaxwm.training.stopwatch import Stopwatch
from jaxwm.training.trainer import Trainer
from jaxwm.types import FOREVER, Collect, Repeat, Train


def test_long_words_are_cut_and_repeats_are_kept():
    body = (Collect(8), Train("average", 2))
    cut = segments((Collect(10, "random"), Train("average", 5), Collect(8, fresh=True), Repeat(7, body)), 4)
    assert [(s.times, s.body, s.rows) for s in cut] == [
        (3, (Collect(4, "random"),), 1),
        (5, (Train("average"),), 0),
        (1, (Collect(8, fresh=True),), 2),
        (7, body, 2),
    ]


def test_steps_are_those_of_one_member_over_its_environments():
    trainer = Trainer(toy_agent(), counting_env(4), members=2, capacity=400)
    life, _, _, _ = run(trainer, 100)
    rows, updates = int(life.counters.rows), int(life.counters.updates)
    assert int(life.counters.steps) == 4 * rows
    assert updates == 2 * (rows - 4)  # 16 random steps are four rows; then two updates a row
    assert int(life.ring.rows) == rows and life.ring.rows.shape == ()


def test_the_work_of_an_update_is_counted_in_the_program_of_all_devices():
    """With two members the program does twice the work of one update, and half of it is each member's."""
    tiny = build("pets")
    trainer = Trainer(tiny.agent, tiny.env, 2, tiny.config.capacity)
    one, both = {}, {}
    for name, (update, shapes) in trainer.footprint()["updates"].items():
        one[name], both[name] = flops(update, *shapes), trainer.work(name)
    assert one == both and max(one.values()) > 0


def test_every_finished_episode_is_reported_once():
    trainer = Trainer(toy_agent(), counting_env(2, length=5), members=3, capacity=400)
    life, _, episodes, _ = run(trainer, 100, chunk=3)
    data, rows, expected = jax.device_get(life.ring.data), int(life.counters.rows), []
    for m in range(3):
        for n in range(2):
            ends = np.flatnonzero(data.is_last[m, :rows, n])
            starts = np.flatnonzero(data.is_first[m, :rows, n])[: len(ends)]
            expected += [(m, 2 * e, data.reward[m, s : e + 1, n].sum()) for s, e in zip(starts, ends, strict=True)]
    assert sorted((e["member"], e["env_steps"], e["return"]) for e in episodes) == sorted(expected)
    assert {e["length"] for e in episodes} == {4, 5}  # environment 1 starts one step into its first episode


def test_a_chunk_without_an_ended_episode_reports_none():
    trainer = Trainer(toy_agent(), counting_env(4, length=50), capacity=400)
    _, _, episodes, rows = run(trainer, 40, chunk=4)
    assert episodes == []
    assert rows[0] == {} and "mean" in rows[-1]  # nothing was trained in the first chunk: absent, not 0


def test_records_follow_the_contract():
    """The action of a record was taken after its observation; the reward it earned stands in the next record."""
    trainer = Trainer(toy_agent(), counting_env(2), capacity=400)
    life, _, _, _ = run(trainer, 60)
    data, rows = jax.device_get(life.ring.data), int(life.counters.rows)
    action, reward, first, last = (x[0, :rows] for x in (data.action, data.reward, data.is_first, data.is_last))
    np.testing.assert_array_equal(reward[1:][~first[1:]], action[:-1][~first[1:]])
    np.testing.assert_array_equal(first[1:], last[:-1])
    assert (reward[first] == 0).all()
    np.testing.assert_array_equal(data.extras["since"][0, :rows][first], 0)


def test_feedback_reaches_the_replay():
    trainer = Trainer(toy_agent(), counting_env(2), capacity=400)
    life, _, _, _ = run(trainer, 100)
    seen = np.asarray(life.ring.data.extras["seen"])
    assert seen.max() == int(life.counters.updates) and (seen > 0).mean() > 0.1


def test_host_and_pure_loops_are_one_run():
    """An environment compiled in, or stepped from the host under a stopwatch: equal actions, records, parameters,
    episodes."""
    pure = Trainer(toy_agent(), counting_env(4), members=2, capacity=80)
    host = Trainer(toy_agent(), on_host(counting_env(4)), members=2, capacity=80, measure=Stopwatch())
    (a, _, ea, ra), (b, _, eb, rb) = run(pure, 120), run(host, 120)
    assert_same(a.ring, b.ring)
    assert ea == eb
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), raw(a.agent), raw(b.agent))
    for x, y in zip(ra, rb, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-6)


def test_a_stopwatch_tells_what_the_time_of_a_real_game_went_to():
    """Two games of Pong, some hundred steps: every second is in one part."""
    watch = Stopwatch()
    trainer = Trainer(toy_agent(), envs.make("atari/Pong", num_envs=2), capacity=400, measure=watch)
    life, cursor = trainer.init(), Cursor()
    trainer.compile(life)
    began = time.perf_counter()
    while int(life.counters.steps) < 300:
        life, cursor, _ = trainer.run(life, cursor, 16)
    total = time.perf_counter() - began
    trainer.close()
    assert watch.seconds.keys() == {"env", "policy", "transfer", "update"} and min(watch.seconds.values()) > 0
    assert 0.2 * total < sum(watch.seconds.values()) <= total
    shares = watch.shares(total)
    assert list(shares) == ["env", "policy", "transfer", "update", "idle"]
    np.testing.assert_allclose(sum(share for _, share in shares.values()), 1.0)


def test_a_stopwatch_says_what_is_one_program():
    """Collecting and learning in a pure environment cannot be told apart; updates alone can."""
    together = Repeat(3, (Collect(4), Train("average")))
    watch, schedule = Stopwatch(), (Collect(16, "random"), Train("average", 2), together)
    trainer = Trainer(toy_agent(schedule=schedule), counting_env(4), capacity=80, measure=watch)
    life, cursor = trainer.init(), Cursor()
    while not trainer.finished(cursor):
        life, cursor, _ = trainer.run(life, cursor, 8)
    assert watch.seconds.keys() == {"program", "update", "transfer"}


def test_a_member_starts_like_its_single_run():
    one, three = (Trainer(toy_agent(), counting_env(4), members=m, capacity=80).init(5) for m in (1, 3))
    assert_same(jax.tree.map(lambda x: x[0], one.agent), jax.tree.map(lambda x: x[0], three.agent))
    assert_same(one.key[0], three.key[0])
    noise = np.asarray(three.agent.params["noise"])
    assert len(set(noise.tolist())) == 3


def test_hyperparameters_differ_between_members():
    trainer = Trainer(toy_agent(), counting_env(4), members=2, capacity=80, hyper={"lr": np.array([0.0, 0.5])})
    life, _, _, _ = run(trainer, 60)
    still, moved = np.asarray(life.agent.params["mean"])
    assert still == 0 and moved > 0.1
    with pytest.raises(ValueError, match=r"\['wd'\] cannot differ"):
        Trainer(toy_agent(), counting_env(4), hyper={"wd": 1.0})


@pytest.mark.parametrize("host", [pytest.param(False, marks=pytest.mark.slow), True])
def test_until_stops_each_member_and_advances_the_counters_by_the_cap(host):
    def until(metrics):
        return metrics["updates"] >= jnp.where(metrics["mean"] > 0, 3, 5)

    schedule = (Collect(40, "random"), Train("average", 20, until), Repeat(FOREVER, (Collect(4),)))
    agent = toy_agent(schedule=schedule, until=until)
    env = on_host(counting_env(4)) if host else counting_env(4)
    trainer = Trainer(agent, env, members=2, capacity=80, hyper={"lr": np.array([0.5, 0.0])})
    life, _, _, rows = run(trainer, 60)
    assert np.asarray(life.agent.step).tolist() == [3, 5]  # the update whose metrics say stop is the last one
    assert int(life.counters.updates) == 20
    trained = [row for row in rows if "updates" in row]
    np.testing.assert_allclose(trained[0]["updates"], [2.0, 3.0])  # means over 1..3 and 1..5


def test_updates_may_grow_with_the_steps_collected():
    word = Train("average", lambda steps: steps // 8)
    trainer = Trainer(toy_agent(schedule=(Repeat(3, (Collect(16), word)),)), counting_env(4), capacity=80)
    life, cursor = trainer.init(0), Cursor()
    life, cursor, _ = trainer.run(life, cursor, 3)
    assert int(life.counters.updates) == 2 + 4 + 6
    assert trainer.finished(cursor)


@pytest.mark.parametrize("host", [False, True])
def test_fresh_starts_new_episodes(host):
    schedule = (Repeat(4, (Collect(12, fresh=True),)),)
    env = on_host(counting_env(4)) if host else counting_env(4)
    trainer = Trainer(toy_agent(schedule=schedule), env, capacity=80)
    life, _, _ = trainer.run(trainer.init(0), Cursor(), 4)
    first = np.asarray(life.ring.data.is_first)[0, :12]
    assert first[[0, 3, 6, 9]].all() and not first[[1, 4, 7, 10], 0].any()


def test_compiled_once_in_place_and_without_transfers():
    trainer = Trainer(toy_agent(), counting_env(4), members=2, capacity=400)
    life = trainer.init(0)
    trainer.compile(life)
    programs = dict(trainer._program.programs)
    assert len(programs) == 2
    for chunk in (4, 3, 9, 1):
        before = life
        with jax.transfer_guard("disallow"), jax.log_compiles(False):
            iterations = jax.device_put(np.int32(chunk))
            life, _ = programs[trainer.segments[1].body](life, iterations)
        assert before.ring.data.reward.is_deleted()  # donated, so updated in place
    trainer.run(life, Cursor(1, 0), 5)
    assert trainer._program.programs == programs


@pytest.mark.slow
def test_save_and_resume_is_bit_exact(tmp_path):
    def fresh():
        return Trainer(toy_agent(), counting_env(4), members=2, capacity=40)

    whole, _, episodes, _ = run(fresh(), 200, chunk=5)
    trainer = fresh()
    life, cursor, before, _ = run(trainer, 100, chunk=5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(100, life, cursor, {"note": "half"})
        life, _, _ = trainer.run(life, cursor, 3)  # the saved arrays are donated while they are being written
        checkpoints.wait()
        again = fresh()
        life, cursor, about, step = checkpoints.restore(again.init(1))
        assert about == {"note": "half"} and step == 100
        assert isinstance(checkpoints.restore_agent(life.agent)[0], ToyState)
    life, _, after, _ = run(again, 200, chunk=7, life=life, cursor=cursor)
    life, whole = life._replace(counters=None), whole._replace(counters=None)
    assert_same(life, whole)
    assert before + after == episodes


def test_too_little_replay_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="replay holds only 2"):
        Trainer(toy_agent(), counting_env(4), capacity=8)
    with pytest.raises(ValueError, match="only 1 are there before it"):
        Trainer(toy_agent(schedule=(Repeat(5, (Collect(4), Train("average"))),)), counting_env(4))
    with pytest.raises(ValueError, match="trains 'other'"):
        Trainer(toy_agent(schedule=(Train("other"),)), counting_env(4))


@pytest.mark.parametrize("host", [False, True])
def test_evaluation_plays_whole_first_episodes(host):
    agent, pure = toy_agent(), counting_env(4, length=5)
    state = Trainer(agent, pure, members=2, capacity=40).init(0).agent
    env = on_host(pure) if host else pure
    scores = evaluate(agent, env, state, member_keys(3, 2), episodes=8, mode="random")
    assert scores.total.shape == (2, 8) and scores.complete.all()
    assert (0 <= scores.total).all() and (scores.total <= 10).all() and scores.total.std() > 0
    if not host:
        assert sorted(scores.length[0].tolist()) == sorted([5, 4, 3, 2] * 2)
    greedy = evaluate(agent, env, state, member_keys(3, 2), episodes=4)
    assert (greedy.total == 0).all()  # the toy's greedy action is 0, and so is its reward
    with pytest.raises(ValueError, match="cannot be shared equally"):
        evaluate(agent, env, state, member_keys(3, 2), episodes=5)


def test_agent_train_step_in_a_notebook():
    agent, ring = toy_agent(), Trainer(toy_agent(), counting_env(4), capacity=40)
    life, _, _, _ = run(ring, 40)
    data = jax.tree.map(lambda x: x[0], jax.device_get(life.ring.data))
    batch = jax.jit(lambda ring: replay.sample(ring, jax.random.key(0), 3, 4))(life.ring._replace(data=data))
    state = jax.jit(agent.init)(jax.random.key(1), agent.hyper)
    once, metrics = jax.jit(agent.train_step)(state, batch, jax.random.key(2))
    same, _ = agent.train_step(state, {"average": batch}, jax.random.key(2))
    assert int(once.step) == 1 and "mean" in metrics
    np.testing.assert_allclose(once.params["mean"], same.params["mean"])
    with pytest.raises(ValueError, match="expected batches for"):
        agent.train_step(state, {"other": batch}, jax.random.key(2))
