"""MuZero, EfficientZero and EfficientZero without each of its additions, at equal steps and equal updates.

Expected: Catch, 6 seeds, environment steps to a training return of 0.84, median (last): EfficientZero 3,825 (4,275),
          without correction 3,375 (5,175), without consistency 4,275 (4,725), without prefix 6,300 (7,875), MuZero
          6,750 (one never; it ends at 0.56, all others at 1.00). Random -0.61. Measured 2026-11-22.
Time:     30 minutes on two cores beside other work.
Command:  make sweep EXPERIMENT=experiments/muzero.py

The report at the end draws returns against environment steps and says after how many of them each member is there.
"""

from typing import Any

from jaxwm import Plan, agents

TASKS = {"catch": ("gymnax/Catch-bsuite", 9000), "cartpole": ("gymnax/CartPole-v1", 15_000)}
"""Task -> environment, steps."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "muzero": ("muzero", {}),
    "efficientzero": ("efficientzero", {}),
    "no-consistency": ("efficientzero", {"consistency": 0.0}),
    "no-prefix": ("efficientzero", {"prefix": False}),
    "no-correction": ("efficientzero", {"correction": 0}),
}
"""Variant -> system, settings that differ."""


def runs(
    tasks: tuple[str, ...] = ("catch",),
    variants: tuple[str, ...] = tuple(VARIANTS),
    seeds: int = 6,
    steps: int | None = None,
    train_ratio: float | None = None,
    episodes: int = 100,
) -> dict[str, Plan]:
    """The ablation of EfficientZero (Ye et al. 2021, table 3), small.

    Args:
        tasks: Of catch and cartpole.
        variants: Of muzero, efficientzero, no-consistency, no-prefix and no-correction.
        seeds: Members of each population.
        steps: Environment steps of each member (default: 9,000 and 15,000).
        train_ratio: Sequences learned from for each step played (default: the presets').
        episodes: Evaluation episodes of each member.
    """
    out = {}
    ratio = {} if train_ratio is None else {"train_ratio": train_ratio}
    for task in tasks:
        env, usual = TASKS[task]
        for variant in variants:
            name, options = VARIANTS[variant]
            settings = agents.settings(name, task, **ratio, **options)
            out[f"{task}-{variant}"] = Plan(name, env, settings, steps or usual, seeds, episodes=episodes, gauge=0)
    return out
