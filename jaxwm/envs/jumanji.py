"""Jumanji: combinatorial problems in JAX (Bonnet et al. 2024), pure.

An observation is a dict of the library's own fields; those of an inner record are joined by "_". Flags stay bool, whole
numbers with few values (`FEW` at most) become one-hot bool, everything else is a float32 vector.

Where the mask of legal actions fits, it is the sensor `legal`. Several choices with one mask over all combinations,
such as a piece's rotation and column in Tetris, become one choice among these combinations. Choices with a mask each,
such as those of several agents, stay apart. The rewards of several agents are added up: they are one team."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import gym_spaces
from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_number
from jaxwm.types import ActionSpace, Array, Box, Discrete, Env, MultiDiscrete, Spec

FEW = 32
MOST = 20_000  # combinations of choices that are taken as one choice


def jumanji(task: str, num_envs: int = 1, *, max_steps: int | None = None, **options: Any) -> Env:
    """The problem `task`, such as "Snake" (the newest version) or "Snake-v1".
    `max_steps` is a time limit besides the problem's own; `options` are arguments of the problem's constructor, such as
    `time_limit=100`. Raises ImportError where jumanji is missing, ValueError for an option that it does not know."""
    name = f"jumanji-jax/{task}"
    native: Any = _build(name, task, options)
    if max_steps is not None:
        check_number(f"{name}: max_steps", max_steps, least=1, whole=True)
    first = jax.eval_shape(native.reset, jax.random.key(0))[1].observation
    action, write, masked = _action(name, native.action_spec, getattr(first, "action_mask", None))
    read = _reader(native.observation_spec, masked)
    limit = min(x for x in (max_steps, getattr(native, "time_limit", None), math.inf) if x is not None)

    def reset(key: Array) -> tuple[Any, Any]:
        state, seen = native.reset(key)
        return (state, jnp.int32(0)), read(seen.observation)

    def step(key: Array, now: Any, choice: Array) -> tuple[Any, Any, Array, Array, Array]:
        state, seen = native.step(now[0], write(choice))
        over = seen.last() & (jnp.max(seen.discount) == 0)
        late = seen.last() | (now[1] + 1 >= limit)
        return (state, now[1] + 1), read(seen.observation), jnp.sum(seen.reward), over, late

    obs = jax.eval_shape(read, first)
    spec = Spec(name, obs, action, None if limit == math.inf else int(limit))
    return from_functions(spec, reset, step, num_envs, rare_resets=True)


def _build(name: str, task: str, options: dict[str, Any]) -> Any:
    try:
        library: Any = import_module("jumanji")
    except ImportError as error:
        raise ImportError(f"{name} needs jumanji ({error}): pip install 'jaxwm[jumanji]'") from error
    ids = library.registered_environments()
    versions = [i for i in ids if i == task or re.sub(r"-v\d+$", "", i) == task]
    try:
        return library.make(max(versions, key=lambda i: int(i.rpartition("-v")[2])), **options)
    except TypeError as error:
        raise ValueError(f"{name} does not take these options: {error}") from None
    except Exception as error:  # Sokoban downloads its levels
        raise ConnectionError(f"{name} could not be built ({type(error).__name__}: {str(error)[:100]})") from error


def _action(name: str, spec: Any, mask: Any) -> tuple[ActionSpace, Callable[[Array], Array], bool]:
    """Our action space, the function from one of our actions to the native one, and whether the mask fits it."""
    shape = None if mask is None else tuple(mask.shape)
    sizes, start = _choices(spec)
    if sizes is None:
        low, high = gym_spaces.box_range(spec.minimum, spec.maximum, tuple(spec.shape), name)
        low, high = jnp.asarray(low, spec.dtype), jnp.asarray(high, spec.dtype)
        share = lambda a: (a.reshape(low.shape) + 1) / 2  # noqa: E731
        return Box(low.size), lambda a: jnp.clip(low + share(a) * (high - low), low, high), False
    each = tuple(int(n) for n in sizes.ravel())
    native = lambda a: a.reshape(sizes.shape).astype(spec.dtype) + start  # noqa: E731
    if len(each) > 1 and shape in (None, each) and math.prod(each) <= MOST:
        whole = lambda a: native(jnp.stack(jnp.unravel_index(a, each)))  # noqa: E731
        return Discrete(math.prod(each)), whole, shape is not None
    fits = shape is not None and math.prod(shape) == sum(each)
    return (MultiDiscrete(each) if sizes.ndim else Discrete(int(sizes))), native, fits


def _choices(spec: Any) -> tuple[np.ndarray | None, Any]:
    """The options of every choice of a native action, and where they begin; None for one that is a vector."""
    if hasattr(spec, "num_values"):
        return np.asarray(spec.num_values), np.asarray(0, spec.dtype)
    if not jnp.issubdtype(spec.dtype, jnp.integer):
        return None, None
    low, high = (np.broadcast_to(np.asarray(x), spec.shape) for x in (spec.minimum, spec.maximum))
    return high.astype(np.int64) - low + 1, low.astype(spec.dtype)


def _reader(spec: Any, masked: bool) -> Callable[[Any], Any]:
    """The function from a native observation to ours."""

    def read(obs: Any) -> Any:
        named = dict(_leaves(obs, spec, ()))
        if masked:
            named["legal"] = named.pop("action_mask").ravel()
        return named

    return read


def _leaves(obs: Any, spec: Any, path: tuple[str, ...]) -> Any:
    """The sensors of a native observation, by name."""
    fields = obs._asdict() if hasattr(obs, "_asdict") else vars(obs) if hasattr(obs, "__dataclass_fields__") else None
    if fields is None:
        yield "_".join(path) or "obs", _sensor(jnp.asarray(obs), spec)
        return
    for field, part in fields.items():
        yield from _leaves(part, spec[field], (*path, field))


def _sensor(x: Array, spec: Any) -> Array:
    """A flag as it is, one-hot where whole numbers have few values, otherwise a float vector."""
    if x.dtype == jnp.bool_:
        return x
    if jnp.issubdtype(x.dtype, jnp.integer) and hasattr(spec, "minimum"):
        low, high = np.asarray(spec.minimum).min(), np.asarray(spec.maximum).max()
        if high - low < FEW:
            return x[..., None] == jnp.arange(int(low), int(high) + 1)
    return x.astype(jnp.float32).reshape(x.shape if x.ndim < 3 else -1)
