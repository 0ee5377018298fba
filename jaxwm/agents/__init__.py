"""The systems, one file each. `AGENTS` is the whole registry."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from jaxwm.agents import dreamer_v3
from jaxwm.types import Agent, Spec


class Entry(NamedTuple):
    """A system: its constructor `(spec, config) -> Agent`, its settings, and its presets by name."""

    make: Any
    config: type
    presets: dict[str, Any]
    default: str  # preset used when none is named
    summary: str


AGENTS: dict[str, Entry] = {
    "dreamer-v3": Entry(
        dreamer_v3.make,
        dreamer_v3.Config,
        dreamer_v3.PRESETS,
        "nano",
        "recurrent state-space model, actor-critic inside dreams (Hafner et al. 2023)",
    ),
}


def find(name: str) -> Entry:
    """The system called `name`; ValueError with the nearest names."""
    if name not in AGENTS:
        near = difflib.get_close_matches(name, AGENTS, 3, 0.3) or sorted(AGENTS)
        raise ValueError(f"unknown agent {name!r}; did you mean {', '.join(near)}? `jaxwm list` shows all")
    return AGENTS[name]


def settings(name: str, preset: str | None = None, **options: Any) -> Any:
    """The settings of system `name`: a preset with changes. ValueError names what is unknown and what there is."""
    entry = find(name)
    preset = preset or entry.default
    if preset not in entry.presets:
        raise ValueError(f"unknown preset {preset!r} of {name}; there are {', '.join(entry.presets)}")
    fields = entry.config.__dataclass_fields__
    unknown = [option for option in options if option not in fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, 3, 0.3)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(fields)}"
        raise ValueError(f"{name} has no setting {unknown[0]!r}{hint}")
    base = entry.presets[preset]
    return entry.config(**{**{f: getattr(base, f) for f in fields}, **options})


def make(name: str, spec: Spec, preset: str | None = None, **options: Any) -> Agent:
    """Build a system for an environment: `make("dreamer-v3", env.spec, preset="nano", lr=1e-3)`.

    Raises ValueError for an unknown name, preset or setting, or an observation that no encoder fits.
    """
    return find(name).make(spec, settings(name, preset, **options))
