"""The systems, one file each. `AGENTS` has them by name and imports each when it is asked for."""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxwm.agents.registry import AGENTS, MODULES, table
from jaxwm.agents.system import System
from jaxwm.errors import check_jax, suggest
from jaxwm.types import RESERVED, Agent, Mixed, Spec

__all__ = ["AGENTS", "System", "build", "find", "make", "renamed", "settings", "table"]


def __getattr__(name: str) -> Any:
    """`jaxwm.agents.dreamer_v3` and the other modules, imported at first use."""
    if name not in MODULES.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def find(name: str) -> System:
    """The system called `name`; ValueError with the nearest names."""
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; {suggest(name, AGENTS)} (`jaxwm list` shows all)")
    return AGENTS[name]


def renamed(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of system `name` under today's names. ValueError where one is given by its old and its new name."""
    new = find(name).renamed
    for old in options:
        if old in new and new[old] in options:
            raise ValueError(f"{old!r} is the old name of the setting {new[old]!r} of {name}: give one of them")
    return {new.get(option, option): value for option, value in options.items()}


def settings(name: str, preset: str | None = None, **options: Any) -> Any:
    """The settings of system `name`: a preset with changes. ValueError names what is unknown and what there is."""
    system = find(name)
    preset = preset or system.default
    if preset not in system.presets:
        raise ValueError(f"unknown preset {preset!r} of {name}; {suggest(preset, system.presets)}")
    fields = system.config.__dataclass_fields__
    options = renamed(name, options)
    for option in options:
        if option not in fields:
            raise ValueError(f"{name} has no setting {option!r}; {suggest(option, fields)}")
    base = system.presets[preset]
    return system.config(**{**{f: getattr(base, f) for f in fields}, **options})


def make(name: str, spec: Spec, preset: str | None = None, **options: Any) -> Agent:
    """Build a system for an environment: `make("dreamer-v3", env.spec, preset="nano", lr=1e-3)`.
    Raises ValueError for an unknown name, preset or setting, or an observation that no encoder fits."""
    if not isinstance(spec, Spec):
        raise ValueError(f"an agent is built for a jaxwm.types.Spec, such as env.spec, not for a {type(spec).__name__}")
    return build(name, spec, settings(name, preset, **options))


def build(name: str, spec: Spec, config: Any) -> Agent:
    """Build a system with settings that are whole.
    Raises ValueError as `make`, for a game against itself where a system plays none, and for a reserved sensor that a
    system does not understand."""
    check_jax()
    system = find(name)
    if spec.action is None and not system.video:
        raise ValueError(f"{name} learns what actions do, and {spec.name} has no action space")
    if isinstance(spec.action, Mixed) and not system.mixed:
        able = ", ".join(other for other, row in table().items() if row["mixed"])
        raise ValueError(f"{name} cannot act by choices and a vector at once, as {spec.name} asks: take {able}")
    if spec.players > system.players:
        raise ValueError(
            f"{name} plays for one side, and {spec.name} wants moves for both: give it an opponent "
            "(--env-option opponent=random or mcts), or take alphazero"
        )
    for key in RESERVED:
        if isinstance(spec.obs, Mapping) and key in spec.obs and key not in system.obeys:
            able = [other for other, row in table().items() if key in row["obeys"]]
            raise ValueError(
                f"{name} does not understand the reserved sensor {key!r} ({RESERVED[key]}) of {spec.name}: take "
                f"{', '.join(able)}, or rename or drop the sensor"
            )
    return system.make(spec, config)
