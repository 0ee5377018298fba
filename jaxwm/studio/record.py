"""`jaxwm record`: episodes of a policy, or of random play, as recordings to learn from (see `jaxwm.data`)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from jaxwm import data, envs, spaces
from jaxwm.data import Episode
from jaxwm.errors import check_number
from jaxwm.run.load import import_own, plan_of
from jaxwm.studio import episodes, recordings
from jaxwm.training.life import EVAL, member_keys, stream
from jaxwm.training.program import kept
from jaxwm.types import Agent, Env, Key, Mode, Record

WIDTH = 16  # environments that play side by side


class Settings(NamedTuple):
    """What to record: so many episodes, or, where given, whole episodes until there are so many steps."""

    episodes: int
    steps: int | None
    mode: Mode
    seed: int
    format: str = "npy"


class Place(NamedTuple):
    """Where to record: the environment's name, its options, and modules to import first."""

    env: str
    options: dict[str, Any]
    imports: tuple[str, ...]


def place(run: Path | None, env: str | None, options: dict[str, Any], imports: tuple[str, ...]) -> Place:
    """The environment to record in: as given, and else that of the run."""
    plan = plan_of(run) if run is not None else None
    name = env or (plan.env if plan else None)
    if name is None:
        raise ValueError("which environment? --env SUITE/TASK")
    if plan is not None and plan.env == name:
        options = plan.env_options | options
    files = tuple(str(Path(x).resolve()) if x.endswith(".py") else x for x in imports)
    return Place(name, options, files or (plan.imports if plan else ()))


def record(player: episodes.Player | None, where: Place, out: Path, settings: Settings, console: Console) -> int:
    """Let a player play, or nobody at random, and write; how many records the folder holds now. Nothing is left of it
    where playing fails. ValueError where environment and run or folder do not fit."""
    if settings.steps is not None:
        check_number("--steps", settings.steps, least=1, whole=True)
    import_own(where.imports)
    env = envs.make(where.env, num_envs=WIDTH, **where.options)
    if player:
        agent, state, key = player.agent, player.state, player.key
    else:
        agent, state, key = _at_random(env), (), stream(member_keys(settings.seed, 1)[0], EVAL)
    returns: list[float] = []
    lengths: list[int] = []
    found = _counted(_play(episodes.play(agent, env, state, key, settings.mode), settings, console), returns, lengths)
    spec = replace(env.spec, obs=kept(env.spec.obs), simulate=None)
    if settings.format == "mp4":
        spec, found = recordings.filmed(spec, found)
    total = data.append(out, spec, found, where.env, settings.format)
    said = f"{len(returns):,} episodes ({settings.mode}), mean return {np.mean(returns):.2f}, {sum(lengths):,} records"
    console.print(f"{out}: {said}; {total:,} in all", highlight=False)
    return total


def _counted(found: Iterable[Episode], returns: list[float], lengths: list[int]) -> Iterator[Episode]:
    """The episodes, whose returns and lengths are noted as they pass."""
    for episode in found:
        returns.append(float(episode.reward.sum(dtype=np.float64)))
        lengths.append(len(episode.reward))
        yield episode


def _at_random(env: Env) -> Agent:
    """Random play, legal where the environment says what is."""

    def act(state: Any, carry: Any, step: Any, key: Key, mode: str) -> tuple[Any, Any, dict]:
        legal = step.obs.get("legal") if isinstance(step.obs, dict) else None
        return carry, spaces.random_action(env.spec.action, key, len(step.reward), legal), {}

    none: Any = None
    return Agent(none, lambda state, num: (), act, {}, None, (), {})


def _play(records: Iterator[Record], settings: Settings, console: Console) -> Iterator[Episode]:
    """Whole episodes, in the order of their ends."""
    done, want = 0, settings.steps or settings.episodes
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("recording", total=want)
        for episode in _episodes(records):
            yield episode
            done += len(episode.reward) if settings.steps else 1
            progress.update(task, completed=min(want, done))
            if done >= want:
                break


def _episodes(records: Iterator[Record]) -> Iterator[Episode]:
    """Episodes that end, out of records `[N, ...]`, one per row."""
    open_rows: list[list[Record]] = [[] for _ in range(WIDTH)]
    try:
        for row in records:
            for n in range(WIDTH):
                one = jax.tree.map(lambda x, n=n: x[n], row._replace(extras=()))
                open_rows[n] = [one] if one.is_first else [*open_rows[n], one]
                if one.is_last:
                    whole: Any = episodes.record(open_rows[n])
                    yield Episode(whole.obs, whole.reward, whole.action, bool(whole.is_terminal[-1]))
                    open_rows[n] = []
    finally:
        records.close()  # type: ignore[attr-defined]
