"""The names of environments: suites, their tasks, and those that were registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxwm.envs import envpool, gymnax, pgx
from jaxwm.envs.continuous import CONTINUOUS
from jaxwm.envs.probes import PROBES
from jaxwm.envs.pure import check_num_envs
from jaxwm.envs.tabular import TABULAR
from jaxwm.errors import check_jax, check_options, nearest
from jaxwm.types import Env

Constructor = Callable[..., Env]
"""`constructor(num_envs, **options) -> Env`."""

_SUITES: dict[str, tuple[Callable[..., Env], tuple[str, ...]]] = {
    "atari": (envpool.atari, envpool.ATARI),
    "box2d": (envpool.box2d, envpool.BOX2D),
    "classic": (envpool.classic, envpool.CLASSIC),
    "dmc": (envpool.dmc, envpool.DMC),
    "gymnax": (gymnax.gymnax, gymnax.GYMNAX),
    "minatar": (gymnax.minatar, gymnax.MINATAR),
    "pgx": (pgx.pgx, pgx.PGX),
    "vizdoom": (envpool.vizdoom, envpool.VIZDOOM),
}
"""Suite -> constructor `(task, num_envs, **options) -> Env` and its tasks."""

SCORED: dict[str, dict[str, Any]] = {"pgx": {"opponent": "random"}}
"""Suite -> options with which its environments are scored, where that needs others: self-play has no score."""

_BUILT_IN = {f"{suite}/{task}" for suite, (_, tasks) in _SUITES.items() for task in tasks}
_BUILT_IN |= {f"continuous/{task}" for task in CONTINUOUS}
_BUILT_IN |= {f"probe/{task}" for task in PROBES} | {f"tabular/{task}" for task in TABULAR}

_registered: dict[str, Constructor] = {}


def make(name: str, num_envs: int = 1, **options: Any) -> Env:
    """The environment `name` ("suite/Task", case matters), `num_envs` of it for each member.

    The options of a suite are the arguments of its constructor: `jaxwm.envs.envpool.atari`, `.dmc`, `.classic`,
    `.box2d`, `.vizdoom`, `jaxwm.envs.gymnax.gymnax`, `.minatar`, `jaxwm.envs.pgx.pgx`, and the functions in
    `jaxwm.envs.probes`, `.continuous` and `.tabular`.

    Raises ValueError for an unknown name or option (naming the nearest) and for a value out of range.
    """
    check_jax()
    if name not in _registered and name not in _BUILT_IN:
        raise ValueError(_unknown(name))
    check_num_envs(num_envs)
    if name in _registered:
        constructor, arguments = _registered[name], (num_envs,)
    else:
        suite, task = name.split("/", 1)
        single = {"continuous": CONTINUOUS, "probe": PROBES, "tabular": TABULAR}
        constructor = single[suite][task] if suite in single else _SUITES[suite][0]
        arguments = (num_envs,) if suite in ("continuous", "probe") else (task, num_envs)
    _check_signature(name, constructor, len(arguments), options)
    env = constructor(*arguments, **options)
    if not isinstance(env, Env):
        raise ValueError(f"the constructor of {name} returned {type(env).__name__}, not an Env")
    return env


def names() -> dict[str, list[str]]:
    """Suite -> sorted tasks, the registered ones included."""
    found: dict[str, list[str]] = {}
    for name in sorted(_BUILT_IN | set(_registered)):
        suite, task = name.split("/", 1)
        found.setdefault(suite, []).append(task)
    return found


def register(name: str, constructor: Constructor) -> None:
    """Give the name "suite/Task" to `constructor(num_envs, **options) -> Env`, pure or host.

    A name may be registered again, the last one counts (a notebook's cell is run twice). Raises ValueError for a
    built-in name and for one that is not "suite/Task".
    """
    suite, _, task = name.partition("/")
    if not suite or not task or "/" in task or name != name.strip():
        raise ValueError(f"an environment is named 'suite/Task', not {name!r}")
    if name in _BUILT_IN:
        raise ValueError(f"{name!r} is built in: choose another name, such as 'my/{task}'")
    if not callable(constructor):
        raise ValueError(f"the constructor of {name!r} must be a function (num_envs, **options) -> Env")
    _registered[name] = constructor


def _unknown(name: Any) -> str:
    close = nearest(str(name), _BUILT_IN | set(_registered))
    hint = f"; the nearest names are {', '.join(close)}" if close else ""
    form = "" if "/" in str(name) else " (names are 'suite/Task')"
    return (
        f"unknown environment {name!r}{form}{hint}; `jaxwm list` shows all names, and --import FILE.py brings your own"
    )


def _check_signature(name: str, constructor: Callable[..., Env], positional: int, options: dict[str, Any]) -> None:
    """ValueError for an option that `constructor` does not take; one with `**options` checks them itself."""
    parameters = list(inspect.signature(constructor).parameters.values())
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return
    check_options(name, options, [parameter.name for parameter in parameters[positional:]])
