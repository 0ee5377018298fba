"""Steps per second of each suite of environments, and how many environments make it fastest.

    python -m benchmarks.suites                         # the first task of each suite below, a minute or two
    python -m benchmarks.suites --only dmc/CheetahRun --envs 1 4 --seconds 5
    python -m benchmarks.suites --write                 # and renew results/speed-suite-*.json, for docs.tables

Steps of all environments together, per second of wall time and per second of this process's CPU time (on a machine that
others use too the better measure; ViZDoom works in processes of its own, which it does not count). Actions are random,
all checks of `jaxwm.envs` included; a pure environment runs inside one compiled scan. Building, the first reset and
compiling do not count."""

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
from typing import Any, NamedTuple

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
    "atari/Pong": {}, "babyai/GoToRedBall": {}, "box2d/LunarLander": {}, "box2d/CarRacing": {}, "brax/ant": {},
    "classic/CartPole": {}, "continuous/CartPole": {}, "craftax/Classic-Symbolic": {}, "dmc/CheetahRun": {},
    "dmc/CheetahRun pixels": {"pixels": 64}, "football/academy_empty_goal": {}, "gymnax/Catch-bsuite": {},
    "highway/Highway": {}, "jumanji/Snake": {}, "jumanji-jax/Snake": {}, "metaworld/Reach": {},
    "minatar/Breakout": {}, "minigrid/DoorKey-8x8": {}, "mujoco/Hopper": {}, "myosuite/myoElbowPose1D6MRandom": {},
    "pgx/TicTacToe": {}, "playground/Go1JoystickFlatTerrain": {}, "probe/Recall": {}, "procgen/CoinrunEasy": {},
    "robotics/FetchReach": {}, "tabular/DynaMaze": {}, "toy/Taxi": {}, "vizdoom/Basic": {},
    "xminigrid/MiniGrid-DoorKey-8x8": {},
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


class Rate(NamedTuple):
    """Steps of all environments per second of wall time, and of CPU time."""

    wall: float
    cpu: float


def rate(env: Env, seconds: float) -> Rate:
    """Time an environment for so many seconds."""
    return (_pure if env.pure else _host)(env, seconds)


def _pure(env: Env, seconds: float) -> Rate:
    def body(state: Any, key: jax.Array) -> tuple[Any, None]:
        return env.step(state, random_action(env.spec.action, key, env.num_envs))[0], None

    many = jax.jit(lambda state, key: jax.lax.scan(body, state, jax.random.split(key, ROWS))[0])
    state = jax.jit(lambda key: env.reset(key)[0])(jax.random.key(0))
    state = jax.block_until_ready(many(state, jax.random.key(1)))

    def once(turn: int) -> None:
        nonlocal state
        state = jax.block_until_ready(many(state, jax.random.key(turn)))

    return _counted(once, seconds, ROWS * env.num_envs)


def _host(env: Env, seconds: float) -> Rate:
    handle, _ = env.reset(jax.random.split(jax.random.key(0), 1))
    draw = jax.jit(lambda key: random_action(env.spec.action, key, ROWS * env.num_envs))
    action = np.asarray(draw(jax.random.key(1)))
    action = action.reshape(ROWS, 1, env.num_envs, *action.shape[1:])
    env.step(handle, action[0])
    found = _counted(lambda turn: env.step(handle, action[turn % ROWS]), seconds, env.num_envs)
    env.close(handle)
    return found


def _counted(once: Callable[[int], Any], seconds: float, steps: int) -> Rate:
    """The rate of a function that takes so many steps."""
    began, used, turn = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - began) < seconds or not turn:
        once(turn)
        turn += 1
    return Rate(turn * steps / passed, turn * steps / (time.process_time() - used))


def measured(name: str, options: dict[str, Any], numbers: tuple[int, ...], seconds: float) -> dict[int, Rate]:
    """Number of environments -> rate."""
    return {number: rate(envs.make(name, num_envs=number, **options), seconds) for number in numbers}


def rounded(value: float) -> int:
    """Two figures: more is noise."""
    return int(float(f"{value:.2g}"))


def main() -> int:
    options, console = tyro.cli(Options, prog="benchmarks.suites"), Console()
    asked = {name: {"pixels": 64} if name.endswith(" pixels") else {} for name in options.only} or TASKS
    table = Table(
        "environment", *(f"{number} envs" for number in options.envs), title="Steps per second (per CPU second)"
    )
    for name, more in asked.items():
        try:
            rates = measured(name.removesuffix(" pixels"), more, options.envs, options.seconds)
        except (ImportError, OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        best = fastest(rates)
        told = {number: f"{rounded(one.wall):,} ({rounded(one.cpu):,})" for number, one in rates.items()}
        table.add_row(name, *(f"[bold]{text}[/]" if number == best else text for number, text in told.items()))
        if options.write:
            _write(name, rates)
    console.print(table)
    return 0


def fastest(rates: dict[int, Rate]) -> int:
    """The number of environments with the most steps per second."""
    return max(rates, key=lambda number: rates[number].wall)


def _write(name: str, rates: dict[int, Rate]) -> None:
    """One results file for each environment."""
    best, one = fastest(rates), rates[min(rates)]
    suite = name.split("/")[0] + name.partition(" ")[2]
    same = [other for other in TASKS if other.split("/")[0] == name.split("/")[0] and " " not in other]
    label = name.split("/")[1].lower() if " " not in name and len(same) > 1 else ""
    file = f"speed-suite-{suite}{'-' if label else ''}{label}"
    children = suite == "vizdoom"
    commit = subprocess.check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, text=True).strip()
    row = dict.fromkeys(FIELDS) | dict(
        name=file, table="speed-suites", environment=name, command="python -m benchmarks.suites --write",
        metric="steps per second of all environments", score=rounded(rates[best].wall),
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        device=f"{os.cpu_count()} CPU cores, {platform.machine()}",
        versions={"jax": jax.__version__, "envpool": version("envpool")}, source=commit,
        more={"envs": best, "one": rounded(one.wall), "cpu": None if children else rounded(rates[best].cpu)},
    )  # fmt: skip
    (ROOT / "results" / f"{file}.json").write_text(dumped(row), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
