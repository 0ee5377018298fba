"""Scores by whole episodes: the same code for trained, untrained and random policies.

Every environment contributes the same number of episodes, its first ones; taking whichever episodes end first would
favour short ones. Returns are sums of the raw reward until `is_last`."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.errors import check_choice, check_number
from jaxwm.training import processes, quick
from jaxwm.training.host import Pool
from jaxwm.training.life import ACT, ENV, EVAL, Finished, add_exactly, stream
from jaxwm.types import Agent, Env, Key, Mode

UNBOUNDED = 100_000  # steps after which an episode of an environment without a time limit is cut off


class Scores(NamedTuple):
    """Returns and lengths `[M, episodes]`; `complete` is False for episodes that the step limit cut off. `metrics` are
    those of the environment (`Env.metrics`), as they were at the end of each episode."""

    total: np.ndarray
    length: np.ndarray
    complete: np.ndarray
    metrics: dict[str, np.ndarray]

    def means(self) -> np.ndarray:
        """Mean return of every member, `[M]`."""
        return self.total.mean(1)


def evaluate(agent: Agent, env: Env, state: Any, keys: Key, episodes: int = 100, mode: Mode = "greedy") -> Scores:
    """Play `episodes` episodes with each member of `state` (leaves `[M, ...]`, keys `[M]`), in `env.num_envs`
    environments at once: as many as episodes where it is pure. ValueError if `episodes` is not a multiple of them."""
    return evaluator(agent, env, episodes, mode)(state, keys)


def evaluator(agent: Agent, env: Env, episodes: int = 100, mode: Mode = "greedy") -> Callable[[Any, Key], Scores]:
    """`evaluate` as a function `(state, keys) -> Scores` that compiles once, for those who evaluate again and again."""
    check_choice("mode", mode, get_args(Mode))
    check_number("episodes", episodes, least=1, whole=True)
    if episodes % env.num_envs:
        raise ValueError(f"{episodes} episodes cannot be shared equally by {env.num_envs} environments")
    play = (_pure if env.pure else _host)(agent, env, episodes // env.num_envs, mode)

    def run(state: Any, keys: Key) -> Scores:
        # the training population may be spread over devices; each of several processes plays for all members
        return play(processes.fetch(state), jax.vmap(partial(stream, which=EVAL))(keys))

    return run


def parallel(env_is_pure: bool, episodes: int, most: int = 10) -> int:
    """Environments to evaluate with: one an episode where they are free, else the largest divisor up to `most`."""
    return episodes if env_is_pure else max(n for n in range(1, min(most, episodes) + 1) if episodes % n == 0)


def _pure(agent: Agent, env: Env, rounds: int, mode: Mode) -> Callable[[Any, Key], Scores]:
    limit = env.spec.max_steps or UNBOUNDED

    def one(state, key):
        handle, step = env.reset(stream(key, ENV))
        zero = jnp.zeros(env.num_envs)

        def turn(carry):
            t, memory, handle, step, seen = carry
            memory, action, _ = agent.act(state, memory, step, stream(key, ACT, t), mode)
            handle, step = env.step(handle, action)
            live = ~seen.done
            sums = add_exactly(seen.total, seen.rest, live * step.reward)
            own = jax.tree.map(partial(jnp.where, live), env.metrics(handle), seen.metrics)
            return t + 1, memory, handle, step, Finished(seen.done | step.is_last, *sums, seen.length + live, own)

        go = lambda carry: (carry[0] < limit) & ~carry[-1].done.all()  # noqa: E731
        own = {name: zero for name in jax.eval_shape(env.metrics, handle)}
        seen = Finished(zero > 0, zero, zero, zero.astype(jnp.int32), own)
        start = (jnp.zeros((), jnp.int32), agent.reset(state, env.num_envs), handle, step, seen)
        return jax.lax.while_loop(go, turn, start)[-1]

    fold = jax.random.fold_in
    several = lambda state, key: jax.lax.map(lambda i: one(state, fold(key, i)), jnp.arange(rounds))  # noqa: E731
    program = quick.jit(jax.vmap(several))

    def play(state: Any, keys: Key) -> Scores:
        seen = jax.tree.map(lambda x: x.reshape(len(x), -1), jax.device_get(program(state, keys)))
        return Scores(seen.total + seen.rest.astype(np.float64), seen.length, seen.done, seen.metrics)

    return play


def _host(agent: Agent, env: Env, rounds: int, mode: Mode) -> Callable[[Any, Key], Scores]:
    act = quick.jit(jax.vmap(lambda s, c, x, k, t: agent.act(s, c, x, stream(k, ACT, t), mode)[:2], (0, 0, 0, 0, None)))
    num, longest = env.num_envs, env.spec.max_steps or UNBOUNDED

    def play(state: Any, keys: Key) -> Scores:
        members = len(keys)
        memory = jax.vmap(lambda s: agent.reset(s, num))(state)
        total, length = np.zeros((members, num)), np.zeros((members, num), int)
        results: list[list[tuple[float, int, bool]]] = [[] for _ in range(members * num)]
        limit, t = rounds * (longest + 1), 0
        with contextlib.closing(Pool(env, jax.vmap(partial(stream, which=ENV))(keys))) as pool:
            step = pool.step
            while min(map(len, results)) < rounds and t <= limit:
                memory, action = act(state, memory, step, keys, t)
                pool.action = np.asarray(action)
                step = pool.advance()
                if pool.fresh:  # it died: the episodes that were going on are played again
                    limit, pool.fresh = limit + longest + 1, False
                total, length = np.where(step.is_first, 0, total) + step.reward, np.where(step.is_first, 0, length + 1)
                for m, n in np.argwhere(step.is_last):
                    results[m * num + n].append((total[m, n], length[m, n], True))
                t += 1
        for i, played in enumerate(results):  # a step limit without an end: what was collected so far, marked
            m, n = divmod(i, num)
            played += [(total[m, n], length[m, n], False)] * max(0, rounds - len(played))
        table = np.array([played[:rounds] for played in results]).reshape(members, num * rounds, 3)
        return Scores(table[..., 0], table[..., 1].astype(int), table[..., 2] > 0, {})

    return play
