"""Pure environments: the one place where batching and next-step reset are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.envs import spaces
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


def from_functions(spec: Spec, reset: Reset, step: Transition, num_envs: int = 1) -> Env:
    """A pure, batched `Env` out of two unbatched JAX functions.

    `reset(key) -> (state, obs)` and `step(key, state, action) -> (state, obs, reward, terminated, truncated)` describe
    one environment, without auto-reset: `obs` as in `spec.obs`, `reward` a number, `terminated` and `truncated` bools,
    `action` int32 `[]`, int32 `[len(n)]` or float32 `[size]` after `spec.action`. Both functions are run at every step
    (the result is selected), so a reset should cost little.

    Environment n draws from `fold_in(key, n)`: its stream depends neither on `num_envs` nor on other members. The state
    keeps the dtypes that `reset` gave it, strongly typed, and can be carried by `lax.scan`.

    Raises ValueError, when traced, for an observation or state whose structure, shape or kind of number does not fit.
    """
    check_num_envs(num_envs)

    no, yes = jnp.bool(False), jnp.bool(True)

    def start(key: Key, draw: Key) -> tuple[EnvState, Step]:
        state, obs = reset(draw)
        first = Step(_like(obs, spec.obs, "the observation"), jnp.float32(0), yes, no, no)
        return EnvState(jax.tree.map(_strong, state), key, no), first

    def advance(now: EnvState, action: Array) -> tuple[EnvState, Step]:
        key, draw = jax.random.split(now.key)
        again, first = start(key, draw)
        state, obs, reward, terminated, truncated = step(draw, now.state, action)
        terminated = _strong(terminated, bool)
        last = terminated | _strong(truncated, bool)
        after = Step(_like(obs, spec.obs, "the observation"), _strong(reward, jnp.float32), no, last, terminated)
        state = _like(state, again.state, "the state")
        state, out = jax.tree.map(lambda a, b: jax.lax.select(now.is_last, a, b), (again.state, first), (state, after))
        return EnvState(state, key, out.is_last), out

    def reset_all(key: Key) -> tuple[EnvState, Step]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_envs))
        keys = jax.vmap(jax.random.split)(keys)
        return jax.vmap(start)(keys[:, 0], keys[:, 1])

    def step_all(now: EnvState, action: Array) -> tuple[EnvState, Step]:
        spaces.check_action(spec, action, (num_envs,))
        return jax.vmap(advance)(now, action)

    return Env(spec, reset_all, step_all, num_envs, pure=True)


def check_num_envs(num_envs: Any) -> None:
    """Raise ValueError unless `num_envs` is a whole number of at least 1."""
    check_number("num_envs", num_envs, least=1, whole=True)


def _strong(x: Any, dtype: Any = None) -> Array:
    """`x` as an array with a strong dtype; a typed key is left alone."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, dtype or x.dtype)


def _like(new: PyTree, reference: PyTree, what: str) -> PyTree:
    """`new` with the dtypes of `reference`; ValueError where that would change structure, shape or lose fractions."""
    if jax.tree.structure(new) != jax.tree.structure(reference):
        raise ValueError(f"{what} is {jax.tree.structure(new)}, expected {jax.tree.structure(reference)}")

    def cast(path: Any, x: Any, like: Any) -> Array:
        x = jnp.asarray(x)
        where = what + jax.tree_util.keystr(path)
        if x.shape != like.shape:
            raise ValueError(f"{where} has shape {x.shape}, expected {like.shape}")
        if jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(like.dtype, jnp.integer):
            raise ValueError(f"{where} is {x.dtype}, expected {like.dtype}: the cast would drop fractions")
        return _strong(x, like.dtype)

    return jax.tree_util.tree_map_with_path(cast, new, reference)
