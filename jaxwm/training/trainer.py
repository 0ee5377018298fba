"""The trainer: turns a schedule into compiled chunks, for pure and for host environments.

Everything below is written for one member; `vmap` adds the member axis once, here, and `shard_map` spreads it over the
devices, which never talk to each other unless they share a member. A pure environment lives inside the
compiled chunk (collect, sample, learn in one program); a host environment is stepped by a Python loop around two jitted
functions. What is carried is one pytree, `Life`; with the cursor `(segment, iteration)` it is the whole state of a run.

Random keys are `fold_in(fold_in(member key, stream), counter)` with counters that are part of `Life`, and trip counts
are traced, so a run gives the same bits however it is cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxwm import replay
from jaxwm.errors import check_number
from jaxwm.learning.share import ALONE, Share
from jaxwm.replay import Ring
from jaxwm.schedule import Segment, rows_of, segments
from jaxwm.training import gauge, processes
from jaxwm.training.host import Pool, cut_rings
from jaxwm.training.life import (
    ACT,
    AXES,
    ENV,
    EVAL,
    INIT,
    LEARN,
    LOG_AXES,
    MEMBER,
    Counters,
    Cursor,
    Finished,
    Life,
    Log,
    Report,
    Score,
    Skipped,
    all_finite,
    count_update,
    member_keys,
    stream,
)
from jaxwm.types import Agent, Array, Collect, Env, Key, PyTree, Record, Repeat, Step, Train, TrainStep, Word

SHARE = "share"
"""Name of the axis of devices that hold the same members and share their updates."""


SHARED_WORK = 1e8
"""Parameters times records of a batch from which sharing an update pays: below, waiting for each other costs more."""


class Trainer:
    """Runs an agent in an environment, as a population of `members`.

    `capacity` is the replay size of a member in environment steps; `hyper` gives scalars `[M]` that differ between
    members; `max_iterations` bounds the iterations of one chunk. Members are spread over as many of the `devices`
    (default: all) as divide their number; CPU devices that are left over share the large updates of a member
    (see `jaxwm.learning.share`), and each of them holds all of the member's state.

    With `shards` above 1, every member is spread over so many devices: each holds the weights, and the replay of its
    part of the environments, of which it samples its part of every batch. Acting is repeated on each.

    Raises ValueError where the schedule reads sequences longer than the replay or than what was collected before, and
    where `shards` does not divide the devices, the environments or a batch.
    """

    def __init__(
        self,
        agent: Agent,
        env: Env,
        members: int = 1,
        capacity: int = 100_000,
        hyper: dict[str, Any] | None = None,
        max_iterations: int = 256,
        shards: int = 1,
        devices: Sequence[Any] | None = None,
    ):
        check_number("members", members, least=1, whole=True)
        check_number("capacity", capacity, least=1, whole=True)
        check_number("max_iterations", max_iterations, least=1, whole=True)
        check_number("shards", shards, least=1, whole=True)
        self.agent, self.env, self.members = agent, env, members
        self.capacity, self.max_iterations = capacity, max_iterations
        self.segments = segments(agent.schedule, env.num_envs)
        self.hyper = self._hyper(hyper or {})
        self.shards = shards
        self.samplers = {
            n: replay.sampler(s.sampler, s.batch_size // shards, s.length) for n, s in agent.train_steps.items()
        }
        self._check()
        devices = list(devices or jax.devices())
        self._mesh = self._spread(devices)
        self.busy, self.idle = self._mesh.size, len(devices) - self._mesh.size
        self.shares = 1 if shards > 1 else self._mesh.shape[SHARE]
        self._share = Share(SHARE, shards > 1) if self._mesh.shape[SHARE] > 1 else ALONE
        # traced once, although both the metrics' shapes and the loop ask for it
        self._learn = {name: jax.jit(self._together(step), inline=True) for name, step in agent.train_steps.items()}
        self._metrics: dict[str, Any] = {}
        self._programs: dict[Any, Any] = {}
        self._pool: Pool | None = None

    def _spread(self, devices: list[Any]) -> Mesh:
        """Devices as a grid: a row for members, a column for those that hold the same ones.

        As many devices of every process take part as divide the members evenly.
        """
        if self.shards > 1:
            self._check_shards(len(devices))
        groups = [[d for d in devices if d.process_index == i] for i in sorted({d.process_index for d in devices})]
        fits = lambda n: n % self.shards == 0 and self.members % (n // self.shards) == 0  # noqa: E731
        counts = [n for n in range(1, min(map(len, groups)) + 1) if fits(n * len(groups))]
        if not counts:
            raise ValueError(
                f"{self.members} members with {self.shards} shards cannot be spread evenly over {len(groups)} "
                f"processes: make --members a multiple of {len(groups)}"
            )
        shares = self.shards
        if shares == 1 and devices[0].platform == "cpu" and len(groups) == 1:
            shares = self._shares(len(devices) // counts[-1])
        count = counts[-1] * (shares if self.shards == 1 else 1)
        grid = np.array([device for group in groups for device in group[:count]]).reshape(-1, shares)
        if not self.env.pure and any(len({device.process_index for device in row}) > 1 for row in grid):
            raise ValueError(
                f"{self.env.spec.name} runs beside its members, so the shards of a member must belong to one process: "
                "take fewer --shards, or one process for each member"
            )
        return Mesh(grid, ("device", SHARE), axis_types=(AxisType.Auto,) * 2)

    def _check_shards(self, devices: int) -> None:
        """ValueError where members cannot be spread over `shards` devices each."""
        counts = {"devices": devices, "environments": self.env.num_envs}
        for name, step in self.agent.train_steps.items():
            counts[f"sequences in a batch of {name!r}"] = step.batch_size
            if not step.shared or callable(step.sampler):
                raise ValueError(f"train step {name!r} cannot be spread over devices: leave --shards at 1")
        for what, count in counts.items():
            if count % self.shards:
                raise ValueError(
                    f"{self.shards} shards do not divide {count} {what}: take a number that does, or change "
                    "--envs or --batch-size (in a sweep, --gpus)"
                )

    def _shares(self, most: int) -> int:
        """How many devices, at most so many, work out one update: more than one where that is a lot of work."""
        steps = [step for step in self.agent.train_steps.values() if step.shared]
        if most == 1 or not steps:
            return 1
        parameters = jax.eval_shape(lambda: self.agent.init(jax.random.key(0), self.agent.hyper)).params
        weights = sum(x.size for x in jax.tree.leaves(parameters))
        if weights * max(step.batch_size * step.length for step in steps) < SHARED_WORK:
            return 1
        return max(n for n in range(1, most + 1) if all(step.batch_size % n == 0 for step in steps))

    def _together(self, step: TrainStep) -> Callable:
        """The update, worked out by the devices of a member together where it can be."""
        return partial(step.update, share=self._share) if step.shared and self._share.axis else step.update

    def _hyper(self, given: dict[str, Any]) -> dict[str, Array]:
        """Every hyper-parameter as `[M]`."""
        unknown = given.keys() - self.agent.hyper.keys()
        if unknown:
            raise ValueError(f"{sorted(unknown)} cannot differ between members; these can: {sorted(self.agent.hyper)}")
        for name, value in given.items():
            if np.shape(value) not in ((), (self.members,)):
                raise ValueError(f"{name} must be one number or {self.members}, one a member, not {np.shape(value)}")
        values = self.agent.hyper | given
        return {name: jnp.broadcast_to(jnp.asarray(v, jnp.float32), (self.members,)) for name, v in values.items()}

    def _check(self, body: tuple[Word, ...] | None = None, have: int = 0) -> int:
        """Raise ValueError where a `Train` word finds too little replay; returns the rows collected by then."""
        for word in self.agent.schedule if body is None else body:
            if isinstance(word, Repeat):
                have = self._check(word.body, have) + (word.times - 1) * sum(map(self._rows, word.body))
            elif isinstance(word, Collect):
                have += self._rows(word)
            else:
                self._check_train(word, have)
        return have

    def _check_train(self, word: Train, have: int) -> None:
        if word.name not in self.agent.train_steps:
            raise ValueError(f"the schedule trains {word.name!r}; there are {list(self.agent.train_steps)}")
        need, room = self.agent.train_steps[word.name].length, self.capacity // self.env.num_envs
        if min(have, room) < need:
            what = "replay holds" if room < need else "schedule collects before"
            raise ValueError(
                f"train step {word.name!r} reads sequences of {need} records per environment but the {what} only "
                f"{min(have, room)}: raise the capacity or the prefill, or shorten the sequences"
            )

    def _rows(self, word: Word) -> int:
        return rows_of(word, self.env.num_envs)

    # --- Starting -------------------------------------------------------------------------------------------------

    def init(self, seed: int = 0) -> Life:
        """A fresh run. Every leaf is owned by the result alone, because chunks donate it."""
        keys = member_keys(seed, self.members)
        handle, step = self._reset_all(keys)
        state = self.init_agents(keys)
        start = jax.vmap(self._start, out_axes=AXES)
        arguments = state, handle, step, keys
        life = jax.jit(lambda *arguments: start(*arguments)._replace(ring=None))(*arguments)
        place = jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), self._specs(AXES), is_leaf=_is_spec)
        # the replay is made where it belongs: it may not fit on one device
        empty = jax.eval_shape(start, *arguments).ring
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)  # noqa: E731
        ring = jax.jit(zeros, out_shardings=place.ring)()
        return processes.place(life, place._replace(ring=None))._replace(ring=ring)

    def init_agents(self, keys: Key) -> Any:
        """Fresh agent states `[M, ...]` for member keys."""
        init = jax.jit(jax.vmap(self.agent.init))  # op by op it takes ten times as long
        return init(jax.vmap(partial(stream, which=INIT))(keys), self.hyper)

    def _start(self, state: Any, env: PyTree, step: Step, key: Key) -> Life:
        carry = self.agent.reset(state, self.env.num_envs)
        example = jax.eval_shape(lambda: self._record(state, carry, step, key, "random")[1])
        zero = jnp.zeros((), jnp.int32)
        score = Score(jnp.zeros(self.env.num_envs), jnp.zeros(self.env.num_envs, jnp.int32))
        ring = replay.init(example, self.capacity, self.env.num_envs)
        return Life(state, carry, env, step, ring, key, score, Skipped(zero, zero), Counters(zero, zero, zero))

    def _reset_all(self, keys: Key) -> tuple[PyTree, Step]:
        keys = jax.vmap(partial(stream, which=ENV))(keys)
        if self.env.pure:
            return jax.jit(jax.vmap(self.env.reset))(keys)
        self.close()
        self._pool = Pool(self.env, self._mine(keys))
        return (), processes.fetch(self._ours(self._pool.step))

    def close(self) -> None:
        """Shut a host environment's pool down."""
        if self._pool:
            self._pool.close()
            self._pool = None

    @property
    def restarts(self) -> int:
        """How often a host environment died and was built anew."""
        return self._pool.restarts if self._pool else 0

    def restored(self, life: Life) -> Life:
        """A life that comes from a checkpoint, ready to go on: a host environment starts episodes with new seeds."""
        if self.env.pure:
            return life
        assert self._pool is not None, "call init first"
        self._pool.reset(self._mine(self._later_keys(life)))
        return life._replace(ring=cut_rings(life.ring))

    def _mine(self, keys: Key) -> Key:
        """Of keys `[M]`, those of the members whose host environment this process runs."""
        if not processes.several():
            return keys
        each = self.members // jax.process_count()
        first = jax.process_index() * each
        return jax.random.wrap_key_data(jnp.asarray(processes.fetch(jax.random.key_data(keys))[first : first + each]))

    def _ours(self, step: Step) -> Step:
        """The steps of all processes' host environments `[M, N, ...]`."""
        return processes.global_array(step, NamedSharding(self._mesh, PartitionSpec("device")))

    def _later_keys(self, life: Life) -> Key:
        """Environment keys `[M]` of this point of a run."""
        return jax.vmap(lambda key: stream(key, ENV, life.counters.rows + 1))(life.key)

    # --- One row, one update --------------------------------------------------------------------------------------

    def _record(self, state: Any, carry: PyTree, step: Step, key: Key, mode: str) -> tuple[PyTree, Record]:
        carry, action, extras = self.agent.act(state, carry, step, key, mode)
        obs = {k: v for k, v in step.obs.items() if k != "sim"} if isinstance(step.obs, dict) else step.obs
        return carry, Record(obs, *step[1:], action, extras)

    def _turn(self, life: Life, mode: str) -> tuple[Life, Array, Finished]:
        """Score the newest step, choose the action, write the record."""
        step, counters = life.step, life.counters
        total = jnp.where(step.is_first, 0.0, life.score.total) + step.reward
        length = jnp.where(step.is_first, 0, life.score.length + 1)
        key = stream(life.key, ACT, counters.rows)
        carry, record = self._record(life.agent, life.carry, step, key, mode)
        counters = counters._replace(steps=counters.steps + self.env.num_envs, rows=counters.rows + 1)
        mine = self._share.part(record) if self.shards > 1 else record
        life = life._replace(
            carry=carry, ring=replay.add(life.ring, mine), score=Score(total, length), counters=counters
        )
        return life, record.action, Finished(step.is_last, total, length)

    def _update(self, life: Life, name: str) -> tuple[Life, dict[str, Array]]:
        """Sample, learn, write back; an update with a metric that is not finite leaves agent and replay as they are."""
        k_sample, k_update = jax.random.split(stream(life.key, LEARN, life.counters.updates))
        batch = self.samplers[name](life.agent, life.ring, self._share.key(k_sample))
        state, feedback, metrics = self._learn[name](life.agent, batch, k_update)
        good = all_finite(metrics)
        state = jax.tree.map(partial(jnp.where, good), state, life.agent)
        ring = replay.update(life.ring, batch, feedback, good)
        skipped = Skipped(life.skipped.total + ~good, jnp.where(good, 0, life.skipped.run + 1))
        counters = life.counters._replace(updates=life.counters.updates + 1)
        return life._replace(agent=state, ring=ring, skipped=skipped, counters=counters), metrics

    # --- Words inside a compiled program --------------------------------------------------------------------------

    def _empty_log(self, life: Life, rows: int) -> Log:
        names = {name: list(self._metric_shapes(life, name)) for name in self.agent.train_steps}
        zeros = lambda dtype: {name: {k: jnp.zeros((), dtype) for k in keys} for name, keys in names.items()}  # noqa: E731
        counts = {name: jnp.zeros((), jnp.int32) for name in names}
        shape = (max(rows, 1), self.env.num_envs)
        finished = Finished(jnp.zeros(shape, bool), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
        return Log(zeros(jnp.float32), zeros(jnp.int32), counts, finished, jnp.zeros((), jnp.int32))

    def _metric_shapes(self, life: Life, name: str) -> Any:
        """Structure of a step's metrics; traced once and kept, as tracing again would double the compile time."""
        if name not in self._metrics:
            self._metrics[name] = jax.eval_shape(lambda x: self._update(x, name)[1], life)
        return self._metrics[name]

    def _run_word(self, word: Word, life: Life, log: Log) -> tuple[Life, Log]:
        if isinstance(word, Repeat):
            body = partial(self._run_body, word.body)
            return jax.lax.fori_loop(0, word.times, lambda _, c: body(*c), (life, log))
        if isinstance(word, Collect):
            if word.fresh:
                life = self._refresh(life)
            rows = self._rows(word)
            return jax.lax.fori_loop(0, rows, lambda _, c: self._row(c[0], c[1], word.mode), (life, log))
        return self._run_until(word, life, log) if word.until else self._run_train(word, life, log)

    def _run_body(self, body: tuple[Word, ...], life: Life, log: Log) -> tuple[Life, Log]:
        for word in body:
            life, log = self._run_word(word, life, log)
        return life, log

    def _row(self, life: Life, log: Log, mode: str) -> tuple[Life, Log]:
        life, action, finished = self._turn(life, mode)
        env, step = self.env.step(life.env, action)
        put = lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, log.rows, 0)  # noqa: E731
        log = log._replace(finished=jax.tree.map(put, log.finished, finished), rows=log.rows + 1)
        return life._replace(env=env, step=step), log

    def _refresh(self, life: Life) -> Life:
        """New episodes everywhere, with a new policy memory."""
        env, step = self.env.reset(stream(life.key, ENV, life.counters.rows + 1))
        return life._replace(env=env, step=step, carry=self.agent.reset(life.agent, self.env.num_envs))

    def _updates(self, word: Train, life: Life) -> Array | int:
        return word.updates(life.counters.steps) if callable(word.updates) else word.updates

    def _run_train(self, word: Train, life: Life, log: Log) -> tuple[Life, Log]:
        def one(_, carry):
            life, log = carry
            life, metrics = self._update(life, word.name)
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
            new, metrics = self._update(life._replace(agent=state, skipped=skipped, counters=counters), word.name)
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

    # --- Chunks ---------------------------------------------------------------------------------------------------

    def _chunk(self, segment: Segment, life: Life, iterations: Array) -> tuple[Life, Log]:
        log = self._empty_log(life, segment.rows * self.max_iterations)
        step = lambda _, carry: self._run_body(segment.body, *carry)  # noqa: E731
        return jax.lax.fori_loop(0, iterations, step, (life, log))

    def _population(self, fn: Callable, in_axes: Any, out_axes: Any) -> Callable:
        """`fn` of one member for all of them: mapped inside a device, and over devices."""
        size = self.members // self._mesh.shape["device"]
        mapped = jax.vmap(fn, in_axes, out_axes, axis_name=MEMBER, axis_size=size)
        if self._mesh.size == 1:
            return mapped
        specs = dict(in_specs=self._specs(in_axes), out_specs=self._specs(out_axes))
        return jax.shard_map(mapped, mesh=self._mesh, check_vma=False, **specs)

    def _specs(self, axes: Any) -> Any:
        """The partition that belongs to `vmap` axes: the member axis is split over devices, and so are the environments
        of the replay where there are shards; the rest is on every device."""
        data = PartitionSpec("device", None, SHARE) if self.shards > 1 else PartitionSpec("device")

        def one(axis: Any) -> Any:
            if isinstance(axis, Ring):
                return Ring(data, PartitionSpec(), PartitionSpec())  # type: ignore[arg-type]
            return PartitionSpec() if axis is None else PartitionSpec("device")

        return jax.tree.map(one, axes, is_leaf=lambda x: x is None or isinstance(x, Ring))

    def compile(self, life: Life) -> None:
        """Compile all programs of the schedule now, so that running never waits for the compiler."""
        for segment in self.segments:
            if self.env.pure:
                self._program(segment, life)
            else:
                self._compile_host(segment.body, life)

    def _program(self, segment: Segment, life: Life) -> Any:
        """The compiled chunk of a segment for a pure environment: `(life, iterations) -> (life, log)`."""
        if segment.body not in self._programs:
            chunk = self._population(partial(self._chunk, segment), (AXES, None), (AXES, LOG_AXES))
            lowered = jax.jit(chunk, donate_argnums=0).lower(life, jnp.zeros((), jnp.int32))
            self._programs[segment.body] = lowered.compile()
        return self._programs[segment.body]

    def footprint(self) -> dict[str, Any]:
        """Sizes before anything is allocated.

        `parameters` of a member, shapes of the population's `state` and `replay`, and `updates`: {name: (function,
        argument shapes)} of one update of one member, for counting FLOPs.
        """
        spec, num = self.env.spec, self.env.num_envs
        shape: Any = jax.ShapeDtypeStruct
        obs = jax.tree.map(lambda s: shape((num, *s.shape), s.dtype), spec.obs)
        flag = shape((num,), jnp.bool_)
        step = Step(obs, shape((num,), jnp.float32), flag, flag, flag)
        state = jax.eval_shape(lambda: self.agent.init(jax.random.key(0), self.agent.hyper))
        life = jax.eval_shape(lambda s, x: self._start(s, (), x, jax.random.key(0)), state, step)
        updates = {}
        for name, step in self.agent.train_steps.items():
            sampler = replay.sampler(step.sampler, step.batch_size, step.length)  # of all shards
            batch = jax.eval_shape(lambda life, f=sampler: f(life.agent, life.ring, life.key), life)
            updates[name] = (step.update, (state, batch, life.key))
        population = lambda tree: jax.tree.map(lambda x: shape((self.members, *x.shape), x.dtype), tree)  # noqa: E731
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        return dict(parameters=count, state=population(state), replay=population(life.ring.data), updates=updates)

    def run(self, life: Life, cursor: Cursor, iterations: int) -> tuple[Life, Cursor, Report]:
        """Run up to `iterations` of the current segment; `life` is consumed. See `finished` for the end."""
        if self.finished(cursor):
            raise ValueError(f"the schedule has ended: it has {len(self.segments)} segments, the cursor is {cursor}")
        check_number("iterations", iterations, least=1, whole=True)
        segment = self.segments[cursor.segment]
        iterations = min(iterations, self.max_iterations, segment.times - cursor.iteration)
        first = int(life.counters.rows)
        if self.env.pure:
            life, log = self._program(segment, life)(life, jnp.asarray(iterations, jnp.int32))
        else:
            life, log = self._run_host(segment, life, iterations)
        report = self._report(processes.fetch(log), first)
        return life, self.advance(cursor, iterations), report

    def gauge(self, life: Life, horizon: int) -> dict[str, np.ndarray]:
        """The exploitation gauge `[M]` of every member (see `training.gauge`); empty without dreams or replay."""
        held = min(int(life.counters.rows), self.capacity // self.env.num_envs)
        if self.agent.imagine is None or held < gauge.rows_needed(horizon):
            return {}

        def one(state: Any, ring: Ring, key: Key, counters: Counters) -> dict[str, Array]:
            key = self._share.key(stream(key, EVAL, counters.updates))
            found = gauge.gauge(self.agent, state, ring, key, horizon)
            return self._share.mean(found) if self.shards > 1 else found

        arguments = life.agent._replace(opt=None), life.ring, life.key, life.counters
        if ("gauge", horizon) not in self._programs:
            mapped = self._population(one, (0, replay.AXES, 0, None), 0)
            self._programs["gauge", horizon] = jax.jit(mapped).lower(*arguments).compile()
        return processes.fetch(self._programs["gauge", horizon](*arguments))

    def advance(self, cursor: Cursor, iterations: int) -> Cursor:
        """The cursor after so many iterations more, which must lie inside its segment."""
        done = cursor.iteration + iterations
        if done >= self.segments[cursor.segment].times:
            return Cursor(cursor.segment + 1, 0)
        return Cursor(cursor.segment, done)

    def finished(self, cursor: Cursor) -> bool:
        """Whether the whole schedule has run."""
        return cursor.segment >= len(self.segments)

    def steps_per_iteration(self, cursor: Cursor) -> int:
        """Environment steps of one member in an iteration of the current segment."""
        return self.segments[cursor.segment].rows * self.env.num_envs

    def _report(self, log: Log, first_row: int) -> Report:
        metrics, faults = {}, {}
        for name, sums in log.sums.items():
            prefix, count = "" if len(log.sums) == 1 else f"{name}/", np.asarray(log.counts[name])
            faults |= {prefix + k: np.asarray(v) for k, v in log.faults[name].items() if np.any(v)}
            if np.any(count) or any(np.any(v) for v in log.faults[name].values()):
                mean = lambda v, n=count: np.where(n, np.asarray(v) / np.maximum(n, 1), np.nan)  # noqa: E731
                metrics |= {prefix + k: mean(v) for k, v in sums.items()}
        done = np.asarray(log.finished.done)  # [M, rows, N]
        episodes = [
            {
                "member": int(m),
                "env_steps": int((first_row + row) * self.env.num_envs),
                "return": float(log.finished.total[m, row, n]),
                "length": int(log.finished.length[m, row, n]),
            }
            for row, m, n in np.argwhere(done.swapaxes(0, 1))
        ]
        return Report(metrics, episodes, faults)

    # --- Host environments ----------------------------------------------------------------------------------------

    def _compile_host(self, body: tuple[Word, ...], life: Life) -> None:
        for word in body:
            if isinstance(word, Repeat):
                self._compile_host(word.body, life)
            elif isinstance(word, Collect):
                self._host_turn(word.mode, life)
            else:
                self._host_train(word, life)

    def _host_turn(self, mode: str, life: Life) -> Callable:
        """Compiled `(agent, rest of life, step) -> (rest of life, action, finished)`; the optimiser stays behind."""

        def turn(agent, life: Life, step: Step):
            life, action, finished = self._turn(life._replace(agent=agent, step=step), mode)
            return life._replace(agent=None, step=None), action, finished

        if ("turn", mode) not in self._programs:
            rest = AXES._replace(agent=None, step=None)
            vmapped = self._population(turn, (0, rest, 0), (rest, 0, 0))
            arguments = self._acting(life), life._replace(agent=None, step=None), self._ours(self._pool.step)  # type: ignore[union-attr]
            self._programs["turn", mode] = jax.jit(vmapped, donate_argnums=1).lower(*arguments).compile()
        return self._programs["turn", mode]

    def _acting(self, life: Life) -> Any:
        """The agent's state without the optimiser: fewer leaves to hand over at every step."""
        return life.agent._replace(opt=None)

    def _host_train(self, word: Train, life: Life) -> Callable:
        """Compiled `life -> (life, log)` for one `Train` word."""

        def train(life: Life):
            return self._run_word(word, life, self._empty_log(life, 0))

        if word not in self._programs:
            vmapped = self._population(train, (AXES,), (AXES, LOG_AXES))
            self._programs[word] = jax.jit(vmapped, donate_argnums=0).lower(life).compile()
        return self._programs[word]

    def _run_host(self, segment: Segment, life: Life, iterations: int) -> tuple[Life, Log]:
        logs: list[Log] = []
        rows: list[Finished] = []
        for _ in range(iterations):
            life = self._host_body(segment.body, life, logs, rows)
        return life, self._join(life, logs, rows)

    def _host_body(self, body: tuple[Word, ...], life: Life, logs: list[Log], rows: list[Finished]) -> Life:
        for word in body:
            if isinstance(word, Repeat):
                for _ in range(word.times):
                    life = self._host_body(word.body, life, logs, rows)
            elif isinstance(word, Collect):
                life = self._host_collect(word, life, rows)
            else:
                life, log = self._host_train(word, life)(life)
                logs.append(log)
        return life

    def _host_collect(self, word: Collect, life: Life, rows: list[Finished]) -> Life:
        """Step the pool, then act. The last action waits for the next call, so that the pool steps while we learn."""
        pool, turn = self._pool, self._host_turn(word.mode, life)
        assert pool is not None, "call init before run"
        if word.fresh:
            pool.reset(self._mine(self._later_keys(life)))
            fresh = jax.vmap(lambda state: self.agent.reset(state, self.env.num_envs))
            life = life._replace(carry=fresh(life.agent))
        agent, rest = self._acting(life), life._replace(agent=None, step=None)
        for _ in range(self._rows(word)):
            step = pool.advance()
            if pool.fresh:  # it died: what was going on has no end of its own
                rest, pool.fresh = rest._replace(ring=cut_rings(rest.ring)), False
            rest, pool.action, finished = turn(agent, rest, self._ours(step))
            rows.append(finished)
        return rest._replace(agent=life.agent, step=life.step)

    def _join(self, life: Life, logs: list[Log], rows: list[Finished]) -> Log:
        """One log out of those of single words."""
        add = lambda *parts: sum(parts[1:], parts[0])  # noqa: E731
        parts = [(log.sums, log.faults, log.counts) for log in processes.fetch(logs)]
        empty = {name: {} for name in self.agent.train_steps}
        none = (empty, empty, {name: np.zeros(self.members, np.int32) for name in empty})
        sums, faults, counts = jax.tree.map(add, *parts) if parts else none
        nothing: Any = np.zeros((self.members, 0, self.env.num_envs), bool)
        stack = lambda *x: np.stack(x, 1)  # noqa: E731
        finished = jax.tree.map(stack, *processes.fetch(rows)) if rows else Finished(nothing, nothing, nothing)
        return Log(sums, faults, counts, finished, np.asarray(len(rows)))  # type: ignore[arg-type]


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
