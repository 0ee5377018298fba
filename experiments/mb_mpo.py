"""MB-MPO on a pendulum: policies adapted to five models, next to the policy before its adaptation and to one model's.

Expected: means of 50 episodes of three seeds (2026-11-26, results/mb-mpo-pendulum.json): adapted -238 -205 -272, before
          its adaptation -144 -165 -141, one model -214 -166 -220 (random -1240). Here the adaptation costs return, and
          one model does as well.
Time:     seven minutes a run on one CPU core.
Command:  make sweep EXPERIMENT=experiments/mb_mpo.py
          python -m experiments.mb_mpo ROOT    (afterwards, with the sweep's directory: the comparison)

The evaluation at the end of a run is that of the adapted policies. The second command plays the policy before its
adaptation too, and gives means with their standard errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxwm import Plan, agents, envs
from jaxwm.run import json_files, load
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import member_keys

TASK = "continuous/Pendulum"
MODELS: dict[str, dict[str, Any]] = {"adapted": {}, "one-model": dict(networks=1)}


def runs(
    models: tuple[str, ...] = tuple(MODELS), seeds: int = 3, steps: int = 30_150, episodes: int = 50,
    preset: str = "small",
) -> dict[str, Plan]:  # fmt: skip
    """MB-MPO and the same with a single network, which all its tasks share.

    Args:
        models: Of adapted and one-model.
        seeds: Members of each population.
        steps: Environment steps of each member.
        episodes: Evaluation episodes of each member.
        preset: Size.
    """
    made = {model: agents.settings("mb-mpo", preset, **MODELS[model]) for model in models}
    options = dict(members=seeds, episodes=episodes, gauge=0)
    return {f"pendulum-{model}": Plan("mb-mpo", TASK, settings, steps, **options) for model, settings in made.items()}


def returns(folder: Path, adapted: bool, episodes: int) -> np.ndarray:
    """Returns `[M, episodes]` of the adapted policies or of the one before its adaptation."""
    plan, agent, state, _ = load.load(folder)
    if not adapted:
        wide = lambda x, y: jnp.broadcast_to(x[:, None], y.shape)  # noqa: E731
        same = jax.tree.map(wide, state.params["policy"], state.params["adapted"])
        state = state._replace(params=state.params | {"adapted": same})
    return evaluate(agent, envs.make(TASK, episodes), state, member_keys(1, plan.members), episodes).total


def main(root: tyro.conf.Positional[Path], episodes: int = 50) -> None:
    """Print the comparison of the runs in `root`, and write it to ROOT/mb_mpo.json.

    Args:
        root: Where the sweep put its runs.
        episodes: Episodes of each member.
    """
    found = {}
    for name, model, adapted in (
        ("adapted", "adapted", True), ("unadapted", "adapted", False), ("one model", "one-model", True)
    ):  # fmt: skip
        total = returns(root / f"pendulum-{model}", adapted, episodes)
        means, errors = total.mean(1), total.std(1, ddof=1) / np.sqrt(episodes)
        found[name] = {"mean": means.tolist(), "standard_error": errors.tolist()}
        print(f"{name:10} " + "  ".join(f"{m:.0f} +- {e:.0f}" for m, e in zip(means, errors, strict=True)))
    json_files.write_json(root / "mb_mpo.json", found)
    print(root / "mb_mpo.json")


if __name__ == "__main__":
    tyro.cli(main)
