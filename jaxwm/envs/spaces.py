"""From gymnasium's spaces to the vocabulary of `jaxwm.types`: observations to read, actions to write.

Everything here works on NumPy arrays with one leading axis `[K]` (K environments of a host pool). gymnasium itself is
not imported: a space is recognised by the name of its class, so a space of an older `gym` is understood too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwm.types import ActionSpace, Box, Discrete, MultiDiscrete, Spec

UNBOUNDED = 1e6
"""A box wider than this is not a range to scale to: envpool and LQR write 1e10, 1e308 or inf for "no bound"."""

Reader = Callable[[Any], Any]


def box_scale(low: Any, high: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`(centre, half)`, float32 of `shape`: the native action is `centre + half * clip(action, -1, 1)`.

    An unbounded entry has centre 0 and half 1, that is the action itself.
    """
    low = np.broadcast_to(np.asarray(low, np.float64), shape)
    high = np.broadcast_to(np.asarray(high, np.float64), shape)
    with np.errstate(over="ignore", invalid="ignore"):
        bounded = high - low <= UNBOUNDED  # false for inf and nan too
        centre = np.where(bounded, (high + low) / 2, 0.0)
        half = np.where(bounded, (high - low) / 2, 1.0)
    return centre.astype(np.float32), half.astype(np.float32)


def action_shape(space: ActionSpace) -> tuple[int, ...]:
    """The shape of one action, without leading axes."""
    if isinstance(space, Discrete):
        return ()
    return (space.size,) if isinstance(space, Box) else (len(space.n),)


def check_action(spec: Spec, action: Any, lead: tuple[int, ...]) -> None:
    """Raise ValueError unless `action` has the leading axes `lead` and then the shape of one action."""
    expected = (*lead, *action_shape(spec.action))
    if np.shape(action) != expected:
        raise ValueError(f"{spec.name}: the action has shape {np.shape(action)}, expected {expected}")


def action_space(space: Any) -> tuple[ActionSpace, Callable[[np.ndarray], np.ndarray]]:
    """Our action space, and the function from our actions `[K, ...]` to those of the native `space`.

    Raises ValueError for a space that has no counterpart (Tuple, Dict, Text, ...).
    """
    kind = type(space).__name__
    if kind == "Discrete":
        start = int(getattr(space, "start", 0))
        return Discrete(int(space.n)), lambda action: action.astype(np.int32) + start
    if kind == "MultiDiscrete":
        sizes, start = np.asarray(space.nvec), np.asarray(getattr(space, "start", 0))
        return MultiDiscrete(
            tuple(int(n) for n in sizes.ravel())
        ), lambda action: action.reshape(-1, *sizes.shape).astype(np.int32) + start
    if kind == "MultiBinary":
        shape = tuple(space.shape)
        return MultiDiscrete((2,) * int(np.prod(shape))), lambda action: action.reshape(-1, *shape).astype(np.int8)
    if kind == "Box":
        centre, half = box_scale(space.low, space.high, tuple(space.shape))
        return Box(int(np.prod(space.shape))), lambda action: (
            centre + half * np.clip(action.reshape(-1, *centre.shape), -1.0, 1.0)
        ).astype(space.dtype)
    raise ValueError(
        f"an action space of kind {kind} is not supported: use Discrete, MultiDiscrete, MultiBinary or Box"
    )


def observation_space(space: Any, channels_first: bool = False) -> tuple[Any, Reader]:
    """The `Spec.obs` of a native `space`, and the function from native observations `[K, ...]` to ours.

    uint8 of rank 2 or 3 becomes an image `[H, W, C]` (`channels_first` says that the native one is `[C, H, W]`), bool
    stays bool, Discrete becomes one-hot bool `[n]`, a Dict a dict (an inner Dict is flattened, its keys joined by "_"),
    any other Box a flat float32 vector. What is returned never shares memory with the native array.
    """
    kind = type(space).__name__
    if kind == "Dict":
        return _dict_space(space, channels_first)
    if kind == "Discrete":
        n, start = int(space.n), int(getattr(space, "start", 0))
        return jax.ShapeDtypeStruct((n,), np.bool_), lambda obs: np.asarray(obs).reshape(-1, 1) == np.arange(n) + start
    if kind not in ("Box", "MultiBinary"):
        raise ValueError(
            f"an observation space of kind {kind} is not supported: use Box, Dict, Discrete or MultiBinary"
        )
    shape, dtype = tuple(space.shape), np.dtype(space.dtype)
    if kind == "MultiBinary" or dtype == np.bool_:
        return _array_space(shape + (1,) if len(shape) == 2 else shape, np.bool_)
    if dtype != np.uint8 or len(shape) not in (2, 3):
        return _array_space((int(np.prod(shape)),), np.float32)
    if len(shape) == 2:
        return _array_space((*shape, 1), np.uint8)
    if not channels_first:
        return _array_space(shape, np.uint8)
    struct = jax.ShapeDtypeStruct((*shape[1:], shape[0]), np.uint8)
    # A plain transpose would be a strided view, which every later copy to the device pays for.
    return struct, lambda obs: np.array(np.moveaxis(np.asarray(obs), 1, -1), order="C")


def read_as(obs: Any) -> Reader:
    """The reader for a `Spec.obs` given by the user: reshape and cast, nothing else."""
    return lambda native: jax.tree.map(lambda struct, array: _fit(array, struct.shape, struct.dtype), obs, native)


def _array_space(shape: tuple[int, ...], dtype: Any) -> tuple[jax.ShapeDtypeStruct, Reader]:
    return jax.ShapeDtypeStruct(shape, dtype), lambda obs: _fit(obs, shape, dtype)


def _fit(obs: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A copy of observations `[K, ...]` as `[K, *shape]`; reshaping alone could mix the K environments up."""
    array = np.array(obs, dtype, order="C")
    if array.size != len(array) * math.prod(shape):
        raise ValueError(f"the environment returned an observation of shape {array.shape[1:]}, expected {shape}")
    return array.reshape(-1, *shape)


def _dict_space(space: Any, channels_first: bool) -> tuple[dict[str, Any], Reader]:
    structs: dict[str, Any] = {}
    readers: dict[str, tuple[str, Reader]] = {}
    for name, inner in space.spaces.items():
        struct, reader = observation_space(inner, channels_first)
        structs |= (
            {f"{name}_{key}": value for key, value in struct.items()} if isinstance(struct, dict) else {name: struct}
        )
        readers[name] = ("dict" if isinstance(struct, dict) else "leaf", reader)

    def read(obs: Any) -> dict[str, np.ndarray]:
        out = {}
        for name, (form, reader) in readers.items():
            if name not in obs:
                raise ValueError(f"the environment returned an observation without {name!r}, but with {sorted(obs)}")
            value = reader(obs[name])
            out |= {f"{name}_{key}": leaf for key, leaf in value.items()} if form == "dict" else {name: value}
        return out

    return structs, read
