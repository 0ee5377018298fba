"""Recorded episodes as a folder of NumPy arrays, read through memory maps: our own format, called npy.

    FOLDER/recording.json      what was recorded: observation, actions, time limit, environment
    FOLDER/000/, 001/, ...     parts, each with these arrays of T records of E episodes, end to end:
        obs.npy                observations [T, ...]; with several sensors obs.NAME.npy for each
        action.npy             actions [T, ...], each taken after seeing the observation of its row; may be absent
        reward.npy             float32 [T], each arriving with the observation of its row (0 in the first of an episode)
        length.npy             int64 [E], records of each episode
        terminal.npy           bool [E], whether the episode truly ended (not by a time limit or a cut)

Anything that writes such arrays, of any language, makes a recording. Nothing is unpickled.

The other format here, npz, has one file per episode in place of parts: `000000.npz` with the arrays `obs` (or
`obs.NAME`), `action` and `reward` as above, and `terminal`, one bool."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.data.recording import (
    ABOUT,
    Episode,
    Recording,
    by_whole,
    named,
    read_about,
    shards,
    spec_of,
    unnamed,
    write_about,
)  # fmt: skip
from jaxwm.envs.border import action_shape
from jaxwm.types import Spec, action_dtype

# --- npy ----------------------------------------------------------------------------------------------------------


def is_npy(path: Path) -> bool:
    """Whether a folder is a recording in parts, or what is left of one."""
    return (path / ABOUT).is_file() and not _episode_files(path)


def write_npy(folder: Path, spec: Spec, episodes: Iterable[Episode], env: str | None) -> None:
    """Add episodes as parts."""
    count = len(_parts(folder))
    for number, held in enumerate(shards(episodes), count):
        part = folder / f"{number:03d}"
        part.mkdir()
        for name, column in _columns(held).items():
            np.save(part / f"{name}.npy", column, allow_pickle=False)
    write_about(folder, spec, env)  # last: a folder without it is no recording


def _columns(episodes: list[Episode]) -> dict[str, np.ndarray]:
    join = lambda *parts: np.concatenate(parts)  # noqa: E731
    columns = named(jax.tree.map(join, *(episode.obs for episode in episodes)))
    columns["reward"] = join(*(episode.reward for episode in episodes)).astype(np.float32)
    if episodes[0].action is not None:
        columns["action"] = join(*(episode.action for episode in episodes))
    columns["length"] = np.array([len(episode.reward) for episode in episodes], np.int64)
    columns["terminal"] = np.array([episode.terminal for episode in episodes], bool)
    return columns


def _parts(folder: Path) -> list[Path]:
    found = (p for p in folder.glob("[0-9]*") if (p / "reward.npy").exists())
    return sorted(found, key=lambda p: (len(p.name), p.name))


class _Part(NamedTuple):
    obs: Any
    action: np.ndarray | None
    reward: np.ndarray
    length: np.ndarray
    terminal: np.ndarray


def open_npy(folder: Path) -> Recording:
    """A recording in parts, through memory maps. ValueError where files are missing, damaged, or do not fit the
    description or each other."""
    about = read_about(folder)
    spec = spec_of(about)
    parts = [_open_part(path, spec) for path in _parts(folder)]
    if not parts:
        raise ValueError(f"{folder} holds no episodes")
    place = [(part, at, n, end) for part in parts for at, n, end in _episodes(part)]

    def load(episode: int, first: int, count: int) -> Episode:
        part, begin, length, terminal = place[episode]
        cut = slice(begin + first, begin + min(first + count, length))
        obs, action, reward = jax.tree.map(lambda x: x[cut], (part.obs, part.action, part.reward))
        return Episode(obs, reward, action, terminal and first + count >= length)

    length = np.array([n for _, _, n, _ in place], np.int64)
    return Recording(folder, "npy", spec, length, load, about.get("env"))


def _episodes(part: _Part) -> list[tuple[int, int, bool]]:
    """First record, records and true end of each episode."""
    begin = np.cumsum(part.length) - part.length
    return list(zip(begin.tolist(), part.length.tolist(), part.terminal.tolist(), strict=True))


def _open_part(path: Path, spec: Spec) -> _Part:
    """The arrays of a part. ValueError where they do not fit the description or each other."""
    obs = unnamed(spec, {n: _load(path / f"{n}.npy", s.dtype, s.shape) for n, s in named(spec.obs).items()})
    reward = _load(path / "reward.npy", np.float32, ())
    length, terminal = _load(path / "length.npy", np.int64, ()), _load(path / "terminal.npy", np.bool_, ())
    action = None
    if spec.action is not None:
        action = _load(path / "action.npy", action_dtype(spec.action), action_shape(spec.action))
    columns = jax.tree.leaves((obs, action))
    if any(len(column) != len(reward) for column in columns) or length.sum() != len(reward):
        raise ValueError(f"{path} is damaged: its arrays differ in length from the {len(reward)} rewards")
    if len(length) != len(terminal) or (length < 1).any():
        raise ValueError(f"{path} is damaged: length.npy and terminal.npy do not describe the same episodes")
    if not np.isfinite(reward).all():
        raise ValueError(f"{path / 'reward.npy'} holds values that are not finite")
    return _Part(obs, action, reward, np.array(length), np.array(terminal))


def _load(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return _fits(str(file), array, dtype, shape)


def _fits(what: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if array.dtype != dtype or array.shape[1:] != tuple(shape) or not array.ndim:
        raise ValueError(
            f"{what} holds {array.dtype}{list(array.shape[1:])} per record, expected {np.dtype(dtype)}{list(shape)}"
        )
    return array


# --- npz ----------------------------------------------------------------------------------------------------------


def is_npz(path: Path) -> bool:
    """Whether a folder has a file per episode."""
    return bool(_episode_files(path))


def _episode_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz")) if folder.is_dir() else []


def write_npz(folder: Path, spec: Spec, episodes: Iterable[Episode], env: str | None) -> None:
    """Add one compressed file per episode."""
    for number, episode in enumerate(episodes, len(_episode_files(folder))):
        action = {} if episode.action is None else {"action": episode.action}
        columns = named(episode.obs) | action | {"reward": episode.reward, "terminal": np.array(episode.terminal)}
        np.savez_compressed(folder / f"{number:06d}.npz", allow_pickle=False, **columns)
    write_about(folder, spec, env)


def open_npz(folder: Path) -> Recording:
    """A recording of one file per episode. ValueError where one is damaged or does not fit the description."""
    about = read_about(folder)
    spec, files = spec_of(about), _episode_files(folder)
    length = np.array([_rows(file) for file in files], np.int64)
    return Recording(folder, "npz", spec, length, by_whole(lambda i: _read_npz(files[i], spec)), about.get("env"))


def _rows(file: Path) -> int:
    """Records of an episode, out of the header of its rewards."""
    try:
        with zipfile.ZipFile(file) as inside, inside.open("reward.npy") as array:
            version = np.lib.format.read_magic(array)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            (rows,) = read(array)[0]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged, or no episode: {error}") from None
    if rows < 1:
        raise ValueError(f"{file} holds no records")
    return rows


def _read_npz(file: Path, spec: Spec) -> Episode:
    try:
        with np.load(file, allow_pickle=False) as inside:
            columns: Mapping[str, Any] = dict(inside)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    expected = {name: (s.dtype, s.shape) for name, s in named(spec.obs).items()} | {"reward": (np.float32, ())}
    if spec.action is not None:
        expected["action"] = action_dtype(spec.action), action_shape(spec.action)
    if missing := [name for name in (*expected, "terminal") if name not in columns]:
        raise ValueError(f"{file} has no array {missing[0]!r}")
    for name, (dtype, shape) in expected.items():
        if len(_fits(f"{file}: {name}", columns[name], dtype, shape)) != len(columns["reward"]):
            raise ValueError(f"{file} is damaged: its arrays differ in length")
    action = columns.get("action") if spec.action is not None else None
    return Episode(unnamed(spec, columns), columns["reward"], action, bool(columns["terminal"]))
