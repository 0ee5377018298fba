"""The writer of a run directory: metrics and scores as JSON lines, and TensorBoard on request."""

import contextlib
import errno
import io
import json
import mmap
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxwm.run.directory import METRICS, SCORES
from jaxwm.run.json_files import finite, parses, read_jsonl, to_plain

TENSORBOARD = "tensorboard"
SCORE_FIELDS = ("member", "env_steps", "return", "length")


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Appends metrics and scores to a run directory, in one process. Every call writes whole lines, so a killed run
    loses at most its last line. A full disk costs rows and one warning; writing goes on when there is room again."""

    def __init__(self, path: str | Path, tensorboard: bool = False):
        """Opens the files of the run directory `path` and cuts a line that a killed run left unfinished. OSError where
        they cannot be opened, ImportError where `tensorboard` needs a missing tensorboardX."""
        self._path = Path(path)
        self._warned = False
        self._board = _Board(self._path / TENSORBOARD) if tensorboard else None
        self._files = {name: _Lines(self._path / name) for name in (METRICS, SCORES)}

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row of numbers, arrays (`[M]` for one value a member), text or None. TensorBoard plots it against
        its entry `env_steps`, or else `updates`; a row without them is not plotted."""
        plain = finite(to_plain(row))
        with self._surviving_full_disk():
            self._files[METRICS].append([plain])
        self._plot(plain, _axis(plain))

    def scores(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append finished episodes: `{"member": int, "env_steps": int, "return": float, "length": int}` each.
        ValueError where a row has other fields: nothing is written."""
        plain = [finite(to_plain(row)) for row in rows]
        for row in plain:
            if row.keys() != set(SCORE_FIELDS):
                raise ValueError(f"a score has the fields {', '.join(SCORE_FIELDS)}; got {', '.join(row)}")
        with self._surviving_full_disk():
            self._files[SCORES].append(plain)
        for row in plain:
            self._plot({f"episode/{name}/{row['member']}": row[name] for name in ("return", "length")}, _axis(row))

    def flush(self) -> None:
        """Make all that was written survive a crash of the machine."""
        for sink in filter(None, (*self._files.values(), self._board)):
            with self._surviving_full_disk():
                sink.flush()

    def close(self) -> None:
        """Flush and close. A second call does nothing."""
        self.flush()
        for sink in filter(None, (*self._files.values(), self._board)):
            with self._surviving_full_disk():
                sink.close()
        self._files, self._board = {}, None

    def offsets(self) -> dict[str, int]:
        """Flush, and tell the length of each file in bytes: what a checkpoint keeps for `truncate`."""
        self.flush()
        return {name: file.size() for name, file in self._files.items()}

    def truncate(self, offsets: Mapping[str, int]) -> None:
        """Forget what was written after `offsets` were taken: a resumed run writes it again. A file that is shorter
        than its offset stays as it is, with a warning: it lost rows. ValueError for a file that is not written here."""
        if unknown := offsets.keys() - self._files.keys():
            raise ValueError(f"offsets of unknown files: {', '.join(sorted(unknown))}")
        for name, size in offsets.items():
            if self._files[name].size() < size:
                warnings.warn(f"{self._path / name} is shorter than at its checkpoint: rows are missing", stacklevel=2)
            else:
                self._files[name].truncate(size)
        if self._board:
            last = [step for row in read_jsonl(self._path / METRICS) if (step := _axis(row)) is not None][-1:]
            self._board.rewind(last[0] + 1 if last else 0)

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

    def offsets(self) -> dict[str, int]:
        return {}

    def metrics(self, what: Any = None) -> None: ...

    scores = truncate = close = metrics


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


class _Lines(io.FileIO):
    """One .jsonl file, open for appending without a buffer: no half-written row waits; an unfinished row is cut."""

    def __init__(self, path: Path):
        super().__init__(path, "ab+")
        if self.size():
            with mmap.mmap(self.fileno(), 0, access=mmap.ACCESS_READ) as content:
                end = content.rfind(b"\n") + 1
                tail = content[end:]
            if parses(tail):  # a whole row, but for its line break: an editor may leave it so
                self.write(b"\n")
            else:
                self.truncate(end)

    def append(self, rows: list[dict[str, Any]]) -> None:
        start = self.size()
        data = b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)
        try:
            while data:
                data = data[self.write(data) :]
        except OSError:
            self.truncate(start)  # no half lines
            raise

    def size(self) -> int:
        return os.fstat(self.fileno()).st_size

    def flush(self) -> None:
        os.fsync(self.fileno())


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
