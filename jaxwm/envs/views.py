"""Native observations of envpool made visible to encoders: classes as 0/1 planes, counters and grids as numbers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.envs.border import Reader, Sensor
from jaxwm.types import Array, PyTree

CLASSES = 64  # most values of an integer that is a class rather than a number


class Seen(NamedTuple):
    """A sensor as encoders see it, and the function to it from what `gym_spaces` reads, `[K, ...]`."""

    struct: jax.ShapeDtypeStruct
    view: Callable[[np.ndarray], np.ndarray]


def visible(space: Any, read: Reader, counters: frozenset[str] = frozenset()) -> tuple[PyTree, Callable]:
    """`Spec.obs` and a reader for the native `space`, whose plain reader is `read`.

    - an integer of at most `CLASSES` values is a class: one-hot along a new last axis, or bool where there are two;
    - a Discrete among `counters` is a number, float32 `[1]`;
    - float32 of rank above 2 is flat: encoders take such arrays for images;
    - bool keeps its native shape, other integers are numbers, and images stay what they are.

    Names lose their spaces."""
    seen = {sensor.name: _seen(sensor, _at(space, sensor.path), sensor.name in counters) for sensor in read.sensors}

    def look(native: Any) -> PyTree:
        obs = read(native)
        return seen[""].view(obs) if read.bare else {_name(key): one.view(obs[key]) for key, one in seen.items()}

    structs = seen[""].struct if read.bare else {_name(key): one.struct for key, one in seen.items()}
    return structs, look


def one_hot(index: np.ndarray, size: int) -> np.ndarray:
    """Class indices `[...]` as bool `[..., size]`; an index out of range is no class."""
    return index[..., None] == np.arange(size)


def _name(key: str) -> str:
    return key.replace(" ", "_")


def _at(space: Any, path: tuple[Any, ...]) -> Any:
    """The space of a sensor inside of dicts and tuples."""
    for key in path:
        space = space.spaces[key]
    return space


def _seen(sensor: Sensor, space: Any, counter: bool) -> Seen:
    kind, struct = type(space).__name__, sensor.struct
    if kind == "Discrete" and counter:
        start = np.float32(getattr(space, "start", 0))
        count = lambda x: x.argmax(-1)[:, None].astype(np.float32) + start  # noqa: E731
        return Seen(jax.ShapeDtypeStruct((1,), np.float32), count)
    if kind == "MultiBinary":
        return Seen(jax.ShapeDtypeStruct(sensor.shape, np.bool_), lambda x: x.reshape(len(x), *sensor.shape))
    if kind == "Box" and np.dtype(space.dtype).kind in "iu":
        low, high = int(np.min(space.low)), int(np.max(space.high))
        if high - low < CLASSES:
            return _classes(sensor.shape, low, high - low + 1)
    if struct.dtype == np.float32 and len(struct.shape) > 2:
        size = math.prod(struct.shape)
        return Seen(jax.ShapeDtypeStruct((size,), np.float32), lambda x: x.reshape(len(x), size))
    return Seen(struct, lambda x: x)


def _classes(shape: tuple[int, ...], low: int, size: int) -> Seen:
    """Integers `[*shape]` from `low` on, `size` of them; `[1]` for a scalar."""
    ours = shape or (1,)

    def view(x: np.ndarray) -> Array:
        index = x.reshape(len(x), *ours).astype(np.int64) - low
        return index == 1 if size == 2 else one_hot(index, size)

    return Seen(jax.ShapeDtypeStruct(ours if size == 2 else (*ours, size), np.bool_), view)
