"""The words of a schedule as functions of one member's `Life`, ready to be compiled.

A pure environment lives inside the compiled chunk (collect, sample, learn in one program); with a host environment or
recordings, the loop in `training.host` calls `turn` and `run_word` as programs of their own. Trip counts are traced,
so every chunk length is the same program and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm import replay, spaces
from jaxwm.replay import Sampler
from jaxwm.schedule import Segment, rows_of
from jaxwm.training.life import (
    ACT,
    ENV,
    LEARN,
    Counters,
    Finished,
    Life,
    Log,
    Score,
    Skipped,
    add_exactly,
    all_finite,
    axes,
    count_update,
    stream,
)
from jaxwm.training.spread import MEMBER, Spread
from jaxwm.types import Agent, Array, Collect, Data, Key, PyTree, Record, Repeat, Source, Step, Train, TrainStep, Word


@dataclass(frozen=True, eq=False)
class Program:
    """One agent with one source of records, and how they are spread; `capacity` is in records of the source, and the
    components that `freeze` names keep their weights."""

    agent: Agent
    source: Source
    spread: Spread
    capacity: int
    freeze: tuple[str, ...] = ()
    samplers: dict[str, Sampler] = field(init=False)
    _learn: dict[str, Callable] = field(init=False)
    _metrics: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self):
        steps, shards = self.agent.train_steps, self.spread.shards
        draw = {n: replay.sampler(s.sampler, s.batch_size // shards, s.length) for n, s in steps.items()}
        object.__setattr__(self, "samplers", draw)
        # traced once, although both the metrics' shapes and the loop ask for it
        learn = {name: jax.jit(self._together(step), inline=True) for name, step in steps.items()}
        object.__setattr__(self, "_learn", learn)

    def _together(self, step: TrainStep) -> Callable:
        """The update, by the devices of a member together: each on its part, or all on the whole batch."""
        share = self.spread.share
        if step.shared and share.axis:
            return partial(step.update, share=share)
        if not share.split:
            return step.update

        def repeated(state: Any, batch: Any, key: Key) -> tuple[Any, Any, dict[str, Array]]:
            state, out, metrics = step.update(state, share.gather(batch), key)
            return state, share.slice(out, 1) if step.writes else share.slice(out), metrics

        return repeated

    # --- The start ------------------------------------------------------------------------------------------------

    @property
    def recorded(self) -> bool:
        """Whether records come from recordings: nothing acts."""
        return isinstance(self.source, Data)

    @property
    def axes(self) -> Any:
        """Where the member axis of a life is."""
        written = {step.writes.ring: replay.AXES for step in self.agent.train_steps.values() if step.writes}
        return axes({"real": replay.SHARED if self.recorded else replay.AXES, **written})

    def start(self, state: Any, env: PyTree, step: Any, key: Key) -> Life:
        """A life before its first word, of one member, for the whole of its environments."""
        zero, num = jnp.zeros((), jnp.int32), self.source.num_envs
        cursors = {name: sampler.start for name, sampler in self.samplers.items()}
        shared: Any = dict(key=key, skipped=Skipped(zero, zero), counters=Counters(zero, zero, zero), cursors=cursors)
        if self.recorded:
            ring = replay.init(self._recorded_example(state), self.capacity, num)
            life = Life(state, (), (), (), {"real": ring}, score=(), **shared)
        else:
            carry = self.agent.reset(state, num)
            example = jax.eval_shape(lambda: self._record(state, carry, step, key, "random")[1])
            score = Score(jnp.zeros(num), jnp.zeros(num), jnp.zeros(num, jnp.int32))
            ring = replay.init(example, self.capacity, num)
            life = Life(state, carry, env, step, {"real": ring}, score=score, **shared)
        for name, train_step in self.agent.train_steps.items():
            if train_step.writes:
                life = life._replace(rings=life.rings | self._written(name, life))
        return life

    def blank_step(self) -> Step:
        """The shapes of a step `[N, ...]`."""
        spec, num, shape = self.source.spec, self.source.num_envs, jax.ShapeDtypeStruct
        obs = jax.tree.map(lambda s: shape((num, *s.shape), s.dtype), spec.obs)
        flag = shape((num,), jnp.bool_)
        return Step(obs, shape((num,), jnp.float32), flag, flag, flag)  # type: ignore[arg-type]

    def _recorded_example(self, state: Any) -> Record:
        """The shapes of a record `[N, ...]` of recordings, with the extras that the agent would have added."""
        step, agent, space, num = self.blank_step(), self.agent, self.source.spec.action, self.source.num_envs
        action, extras = None if space is None else spaces.blank(space, num), {}
        if agent.act is not None:
            act = lambda x: agent.act(state, agent.reset(state, num), x, jax.random.key(0), "random")[2]  # noqa: E731
            extras = jax.eval_shape(act, step)
        return Record(kept(step.obs), *step[1:], action, extras)  # type: ignore[arg-type]

    def _written(self, name: str, life: Life) -> dict[str, Any]:
        """The empty ring that a train step writes, laid out as what it returns."""
        step = self.agent.train_steps[name]
        assert step.writes
        batch = jax.eval_shape(lambda x: self.whole_batch(name, x), life)
        records = jax.eval_shape(step.update, life.agent, batch, life.key)[1]
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), records)
        return {step.writes.ring: replay.init(row, step.writes.capacity, records.reward.shape[1])}

    def whole_batch(self, name: str, life: Life) -> Any:
        """A batch of all devices of a member together."""
        step = self.agent.train_steps[name]
        sampler = replay.sampler(step.sampler, step.batch_size, step.length)
        return sampler.draw(life.agent, _read(life, step), life.cursors[name], life.key)[0]

    # --- One row, one update --------------------------------------------------------------------------------------

    def _record(self, state: Any, carry: PyTree, step: Step, key: Key, mode: str) -> tuple[PyTree, Record]:
        carry, action, extras = self.agent.act(state, carry, step, key, mode)
        return carry, Record(kept(step.obs), *step[1:], action, extras)

    def turn(self, life: Life, mode: str) -> tuple[Life, Array, Finished]:
        """Score the newest step, choose the action, write the record."""
        step, counters, share = life.step, life.counters, self.spread.share
        total, rest = (jnp.where(step.is_first, 0.0, x) for x in (life.score.total, life.score.rest))
        total, rest = add_exactly(total, rest, step.reward)
        length = jnp.where(step.is_first, 0, life.score.length + 1)
        key = stream(life.key, ACT, counters.rows)
        carry, record = self._record(life.agent, life.carry, step, key, mode)
        counters = counters._replace(steps=counters.steps + self.source.num_envs, rows=counters.rows + 1)
        ring = replay.add(life.ring, share.slice(record) if share.split else record)
        life = life._replace(
            carry=carry, rings=life.rings | {"real": ring}, score=Score(total, rest, length), counters=counters
        )
        return life, record.action, Finished(step.is_last, total, rest, length)

    def update(self, life: Life, name: str) -> tuple[Life, dict[str, Array]]:
        """Sample, learn, write; an update with a metric that is not finite leaves agent and replay as they are."""
        step, share = self.agent.train_steps[name], self.spread.share
        k_sample, k_update = jax.random.split(stream(life.key, LEARN, life.counters.updates))
        draw = self.samplers[name].draw
        batch, cursor = draw(life.agent, _read(life, step), life.cursors[name], share.key(k_sample))
        state, out, metrics = self._learn[name](life.agent, batch, k_update)
        good = all_finite(metrics)
        if self.freeze:
            state = state._replace(params={**state.params, **{n: life.agent.params[n] for n in self.freeze}})
        state = jax.tree.map(partial(jnp.where, good), state, life.agent)
        if step.writes:
            old = life.rings[step.writes.ring]
            new = replay.extend(old, jax.tree.map(partial(jnp.where, good), out, _newest(old, out)))
            rings = life.rings | {step.writes.ring: new}
        elif out:
            rings = life.rings | {_one(step): replay.update(life.rings[_one(step)], batch, out, good)}
        else:
            rings = life.rings
        skipped = Skipped(life.skipped.total + ~good, jnp.where(good, 0, life.skipped.run + 1))
        counters = life.counters._replace(updates=life.counters.updates + 1)
        cursors = life.cursors | {name: cursor}
        return life._replace(agent=state, rings=rings, cursors=cursors, skipped=skipped, counters=counters), metrics

    # --- Words ----------------------------------------------------------------------------------------------------

    def empty_log(self, life: Life, rows: int) -> Log:
        """A log with room for the episodes that end in so many rows."""
        names = {name: list(self._metric_shapes(life, name)) for name in self.agent.train_steps}
        zeros = lambda dtype: {name: {k: jnp.zeros((), dtype) for k in keys} for name, keys in names.items()}  # noqa: E731
        counts = {name: jnp.zeros((), jnp.int32) for name in names}
        shape = (max(rows, 1), self.source.num_envs)
        finished = Finished(jnp.zeros(shape, bool), jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
        return Log(zeros(jnp.float32), zeros(jnp.int32), counts, finished, jnp.zeros((), jnp.int32))

    def _metric_shapes(self, life: Life, name: str) -> Any:
        """Structure of a step's metrics; traced once and kept, as tracing again would double the compile time."""
        if name not in self._metrics:
            self._metrics[name] = jax.eval_shape(lambda x: self.update(x, name)[1], life)
        return self._metrics[name]

    def chunk(self, segment: Segment, most: int, life: Life, iterations: Array) -> tuple[Life, Log]:
        """So many iterations of a segment, at most `most`."""
        log = self.empty_log(life, segment.rows * most)
        step = lambda _, carry: self._run_body(segment.body, *carry)  # noqa: E731
        return jax.lax.fori_loop(0, iterations, step, (life, log))

    def run_word(self, word: Word, life: Life, log: Log) -> tuple[Life, Log]:
        """One word of a schedule; `Load` belongs to the host."""
        if isinstance(word, Repeat):
            body = partial(self._run_body, word.body)
            return jax.lax.fori_loop(0, word.times, lambda _, c: body(*c), (life, log))
        if isinstance(word, Collect):
            if word.fresh:
                life = self._refresh(life)
            rows = rows_of(word, self.source.num_envs)
            return jax.lax.fori_loop(0, rows, lambda _, c: self._row(c[0], c[1], word.mode), (life, log))
        assert isinstance(word, Train)
        return self._run_until(word, life, log) if word.until else self._run_train(word, life, log)

    def _run_body(self, body: tuple[Word, ...], life: Life, log: Log) -> tuple[Life, Log]:
        for word in body:
            life, log = self.run_word(word, life, log)
        return life, log

    def _row(self, life: Life, log: Log, mode: str) -> tuple[Life, Log]:
        life, action, finished = self.turn(life, mode)
        env, step = self.source.step(life.env, action)  # type: ignore[union-attr]
        put = lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, log.rows, 0)  # noqa: E731
        log = log._replace(finished=jax.tree.map(put, log.finished, finished), rows=log.rows + 1)
        return life._replace(env=env, step=step), log

    def _refresh(self, life: Life) -> Life:
        """New episodes everywhere, with a new policy memory; what was going on is cut."""
        env, step = self.source.reset(stream(life.key, ENV, life.counters.rows + 1))  # type: ignore[union-attr]
        carry, rings = self.agent.reset(life.agent, self.source.num_envs), {"real": replay.cut(life.ring)}
        return life._replace(env=env, step=step, carry=carry, rings=life.rings | rings)

    def _updates(self, word: Train, life: Life) -> Array | int:
        return word.updates(life.counters.steps) if callable(word.updates) else word.updates

    def _run_train(self, word: Train, life: Life, log: Log) -> tuple[Life, Log]:
        def one(_, carry):
            life, log = carry
            life, metrics = self.update(life, word.name)
            return life, count_update(log, word.name, metrics)

        return jax.lax.fori_loop(0, self._updates(word, life), one, (life, log))

    def _run_until(self, word: Train, life: Life, log: Log) -> tuple[Life, Log]:
        """Members stop where `until` says; the loop ends when all have, the counters advance by the cap.

        Only the agent's state is carried: a loop whose end differs between members selects every leaf at every trip.
        """
        cap, first = self._updates(word, life), life.counters.updates

        def trip(carry):
            i, state, skipped, log, done, _ = carry
            counters = life.counters._replace(updates=first + i)
            new, metrics = self.update(life._replace(agent=state, skipped=skipped, counters=counters), word.name)
            pick = lambda old, new: jnp.where(done, old, new)  # noqa: E731
            updated = new.agent, new.skipped, count_update(log, word.name, metrics)
            state, skipped, log = jax.tree.map(pick, (state, skipped, log), updated)
            done = done | word.until(metrics)  # type: ignore[misc]
            return i + 1, state, skipped, log, done, jax.lax.pmin(done.astype(jnp.int32), MEMBER)

        go = lambda carry: (carry[0] < cap) & (carry[-1] == 0)  # noqa: E731
        zero = jnp.zeros((), jnp.int32)
        part = log._replace(finished=None, rows=None)  # type: ignore[arg-type]
        start = (zero, life.agent, life.skipped, part, zero > 0, zero)
        _, state, skipped, part, _, _ = jax.lax.while_loop(go, trip, start)
        counters = life.counters._replace(updates=first + cap)
        life = life._replace(agent=state, skipped=skipped, counters=counters)
        return life, part._replace(finished=log.finished, rows=log.rows)


def kept(obs: PyTree) -> PyTree:
    """What a record keeps of an observation: everything but the simulator's state."""
    return {k: v for k, v in obs.items() if k != "sim"} if isinstance(obs, dict) else obs


def _one(step: TrainStep) -> str:
    """The ring that feedback goes back to."""
    if not isinstance(step.reads, str):
        raise ValueError(f"a train step that reads several rings ({', '.join(step.reads)}) cannot return feedback")
    return step.reads


def _read(life: Life, step: TrainStep) -> Any:
    """What the sampler of a step draws from: a ring, or several by name."""
    return life.rings[step.reads] if isinstance(step.reads, str) else {name: life.rings[name] for name in step.reads}


def _newest(ring: replay.Ring, like: Record) -> Record:
    """As many of the newest rows of a ring as `like` has."""
    rows = (ring.rows - like.reward.shape[0] + jnp.arange(like.reward.shape[0])) % replay.capacity(ring)
    return jax.tree.map(lambda x: x[rows], ring.data)
