"""The names of the systems and the modules they live in; a module is imported when its system is asked for.

`table()` reads what `jaxwm list` and `--help` print without importing any; `python -m docs.lineage` writes it."""

import dataclasses
import importlib
import json
import pkgutil
from collections import UserDict
from functools import cache
from typing import Any

from jaxwm.agents.system import System

NAMES = """dreamer-v3 dreamer-v2 dreamer-v1 planet dyna-q pets world-models alphazero muzero efficientzero storm iris
token-dyna diamond mbpo grbal mb-mpo tdmpc2 simple genie""".split()
BASELINES = "sac ppo".split()
MODULES = {name: name.replace("-", "_") for name in (*NAMES, *BASELINES)}
TABLE = "table.json"


class Registry(UserDict[str, Any]):
    """Systems by name, imported at first use; systems of one's own can be added."""

    def __getitem__(self, name: str) -> System:
        if isinstance(self.data[name], str):
            self.data[name] = importlib.import_module(f"jaxwm.agents.{self.data[name]}").SYSTEM
        return self.data[name]


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
