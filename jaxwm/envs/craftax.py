"""Craftax: a survival game in JAX, the classic one (Crafter's rules) and the full one (Matthews et al. 2024).

Both pay for achievements, each once an episode: 1 in the classic game, where 22 are the most; 1 to 8 in the full one,
where 226 are the most; and 0.1 for every point of health that is won or lost. An episode reports what it counted
(`Env.metrics`): `achievement/NAME`, 0 or 1; `achievements`, how many; and `normalised`, the figure of the scoreboard:
the return in percent of 22 or of 226.

Craftax gives symbols as one long float vector, most of it 0 or 1. Here it is a dict:

- `map`: bool `[H, W, C]`, a plane for each kind of block, item and creature in sight;
- `flags`: bool `[F]`, the direction and whatever else is so or not;
- `numbers`: float32 `[D]`, inventory, health and the rest, ten times as large as in Craftax, so that one item in the
  inventory counts about 1."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.envs import images
from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_number, check_options
from jaxwm.types import Array, Discrete, Env, Spec


class Game(NamedTuple):
    """What is known of one of the two games. `rest` are the lengths of the stretches behind the map in Craftax's
    vector, numbers and flags in turn."""

    package: str
    most: float  # reward of all achievements
    map: tuple[int, int, int]
    rest: tuple[int, ...]


CLASSIC = Game("craftax.craftax_classic", 22.0, (7, 9, 21), (12 + 4, 4, 1, 1))
FULL = Game("craftax.craftax", 226.0, (9, 11, 83), (16 + 6 + 9, 4, 4 + 4 + 1, 4, 1, 2))
SYMBOLIC, PIXELS = "Symbolic", "Pixels"

CRAFTAX = {f"{prefix}{view}": (game, view) for prefix, game in (("Classic-", CLASSIC), ("", FULL))
           for view in (SYMBOLIC, PIXELS)}  # fmt: skip
"""Task -> game and what is seen of it."""


class Played(NamedTuple):
    """A game of Craftax and its return so far."""

    game: Any
    total: Array


def craftax(
    task: str, num_envs: int = 1, *, max_steps: int = 10_000, image_size: int | None = None, **options: Any
) -> Env:
    """The game `task`, `num_envs` of it, pure: "Classic-Symbolic", "Classic-Pixels", "Symbolic" or "Pixels".
    Pixels are uint8, black around the edges up to `[64, 64, 3]` (classic) and `[144, 112, 3]`; `image_size` scales them
    to a square. `max_steps` is the time limit; other numbers of Craftax's `EnvParams` are options too, such as
    `zombie_health=3`. Raises ValueError for an unknown option and ImportError where craftax is missing."""
    game, view = CRAFTAX[task]
    native, params, names = _build(f"craftax/{task}", game, view, max_steps, options)
    obs, read = _pixels(native, params, image_size) if view == PIXELS else _symbols(game)
    if view == SYMBOLIC and image_size is not None:
        raise ValueError(f"craftax/{task} has no option 'image_size': it shows symbols")

    def reset(key: Array) -> tuple[Played, Any]:
        first, state = native.reset_env(key, params)
        return Played(state, jnp.float32(0)), read(first)

    def step(key: Array, now: Played, action: Array) -> tuple[Played, Any, Array, Array, Array]:
        # Not `native.step`, which may reset in the same step.
        after, state, reward, over, _ = native.step_env(key, now.game, action, params)
        late = state.timestep >= max_steps  # Craftax calls it an end, too
        forever = params.replace(max_timesteps=jnp.iinfo(jnp.int32).max)
        return Played(state, now.total + reward), read(after), reward, native.is_terminal(state, forever), late & over

    def metrics(now: Played) -> dict[str, Array]:
        got = now.game.achievements.astype(jnp.float32)
        each = {f"achievement/{name}": got[place] for name, place in names.items()}
        return {"achievements": got.sum(), "normalised": 100 * now.total / game.most, **each}

    spec = Spec(f"craftax/{task}", obs, Discrete(int(native.num_actions)), max_steps)
    return from_functions(spec, reset, step, num_envs, metrics, rare_resets=True)


def _build(
    name: str, game: Game, view: str, max_steps: int, options: dict[str, Any]
) -> tuple[Any, Any, dict[str, int]]:
    """The native environment, its parameters, and the places of the achievements by name."""
    try:
        library: Any = import_module("craftax.craftax_env")
    except ImportError as error:
        raise ImportError(f"{name} needs craftax ({error}): pip install 'jaxwm[craftax]'") from error
    check_number(f"{name}: max_steps", max_steps, least=1, whole=True)
    native: Any = library.make_craftax_env_from_params(game is CLASSIC, view == SYMBOLIC, auto_reset=False)
    params = native.default_params
    known = {k: v for k, v in vars(params).items() if isinstance(v, int | float) and k != "max_timesteps"}
    check_options(name, options, {*known, "max_steps", *(["image_size"] if view == PIXELS else [])})
    for key, value in options.items():
        if not isinstance(known[key], bool):
            check_number(f"{name}: {key}", value, whole=isinstance(known[key], int))
    achievements = import_module(f"{game.package}.constants").Achievement
    names = {one.name.lower(): one.value for one in achievements}
    return native, params.replace(max_timesteps=max_steps, **options), names


def _symbols(game: Game) -> tuple[dict[str, jax.ShapeDtypeStruct], Callable[[Array], dict[str, Array]]]:
    """`Spec.obs` and the function from Craftax's vector of symbols to ours."""
    height, width, planes = game.map
    numbers, flags = sum(game.rest[::2]), sum(game.rest[1::2])
    struct = jax.ShapeDtypeStruct
    obs = {"map": struct(game.map, jnp.bool_), "flags": struct((flags,), jnp.bool_),
           "numbers": struct((numbers,), jnp.float32)}  # fmt: skip
    ends = [height * width * planes]
    for length in game.rest[:-1]:
        ends.append(ends[-1] + length)

    def read(vector: Array) -> dict[str, Array]:
        first, *rest = jnp.split(vector, ends)
        flags = jnp.concatenate(rest[1::2]) > 0.5
        return {"map": first.reshape(game.map) > 0.5, "flags": flags, "numbers": 10 * jnp.concatenate(rest[::2])}

    return obs, read


def _pixels(native: Any, params: Any, size: int | None) -> tuple[jax.ShapeDtypeStruct, Callable[[Array], Array]]:
    """`Spec.obs` and the function from Craftax's image, 0 to 1, to ours."""
    shape, fit = images.fit(native.observation_space(params).shape, size, "resize" if size else "pad")
    return jax.ShapeDtypeStruct(shape, jnp.uint8), lambda image: fit(jnp.round(image * 255).astype(jnp.uint8))
