"""The words of a schedule as functions of one member's `Life`, ready to be compiled.

A pure environment lives inside the compiled chunk (collect, sample, learn in one program); with a host environment or
recordings, the loop in `training.host` calls `turn` and `run_word` as programs of their own. Trip counts are traced,
so every chunk length is the same program and gives the same bits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm import replay, spaces
from jaxwm.schedule import Segment, rows_of
from jaxwm.training.life import ACT, ENV, LEARN, Counters, Finished, Life, Log, Score, Skipped, add_exactly, stream
from jaxwm.training.spread import MEMBER, Spread
from jaxwm.types import (
    Agent,
    Array,
    Collect,
    Data,
    Env,
    Key,
    PyTree,
    Record,
    Repeat,
    Source,
    Step,
    Train,
    TrainStep,
    Word,
)  # fmt: skip


class Program:
    """One agent with one source of records, and how they are spread; `capacity` is in records of the source, and the
    components that `freeze` names keep their weights."""

    def __init__(self, agent: Agent, source: Source, spread: Spread, capacity: int, freeze: tuple[str, ...] = ()):
        self.agent, self.source, self.spread, self.capacity, self.freeze = agent, source, spread, capacity, freeze
        self.recorded = isinstance(source, Data)  # records come from recordings: nothing acts
        steps, shards = agent.train_steps, spread.shards
        self.samplers = {n: replay.sampler(s.sampler, s.batch_size // shards, s.length) for n, s in steps.items()}
        # traced once, although both the metrics' shapes and the loop ask for it
        self._learn = {name: jax.jit(self._together(step), inline=True) for name, step in steps.items()}
        self._metrics: dict[str, list[str]] = {}
        self.programs: dict[Any, Any] = {}  # compiled ones, by whatever names them
        written = {step.writes.ring: replay.AXES for step in steps.values() if step.writes}
        rings = {"real": replay.SHARED if self.recorded else replay.AXES, **written}
        # where the member axis of a life is
        self.axes: Any = Life(0, 0, 0, 0, rings, None, 0, 0, 0, None)  # type: ignore[arg-type]

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

    def update_of_all(self, name: str) -> tuple[Callable, float]:
        """An update as all devices make it together, and one member's share of that work. The chunks use its trace."""
        devices = self.spread.copies if self.agent.train_steps[name].shared else 1
        return self.spread.population(self._learn[name], None, None), devices / self.spread.mesh.size

    def compiled(
        self, name: Any, fn: Callable, in_axes: Any, out_axes: Any, arguments: Callable[[], tuple], donate: Any = (),
        options: Any = None,
    ) -> Any:  # fmt: skip
        """`fn` of one member for the whole population, compiled once under a name, for such arguments.
        `options` are those of XLA."""
        if name not in self.programs:
            mapped = jax.jit(self.spread.population(fn, in_axes, out_axes), donate_argnums=donate)
            self.programs[name] = mapped.lower(*arguments()).compile(options)
        return self.programs[name]

    def start(self, state: Any, env: PyTree, step: Any, key: Key) -> Life:
        """A life before its first word, of one member, for the whole of its environments."""
        zero, num = jnp.zeros((), jnp.int32), self.source.num_envs
        cursors = {name: sampler.start for name, sampler in self.samplers.items()}
        if self.recorded:
            carry, score, example = (), (), self._recorded_example(state)
        else:
            carry = self.agent.reset(state, num)
            example = jax.eval_shape(lambda: self._record(state, carry, step, key, "random")[1])
            score = Score(jnp.zeros(num), jnp.zeros(num), jnp.zeros(num, jnp.int32))
        rings = {"real": replay.init(example, self.capacity, num)}
        counters = Counters(zero, zero, zero)
        life = Life(state, carry, env, step, rings, cursors, key, score, Skipped(zero, zero), counters)
        for name, train_step in self.agent.train_steps.items():
            if writes := train_step.writes:  # its ring is laid out as what it returns
                batch = jax.eval_shape(partial(self.whole_batch, name), life)
                records = jax.eval_shape(train_step.update, state, batch, key)[1]
                row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), records)
                ring = replay.init(row, writes.capacity, records.reward.shape[1])
                life = life._replace(rings=life.rings | {writes.ring: ring})
        return life

    def _recorded_example(self, state: Any) -> Record:
        """The shapes of a record `[N, ...]` of recordings, with the extras that the agent would have added."""
        spec, agent, num = self.source.spec, self.agent, self.source.num_envs
        step, space = spaces.blank_step(spec, num), spec.action
        action, extras = None if space is None else spaces.blank(space, num), {}
        if agent.act is not None:
            act = lambda x: agent.act(state, agent.reset(state, num), x, jax.random.key(0), "random")[2]  # noqa: E731
            extras = jax.eval_shape(act, step)
        return Record(kept(step.obs), *step[1:], action, extras)  # type: ignore[arg-type]

    def whole_batch(self, name: str, life: Life) -> Any:
        """A batch of all devices of a member together."""
        step = self.agent.train_steps[name]
        sampler = replay.sampler(step.sampler, step.batch_size, step.length)
        return sampler.draw(life.agent, _read(life, step), life.cursors[name], life.key)[0]

    def _record(self, state: Any, carry: PyTree, step: Step, key: Key, mode: str) -> tuple[PyTree, Record]:
        carry, action, extras = self.agent.act(state, carry, step, key, mode)
        return carry, Record(kept(step.obs), *step[1:], action, extras)

    def turn(self, life: Life, mode: str) -> tuple[Life, Array, Finished]:
        """Score the newest step, choose the action, write the record."""
        step, counters, share = life.step, life.counters, self.spread.share
        total, rest = (jnp.where(step.is_first, 0.0, x) for x in (life.score.total, life.score.rest))
        score = Score(*add_exactly(total, rest, step.reward), jnp.where(step.is_first, 0, life.score.length + 1))
        key = stream(life.key, ACT, counters.rows)
        carry, record = self._record(life.agent, life.carry, step, key, mode)
        counters = counters._replace(steps=counters.steps + self.source.num_envs, rows=counters.rows + 1)
        rings = life.rings | {"real": replay.add(life.ring, share.slice(record) if share.split else record)}
        life = life._replace(carry=carry, rings=rings, score=score, counters=counters)
        return life, record.action, Finished(step.is_last, *score, self.env_metrics(life.env))

    def env_metrics(self, env_state: PyTree) -> dict[str, Array]:
        """What a pure environment counts in the episodes so far, `[N]` each; nothing where there is none."""
        pure = isinstance(self.source, Env) and self.source.pure
        return self.source.metrics(env_state) if pure else {}  # type: ignore[union-attr]

    def update(self, life: Life, name: str) -> tuple[Life, dict[str, Array]]:
        """Sample, learn, write; an update with a metric that is not finite leaves agent and replay as they are."""
        step, share = self.agent.train_steps[name], self.spread.share
        k_sample, k_update = jax.random.split(stream(life.key, LEARN, life.counters.updates))
        draw = self.samplers[name].draw
        batch, cursor = draw(life.agent, _read(life, step), life.cursors[name], share.key(k_sample))
        state, out, metrics = self._learn[name](life.agent, batch, k_update)
        good = _all_finite(metrics)
        keep = partial(jax.tree.map, partial(jnp.where, good))
        if self.freeze:
            state = state._replace(params={**state.params, **{n: life.agent.params[n] for n in self.freeze}})
        state, rings = keep(state, life.agent), life.rings
        if step.writes:
            old = rings[step.writes.ring]
            rings = rings | {step.writes.ring: replay.extend(old, keep(out, _newest(old, out)))}
        elif out and isinstance(step.reads, str):
            rings = rings | {step.reads: replay.update(rings[step.reads], batch, out, good)}
        elif out:
            raise ValueError(f"a train step that reads several rings ({', '.join(step.reads)}) cannot return feedback")
        skipped = Skipped(life.skipped.total + ~good, jnp.where(good, 0, life.skipped.run + 1))
        counters = life.counters._replace(updates=life.counters.updates + 1)
        cursors = life.cursors | {name: cursor}
        return life._replace(agent=state, rings=rings, cursors=cursors, skipped=skipped, counters=counters), metrics

    def empty_log(self, life: Life, rows: int) -> Log:
        """A log with room for the episodes that end in so many rows."""
        if not self._metrics:  # traced once and kept, as tracing again would double the compile time
            metrics = lambda name: jax.eval_shape(partial(self.update, name=name), life)[1]  # noqa: E731
            self._metrics = {name: list(metrics(name)) for name in self.agent.train_steps}
        names = self._metrics
        zeros = lambda dtype: {name: {k: jnp.zeros((), dtype) for k in keys} for name, keys in names.items()}  # noqa: E731
        counts = {name: jnp.zeros((), jnp.int32) for name in names}
        shape = (max(rows, 1), self.source.num_envs)
        own = {name: jnp.zeros(shape) for name in jax.eval_shape(self.env_metrics, life.env)}
        zero = jnp.zeros(shape)
        finished = Finished(jnp.zeros(shape, bool), zero, zero, jnp.zeros(shape, jnp.int32), own)
        return Log(zeros(jnp.float32), zeros(jnp.int32), counts, finished, jnp.zeros((), jnp.int32))

    def chunk(self, segment: Segment, most: int, life: Life, iterations: Array) -> tuple[Life, Log]:
        """So many iterations of a segment, at most `most`."""
        return self._repeat(iterations, segment.body, life, self.empty_log(life, segment.rows * most))

    def _repeat(self, times: Array | int, body: tuple[Word, ...], life: Life, log: Log) -> tuple[Life, Log]:
        def once(_, carry):
            life, log = carry
            for word in body:
                life, log = self.run_word(word, life, log)
            return life, log

        return jax.lax.fori_loop(0, times, once, (life, log))

    def run_word(self, word: Word, life: Life, log: Log) -> tuple[Life, Log]:
        """One word of a schedule; `Load` belongs to the host."""
        if isinstance(word, Repeat):
            return self._repeat(word.times, word.body, life, log)
        if isinstance(word, Collect):
            if word.fresh:
                life = self._refresh(life)
            rows = rows_of(word, self.source.num_envs)
            return jax.lax.fori_loop(0, rows, lambda _, c: self._row(c[0], c[1], word.mode), (life, log))
        assert isinstance(word, Train)
        updates = word.updates(life.counters.steps) if callable(word.updates) else word.updates
        if word.until:
            return self._run_until(word, updates, life, log)
        return jax.lax.fori_loop(0, updates, lambda _, c: self._logged(word.name, *c)[:2], (life, log))

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

    def _logged(self, name: str, life: Life, log: Log) -> tuple[Life, Log, dict[str, Array]]:
        """An update, and the log with its metrics if all are finite, else with the names of those that are not."""
        life, metrics = self.update(life, name)
        good = _all_finite(metrics)
        sums = {k: v + jnp.where(good, metrics[k], 0.0) for k, v in log.sums[name].items()}
        faults = {k: v + ~jnp.isfinite(metrics[k]) for k, v in log.faults[name].items()}
        counts = log.counts | {name: log.counts[name] + good}
        log = log._replace(sums=log.sums | {name: sums}, faults=log.faults | {name: faults}, counts=counts)
        return life, log, metrics

    def _run_until(self, word: Train, cap: Array | int, life: Life, log: Log) -> tuple[Life, Log]:
        """Members stop where `until` says; the loop ends when all have, the counters advance by the cap. Only the
        agent's state is carried: a loop whose end differs between members selects every leaf at every trip."""
        first = life.counters.updates

        def trip(carry):
            i, state, skipped, log, done, _ = carry
            counters = life.counters._replace(updates=first + i)
            now = life._replace(agent=state, skipped=skipped, counters=counters)
            now, new_log, metrics = self._logged(word.name, now, log)
            pick = lambda old, new: jnp.where(done, old, new)  # noqa: E731
            state, skipped, log = jax.tree.map(pick, (state, skipped, log), (now.agent, now.skipped, new_log))
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


def _all_finite(metrics: dict[str, Array]) -> Array:
    """Whether every metric is a finite number, bool []; True where there are none."""
    return jnp.isfinite(jnp.stack(list(metrics.values()))).all() if metrics else jnp.ones((), bool)


def kept(obs: PyTree) -> PyTree:
    """What a record keeps of an observation: everything but the simulator's state."""
    return {k: v for k, v in obs.items() if k != "sim"} if isinstance(obs, dict) else obs


def _read(life: Life, step: TrainStep) -> Any:
    """What the sampler of a step draws from: a ring, or several by name."""
    return life.rings[step.reads] if isinstance(step.reads, str) else {name: life.rings[name] for name in step.reads}


def _newest(ring: replay.Ring, like: Record) -> Record:
    """As many of the newest rows of a ring as `like` has."""
    rows = (ring.rows - like.reward.shape[0] + jnp.arange(like.reward.shape[0])) % replay.capacity(ring)
    return jax.tree.map(lambda x: x[rows], ring.data)
