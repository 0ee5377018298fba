"""DIAMOND on Catch drawn as an image of 16 x 16: painted frames next to the last one kept, on new episodes.

Expected: see docs/systems/diamond.md.
Time:     an hour on one core.
Command:  make sweep EXPERIMENT=experiments/diamond.py
          python -m experiments.diamond runs/diamond/Catch   (the table; the path is the sweep's run)

Each member plays new episodes with its exploring policy. Dreams begin with two real frames and follow the true actions
for eight steps, to the end of an episode. PSNR is that of the mean squared error over all windows, with pixels in 0..1.
The ball is in the right place where every cell above the paddle's row is right; in the eighth step it has reached that
row, so seven steps count. The same denoiser paints each frame in one pass and in three.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxwm import Plan, agents
from jaxwm.studio import episodes, study
from jaxwm.types import Record

ROWS, ENVS, CONTEXT, HORIZON, WINDOWS = 200, 16, 2, 8, 256
SIZE, CELLS = 16, (10, 5)


def runs(preset: str = "catch", seeds: int = 3, steps: int = 4000, episodes: int = 100) -> dict[str, Plan]:
    """DIAMOND on drawn Catch.

    Args:
        preset: Sizes and budgets.
        seeds: Members of the population.
        steps: Environment steps of each member.
        episodes: Evaluation episodes of each member.
    """
    settings, options = agents.settings("diamond", preset), {"image_size": SIZE}
    plan = Plan("diamond", "gymnax/Catch-bsuite", settings, steps, seeds, episodes=episodes, env_options=options)
    return {"Catch": plan}


def board(image: np.ndarray) -> np.ndarray:
    """Which cells of Catch are on, bool `[..., 10, 5]`, by the middle pixel of each in images `[..., 16, 16, 3]`."""
    rows, columns = (((np.arange(count) + 0.5) * SIZE / count).astype(int) for count in CELLS)
    return image[..., rows, :, :][..., columns, :].max(-1) > 115


def psnr(truth: np.ndarray, guess: np.ndarray, valid: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio after each step, in dB, of images `[B, H, ...]`."""
    error = np.square((truth.astype(np.float32) - guess) / 255).mean((2, 3, 4))
    mean = (error * valid).sum(0) / np.maximum(valid.sum(0), 1)
    return (-10 * np.log10(np.maximum(mean, 1e-10))).tolist()


def painted(player: episodes.Player, records: Record, passes: int) -> dict[str, list[float]]:
    """PSNR after each step of dreams painted in so many passes and of the last frame kept; balls in the right place."""
    config = replace(player.plan.settings, passes=passes)
    agent = agents.build("diamond", player.envs(1).spec, config)
    window, valid = episodes.windows(records, CONTEXT, HORIZON, WINDOWS, np.random.default_rng(0))
    found = study.imagine(agent, player.state, window, valid, player.key)
    truth, last = found.window.obs[:, CONTEXT:], found.window.obs[:, CONTEXT - 1, None]
    ball = lambda image: board(image)[..., :-1, :]  # noqa: E731
    right = (ball(truth) == ball(found.dream.obs)).all((-1, -2))
    place = (right * found.valid).sum(0) / np.maximum(found.valid.sum(0), 1)
    kept = psnr(truth, np.broadcast_to(last, truth.shape), found.valid)
    return {
        f"PSNR, {passes} passes": psnr(truth, found.dream.obs, found.valid), "PSNR, last frame kept": kept,
        f"PSNR, {passes} passes, actions of another window": psnr(truth, found.shuffled.obs, found.valid),
        f"ball in its place, {passes} passes": place.tolist(),
    }  # fmt: skip


def table(folder: Path) -> list[dict[str, Any]]:
    """Write quality.json into a run's directory, one row for each member, and print it."""
    rows = []
    for player, records in episodes.each_member(folder, ROWS, ENVS):
        row = painted(player, records, 1) | painted(player, records, 3)
        rows.append(row)
        print(f"member {player.member}")
        for name, value in row.items():
            print(f"  {name:45} {np.round(value, 3)}")
    (folder / "quality.json").write_text(json.dumps(rows, indent=2, default=float) + "\n")
    return rows


if __name__ == "__main__":
    table(Path(sys.argv[1]))
