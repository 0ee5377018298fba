"""SimPLe on Catch and on a ball that bounces at random, with its bits and without: returns, and the skill of the model.

Expected: see docs/systems/simple.md; what is not there has not been measured yet.
Time:     half an hour a run on two CPU cores that many share.
Command:  make sweep EXPERIMENT=experiments/simple.py
          python -m experiments.simple runs/simple/catch   (the table of one run; the path is the sweep's)

Skill is 1 - error / error of the copied last frame, in wrong pixels or cells of the next frame, on new episodes of the
exploring policy. Bits are drawn as in dreams, eight times: one draw, the best of them, the bits of the encoder that
knows the frame, and no bits at all.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import Plan, agents, spaces
from jaxwm.agents.simple import Networks
from jaxwm.models import frame_predictor as video
from jaxwm.studio import episodes
from jaxwm.types import Array, Record

ROWS, ENVS, DRAWS = 200, 16, 8
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "catch": ("gymnax/Catch-bsuite", {}),
    "bounce": ("probe/Bounce", {"cells": True}),
}
"""Task -> environment and its options."""


def runs(
    tasks: tuple[str, ...] = tuple(TASKS), deterministic: bool = True, seeds: int = 3, steps: int = 5000,
    episodes: int = 100,
) -> dict[str, Plan]:  # fmt: skip
    """SimPLe with bits and without.

    Args:
        tasks: Of catch and bounce.
        deterministic: Add each task without bits.
        seeds: Members of each population.
        steps: Environment steps of each member.
        episodes: Evaluation episodes of each member.
    """
    out = {}
    for task in tasks:
        env, options = TASKS[task]
        for name, preset in ((task, "micro"), (f"{task}-no-bits", "micro-deterministic"))[: 1 + deterministic]:
            settings = agents.settings("simple", preset)
            out[name] = Plan("simple", env, settings, steps, seeds, episodes=episodes, env_options=options, gauge=0)
    return out


def windows(nets: Networks, records: Record) -> tuple[Array, Array, Array]:
    """Stacks `[R, K, ...]`, actions and next frames of records `[T, N]`, within episodes."""
    count, frame = nets.config.stack, nets.frames(records.obs)
    found = [
        (frame[t - count : t].swapaxes(0, 1), records.is_first[t - count : t].T, records.action[t - 1], frame[t],
         ~records.is_first[t])
        for t in range(count, len(frame))
    ]  # fmt: skip
    frames, first, action, target, valid = (jnp.asarray(np.concatenate(x)) for x in zip(*found, strict=True))
    return video.stacked(frames[valid], first[valid], count), action[valid], target[valid]


def skills(nets: Networks, params: Any, records: Record) -> dict[str, float]:
    """The skills of a model, from records `[T, N]`."""
    stack, action, target = windows(nets, records)
    error = lambda frame: (frame != target).reshape(len(target), -1).mean(-1, dtype=jnp.float32)  # noqa: E731

    @partial(jax.jit, static_argnums=0)
    def shown(knows: bool, params: Any) -> Array:
        seen = nets.part(params, "look", stack, spaces.encode(nets.spec.action, action))
        bits = jnp.where(nets.part(params, "infer", stack, target) > 0, 1.0, -1.0) if knows else None
        return error(video.likeliest(nets.part(params, "paint", seen, bits)[0], target))

    @jax.jit
    def drawn(params: Any, key: Any) -> Array:
        return error(nets.predict(params, stack, action, jax.random.uniform(key, (len(stack), nets.config.tokens)))[0])

    copied = float(np.mean(error(stack[:, -1])))
    draws = np.stack([drawn(params, key) for key in jax.random.split(jax.random.key(0), DRAWS)])
    found = {"skill": draws.mean(), "best of 8": draws.min(0).mean(), "without bits": shown(False, params).mean()}
    if nets.config.bits:
        found["with the encoder's bits"] = shown(True, params).mean()
    return {name: 1.0 - float(wrong) / copied for name, wrong in found.items()}


def table(folder: Path) -> list[dict[str, float]]:
    """Write skills.json into a run's directory, one row for each member, and print it."""
    rows = []
    for player, records in episodes.each_member(folder, ROWS, ENVS):
        nets = Networks(player.envs(1).spec, player.plan.settings)
        rows.append(skills(nets, player.state.params["model"], records))
        print(f"member {player.member}: " + ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    (folder / "skills.json").write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    table(Path(sys.argv[1]))
