"""IRIS on MinAtar Breakout: how good codes, predictions and dreams are on episodes that nothing was learned from.

Expected: see docs/systems/iris.md.
Time:     half an hour on two cores.
Command:  make sweep EXPERIMENT=experiments/iris.py
          python -m experiments.iris runs/iris/Breakout   (the table; the path is the sweep's run)

Each member plays new episodes with its exploring policy. Recall and precision are those of cells that are on, plane by
plane. In MinAtar most tokens stay what they are, so predictions are judged on those that change: always guessing the
commonest of the changed tokens of its place is the marginal. Dreams are followed for some steps under the true actions,
and under those of another episode.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxwm import Plan, agents
from jaxwm.agents import iris
from jaxwm.studio import episodes, study
from jaxwm.studio.names import planes
from jaxwm.types import Record

ROWS, ENVS, HORIZON = 400, 16, 8


def runs(preset: str = "micro", seeds: int = 3, steps: int = 12_000, episodes: int = 100) -> dict[str, Plan]:
    """IRIS on MinAtar Breakout.

    Args:
        preset: Sizes and budgets.
        seeds: Members of the population.
        steps: Environment steps of each member.
        episodes: Evaluation episodes of each member.
    """
    settings = agents.settings("iris", preset)
    return {"Breakout": Plan("iris", "minatar/Breakout", settings, steps, seeds, episodes=episodes)}


def codes(nets: iris.Networks, params: Any, obs: np.ndarray, name: str) -> dict[str, float]:
    """Recall and precision of every plane of frames `[R, H, W, C]`, exact frames, and the share of codes in use."""

    @jax.jit
    def through(params: Any, obs: Any) -> tuple[Any, Any]:
        tokens = nets.encode(params, obs)
        return tokens, nets.decode(params, tokens)

    tokens, shown = jax.device_get(through(params, obs))
    both = lambda a: a.sum((0, 1, 2)).astype(float)  # noqa: E731
    hit, real, seen = both(shown & obs), both(obs), both(shown)
    found: dict[str, float] = {}
    for i, plane in enumerate(planes(name, obs.shape[-1])):
        found |= {f"recall {plane}": hit[i] / max(real[i], 1), f"precision {plane}": hit[i] / max(seen[i], 1)}
    exact = (shown == obs).all((1, 2, 3)).mean()
    return found | {"exact frames": exact, "codes in use": len(np.unique(tokens)) / nets.config.codes}


def predictions(nets: iris.Networks, params: Any, records: Record) -> dict[str, float]:
    """Accuracy of the likeliest next token in records `[T, N]`, of all and of changed ones, and the marginal's."""
    length = nets.config.frames + 1
    starts = range(0, len(records.reward) - length + 1, length)
    windows: Any = jax.tree.map(lambda x: np.concatenate([x[i : i + length].swapaxes(0, 1) for i in starts]), records)

    @jax.jit
    def judged(params: Any, window: Any) -> Any:
        tokens = nets.encode(params, nets.dreams.frames(window.obs))
        _, (_, metrics) = iris.model_loss(nets, params["model"], tokens, window, jax.random.key(0))
        return tokens, metrics

    tokens, metrics = jax.device_get(judged(params, windows._replace(extras={})))
    target, before = iris.following(tokens)[:, 1:], iris.following(tokens[:, :-1])
    goes_on = ~np.asarray(windows.is_first)
    same = np.repeat(goes_on[:, 1:-1, None], target.shape[-1], 2)
    same[:, :, -1] = goes_on[:, 2:]
    changed, right = same & (np.asarray(before) != target), 0
    for place in range(target.shape[-1]):
        there = np.asarray(target)[..., place][changed[..., place]]
        right += np.bincount(there).max() if len(there) else 0
    return {
        "accuracy": float(metrics["accuracy"]), "accuracy of changed tokens": float(metrics["accuracy/changed"]),
        "changed tokens": float(metrics["changed"]), "marginal of changed tokens": right / max(changed.sum(), 1),
    }  # fmt: skip


def dreams(player: episodes.Player, records: Record) -> dict[str, list[float]]:
    """Share of wrong cells after each of some dreamed steps: under the true actions, under others, and kept."""
    window, valid = episodes.windows(records, 2, HORIZON, 128, np.random.default_rng(0))
    found = study.imagine(player.agent, player.state, window, valid, player.key)
    _, curves = study.errors(player.envs(1).spec, found)["observation"]
    return {f"dream error, {name}": study.mean_and_band(each)[0].tolist() for name, each in curves.items()}


def table(folder: Path) -> list[dict[str, Any]]:
    """Write quality.json into a run's directory, one row for each member, and print it."""
    rows = []
    for player, records in episodes.each_member(folder, ROWS, ENVS):
        spec = player.envs(1).spec
        nets, params = iris.Networks(spec, player.plan.settings), player.state.params
        frames = np.asarray(nets.dreams.frames(records.obs)).reshape(-1, *nets.sensor[1].shape)
        row = codes(nets, params, frames, spec.name) | predictions(nets, params, records) | dreams(player, records)
        rows.append(row)
        print(f"member {player.member}")
        for name, value in row.items():
            print(f"  {name:30} {np.round(value, 4)}")
    (folder / "quality.json").write_text(json.dumps(rows, indent=2, default=float) + "\n")
    return rows


if __name__ == "__main__":
    table(Path(sys.argv[1]))
