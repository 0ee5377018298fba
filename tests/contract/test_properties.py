"""What holds for any input: rings, samplers, schedules, returns, targets, spaces, distributions, JSON, against plain
Python.

Shapes come from short lists, because every new one is compiled; values and orders are free.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import counting_env, toy_agent

from jaxwm import Cursor, Trainer, replay, schedule, spaces
from jaxwm import distributions as dist
from jaxwm.agents.muzero import targets
from jaxwm.control.actor_critic import lambda_return
from jaxwm.run import json_files
from jaxwm.types import FOREVER, Batch, Box, Collect, Discrete, Index, Load, MultiDiscrete, Record, Repeat, Train

ENVS = 2
few = partial(settings, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)
finite = st.floats(-1e4, 1e4, width=32)

# --- The ring -----------------------------------------------------------------------------------------------------


def row(number: int) -> Record:
    """The row that is written as number `number`: every entry says which one it is."""
    value = np.float32(10 * number) + np.arange(ENVS, dtype=np.float32)
    flag = np.zeros(ENVS, bool)
    return Record(value[:, None], value, flag, flag, flag, value.astype(np.int32), {"mark": np.zeros(ENVS, np.float32)})


add, cut = jax.jit(replay.add), jax.jit(replay.cut)
extend = jax.jit(replay.extend)
take = jax.jit(replay.take, static_argnums=2)
update = jax.jit(replay.update)
draw = jax.jit(replay.sample, static_argnums=(2, 3, 4))

words = st.one_of(
    st.tuples(st.just("add")),
    st.tuples(st.just("extend"), st.integers(1, 3)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("update"), seeds),
)


class Rows:
    """The ring as a list of all rows ever written, of which the last `capacity` are there."""

    def __init__(self, capacity: int):
        self.capacity, self.rows = capacity, []
        self.ring = replay.init(row(0), capacity * ENVS, ENVS)

    def held(self, length: int) -> list[int]:
        """Rows from which `length` rows follow."""
        return list(range(max(0, len(self.rows) - self.capacity), len(self.rows) - length + 1))

    def write(self) -> Record:
        new = row(len(self.rows))
        self.rows.append({"last": np.zeros(ENVS, bool), "mark": np.zeros(ENVS, np.float32)})
        return new

    def do(self, word: tuple[Any, ...]) -> None:
        if word[0] == "add":
            self.ring = add(self.ring, self.write())
        elif word[0] == "extend":
            self.ring = extend(self.ring, jax.tree.map(lambda *x: np.stack(x), *[self.write() for _ in range(word[1])]))
        elif word[0] == "cut" and self.rows:
            self.ring = cut(self.ring)
            self.rows[-1]["last"][:] = True
        elif word[0] == "update" and self.held(3):
            self.feed(np.random.default_rng(word[1]))

    def feed(self, rng: np.random.Generator) -> None:
        """Write back two marks for the last records of four sequences, which may overlap: the last one wins."""
        starts, lanes = rng.choice(self.held(3), 4), rng.integers(0, ENVS, 4)
        index = Index(jnp.asarray(starts, jnp.int32), jnp.asarray(lanes, jnp.int32))
        marks = rng.normal(size=(4, 2)).astype(np.float32)
        batch = Batch(take(self.ring, index, 3), index, jnp.ones(4))
        self.ring = update(self.ring, batch, {"mark": jnp.asarray(marks)})
        for b, (start, lane) in enumerate(zip(starts, lanes, strict=True)):
            for t in range(2):
                self.rows[start + 1 + t]["mark"][lane] = marks[b, t]

    def check(self) -> None:
        """Everything that the ring holds, read one record at a time."""
        assert int(self.ring.rows) == len(self.rows) and replay.capacity(self.ring) == self.capacity
        kept = self.held(1)
        assert int(replay.oldest(self.ring)) == (kept[0] if kept else 0)
        data = jax.device_get(self.ring.data)
        for number in kept:
            slot = number % self.capacity
            np.testing.assert_array_equal(data.reward[slot], row(number).reward)
            np.testing.assert_array_equal(data.is_last[slot], self.rows[number]["last"])
            np.testing.assert_array_equal(data.extras["mark"][slot], self.rows[number]["mark"])


@few(max_examples=30)
@given(st.sampled_from([3, 5]), st.lists(words, max_size=20))
def test_a_ring_is_the_end_of_a_list(capacity, said):
    rows = Rows(capacity)
    for word in said:
        rows.do(word)
    rows.check()


@few(max_examples=20)
@given(st.integers(2, 20), seeds)
def test_samplers_return_what_is_there(written, seed):
    """Any two consecutive rows of one environment; the newest ones for "latest"; priorities choose the same kind."""
    rows = Rows(5)
    for _ in range(written):
        rows.do(("add",))
    for how in ("uniform", "latest"):
        batch = draw(rows.ring, jax.random.key(seed), 6, 2, how)
        found = np.asarray(batch.record.reward)
        start = np.asarray(batch.index.row)
        np.testing.assert_array_equal(found[:, 0], 10 * start + np.asarray(batch.index.env))
        np.testing.assert_array_equal(found[:, 1], found[:, 0] + 10)
        assert set(start) <= set(rows.held(2)) and (batch.weight == 1).all()
        assert how == "uniform" or set(start) == {written - 2}


@few(max_examples=15)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), seeds)
def test_an_online_queue_gives_each_sequence_once(growth, seed):
    """However writing and drawing alternate, as long as nothing is overwritten."""
    rows, queue, given_out = Rows(60), replay.online(2, 3), []
    cursor, pull = queue.start, jax.jit(queue.draw)
    for turn, count in enumerate(growth):
        for _ in range(count):
            rows.do(("add",))
        if rows.held(3):
            before = int(cursor)
            batch, cursor = pull((), rows.ring, cursor, jax.random.fold_in(jax.random.key(seed), turn))
            index = np.stack([batch.index.row, batch.index.env], 1)[: int(cursor) - before]
            given_out += [tuple(pair) for pair in index.tolist()]
    complete = [(3 * block, env) for block in range(len(rows.rows) // 3) for env in range(ENVS)]
    assert given_out == complete[: len(given_out)]


# --- Schedules ----------------------------------------------------------------------------------------------------

collects = st.builds(Collect, st.integers(1, 9), st.sampled_from(["random", "explore"]))
trains = st.builds(Train, st.just("average"), st.integers(1, 3))
leaves = st.one_of(collects, trains, st.builds(Load, st.integers(1, 5)))
schedules = st.lists(
    st.one_of(leaves, st.builds(Repeat, st.integers(1, 4), st.lists(leaves, min_size=1, max_size=3).map(tuple))),
    min_size=1,
    max_size=4,
).map(tuple)


def work(body: Any, num_envs: int) -> dict[str, int]:
    """Rows collected, rows loaded, and updates of a schedule, by doing it word by word."""
    total = dict(rows=0, loaded=0, updates=0)
    for word in body:
        if isinstance(word, Repeat):
            inner = work(word.body, num_envs)
            total = {name: total[name] + word.times * inner[name] for name in total}
        elif isinstance(word, Collect):
            total["rows"] += math.ceil(word.steps / num_envs)
        elif isinstance(word, Load):
            total["loaded"] += word.rows
        else:
            total["updates"] += word.updates
    return total


@few(max_examples=60)
@given(schedules, st.integers(1, 4))
def test_cutting_a_schedule_conserves_its_work(words, num_envs):
    """Segments repeat short bodies; in all they collect, load and train as much as the schedule says."""
    cut_up = schedule.segments(words, num_envs)
    whole = work(words, num_envs)
    assert work([Repeat(s.times, s.body) for s in cut_up], num_envs) == whole
    assert sum(s.times * s.rows for s in cut_up) == whole["rows"] + whole["loaded"]
    assert sum(schedule.rows_of(word, num_envs) for word in words) == whole["rows"] + whole["loaded"]


acting = st.lists(st.one_of(collects, trains), min_size=1, max_size=3).map(tuple)


@few(max_examples=40)
@given(
    st.lists(st.one_of(collects, trains, st.builds(Repeat, st.integers(1, 4), acting)), min_size=1, max_size=4).map(
        tuple
    ),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_a_schedule_without_an_environment_trains_as_much(words, held, rows):
    """All rows are loaded first, or as many as are held; nothing is collected; every update stays."""
    offline = schedule.offline(words, held, rows)
    found = work(offline, 1)
    assert found["rows"] == 0 and found["updates"] == work(words, 1)["updates"]
    assert offline[0] == Load(min(rows, held))
    assert rows > held or found["loaded"] == rows


@pytest.fixture(scope="module")
def toy():
    """A trainer of a toy agent with a nested schedule; its parts end within 30 iterations."""
    words = (Collect(16, "random"), Repeat(9, (Collect(4), Train("average", 2))), Train("average", 5))
    words += (Repeat(FOREVER, (Collect(8), Repeat(2, (Train("average"), Collect(4))))),)
    trainer = Trainer(toy_agent(schedule=words), counting_env(4), members=2, capacity=40)
    start = trainer.init(0)
    return trainer, start, lived(trainer, start, [7])


def lived(trainer: Trainer, start: Any, chunks: list[int]) -> Any:
    life, cursor, done, turn = jax.tree.map(jnp.copy, start), Cursor(), 0, 0  # chunks consume their life
    while done < 30:
        chunk = min(chunks[turn % len(chunks)], 30 - done)
        before = cursor
        life, cursor, _ = trainer.run(life, cursor, chunk)
        moved = trainer.segments[before.segment].times if cursor.segment > before.segment else cursor.iteration
        done, turn = done + moved - before.iteration, turn + 1
    return life, cursor


@few(max_examples=8)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_any_chunks_give_the_same_bits(toy, chunks):
    trainer, start, (expected, end) = toy
    life, cursor = lived(trainer, start, chunks)
    assert cursor == end
    assert_same(life, expected)


# --- Returns and targets ------------------------------------------------------------------------------------------


returns_of = jax.jit(lambda_return)


@few(max_examples=25)
@given(seeds, st.floats(0, 1))
def test_lambda_returns_are_their_definition(seed, lam):
    """R_t = r' + d' ((1 - l') v' + l' R') with ' for t + 1; the last state is worth its own value."""
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, 7, 3)).astype(np.float32)
    discount, last = rng.uniform(0, 1, (7, 3)).astype(np.float32), rng.random((7, 3)) < 0.3
    discount[rng.random((7, 3)) < 0.2] = 0
    found = returns_of(reward, value, discount, last, np.float32(lam))
    expected = np.zeros((6, 3))
    for n in range(3):
        following = float(value[-1, n])
        for t in range(5, -1, -1):
            trace = 0.0 if last[t + 1, n] else lam
            following = reward[t + 1, n] + discount[t + 1, n] * ((1 - trace) * value[t + 1, n] + trace * following)
            expected[t, n] = following
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


UNROLL, TD, GAMMA = 3, 2, 0.9
aimed = jax.jit(lambda record, value, used: targets(record, value, UNROLL, TD, GAMMA, used))


@few(max_examples=40)
@given(seeds, st.integers(0, 3))
def test_targets_of_muzero_are_their_definition(seed, used):
    """z_t = r_{t+1} + ... + g^{n-1} r_{t+n} + g^n v_{t+n}, cut where the episode ends."""
    rng = np.random.default_rng(seed)
    batch, length = 4, UNROLL + TD + 1
    terminal = rng.random((batch, length)) < 0.15
    last = terminal | (rng.random((batch, length)) < 0.15)
    first = np.concatenate([np.zeros((batch, 1), bool), last[:, :-1]], 1)
    reward = np.where(first, 0, rng.normal(size=(batch, length))).astype(np.float32)
    value = rng.normal(size=(batch, length)).astype(np.float32)
    record = Record(value, reward, first, last, terminal, value, {})
    limit = None if used == 0 else jnp.full(batch, used)
    found = jax.device_get(aimed(record, value, limit))
    steps = TD if used == 0 else min(max(used, 1), TD)
    for b in range(batch):
        for t in range(UNROLL + 1):
            alive = not last[b, :t].any()  # still in the episode of position 0
            assert bool(found.real[b, t]) == alive
            assert bool(found.policy_known[b, t]) == (alive and not last[b, t])
            dead = terminal[b, : t + 1].any()
            assert bool(found.value_known[b, t]) == (dead or (alive and not last[b, t]))
            assert bool(found.reward_known[b, t]) == (alive or dead)
            expected = n_step(reward[b], value[b], last[b], terminal[b], t, steps) if alive else 0.0
            np.testing.assert_allclose(found.value[b, t], expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.reward[b, t], reward[b, t] if alive else 0.0)


def n_step(reward, value, last, terminal, t: int, steps: int) -> float:
    """The return from position t in its own episode, with the value of where it stops unless that is a true end."""
    total, n = 0.0, 0
    while n < steps and not last[t + n]:
        total += GAMMA**n * float(reward[t + n + 1])
        n += 1
    return total + (GAMMA**n * float(value[t + n]) if n and not terminal[t + n] else 0.0)


# --- Spaces -------------------------------------------------------------------------------------------------------

SPACES = [Discrete(1), Discrete(5), MultiDiscrete((2, 3)), MultiDiscrete((4,)), Box(1), Box(3)]


@pytest.mark.parametrize("space", SPACES, ids=str)
@few(max_examples=5)
@given(seed=seeds)
def test_actions_are_encoded_and_read_back(space, seed):
    action = np.asarray(spaces.random_action(space, jax.random.key(seed), 8))
    coded = np.asarray(spaces.encode(space, jnp.asarray(action)))
    assert coded.shape == (8, spaces.action_size(space)) and coded.dtype == np.float32
    if isinstance(space, Box):
        np.testing.assert_array_equal(coded, action)
        return
    sizes = spaces.choices(space)
    parts = np.split(coded, np.cumsum(sizes)[:-1], -1)
    assert all((part.sum(-1) == 1).all() for part in parts)
    read = np.stack([part.argmax(-1) for part in parts], -1)
    np.testing.assert_array_equal(read[:, 0] if isinstance(space, Discrete) else read, action)
    assert (read < np.asarray(sizes)).all()


# --- Distributions ------------------------------------------------------------------------------------------------


@few(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_symlog_and_symexp_are_inverse(numbers):
    x = np.array(numbers, np.float32)
    np.testing.assert_allclose(dist.symexp(dist.symlog(x)), x, rtol=2e-5, atol=1e-6)
    small = np.clip(x / 1e5, -20, 20)
    np.testing.assert_allclose(dist.symlog(dist.symexp(small)), small, rtol=1e-5, atol=1e-6)


BINS = {count: dist.symexp_bins(count) for count in (41, 255)}
twohot = jax.jit(dist.twohot)
mean_of = jax.jit(lambda logits, bins: dist.TwoHot(logits, bins).mean())


@pytest.mark.parametrize("count", BINS)
@few(max_examples=20)
@given(numbers=st.lists(finite, min_size=4, max_size=4))
def test_the_mean_of_a_twohot_is_its_value(count, numbers):
    x, bins = np.array(numbers, np.float32), BINS[count]
    hot = np.asarray(twohot(x, bins))
    np.testing.assert_allclose(hot.sum(-1), 1, rtol=1e-5)
    assert ((hot > 0).sum(-1) <= 2).all() and (hot >= 0).all()
    np.testing.assert_allclose((hot.astype(np.float64) * np.asarray(bins, np.float64)).sum(-1), x, rtol=1e-4, atol=1e-4)
    mean = mean_of(np.log(np.maximum(hot, 1e-30)), bins)
    np.testing.assert_allclose(mean, x, rtol=1e-3, atol=1e-3)


choose = jax.jit(lambda logits, uniform: (dist.one_hot(logits).invert(uniform), dist.one_hot(logits).probs))


@few(max_examples=20)
@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), st.floats(0, 1, exclude_max=True, width=32))
def test_a_uniform_number_chooses_a_class_as_often_as_it_should(logits, uniform):
    index, probs = choose(np.array(logits, np.float32), np.float32(uniform))
    index, ends = int(index), np.cumsum(np.asarray(probs, np.float64))
    below = ends[index - 1] if index else 0.0
    assert below - 1e-5 <= uniform and (index == 3 or uniform <= ends[index] + 1e-5)


# --- JSON ---------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


@few(max_examples=40)
@given(st.dictionaries(st.text(), plain, max_size=4))
def test_json_there_and_back(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "data.json"
    json_files.write_json(file, json_files.to_plain(data))
    assert json.loads(file.read_text()) == data


@few(max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_arrays_survive_json(numbers):
    """float32 numbers are written short, and read as the same float32."""
    array = np.array(numbers, np.float32)
    back = np.array(json.loads(json.dumps(json_files.to_plain(jnp.asarray(array)))), np.float32)
    np.testing.assert_array_equal(back, np.asarray(jnp.asarray(array)))
