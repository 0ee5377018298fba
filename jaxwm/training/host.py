"""Words that the host takes part in: stepping a pool of environments, and loading recordings.

A Python loop calls two kinds of compiled programs, a turn of the policy and a `Train` word; `Collect` steps the pool in
between, `Load` writes recorded rows into the replay."""

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxwm import replay
from jaxwm.envs import border
from jaxwm.schedule import Segment, rows_of, words
from jaxwm.training import processes
from jaxwm.training.life import ENV, LOG_AXES, Finished, Life, Log, stream
from jaxwm.training.program import Program
from jaxwm.training.stopwatch import Measure, untimed
from jaxwm.types import Collect, Env, Key, Load, Record, Repeat, Step, Train, Word

BLOCK = 64  # rows of recordings that are written at once
AT_ONCE, IN_VAIN = 3, 10  # most deaths in a row before a first step is done, and most without a finished episode


class EnvironmentDied(RuntimeError):
    """A host environment fails again and again."""


class Pool:
    """A host environment of all members, with the action that it has not taken yet.
    One that dies, while it is stepped, reset or built, is built anew with other seeds; this happened `restarts` times
    so far, and `fresh` tells that it just did. EnvironmentDied where that does not help. A `border.Misfit` is a bug and
    no death, and so is a wrong option, a ValueError or ImportError of the very first build: these are raised."""

    def __init__(self, env: Env, keys: Key, measure: Measure = untimed):
        self.env, self.handle, self.measure = env, None, measure
        self.action: Any = None
        self.restarts = self.in_a_row = self.in_vain = 0
        self._worked, self._replaced = False, 0
        self.reset(keys)

    def reset(self, keys: Key) -> None:
        """Start new episodes, in a pool built anew."""
        self.keys: Key = keys
        self._build(keys)
        self.fresh = False

    def close(self) -> None:
        """Shut the simulators down, if there are any."""
        if self.handle is not None:
            self._replaced, handle, self.handle = self.replaced, self.handle, None
            self.env.close(handle)

    @property
    def replaced(self) -> int:
        """Steps so far in which a number was not finite."""
        return self._replaced + int(np.sum(border.replaced(self.handle)))

    def advance(self) -> Step:
        """Take the waiting action, if there is one; the newest step `[M, N, ...]`."""
        if self.action is not None:
            # an error of the compiled program is none of the environment's
            action = self.measure("transfer", processes.local_part, self.action)
            try:
                self.handle, self.step = self.measure("env", self.env.step, self.handle, action)
            except Exception as error:
                self._restart(error)
                return self.step
            self.action, self.in_a_row = None, 0
            self.in_vain = 0 if self.step.is_last.any() else self.in_vain
        return self.step

    def _build(self, keys: Key) -> None:
        with contextlib.suppress(Exception):  # what is dead may not close
            self.close()
        try:
            self.handle, self.step = self.env.reset(keys)
        except Exception as error:
            self._restart(error)
        self.action, self._worked = None, True

    def _restart(self, error: Exception) -> None:
        """Build the pool anew, unless that has not helped for too long."""
        if isinstance(error, border.Misfit) or (not self._worked and isinstance(error, ValueError | ImportError)):
            raise error
        self.restarts, self.in_a_row, self.in_vain = self.restarts + 1, self.in_a_row + 1, self.in_vain + 1
        what = f"{self.env.spec.name} died ({type(error).__name__}: {str(error)[:200]})"
        if self.in_a_row > AT_ONCE:
            raise EnvironmentDied(f"{what} before its first step was done, again after {AT_ONCE} restarts") from error
        if self.in_vain >= IN_VAIN:
            raise EnvironmentDied(f"{what} for the {IN_VAIN}th time without one finished episode") from error
        warnings.warn(f"{what}: restarted, {self.restarts} times so far; its episodes start anew", stacklevel=2)
        self._build(jax.vmap(lambda key: jax.random.fold_in(key, self.restarts))(self.keys))
        self.fresh = True


class HostLoop:
    """Runs the words of a `Program` whose source is on the host; `measure` calls their parts."""

    def __init__(self, program: Program, measure: Measure = untimed):
        self.program, self.spread, self.measure = program, program.spread, measure
        self.pool: Pool | None = None

    def open(self, keys: Key) -> Step:
        """Build the environments of member keys `[M]`; their first steps `[M, N, ...]`, on the host."""
        self.close()
        self.pool = Pool(self.program.source, self._local(keys), self.measure)  # type: ignore[arg-type]
        return processes.fetch(self._global(self.pool.step))

    def close(self) -> None:
        """Shut the pool down."""
        if self.pool:
            self.pool.close()
            self.pool = None

    def renewed(self, life: Life) -> Life:
        """The life with new episodes, under other seeds, in all environments of the pool, where there is one."""
        if self.pool is None:  # a pure environment, or recordings
            return life
        self.pool.reset(self._local(jax.vmap(lambda key: stream(key, ENV, life.counters.rows + 1))(life.key)))
        return _cut(life)

    def _local(self, keys: Key) -> Key:
        """Of keys `[M]`, those of the members whose environments this process runs."""
        if not processes.several():
            return keys
        each = self.spread.members // jax.process_count()
        first = jax.process_index() * each
        return jax.random.wrap_key_data(jnp.asarray(processes.fetch(jax.random.key_data(keys))[first : first + each]))

    def _global(self, step: Step) -> Step:
        """The steps of all processes' environments `[M, N, ...]`. Under a stopwatch they are copied to the devices
        here, and otherwise by the policy that sees them."""
        place = NamedSharding(self.spread.mesh, PartitionSpec("device"))
        if self.measure is untimed or processes.several():
            return processes.global_array(step, place)
        return jax.device_put(step, place)

    def compile(self, body: tuple[Word, ...], life: Life) -> None:
        """Compile what the words of a body need."""
        for word in words(body):
            if isinstance(word, Collect):
                self._turn(word.mode, life)
            elif isinstance(word, Train):
                self._train(word, life)

    def _turn(self, mode: str, life: Life) -> Callable:
        """Compiled `(agent, rest of life, step) -> (rest of life, action, finished)`; the optimiser stays behind."""

        def turn(agent, life: Life, step: Step):
            life, action, finished = self.program.turn(life._replace(agent=agent, step=step), mode)
            return life._replace(agent=None, step=None), action, finished

        pool = self.pool
        assert pool is not None, "call init first"
        arguments = lambda: (_acting(life), life._replace(agent=None, step=None), self._global(pool.step))  # noqa: E731
        rest = self.program.axes._replace(agent=None, step=None)
        return self.program.compiled(("turn", mode), turn, (0, rest, 0), (rest, 0, 0), arguments, donate=1)

    def _train(self, word: Train, life: Life) -> Callable:
        """Compiled `life -> (life, log)` for one `Train` word."""
        train = lambda life: self.program.run_word(word, life, self.program.empty_log(life, 0))  # noqa: E731
        axes = self.program.axes
        return self.program.compiled(word, train, (axes,), (axes, LOG_AXES), lambda: (life,), donate=0)

    def run(self, segment: Segment, life: Life, iterations: int) -> tuple[Life, Log]:
        """So many iterations of a segment."""
        logs, rows = [], []
        if segment.body == (Load(1),):
            life = self._load(iterations, life)
        else:
            for _ in range(iterations):
                life = self._body(segment.body, life, logs, rows)
        return life, self._join(logs, rows)

    def _body(self, body: tuple[Word, ...], life: Life, logs: list[Log], rows: list[Finished]) -> Life:
        for word in body:
            if isinstance(word, Repeat):
                for _ in range(word.times):
                    life = self._body(word.body, life, logs, rows)
            elif isinstance(word, Collect):
                life = self._collect(word, life, rows)
            elif isinstance(word, Load):
                life = self._load(word.rows, life)
            else:
                life, log = self.measure("update", self._train(word, life), life)
                logs.append(log)
        return life

    def _collect(self, word: Collect, life: Life, rows: list[Finished]) -> Life:
        """Step the pool, then act. The last action waits for the next call, so that the pool steps while we learn."""
        turn, num = self._turn(word.mode, life), self.program.source.num_envs
        pool: Any = self.pool
        if word.fresh:
            life = self.renewed(life)
            life = life._replace(carry=jax.vmap(lambda state: self.program.agent.reset(state, num))(life.agent))
        acting, rest = _acting(life), life._replace(agent=None, step=None)
        for _ in range(rows_of(word, num)):
            step = pool.advance()
            if pool.fresh:  # it died: what was going on has no end of its own
                rest, pool.fresh = _cut(rest), False
            step = self.measure("transfer", self._global, step)
            rest, pool.action, finished = self.measure("policy", turn, acting, rest, step)
            rows.append(finished)
        return rest._replace(agent=life.agent, step=life.step)

    def _load(self, count: int, life: Life) -> Life:
        """Write `count` more rows of the recordings into the replay, a block at a time."""
        data: Any = self.program.source
        block = min(BLOCK, replay.capacity(life.ring))
        first, done = int(life.counters.rows), 0
        while done < count:
            rows = min(block, count - done)
            records = self.measure("read", data.read, first + done, rows)
            padded = jax.tree.map(lambda x, n=block - rows: np.pad(x, [(0, n)] + [(0, 0)] * (x.ndim - 1)), records)
            life, done = self.measure("read", _write, life, padded, rows), done + rows
        return life

    def _join(self, logs: list[Log], rows: list[Finished]) -> Log:
        """One log out of those of single words."""
        empty: Any = {name: {} for name in self.program.agent.train_steps}
        sums, faults, counts = empty, empty, {name: np.zeros(self.spread.members, np.int32) for name in empty}
        if logs:
            fetched = self.measure("transfer", processes.fetch, logs)
            parts = [(log.sums, log.faults, log.counts) for log in fetched]
            sums, faults, counts = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *parts)
        nothing: Any = np.zeros((self.spread.members, 0, self.program.source.num_envs), bool)
        finished = Finished(nothing, nothing, nothing, nothing)
        if rows:
            fetched = self.measure("transfer", processes.fetch, rows)
            finished = jax.tree.map(lambda *x: np.stack(x, 1), *fetched)
        return Log(sums, faults, counts, finished, np.asarray(len(rows)))  # type: ignore[arg-type]


def _acting(life: Life) -> Any:
    """The agent's state without the optimiser: fewer leaves to hand over at every step."""
    return life.agent._replace(opt=None)


_cut_ring = jax.jit(jax.vmap(replay.cut, in_axes=(replay.AXES,), out_axes=replay.AXES), donate_argnums=0)


def _cut(life: Life) -> Life:
    """The life with its newest records as the last of their episodes."""
    return life._replace(rings=life.rings | {"real": _cut_ring(life.ring)})


@partial(jax.jit, donate_argnums=0)
def _write(life: Life, records: Record, count: jax.Array | int) -> Life:
    """The life with the first `count` rows of `records [K, N, ...]`, for all members at once, and blank extras."""
    ring = life.ring
    rows = ring.data.reward.shape[0]
    place = jnp.arange(records.reward.shape[0])
    slots = jnp.where(place < count, (ring.rows + place) % rows, rows)  # out of range: dropped
    put = lambda new, old: old.at[slots].set(new, mode="drop")  # noqa: E731
    data = jax.tree.map(put, records, ring.data._replace(extras=records.extras))
    extras = jax.tree.map(lambda x: x.at[:, slots].set(0, mode="drop"), ring.data.extras)
    counters = life.counters._replace(rows=life.counters.rows + count)
    new = replay.Ring(data._replace(extras=extras), ring.rows + count)
    return life._replace(rings=life.rings | {"real": new}, counters=counters)
