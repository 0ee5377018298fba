"""The systems, one file each. `AGENTS` is the whole registry."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxwm.agents import alphazero, dreamer_v3, dyna_q
from jaxwm.errors import suggest
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
    "dyna-q": Entry(
        dyna_q.make,
        dyna_q.Config,
        dyna_q.PRESETS,
        "maze",
        "tabular Q-learning with planning in a learned model; Dyna-Q+ with --bonus (Sutton 1990)",
    ),
    "alphazero": Entry(
        alphazero.make,
        alphazero.Config,
        alphazero.PRESETS,
        "tictactoe",
        "tree search in the environment itself, learned from self-play (Silver et al. 2018)",
    ),
}


def find(name: str) -> Entry:
    """The system called `name`; ValueError with the nearest names."""
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; {suggest(name, AGENTS)} (`jaxwm list` shows all)")
    return AGENTS[name]


def settings(name: str, preset: str | None = None, **options: Any) -> Any:
    """The settings of system `name`: a preset with changes. ValueError names what is unknown and what there is."""
    entry = find(name)
    preset = preset or entry.default
    if preset not in entry.presets:
        raise ValueError(f"unknown preset {preset!r} of {name}; {suggest(preset, entry.presets)}")
    fields = entry.config.__dataclass_fields__
    for option in options:
        if option not in fields:
            raise ValueError(f"{name} has no setting {option!r}; {suggest(option, fields)}")
    base = entry.presets[preset]
    return entry.config(**{**{f: getattr(base, f) for f in fields}, **options})


def make(name: str, spec: Spec, preset: str | None = None, **options: Any) -> Agent:
    """Build a system for an environment: `make("dreamer-v3", env.spec, preset="nano", lr=1e-3)`.

    Raises ValueError for an unknown name, preset or setting, or an observation that no encoder fits.
    """
    if not isinstance(spec, Spec):
        raise ValueError(f"an agent is built for a jaxwm.types.Spec, such as env.spec, not for a {type(spec).__name__}")
    return find(name).make(spec, settings(name, preset, **options))
