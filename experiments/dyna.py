"""Dyna-Q and Dyna-Q+: figures 8.2, 8.4 and 8.5 of Sutton & Barto (2018), and FrozenLake and Taxi against real steps.

Expected: Dyna maze with n = 0, 5 and 50: first episode of at most 20 steps on average 28, 6 and 3. Reward after the
          change, 30 runs: blocking maze Dyna-Q+ 41 to 95, Dyna-Q median 0; shortcut maze 209 to 232 and 153 to 170.
          Steps until the worst of 5 seeds reaches the goal, with planning and without: FrozenLake 4x4 (0.70)
          9,002 and 46,502; 8x8 (0.85) 9,002 and not in 100,002; Taxi (7.7) 11,502 and 73,502.
Time:     eight minutes on one core of a busy machine.
Command:  python -m experiments.dyna

Each experiment is a population; every run is a member with a seed of its own. The page and its figures are written to
runs/dyna/. Real steps are those of the environment, without the resets between episodes. Letters: M members, K points.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxwm import agents, envs
from jaxwm.envs import tabular
from jaxwm.errors import check_number
from jaxwm.report import charts, document
from jaxwm.run.machine import use_compilation_cache
from jaxwm.training.evaluation import evaluator
from jaxwm.training.life import Cursor, member_keys
from jaxwm.training.trainer import Trainer
from jaxwm.types import Agent, Env

SHORTEST, TARGET = 14, 20
"""Steps of the shortest way through the Dyna maze, and of an episode that counts as good."""

EPISODES, SEEDS, FIRST = 1000, 5, 500
"""Of the learning curves: episodes of an evaluation, members, environment steps before the first evaluation."""


class Trained(NamedTuple):
    """Episodes of each member, float `[E, 3]`: real steps until its end, its length, its return; agent and states."""

    episodes: list[np.ndarray]
    agent: Agent
    state: Any


def build(task: str, preset: str = "maze", **options: Any) -> tuple[Agent, Env]:
    """Dyna-Q and one environment for it."""
    env = envs.make(f"tabular/{task}")
    return agents.make("dyna-q", env.spec, preset, **options), env


def chunks(agent: Agent, env: Env, members: int, size: int = 1024) -> Iterator[tuple[int, Any, list[dict[str, Any]]]]:
    """Train for ever: environment steps, states and the new episodes, after every `size` steps."""
    trainer = Trainer(agent, env, members, capacity=16, max_iterations=size)
    life, cursor = trainer.init(0), Cursor()
    while True:
        life, cursor, report = trainer.run(life, cursor, size)
        yield int(life.counters.steps), life.agent, report.episodes


def train(task: str, members: int, steps: int = 0, episodes: int = 0, **options: Any) -> Trained:
    """Train until every member has so many real steps and episodes."""
    agent, env = build(task, **options)
    found: list[list[tuple[float, float]]] = [[] for _ in range(members)]
    for taken, state, new in chunks(agent, env, members):  # a step between two episodes is no real one
        for episode in new:
            found[episode["member"]].append((episode["length"], episode["return"]))
        if all(taken - len(each) >= steps and len(each) >= episodes for each in found):
            tables = [np.array(each, float).reshape(-1, 2) for each in found]
            return Trained([np.column_stack([t[:, 0].cumsum(), t]) for t in tables], agent, state)
    raise AssertionError("chunks never end")


def lengths(trained: Trained) -> np.ndarray:
    """Steps of each episode, mean over members; as many as all members have."""
    count = min(map(len, trained.episodes))
    return np.mean([each[:count, 1] for each in trained.episodes], 0)


def first_good(found: np.ndarray) -> int:
    """The first episode, from 1, with at most 20 steps."""
    return int(np.argmax(found <= TARGET)) + 1


def rewards(trained: Trained, steps: int) -> np.ndarray:
    """Cumulative reward after each of the first real steps, `[steps + 1, M]`."""
    out = np.zeros((steps + 1, len(trained.episodes)))
    for m, each in enumerate(trained.episodes):
        each = each[each[:, 0] <= steps]
        out[each[:, 0].astype(int), m] = each[:, 2]  # rewards of mazes come with the end of an episode
    return out.cumsum(0)


def scores(label: str, task: str, members: int, steps: int, **options: Any) -> charts.Series:
    """Greedy returns of the members `[K, M]`, means of 1,000 episodes, at environment steps `[K]` a quarter apart."""
    agent, env = build(task, **options)
    play = evaluator(agent, envs.make(f"tabular/{task}", num_envs=EPISODES), EPISODES)
    points = {}
    for taken, state, _ in chunks(agent, env, members, FIRST):
        if taken >= min(steps, max(FIRST, 1.25 * max(points, default=0))):
            points[taken] = play(state, member_keys(1, members)).means()
        if taken >= steps:
            break
    return charts.Series(label, options["planning"] == 0, np.array(list(points)), np.array(list(points.values())))


def steps_to(curve: charts.Series, goal: float) -> int | None:
    """Environment steps after which even the worst member reaches the goal, for the first time."""
    there = (curve.values >= goal).all(1)
    return int(curve.steps[np.argmax(there)]) if there.any() else None


# --- The experiments ----------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A figure, and rows of the table: setting, what was measured, what is expected."""

    figure: Figure
    rows: list[list[str]]


def maze(members: int) -> Result:
    """Figure 8.2: steps per episode of the Dyna maze with 0, 5 and 50 planning updates."""
    expected = {0: (691, 28), 5: (166, 6), 50: (40, 3)}  # 691 is exact, with a standard error of 113 for 30 runs
    found = {n: lengths(train("DynaMaze", members, episodes=50, planning=n))[:50] for n in expected}
    figure, axes = _axes("Dyna maze (book, figure 8.2)", "episode", f"steps per episode, mean of {members} runs")
    for n, color in zip(found, charts.COLORS, strict=False):
        axes.plot(np.arange(2, 51), found[n][1:], color=color, linewidth=2.2, label=f"{n} planning steps")
    axes.axhline(SHORTEST, color=charts.GREY, linestyle=(0, (6, 3)), linewidth=1.5, label="shortest way")
    axes.set(xlim=(1, 50), ylim=(0, 900), xticks=(2, 10, 20, 30, 40, 50), yticks=(SHORTEST, 200, 400, 600, 800))
    axes.legend(loc="upper center")
    _draw_maze(axes.inset_axes((0.66, 0.45, 0.32, 0.38)), "DynaMaze", tabular.WALLS["DynaMaze"], "")
    text = "episode 2: {:.0f} steps; first episode of at most 20 steps: {}"
    rows = [
        [f"Dyna maze, n = {n}", text.format(found[n][1], first_good(found[n])), text.format(*expected[n])]
        for n in expected
    ]
    return Result(figure, rows)


def changing(task: str, title: str, preset: str, steps: int, expected: dict[str, str], members: int) -> Result:
    """Cumulative reward of Dyna-Q+ and Dyna-Q in a maze whose walls change."""
    change, found = tabular.CHANGES[task], {}
    figure, axes = _axes(title, "real steps", f"cumulative reward, mean of {members} runs")
    for (name, options), color in zip({"Dyna-Q+": {}, "Dyna-Q": {"bonus": 0.0}}.items(), charts.COLORS, strict=False):
        found[name] = rewards(train(task, members, steps, preset=preset, **options), steps)
        axes.plot(found[name].mean(1), color=color, linewidth=2.2, label=name)
    axes.axvline(change, color=charts.GREY, linestyle=(0, (6, 3)), linewidth=1.5, label="the walls change")
    axes.set(xlim=(0, steps), ylim=(0, 1.5 * found["Dyna-Q+"][-1].mean()))
    axes.legend(loc="upper right")
    left = 0.02 if change >= steps / 2 else change / steps + 0.02  # beside the line of the change
    _draw_maze(axes.inset_axes((left, 0.66, 0.16, 0.25)), task, tabular.WALLS[task], "before")
    _draw_maze(axes.inset_axes((left + 0.18, 0.66, 0.16, 0.25)), task, tabular.LATER[task], "after")
    rows = []
    for name, total in found.items():
        after = total[-1] - total[change]
        text = f"reward after the change: {after.min():.0f} to {after.max():.0f}, median {np.median(after):.0f}"
        rows.append([f"{task}, {name}", text, expected[name]])
    return Result(figure, rows)


def blocking(members: int) -> Result:
    """Figure 8.4: the way is blocked, another opens."""
    expected = {"Dyna-Q+": "at least 40", "Dyna-Q": "median 0 or 1"}
    return changing("BlockingMaze", "Blocking maze (book, figure 8.4)", "blocking", 3000, expected, members)


def shortcut(members: int) -> Result:
    """Figure 8.5: a shorter way opens, the old one stays."""
    expected = {"Dyna-Q+": "at least 200", "Dyna-Q": "at most 180"}
    return changing("ShortcutMaze", "Shortcut maze (book, figure 8.5)", "plus", 6000, expected, members)


def real_steps(title: str, task: str, preset: str, goal: float, best: float, budgets: dict[int, int]) -> Result:
    """Greedy return against environment steps, with and without planning; `budgets` are steps by planning updates."""
    curves = []
    for n, steps in budgets.items():
        curves.append(scores(f"{n} planning steps", task, SEEDS, steps, preset=preset, planning=n))
    figure = charts.returns(title, curves, [], None)
    axes = figure.axes[0]
    for value, name, line, side in ((best, "best possible", "-", "bottom"), (goal, "goal", ":", "top")):
        axes.axhline(value, color="black", linestyle=line, linewidth=1.2, zorder=1)
        axes.text(1.01, value, f"{name}: {value:g}", transform=axes.get_yaxis_transform(), va=side, fontsize=10)
    axes.set_ylim(0, 1.1 * best)
    axes.set_xscale("log")
    rows = []
    for curve in curves:
        at = steps_to(curve, goal)
        there = f"{goal:g} after {at:,} steps" if at else f"{goal:g} not reached in {curve.steps[-1]:,} steps"
        text = f"{there} (minimum of {SEEDS} seeds, which ends at {curve.values[-1].min():.2f})"
        rows.append([f"{task}, {curve.label}", text, f"best possible {best:g}"])
    return Result(figure, rows)


def lake(members: int) -> Result:
    """FrozenLake 4x4 on slippery ice."""
    return real_steps("FrozenLake 4x4, slippery", "FrozenLake", "lake", 0.70, 0.744, {10: 20_000, 0: 200_000})


def lake8x8(members: int) -> Result:
    """FrozenLake 8x8, where random play hardly ever meets the goal: a bonus too small to change what is best."""
    budgets = {50: 30_000, 0: 100_000}
    return real_steps("FrozenLake 8x8, slippery", "FrozenLake8x8", "lake8x8", 0.85, 0.913, budgets)


def taxi(members: int) -> Result:
    """Taxi."""
    return real_steps("Taxi (returns below 0 are not shown)", "Taxi", "taxi", 7.7, 7.93, {20: 20_000, 0: 150_000})


# --- Drawing ------------------------------------------------------------------------------------------------------


def _axes(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    return figure, figure.add_subplot(title=title, xlabel=across, ylabel=up)


def _draw_maze(axes: Axes, task: str, walls: list[tuple[int, int]], title: str) -> None:
    """A small picture of a maze: walls grey, start and goal as letters."""
    cells = np.zeros((tabular.ROWS, tabular.COLUMNS))
    cells[tuple(np.array(walls).T)] = 1
    axes.pcolormesh(cells, cmap="Greys", vmin=0, vmax=1.6, edgecolors="#dddddd", linewidth=0.6)
    for (row, column), letter in ((tabular.STARTS[task], "S"), (tabular.GOAL, "G")):
        axes.text(column + 0.5, row + 0.55, letter, ha="center", va="center", fontsize=9, weight="bold")
    axes.set(xticks=(), yticks=(), aspect="equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set(visible=True, color=charts.GREY)
    axes.set_title(title, fontsize=10)


Name = Literal["maze", "blocking", "shortcut", "lake", "lake8x8", "taxi"]
EXPERIMENTS = {"maze": maze, "blocking": blocking, "shortcut": shortcut, "lake": lake, "lake8x8": lake8x8, "taxi": taxi}


def main(
    out: Path = Path("runs/dyna"),
    members: int = 30,
    only: tuple[Name, ...] = get_args(Name),
) -> None:
    """Dyna-Q and Dyna-Q+ as in the book, and on FrozenLake and Taxi: figures and a table.

    Args:
        out: Where dyna.md and its figures go.
        members: Runs of each maze.
        only: Some of the experiments.
    """
    check_number("--members", members, least=1, whole=True)
    use_compilation_cache()
    out.mkdir(parents=True, exist_ok=True)
    figures, rows = [], []
    for name in only:
        start = time.monotonic()
        with matplotlib.rc_context(charts.STYLE):
            result = EXPERIMENTS[name](members)
            figures.append(document.save(result.figure, out, name, name))
        rows += result.rows
        for row in result.rows:
            print(f"{row[0]}: {row[1]} (expected: {row[2]})")
        print(f"{out / name}.png after {time.monotonic() - start:.0f} s", flush=True)
    table = document.table(["setting", "measured", "expected"], rows)
    blocks = [document.heading(1, "Dyna-Q and Dyna-Q+"), table, *figures]
    (out / "dyna.md").write_text(document.markdown(blocks))
    print(out / "dyna.md")


if __name__ == "__main__":
    tyro.cli(main)
