"""Pure environments: the one place where batching and next-step reset are written."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.envs import border
from jaxwm.errors import check_number
from jaxwm.types import Array, Env, Key, Metrics, PyTree, Spec, Step

Reset = Callable[[Key], tuple[PyTree, PyTree]]
"""`key -> (state, obs)` of one environment."""

Transition = Callable[[Key, PyTree, Any], tuple[PyTree, PyTree, Any, Any, Any]]
"""`(key, state, action) -> (state, obs, reward, terminated, truncated)` of one environment."""


class EnvState(NamedTuple):
    """What a pure environment carries; every leaf has a leading axis `[N]`."""

    state: PyTree
    key: Key  # typed keys [N]: every environment draws from its own stream
    is_last: Array  # bool [N]: the next step is a reset
    replaced: Array  # int32 [N]: steps so far in which a number was not finite, see `envs.border`


def from_functions(
    spec: Spec, reset: Reset, step: Transition, num_envs: int = 1, metrics: Callable[[PyTree], Metrics] | None = None,
    rare_resets: bool = False,
) -> Env:  # fmt: skip
    """A pure, batched `Env` out of two unbatched JAX functions.

    `reset(key) -> (state, obs)` and `step(key, state, action) -> (state, obs, reward, terminated, truncated)` describe
    one environment, without auto-reset: `obs` as in `spec.obs`, `reward` a number, `terminated` and `truncated` bools,
    `action` int32 `[]`, int32 `[len(n)]`, float32 `[size]` in [-1, 1], or float32 `[len(n) + size]`, after
    `spec.action`. `metrics(state)` are numbers by name, see `Env.metrics`.

    Both functions are run at every step (the result is selected), so a reset should cost little. Where it costs more
    than a step, `rare_resets` runs it only for environments that start anew, one after the other; the numbers are the
    same.

    Environment n draws from `fold_in(key, n)`: its stream depends neither on `num_envs` nor on other members. The state
    keeps the dtypes that `reset` gave it, strongly typed, and can be carried by `lax.scan`.

    Raises `border.Misfit`, when traced, where names, shapes or kinds of number are not those of the spec, or of the
    state that `reset` gave."""
    check_num_envs(num_envs)
    no, yes = jnp.bool(False), jnp.bool(True)

    def start(key: Key, draw: Key) -> tuple[EnvState, Step]:
        state, obs = reset(draw)
        first = Step(border.traced_observation(spec, obs), jnp.float32(0), yes, no, no)
        return EnvState(jax.tree.map(border.strong, state), key, no, jnp.int32(0)), first

    def begin(now: EnvState) -> tuple[EnvState, Step]:
        key, draw = jax.random.split(now.key)
        new, first = start(key, draw)
        return new._replace(replaced=now.replaced), first

    def advance(now: EnvState, action: Array) -> tuple[EnvState, Step]:
        key, draw = jax.random.split(now.key)
        state, obs, reward, terminated, truncated = step(draw, now.state, action)
        terminated = border.traced_flag(spec.name, "terminated", terminated)
        last = terminated | border.traced_flag(spec.name, "truncated", truncated)
        obs, reward = border.traced_observation(spec, obs), border.traced_reward(spec.name, reward)
        state = border.traced_state(f"{spec.name}: the state", state, now.state)
        return EnvState(state, key, last, now.replaced), Step(obs, reward, no, last, terminated)

    def reset_all(key: Key) -> tuple[EnvState, Step]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_envs))
        keys = jax.vmap(jax.random.split)(keys)
        return jax.vmap(lambda key, draw: _finite(*start(key, draw)))(keys[:, 0], keys[:, 1])

    def step_all(now: EnvState, action: Array) -> tuple[EnvState, Step]:
        action = border.traced_action(spec, action, (num_envs,))
        after = jax.vmap(advance)(now, action)
        if rare_resets:
            after = _one_by_one(begin, now, after)
        else:
            pick = lambda new, a, b: jax.tree.map(partial(jax.lax.select, new), a, b)  # noqa: E731
            after = jax.vmap(pick)(now.is_last, jax.vmap(begin)(now), after)
        return jax.vmap(_finite)(*after)  # type: ignore[arg-type]

    return Env(spec, reset_all, step_all, num_envs, pure=True, metrics=partial(_measured, metrics))


def _finite(now: EnvState, out: Step) -> tuple[EnvState, Step]:
    """State and step of one environment, without numbers that are not finite."""
    (obs, reward), bad = border.traced_finite((out.obs, out.reward))
    return now._replace(replaced=now.replaced + bad), out._replace(obs=obs, reward=reward)


def _measured(metrics: Callable[[PyTree], Metrics] | None, now: EnvState) -> Metrics:
    """`Env.metrics`, of those of one environment."""
    return jax.vmap(lambda state: jax.tree.map(jnp.float32, metrics(state)))(now.state) if metrics else {}


def _one_by_one(begin: Callable, now: EnvState, after: tuple[EnvState, Step]) -> tuple[EnvState, Step]:
    """`after`, with `begin(now)` for every environment that starts anew. A loop and no `cond`: mapped over members, a
    loop still ends when no member needs it, whereas a `cond` runs both of its branches."""

    def trip(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        waiting, after = carry
        n = jnp.argmax(waiting)
        new = begin(jax.tree.map(lambda x: x[n], now))
        put = lambda old, x: old.at[n].set(jnp.where(waiting[n], x, old[n]))  # noqa: E731
        return waiting.at[n].set(False), jax.tree.map(put, after, new)

    return jax.lax.while_loop(lambda carry: carry[0].any(), trip, (now.is_last, after))[1]


def check_num_envs(num_envs: Any) -> None:
    """Raise ValueError unless `num_envs` is a whole number of at least 1."""
    check_number("num_envs", num_envs, least=1, whole=True)
