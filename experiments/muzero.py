"""MuZero, EfficientZero and EfficientZero without each of its additions, at equal steps and equal updates.

Expected: Catch, environment steps of the last (median) member to a training return of 0.84: EfficientZero 8,050 (7,350),
          without correction 8,050 (7,350), without consistency 8,750 (8,050), without prefix - (8,750), MuZero 10,150
          (10,150). All end at 1.00, but for one member without prefix at 0.58.
Time:     18 minutes for Catch, four minutes a variant; on two cores beside other work.
Command:  make sweep EXPERIMENT=experiments/muzero.py

The report at the end draws returns against environment steps: how much sooner one of them is there.
"""

from typing import Any

from jaxwm import agents
from jaxwm.training.run import Plan

TASKS = {"catch": ("gymnax/Catch-bsuite", 14_000), "cartpole": ("gymnax/CartPole-v1", 15_000)}
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
    seeds: int = 3,
    steps: int | None = None,
    train_ratio: float | None = None,
    episodes: int = 100,
) -> dict[str, Plan]:
    """The ablation of EfficientZero (Ye et al. 2021, table 3), small.

    Args:
        tasks: Of catch and cartpole.
        variants: Of muzero, efficientzero, no-consistency, no-prefix and no-correction.
        seeds: Members of each population.
        steps: Environment steps of each member (default: 14,000 and 15,000).
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
