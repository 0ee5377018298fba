"""Names of what a task shows and does: entries of vectors, planes of images, actions (the table is names.toml)."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from jaxwm.types import Box, Discrete, Spec

MOST_ENTRIES = 4  # of a continuous action that are written out


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("jaxwm.studio").joinpath("names.toml").read_text(encoding="utf-8"))


def task(name: str) -> str:
    """The task of an environment's name, without suite and version: CartPole for gymnax/CartPole-v1."""
    return name.split("/")[-1].split("-")[0]


def _look_up(kind: str, env: str, size: int) -> list[str] | None:
    """The `size` names of an environment, or None where they are not known."""
    table, short = _table()[kind], task(env)
    found = table.get(f"{env.split('/')[0]}/{short}") or (None if env.startswith("atari/") else table.get(short))
    return found if found and len(found) == size else None


def numbers(env: str, sensor: str, size: int) -> list[str]:
    """Names of the entries of a vector: those of the table, or the sensor's with a number."""
    known = _look_up("numbers", env, size)
    return known or ([sensor] if size == 1 else [f"{sensor}[{i}]" for i in range(size)])


def planes(env: str, count: int) -> list[str]:
    """Names of the channels of 0/1 planes."""
    return _look_up("planes", env, count) or [f"plane {i}" for i in range(count)]


def actions(spec: Spec, size: int) -> list[str] | None:
    """Names of `size` discrete choices or continuous entries, or None where they are not known."""
    if found := _look_up("actions", spec.name, size):
        return found
    suite, full = spec.name.split("/")[0], _table()["full"]
    if suite == "atari":
        bits = next((int(bits, 16) for bits, games in _table()["atari"].items() if task(spec.name) in games), 2**18 - 1)
        some = [name for i, name in enumerate(full["atari"]) if bits >> i & 1]
        return next((names for names in (some, full["atari"]) if len(names) == size), None)
    return full["minatar"] if suite == "minatar" and size == len(full["minatar"]) else None


def action(spec: Spec, value: Any) -> str:
    """One action of an environment in a few words."""
    if isinstance(spec.action, Discrete):
        known = actions(spec, spec.action.n)
        return known[int(value)] if known else f"action {int(value)}"
    if isinstance(spec.action, Box):
        names = actions(spec, spec.action.size) or [""] * spec.action.size
        words = [f"{name} {plain(x, '+')}".strip() for name, x in zip(names, np.ravel(value), strict=True)]
        return ", ".join(words[:MOST_ENTRIES]) + (", ..." if len(words) > MOST_ENTRIES else "")
    return f"action {' '.join(map(str, np.ravel(value)))}"


def plain(value: Any, sign: str = "") -> str:
    """Two digits, and never a negative zero."""
    return f"{round(float(value), 2) + 0.0:{sign}.2f}"
