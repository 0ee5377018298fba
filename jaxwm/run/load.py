"""From a plan or a run directory to agents: build, load, begin from other weights, score."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwm
from jaxwm import agents, data, envs, replay
from jaxwm.data.streams import HELD_OUT
from jaxwm.errors import suggest
from jaxwm.run import checkpoint, directory, export
from jaxwm.run.plan import Plan, read_plan
from jaxwm.schedule import offline, words
from jaxwm.training.evaluation import Scores, evaluate, parallel
from jaxwm.training.life import EVAL, member_keys, stream
from jaxwm.training.program import kept
from jaxwm.training.trainer import Trainer
from jaxwm.types import Agent, Collect, Data, Env, Source, Spec

WEIGHTS = "weights.safetensors"  # how `export` names a run's weights, and `push` a model's


def import_own(names: tuple[str, ...]) -> None:
    """Import files and modules that register the user's own environments, each once. ValueError where one fails."""
    for name in names:
        module = f"jaxwm_import_{Path(name).stem}" if name.endswith(".py") else name
        if module not in sys.modules:
            try:
                import_file(name, module) if name.endswith(".py") else importlib.import_module(name)
            except Exception as error:
                raise ValueError(f"--import {name} failed: {type(error).__name__}: {error}") from error


def import_file(file: str | Path, name: str) -> Any:
    """Run a Python file as the module `name`, and return it."""
    spec = importlib.util.spec_from_file_location(name, file)
    if not spec or not spec.loader:
        raise ValueError(f"{file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def environment(plan: Plan, num_envs: int = 1, **options: Any) -> Env:
    """The environment of a plan, with further options. ValueError where it has none."""
    import_own(plan.imports)
    if plan.env is None:
        raise ValueError(f"the recordings in {plan.data} name no environment: say which with --env SUITE/TASK")
    return envs.make(plan.env, num_envs=num_envs, **{**plan.env_options, **options})


def recordings(plan: Plan, streams: int, held_out: bool = False) -> Data:
    """The recordings of a plan, as so many streams. Raises as `data.open_data`."""
    assert plan.data is not None
    return data.open_data(plan.data, streams, plan.seed, held_out, **plan.data_options)


def _check_same(plan: Plan, recorded: Spec, played: Spec) -> None:
    """ValueError where a policy that learns from recordings could not play in the environment of the plan."""
    where = f"the recordings in {plan.data} do not fit {plan.env}"
    advice = "say with --env where it can play, with --env-option and --data-option how it is seen"
    if recorded.action != played.action:
        raise ValueError(f"{where}: they hold actions {recorded.action}, and it takes {played.action}: {advice}")
    named = lambda obs: obs if isinstance(obs, Mapping) else {"obs": obs}  # noqa: E731
    here, there = named(recorded.obs), named(kept(played.obs))
    for name in sorted(here.keys() | there.keys()):
        a, b = ((f"{x.dtype}{list(x.shape)}" if (x := obs.get(name)) else "nothing") for obs in (here, there))
        if a != b:
            raise ValueError(f"{where}: the sensor {name!r} is {a} there and {b} in it: {advice}")


def capacity(plan: Plan, records: Source) -> int:
    """Records that the replay holds: never more than the run writes."""
    if not isinstance(records, Env):
        return min(plan.settings.capacity, records.rows * records.num_envs)
    return min(plan.settings.capacity, plan.steps + records.num_envs if plan.steps else plan.settings.capacity)


def build(plan: Plan, **options: Any) -> tuple[Source, Agent, Trainer]:
    """Source of records, agent and trainer of a plan, with further options of the trainer."""
    num = plan.settings.envs
    records = environment(plan, num) if plan.data is None else recordings(plan, num)
    agent = agents.build(plan.agent, records.spec, plan.settings)
    room = capacity(plan, records)
    if not isinstance(records, Env):
        if any(isinstance(word, Collect) for word in words(agent.schedule)):
            if not agents.find(plan.agent).offline:
                raise ValueError(f"{plan.agent} cannot learn from recordings: its targets need what its own play saw")
            if plan.env is not None:
                _check_same(plan, records.spec, environment(plan).spec)
        agent = agent._replace(schedule=offline(agent.schedule, room // records.num_envs, records.rows))
    trainer = Trainer(agent, records, plan.members, room, plan.vary, shards=plan.shards, freeze=plan.freeze, **options)
    return records, agent, trainer


class Loaded(NamedTuple):
    """What `load` found. Leaves of `state` are `[M, ...]`; `steps` are environment steps of each member (updates where
    there is no environment)."""

    plan: Plan
    agent: Agent
    state: Any
    steps: int


def weights_of(path: Path) -> Path | None:
    """The file of weights that `path` is, or that a model in the folder `path` has (see `run.hub`); None for a run."""
    file = path / WEIGHTS
    inside = file.is_file() and not (path / directory.CHECKPOINTS).is_dir()
    return path if path.is_file() else file if inside else None


def plan_of(path: Path) -> Plan:
    """The plan of a run, a model or a file of weights; errors as in `load`."""
    if (file := weights_of(path)) is None:
        return read_plan(path)
    about = export.read_about(file)
    try:
        return Plan.from_json(about["plan"])
    except ValueError as error:
        made = about["plan"].get("jaxwm", "of unknown version")
        raise ValueError(f"{file}: {error} (made by jaxwm {made}, this is {jaxwm.__version__})") from error


def load(path: str | Path, which: str = "newest") -> Loaded:
    """A run's plan, agent and agent state, from its directory, from a file that `export` wrote or from a model that was
    pulled (these with a fresh state of the optimiser). `which` is "newest" (damaged ones are passed over), "best"
    (highest training return) or a step. FileNotFoundError where there is no run or checkpoint, ValueError where it
    cannot be read."""
    path = Path(path)
    alone: dict[str, Any] = dict(shards=1, start=None, start_parts=())
    devices = jax.local_devices()[:1]  # nothing is trained
    plan = plan_of(path)
    if (file := weights_of(path)) is not None:
        if plan.env and plan.data and not Path(plan.data).exists():  # learned from recordings that are elsewhere
            alone |= dict(data=None)
        _, agent, trainer = build(replace(plan, **alone), devices=devices)
        state = trainer.init_agents(member_keys(plan.seed, plan.members))
        params = export.read(file, jax.eval_shape(lambda: state.params))
        return Loaded(plan, agent, with_params(plan.agent, state, params), export.read_about(file)["steps"])
    with checkpoint.Checkpoints(path / directory.CHECKPOINTS, writing=False) as checkpoints:
        _, agent, trainer = build(replace(plan, **alone), devices=devices)
        state, steps = checkpoints.restore_agent(trainer.footprint()["state"], which)
    return Loaded(plan, agent, state, steps)


def with_params(agent: str, state: Any, params: dict[str, Any]) -> Any:
    """A state with some components of its parameters replaced, and with copies of these (`System.copies`, such as slow
    critics and target networks) to match."""
    whole = {**state.params, **params}
    state = state._replace(params=whole)
    for field, component in agents.find(agent).copies.items():
        if component is None or component in params:
            part = whole if component is None else whole[component]
            state = state._replace(**{field: jax.tree.map(jnp.copy, part)})
    return state


def begin(plan: Plan, state: Any) -> Any:
    """A fresh state `[M, ...]` with the weights of the run that `plan.start` names, whole or by component; its members
    are taken in turn. As a whole the rest of its state comes along, but for optimiser, hyper-parameters and counters.
    ValueError where a component is unknown there, or has other shapes."""
    assert plan.start is not None
    there = load(plan.start).state
    names = plan.start_parts or tuple(there.params)
    for name in names:
        for params, where in ((there.params, plan.start), (state.params, f"this {plan.agent}")):
            if name not in params:
                raise ValueError(f"{where} has no component {name!r}; {suggest(name, params)}")
    count, have = len(jax.tree.leaves(state.params)[0]), len(jax.tree.leaves(there.params)[0])
    take = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[np.arange(count) % have], tree)  # noqa: E731
    params = {name: take(there.params[name]) for name in names}
    for name in names:
        one = [jax.tree.map(lambda x: x[0], tree[name]) for tree in (params, state.params)]
        if wrong := checkpoint.misfit(*one):
            text = "component {!r} of {} does not fit: {} is {} there and {} here".format(name, plan.start, *wrong)
            raise ValueError(f"{text}: use that run's settings, or take other components with --from-parts")
    state = with_params(plan.agent, state, params)
    if plan.start_parts or type(there) is not type(state) or weights_of(Path(plan.start)):
        return state
    others = [f for f in state._fields if f not in ("params", "opt", "hyper", "step")]
    return state._replace(**{name: take(getattr(there, name)) for name in others})


def export_params(folder: Path, file: Path, which: str = "newest") -> int:
    """Write a checkpoint's parameters as a safetensors file; its size in bytes. Errors as in `load`."""
    plan, _, state, steps = load(folder, which)
    return export.write(file, state.params, {"plan": plan.to_json(), "steps": steps})


def scoring_env(plan: Plan, episodes: int) -> Env:
    """The environment in which a policy is scored: that of the plan, with options of its own where there are any."""
    suite = (plan.env or "").split("/")[0]
    options = envs.SCORED.get(suite, {}) | plan.env_options | plan.score_options
    most = plan.settings.envs if suite == envs.REMOTE.rstrip("/") else 10  # no more places than training took
    return environment(plan, parallel(environment(plan, **options).pure, episodes, most), **options)


def score(plan: Plan, agent: Agent, state: Any, episodes: int, mode: Any = "greedy", seed: int = 0) -> Scores:
    """Evaluate every member over `episodes` episodes in environments of their own."""
    env = scoring_env(plan, episodes)
    return evaluate(agent, env, state, member_keys(seed, plan.members), episodes, mode)


def held_out(plan: Plan, agent: Agent, state: Any) -> dict[str, np.ndarray]:
    """An agent's own scores `{name: [M]}` on held-out episodes, the mean of 16 batches; {} where it has none."""
    if (score := agent.scores) is None or plan.data is None:
        return {}
    records = recordings(plan, 1, held_out=True)
    step = next(iter(agent.train_steps.values()))
    most = max(plan.settings.capacity // HELD_OUT, step.length)  # as much of the replay as of the recordings
    rows = records.read(0, min(max(records.rows, step.length), most))._replace(extras={})
    ring = replay.Ring(jax.tree.map(jnp.asarray, rows), jnp.asarray(len(rows.reward)))

    def one(state: Any, key: Any, i: jax.Array) -> dict[str, jax.Array]:
        k_batch, k_score = jax.random.split(jax.random.fold_in(key, i))
        return score(state, replay.sample(ring, k_batch, step.batch_size, step.length), k_score)

    mean = lambda *member: jax.tree.map(jnp.mean, jax.lax.map(partial(one, *member), jnp.arange(16)))  # noqa: E731
    keys = jax.vmap(lambda key: stream(key, EVAL))(member_keys(plan.seed, plan.members))
    return jax.device_get(jax.jit(jax.vmap(mean))(state, keys))


def scores(
    plan: Plan, agent: Agent, state: Any, episodes: int, mode: Any = "greedy", seed: int = 0
) -> tuple[dict[str, dict[str, list[float]]], bool]:
    """The named scores of every member, and whether all episodes came to their end. `return` (where the agent acts) is
    that of the policy (`trained`) and of random play (`random`), and so is what the environment counts besides; others
    are the agent's own, on held-out recordings."""
    others = {name: {"trained": np.asarray(x).tolist()} for name, x in held_out(plan, agent, state).items()}
    if agent.act is None or plan.env is None:
        return others, True
    trained, chance = (score(plan, agent, state, episodes, how, seed) for how in (mode, "random"))
    named = lambda scores: {"return": scores.total} | scores.metrics  # noqa: E731
    pairs = {name: (ours, named(chance)[name]) for name, ours in named(trained).items()}
    found = {k: {"trained": a.mean(1).tolist(), "random": b.mean(1).tolist()} for k, (a, b) in pairs.items()}
    return found | others, bool(trained.complete.all())
