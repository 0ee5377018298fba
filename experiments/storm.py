"""STORM on small tasks, three seeds a task as one population, on CPU: learning, memory, and windows across episodes.

Expected: Catch as in docs/systems/storm.md; Breakout and Recall have not been measured yet.
Time:     not measured as a whole.
Command:  make sweep EXPERIMENT=experiments/storm.py
          make sweep EXPERIMENT=experiments/storm.py ARGS="--tasks catch --across"

`--across` adds each task with windows that run across the ends of episodes, as the official code lets them.
"""

from typing import Any, Literal

from jaxwm import Plan, agents
from jaxwm.agents.storm import RECALL

TASKS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "catch": ("gymnax/Catch-bsuite", "nano", 8000, {}),
    "breakout": ("minatar/Breakout", "micro", 12_000, {}),
    "recall": ("probe/Recall", "nano", 12_000, RECALL),
}
"""Task -> environment, preset, environment steps of each member, settings that differ."""


def runs(
    tasks: tuple[Literal["catch", "breakout", "recall"], ...] = ("catch", "breakout", "recall"),
    seeds: int = 3,
    steps: int | None = None,
    episodes: int = 100,
    across: bool = False,
) -> dict[str, Plan]:
    """STORM on small tasks.

    Args:
        tasks: Of catch, breakout and recall.
        seeds: Members of the population of each task.
        steps: Environment steps of each member (default: the task's own).
        episodes: Evaluation episodes of each member.
        across: Add each task with windows that run across episodes.
    """
    out = {}
    for task in tasks:
        env, preset, usual, options = TASKS[task]
        for name, more in ((task, {}), (f"{task}-across", {"across_episodes": True}))[: 1 + across]:
            settings = agents.settings("storm", preset, **options, **more)
            out[name] = Plan("storm", env, settings, steps or usual, seeds, episodes=episodes)
    return out
