"""MBPO next to soft actor-critic, at one update per step and at as many as MBPO, and to a model that never learned.

Expected: minimum of three seeds (2026-11-26), and environment steps until a training episode of each reached the goal:
          mujoco/InvertedPendulum-v4 (random 6, goal 950)   mbpo 1000 after 5,500 steps (2,503 3,538 3,347);
                                                            sac 112 after 10,077 (not reached)
          gymnax/Pendulum-v1 (random -1342)                 mbpo -172 after 5,000 steps
          The other runs have not been measured.
Time:     a quarter to half an hour a run on two CPU cores that many share, five minutes of CPU time each.
Command:  make sweep EXPERIMENT=experiments/mbpo.py
          python -m experiments.mbpo ROOT    (afterwards, with the sweep's directory: steps until the goal)

The report at the end draws returns against environment steps, next to a random policy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from jaxwm import Plan, agents
from jaxwm.run import directory, json_files
from jaxwm.run.plan import read_plan


class Task(NamedTuple):
    """An environment, its length, and a goal for the mean of so many training episodes in a row."""

    env: str
    steps: int
    goal: float
    window: int
    entropy_target: float | None


TASKS = {
    "inverted-pendulum": Task("mujoco/InvertedPendulum-v4", 10_000, 950.0, 1, -0.05),
    "pendulum": Task("gymnax/Pendulum-v1", 5_000, -250.0, 5, None),
}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mbpo": ("mbpo", {}),
    "sac": ("sac", {}),
    "sac-equal-updates": ("sac", {"updates_per_step": 10}),
    "untrained": ("mbpo", {"epochs": 0}),
}
"""Systems with changes; those of soft actor-critic have the networks and rates of MBPO's preset."""

SHARED = ("units", "layers", "lr", "tau", "batch_size", "prefill")


def runs(
    tasks: tuple[str, ...] = tuple(TASKS), which: tuple[str, ...] = tuple(RUNS), seeds: int = 3, episodes: int = 20,
    preset: str = "small",
) -> dict[str, Plan]:  # fmt: skip
    """MBPO and what it is to be compared with.

    Args:
        tasks: Names of TASKS.
        which: Of mbpo, sac, sac-equal-updates and untrained.
        seeds: Members of each population.
        episodes: Evaluation episodes of each member.
        preset: Size of MBPO; policy and critics of the others are the same.
    """
    out, same = {}, agents.settings("mbpo", preset)
    for task in tasks:
        env, steps, _, _, target = TASKS[task]
        for name in which:
            system, changes = RUNS[name]
            base = {k: getattr(same, k) for k in SHARED} if system == "sac" else {}
            size = preset if system == "mbpo" else "small"
            settings = agents.settings(system, size, **base, entropy_target=target, **changes)
            out[f"{task}-{name}"] = Plan(system, env, settings, steps, seeds, episodes=episodes, gauge=0)
    return out


def steps_to(folder: Path, goal: float, window: int) -> list[int | None]:
    """Environment steps of each member until the mean of `window` training episodes in a row is the goal; None: not."""
    scores = json_files.read_jsonl(folder / directory.SCORES)
    found: list[int | None] = []
    for member in range(read_plan(folder).members):
        mine = [score for score in scores if score["member"] == member]
        means = np.convolve([score["return"] for score in mine], np.ones(window) / window, "valid")
        there = np.flatnonzero(means >= goal)
        found.append(mine[there[0] + window - 1]["env_steps"] if len(there) else None)
    return found


def table(root: Path) -> str:
    """Each run's worst member after training, all of them, random actions, and steps until the goal."""
    lines = [f"{'run':32}{'minimum':>9}{'members':>28}{'random':>9}   steps until the goal"]
    for file in sorted(root.glob(f"*/{directory.EVALUATION}")):
        found, task = json.loads(file.read_text()), TASKS[next(t for t in TASKS if file.parent.name.startswith(t))]
        each = " ".join(f"{value:.1f}" for value in found["trained"])
        until = " ".join("-" if n is None else f"{n:,}" for n in steps_to(file.parent, task.goal, task.window))
        least, chance = min(found["trained"]), np.mean(found["random"])
        lines.append(f"{file.parent.name:32}{least:9.1f}{each:>28}{chance:9.1f}   {until}")
    return "\n".join(lines)


def main(root: tyro.conf.Positional[Path]) -> None:
    """Print the table of the runs in `root`.

    Args:
        root: Where the sweep put its runs.
    """
    print(table(root))


if __name__ == "__main__":
    tyro.cli(main)
