"""Real episodes to look at: the policy plays, its records are kept, windows are cut out of them.

Arrays are NumPy, time first as in a replay ring: T rows of N environments `[T, N, ...]`; windows are `[B, W, ...]`."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.run.load import environment, load
from jaxwm.run.plan import Plan
from jaxwm.training.host import Pool
from jaxwm.training.life import ACT, ENV, EVAL, member_keys, stream
from jaxwm.training.program import kept
from jaxwm.types import Agent, Env, Key, Mode, Record, Step


class Player(NamedTuple):
    """One member of a run, ready to play: its state (without the axis M), and the key of its random choices."""

    plan: Plan
    agent: Agent
    state: Any
    key: Key
    member: int
    env_steps: int
    seed: int

    def title(self) -> str:
        """Who this is, for headings."""
        return f"{self.plan.agent} on {self.plan.env}, member {self.member}, {self.env_steps:,} steps"

    def envs(self, num_envs: int) -> Env:
        """The environment of the run, `num_envs` of it."""
        return environment(self.plan, num_envs)


def open_player(folder: Path, member: int, seed: int, checkpoint: str = "newest") -> Player:
    """A member of the run in `folder`; `checkpoint` as in `run.load`.
    FileNotFoundError without run or checkpoint, ValueError for a wrong member."""
    plan, agent, state, env_steps = load(folder, checkpoint)
    if not 0 <= member < plan.members:
        have = "member 0 only" if plan.members == 1 else f"members 0 to {plan.members - 1}"
        raise ValueError(f"there is no member {member}: the run has {have}")
    key = stream(member_keys(seed, plan.members)[member], EVAL)
    return Player(plan, agent, jax.tree.map(lambda x: x[member], state), key, member, env_steps, seed)


def play(agent: Agent, env: Env, state: Any, key: Key, mode: Mode = "explore") -> Generator[Record]:
    """Records `[N, ...]` of one member, one per time step and without end; close it when you have enough.
    A simulator that dies is built again with other seeds, with a warning; the episode before has no end.
    EnvironmentDied when three restarts in a row have not helped; ValueError for a system in which nothing acts."""
    if agent.act is None:
        raise ValueError(
            f"nothing acts in this system, so it cannot play {env.spec.name}: see its dreams (jaxwm dream)"
        )
    start, advance, close = single(env)
    act = jax.jit(lambda state, memory, step, t: agent.act(state, memory, step, stream(key, ACT, t), mode))
    memory = agent.reset(state, env.num_envs)
    handle, step = start(stream(key, ENV))
    try:
        for t in range(2**31):
            memory, action, extras = act(state, memory, step, t)
            yield jax.device_get(Record(kept(step.obs), *step[1:], action, extras))
            handle, step = advance(handle, action)
    finally:
        close(handle)


def each_member(folder: Path, rows: int, envs: int, seed: int = 1) -> Iterator[tuple[Player, Record]]:
    """Every member of a run, and records `[rows, envs, ...]` of new episodes of its exploring policy."""
    for member in range(load(folder).plan.members):
        player = open_player(folder, member, seed)
        with closing(play(player.agent, player.envs(envs), player.state, player.key)) as found:
            yield player, record(islice(found, rows))


def single(env: Env) -> tuple[Callable[..., tuple[Any, Step]], Callable[..., tuple[Any, Step]], Callable]:
    """A pure or a host environment as `(reset, step, close)` of a pure one: one key, and arrays `[N, ...]`."""
    if env.pure:
        return jax.jit(env.reset), jax.jit(env.step), env.close

    def start(key: Key) -> tuple[Pool, Any]:
        pool = Pool(env, key[None])
        return pool, jax.tree.map(lambda x: x[0], pool.step)

    def advance(pool: Pool, action: Any) -> tuple[Pool, Any]:
        pool.action = np.asarray(action)[None]
        step = pool.advance()
        pool.fresh = False
        return pool, jax.tree.map(lambda x: x[0], step)

    return start, advance, Pool.close


def record(records: Iterable[Record]) -> Record:
    """Records `[...]` as one, `[T, ...]`."""
    return jax.tree.map(lambda *x: np.stack(x), *records)


def fit(records: Record, context: int, horizon: int) -> tuple[int, int]:
    """`context` and `horizon`, shortened so that some window fits into the longest episode that was recorded.
    A quarter of a short episode is context, but at least two records: some models start from the first one's latent."""
    began, after = _bounds(records.is_first)
    longest = int((after - began).max())
    if context + horizon > longest:
        context = min(context, max(2, longest // 4))
        horizon = min(horizon, max(1, longest - context))
    return context, horizon


def windows(records: Record, context: int, horizon: int, count: int, rng: Any) -> tuple[Record, np.ndarray]:
    """Up to `count` windows `[B, context + horizon, ...]` of `records`, and which dreamed steps count, bool `[B, H]`.
    Windows start anywhere, drawn without repetition. Those inside one episode come first; where there are too few of
    them, a context may begin in the episode before (models reset at `is_first`), and an episode may end before the
    horizon does: its last record still counts, what follows belongs to the next episode and does not.
    ValueError where nothing can be dreamed at all."""
    began, after = _bounds(records.is_first)
    rows = len(began)
    pivot = np.arange(context - 1, rows - horizon)[:, None]  # row of the last context record
    steps = np.minimum(after[pivot[:, 0]] - pivot - 1, horizon)
    inside = began[pivot[:, 0]] <= pivot - context + 1
    places = rng.permutation(np.argwhere(steps > 0))
    if not len(places):
        raise ValueError(f"no window of {context} + {horizon} records in {rows}: make --context or --horizon smaller")
    order = np.lexsort((-steps[tuple(places.T)], ~inside[tuple(places.T)]))
    start, env = places[order[:count]].T
    index = start[:, None] + np.arange(context + horizon), env[:, None]
    return jax.tree.map(lambda x: x[index], records), np.arange(horizon) < steps[start, env][:, None]


def _bounds(first: Any) -> tuple[np.ndarray, np.ndarray]:
    """For every record `[T, N]`: the row where its episode began, and the row where the next one begins (or T)."""
    rows = len(first)
    time = np.arange(rows)[:, None]
    began = np.maximum.accumulate(np.where(first, time, 0), 0)
    upcoming = np.minimum.accumulate(np.where(first, time, rows)[::-1], 0)[::-1]
    return began, np.concatenate([upcoming[1:], np.full((1, first.shape[1]), rows)])


def episodes(records: Record) -> list[Record]:
    """An episode of every environment, `[T', ...]` each: the first one that ends, else the first one there is.
    Episodes without an end, because their simulator died or the recording stopped, end before the next one begins."""
    began, after = _bounds(records.is_first)
    ended = records.is_last.any(0)
    last = np.where(ended, records.is_last.argmax(0), after[0] - 1)
    first = np.take_along_axis(began, last[None], 0)[0]
    spans = enumerate(zip(first, last, strict=True))
    return [jax.tree.map(lambda x, n=n, a=a, b=b: x[a : b + 1, n], records) for n, (a, b) in spans]
