"""The names of environments: suites, their tasks, and those that were registered."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxwm.envs import envpool, families, gymnax, minigrid, tasks, vizdoom
from jaxwm.envs.continuous import CONTINUOUS
from jaxwm.envs.pgx import PGX
from jaxwm.envs.probes import PROBES
from jaxwm.envs.pure import check_num_envs
from jaxwm.envs.tabular import TABULAR
from jaxwm.errors import check_jax, check_options, nearest
from jaxwm.types import Env

Constructor = Callable[..., Env]
"""`constructor(num_envs, **options) -> Env`."""

SCORED: dict[str, dict[str, Any]] = {"pgx": {"opponent": "random"}}
"""Suite -> options with which its environments are scored, where that needs others: self-play has no score."""

_SUITES: dict[str, Callable[..., Env]] = dict(
    atari=envpool.atari, babyai=minigrid.babyai, box2d=envpool.box2d, classic=envpool.classic, dmc=envpool.dmc,
    football=families.football, gymnax=gymnax.gymnax, highway=families.highway, jumanji=families.jumanji,
    metaworld=families.metaworld, minatar=gymnax.minatar, minigrid=minigrid.minigrid, mujoco=families.mujoco,
    myosuite=families.myosuite, playground=families.playground, procgen=families.procgen, robotics=families.robotics,
    toy=families.toy, vizdoom=vizdoom.vizdoom,
)  # fmt: skip
"""Suite of tasks.toml -> constructor `(task, num_envs, **options) -> Env`."""

OWN: dict[str, dict[str, Constructor]] = dict(continuous=CONTINUOUS, pgx=PGX, probe=PROBES, tabular=TABULAR)
"""Suite -> its tasks, where each has a constructor of its own."""

_BUILT_IN: dict[str, Constructor] = {
    f"{suite}/{task}": OWN[suite][task] if suite in OWN else partial(_SUITES[suite], task)
    for suite in tasks.TASKS
    for task in tasks.accepted(suite)
}

_registered: dict[str, Constructor] = {}


def make(name: str, num_envs: int = 1, **options: Any) -> Env:
    """The environment `name` ("suite/Task", case matters), `num_envs` of it for each member.

    The options of a suite are the arguments of its constructor: `jaxwm.envs.envpool.atari`, `.dmc`, `.classic`,
    `.box2d`, `jaxwm.envs.vizdoom.vizdoom`, `jaxwm.envs.minigrid.minigrid`, `.babyai`, the other suites in
    `jaxwm.envs.families`, `jaxwm.envs.gymnax.gymnax`, `.minatar`, `jaxwm.envs.pgx.pgx`, and the functions in
    `jaxwm.envs.probes`, `.continuous` and `.tabular`.

    Raises ValueError for an unknown name or option (naming the nearest) and for a value out of range."""
    check_jax()
    constructor = _registered.get(name, _BUILT_IN.get(name))
    if constructor is None:
        close = nearest(str(name), _BUILT_IN | _registered)
        hint = f"; the nearest names are {', '.join(close)}" if close else ""
        form = "" if "/" in str(name) else " (names are 'suite/Task')"
        advice = "`jaxwm list` shows all names, and --import FILE.py brings your own"
        raise ValueError(f"unknown environment {name!r}{form}{hint}; {advice}")
    check_num_envs(num_envs)
    parameters = list(inspect.signature(constructor).parameters.values())
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):  # else it checks them itself
        check_options(name, options, [parameter.name for parameter in parameters[1:]])
    env = constructor(num_envs, **options)
    if not isinstance(env, Env):
        raise ValueError(f"the constructor of {name} returned {type(env).__name__}, not an Env")
    return env


def names() -> dict[str, list[str]]:
    """Suite -> sorted tasks, the registered ones included. Where they have versions, a name without one is the newest:
    "mujoco/Hopper" is "mujoco/Hopper-v5"."""
    found = {suite: list(listed) for suite, listed in tasks.TASKS.items()}
    for name in _registered:
        suite, task = name.split("/", 1)
        found.setdefault(suite, []).append(task)
    return {suite: sorted(found[suite]) for suite in sorted(found)}


def register(name: str, constructor: Constructor) -> None:
    """Give the name "suite/Task" to `constructor(num_envs, **options) -> Env`, pure or host.
    A name may be registered again, the last one counts (a notebook's cell is run twice). Raises ValueError for a
    built-in name and for one that is not "suite/Task"."""
    suite, _, task = name.partition("/")
    if not suite or not task or "/" in task or name != name.strip():
        raise ValueError(f"an environment is named 'suite/Task', not {name!r}")
    if name in _BUILT_IN:
        raise ValueError(f"{name!r} is built in: choose another name, such as 'my/{task}'")
    if not callable(constructor):
        raise ValueError(f"the constructor of {name!r} must be a function (num_envs, **options) -> Env")
    _registered[name] = constructor
