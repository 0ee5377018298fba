"""The writer of a run directory: metrics and scores as JSON lines, and the same for the sinks that are asked for."""

import contextlib
import errno
import io
import json
import mmap
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxwm.run.directory import METRICS, SCORES
from jaxwm.run.json_files import finite, parses, read_jsonl, to_plain
from jaxwm.run.sinks import Sink, brief

SCORE_FIELDS = ("member", "env_steps", "return", "length")


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Appends metrics and scores to a run directory, in one process. Every call writes whole lines, so a killed run
    loses at most its last line. A full disk costs rows and one warning; writing goes on when there is room again. A
    sink that fails costs its own rows and one warning."""

    def __init__(self, path: str | Path, sinks: Mapping[str, Sink] | None = None):
        """Opens the files of the run directory `path` and cuts a line that a killed run left unfinished. `sinks` get
        the same rows, and are closed with it. OSError where the files cannot be opened."""
        self._path = Path(path)
        self._warned = False
        self._sinks = dict(sinks or {})
        self._failed: set[str] = set()
        self._files = {name: _Lines(self._path / name) for name in (METRICS, SCORES)}

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row of numbers, arrays (`[M]` for one value a member), text or None. Sinks plot it against its
        entry `env_steps`, or else `updates`; a row without them is not plotted."""
        plain = finite(to_plain(row))
        with self._surviving_full_disk():
            self._files[METRICS].append([plain])
        if (step := _axis(plain)) is not None:
            self._each("metrics", plain, step)

    def scores(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append finished episodes: `{"member": int, "env_steps": int, "return": float, "length": int}` each.
        ValueError where a row has other fields: nothing is written."""
        plain = [finite(to_plain(row)) for row in rows]
        for row in plain:
            if row.keys() != set(SCORE_FIELDS):
                raise ValueError(f"a score has the fields {', '.join(SCORE_FIELDS)}; got {', '.join(row)}")
        with self._surviving_full_disk():
            self._files[SCORES].append(plain)
        if plain:
            self._each("scores", plain)

    def flush(self) -> None:
        """Make all that was written survive a crash of the machine."""
        for file in self._files.values():
            with self._surviving_full_disk():
                file.flush()
        self._each("flush")

    def close(self) -> None:
        """Flush and close. A second call does nothing."""
        self.flush()
        for file in self._files.values():
            with self._surviving_full_disk():
                file.close()
        self._each("close")
        self._files, self._sinks = {}, {}

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
        if self._sinks:
            last = [step for row in read_jsonl(self._path / METRICS) if (step := _axis(row)) is not None][-1:]
            self._each("rewind", last[0] + 1 if last else 0)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, what: str, *arguments: Any) -> None:
        """Let every sink do something. A failure is reported once, and the sink tried again: a run never ends by it."""
        for name, sink in self._sinks.items():
            try:
                with self._surviving_full_disk():
                    getattr(sink, what)(*arguments)
            except Exception as error:
                if name not in self._failed:
                    self._failed.add(name)
                    text = f"{name} failed ({brief(error)}): the run goes on, and what is missing there is in"
                    warnings.warn(f"{text} {self._path / METRICS}", stacklevel=3)

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
