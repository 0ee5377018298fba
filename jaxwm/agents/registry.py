"""The names of the systems and the modules they live in; a module is imported when its system is asked for.

`table()` reads what `jaxwm list` and `--help` print, without importing any: `python -m docs.lineage` writes it
from every `SYSTEM`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Iterator, MutableMapping
from functools import cache
from typing import Any

from jaxwm.agents.system import System

MODULES = {
    "dreamer-v3": "dreamer_v3",
    "dreamer-v2": "dreamer_v2",
    "dreamer-v1": "dreamer_v1",
    "planet": "planet",
    "dyna-q": "dyna_q",
    "pets": "pets",
    "world-models": "world_models",
    "alphazero": "alphazero",
    "muzero": "muzero",
    "efficientzero": "efficientzero",
}

TABLE = "table.json"


class Registry(MutableMapping[str, System]):
    """Systems by name, imported at first use; systems of one's own can be added."""

    def __init__(self, modules: dict[str, str]):
        self._entries: dict[str, str | System] = dict(modules)

    def __getitem__(self, name: str) -> System:
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = importlib.import_module(f"jaxwm.agents.{entry}").SYSTEM
        return entry

    def __setitem__(self, name: str, system: System) -> None:
        self._entries[name] = system

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without importing it

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


AGENTS = Registry(MODULES)


def row(system: System) -> dict[str, Any]:
    """A system as plain data: its presets by name only, and nothing that is code."""
    skip = ("make", "config", "presets")
    data = {f.name: getattr(system, f.name) for f in dataclasses.fields(system) if f.name not in skip}
    return json.loads(json.dumps({"presets": list(system.presets), **data}))


@cache
def table() -> dict[str, dict[str, Any]]:
    """`{name: row}` of all systems, as the package's file has it."""
    return json.loads(pkgutil.get_data("jaxwm.agents", TABLE) or "{}")


def printed() -> str:
    """The text of that file, from every `SYSTEM`."""
    return json.dumps({name: row(AGENTS[name]) for name in MODULES}, indent=1) + "\n"
