"""Steps per second of each suite of environments, and how many environments make it fastest.

    python -m benchmarks.suites                         # the first task of each suite below, a minute or two
    python -m benchmarks.suites --only dmc/CheetahRun --envs 1 4 --seconds 5
    python -m benchmarks.suites --write                 # and renew results/speed-suite-*.json, for docs.tables

Steps of all environments together, per second of wall time, with random actions and all checks of `jaxwm.envs`; a pure
environment runs inside one compiled scan. Building, the first reset and compiling do not count."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from docs.record import dumped
from docs.tables import FIELDS, ROOT
from jaxwm import envs
from jaxwm.spaces import random_action
from jaxwm.types import Env

TASKS: dict[str, dict[str, Any]] = {
    "atari/Pong": {}, "babyai/GoToRedBall": {}, "box2d/LunarLander": {}, "box2d/CarRacing": {}, "classic/CartPole": {},
    "continuous/CartPole": {}, "dmc/CheetahRun": {}, "dmc/CheetahRun pixels": {"pixels": 64},
    "football/academy_empty_goal": {}, "gymnax/Catch-bsuite": {}, "highway/Highway": {}, "jumanji/Snake": {},
    "metaworld/Reach": {}, "minatar/Breakout": {}, "minigrid/DoorKey-8x8": {}, "mujoco/Hopper": {},
    "myosuite/myoElbowPose1D6MRandom": {}, "pgx/TicTacToe": {}, "playground/Go1JoystickFlatTerrain": {},
    "probe/Recall": {}, "procgen/CoinrunEasy": {}, "robotics/FetchReach": {}, "tabular/DynaMaze": {}, "toy/Taxi": {},
    "vizdoom/Basic": {},
}  # fmt: skip
"""One task of each suite at least, with its options."""

ROWS = 64  # steps of a compiled scan


@dataclass(frozen=True)
class Options:
    """Measure environments without an agent."""

    only: tuple[str, ...] = ()
    """Tasks to measure in place of the usual ones; " pixels" after a name asks for images of 64 x 64."""
    envs: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of environments to try."""
    seconds: float = 1.0
    """Time for each number."""
    write: bool = False
    """Renew results/speed-suite-*.json."""


def rate(env: Env, seconds: float) -> float:
    """Steps of all environments per second."""
    return (_pure if env.pure else _host)(env, seconds)


def _pure(env: Env, seconds: float) -> float:
    def body(state: Any, key: jax.Array) -> tuple[Any, None]:
        return env.step(state, random_action(env.spec.action, key, env.num_envs))[0], None

    many = jax.jit(lambda state, key: jax.lax.scan(body, state, jax.random.split(key, ROWS))[0])
    state = jax.jit(lambda key: env.reset(key)[0])(jax.random.key(0))
    state = jax.block_until_ready(many(state, jax.random.key(1)))

    def once(turn: int) -> None:
        nonlocal state
        state = jax.block_until_ready(many(state, jax.random.key(turn)))

    return _counted(once, seconds) * ROWS * env.num_envs


def _host(env: Env, seconds: float) -> float:
    handle, _ = env.reset(jax.random.split(jax.random.key(0), 1))
    draw = jax.jit(lambda key: random_action(env.spec.action, key, ROWS * env.num_envs))
    action = np.asarray(draw(jax.random.key(1)))
    action = action.reshape(ROWS, 1, env.num_envs, *action.shape[1:])
    env.step(handle, action[0])
    turns = _counted(lambda turn: env.step(handle, action[turn % ROWS]), seconds)
    env.close(handle)
    return turns * env.num_envs


def _counted(once: Callable[[int], Any], seconds: float) -> float:
    """Calls of `once` per second."""
    began, turn = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds or not turn:
        once(turn)
        turn += 1
    return turn / passed


def measured(name: str, options: dict[str, Any], numbers: tuple[int, ...], seconds: float) -> dict[int, float]:
    """Number of environments -> steps per second."""
    return {number: rate(envs.make(name, num_envs=number, **options), seconds) for number in numbers}


def rounded(value: float) -> int:
    """Two figures: more is noise."""
    return int(float(f"{value:.2g}"))


def main() -> int:
    options, console = tyro.cli(Options, prog="benchmarks.suites"), Console()
    asked = {name: {"pixels": 64} if name.endswith(" pixels") else {} for name in options.only} or TASKS
    table = Table("environment", *(f"{number} envs" for number in options.envs), title="Steps per second")
    found = {}
    for name, more in asked.items():
        try:
            rates = measured(name.removesuffix(" pixels"), more, options.envs, options.seconds)
        except (ImportError, OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        best = max(rates, key=rates.__getitem__)
        table.add_row(name, *(f"[bold]{rounded(r):,}[/]" if n == best else f"{rounded(r):,}" for n, r in rates.items()))
        found[name] = rates
    console.print(table)
    if options.write:
        for name, rates in found.items():
            _write(name, rates)
    return 0


def _write(name: str, rates: dict[int, float]) -> None:
    """One results file for each environment."""
    fastest = max(rates, key=rates.__getitem__)
    suite = name.split("/")[0] + name.partition(" ")[2]
    same = [other for other in TASKS if other.split("/")[0] == name.split("/")[0] and " " not in other]
    label = name.split("/")[1].lower() if " " not in name and len(same) > 1 else ""
    file = f"speed-suite-{suite}{'-' if label else ''}{label}"
    commit = subprocess.check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, text=True).strip()
    row = dict.fromkeys(FIELDS) | dict(
        name=file, table="speed-suites", environment=name, command="python -m benchmarks.suites --write",
        metric="steps per second of all environments", score=rounded(rates[fastest]),
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        device=f"{os.cpu_count()} CPU cores, {platform.machine()}",
        versions={"jax": jax.__version__, "envpool": version("envpool")}, source=commit,
        more={"envs": fastest, "one": rounded(rates[min(rates)])},
    )  # fmt: skip
    (ROOT / "results" / f"{file}.json").write_text(dumped(row), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
