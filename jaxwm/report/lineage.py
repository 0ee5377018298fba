"""What a system sees, predicts and does, and in which order: `jaxwm list NAME`, and docs/lineage.md for all of them.

The order is the schedule of the system's default preset, built for the environment of its example."""

from jaxwm import agents, envs
from jaxwm.schedule import in_words
from jaxwm.types import Word


def schedule(name: str) -> tuple[Word, ...]:
    """The schedule of a system's default preset, for the environment of its example."""
    return agents.make(name, envs.make(agents.find(name).env).spec).schedule


def command(name: str) -> str:
    """The line that trains a system on the environment of its example, or on recordings of it."""
    entry = agents.find(name)
    if entry.video:
        return f"jaxwm train {name} --data DIR --updates {entry.steps}"
    return f"jaxwm train {name} --env {entry.env} --steps {entry.steps}"


def presets(name: str) -> list[str]:
    """A line for each preset of a system: what differs from the defaults of its settings."""
    entry = agents.find(name)
    base, lines = vars(entry.config()), []
    for preset, settings in entry.presets.items():
        changed = ", ".join(f"{field}={value!r}" for field, value in vars(settings).items() if value != base[field])
        lines.append(f"{preset}{' (default)' if preset == entry.default else ''}: {changed or 'as published'}")
    return lines


def describe(name: str) -> str:
    """One system for a terminal. ValueError for a name that is none."""
    entry = agents.find(name)
    baseline = "; a model-free baseline" * entry.baseline
    lines = [f"{name}: {entry.summary}{baseline}", f"{entry.paper}, {entry.year}", ""]
    lines += [f"{what + ':':<10}{getattr(entry, what)}" for what in ("sees", "predicts", "acts")]
    for title, body in (("order", in_words(schedule(name))), ("presets", presets(name)), ("example", [command(name)])):
        lines += ["", f"{title}:", *(f"  {line}" for line in body)]
    return "\n".join(lines)
