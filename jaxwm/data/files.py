"""Recorded episodes as a folder of NumPy arrays, read through memory maps.

    FOLDER/recording.json      what was recorded: observation, actions, time limit, environment
    FOLDER/000/, 001/, ...     parts, one per `append`, each with these arrays of T records of E episodes, end to end:
        obs.npy                observations [T, ...]; with several sensors obs.NAME.npy for each
        action.npy             actions [T, ...], each taken after seeing the observation of its row; may be absent
        reward.npy             float32 [T], each arriving with the observation of its row (0 in the first of an episode)
        length.npy             int64 [E], records of each episode
        terminal.npy           bool [E], whether the episode truly ended (not by a time limit or a cut)

Anything that writes such arrays, of any language, makes a recording. Nothing is unpickled.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm import spaces
from jaxwm.envs import border
from jaxwm.types import Box, Data, Discrete, Mixed, MultiDiscrete, Record, Spec, action_dtype

ABOUT = "recording.json"
FORMAT = 1

HELD_OUT = 20
"""One of so many episodes is kept apart for scores, where there are as many."""


class Episode(NamedTuple):
    """One recorded episode of T records: arrays `[T, ...]`, and whether it truly ended."""

    obs: Any
    reward: np.ndarray
    action: np.ndarray | None
    terminal: bool


# --- What was recorded --------------------------------------------------------------------------------------------


def _describe(spec: Spec, env: str | None) -> dict[str, Any]:
    sensor = lambda x: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name}  # noqa: E731
    named = spec.obs if isinstance(spec.obs, Mapping) else None
    obs = {name: sensor(x) for name, x in named.items()} if named else sensor(spec.obs)
    action: Any = None
    if spec.action is not None:
        action = {"kind": type(spec.action).__name__, **vars(spec.action)}
    about = {"format": FORMAT, "name": spec.name, "env": env, "obs": obs, "action": action}
    return about | {"max_steps": spec.max_steps, "one_hot": spec.one_hot}


def _spec(about: dict[str, Any]) -> Spec:
    sensor = lambda x: jax.ShapeDtypeStruct(tuple(x["shape"]), np.dtype(x["dtype"]))  # noqa: E731
    obs, action = about["obs"], about["action"]
    obs = sensor(obs) if "dtype" in obs and "shape" in obs else {name: sensor(x) for name, x in obs.items()}
    kinds: dict[str, Any] = {
        "Discrete": lambda a: Discrete(a["n"]),
        "MultiDiscrete": lambda a: MultiDiscrete(tuple(a["n"])),
        "Box": lambda a: Box(a["size"]),
        "Mixed": lambda a: Mixed(tuple(a["n"]), a["size"]),
    }
    space = kinds[action["kind"]](action) if action else None
    return Spec(about["name"], obs, space, about.get("max_steps"), one_hot=about.get("one_hot", False))


def _read_about(folder: Path) -> dict[str, Any]:
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


def recorded_env(folder: str | Path) -> str | None:
    """The name of the environment that a recording comes from; None where it has none. Raises as `open_data`."""
    return _read_about(Path(folder)).get("env")


# --- Writing ------------------------------------------------------------------------------------------------------


def append(folder: str | Path, spec: Spec, episodes: Iterable[Episode], env: str | None = None) -> int:
    """Add episodes to a recording as one more part, and begin one where there is none; how many records it has now.

    Raises:
        ValueError: the folder holds a recording of something else, or files of another kind.
        OSError: it cannot be written.
    """
    folder, about = Path(folder), _describe(spec, env)
    if (folder / ABOUT).exists():
        there = {"one_hot": False, **_read_about(folder)}
        wrong = [name for name in about if there.get(name) != json.loads(json.dumps(about[name]))]
        if wrong:
            raise ValueError(
                f"{folder} holds a recording with another {wrong[0]} ({there.get(wrong[0])}, now {about[wrong[0]]}): "
                "choose another folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files: choose a new folder for a recording")
    found = list(episodes)
    part = folder / f"{len(_parts(folder)):03d}"
    part.mkdir(parents=True)
    for name, column in _columns(found).items():
        np.save(part / f"{name}.npy", column, allow_pickle=False)
    if not (folder / ABOUT).exists():  # last: a folder without it is no recording
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return sum(len(np.load(p / "reward.npy", mmap_mode="r")) for p in _parts(folder))


def _columns(episodes: list[Episode]) -> dict[str, np.ndarray]:
    join = lambda *parts: np.concatenate(parts)  # noqa: E731
    obs = jax.tree.map(join, *(episode.obs for episode in episodes))
    columns = {f"obs.{k}": v for k, v in obs.items()} if isinstance(obs, dict) else {"obs": obs}
    columns["reward"] = join(*(episode.reward for episode in episodes)).astype(np.float32)
    if episodes[0].action is not None:
        columns["action"] = join(*(episode.action for episode in episodes))
    columns["length"] = np.array([len(episode.reward) for episode in episodes], np.int64)
    columns["terminal"] = np.array([episode.terminal for episode in episodes], bool)
    return columns


def _parts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if (p / "reward.npy").exists()) if folder.is_dir() else []


# --- Reading ------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    obs: Any
    action: np.ndarray | None
    reward: np.ndarray
    length: np.ndarray
    terminal: np.ndarray


def open_data(folder: str | Path, streams: int = 1, seed: int = 0, held_out: bool = False) -> Data:
    """A recording as a source of records: `streams` streams side by side, of all episodes in an order drawn by `seed`.

    One of `HELD_OUT` episodes, where there are so many, is kept apart: with `held_out` the source is those alone.
    A stream is cut where the next begins. Only what is read is loaded, and checked then as `envs.border` says: a number
    that is not finite becomes 0, with one warning.

    Raises:
        FileNotFoundError: the folder holds no recording.
        ValueError: files are missing, damaged, or do not fit the description or each other; too few records. When read:
            an action or a one-hot observation is out of range.
    """
    folder = Path(folder)
    about = _read_about(folder)
    spec = _spec(about)
    parts = [_open_part(path, spec) for path in _parts(folder)]
    if not parts:
        raise ValueError(f"{folder} holds no episodes")
    episodes = _order(parts, seed, held_out)
    where = np.concatenate([np.stack([np.full(n, p), np.arange(at, at + n)], 1) for p, at, n, _ in episodes])
    flags = [np.zeros((n, 3), bool) for _, _, n, _ in episodes]  # first, last, terminal
    for flag, (_, _, _, terminal) in zip(flags, episodes, strict=True):
        flag[0, 0], flag[-1, 1], flag[-1, 2] = True, True, terminal
    rows = len(where) // streams
    if rows < 1:
        raise ValueError(f"{folder} holds {len(where)} records, fewer than {streams} streams: lower --envs")
    where, marks = (x[: rows * streams].reshape(streams, rows, -1) for x in (where, np.concatenate(flags)))
    marks[:, 0, 0], marks[:, -1, 1] = True, True

    told: list[str] = []

    def read(first: int, count: int) -> Record:
        index = np.arange(first, first + count) % rows
        place = where[:, index].swapaxes(0, 1).reshape(-1, 2)  # [count * N, 2], as all that follows
        mark = marks[:, index].swapaxes(0, 1).reshape(-1, 3)
        pick = lambda get: _gather(parts, place, get)  # noqa: E731
        obs = {n: pick(lambda p, n=n: p.obs[n]) for n in spec.obs} if isinstance(spec.obs, Mapping) else None
        obs = pick(lambda p: p.obs) if obs is None else obs
        obs, bad = border.finite(border.checked(spec, obs, mark[:, 1]))
        action = None
        if spec.action is not None:
            action, wrong = border.native_action(spec, pick(lambda p: p.action), (len(mark),))
            bad = bad | wrong
        if bad is not False and not told:
            told.append(f"{folder} holds numbers that are not finite, in {np.sum(bad):,} of the {len(mark):,} records "
                        "read by now: each is taken as 0")  # fmt: skip
            warnings.warn(told[0], stacklevel=2)
        reward = np.where(mark[:, 0], np.float32(0), pick(lambda p: p.reward))
        flat: Any = Record(obs, reward, mark[:, 0], mark[:, 1], mark[:, 2], action, None)  # type: ignore[arg-type]
        return jax.tree.map(lambda x: x.reshape(count, streams, *x.shape[1:]), flat)

    return Data(spec, read, rows, streams, about.get("env"))


def _order(parts: list[_Part], seed: int, held_out: bool) -> list[tuple[int, int, int, bool]]:
    """Episodes as (part, first record, records, terminal), shuffled."""
    found = []
    for p, part in enumerate(parts):
        begin = np.concatenate([[0], np.cumsum(part.length)[:-1]])
        found += [(p, int(b), int(n), bool(t)) for b, n, t in zip(begin, part.length, part.terminal, strict=True)]
    order = np.random.default_rng(seed).permutation(len(found))
    apart = len(found) // HELD_OUT
    chosen = order[:apart] if held_out else order[apart:]
    return [found[i] for i in (chosen if len(chosen) else order)]


def _gather(parts: list[_Part], place: np.ndarray, get: Any) -> np.ndarray:
    """Records `[K, ...]` from their places `[K, 2]` (part, row)."""
    first = get(parts[0])
    out = np.empty((len(place), *first.shape[1:]), first.dtype)
    for p, part in enumerate(parts):
        mine = place[:, 0] == p
        if mine.any():
            out[mine] = get(part)[place[mine, 1]]
    return out


def _open_part(path: Path, spec: Spec) -> _Part:
    """The arrays of a part. ValueError where they do not fit the description or each other."""
    named = isinstance(spec.obs, Mapping)
    obs: Any = {n: _load(path / f"obs.{n}.npy", s.dtype, s.shape) for n, s in spec.obs.items()} if named else None
    obs = _load(path / "obs.npy", spec.obs.dtype, spec.obs.shape) if obs is None else obs
    reward = _load(path / "reward.npy", np.float32, ())
    length, terminal = _load(path / "length.npy", np.int64, ()), _load(path / "terminal.npy", np.bool_, ())
    action = None
    if spec.action is not None:
        action = _load(path / "action.npy", action_dtype(spec.action), spaces.blank(spec.action, 1).shape[1:])
    columns = [*(obs.values() if named else [obs]), *([] if action is None else [action])]
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
    if array.dtype != dtype or array.shape[1:] != tuple(shape):
        raise ValueError(
            f"{file} holds {array.dtype}{list(array.shape[1:])} per record, expected {np.dtype(dtype)}{list(shape)}"
        )
    return array
