"""The schedule as data: pace, segments that can be cut into chunks, rows that a word collects."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxwm.types import Collect, Repeat, Train, Word


class Segment(NamedTuple):
    """A stretch of the schedule that is cut into chunks: `times` iterations of `body`."""

    times: int
    body: tuple[Word, ...]
    rows: int  # time steps of the environments in one iteration


def rows_of(word: Word, num_envs: int) -> int:
    """Time steps of the environments that a word takes."""
    if isinstance(word, Collect):
        return math.ceil(word.steps / num_envs)
    return word.times * sum(rows_of(w, num_envs) for w in word.body) if isinstance(word, Repeat) else 0


def segments(schedule: tuple[Word, ...], num_envs: int) -> tuple[Segment, ...]:
    """A schedule's top level with its long words cut into single iterations, so that every chunk length is possible."""
    out = []
    for word in schedule:
        if isinstance(word, Repeat):
            times, body = word.times, word.body
        elif isinstance(word, Collect) and not word.fresh:
            times, body = rows_of(word, num_envs), (Collect(num_envs, word.mode),)
        elif isinstance(word, Train) and isinstance(word.updates, int) and word.until is None:
            times, body = word.updates, (Train(word.name),)
        else:
            times, body = 1, (word,)
        out.append(Segment(times, tuple(body), sum(rows_of(w, num_envs) for w in body)))
    return tuple(out)


def pace(per_update: float, envs: int) -> tuple[int, int]:
    """Environment steps to collect, whole rows of `envs`, and updates after them, for `per_update` steps an update."""
    rows = max(1, round(per_update / envs))
    return rows * envs, max(1, round(rows * envs / per_update))
