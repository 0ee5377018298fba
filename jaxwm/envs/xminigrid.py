"""XLand-MiniGrid: MiniGrid's worlds and tasks of hidden rules, in JAX (Nikulin et al. 2024), pure.

An observation is a dict of 0/1: `view`, bool `[V, V, T + C]`, the square before the agent with a plane for each of T
kinds of tiles and C colours; `direction`, bool `[4]`; `pocket`, bool `[T + C]`, what it carries."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_number
from jaxwm.types import Array, Discrete, Env, Spec


def xminigrid(task: str, num_envs: int = 1, *, max_steps: int | None = None, view_size: int | None = None) -> Env:
    """The task with the library's name `task`, such as "MiniGrid-DoorKey-5x5" or "XLand-MiniGrid-R1-9x9".
    `view_size` is the side of the square that is seen, an odd number. Raises ImportError where xminigrid is missing."""
    name = f"xminigrid/{task}"
    native, params, tiles, colours = _build(name, task, max_steps, view_size)

    def one_hot(tile: Array) -> Array:
        kinds = (tile[..., :1] == jnp.arange(tiles), tile[..., 1:] == jnp.arange(colours))
        return jnp.concatenate(kinds, -1)

    def read(now: Any) -> dict[str, Array]:
        agent = now.state.agent
        direction = agent.direction == jnp.arange(4)
        return {"view": one_hot(now.observation), "direction": direction, "pocket": one_hot(agent.pocket)}

    def reset(key: Array) -> tuple[Any, Any]:
        now = native.reset(params, key)
        return now, read(now)

    def step(key: Array, now: Any, action: Array) -> tuple[Any, Any, Array, Array, Array]:
        after = native.step(params, now, action)
        return after, read(after), after.reward, after.discount == 0, after.last()

    size = params.view_size
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bool_)  # noqa: E731
    obs = {"view": struct(size, size, tiles + colours), "direction": struct(4), "pocket": struct(tiles + colours)}
    spec = Spec(name, obs, Discrete(native.num_actions(params)), int(params.max_steps))
    return from_functions(spec, reset, step, num_envs, rare_resets=True)


def _build(name: str, task: str, max_steps: int | None, view_size: int | None) -> tuple[Any, Any, int, int]:
    """The native environment, its parameters, and the numbers of kinds of tiles and of colours."""
    try:
        library: Any = import_module("xminigrid")
        constants: Any = import_module("xminigrid.core.constants")
    except ImportError as error:
        raise ImportError(f"{name} needs xminigrid ({error}): pip install 'jaxwm[xminigrid]'") from error
    given = {key: value for key, value in (("max_steps", max_steps), ("view_size", view_size)) if value is not None}
    for key, value in given.items():
        check_number(f"{name}: {key}", value, least=1, whole=True)
    if view_size is not None and view_size % 2 == 0:
        raise ValueError(f"{name}: view_size must be an odd number, not {view_size}")
    native, params = library.make(task, **given)
    return native, params, constants.NUM_TILES, constants.NUM_COLORS
