"""What the spaces of gymnasium mean to us: sensors to read, actions to write.

gymnasium itself is not imported: a space is recognised by the name of its class, so a space of an older `gym` is
understood too. Functions over arrays work on NumPy, with one leading axis `[K]` (K environments of a host pool)."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxwm import types
from jaxwm.envs import images
from jaxwm.envs.border import Misfit, Reader, Sensor

Writer = Callable[[np.ndarray], Any]  # from our actions `[K, ...]` to those of a native space
OPEN = 1e9  # a bound this far out is none: LQR writes 1e10, ViZDoom 1e308, others inf
SMALL = 16  # most channels, or frames of a stack, of an image; sides of images are longer


def box_range(low: Any, high: Any, shape: tuple[int, ...], name: str = "the environment") -> tuple[Any, Any]:
    """The range, float64 of `shape` each, to which [-1, 1] is scaled.
    It is [-1, 1] itself where an entry has no bounds. ValueError where it has one on one side only: no scale fits."""
    low, high = (np.broadcast_to(np.asarray(x, np.float64), shape) for x in (low, high))
    below, above = low <= -OPEN, high >= OPEN
    wrong = (below != above) | ~(low <= high)
    if wrong.any():
        ends = f"{low[wrong].flat[0]:g} and {high[wrong].flat[0]:g}"
        advice = "wrap the environment in one with bounds on both sides (gymnasium.wrappers.TransformAction)"
        raise ValueError(f"{name}: an action between {ends} cannot be scaled from [-1, 1]: {advice}")
    return np.where(below, -1.0, low), np.where(above, 1.0, high)


def action_space(space: Any, name: str = "the environment") -> tuple[types.ActionSpace, Writer]:
    """Our action space, and the writer of actions of the native `space`.
    -1 and 1 become exactly the bounds of a `Box`, and nothing leaves them. The parts of a Dict or Tuple come in their
    order, choices before vectors: together they are `MultiDiscrete`, `Box` or `Mixed`. Raises ValueError for a space
    that has no counterpart (Text, Sequence, ...) and for a box with bounds on one side only."""
    kind = type(space).__name__
    if kind in ("Dict", "Tuple"):
        return _composite(space, name)
    if kind == "Discrete":
        start = int(getattr(space, "start", 0))
        return types.Discrete(int(space.n)), lambda action: action.astype(np.int64) + start
    if kind in ("MultiDiscrete", "MultiBinary"):
        sizes = np.asarray(space.nvec) if kind == "MultiDiscrete" else np.full(space.shape, 2)
        start, dtype = np.asarray(getattr(space, "start", 0)), getattr(space, "dtype", np.int64)
        write = lambda action: (action.reshape(-1, *sizes.shape) + start).astype(dtype)  # noqa: E731
        return types.MultiDiscrete(tuple(int(n) for n in sizes.ravel())), write
    if kind == "Box":
        ends = box_range(space.low, space.high, tuple(space.shape), name)
        return types.Box(math.prod(space.shape)), partial(_scale, *ends, space)
    advice = "use Discrete, MultiDiscrete, MultiBinary or Box, or a Dict or Tuple of them"
    raise ValueError(f"{name}: an action space of kind {kind} is not supported: {advice}")


def _composite(space: Any, name: str) -> tuple[types.ActionSpace, Writer]:
    """Our action space of a Dict or Tuple, and the writer, which returns dicts and tuples of arrays `[K, ...]`."""
    inner = space.spaces.items() if type(space).__name__ == "Dict" else enumerate(space.spaces)
    parts = {key: action_space(part, f"{name}: the action {key!r}") for key, part in inner}
    if not parts:
        raise ValueError(f"{name}: an action space of kind {type(space).__name__} with nothing in it is not supported")
    counts = {key: _extent(ours) for key, (ours, _) in parts.items()}
    choices = tuple(n for found, _ in counts.values() for n in found)
    size, places = sum(entries for _, entries in counts.values()), _places(counts)

    def write(action: np.ndarray) -> Any:
        written = {}
        for key, (ours, writer) in parts.items():
            part = action[:, places[key]]
            part = part if isinstance(ours, types.Box | types.Mixed) else part.astype(np.int32)
            written[key] = writer(part[:, 0] if isinstance(ours, types.Discrete) else part)
        return written if type(space).__name__ == "Dict" else tuple(written.values())

    if not size:
        return types.MultiDiscrete(choices), write
    return (types.Mixed(choices, size) if choices else types.Box(size)), write


def _extent(space: types.ActionSpace) -> tuple[tuple[int, ...], int]:
    """The options of every choice of an action, and the entries of its vector."""
    n = getattr(space, "n", ())
    return (n if isinstance(n, tuple) else (n,)), getattr(space, "size", 0)


def _places(counts: dict[Any, tuple[tuple[int, ...], int]]) -> dict[Any, np.ndarray]:
    """Where the entries of every part of an action are: choices in front, vectors behind."""
    chosen, entry, places = 0, sum(len(found) for found, _ in counts.values()), {}
    for key, (found, size) in counts.items():
        places[key] = np.r_[chosen : chosen + len(found), entry : entry + size].astype(int)
        chosen, entry = chosen + len(found), entry + size
    return places


def _scale(low: np.ndarray, high: np.ndarray, space: Any, action: np.ndarray) -> np.ndarray:
    """Actions in [-1, 1] scaled to a box, in float64 so that the ends are exact, then in the type of the box."""
    share = (action.reshape(-1, *low.shape).astype(np.float64) + 1) / 2
    native = np.clip(low * (1 - share) + high * share, low, high)
    dtype = np.dtype(space.dtype)
    return (native if dtype.kind == "f" else np.rint(native)).astype(dtype)


def observation_space(
    space: Any, channels_first: bool = False, name: str = "the environment", image: images.Option = images.PLAIN
) -> tuple[Any, Reader]:
    """The `Spec.obs` of a native `space`, and the reader of native observations of the environment `name`.
    Images of another size than convolutions take are resized or padded as `image` says.

    - uint8 of rank 2 and 3: an image `[H, W, C]`. It is `[C, H, W]` natively where `channels_first` says so, or where
      the first axis is short and the others are not.
    - uint8 of rank 4: where it is a stack of images `[S, H, W, C]`, the image `[H, W, S * C]`, newest frame last.
    - bool and MultiBinary: bool; rank 2 becomes `[H, W, 1]`.
    - Discrete and MultiDiscrete: one-hot bool, choices side by side.
    - Dict and Tuple: a dict, inner ones flattened; names are keys and places joined by "_".
    - any other Box: float32, flat unless its rank is above 2.

    Raises ValueError for another kind of space and for two sensors of one name."""
    sensors = tuple(_fitted(sensor, name, image) for sensor in _sensors(space, (), channels_first, name))
    names = [sensor.name for sensor in sensors]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise ValueError(f"{name}: two sensors would be called {twice!r}: rename one of them")
    reader = Reader(name, sensors, type(space).__name__ not in ("Dict", "Tuple"))
    return reader.structs, reader


def _fitted(sensor: Sensor, name: str, option: images.Option) -> Sensor:
    """The sensor with its images resized or padded."""
    if not option or sensor.struct.dtype != np.uint8 or len(sensor.struct.shape) != 3:
        return sensor
    try:
        shape, fit = images.fit(sensor.struct.shape, *option)
    except ValueError as error:
        raise ValueError(f"{name}: the sensor {sensor.name!r}: {error}") from None
    view = lambda x: fit(sensor.view(x))  # noqa: E731
    return sensor._replace(struct=jax.ShapeDtypeStruct(shape, np.uint8), view=view)


def _sensors(space: Any, path: tuple[Any, ...], channels_first: bool, name: str) -> Iterator[Sensor]:
    kind = type(space).__name__
    if kind not in ("Dict", "Tuple"):
        yield _sensor(space, path, channels_first, name)
        return
    for key, inner in space.spaces.items() if kind == "Dict" else enumerate(space.spaces):
        if kind == "Dict" and not isinstance(key, str):
            raise ValueError(f"{name}: sensors are named by text, not by {key!r}")
        yield from _sensors(inner, (*path, key), channels_first, name)


def _sensor(space: Any, path: tuple[Any, ...], channels_first: bool, name: str) -> Sensor:
    kind, label = type(space).__name__, "_".join(map(str, path))
    if kind in ("Discrete", "MultiDiscrete"):
        sizes = np.asarray(space.n if kind == "Discrete" else space.nvec)
        start = np.broadcast_to(getattr(space, "start", 0), sizes.shape).ravel()
        view = partial(_one_hot, f"{name}: the class index {label}".rstrip(), sizes.ravel(), start)
        return Sensor(label, path, sizes.shape, np.int64, jax.ShapeDtypeStruct((int(sizes.sum()),), np.bool_), view)
    if kind not in ("Box", "MultiBinary"):
        advice = "use Box, Dict, Tuple, Discrete, MultiDiscrete or MultiBinary"
        raise ValueError(f"{name}: an observation space of kind {kind} is not supported: {advice}")
    shape, dtype = tuple(space.shape), np.dtype(np.bool_ if kind == "MultiBinary" else space.dtype)
    if dtype not in (np.uint8, np.bool_) or (dtype == np.uint8 and len(shape) < 2):
        dtype = np.dtype(np.float32)
    ours, view = _view(shape, dtype, channels_first)
    return Sensor(label, path, shape, dtype, jax.ShapeDtypeStruct(ours, dtype), view)


def _view(shape: tuple[int, ...], dtype: Any, channels_first: bool) -> tuple[tuple[int, ...], Callable]:
    """Our shape of a native array, and the function `[K, *native] -> [K, *ours]`."""
    if dtype == np.float32:
        ours = shape if len(shape) > 2 else (math.prod(shape),)
    elif len(shape) == 2:
        ours = (*shape, 1)
    elif dtype == np.uint8 and len(shape) == 3 and (channels_first or shape[0] <= SMALL < min(shape[1:])):
        # A plain transpose would be a strided view, which every later copy to the device pays for.
        return (*shape[1:], shape[0]), lambda x: np.array(np.moveaxis(x, 1, -1), order="C")
    elif dtype == np.uint8 and len(shape) == 4 and max(shape[0], shape[3]) <= SMALL < min(shape[1:3]):
        ours = (*shape[1:3], shape[0] * shape[3])
        return ours, lambda x: np.moveaxis(x, 1, -2).reshape(-1, *ours)
    else:
        ours = shape
    return ours, lambda x: x.reshape(-1, *ours)


def _one_hot(what: str, sizes: np.ndarray, start: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Choices `[K, ...]`, counted from `start`, as bool `[K, sum(sizes)]`."""
    index = choice.reshape(len(choice), -1) - start
    if ((index < 0) | (index >= sizes)).any():
        raise Misfit(f"{what} is {choice.tolist()}, expected {start.tolist()} to {(start + sizes - 1).tolist()}")
    return np.concatenate([index[:, [i]] == np.arange(n) for i, n in enumerate(sizes)], 1)
