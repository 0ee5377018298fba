"""World Models on TakeCover: one V and M, and a controller evolved in its dreams at each of five temperatures.

Expected: at temperature 1.15 minimum of three seeds 566 tics (786 754 566; random 325) over 100 real episodes. The
          table of the first of them, in dreams and for real: 0.1 2100, 167; 0.5 2080, 176; 1.0 1348, 797;
          1.15 726, 808; 1.3 552, 788 (2026-11-21).
Time:     20 minutes for three seeds and six for the table, on two cores that are shared.
Command:  make sweep EXPERIMENT=experiments/world_models.py
          python -m experiments.world_models runs/world_models/TakeCover   (the table; the path is the sweep's run)

At low temperature dreams are too certain: controllers find what never ends a dream, and die early in reality. The table
shows returns in dreams and in reality, in tics, means and standard deviations over 100 episodes. Beside it are a plot
and a GIF of what V keeps of real images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxwm import Plan, agents, envs, replay
from jaxwm.agents import world_models
from jaxwm.run import load
from jaxwm.studio import paper, video
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Collect, Train

TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)
STARTS = 2000
"""Environment steps of random play from which dreams start."""


def runs(preset: str = "takecover-small", seeds: int = 1, steps: int = 16_000, episodes: int = 100) -> dict[str, Plan]:
    """World Models on TakeCover.

    Args:
        preset: Sizes and budgets.
        seeds: Members of the population.
        steps: Environment steps of each member, all of them random play.
        episodes: Evaluation episodes of each member.
    """
    settings = agents.settings("world-models", preset, random_steps=steps)
    return {"TakeCover": Plan("world-models", "vizdoom/TakeCover", settings, steps, seeds, episodes=episodes)}


def controllers(loaded: load.Loaded, generations: int, member: int = 0) -> tuple[Trainer, Any]:
    """New controllers, one for each temperature, all with V and M of one member: the trainer and its `Life`."""
    config, count = loaded.plan.settings, len(TEMPERATURES)
    blocks = -(-STARTS // (config.envs * world_models.BLOCK))
    schedule = Collect(STARTS, "random"), Train("encode", blocks), Train("controller", generations)
    env = envs.make(loaded.plan.env, num_envs=config.envs, **loaded.plan.env_options)
    agent = loaded.agent._replace(schedule=schedule)
    trainer = Trainer(agent, env, count, STARTS, {"temperature": TEMPERATURES})
    life = trainer.init(loaded.plan.seed)
    params = life.agent.params
    for name in ("vision", "memory"):
        same = lambda x: jnp.repeat(x[member][None], count, 0)  # noqa: E731
        params = params | {name: jax.tree.map(same, loaded.state.params[name])}
    life, cursor = life._replace(agent=life.agent._replace(params=params)), Cursor()
    while not trainer.finished(cursor):
        life, cursor, report = trainer.run(life, cursor, 10)
        if "controller/dream_return" in report.metrics:
            print("generation", cursor.iteration or generations, report.metrics["controller/dream_return"].round())
    return trainer, life


def dreamed(loaded: load.Loaded, life: Any, episodes: int) -> np.ndarray:
    """Returns `[M, episodes]` of the controllers in dreams at their own temperatures."""
    config = loaded.plan.settings
    nets = world_models.Networks(envs.make(loaded.plan.env).spec, config)
    sampler = loaded.agent.train_steps["controller"].sampler

    def one(state: Any, ring: replay.Ring, key: Any) -> Any:
        keys = jax.random.split(key, 3 * -(-episodes // config.rollouts)).reshape(-1, 3)
        weights, temperature = state.params["controller"][None], state.hyper["temperature"]

        def several(keys: Any) -> Any:
            starts = world_models.draw_codes(sampler(state, ring, keys[0], config.rollouts).record.extras, keys[1])[
                :, 0
            ]
            return world_models.dreamed_returns(nets, state.params, weights, starts, keys[2], temperature)[0]

        return jax.lax.map(several, keys).ravel()[:episodes]

    agent = life.agent._replace(opt=None)
    return np.asarray(jax.jit(jax.vmap(one, (0, replay.AXES, 0)))(agent, life.ring, life.key))


def reconstructions(path: Path, loaded: load.Loaded, life: Any, count: int = 60) -> None:
    """A GIF of real images of one environment above what V keeps of them."""
    nets = world_models.Networks(envs.make(loaded.plan.env).spec, loaded.plan.settings)
    real = life.ring.data.obs[0, :count, 0]
    params = jax.tree.map(lambda x: x[0], life.agent.params)
    kept = nets.decode(params, life.ring.data.extras["mean"][0, :count, 0])
    both = np.concatenate([np.asarray(real), np.asarray(kept)], 1)
    video.write(path, [frame.repeat(4, 0).repeat(4, 1) for frame in both], 10)


def plot(path: Path, rows: list[dict[str, float]]) -> None:
    figure = Figure((5, 3.5), layout="constrained", dpi=110)
    axis = figure.subplots()
    at = [row["temperature"] for row in rows]
    for name, colour in (("dream", paper.ORANGE), ("real", paper.BLACK)):
        means, stds = ([row[f"{name}_{what}"] for row in rows] for what in ("mean", "std"))
        axis.errorbar(at, means, stds, label=name, color=colour, marker="o", capsize=3)
    axis.set(xlabel="temperature of the dreams", ylabel="survival in tics (mean, std)")
    axis.legend(frameon=False)
    figure.savefig(path)


def table(folder: Path, generations: int = 0, episodes: int = 100) -> list[dict[str, float]]:
    """Write temperatures.json, .md, .png and reconstruction.gif into a run's directory; the rows of the table."""
    loaded = load.load(folder)
    trainer, life = controllers(loaded, generations or loaded.plan.settings.generations)
    dream = dreamed(loaded, life, episodes)
    trainer.close()
    plan = Plan(**{**vars(loaded.plan), "members": len(TEMPERATURES), "vary": {}})
    real = load.score(plan, loaded.agent, life.agent, episodes).total
    rows = [
        dict(temperature=t, dream_mean=float(d.mean()), dream_std=float(d.std()), real_mean=float(r.mean()),
             real_std=float(r.std()))
        for t, d, r in zip(TEMPERATURES, dream, real, strict=True)
    ]  # fmt: skip
    lines = ["| temperature | dream | real |", "| --- | --- | --- |"] + [
        f"| {r['temperature']} | {r['dream_mean']:.0f} +- {r['dream_std']:.0f} | "
        f"{r['real_mean']:.0f} +- {r['real_std']:.0f} |"
        for r in rows
    ]
    (folder / "temperatures.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "temperatures.md").write_text("\n".join(lines) + "\n")
    plot(folder / "temperatures.png", rows)
    reconstructions(folder / "reconstruction.gif", loaded, life)
    print("\n".join(lines))
    return rows


if __name__ == "__main__":
    table(Path(sys.argv[1]), *map(int, sys.argv[2:]))
