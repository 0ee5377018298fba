"""Dyna over nearest-neighbour tokens on MinAtar Breakout: exact next frames, and the same learner without dreams.

Expected: see docs/systems/token-dyna.md.
Time:     half an hour on two cores.
Command:  make sweep EXPERIMENT=experiments/token_dyna.py
          python -m experiments.token_dyna runs/token_dyna/Breakout   (the table; the path is the sweep's run)

Each member plays new episodes with its exploring policy. The model sees the true frames and actions up to a moment and
names the likeliest tokens of the next frame; a prediction is exact where the decoded frame equals the true one in every
cell. A frame that is the same as the one before counts for the copy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxwm import Plan, agents
from jaxwm.agents import token_dyna
from jaxwm.studio import episodes
from jaxwm.types import Record

ROWS, ENVS = 400, 16
VARIANTS: dict[str, dict[str, Any]] = {"Breakout": {}, "Breakout-no-dreams": {"dream_updates": 0, "model_updates": 0}}
"""Name of a run -> settings that differ."""


def runs(preset: str = "micro", seeds: int = 3, steps: int = 12_000, episodes: int = 100) -> dict[str, Plan]:
    """Dyna over nearest-neighbour tokens on MinAtar Breakout, with dreams and without.

    Args:
        preset: Sizes and budgets.
        seeds: Members of each population.
        steps: Environment steps of each member.
        episodes: Evaluation episodes of each member.
    """
    make = lambda options: agents.settings("token-dyna", preset, **options)  # noqa: E731
    plan = lambda options: Plan("token-dyna", "minatar/Breakout", make(options), steps, seeds, episodes=episodes)  # noqa: E731
    return {name: plan(options) for name, options in VARIANTS.items()}


def next_frames(nets: token_dyna.Networks, params: Any, records: Record) -> dict[str, float]:
    """How often the next frame of records `[T, N]` is predicted, or copied, exactly; how many codes there are."""
    length = nets.config.frames + 1
    starts = range(0, len(records.reward) - length + 1, length)
    cut = lambda x: np.concatenate([x[i : i + length].swapaxes(0, 1) for i in starts])  # noqa: E731
    window: Any = jax.tree.map(cut, records._replace(extras={}))

    @jax.jit
    def guessed(params: Any, window: Any) -> Any:
        tokens, frame = nets.encode(params, nets.dreams.frames(window.obs)), nets.dreams.frames(window.obs)
        hidden = nets.world.window(
            params["model"], tokens[:, :-1], window.action[:, :-1], window.is_first[:, :-1], jax.random.key(0)
        )
        shown = nets.decode(params, nets.world.next_token(params["model"], hidden[:, :, :-1]).mode())
        same = lambda a, b: (a == b).all((-3, -2, -1))  # noqa: E731
        known = same(nets.decode(params, tokens), frame)
        return same(shown, frame[:, 1:]), same(frame[:, :-1], frame[:, 1:]), known

    exact, copied, known = jax.device_get(guessed(params, window))
    valid = ~window.is_first[:, 1:]
    return {
        "exact next frames": exact[valid].mean(), "copies of the last frame": copied[valid].mean(),
        "frames whose patches are all known": known.mean(), "codes": int(token_dyna.size_of(params["codes"])),
    }  # fmt: skip


def table(folder: Path) -> list[dict[str, Any]]:
    """Write quality.json into a run's directory, one row for each member, and print it."""
    rows = []
    for player, records in episodes.each_member(folder, ROWS, ENVS):
        nets = token_dyna.Networks(player.envs(1).spec, player.plan.settings)
        rows.append({name: float(x) for name, x in next_frames(nets, player.state.params, records).items()})
        print(f"member {player.member}: " + ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    (folder / "quality.json").write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    table(Path(sys.argv[1]))
