"""LeRobot data sets, version 3.0: tables in parquet, cameras as films, read with pyarrow and PyAV.

    meta/info.json                      features (name, type, shape), frames per second, how the files are called
    meta/stats.json                     least and greatest value of each feature
    meta/tasks.parquet                  sentences
    meta/episodes/chunk-C/file-F.parquet   one row per episode: its length, and where its rows and frames are
    data/chunk-C/file-F.parquet         one row per frame: numbers of `observation.*`, `action`, `next.reward`, ...
    videos/CAMERA/chunk-C/file-F.mp4    the frames of many episodes, end to end

Sensors are called as their features, without `observation.` and `images.`. Actions that are numbers are scaled from
their least and greatest value to [-1, 1]; whole ones are choices. A set has as many observations as actions: where it
has rewards or ends (`next.reward`, `next.done`), the last observation is repeated for what arrives after the last
action, and `next.done` there is a true end.

What is written keeps our own description as the entry `jaxwm` of info.json, and has every record as a frame, the last
one of an episode too. Colour images are films, a little smoothed by their coding; the rest is stored as it is."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxwm.data import video
from jaxwm.data.recording import SHARD, Episode, Recording, Shelf, blank_actions, describe, shards, spec_of
from jaxwm.envs.border import action_shape
from jaxwm.types import Box, Discrete, MultiDiscrete, Spec, action_dtype

VERSION, CHUNK = "v3.0", 1000
DATA, FILM = (f"{kind}/chunk-{{chunk_index:03d}}/file-{{file_index:03d}}" for kind in ("data", "videos/{video_key}"))
INFO, STATS, EPISODES = "meta/info.json", "meta/stats.json", "meta/episodes"
REWARD, DONE, ACTION, SEEN = "next.reward", "next.done", "action", "observation."
CAMERA = f"{SEEN}images."
GROUP = 1000  # rows of a table that are read at once
NUMBER, FLAG = (jax.ShapeDtypeStruct((), dtype) for dtype in (np.float32, np.bool_))


class _Set(NamedTuple):
    """A set that is open: what info.json says, and a row per episode."""

    path: Path
    info: dict[str, Any]
    rows: list[dict[str, Any]]

    def file(self, kind: str, row: Mapping[str, Any], prefix: str, key: str = "") -> Path:
        """The file with an episode's rows or frames."""
        place = {x: int(row[f"{prefix}/{x}"]) for x in ("chunk_index", "file_index")}
        return self.path / str(self.info[kind]).format(video_key=key, **place)


# --- Reading ------------------------------------------------------------------------------------------------------


def is_lerobot(path: Path) -> bool:
    """Whether a folder is a LeRobot data set, of any version."""
    return (path / INFO).is_file()


def open_lerobot(path: Path) -> Recording:
    """A LeRobot data set. ValueError where it is of another version, damaged, or has features with no counterpart."""
    here = _open_set(path)
    features, ours = here.info["features"], here.info.get("jaxwm")
    keys = {key.removeprefix(SEEN).removeprefix("images."): key for key in features if key.startswith(SEEN)}
    if ours:
        reader = _Reader(here, spec_of(ours), keys, None, 0)
    else:  # a sensor is part of the names of parameters, where a dot has a meaning
        keys = {name.replace(".", "_"): key for name, key in keys.items()}
        spec, scale = _spec(here, keys)
        reader = _Reader(here, spec, keys, scale, int(REWARD in features or DONE in features))
    return Recording(path, "lerobot", reader.spec, reader.length, reader.load, ours["env"] if ours else None)


class _Reader:
    """Reads pieces of episodes: `keys` are the features of sensors, `scale` the least value and the width of actions
    that are scaled, `after` is 1 where a record comes after the last row, for what its action leads to."""

    def __init__(self, here: _Set, spec: Spec, keys: dict[str, str], scale: Any, after: int):
        self.here, self.spec, self.keys, self.scale, self.after = here, spec, keys, scale, after
        self.features = here.info["features"]
        self.length = np.array([int(row["length"]) + after for row in here.rows], np.int64)
        self._begins, self._rows, self._films = _begins(here), _tables(here), video.library(video.Clip)
        for name, struct in _sensors(spec.obs).items():
            if self.features[keys[name]]["dtype"] == "video":
                self._check_films(keys[name], struct)

    def load(self, episode: int, first: int, count: int) -> Episode:
        """`Recording.load`."""
        steps = int(self.length[episode]) - self.after
        end = min(first + count, steps + self.after)
        obs = {name: self._seen(self.keys[name], s, episode, first, end) for name, s in _sensors(self.spec.obs).items()}
        reward = np.zeros(end - first, np.float32)  # each arrives a record after the row that has it
        if REWARD in self.features and end - 1 > (before := max(first - 1, 0)):
            reward[-(end - 1 - before) :] = self._column(REWARD, NUMBER, episode, before, end - 1)
        action, acted = blank_actions(self.spec, end - first), min(end, steps)
        if action is not None and acted > first:
            struct = jax.ShapeDtypeStruct(action.shape[1:], action.dtype)
            action[: acted - first] = self._scaled(self._column(ACTION, struct, episode, first, acted))
        done = end == steps + self.after and DONE in self.features
        done = done and bool(self._column(DONE, FLAG, episode, steps - 1, steps)[0])
        return Episode(obs if isinstance(self.spec.obs, Mapping) else obs["obs"], reward, action, done)

    def _seen(self, key: str, struct: Any, episode: int, first: int, end: int) -> np.ndarray:
        """A sensor's records; what is after the last row is as the last."""
        steps = int(self.length[episode]) - self.after
        begin, last = min(first, steps - 1), min(end, steps)
        rows = (self._frames if self.features[key]["dtype"] == "video" else self._column)(
            key, struct, episode, begin, last
        )
        return rows if last - begin == end - first else rows[np.minimum(np.arange(first, end), steps - 1) - begin]

    def _frames(self, key: str, struct: Any, episode: int, first: int, last: int) -> np.ndarray:
        row = self.here.rows[episode]
        film = self._films(self.here.file("video_path", row, f"videos/{key}", key))
        begin = round(float(row[f"videos/{key}/from_timestamp"]) * float(self.here.info["fps"]))
        return film.frames(begin + first, last - first)[..., : struct.shape[-1]]

    def _check_films(self, key: str, struct: Any) -> None:
        """ValueError where a film of a camera cannot be opened, or has images of another size."""
        for file in sorted({self.here.file("video_path", row, f"videos/{key}", key) for row in self.here.rows}):
            with contextlib.closing(video.Clip(file)) as film:
                if film.size != struct.shape[:2]:
                    (a, b), (c, d) = film.size, struct.shape[:2]
                    raise ValueError(f"{file} has images of {a} x {b}, and {INFO} says {c} x {d}")

    def _column(self, key: str, struct: Any, episode: int, first: int, last: int) -> np.ndarray:
        return _array(self.here.path, self._rows(self._begins[episode], first, last, key), struct)

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        if self.scale is None:
            return action
        low, width = self.scale
        return (action - low) / width * 2 - 1


def _open_set(path: Path) -> _Set:
    try:
        info = json.loads((path / INFO).read_bytes())
        version, _, _ = info["codebase_version"], info["features"], float(info["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / INFO} is damaged: {type(error).__name__} {error}") from None
    if not str(version).startswith("v3."):
        advice = "convert it with LeRobot (convert_dataset_v21_to_v30)"
        raise ValueError(f"{path} is a LeRobot data set of version {version}, and {VERSION} is read: {advice}")
    files = sorted((path / EPISODES).rglob("*.parquet"))
    rows = [row for file in files for row in _parquet(file).read(_columns(file)).to_pylist()]
    if not rows:
        raise ValueError(f"{path} holds no episodes: there are none in {EPISODES}")
    needed = {"episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"}
    if missing := sorted(needed - rows[0].keys()):
        raise ValueError(f"{path / EPISODES} does not say where episodes are: there is no column {missing[0]!r}")
    return _Set(path, info, sorted(rows, key=lambda row: row["episode_index"]))


def _columns(file: Path) -> list[str]:
    """Columns of the table of episodes that matter here: not the statistics."""
    names = _parquet(file).schema_arrow.names
    return [name for name in names if not name.startswith("stats/") and name != "tasks"]


def _parquet(file: Path) -> Any:
    """An open parquet file. ValueError where it is missing or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is damaged: {str(error)[:200]}") from None


def _spec(here: _Set, keys: dict[str, str]) -> tuple[Spec, Any]:
    """The spec of a set, and the least value and the width of its actions, where they are numbers."""
    features = here.info["features"]
    obs = {name: _struct(here.path, key, features[key]) for name, key in keys.items()}
    if not obs:
        raise ValueError(f"{here.path} has no observations: no feature is called {SEEN}...")
    name = here.path.name
    if ACTION not in features:
        return Spec(name, obs, None), None
    try:
        stats = json.loads((here.path / STATS).read_bytes())[ACTION]
        low, high = (np.asarray(stats[word], np.float32).ravel() for word in ("min", "max"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{here.path / STATS} does not say between what numbers actions are: {error!r}") from None
    if not str(features[ACTION]["dtype"]).startswith("int"):
        return Spec(name, obs, Box(len(low))), (low, np.where(high > low, high - low, 1))
    sizes = tuple(int(n) + 1 for n in high)
    return Spec(name, obs, Discrete(sizes[0]) if len(sizes) == 1 else MultiDiscrete(sizes)), None


def _struct(path: Path, key: str, feature: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    shape, dtype = tuple(feature["shape"]), str(feature["dtype"])
    if dtype in ("video", "image"):
        names = feature.get("names") or ()
        first = bool(names) and str(names[0]).startswith("channel")
        return jax.ShapeDtypeStruct((*shape[1:], shape[0]) if first else shape, np.uint8)
    if dtype == "bool":
        return jax.ShapeDtypeStruct(shape, np.bool_)
    if not dtype.startswith(("float", "int", "uint")):
        raise ValueError(f"{path}: the sensor {key!r} is {dtype}, which is no number: leave it out with sensors=NAME")
    return jax.ShapeDtypeStruct(shape, np.float32)


class _Begin(NamedTuple):
    """Where an episode is: its data file, and its first row there."""

    file: Path
    row: int


def _begins(here: _Set) -> list[_Begin]:
    """Place of every episode. ValueError where a file is missing or damaged, or where it has fewer rows."""
    files = [here.file("data_path", row, "data") for row in here.rows]
    least: dict[Path, Any] = {}
    for file, row in zip(files, here.rows, strict=True):
        least[file] = min(least[file] if file in least else 2**62, int(row["dataset_from_index"]))
    places = [_Begin(f, int(r["dataset_from_index"]) - least[f]) for f, r in zip(files, here.rows, strict=True)]
    have = {file: _parquet(file).metadata.num_rows for file in least}
    for place, row in zip(places, here.rows, strict=True):
        if place.row + int(row["length"]) > have[place.file]:
            raise ValueError(f"{place.file} is damaged: it ends before episode {row['episode_index']} does")
    return places


def _tables(here: _Set) -> Callable[[_Begin, int, int, str], Any]:
    """`(place, first, last, column)` -> rows of an episode, as an arrow array. Groups of rows that were read last are
    kept."""
    import pyarrow as pa

    open_files: dict[Path, Any] = {}
    shelf = Shelf()
    columns = {k for k, f in here.info["features"].items() if f["dtype"] != "video"}
    wanted = sorted(k for k in columns if k.startswith(SEEN) or k in (ACTION, REWARD, DONE))

    def group(file: Path, number: int) -> Any:
        try:
            return open_files[file].read_row_group(number, wanted)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is damaged: {str(error)[:200]}") from None

    def rows(place: _Begin, first: int, last: int, column: str) -> Any:
        if place.file not in open_files:
            open_files[place.file] = _parquet(place.file)
        meta = open_files[place.file].metadata
        ends = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
        begin, end = place.row + first, place.row + last
        numbers = range(int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(ends, end, "left")) + 1)
        parts = [shelf.get((place.file, n), partial(group, place.file, n)) for n in numbers]
        start = int(ends[numbers[0] - 1]) if numbers[0] else 0
        chunks = [chunk for part in parts for chunk in part[column].chunks]
        return pa.chunked_array(chunks).slice(begin - start, end - begin).combine_chunks()

    return rows


def _array(path: Path, column: Any, struct: Any) -> np.ndarray:
    """An arrow array of T rows as `[T, *struct.shape]`: lists inside of lists are the axes. ValueError where it is not
    that large, or holds nothing somewhere."""
    if struct.dtype == np.uint8 and str(column.type).startswith("struct"):
        return np.stack([_image(path, row) for row in column.to_pylist()])
    count = len(column)
    while str(column.type).partition("<")[0] in ("list", "large_list", "fixed_size_list", "extension"):
        column = column.storage if str(column.type).startswith("extension") else column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if values.size != count * int(np.prod(struct.shape)) or values.dtype == object:
        raise ValueError(f"{path} holds {values.size // max(count, 1)} numbers per record, expected {struct.shape}")
    return values.reshape(count, *struct.shape).astype(struct.dtype)


def _image(path: Path, cell: Mapping[str, Any]) -> np.ndarray:
    """An image that is stored in a table."""
    try:
        source = io.BytesIO(cell["bytes"]) if cell.get("bytes") else path / cell["path"]
        with Image.open(source, formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise ValueError(f"{path} holds an image that cannot be read: {error}") from None


# --- Writing ------------------------------------------------------------------------------------------------------


def write_lerobot(folder: Path, spec: Spec, episodes: Iterable[Episode], env: str | None) -> None:
    """Write a set. A file holds about `SHARD` bytes of episodes."""
    named = {_key(n, s): (n, s) for n, s in _sensors(spec.obs).items()}
    rows: list[dict[str, Any]] = []
    stats: dict[str, dict[str, Any]] = {}
    for number, held in enumerate(shards(episodes)):
        place = {"chunk_index": number // CHUNK, "file_index": number % CHUNK}
        first = rows[-1]["dataset_to_index"] if rows else 0
        films = [key for key in named if key.startswith(CAMERA)]
        columns = _table(spec, named, held, first, len(rows))
        rows += _rows(spec.name, held, first, len(rows), place, films)
        for key, column in columns.items():
            if column.ndim < 3:  # else there are too many numbers, as in an image
                stats[key] = _counted(column, stats.get(key))
        _write(folder / f"{DATA}.parquet".format(**place), {k: _nested(x) for k, x in columns.items()})
        for key in films:
            file = folder / f"{FILM}.mp4".format(video_key=key, **place)
            file.parent.mkdir(parents=True, exist_ok=True)
            video.encode(file, (_sensors(e.obs)[named[key][0]] for e in held))
    _write(folder / EPISODES / "chunk-000" / "file-000.parquet", {k: [row[k] for row in rows] for k in rows[0]})
    _write(folder / "meta" / "tasks.parquet", {"task_index": [0], INDEX: [spec.name]}, {"pandas": json.dumps(_PANDAS)})
    info = _info(spec, named, stats, rows) | {"jaxwm": describe(spec, env)}
    (folder / STATS).write_text(json.dumps({key: _summary(x) for key, x in stats.items()}, indent=2) + "\n")
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n")


def _sensors(obs: Any) -> dict[str, Any]:
    """Sensors by name; a single one is called `obs`."""
    return dict(obs) if isinstance(obs, Mapping) else {"obs": obs}


def _key(name: str, struct: Any) -> str:
    """The feature of a sensor: a film where it is an image of one or three channels."""
    film = struct.dtype == np.uint8 and len(struct.shape) == 3 and struct.shape[-1] in (1, 3)
    return f"{CAMERA if film else SEEN}{name}"


def _table(spec: Spec, named: dict[str, Any], held: list[Episode], first: int, episode: int) -> dict[str, np.ndarray]:
    """The columns of a file `[T, ...]`, for episodes that begin with so many frames and episodes before them."""
    join = lambda get: np.concatenate([get(e) for e in held])  # noqa: E731
    table = {key: join(lambda e, n=n: _sensors(e.obs)[n]) for key, (n, _) in named.items() if CAMERA not in key}
    if spec.action is not None:
        table[ACTION] = join(lambda e: e.action)
    length = [len(e.reward) for e in held]
    frame = np.concatenate([np.arange(n) for n in length])
    table[REWARD] = join(lambda e: np.append(e.reward[1:], np.float32(0)))
    table[DONE] = join(lambda e: (np.arange(len(e.reward)) == len(e.reward) - 1) & e.terminal)
    table |= {"timestamp": (frame / video.RATE).astype(np.float32), "frame_index": frame}
    table["episode_index"] = np.repeat(np.arange(len(held)) + episode, length)
    return table | {"index": np.arange(len(frame)) + first, "task_index": np.zeros_like(frame)}


def _rows(
    task: str, held: list[Episode], first: int, episode: int, place: dict[str, int], films: list[str]
) -> list[dict[str, Any]]:
    """The rows of the table of episodes, for those in one file."""
    rows, begin = [], 0
    for number, one in enumerate(held):
        end = begin + len(one.reward)
        row: dict[str, Any] = {"episode_index": episode + number, "tasks": [task], "length": end - begin}
        row |= {f"data/{k}": v for k, v in place.items()} | {f"meta/episodes/{k}": 0 for k in place}
        row |= {"dataset_from_index": first + begin, "dataset_to_index": first + end}
        for key in films:
            row |= {f"videos/{key}/{k}": v for k, v in place.items()}
            row |= {f"videos/{key}/from_timestamp": begin / video.RATE, f"videos/{key}/to_timestamp": end / video.RATE}
        rows.append(row)
        begin = end
    return rows


def _nested(x: np.ndarray) -> Any:
    """`[T, ...]` as an arrow array of T rows, with lists inside of lists as its other axes."""
    import pyarrow as pa

    column = pa.array(x.reshape(-1))
    for size in reversed(x.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _write(file: Path, columns: dict[str, Any], about: dict[str, str] | None = None) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    parquet.write_table(table.replace_schema_metadata(about) if about else table, file, row_group_size=GROUP)


def _counted(column: np.ndarray, before: dict[str, Any] | None) -> dict[str, Any]:
    """What statistics are made of, with those of the files before."""
    x = column.astype(np.float64)
    new = {"min": x.min(0), "max": x.max(0), "sum": x.sum(0), "square": np.square(x).sum(0), "count": len(x)}
    if before is None:
        return new
    how = {"min": np.minimum, "max": np.maximum}
    return {name: how.get(name, np.add)(before[name], value) for name, value in new.items()}


def _summary(s: dict[str, Any]) -> dict[str, Any]:
    mean = s["sum"] / s["count"]
    std = np.sqrt(np.maximum(s["square"] / s["count"] - mean**2, 0))
    found = {"min": s["min"], "max": s["max"], "mean": mean, "std": std, "count": s["count"]}
    return {name: np.atleast_1d(x).tolist() for name, x in found.items()}


def _info(spec: Spec, named: dict[str, Any], columns: Iterable[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What info.json says."""
    kinds = {"timestamp": "float32", REWARD: "float32", DONE: "bool"}
    features: dict[str, Any] = {k: {"dtype": kinds.get(k, "int64"), "shape": [1], "names": None} for k in columns}
    if spec.action is not None:
        shape = list(action_shape(spec.action)) or [1]
        features[ACTION] = {"dtype": np.dtype(action_dtype(spec.action)).name, "shape": shape, "names": None}
    for key, (_, struct) in named.items():
        if key.startswith(CAMERA):
            *size, channels = struct.shape
            told = {"video.fps": video.RATE, "video.codec": "h264", "has_audio": False}
            film = {
                "dtype": "video",
                "shape": [*size, channels],
                "names": ["height", "width", "channels"],
                "info": told,
            }
            features[key] = film
        else:
            dtype = np.dtype(struct.dtype).name
            features[key] = {"dtype": dtype, "shape": list(struct.shape) or [1], "names": None}
    total = {"total_episodes": len(rows), "total_frames": rows[-1]["dataset_to_index"], "total_tasks": 1}
    paths = {"data_path": f"{DATA}.parquet", "video_path": f"{FILM}.mp4"}
    sizes = {"chunks_size": CHUNK, "data_files_size_in_mb": SHARD // 2**20, "video_files_size_in_mb": SHARD // 2**20}
    about = {"codebase_version": VERSION, "robot_type": None, "fps": video.RATE, "splits": {"train": f"0:{len(rows)}"}}
    return about | total | sizes | paths | {"features": features}


INDEX = "__index_level_0__"
_NAMES = (("task_index", "task_index", "int64", "int64"), (None, INDEX, "unicode", "object"))
_WORDS = ("name", "field_name", "pandas_type", "numpy_type", "metadata")
_PANDAS = {
    "index_columns": [INDEX],
    "column_indexes": [],
    "columns": [dict(zip(_WORDS, (*column, None), strict=True)) for column in _NAMES],
    "pandas_version": "2.0.0",
}
"""How pandas, with which LeRobot reads the table of tasks, finds its index."""
