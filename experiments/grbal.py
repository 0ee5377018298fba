"""GrBAL on pendulums whose motors differ: a model that is learned to adapt, next to one that is merely learned.

Expected: worst of three seeds (2026-11-26, 10 episodes; results/grbal-pendulum.json). Error after 16 transitions of new
          motors 0.009 (unadapted 0.040, plain 0.033 after its best step), of stronger ones 0.021 (0.099, 0.080).
          Returns on stronger motors that run backwards: adapted -158 to -264, unadapted -785 to -1260, with the true
          equations -129; on the usual motor -306 to -789, -1230 to -1410, -175.
          Plain and adapted models learn from play of their own, so from different data.
Time:     three minutes a run and four for the comparison, on one CPU core.
Command:  make sweep EXPERIMENT=experiments/grbal.py
          python -m experiments.grbal ROOT    (afterwards, with the sweep's directory: the two tables)

Motors push with 0.4 to 1.3 times the usual torque while training, half of them backwards. The second command prints the
error of predictions before and after 1, 2 and 4 steps on 16 transitions, of motors that are new (gains as in training,
and stronger ones, 1.3 to 1.6), and the returns of planning with the model as it is, with the adapted one, and with the
true equations; the share of the gap that the adaptation closes is (adapted - unadapted) / (true - unadapted).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxwm import Plan, agents, envs
from jaxwm.agents import grbal
from jaxwm.envs import continuous
from jaxwm.run import json_files, load
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import member_keys
from jaxwm.types import Acted, Agent, Array, Key, Record, Step

TASK, FAMILY = "continuous/Pendulum", dict(low=0.4, high=1.3, flip=0.5)
MODELS: dict[str, dict[str, Any]] = {"adapted": {}, "plain": dict(objective="plain", learn_adapt_lr=False)}
MOTORS: dict[str, dict[str, float]] = {
    "usual": dict(low=1.0, high=1.0, flip=0.0),
    "new": dict(low=0.4, high=1.3, flip=0.5),
    "stronger": dict(low=1.3, high=1.6, flip=0.5),
    "stronger, backwards": dict(low=1.3, high=1.6, flip=1.0),
}
RATES = (0.003, 0.01, 0.03, 0.1)
"""Step sizes of which the plain model gets the best one for each motor."""


def runs(
    models: tuple[str, ...] = tuple(MODELS), seeds: int = 3, trials: int = 6, episodes: int = 50, preset: str = "small"
) -> dict[str, Plan]:
    """GrBAL and what it is to be compared with.

    Args:
        models: Of adapted and plain (the same network and data, learned to be right as it is).
        seeds: Members of each population.
        trials: Trials, the random one included.
        episodes: Evaluation episodes of each member.
        preset: Size.
    """
    out = {}
    for model in models:
        settings = agents.settings("grbal", preset, **MODELS[model])
        steps = trials * (settings.trial + 1) * settings.envs
        options = dict(members=seeds, episodes=episodes, gauge=0, env_options=FAMILY)
        out[f"pendulum-{model}"] = Plan("grbal", TASK, settings, steps, **options)
    return out


# --- Predictions --------------------------------------------------------------------------------------------------
def played(motors: dict[str, float], num: int, key: Key) -> Record:
    """The first 33 records `[num, 33]` of episodes of random actions."""
    env = envs.make(TASK, num, **motors)

    def turn(carry: Any, key: Key) -> tuple[Any, Record]:
        state, step = carry
        action = jax.random.uniform(key, (num, 1), minval=-1)
        return env.step(state, action), Record(*step, action, {})

    records = jax.lax.scan(turn, env.reset(key), jax.random.split(key, 33))[1]
    return jax.tree.map(lambda x: x.swapaxes(0, 1), records)


def errors(folder: Path, motors: dict[str, float], steps: int, rates: tuple[float, ...] = ()) -> np.ndarray:
    """Error before and after so many steps of adaptation `[2, M]`: standardised, on transitions 17 to 32 of 500 new
    episodes. With several rates the best one counts."""
    plan, _, state, _ = load.load(folder)
    config = replace(plan.settings, adapt_steps=steps)
    spec = envs.make(TASK).spec
    record = jax.jit(partial(played, motors, 500))(jax.random.key(1))

    @jax.jit
    def one(record: Record, state: Any, rate: Array) -> Array:
        data = grbal.windows(spec, config, state.params, record)
        found = grbal.loss(grbal.network(spec, config), config, state.params["model"], data, rate)[1][1]
        return jnp.stack([found["loss/before"], found["loss/after"]])

    members = jax.vmap(one, (None, 0, 0))
    tried = [jnp.full(plan.members, rate) for rate in rates] or [state.hyper["adapt_lr"]]
    each = [members(record, state, rate) for rate in tried]
    before, after = np.stack(each).transpose(0, 2, 1)[0, 0], np.stack(each)[:, :, 1].min(0)
    return np.stack([before, after])


# --- Planning -----------------------------------------------------------------------------------------------------
def returns(folder: Path, motors: dict[str, float], rate: float | None, episodes: int) -> np.ndarray:
    """Mean return of each member `[M]`, with the run's rate of adaptation or another."""
    plan, agent, state, _ = load.load(folder)
    if rate is not None:
        state = state._replace(hyper=state.hyper | {"adapt_lr": jnp.full(plan.members, rate)})
    return evaluate(agent, envs.make(TASK, episodes, **motors), state, member_keys(1, plan.members), episodes).means()


def knowing(folder: Path, motors: dict[str, float], episodes: int) -> np.ndarray:
    """The same of a planner that knows the true equations and each motor's gain: the planner of the run."""
    plan = load.plan_of(folder)
    hidden = envs.make(TASK, episodes, **motors)
    spec = replace(hidden.spec, obs=jax.ShapeDtypeStruct((4,), jnp.float32))
    env = hidden._replace(spec=spec, reset=_showing(hidden.reset), step=_showing(hidden.step))
    planner = grbal.build_planner(1, plan.settings)

    def act(state: Any, carry: Any, step: Step, key: Key, mode: str) -> Acted:
        def one(memory: Any, obs: Array, key: Key) -> tuple[Any, Array]:
            place, gain = jnp.stack([jnp.arctan2(obs[1], obs[0]), obs[2]]), obs[3]

            def score(plans: Array, key: Key) -> Array:
                def move(place: Array, push: Array) -> tuple[Array, Array]:
                    reward = continuous.swing_reward(continuous.shown(place), push)
                    return continuous.swung(place, gain * push), reward

                start = jnp.broadcast_to(place, (len(plans), 2))
                return jax.lax.scan(move, start, plans[..., 0].T)[1].sum(0)

            return planner.plan(score, memory, key)

        carry, action = jax.vmap(one)(carry, step.obs, jax.random.split(key, episodes))
        return carry, action, {}

    def reset(state: Any, num: int) -> Any:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), planner.start())

    agent = Agent(lambda key, hyper: {}, reset, act, {}, None, (), {})
    nobody = {"none": jnp.zeros(1)}
    return evaluate(agent, env, nobody, member_keys(1, 1), episodes).means()


def _showing(call: Any) -> Any:
    """A reset or step whose observation ends in the gain."""

    def shown(*arguments: Any) -> Any:
        state, step = call(*arguments)
        return state, step._replace(obs=jnp.concatenate([step.obs, state.state[1][:, None]], -1))

    return shown


def main(root: tyro.conf.Positional[Path], episodes: int = 50) -> None:
    """Print both tables of the runs in `root`, and write them to ROOT/grbal.json.

    Args:
        root: Where the sweep put its runs.
        episodes: Episodes of each member and motor.
    """
    adapted, plain = root / "pendulum-adapted", root / "pendulum-plain"
    found: dict[str, Any] = {}
    for name, motors in MOTORS.items():
        ours = {steps: errors(adapted, motors, steps) for steps in (1, 2, 4)}
        theirs = errors(plain, motors, 1, RATES)
        truth = knowing(adapted, motors, episodes)[0]
        still, moved = returns(adapted, motors, 0.0, episodes), returns(adapted, motors, None, episodes)
        found[name] = {
            "error": {"unadapted": ours[1][0].tolist(), **{str(k): v[1].tolist() for k, v in ours.items()}},
            "plain": {"unadapted": theirs[0].tolist(), "adapted": theirs[1].tolist()},
            "return": {"unadapted": still.tolist(), "adapted": moved.tolist(), "true": float(truth)},
            "closed": ((moved - still) / (truth - still)).tolist(),
        }
        each = lambda values: " ".join(f"{value:.3g}" for value in values)  # noqa: E731
        print(f"{name}\n  error, unadapted       {each(ours[1][0])}")
        for steps, values in ours.items():
            print(f"  error, {steps} steps         {each(values[1])}")
        print(f"  plain, before / after  {each(theirs[0])} / {each(theirs[1])}")
        print(f"  return, unadapted {each(still)}; adapted {each(moved)}; true equations {truth:.4g}", flush=True)
    json_files.write_json(root / "grbal.json", found)
    print(root / "grbal.json")


if __name__ == "__main__":
    tyro.cli(main)
