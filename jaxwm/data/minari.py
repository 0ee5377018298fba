"""Minari data sets (https://minari.farama.org, version 0.5): the folder of a set, or the `data` folder in it.

Minari has T + 1 observations for T actions and rewards, so an episode here has T + 1 records: reward t arrives with
observation t + 1, and the action of the last record means nothing. Actions of a box are scaled from its bounds to
[-1, 1]. Sets in HDF5 are read in slices; those in arrow or parquet by whole episodes.

What is written keeps our own description of it as the entry `jaxwm` of metadata.json. Images are stored as they are:
Minari's own JPEG coding loses something, and is read where others used it."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxwm import envs
from jaxwm.data.recording import Episode, Recording, blank_actions, by_whole, describe, shards, spec_of
from jaxwm.envs import gym_spaces
from jaxwm.types import Box, Discrete, Spec

META, FILE = "metadata.json", "main_data.hdf5"

# --- Reading ------------------------------------------------------------------------------------------------------


def _home(path: Path) -> Path:
    return path / "data" if (path / "data" / META).is_file() else path


def is_minari(path: Path) -> bool:
    """Whether a folder is a Minari data set."""
    return (_home(path) / META).is_file()


def open_minari(path: Path) -> Recording:
    """A Minari data set. ValueError where it is damaged, has no spaces, or spaces that have no counterpart here."""
    from minari.serialization import deserialize_space

    home = _home(path)
    try:
        about = json.loads((home / META).read_bytes())
        spaces = [deserialize_space(about[f"{name}_space"]) for name in ("observation", "action")]
        kind, count, jpeg = about["data_format"], int(about["total_episodes"]), bool(about.get("jpeg_encoding", True))
    except KeyError as error:  # Minari would then build the environment, and run whatever it says
        raise ValueError(f"{home / META} has no entry {error}: the set cannot be read without") from None
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{home / META} is damaged: {error}") from None
    name, ours = str(about.get("dataset_id", path.name)), about.get("jaxwm")
    spec, read_obs, read_action = _own(spec_of(ours)) if ours else _foreign(name, *spaces)
    env = ours["env"] if ours else _env(about.get("env_spec"))
    if kind == "hdf5":
        length, fetch = _hdf5(home / FILE, count, spaces, jpeg)
    else:
        length, fetch = _other(home, count)

    def load(episode: int, first: int, records: int) -> Episode:
        whole, last = int(length[episode]), min(first + records, int(length[episode]))
        part = fetch(episode, first, last)
        reward = np.concatenate([[0.0] * (first == 0), part["rewards"]]).astype(np.float32)
        action = read_action(part["actions"])
        if last == whole:
            action = np.concatenate([action, blank_actions(spec, 1)])  # type: ignore[list-item]
        return Episode(read_obs(part["observations"]), reward, action, last == whole and part["terminal"])

    return Recording(path, "minari", spec, length, load, env)


def _own(spec: Spec) -> tuple[Spec, Callable, Callable]:
    """Readers of what we wrote."""
    view = lambda s, x: np.asarray(x).reshape(-1, *s.shape).astype(s.dtype)  # noqa: E731
    read_obs = lambda obs: jax.tree.map(view, spec.obs, obs)  # noqa: E731
    blank = blank_actions(spec, 0)
    assert blank is not None
    return spec, read_obs, lambda action: np.asarray(action).reshape(-1, *blank.shape[1:]).astype(blank.dtype)


def _foreign(name: str, observation: Any, action: Any) -> tuple[Spec, Callable, Callable]:
    """Spec and readers of a set that others wrote."""
    obs, read_obs = gym_spaces.observation_space(observation, name=name)
    space, _ = gym_spaces.action_space(action, name)
    if isinstance(space, Box):
        low, high = gym_spaces.box_range(action.low, action.high, action.shape, name)
        wide = np.where(high > low, high - low, 1.0)
        scale = lambda x: ((np.asarray(x, np.float64) - low) / wide * 2 - 1).astype(np.float32)  # noqa: E731
        return Spec(name, obs, space), read_obs, lambda x: scale(x).reshape(-1, space.size)
    start = np.asarray(getattr(action, "start", 0))
    shape = () if isinstance(space, Discrete) else (len(space.n),)
    read = lambda x: (np.asarray(x) - start).reshape(-1, *shape).astype(np.int32)  # noqa: E731
    return Spec(name, obs, space), read_obs, read


def _env(spec: Any) -> str | None:
    """Our name of the environment that a Gymnasium spec (as JSON) is of, where exactly one has that task."""
    try:
        task = json.loads(spec)["id"]
    except (TypeError, ValueError, KeyError):
        return None
    found = [f"{suite}/{task}" for suite, tasks in envs.names().items() if task in tasks]
    return found[0] if len(found) == 1 else None


Fetch = Callable[[int, int, int], dict[str, Any]]
"""`(episode, first, last)` -> observations `first` to `last`, and the actions and rewards between and after them."""


def _hdf5(file: Path, count: int, spaces: list[Any], jpeg: bool) -> tuple[np.ndarray, Fetch]:
    """Records of each episode, and how to read them."""
    import h5py

    try:
        inside: Any = h5py.File(file, "r")
        length = np.array([inside[f"episode_{i}"].attrs["total_steps"] + 1 for i in range(count)], np.int64)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged: {str(error)[:200]}") from None
    if not count:
        raise ValueError(f"{file} holds no episodes")

    def fetch(episode: int, first: int, last: int) -> dict[str, Any]:
        group, steps = inside[f"episode_{episode}"], int(length[episode]) - 1
        try:
            part: dict[str, Any] = {"observations": _slice(group["observations"], spaces[0], jpeg, first, last)}
            part["actions"] = _slice(group["actions"], spaces[1], jpeg, first, min(last, steps))
            part["rewards"] = group["rewards"][max(first - 1, 0) : last - 1]
            return part | {"terminal": bool(group["terminations"][steps - 1])}
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{file} is damaged in episode {episode}: {str(error)[:200]}") from None

    return length, fetch


def _slice(node: Any, space: Any, jpeg: bool, first: int, last: int) -> Any:
    """Rows of an array, or of a group of arrays."""
    from minari.dataset.minari_storage import is_image_space

    if isinstance(inner := getattr(space, "spaces", None), Mapping):
        return {name: _slice(node[name], one, jpeg, first, last) for name, one in inner.items()}
    if inner is not None:
        return tuple(_slice(node[f"_index_{i}"], one, jpeg, first, last) for i, one in enumerate(inner))
    rows = node[first:last]
    if not jpeg or not is_image_space(space):
        return rows
    return np.stack([np.asarray(Image.open(io.BytesIO(bytes(row)), formats=("JPEG",))) for row in rows])


def _other(home: Path, count: int) -> tuple[np.ndarray, Fetch]:
    """Records of each episode of a set that is not in HDF5, and how to read them: whole, by Minari itself."""
    from minari.dataset.minari_storage import MinariStorage

    try:
        storage = MinariStorage.read(home)
        length = np.array([m["total_steps"] + 1 for m in storage.get_episode_metadata(range(count))], np.int64)
    except Exception as error:  # of whichever library it uses
        raise ValueError(f"{home} is damaged: {type(error).__name__}: {str(error)[:200]}") from None

    def whole(episode: int) -> Episode:
        try:
            (found,) = storage.get_episodes([episode])
        except Exception as error:
            raise ValueError(f"{home} is damaged in episode {episode}: {str(error)[:200]}") from None
        terminal = bool(found["terminations"][-1])
        return Episode(found["observations"], found["rewards"], found["actions"], terminal)

    return length, partial(_of_whole, by_whole(whole), length)


def _of_whole(load: Callable[[int, int, int], Episode], length: np.ndarray, episode: int, first: int, last: int) -> Any:
    """A piece of an episode whose observations are one more than its actions and rewards."""
    whole = load(episode, 0, int(length[episode]))
    cut = lambda x, a, b: jax.tree.map(lambda y: y[a:b], x)  # noqa: E731
    part = {"observations": cut(whole.obs, first, last), "actions": cut(whole.action, first, last)}
    return part | {"rewards": whole.reward[max(first - 1, 0) : last - 1], "terminal": whole.terminal}


# --- Writing ------------------------------------------------------------------------------------------------------


def write_minari(folder: Path, spec: Spec, episodes: Iterable[Episode], env: str | None) -> None:
    """Add episodes to a set, or begin one. `minari.load_dataset` finds it below MINARI_DATASETS_PATH. ValueError where
    nobody acts, which Minari cannot say, or where an episode took no step."""
    from minari import __version__
    from minari.dataset.minari_storage import MinariStorage

    if spec.action is None:
        raise ValueError("a Minari data set has actions, and nobody acts here: take another format")
    home = folder / "data"
    if (home / META).is_file():
        storage = MinariStorage.read(home)
    else:
        storage = MinariStorage.new(home, _space(spec.obs), _action_space(spec), jpeg_encoding=False)
        name = re.sub(r"\W+", "-", folder.name.strip(".").removesuffix(".new")).strip("-") or "recording"
        told = {"dataset_id": f"{name}-v0", "minari_version": __version__, "jaxwm": describe(spec, env)}
        storage.update_metadata({**told, "algorithm_name": "jaxwm"})
    for held in shards(episodes):
        storage.update_episodes(_buffers(spec, held))


def _buffers(spec: Spec, episodes: Iterable[Episode]) -> Iterator[Any]:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    for episode in episodes:
        steps = len(episode.reward) - 1
        if steps < 1:
            raise ValueError("an episode of one record has no action, and cannot be part of a Minari data set")
        last = np.arange(steps) == steps - 1
        yield EpisodeBuffer(
            observations=episode.obs,
            actions=episode.action[:-1],  # type: ignore[arg-type, index]
            rewards=episode.reward[1:],  # type: ignore[arg-type]
            terminations=last & episode.terminal,  # type: ignore[arg-type]
            truncations=last & (not episode.terminal),  # type: ignore[arg-type]
            infos={},
        )


def _space(obs: Any) -> Any:
    """The Gymnasium space of observations."""
    from gymnasium import spaces

    if isinstance(obs, Mapping):
        return spaces.Dict({name: _space(x) for name, x in obs.items()})
    if obs.dtype == np.bool_:
        return spaces.MultiBinary(list(obs.shape))
    low, high = (0, 255) if obs.dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, obs.shape, obs.dtype)


def _action_space(spec: Spec) -> Any:
    from gymnasium import spaces

    if isinstance(spec.action, Box):
        return spaces.Box(-1.0, 1.0, (spec.action.size,), np.float32)
    return spaces.Discrete(spec.action.n) if isinstance(spec.action, Discrete) else spaces.MultiDiscrete(spec.action.n)
