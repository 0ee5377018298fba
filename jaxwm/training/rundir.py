"""A run directory: plain files that any tool can read, and that tell the whole story of a run.

config.json      what was asked for
metrics.jsonl    one line for each row of metrics
scores.jsonl     one line for each finished episode: member, env_steps, return, length
checkpoints/     what a resumed run starts from
.lock            held by the process that writes
tensorboard/     the same metrics for TensorBoard, on request
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import mmap
import os
import re
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from jaxwm.errors import nearest

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SCORES = "scores.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
TENSORBOARD = "tensorboard"

SCORE_FIELDS = ("member", "env_steps", "return", "length")

# --- The directory ------------------------------------------------------------------------------------------------


def default_path(agent: str, env: str, root: str | Path = "runs") -> Path:
    """A path that is still free: `default_path("dreamer-v3", "gymnax/Catch-bsuite")` is
    runs/dreamer-v3-Catch-bsuite-20260131-120000. Nothing is created."""
    task = env.split("/", 1)[-1]
    name = re.sub(r"[^\w.-]+", "-", f"{agent}-{task}-{time.strftime('%Y%m%d-%H%M%S')}")
    path, count = Path(root) / name, 1
    while path.exists():
        count += 1
        path = Path(root) / f"{name}-{count}"
    return path


def create(path: str | Path) -> Path:
    """Make a run directory with its `checkpoints/`, and return it.

    An existing empty directory will do, and so will one that was left before its configuration was written.

    Raises:
        FileExistsError: there is something at `path` already; the message tells the way out.
        OSError: `path` cannot be made: no permission, a file on the way, a name too long.
    """
    path = Path(path)
    try:
        if path.exists() and (not path.is_dir() or not _unused(path)):
            raise FileExistsError
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileExistsError(_occupied(path)) from None
    except OSError as error:
        message = f"cannot write to {path} ({error.strerror}): choose another directory with --run"
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        raise (PermissionError if denied else OSError)(error.errno, message) from error
    return path


def _unused(path: Path) -> bool:
    """Whether a folder holds nothing, or no more than a run that was killed before it wrote its configuration."""
    inside = {inner.name for inner in path.iterdir() if not inner.name.startswith(f".{CONFIG}.")}
    return inside <= {CHECKPOINTS, LOCK} and not (CHECKPOINTS in inside and any((path / CHECKPOINTS).iterdir()))


class Lock:
    """A directory that is held by this process; another one that wants it meets an error, or waits."""

    def __init__(self, file: IO[str]):
        self._file = file

    def close(self) -> None:
        """Let go. A second call does nothing."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                if _same(self._file):
                    os.unlink(self._file.name)
            self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock(path: str | Path, what: str = "run", wait: float = 0.0) -> Lock:
    """Hold the directory `path` until the lock is closed, or this process ends in whatever way.

    Waits up to `wait` seconds for another process to let go. BlockingIOError names that process.
    """
    until = time.monotonic() + wait
    while not (file := _try_lock(Path(path) / LOCK)):
        if time.monotonic() > until:
            try:
                holder = (Path(path) / LOCK).read_text().strip() or "another process"
            except OSError:
                continue  # it has just let go
            message = f"{holder} is working on the {what} in {path}: wait for it, stop it, or choose another place"
            raise BlockingIOError(errno.EAGAIN, message)
        time.sleep(0.2)
    return Lock(file)


def _same(file: IO[str]) -> bool:
    """Whether an open file still is the one of its name."""
    return os.fstat(file.fileno()).st_ino == os.stat(file.name).st_ino


def _try_lock(path: Path) -> IO[str] | None:
    """The open lock file; None while another process has it."""
    file = open(path, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _same(file):
            raise FileNotFoundError  # who had it has taken it away since it was opened
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            return None
        # a file system without locks: nothing to be done
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


@contextlib.contextmanager
def created(path: str | Path, wait: float = 0.0) -> Iterator[Lock]:
    """`create` and `lock`, and take everything away again if the body fails: a run that cannot start leaves nothing
    behind. The lock outlives the body."""
    path = Path(path)
    absent = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    ours = None
    try:
        create(path)
        held = lock(path, wait=wait)
        if not _unused(path):  # of two runs that start at once, only one gets the lock, or gets it first
            held.close()
            raise FileExistsError(_occupied(path))
        ours = held
        yield ours
    except BaseException:
        if ours:
            for inner in path.iterdir():
                if inner.name != LOCK:
                    shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
            ours.close()
        for folder in absent:
            with contextlib.suppress(OSError):  # never made, or another run has moved in
                folder.rmdir()
        raise


def _occupied(path: Path) -> str:
    if (path / CONFIG).exists() or (path / CHECKPOINTS).exists():
        return f"{path} holds a run already: choose another directory with --run, or go on with `jaxwm resume {path}`"
    what = "is not empty" if path.is_dir() else "is a file"
    return f"{path} {what}: choose another directory with --run"


# --- The configuration --------------------------------------------------------------------------------------------


def write_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Write `config` into the run directory `path`; a reader sees the old file or the whole new one.

    Raises:
        TypeError: a value has no place in JSON; the message names its entry.
        ValueError: a value is NaN or infinite: a configuration must come back as it went in.
        OSError: the file cannot be written.
    """
    write_json(Path(path) / CONFIG, {str(name): _config_entry(name, value) for name, value in config.items()})


def write_json(file: Path, data: Any) -> None:
    """Write a whole file at once: a reader, or a machine that comes back, finds the old one or the new one."""
    text = json.dumps(data, indent=2) + "\n"
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read it
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _config_entry(name: str, value: Any) -> Any:
    try:
        plain = _plain(value)
    except TypeError as error:
        raise TypeError(f"config entry {name!r}: {error}") from None
    if _finite(plain) != plain:
        raise ValueError(f"config entry {name!r} holds NaN or infinity, which JSON has no word for: {value!r}")
    return plain


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of the run directory `path`.

    Raises:
        FileNotFoundError: there is no config.json, so this is no run directory.
        ValueError: config.json is damaged.
    """
    file = Path(path) / CONFIG
    try:
        config = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is no run directory: there is no {CONFIG} in it{_runs_near(path)}") from None
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: expected an object, found {type(config).__name__}")
    return config


def _runs_near(path: str | Path) -> str:
    """Runs beside `path` with the nearest names, as the end of a message."""
    parent, name = Path(path).parent, Path(path).name
    runs = sorted(folder.parent.name for folder in parent.glob(f"*/{CONFIG}"))
    close = nearest(name, runs) or runs[-3:]
    return f"; did you mean {', '.join(str(parent / run) for run in close)}?" if close else ""


# --- Values as JSON -----------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """`value` out of nothing but dict, list, str, int, float, bool and None.

    Raises:
        TypeError: for anything that is no number, array, text, path, list, tuple or mapping.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value)  # np.float64 is one too
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain_array(np.asarray(jax.device_get(value)))
    raise TypeError(f"cannot write {value!r} ({type(value).__name__}) as JSON")


def _plain_array(array: np.ndarray) -> Any:
    """Floats go by their own shortest text: float32 0.1 is written 0.1, not 0.10000000149011612."""
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.ndim:
        return [_plain_array(np.asarray(row)) for row in array]
    return float(str(array[()]))


def _finite(plain: Any) -> Any:
    """The same with None (JSON's null) for NaN and infinity."""
    if isinstance(plain, dict):
        return {name: _finite(inner) for name, inner in plain.items()}
    if isinstance(plain, list):
        return [_finite(inner) for inner in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


# --- Writing ------------------------------------------------------------------------------------------------------


class Writer:
    """Appends metrics and scores to a run directory. Not to be shared between processes.

    Every call writes whole lines at once, so a killed run loses at most its last line. A full disk costs rows, not the
    run: it is told once as a warning, and writing goes on when there is room again.
    """

    def __init__(self, path: str | Path, tensorboard: bool = False):
        """Opens the files of the run directory `path` and cuts a line that a killed run left unfinished.

        Raises:
            OSError: the files cannot be opened.
            ImportError: `tensorboard` is asked for and tensorboardX is not installed.
        """
        self._path = Path(path)
        self._warned = False
        self._board = _Board(self._path / TENSORBOARD) if tensorboard else None
        self._files = {name: _Lines(self._path / name) for name in (METRICS, SCORES)}

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row of numbers, arrays (`[M]` for one value a member), text or None.

        TensorBoard plots it against its entry `env_steps`, or else `updates`; a row without them is not plotted.
        """
        plain = _finite(_plain(row))
        with self._surviving_full_disk():
            self._files[METRICS].append([plain])
        self._plot(plain, _axis(plain))

    def scores(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append finished episodes: `{"member": int, "env_steps": int, "return": float, "length": int}` each.

        Raises:
            ValueError: a row has other fields; nothing is written.
        """
        plain = [_finite(_plain(row)) for row in rows]
        for row in plain:
            if row.keys() != set(SCORE_FIELDS):
                raise ValueError(f"a score has the fields {', '.join(SCORE_FIELDS)}; got {', '.join(row)}")
        with self._surviving_full_disk():
            self._files[SCORES].append(plain)
        for row in plain:
            self._plot({f"episode/{name}/{row['member']}": row[name] for name in ("return", "length")}, _axis(row))

    def flush(self) -> None:
        """Make all that was written survive a crash of the machine."""
        for sink in (*self._files.values(), self._board):
            if sink is not None:
                with self._surviving_full_disk():
                    sink.flush()

    def close(self) -> None:
        """Flush and close. A second call does nothing."""
        self.flush()
        for sink in (*self._files.values(), self._board):
            if sink is not None:
                with self._surviving_full_disk():
                    sink.close()
        self._files, self._board = {}, None

    def offsets(self) -> dict[str, int]:
        """Flush, and tell the length of each file in bytes: what a checkpoint keeps for `truncate`."""
        self.flush()
        return {name: file.size() for name, file in self._files.items()}

    def truncate(self, offsets: Mapping[str, int]) -> None:
        """Forget what was written after `offsets` were taken: a resumed run writes it again.

        A file that is shorter than its offset stays as it is, with a warning: it lost rows.

        Raises:
            ValueError: `offsets` names a file that is not written here.
        """
        unknown = offsets.keys() - self._files.keys()
        if unknown:
            raise ValueError(f"offsets of unknown files: {', '.join(sorted(unknown))}")
        for name, size in offsets.items():
            if self._files[name].size() < size:
                warnings.warn(f"{self._path / name} is shorter than at its checkpoint: rows are missing", stacklevel=2)
            else:
                self._files[name].truncate(size)
        if self._board:
            last = [step for row in read_jsonl(self._path / METRICS) if (step := _axis(row)) is not None][-1:]
            self._board.rewind(last[0] + 1 if last else 0)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plot(self, row: Mapping[str, Any], step: int | None) -> None:
        if self._board and step is not None:
            with self._surviving_full_disk():
                self._board.add(_scalars(row), step)

    @contextlib.contextmanager
    def _surviving_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._warned:
                self._warned = True
                text = f"no space left for {self._path}: metrics and scores are lost until there is"
                warnings.warn(text, stacklevel=4)  # told as from the caller of `metrics` or `scores`


class Silent:
    """A `Writer` that writes nothing: for all processes of a run but the first."""

    def metrics(self, row: Mapping[str, Any]) -> None: ...

    def scores(self, rows: Iterable[Mapping[str, Any]]) -> None: ...

    def offsets(self) -> dict[str, int]:
        return {}

    def truncate(self, offsets: Mapping[str, int]) -> None: ...

    def close(self) -> None: ...


def _axis(row: Mapping[str, Any]) -> int | None:
    step = row.get("env_steps", row.get("updates"))
    return int(step) if isinstance(step, int | float) else None


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by tag; a list, one value for each member, becomes name/0, name/1, ..."""
    scalars = {}
    for name, value in row.items():
        if isinstance(value, list):
            scalars |= _scalars({f"{name}/{index}": inner for index, inner in enumerate(value)})
        elif isinstance(value, int | float):
            scalars[name] = value
    return scalars


class _Lines:
    """One .jsonl file, open for appending without a buffer: no half-written row waits in memory."""

    def __init__(self, path: Path):
        self._file = open(path, "ab+", buffering=0)
        self._cut_unfinished_line()

    def append(self, rows: list[dict[str, Any]]) -> None:
        start = self.size()
        data = b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(start)  # no half lines
            raise

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _cut_unfinished_line(self) -> None:
        if not self.size():
            return
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
            tail = content[end:]
        if tail and _parses(tail):  # whole, but for its line break: an editor may leave it so
            self._file.write(b"\n")
        elif tail:
            self._file.truncate(end)


def import_tensorboard() -> tuple[Any, Any, Any]:
    """tensorboardX's `EventsWriter`, `event_pb2` and `scalar`; ImportError tells how to install it."""
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar
    except ImportError as error:
        raise ImportError("TensorBoard output needs tensorboardX: pip install 'jaxwm[log]'") from error
    return EventsWriter, event_pb2, scalar


class _Board:
    """A TensorBoard event file, written in this thread: tensorboardX's own SummaryWriter writes in another one, and
    hangs the program for good when the disk is full."""

    def __init__(self, path: Path):
        events_writer, self._events, self._scalar = import_tensorboard()
        path.mkdir(exist_ok=True)
        # files are named by the second: without more in its name a quick restart would overwrite one
        self._file = events_writer(str(path / "events"), filename_suffix=f".{time.time_ns()}")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        for tag, value in scalars.items():
            self._write(step, summary=self._scalar(tag, value))

    def rewind(self, step: int) -> None:
        """TensorBoard forgets the points from `step` on."""
        self._write(step, session_log=self._events.SessionLog(status=self._events.SessionLog.START))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._events.Event(wall_time=time.time(), step=step, **content))


# --- Reading ------------------------------------------------------------------------------------------------------


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file. An unfinished last line, as a killed or still running program leaves it, is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another line is damaged; the message tells which.
    """
    *lines, tail = Path(path).read_bytes().split(b"\n")
    if tail and _parses(tail):
        lines.append(tail)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None
    return rows


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
