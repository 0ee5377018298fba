"""Recorded episodes, of whatever format: what is known of them, and a function that reads a piece of one.

T records of an episode, E episodes of a recording."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.envs import border
from jaxwm.types import Box, Discrete, MultiDiscrete, Spec, action_dtype

ABOUT = "recording.json"
FORMAT = 1

SHARD = 64 * 2**20
"""Bytes of episodes that are held at once, while they are written or read: a recording may be larger than memory."""


class Episode(NamedTuple):
    """T records of one episode, all of it or a piece: arrays `[T, ...]`, and whether the last record is a true end."""

    obs: Any
    reward: np.ndarray
    action: np.ndarray | None
    terminal: bool

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(x.nbytes for x in jax.tree.leaves((self.obs, self.reward, self.action)))

    def piece(self, first: int, count: int) -> "Episode":
        """The records `first` to `first + count`, views of these."""
        obs, reward, action = jax.tree.map(lambda x: x[first : first + count], tuple(self[:3]))
        return Episode(obs, reward, action, self.terminal and first + count >= len(self.reward))


class Recording(NamedTuple):
    """What was found at a path. `load(episode, first, count)` reads some records of an episode, `[count, ...]`, in the
    types of `spec`; it depends on nothing that was read before. Rewards arrive with the observation of their record,
    actions are taken after it, the last one of an episode means nothing."""

    path: Path
    format: str
    spec: Spec
    length: np.ndarray  # int64 [E]: records of each episode
    load: Callable[[int, int, int], Episode]
    env: str | None = None  # name of the environment that the episodes come from
    mixed: str = ""  # why its images have to be resized, where they differ in size

    @property
    def record_bytes(self) -> int:
        """Size of one record in memory."""
        obs = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(self.spec.obs))
        action = blank_actions(self.spec, 1)
        return obs + 4 + (0 if action is None else action.nbytes)

    def fit(self, streams: int = 1) -> int:
        """Rows of so many streams that have `SHARD` bytes, at least one."""
        return max(1, SHARD // (self.record_bytes * streams))

    def pieces(self, records: int = 2**63 - 1) -> Iterator[tuple[int, Episode]]:
        """Episodes in their order, with their numbers, until there are so many records; what is larger than `SHARD`
        comes in pieces."""
        each = self.fit()
        for episode, length in enumerate(self.length.tolist()):
            for first in range(0, length, each):
                if records <= 0:
                    return
                count = min(each, length - first, records)
                yield episode, self.load(episode, first, count)
                records -= count


class Shelf:
    """What was used last, `SHARD` bytes of it, by name; at least one thing."""

    def __init__(self):
        self._kept: dict[Any, Any] = {}

    def get(self, name: Any, make: Callable[[], Any]) -> Any:
        """The thing of a name, made if it is not there. It knows its size, as `nbytes`."""
        found = self._kept.pop(name) if name in self._kept else make()
        self._kept[name] = found  # the newest is the last
        while len(self._kept) > 1 and sum(x.nbytes for x in self._kept.values()) > SHARD:
            del self._kept[next(iter(self._kept))]
        return found


def by_whole(load: Callable[[int], Episode]) -> Callable[[int, int, int], Episode]:
    """`Recording.load` out of a function that reads whole episodes."""
    shelf = Shelf()
    return lambda episode, first, count: shelf.get(episode, lambda: load(episode)).piece(first, count)


# --- What was recorded --------------------------------------------------------------------------------------------


def describe(spec: Spec, env: str | None) -> dict[str, Any]:
    """A spec, and the environment that it is of, as JSON."""
    sensor = lambda x: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name}  # noqa: E731
    named = spec.obs if isinstance(spec.obs, Mapping) else None
    obs = {name: sensor(x) for name, x in named.items()} if named else sensor(spec.obs)
    action: Any = None
    if spec.action is not None:
        n = getattr(spec.action, "n", None)
        sizes = {"size": spec.action.size} if isinstance(spec.action, Box) else {"n": n}
        action = {"kind": type(spec.action).__name__, **sizes}
    about = {"format": FORMAT, "name": spec.name, "env": env, "obs": obs, "action": action}
    return json.loads(json.dumps(about | {"max_steps": spec.max_steps, "one_hot": spec.one_hot}))


def spec_of(about: dict[str, Any]) -> Spec:
    """The spec that `describe` wrote. ValueError where it is not one."""
    sensor = lambda x: jax.ShapeDtypeStruct(tuple(x["shape"]), np.dtype(x["dtype"]))  # noqa: E731
    kinds: dict[str, Any] = {
        "Discrete": lambda a: Discrete(a["n"]),
        "MultiDiscrete": lambda a: MultiDiscrete(tuple(a["n"])),
        "Box": lambda a: Box(a["size"]),
    }
    try:
        obs, action = about["obs"], about["action"]
        obs = sensor(obs) if "dtype" in obs and "shape" in obs else {name: sensor(x) for name, x in obs.items()}
        space = kinds[action["kind"]](action) if action else None
        return Spec(about["name"], obs, space, about.get("max_steps"), one_hot=about.get("one_hot", False))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the description of a recording is incomplete: {type(error).__name__} {error}") from None


def read_about(folder: Path) -> dict[str, Any]:
    """What `recording.json` says. FileNotFoundError without it, ValueError where it is none of ours."""
    file = folder / ABOUT
    try:
        about = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} holds no recording: there is no {ABOUT} in it (make one with `jaxwm record`)"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{file} is no recording of format {FORMAT}, which this version reads")
    return about


def write_about(folder: Path, spec: Spec, env: str | None) -> None:
    """Write `recording.json`."""
    (folder / ABOUT).write_text(json.dumps(describe(spec, env), indent=2) + "\n")


# --- Episodes -----------------------------------------------------------------------------------------------------


def shards(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Lists of whole episodes in their order, of about `SHARD` bytes each."""
    held: list[Episode] = []
    size = 0
    for episode in episodes:
        held.append(episode)
        size += episode.nbytes
        if size >= SHARD:
            yield held
            held, size = [], 0
    if held:
        yield held


def named(obs: Any) -> dict[str, Any]:
    """Observations, or their spec, by file name: `obs`, or `obs.NAME` for each of several sensors."""
    return {f"obs.{k}": v for k, v in obs.items()} if isinstance(obs, Mapping) else {"obs": obs}


def unnamed(spec: Spec, columns: Mapping[str, Any]) -> Any:
    """The inverse of `named`."""
    if isinstance(spec.obs, Mapping):
        return {name: columns[f"obs.{name}"] for name in spec.obs}
    return columns["obs"]


def blank_actions(spec: Spec, count: int) -> np.ndarray | None:
    """Actions `[count, ...]` that mean nothing; None where nobody acts."""
    if spec.action is None:
        return None
    return np.zeros((count, *border.action_shape(spec.action)), action_dtype(spec.action))
