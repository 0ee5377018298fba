"""PETS on a cart-pole, a pendulum and a slippery ledge, beside one deterministic network and a model without learning.

Expected: minimum of three seeds after ten trials, the random one included (2026-11-21, 20 episodes each):
          continuous/CartPole (random 30)     ensemble 200.0, single 200.0, untrained 29.8
          gymnax/Pendulum-v1 (random -1276)   ensemble -238, single -221, untrained -1448
          continuous/Ledge (random -3)        ensemble 30.8, single 13.0, untrained -5.4
          Where nothing is random a single deterministic network plans as well; where a slip may cost everything it
          does not, as it plans with the mean of what comes next.
Time:     two to six minutes a run on one CPU core that is shared.
Command:  make sweep EXPERIMENT=experiments/pets.py
          python -m experiments.pets ROOT    (afterwards, with the sweep's directory: the table, the calibration plots)
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxwm import Plan, agents
from jaxwm.agents import pets
from jaxwm.report import charts
from jaxwm.run import directory, json_files
from jaxwm.run.directory import EVALUATION
from jaxwm.run.plan import read_plan
from jaxwm.studio import episodes

TASKS = {"cartpole": "continuous/CartPole", "pendulum": "gymnax/Pendulum-v1", "ledge": "continuous/Ledge"}

LENGTHS = {"cartpole": 200, "pendulum": 200, "ledge": 50}
"""Steps of a trial."""

MODELS: dict[str, dict[str, Any]] = {
    "ensemble": {},
    "single": dict(networks=1, particles=1, deterministic=True),
    "untrained": dict(epochs=0.0),
}


def runs(
    tasks: tuple[str, ...] = tuple(TASKS),
    models: tuple[str, ...] = tuple(MODELS),
    seeds: int = 3,
    trials: int = 10,
    episodes: int = 20,
    preset: str = "small",
) -> dict[str, Plan]:
    """PETS and what it is to be compared with.

    Args:
        tasks: Of cartpole, pendulum and ledge.
        models: Of ensemble, single (one deterministic network) and untrained.
        seeds: Members of each population.
        trials: Trials, the random one included.
        episodes: Evaluation episodes of each member.
        preset: Size.
    """
    out = {}
    for task in tasks:
        for model in models:
            settings = agents.settings("pets", preset, trial=LENGTHS[task], **MODELS[model])
            steps = trials * (settings.trial + 1)
            out[f"{task}-{model}"] = Plan("pets", TASKS[task], settings, steps, seeds, episodes=episodes, gauge=0)
    return out


# --- Calibration --------------------------------------------------------------------------------------------------


class Calibration(NamedTuple):
    """Curves over the horizon `[H]`, in standard deviations of the observations: root mean square of the real error of
    the mean and of the predicted standard deviation; share of real observations within one and two of these."""

    error: np.ndarray
    predicted: np.ndarray
    within_one: np.ndarray
    within_two: np.ndarray


def calibrate(
    folder: Path, member: int = 0, horizon: int = 25, particles: int = 50, mode: Any = "explore", windows: int = 200
) -> Calibration:
    """Dream fresh episodes of a run under their own actions, with many particles."""
    player = episodes.open_player(folder, member, seed=1)
    env = player.envs(10)
    agent = pets.make(env.spec, replace(player.plan.settings, particles=particles))
    with closing(episodes.play(player.agent, env, player.state, player.key, mode)) as plays:
        records = episodes.record(islice(plays, 201))
    window, valid = episodes.windows(records, 2, horizon, windows, np.random.default_rng(0))
    dream = jax.jit(
        agent.imagine, static_argnums=4
    )(  # type: ignore[misc]
        player.state, jax.tree.map(lambda x: x[:, :2], window), window.action[:, 1:-1], player.key, horizon
    )
    real = window.obs[:, 2:]
    scale = records.obs.reshape(-1, real.shape[-1]).std(0)
    return summarise((np.asarray(dream.obs) - real) / scale, np.asarray(dream.latent) / scale, valid)


def summarise(error: np.ndarray, predicted: np.ndarray, valid: np.ndarray) -> Calibration:
    """The curves of errors and standard deviations `[B, H, D]`; steps after an episode's end do not count."""
    count = np.where(valid.any(0), valid.sum(0), np.nan) * error.shape[-1]
    mean = lambda x: (x * valid[..., None]).sum((0, 2)) / count  # noqa: E731
    inside = lambda width: mean(np.abs(error) <= width * predicted + 1e-6)  # noqa: E731
    return Calibration(np.sqrt(mean(error**2)), np.sqrt(mean(predicted**2)), inside(1), inside(2))


def draw(title: str, curves: dict[str, Calibration]) -> Figure:
    """Real and predicted error by horizon, and the share of real observations within the predicted bands."""
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for color, (name, found) in zip(charts.COLORS, curves.items(), strict=False):
            steps = np.arange(1, len(found.error) + 1)
            left.plot(steps, found.error, color=color, label=f"{name}: real error")
            if found.predicted.any():
                left.plot(steps, found.predicted, "--", color=color, label=f"{name}: predicted")
                right.plot(steps, found.within_one, color=color, label=f"{name}: within 1 std")
                right.plot(steps, found.within_two, "--", color=color, label=f"{name}: within 2 std")
        for share in (0.683, 0.954):
            right.axhline(share, color=charts.GREY, linewidth=0.8, linestyle=":")
        left.set(yscale="log", xlabel="steps ahead", ylabel="error (std of observations)", title=title)
        right.set(ylim=(0, 1.02), xlabel="steps ahead", ylabel="share of real observations", title="coverage")
        for axes in (left, right):
            axes.legend(fontsize=8)
    return figure


def trials(folder: Path) -> np.ndarray:
    """Return of the first episode of each trial of a run, `[members, trials]`."""
    plan = read_plan(folder)
    rows = (plan.settings.trial + 1) * plan.settings.envs
    found: dict[tuple[int, int], float] = {}
    for score in json_files.read_jsonl(folder / directory.SCORES):
        found.setdefault((score["member"], score["env_steps"] // rows), score["return"])
    return np.array([[found[m, t] for t in range(plan.steps // rows)] for m in range(plan.members)])


def table(root: Path) -> str:
    """Each run's worst member after training (all of them, and random actions), and its trials: the mean over members
    of the first episode of each."""
    lines = [f"{'run':20}{'minimum':>9}{'members':>26}{'random':>9}   trials"]
    for file in sorted(root.glob(f"*/{EVALUATION}")):
        found = json.loads(file.read_text())
        each = " ".join(f"{value:.1f}" for value in found["trained"])
        curve = " ".join(f"{value:.0f}" for value in trials(file.parent).mean(0))
        least, chance = min(found["trained"]), np.mean(found["random"])
        lines.append(f"{file.parent.name:20}{least:9.1f}{each:>26}{chance:9.1f}   {curve}")
    return "\n".join(lines)


def main(root: tyro.conf.Positional[Path], horizon: int = 25, out: Path | None = None) -> None:
    """Print the table of the runs in `root` and draw the calibration of their models.

    Args:
        root: Where the sweep put its runs.
        horizon: Steps to look ahead.
        out: Where the pictures go (default: the root).
    """
    print(table(root))
    for task in TASKS:
        curves = {}
        for model in ("ensemble", "single"):
            folder = root / f"{task}-{model}"
            if folder.exists():
                particles = 50 if model == "ensemble" else 1
                for mode, name in (("explore", model), ("random", f"{model}, random actions")):
                    curves[name] = calibrate(folder, horizon=horizon, particles=particles, mode=mode)
        if curves:
            file = (out or root) / f"calibration-{task}.png"
            draw(TASKS[task], curves).savefig(file)
            print(file)


if __name__ == "__main__":
    tyro.cli(main)
