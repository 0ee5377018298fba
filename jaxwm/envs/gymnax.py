"""gymnax: 26 small environments in JAX, five of them the MinAtar games."""

import contextlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import gym_spaces, images
from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_number, check_options
from jaxwm.types import ActionSpace, Box, Discrete, Env, Spec

PLANES = {"Catch-bsuite", "DeepSea-bsuite", "FourRooms-misc", "Pong-misc"}
"""Ids, besides MinAtar's, whose observations of rank 2 or 3 are 0/1 grids (FourRooms with `use_visual_obs=True`)."""

STATES = {"DeepSea-bsuite"}  # ids whose grids show one cell, the state (none at the end)
IMAGES = {"MNISTBandit-bsuite"}  # ids whose observations are grey images that gymnax divided by 255


def minatar(
    task: str, num_envs: int = 1, *, max_steps: int | None = None, image_size: int | None = None, **options: Any
) -> Env:
    """A MinAtar game, such as "Breakout": bool `[10, 10, C]`, C = 4 to 10 planes. Options as for `gymnax`."""
    return _make(f"minatar/{task}", f"{task}-MinAtar", num_envs, max_steps, image_size, options)


def gymnax(
    task: str, num_envs: int = 1, *, max_steps: int | None = None, image_size: int | None = None, **options: Any
) -> Env:
    """The gymnax environment with the id `task`, as a pure `Env`.
    `max_steps` replaces the time limit (`max_steps_in_episode`), and `image_size` draws 0/1 grids as uint8 images
    `[image_size, image_size, 3]`. Every other field of the environment's `EnvParams`
    and every argument of its constructor is an option: `gravity=12.0` for CartPole-v1, `size=20` for DeepSea-bsuite.
    0/1 grids are bool `[H, W, C]`, MNIST is uint8 `[28, 28, 1]`, a discrete state is one-hot bool `[n]`, the rest a
    flat float32 vector. Box actions in [-1, 1] are scaled to the native bounds. Raises ValueError for an unknown option
    and ConnectionError where MNIST cannot be downloaded."""
    return _make(f"gymnax/{task}", task, num_envs, max_steps, image_size, options)


def _make(
    name: str, task: str, num_envs: int, max_steps: int | None, image_size: int | None, options: dict[str, Any]
) -> Env:
    native, params = _build(name, task, max_steps, options)
    shape = jax.eval_shape(lambda: native.reset_env(jax.random.key(0), params)[0]).shape
    obs, read = _observation(task, native.observation_space(params), shape)
    if image_size is not None:
        obs, read = _drawn(name, obs, read, image_size)
    action, write = _action(name, native.action_space(params))

    def reset(key: jax.Array) -> tuple[Any, Any]:
        first, state = native.reset_env(key, params)
        return state, read(first)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        # Not `native.step`: it resets in the same step and the last observation would be lost.
        after, state, reward, terminated, _ = native.step_env(key, state, write(action), params)
        return state, read(after), reward, terminated, native.is_truncated(state, params)

    one_hot = task in STATES or (not shape and hasattr(native.observation_space(params), "n"))
    spec = Spec(name, obs, action, int(params.max_steps_in_episode), one_hot=one_hot)
    return from_functions(spec, reset, step, num_envs)


class _Later(ModuleType):
    """A module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _drawing_later(*names: str) -> Iterator[None]:
    """What is imported meanwhile gets these libraries when it draws: for gymnax, two seconds of three."""
    missing = [name for name in names if name not in sys.modules]
    sys.modules.update({name: _Later(name) for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _build(name: str, task: str, max_steps: int | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """The native environment and its parameters, with `options` given to whichever of the two knows them."""
    try:
        with _drawing_later("seaborn", "matplotlib.pyplot"):
            import gymnax as library
            from gymnax.registration import _registry
    except ImportError as error:
        raise ImportError(f"{name} needs gymnax ({error}): pip install 'gymnax>=1.0.1' six") from error
    if tuple(int(part) for part in version("gymnax").split(".")[:2]) < (1, 0):
        raise ImportError(f"gymnax {version('gymnax')} has another step function: pip install 'gymnax>=1.0.1'")

    built: Callable[..., Any] = _registry[task]
    parameters = inspect.signature(built).parameters.values()
    arguments = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    # An environment must exist before its parameters can be listed; a wrong option is reported all the same.
    chosen = {key: value for key, value in options.items() if key in arguments}
    _check_numbers(name, chosen, arguments, sizes=True)
    try:
        native, params = library.make(task, **chosen)
    except OSError as error:
        raise ConnectionError(f"{name} downloads its data set when it is built, and that failed: {error}") from error
    fields = {key: getattr(params, key) for key in type(params).__dataclass_fields__ if key != "max_steps_in_episode"}
    check_options(name, options, {*arguments, *fields, "max_steps", "image_size"})
    changed = {key: value for key, value in options.items() if key not in arguments}
    _check_numbers(name, changed, fields)
    if max_steps is not None:
        check_number(f"{name}: max_steps", max_steps, least=1, whole=True)
        changed["max_steps_in_episode"] = max_steps
    return native, params.replace(**changed)


def _check_numbers(name: str, options: dict[str, Any], defaults: dict[str, Any], sizes: bool = False) -> None:
    """Raise ValueError for a value that is no finite number where the default is one; `sizes`: integers above 0."""
    for key, value in options.items():
        default = defaults[key]
        if isinstance(default, int | float) and not isinstance(default, bool):
            whole = sizes and isinstance(default, int)
            check_number(f"{name}: {key}", value, least=min(1, default) if whole else -math.inf, whole=whole)


def _observation(task: str, space: Any, shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, Callable]:
    """`Spec.obs` and the function from one native observation, of `shape`, to ours."""
    if not shape and hasattr(space, "n"):
        return jax.ShapeDtypeStruct((space.n,), jnp.bool_), lambda obs: obs == jnp.arange(space.n)
    if len(shape) in (2, 3) and (task in PLANES | IMAGES or task.endswith("-MinAtar")):
        shape = shape if len(shape) == 3 else (*shape, 1)
        if task in IMAGES:
            pixels = lambda obs: jnp.round(obs.reshape(shape) * 255).astype(jnp.uint8)  # noqa: E731
            return jax.ShapeDtypeStruct(shape, jnp.uint8), pixels
        return jax.ShapeDtypeStruct(shape, jnp.bool_), lambda obs: obs.reshape(shape) != 0
    flat = shape if len(shape) > 2 else (math.prod(shape),)
    return jax.ShapeDtypeStruct(flat, jnp.float32), lambda obs: obs.reshape(flat).astype(jnp.float32)


def _drawn(name: str, obs: jax.ShapeDtypeStruct, read: Callable, size: int) -> tuple[jax.ShapeDtypeStruct, Callable]:
    """The same of 0/1 grids that are drawn as an image."""
    if obs.dtype != jnp.bool_ or len(obs.shape) != 3:
        raise ValueError(f"{name}: image_size draws 0/1 grids, and this environment observes {obs}: leave it out")
    shape, draw = images.draw(obs.shape, size)
    return jax.ShapeDtypeStruct(shape, jnp.uint8), lambda native: draw(read(native))


def _action(name: str, space: Any) -> tuple[ActionSpace, Callable[[jax.Array], jax.Array]]:
    """Our action space and the function from one of our actions to the native one."""
    if hasattr(space, "n"):
        return Discrete(int(space.n)), lambda action: action
    shape = tuple(space.shape)
    low, high = (x.astype(np.float32) for x in gym_spaces.box_range(space.low, space.high, shape, name))
    centre, half = (high + low) / 2, (high - low) / 2
    return Box(centre.size), lambda action: jnp.clip(action.reshape(shape) * half + centre, low, high)
