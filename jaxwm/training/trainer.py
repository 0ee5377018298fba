"""The trainer: runs a schedule, chunk by chunk, for an agent and a source of records.

What is carried is one pytree, `Life`; with the cursor `(segment, iteration)` it is the whole state of a run. A chunk is
one compiled program where nothing in it needs the host (`training.program`), and else a loop around two
(`training.host`); `training.spread` puts members on devices."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import border
from jaxwm.errors import check_jax, check_number, suggest
from jaxwm.replay import Ring
from jaxwm.schedule import FOREVER, Segment, rows_of, segments, words
from jaxwm.spaces import blank_step
from jaxwm.training import gauge, processes, quick
from jaxwm.training.flops import flops
from jaxwm.training.host import HostLoop
from jaxwm.training.life import ENV, EVAL, INIT, LOG_AXES, Counters, Cursor, Life, Log, Report, member_keys, stream
from jaxwm.training.program import Program
from jaxwm.training.spread import SHARED_FLOPS, Spread, probably_shared, spread
from jaxwm.training.stopwatch import Measure, untimed
from jaxwm.types import Agent, Array, Collect, Env, Key, Load, Repeat, Source, Step, Train, Word


class Trainer:
    """Runs an agent with an environment or with recordings, as a population of `members`.

    `capacity` is the replay size of a member in environment steps; `hyper` gives scalars `[M]` that differ between
    members; `max_iterations` bounds the iterations of one chunk; `freeze` names components whose weights stay as they
    begin. Members are spread over as many of the `devices` (default: all) as divide their number; CPU devices that are
    left over share the large updates of a member (see `jaxwm.learning.share`), and each of them holds all of the
    member's state. An update of `SHARED_FLOPS` is large, unless `sharing` decides. Recordings are held once for all
    members.

    With `shards` above 1, every member is spread over so many devices: each holds the weights, and the replay of its
    part of the environments, of which it samples its part of every batch. Acting is repeated on each.

    `measure` calls what takes time: a `training.stopwatch.Stopwatch` tells afterwards what it went to.

    ValueError where the schedule reads sequences longer than the replay or than what was collected before, where it
    asks for an environment and there are recordings, or the other way round, and where `shards` does not divide the
    devices, the environments or a batch."""

    def __init__(
        self, agent: Agent, source: Source, members: int = 1, capacity: int = 100_000,
        hyper: dict[str, Any] | None = None, max_iterations: int = 256, shards: int = 1,
        devices: Sequence[Any] | None = None, freeze: Sequence[str] = (), measure: Measure = untimed,
        sharing: bool | None = None,
    ):  # fmt: skip
        check_jax()
        counts = dict(members=members, capacity=capacity, max_iterations=max_iterations, shards=shards)
        for name, value in counts.items():
            check_number(name, value, least=1, whole=True)
        self.agent, self.source, self.members, self.measure = agent, source, members, measure
        self.capacity, self.max_iterations, self.shards = capacity, max_iterations, shards
        self._pure = isinstance(source, Env) and source.pure
        self.segments = segments(agent.schedule, source.num_envs)
        self.hyper = self._hyper(hyper or {})
        _check_source(agent, source)
        _check_replay(agent, source, capacity // source.num_envs, agent.schedule)
        known = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper)).params if freeze else {}
        for name in freeze:
            if name not in known:
                raise ValueError(f"there is no component {name!r} to freeze; {suggest(name, known)}")
        self._sizes: dict[str, Any] | None = None
        self._settle(devices, tuple(freeze), sharing)
        self._host = HostLoop(self._program, measure)
        # kept, so that a second life compiles nothing; op by op they take ten times as long
        self._start = jax.vmap(self._program.start, out_axes=self._program.axes)
        self._init = quick.jit(jax.vmap(agent.init))
        self._reset = quick.jit(jax.vmap(lambda key: source.reset(key)))  # type: ignore[union-attr]
        self._begin = quick.jit(lambda *arguments: self._start(*arguments)._replace(rings=None))
        self._rings: Any = None

    def _settle(self, devices: Sequence[Any] | None, freeze: tuple[str, ...], sharing: bool | None) -> None:
        """Spread the members; `sharing` says whether devices that are left over take part, or None where none can.
        What is probable is tried first, as the work is counted in a trace that the run uses again."""
        options = self.agent, self.source, self.members, self.shards, devices
        apart, together = (spread(*options, sharing=x) for x in (False, True))

        def built(sharing: bool | None) -> tuple[bool | None, Spread, Program]:
            chosen = together if sharing else apart
            return sharing, chosen, Program(self.agent, self.source, chosen, self.capacity, freeze)

        self._work: dict[str, float] = {}
        if together.copies == 1 or sharing is not None:
            self.sharing, self.spread, self._program = built(sharing if together.copies > 1 else None)
            return
        self.sharing, self.spread, self._program = built(probably_shared(self.agent, self.source))
        work = max(self.work(name) for name, step in self.agent.train_steps.items() if step.shared)
        if self.sharing != (work >= SHARED_FLOPS):
            self._work = {}
            self.sharing, self.spread, self._program = built(not self.sharing)

    def _hyper(self, given: dict[str, Any]) -> dict[str, Array]:
        """Every hyper-parameter as `[M]`."""
        unknown = given.keys() - self.agent.hyper.keys()
        if unknown:
            raise ValueError(f"{sorted(unknown)} cannot differ between members; these can: {sorted(self.agent.hyper)}")
        for name, value in given.items():
            if np.shape(value) not in ((), (self.members,)):
                raise ValueError(f"{name} must be one number or {self.members}, one per member, not {np.shape(value)}")
        values = self.agent.hyper | given
        return {name: jnp.broadcast_to(jnp.asarray(v, jnp.float32), (self.members,)) for name, v in values.items()}

    def init(self, seed: int = 0) -> Life:
        """A fresh run. Every leaf is owned by the result alone, because chunks donate it."""
        keys = member_keys(seed, self.members)
        handle, step = (), ()
        if isinstance(self.source, Env):
            env_keys = jax.vmap(partial(stream, which=ENV))(keys)
            handle, step = self._reset(env_keys) if self._pure else ((), self._host.open(env_keys))
        arguments = self.init_agents(keys), handle, step, keys
        place = self.spread.places(self._program.axes)
        if self._rings is None:  # replays are made where they belong: they may not fit on one device
            empty = jax.eval_shape(self._start, *arguments).rings
            zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)  # noqa: E731
            self._rings = jax.jit(zeros, out_shardings=place.rings)
        life = processes.place(self._begin(*arguments), place._replace(rings=None))
        return life._replace(rings=self._rings())

    def init_agents(self, keys: Key) -> Any:
        """Fresh agent states `[M, ...]` for member keys."""
        return self._init(jax.vmap(partial(stream, which=INIT))(keys), self.hyper)

    def work(self, name: str) -> float:
        """FLOPs of an update of one member. The trace in which they are counted is used again by the chunks."""
        if name not in self._work:
            _, shapes = self.footprint()["updates"][name]
            program, part = self._program.update_of_all(name)
            self._work[name] = part * flops(program, *shapes)
        return self._work[name]

    def close(self) -> None:
        """Shut a host environment's pool down."""
        self._host.close()

    @property
    def restarts(self) -> int:
        """How often a host environment died and was built anew."""
        return self._host.pool.restarts if self._host.pool else 0

    def replaced(self, life: Life) -> int:
        """Steps of all members so far in which a number was not finite and became 0 (see `envs.border`)."""
        pool = self._host.pool
        return pool.replaced if pool else int(np.sum(processes.fetch(border.replaced(life.env))))

    def restored(self, life: Life) -> Life:
        """A life that comes from a checkpoint, ready to go on: a host environment starts episodes with new seeds."""
        return self._host.renewed(life)

    def compile(self, life: Life) -> None:
        """Compile all programs of the schedule now, so that running never waits for the compiler."""
        for segment in self.segments:
            if self._compiles(segment):
                self._chunk(segment, life)
            else:
                self._host.compile(segment.body, life)

    def _compiles(self, segment: Segment) -> bool:
        """Whether a chunk of a segment is one program: nothing in it needs the host."""
        return self._pure or all(isinstance(word, Train) for word in words(segment.body))

    def _chunk(self, segment: Segment, life: Life) -> Any:
        """The compiled chunk of a segment: `(life, iterations) -> (life, log)`."""
        axes, chunk = self._program.axes, partial(self._program.chunk, segment, self.max_iterations)
        arguments = lambda: (life, jnp.zeros((), jnp.int32))  # noqa: E731
        seldom = not any(isinstance(word, Train) for word in words(segment.body)) and segment.times < FOREVER
        options = quick.options() if seldom else None
        return self._program.compiled(segment.body, chunk, (axes, None), (axes, LOG_AXES), arguments, 0, options)

    def footprint(self) -> dict[str, Any]:
        """Sizes before anything is allocated: `parameters` of a member, shapes of the population's `state` and `replay`
        (of all rings), and of one update of one member `updates`, {name: (function, argument shapes)}."""
        if self._sizes:
            return self._sizes
        program = self._program
        state = jax.eval_shape(lambda: self.agent.init(jax.random.key(0), self.agent.hyper))
        step: Step | tuple = () if program.recorded else blank_step(self.source.spec, self.source.num_envs)
        life = jax.eval_shape(lambda s, x: program.start(s, (), x, jax.random.key(0)), state, step)
        updates = {}
        for name, train_step in self.agent.train_steps.items():
            batch = jax.eval_shape(partial(program.whole_batch, name), life)
            updates[name] = (train_step.update, (state, batch, life.key))
        shape = lambda x: jax.ShapeDtypeStruct((self.members, *x.shape), x.dtype)  # noqa: E731
        several = partial(jax.tree.map, shape)
        rings = {name: several(ring.data) for name, ring in life.rings.items()}
        if program.recorded:  # one copy for all members, but for the extras
            rings["real"] = life.ring.data._replace(extras=rings["real"].extras)
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        self._sizes = dict(parameters=count, state=several(state), replay=rings, updates=updates)
        return self._sizes

    def run(self, life: Life, cursor: Cursor, iterations: int) -> tuple[Life, Cursor, Report]:
        """Run up to `iterations` of the current segment; `life` is consumed. See `finished` for the end."""
        if self.finished(cursor):
            raise ValueError(f"the schedule has ended: it has {len(self.segments)} segments, the cursor is {cursor}")
        check_number("iterations", iterations, least=1, whole=True)
        segment = self.segments[cursor.segment]
        iterations = min(iterations, self.max_iterations, segment.times - cursor.iteration)
        first = int(life.counters.rows)
        if self._compiles(segment):
            part = "update" if all(isinstance(word, Train) for word in words(segment.body)) else "program"
            chunk = self._chunk(segment, life)
            life, log = self.measure(part, chunk, life, jnp.asarray(iterations, jnp.int32))
        else:
            life, log = self._host.run(segment, life, iterations)
        report = self._report(self.measure("transfer", processes.fetch, log), first)
        done = cursor.iteration + iterations
        cursor = Cursor(cursor.segment + 1, 0) if done >= segment.times else Cursor(cursor.segment, done)
        return life, cursor, report

    def gauge(self, life: Life, horizon: int) -> dict[str, np.ndarray]:
        """The exploitation gauge `[M]` of every member (see `training.gauge`); empty without dreams or replay."""
        held = min(int(life.counters.rows), self.capacity // self.source.num_envs)
        if self.agent.imagine is None or self.agent.act is None or held < gauge.CONTEXT + horizon:
            return {}
        share, axes = self.spread.share, self._program.axes

        def one(state: Any, ring: Ring, key: Key, counters: Counters) -> dict[str, Array]:
            key = share.key(stream(key, EVAL, counters.updates))
            found = gauge.gauge(self.agent, state, ring, key, horizon)
            return share.mean(found) if share.split else found

        arguments = life.agent._replace(opt=None), life.ring, life.key, life.counters
        name, in_axes, options = ("gauge", horizon), (0, axes.ring, 0, None), quick.options()
        compiled = partial(self._program.compiled, options=options)
        program = self.measure("compile", compiled, name, one, in_axes, 0, lambda: arguments)
        return processes.fetch(self.measure("gauge", program, *arguments))

    def finished(self, cursor: Cursor) -> bool:
        """Whether the whole schedule has run."""
        return cursor.segment >= len(self.segments)

    def steps_per_iteration(self, cursor: Cursor) -> int:
        """Environment steps of one member in an iteration of the current segment."""
        rows = self.segments[cursor.segment].rows if isinstance(self.source, Env) else 0
        return rows * self.source.num_envs

    def _report(self, log: Log, first_row: int) -> Report:
        metrics, faults = {}, {}
        for name, sums in log.sums.items():
            prefix, count = "" if len(log.sums) == 1 else f"{name}/", np.asarray(log.counts[name])
            faults |= {prefix + k: np.asarray(v) for k, v in log.faults[name].items() if np.any(v)}
            if np.any(count) or any(np.any(v) for v in log.faults[name].values()):
                mean = lambda v, n=count: np.where(n, np.asarray(v) / np.maximum(n, 1), np.nan)  # noqa: E731
                metrics |= {prefix + k: mean(v) for k, v in sums.items()}
        done, total, rest, length = map(np.asarray, log.finished)  # [M, rows, N]
        episodes = []
        for row, m, n in np.argwhere(done.swapaxes(0, 1)).tolist():
            score = {"return": float(total[m, row, n]) + float(rest[m, row, n]), "length": int(length[m, row, n])}
            episodes.append({"member": m, "env_steps": (first_row + row) * self.source.num_envs, **score})
        return Report(metrics, episodes, faults)


def _check_source(agent: Agent, source: Source) -> None:
    """ValueError where the words of the schedule need another source, or the agent more than recordings have."""
    name = source.spec.name
    wrong = Load if isinstance(source, Env) else Collect
    if any(isinstance(word, wrong) for word in words(agent.schedule)):
        need = "recordings (--data DIR)" if wrong is Load else "an environment (--env SUITE/TASK)"
        raise ValueError(f"the schedule of this agent needs {need}, and {name} is none")
    if agent.act is not None and source.spec.action is None:
        raise ValueError(f"{name} has no actions, and this agent learns what they do: record some with actions")
    if isinstance(source, Env) and agent.act is None:
        raise ValueError(f"nothing acts in this agent: it learns from recordings (--data DIR), not in {name}")


def _check_replay(agent: Agent, source: Source, room: int, body: tuple[Word, ...], have: int = 0) -> int:
    """ValueError where a `Train` word finds too little replay, with `room` rows of it; the rows written by the end."""
    for word in body:
        if isinstance(word, Repeat):
            each = sum(rows_of(w, source.num_envs) for w in word.body)
            have = _check_replay(agent, source, room, word.body, have) + (word.times - 1) * each
        elif isinstance(word, Train):
            _check_train(agent, source.num_envs, room, word.name, have)
        else:
            have += rows_of(word, source.num_envs)
    return have


def _check_train(agent: Agent, envs: int, room: int, name: str, have: int) -> None:
    steps = agent.train_steps
    if name not in steps:
        raise ValueError(f"the schedule trains {name!r}; there are {list(steps)}")
    need = steps[name].length
    if steps[name].reads != "real" or min(have, room) >= need:
        return  # rings that are written by train steps are filled by the schedule's own order
    reads = f"train step {name!r} reads sequences of {need} records per environment but"
    least, shorten = f"at least {need * envs:,}", "or shorten the sequences"
    if room < need:
        raise ValueError(f"{reads} the replay holds only {room}: raise --capacity and --steps to {least}, {shorten}")
    text = f"{reads} only {have} are there before it"
    raise ValueError(f"{text}: collect (--prefill) or record {least} steps, {shorten}")
