"""Pure environments: the one place where batching and next-step reset are written."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.envs import border
from jaxwm.errors import check_number
from jaxwm.types import Array, Env, Key, PyTree, Spec, Step

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


def from_functions(spec: Spec, reset: Reset, step: Transition, num_envs: int = 1) -> Env:
    """A pure, batched `Env` out of two unbatched JAX functions.

    `reset(key) -> (state, obs)` and `step(key, state, action) -> (state, obs, reward, terminated, truncated)` describe
    one environment, without auto-reset: `obs` as in `spec.obs`, `reward` a number, `terminated` and `truncated` bools,
    `action` int32 `[]`, int32 `[len(n)]` or float32 `[size]` in [-1, 1] after `spec.action`. Both functions are run at
    every step (the result is selected), so a reset should cost little.

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

    def advance(now: EnvState, action: Array) -> tuple[EnvState, Step]:
        key, draw = jax.random.split(now.key)
        again, first = start(key, draw)
        state, obs, reward, terminated, truncated = step(draw, now.state, action)
        terminated = border.traced_flag(spec.name, "terminated", terminated)
        last = terminated | border.traced_flag(spec.name, "truncated", truncated)
        reward = border.traced_reward(spec.name, reward)
        after = Step(border.traced_observation(spec, obs), reward, no, last, terminated)
        state = border.traced_state(f"{spec.name}: the state", state, again.state)
        pick = lambda a, b: jax.lax.select(now.is_last, a, b)  # noqa: E731
        state, out = jax.tree.map(pick, (again.state, first), (state, after))
        return EnvState(state, key, out.is_last, now.replaced), out

    def finite(now: EnvState, out: Step) -> tuple[EnvState, Step]:
        (obs, reward), bad = border.traced_finite((out.obs, out.reward))
        return now._replace(replaced=now.replaced + bad), out._replace(obs=obs, reward=reward)

    def reset_all(key: Key) -> tuple[EnvState, Step]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_envs))
        keys = jax.vmap(jax.random.split)(keys)
        return jax.vmap(lambda key, draw: finite(*start(key, draw)))(keys[:, 0], keys[:, 1])

    def step_all(now: EnvState, action: Array) -> tuple[EnvState, Step]:
        action = border.traced_action(spec, action, (num_envs,))
        return jax.vmap(lambda now, action: finite(*advance(now, action)))(now, action)

    return Env(spec, reset_all, step_all, num_envs, pure=True)


def check_num_envs(num_envs: Any) -> None:
    """Raise ValueError unless `num_envs` is a whole number of at least 1."""
    check_number("num_envs", num_envs, least=1, whole=True)
