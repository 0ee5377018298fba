"""The plan of a run: everything that was asked for. config.json holds just this."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

import jaxwm
from jaxwm import agents
from jaxwm.errors import check_number, check_range, check_types, suggest
from jaxwm.run import directory


@dataclass(frozen=True)
class Plan:
    """What a run is; config.json holds just this."""

    agent: str
    env: str
    settings: Any  # the agent's config
    steps: int
    members: int = 1
    seed: int = 0
    episodes: int = 100
    env_options: dict[str, Any] = field(default_factory=dict)
    checkpoint_minutes: float = 5.0
    keep: int = 2
    tensorboard: bool = False
    gauge: int = 15
    shards: int = 1
    vary: dict[str, list[float]] = field(default_factory=dict)  # hyper-parameters with a value for each member
    score_options: dict[str, Any] = field(default_factory=dict)  # of the environment in which the policy is scored

    def __post_init__(self):
        check_types(self)
        check_range(self, "steps members episodes keep shards", least=1, most=2**31 - 1)
        check_range(self, "seed", least=0, most=2**32 - 1)
        check_range(self, "checkpoint_minutes gauge", least=0)
        if not isinstance(self.settings, config := agents.find(self.agent).config):
            raise ValueError(f"the settings of {self.agent} are a {config.__module__}.Config, not {self.settings!r}")
        for name in ("env_options", "score_options"):
            if not isinstance(options := getattr(self, name), dict):
                raise ValueError(f"{name} must be a dict of the environment's options, not {options!r}")
        if not isinstance(self.vary, dict):
            raise ValueError(f"vary must be a dict of lists with a value for each member, not {self.vary!r}")
        for name, values in self.vary.items():
            if not isinstance(values, list | tuple) or len(values) != self.members:
                raise ValueError(f"vary {name} must be {self.members} numbers, one a member, not {values!r}")
            for value in values:
                check_number(f"vary {name}", value)
                if hasattr(self.settings, name):
                    replace(self.settings, **{name: float(value)})  # in range?

    def to_json(self) -> dict[str, Any]:
        return {"jaxwm": jaxwm.__version__, "jax": jax.__version__, **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote. ValueError where an entry is missing, unknown or out of range."""
        entries = {k: v for k, v in data.items() if k not in ("jaxwm", "jax")}
        _check_entries("", entries, Plan)
        config = agents.find(entries["agent"]).config
        _check_entries("settings.", entries["settings"], config)
        return Plan(**{**entries, "settings": config(**entries["settings"])})


def _check_entries(prefix: str, entries: Any, config: type) -> None:
    """ValueError unless `entries` are an object with fields of the dataclass `config`; those without a default all."""
    if not isinstance(entries, dict):
        raise ValueError(f"{prefix.rstrip('.')} is no object but {entries!r}")
    fields = config.__dataclass_fields__
    for name in entries:
        if name not in fields:
            near = suggest(prefix + name, [prefix + field for field in fields])
            raise ValueError(f"unknown entry {prefix + name!r}; {near}")
    needed = [name for name, entry in fields.items() if entry.default is entry.default_factory is MISSING]
    if missing := [prefix + name for name in needed if name not in entries]:
        raise ValueError(f"the entry {missing[0]!r} is missing")


def read_plan(folder: str | Path) -> Plan:
    """The plan of a run directory. FileNotFoundError where there is none, ValueError where it cannot be used."""
    data = directory.read_config(folder)
    try:
        return Plan.from_json(data)
    except ValueError as error:
        made = f"the run was made by jaxwm {data.get('jaxwm', 'of unknown version')}, this is {jaxwm.__version__}"
        raise ValueError(f"{Path(folder) / directory.CONFIG}: {error} ({made})") from error
