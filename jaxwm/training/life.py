"""The state of a run as one pytree, `Life`, and what a chunk of it reports.

Random keys are `fold_in(fold_in(member key, stream), counter)` with counters that are part of `Life`, so a run gives
the same bits however it is cut into chunks."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.replay import Ring
from jaxwm.types import Array, Key, PyTree

INIT, ENV, ACT, LEARN, EVAL = range(5)  # random streams of a member


class Counters(NamedTuple):
    """Shared by all members: environment steps of one member, rows of its replay, updates."""

    steps: Array
    rows: Array
    updates: Array


class Score(NamedTuple):
    """Running return (`total + rest`, see `add_exactly`) and length of the current episodes, `[N]`."""

    total: Array
    rest: Array
    length: Array


class Finished(NamedTuple):
    """Which episodes ended at a step, `[N]`, with their raw return (`total + rest`), length in steps, and what the
    environment counts besides (`Env.metrics`)."""

    done: Array
    total: Array
    rest: Array
    length: Array
    metrics: dict[str, Array]


class Skipped(NamedTuple):
    """Updates of a member that were undone because a metric was not finite: in all, and in a row until now."""

    total: Array
    run: Array


class Life(NamedTuple):
    """A run: agent state, policy memory, environment, newest step, replays by name, cursors of the samplers by train
    step, keys, episode scores, skipped updates, counters. Without an environment `carry` to `score` are ()."""

    agent: Any
    carry: PyTree
    env: PyTree
    step: Any
    rings: dict[str, Ring]
    cursors: dict[str, PyTree]
    key: Key
    score: Any
    skipped: Skipped
    counters: Counters

    @property
    def ring(self) -> Ring:
        """The replay of real records."""
        return self.rings["real"]


class Cursor(NamedTuple):
    """Place in the schedule: segment, and iterations of it that are done."""

    segment: int = 0
    iteration: int = 0


class Log(NamedTuple):
    """What a chunk reports: metrics by train step, as sums over `counts` good updates, how often each was not finite
    (`faults`), and the episodes that ended in each row."""

    sums: dict[str, dict[str, Array]]
    faults: dict[str, dict[str, Array]]
    counts: dict[str, Array]
    finished: Finished  # [rows, N]
    rows: Array


LOG_AXES: Any = Log(0, 0, 0, 0, None)  # type: ignore[arg-type]


class Report(NamedTuple):
    """A chunk's results on the host. `metrics` are means `[M]` over the good updates: absent where nothing was trained,
    NaN for a member without a good one. `faults` counts `[M]` how often a metric was not finite, where it ever was.
    `played` are the environment's own metrics `[M]`, means over the episodes that ended: absent where none did."""

    metrics: dict[str, np.ndarray]
    episodes: list[dict[str, Any]]
    faults: dict[str, np.ndarray]
    played: dict[str, np.ndarray]


def stream(key: Key, which: int, counter: Array | int = 0) -> Key:
    """The key of a stream at a count."""
    return jax.random.fold_in(jax.random.fold_in(key, which), counter)


def member_keys(seed: int, members: int) -> Key:
    """Keys `[M]`; member m has the same key whatever M is."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(members))


def add_exactly(total: Array, rest: Array, x: Array) -> tuple[Array, Array]:
    """`total + rest + x`, again as two floats: a sum of float32 numbers that is right to about 48 bits."""
    new = total + x
    back = new - total
    rest = rest + ((total - (new - back)) + (x - back))  # what the rounding of `new` lost
    return new + rest, rest - ((new + rest) - new)
