"""What each system sees, predicts and does, and in which order: docs/lineage.md and `jaxwm list NAME`.

The order is the schedule of the system's default preset, built for the environment of its example. The page is written
by `python -m jaxwm.report.lineage`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxwm import agents, envs
from jaxwm.report import markdown
from jaxwm.types import FOREVER, Collect, Repeat, Train, Word

PAGE = Path("docs/lineage.md")
COMMAND = "python -m jaxwm.report.lineage"
"""Writes the page anew, in the repository's root."""

INTRO = f"""# Lineage

Every system here is four choices: how it *sees* (what becomes of an observation), how it *predicts* (its model of the
world), how it *acts*, and in *which order* collecting and learning alternate. The first three are said in the table,
the order is printed below from the schedule that the trainer runs, for the preset that is taken when none is named.
`jaxwm list NAME` prints the same and the presets of one system. This page is written by `{COMMAND}`.
"""

MODES = {"explore": "", "random": ", at random", "greedy": ", greedily", "logged": ", as logged"}


def order(schedule: tuple[Word, ...]) -> list[str]:
    """A schedule as lines of words; what a `Repeat` repeats is indented by four more spaces."""
    lines = []
    for word in schedule:
        if isinstance(word, Repeat):
            times = "for ever" if word.times == FOREVER else _times(word.times)
            lines += [f"{times}:", *(f"    {line}" for line in order(word.body))]
        else:
            lines.append(_collect(word) if isinstance(word, Collect) else _train(word))
    return lines


def _collect(word: Collect) -> str:
    steps = "1 environment step" if word.steps == 1 else f"{word.steps:,} environment steps"
    return f"collect {steps}{MODES[word.mode]}{', in new episodes' if word.fresh else ''}"


def _train(word: Train) -> str:
    if callable(word.updates):
        times = f"as often as told by {_meaning(word.updates, 'the steps collected so far')}"
    else:
        times = _times(word.updates)
    if word.until is None:
        return f"train {word.name}, {times}"
    most = times if callable(word.updates) else f"at most {times}"
    return f"train {word.name}, {most}, until told by {_meaning(word.until, 'its metrics')}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _meaning(function: Callable[..., Any], otherwise: str) -> str:
    """A function in words: its name and the first line of its docstring, or `otherwise` for one without a name."""
    function = getattr(function, "func", function)  # of a functools.partial
    name, text = getattr(function, "__name__", "<>"), inspect.getdoc(function) or ""
    if name.startswith("<"):
        return otherwise
    return " ".join([f"`{name}`", *([f"({text.splitlines()[0].rstrip('.')})"] if text else [])])


def schedule(name: str) -> tuple[Word, ...]:
    """The schedule of a system's default preset, for the environment of its example."""
    return agents.make(name, envs.make(agents.find(name).env).spec).schedule


def command(name: str) -> str:
    """The line that trains a system on the environment of its example."""
    entry = agents.find(name)
    return f"jaxwm train {name} --env {entry.env} --steps {entry.steps}"


def presets(name: str) -> list[str]:
    """A line for each preset of a system: what differs from the defaults of its settings."""
    entry = agents.find(name)
    base, lines = entry.config(), []
    for preset, settings in entry.presets.items():
        values = {field: getattr(settings, field) for field in entry.config.__dataclass_fields__}
        changed = [f"{field}={value!r}" for field, value in values.items() if value != getattr(base, field)]
        lines.append(
            f"{preset}{' (default)' if preset == entry.default else ''}: {', '.join(changed) or 'as published'}"
        )
    return lines


def describe(name: str) -> str:
    """One system for a terminal. ValueError for a name that is none."""
    entry = agents.find(name)
    parts = {"sees": entry.sees, "predicts": entry.predicts, "acts": entry.acts}
    lines = [f"{name}: {entry.summary}", f"{entry.paper}, {entry.year}", ""]
    lines += [f"{what + ':':<10}{text}" for what, text in parts.items()]
    for title, body in (("order", order(schedule(name))), ("presets", presets(name)), ("example", [command(name)])):
        lines += ["", f"{title}:", *(f"  {line}" for line in body)]
    return "\n".join(lines)


def page() -> str:
    """docs/lineage.md, oldest system first."""
    systems = sorted(agents.AGENTS.items(), key=lambda item: item[1].year)
    header = ["system", "year", "sees", "predicts", "acts"]
    rows = [[markdown.code(n), e.year, e.sees, e.predicts, e.acts] for n, e in systems]
    blocks = [_block(name, entry) for name, entry in systems]
    return "\n".join([INTRO, markdown.table(header, rows), "", "## In which order", "", *blocks])


def _block(name: str, entry: agents.Entry) -> str:
    lines = [
        f"**{name}** ({entry.paper}, {entry.year}): `{command(name)}`",
        "",
        "```text",
        *order(schedule(name)),
        "```",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
