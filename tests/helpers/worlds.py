"""Environments played, and the rules of the contract that any stream of steps keeps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import ActionSpace, Discrete, Env, MultiDiscrete, Spec, Step

EXTRAS = {"craftax": "craftax", "jumanji-jax": "jumanji", "xminigrid": "xminigrid", "brax": "brax"}
"""Suite -> its library, where that is an extra: see tests/contract/test_extras.py."""


def actions(space: ActionSpace, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random actions `[*lead, ...]`."""
    if isinstance(space, Discrete):
        return rng.integers(0, space.n, lead, np.int32)
    if isinstance(space, MultiDiscrete):
        return rng.integers(0, space.n, (*lead, len(space.n)), np.int32)
    return rng.uniform(-1, 1, (*lead, space.size)).astype(np.float32)


def zeros(space: ActionSpace, lead: tuple[int, ...]) -> np.ndarray:
    return np.zeros_like(actions(space, lead, np.random.default_rng(0)))


def check_step(step: Step, spec: Spec, lead: tuple[int, ...]) -> None:
    """Structure, shapes and dtypes of one `Step`, arrays or their shapes."""
    assert jax.tree.structure(step.obs) == jax.tree.structure(spec.obs)
    jax.tree.map(lambda x, s: _check_leaf(x, (*lead, *s.shape), s.dtype), step.obs, spec.obs)
    _check_leaf(step.reward, lead, np.float32)
    for flag in (step.is_first, step.is_last, step.is_terminal):
        _check_leaf(flag, lead, np.bool_)


def _check_leaf(x: Any, shape: tuple[int, ...], dtype: Any) -> None:
    assert (x.shape, np.dtype(x.dtype)) == (shape, np.dtype(dtype))
    assert not getattr(x, "weak_type", False)


_rolls: dict[int, tuple[Env, Any]] = {}


def roll(env: Env, key: jax.Array, action: np.ndarray) -> Step:
    """A pure environment under `lax.scan`: actions `[T, N, ...]` to Steps `[T + 1, N, ...]`; one compile for an env."""
    _rolls.setdefault(id(env), (env, jax.jit(lambda key, action: unrolled(env, key, action))))
    return jax.device_get(_rolls[id(env)][1](key, jnp.asarray(action)))


def unrolled(env: Env, key: jax.Array, action: jax.Array) -> Step:
    state, first = env.reset(key)
    rest = jax.lax.scan(env.step, state, action)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def host_roll(env: Env, keys: jax.Array, action: np.ndarray) -> Step:
    """A host environment: actions `[T, M, N, ...]` to Steps `[T + 1, M, N, ...]`."""
    handle, step = env.reset(keys)
    steps = [step]
    for a in action:
        handle, step = env.step(handle, a)
        steps.append(step)
    env.close(handle)
    return jax.tree.map(lambda *x: np.stack(x), *steps)


def check_stream(steps: Step) -> None:
    """The rules that tie one step to the next; time is the first axis."""
    assert steps.is_first[0].all() and not steps.is_last[0].any()
    np.testing.assert_array_equal(steps.is_first[1:], steps.is_last[:-1])
    assert not steps.reward[steps.is_first].any()
    assert not (steps.is_first & (steps.is_last | steps.is_terminal)).any()
