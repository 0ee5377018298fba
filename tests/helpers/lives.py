"""The short life of a tiny population, from its first step to an end that tests agree on."""

from typing import Any, NamedTuple

from tiny import Built

from jaxwm import Cursor, Trainer
from jaxwm.types import FOREVER

MEMBERS = 2
ENDLESS = {"dyna-q": 250}
"""Iterations of a segment without an end that are run: enough for an episode and for learning something; 4 suffice for
the others."""


class Lived(NamedTuple):
    """A population after its whole life (or a few iterations of an endless last part), on the host."""

    tiny: Built
    trainer: Trainer
    life: Any
    end: Cursor
    reports: list[Any]


def end_of(tiny: Built, trainer: Trainer) -> Cursor:
    """Where these tests end the life of an agent."""
    last = len(trainer.segments) - 1
    if trainer.segments[last].times < FOREVER:
        return Cursor(last + 1, 0)
    return Cursor(last, ENDLESS.get(tiny.name, 4))


def middle_of(tiny: Built, trainer: Trainer) -> Cursor:
    """A place in the last part of the schedule, half way to the end."""
    last = len(trainer.segments) - 1
    times = trainer.segments[last].times
    return Cursor(last, (ENDLESS.get(tiny.name, 4) if times == FOREVER else times) // 2)


def live(trainer: Trainer, life: Any, cursor: Cursor, end: Cursor, chunk: int) -> tuple[Any, Cursor, list[Any]]:
    """Run from `cursor` to `end` in chunks of at most `chunk` iterations."""
    reports = []
    while cursor < end:
        left = end.iteration - cursor.iteration if cursor.segment == end.segment else chunk
        life, cursor, report = trainer.run(life, cursor, min(chunk, left))
        reports.append(report)
    return life, cursor, reports


def trainer_of(tiny: Built, **options: Any) -> Trainer:
    return Trainer(tiny.agent, tiny.env, MEMBERS, tiny.config.capacity, **options)


def run(trainer, steps, chunk=10, life=None, cursor=None):
    """Life, cursor, and all episodes and metric rows of a run of `steps` environment steps."""
    life, cursor = life or trainer.init(0), cursor or Cursor()
    episodes, rows = [], []
    while (left := steps - int(life.counters.steps)) > 0:
        each = trainer.steps_per_iteration(cursor) or left
        life, cursor, report = trainer.run(life, cursor, min(chunk, -(-left // each)))
        episodes += report.episodes
        rows.append(report.metrics)
    return life, cursor, episodes, rows
