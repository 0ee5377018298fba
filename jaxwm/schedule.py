"""The schedule as data: the pace of collecting and learning, segments that can be cut into chunks, and its words."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxwm.types import FOREVER, Array, Collect, Load, Mode, Repeat, Train, Word


class Segment(NamedTuple):
    """A stretch of the schedule that is cut into chunks: `times` iterations of `body`."""

    times: int
    body: tuple[Word, ...]
    rows: int  # rows of the replay that one iteration writes


def rows_of(word: Word, num_envs: int) -> int:
    """Rows of the replay that a word writes."""
    if isinstance(word, Collect):
        return math.ceil(word.steps / num_envs)
    if isinstance(word, Load):
        return word.rows
    return word.times * sum(rows_of(w, num_envs) for w in word.body) if isinstance(word, Repeat) else 0


def segments(schedule: tuple[Word, ...], num_envs: int) -> tuple[Segment, ...]:
    """A schedule's top level with its long words cut into single iterations, so that every chunk length is possible."""
    out = []
    for word in schedule:
        if isinstance(word, Repeat):
            times, body = word.times, word.body
        elif isinstance(word, Collect) and not word.fresh:
            times, body = rows_of(word, num_envs), (Collect(num_envs, word.mode),)
        elif isinstance(word, Load):
            times, body = word.rows, (Load(1),)
        elif isinstance(word, Train) and isinstance(word.updates, int) and word.until is None:
            times, body = word.updates, (Train(word.name),)
        else:
            times, body = 1, (word,)
        out.append(Segment(times, tuple(body), sum(rows_of(w, num_envs) for w in body)))
    return tuple(out)


def words(body: tuple[Word, ...]) -> list[Word]:
    """All words of a body but `Repeat`, those inside of it included."""
    return [inner for word in body for inner in (words(word.body) if isinstance(word, Repeat) else [word])]


def updates_of(body: tuple[Word, ...]) -> int:
    """Updates of one iteration of a body, where they are numbers; 0 where only the run tells how many."""
    count = 0
    for word in body:
        if isinstance(word, Repeat):
            count += word.times * updates_of(word.body)
        elif isinstance(word, Train) and isinstance(word.updates, int):
            count += word.updates
    return count


def pace(per_update: float, envs: int) -> tuple[int, int]:
    """Environment steps to collect, whole rows of `envs`, and updates after them, for `per_update` steps per update."""
    rows = max(1, round(per_update / envs))
    return rows * envs, max(1, round(rows * envs / per_update))


def prefill(steps: int, envs: int, length: int, mode: Mode = "random") -> Collect:
    """Collect before learning starts: `steps`, or what makes one whole sequence in every environment."""
    return Collect(max(steps, envs * length), mode)


def phases(config: Any) -> tuple[Word, ...]:
    """Random play, then learning and collecting in turn: the order of PlaNet, Dreamer V1 and V2, with their settings
    `prefill`, `envs`, `batch_length`, `phase_updates` and `collect`."""
    body = Train("all", config.phase_updates), Collect(config.collect)
    return prefill(config.prefill, config.envs, config.batch_length), Repeat(FOREVER, body)


def passes(epochs: float, batch: int, capacity: int) -> Callable[[Array], Array]:
    """`Train.updates` that see all data `epochs` times, `batch` steps at a time: of a replay that holds `capacity`."""

    def updates(steps: Array) -> Array:
        data = jnp.minimum(steps, capacity)
        return jnp.round(epochs * data / batch).astype(jnp.int32)

    return updates


class After(NamedTuple):
    """`Train.updates` of a part that joins later; see `after`."""

    steps: int
    updates: int

    def __call__(self, collected: Array) -> Array:
        """The updates after so many environment steps."""
        return jnp.where(collected >= self.steps, self.updates, 0)


def after(steps: int, updates: int) -> After:
    """`Train.updates` of a part that joins later: none before `steps` environment steps, then `updates`.
    The trip count is traced, so the part is compiled once, in the same body as those that began before."""
    return After(steps, updates)


def offline(schedule: tuple[Word, ...], held: int, rows: int) -> tuple[Word, ...]:
    """The schedule of an agent that learns from recordings, of which there are so many `rows`.
    All of them are loaded first, or as many as the replay holds (`held`). Then the agent trains in its own order. Where
    not everything fits, it goes on loading: as its schedule says, or as fast as it would have collected."""

    def inner(word: Word) -> tuple[Word, ...]:
        if isinstance(word, Repeat):
            body = tuple(w for old in word.body for w in inner(old))
            return (dataclasses.replace(word, body=body),) if body else ()
        if isinstance(word, Collect):
            return (Load(1),) if rows > held else ()
        if isinstance(word, Load):
            return (word,) if rows > held else ()
        if isinstance(word, Train) and isinstance(word.updates, After):  # nothing is collected to wait for
            return (dataclasses.replace(word, updates=word.updates.updates),)
        return (word,)

    rest = [word for word in schedule if not isinstance(word, Collect | Load)]
    return Load(min(rows, held)), *(w for word in rest for w in inner(word))


MODES = {"explore": "", "random": ", at random", "greedy": ", greedily"}


def in_words(schedule: tuple[Word, ...]) -> list[str]:
    """A schedule as lines; what a `Repeat` repeats is indented by four more spaces."""
    lines = []
    for word in schedule:
        if isinstance(word, Repeat):
            times = "forever" if word.times == FOREVER else f"{word.times:,} times"
            lines += [f"repeat {times}:", *(f"    {line}" for line in in_words(word.body))]
        else:
            lines.append(describe(word))
    return lines


def describe(word: Word) -> str:
    """One word in words."""
    if isinstance(word, Collect):
        steps = "1 environment step" if word.steps == 1 else f"{word.steps:,} environment steps"
        return f"collect {steps}{MODES[word.mode]}{', in new episodes' if word.fresh else ''}"
    if isinstance(word, Load):
        return f"load {word.rows:,} row{'s' * (word.rows > 1)} of the recordings"
    assert isinstance(word, Train)
    if isinstance(word.updates, After):
        return f"{word.updates.updates:,} x {word.name}, from {word.updates.steps:,} environment steps on"
    times = _meaning(word.updates, "updates(steps)") if callable(word.updates) else f"{word.updates:,}"
    until = f", until {_meaning(word.until, 'its metrics are good')}" if word.until else ""
    return f"{'at most ' if until else ''}{times} x {word.name}{until}"


def _meaning(function: Callable[..., Any], otherwise: str) -> str:
    """A function by its name and arguments, or `otherwise` for one without a name."""
    function = getattr(function, "func", function)  # of a functools.partial
    name = getattr(function, "__name__", "<>")
    return otherwise if name.startswith("<") else f"{name}({list(inspect.signature(function).parameters)[-1]})"
