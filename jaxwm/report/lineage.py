"""What each system sees, predicts and does, and in which order: docs/lineage.md and `jaxwm list NAME`.

The order is the schedule of the system's default preset, built for the environment of its example.
`python -m jaxwm.report.lineage` writes the page.
"""

from __future__ import annotations

from pathlib import Path

from jaxwm import agents, envs
from jaxwm.agents import registry
from jaxwm.report import document
from jaxwm.schedule import in_words
from jaxwm.types import Word

PAGE = Path("docs/lineage.md")
COMMAND = "python -m jaxwm.report.lineage"
"""Writes the page, in the repository's root."""

INTRO = f"""# Lineage

Every system here is four choices: how it *sees* (what becomes of an observation), how it *predicts* (its model of the
world), how it *acts*, and in *which order* collecting and learning alternate. The table gives the first three; the
order below it is generated from the schedule that the trainer runs, for the system's default preset.
`jaxwm list NAME` prints the same and the presets of one system. This page is written by `{COMMAND}`.
"""


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
    for title, body in (("order", in_words(schedule(name))), ("presets", presets(name)), ("example", [command(name)])):
        lines += ["", f"{title}:", *(f"  {line}" for line in body)]
    return "\n".join(lines)


def page() -> str:
    """docs/lineage.md, oldest system first."""
    systems = sorted(agents.AGENTS.items(), key=lambda item: item[1].year)
    header = ["system", "year", "sees", "predicts", "acts"]
    rows = [[document.code(n), e.year, e.sees, e.predicts, e.acts] for n, e in systems]
    blocks = [_block(name, entry) for name, entry in systems]
    return "\n".join([INTRO, document.table(header, rows), "", "## In which order", "", *blocks])


def _block(name: str, entry: agents.System) -> str:
    lines = [
        f"**{name}** ({entry.paper}, {entry.year}): `{command(name)}`",
        "",
        "```text",
        *in_words(schedule(name)),
        "```",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    Path(agents.__file__).with_name(registry.TABLE).write_text(registry.printed())
    registry.table.cache_clear()
    PAGE.write_text(page())
    print(PAGE)
