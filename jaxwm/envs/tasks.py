"""The tasks of each suite by name, from tasks.toml: nobody imports a simulator to list them.

Suites of `VERSIONED` list their tasks as their library names them, with a version. Without one a name means the newest.
"""

import re
import tomllib
from importlib.resources import files

TASKS: dict[str, list[str]] = {
    suite: text.split()
    for suite, text in tomllib.loads(files("jaxwm.envs").joinpath("tasks.toml").read_text(encoding="utf-8")).items()
}

VERSIONED = frozenset(
    "babyai box2d classic football highway jumanji metaworld minigrid mujoco myosuite playground procgen robotics toy "
    "vizdoom".split()
)


def bare(task: str) -> str:
    """`task` without its version: "Hopper" of "Hopper-v4"."""
    return re.sub(r"-v\d+$", "", task)


def newest(suite: str) -> dict[str, str]:
    """Name without a version -> the newest task of that name, of a suite that has versions."""
    found: dict[str, str] = {}
    for task in sorted(TASKS[suite], key=_version):
        found[bare(task)] = task
    return found


def versioned(suite: str, task: str) -> str:
    """The full name of `task`: "Hopper-v5" of "Hopper", "Hopper-v4" of itself."""
    return newest(suite).get(task, task)


def accepted(suite: str) -> list[str]:
    """All names that may be asked for: those of the list, and each without its version."""
    return [*TASKS[suite], *newest(suite)] if suite in VERSIONED else TASKS[suite]


def _version(task: str) -> int:
    return int(task.rpartition("-v")[2])
