"""From a plan or a run directory to agents: build, load, export, score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxwm import agents, envs
from jaxwm.run import checkpoint, directory, export
from jaxwm.run.plan import Plan, read_plan
from jaxwm.training.evaluation import Scores, evaluate, parallel
from jaxwm.training.life import member_keys
from jaxwm.training.trainer import Trainer
from jaxwm.types import Agent, Env


def build(plan: Plan) -> tuple[Env, Agent, Trainer]:
    """Environment, agent and trainer of a plan."""
    env = envs.make(plan.env, num_envs=plan.settings.envs, **plan.env_options)
    agent = agents.build(plan.agent, env.spec, plan.settings)
    capacity = min(plan.settings.capacity, plan.steps + env.num_envs)  # never more than the run writes
    return env, agent, Trainer(agent, env, plan.members, capacity, plan.vary, shards=plan.shards)


class Loaded(NamedTuple):
    """What `load` found. Leaves of `state` are `[M, ...]`; `steps` are environment steps of each member."""

    plan: Plan
    agent: Agent
    state: Any
    steps: int


def load(path: str | Path, which: str = "newest") -> Loaded:
    """A run's plan, agent and agent state, from its directory or from a file that `export` wrote.

    `which` is "newest", "best" (highest training return) or the environment step of a checkpoint; from an exported
    file the optimiser's state is a fresh one. Damaged checkpoints are passed over. FileNotFoundError where there is no
    run or no checkpoint, ValueError where it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return _load_export(path)
    plan = read_plan(path)
    with checkpoint.Checkpoints(path / directory.CHECKPOINTS, writing=False) as checkpoints:
        _, agent, trainer = build(replace(plan, shards=1))
        state, steps = checkpoints.restore_agent(trainer.footprint()["state"], which)
    return Loaded(plan, agent, state, steps)


def _load_export(file: Path) -> Loaded:
    about = export.read_about(file)
    plan = Plan.from_json(about["plan"])
    _, agent, trainer = build(replace(plan, shards=1))
    state = trainer.init_agents(member_keys(plan.seed, plan.members))
    params = export.read(file, jax.eval_shape(lambda: state.params))
    return Loaded(plan, agent, state._replace(params=params), about["steps"])


def export_params(folder: Path, file: Path, which: str = "newest") -> int:
    """Write a checkpoint's parameters as a safetensors file; its size in bytes. Errors as in `load`."""
    plan, _, state, steps = load(folder, which)
    return export.write(file, state.params, {"plan": plan.to_json(), "steps": steps})


def judge(plan: Plan, episodes: int) -> Env:
    """The environment in which a policy is scored: that of the plan, with options of its own where there are any."""
    options = envs.SCORED.get(plan.env.split("/")[0], {}) | plan.env_options | plan.score_options
    pure = envs.make(plan.env, num_envs=1, **options).pure
    return envs.make(plan.env, num_envs=parallel(pure, episodes), **options)


def score(plan: Plan, agent: Agent, state: Any, episodes: int, mode: Any = "greedy", seed: int = 0) -> Scores:
    """Evaluate every member over `episodes` episodes in environments of their own."""
    env = judge(plan, episodes)
    return evaluate(agent, env, state, member_keys(seed, plan.members), episodes, mode)
