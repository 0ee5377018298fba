"""Where metrics and pictures go besides the files of a run directory: TensorBoard, trackio, Weights & Biases, CSV.

A sink is a function `(folder, about) -> Sink`, of a run directory and its configuration. The record of a run stays
`metrics.jsonl`: whatever a sink misses is there. A library is imported only when its sink is asked for."""

import contextlib
import csv as csv_files
import io
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from jaxwm.run.directory import LOG, METRICS, SCORES, read_config
from jaxwm.run.json_files import read_json, read_jsonl, write_json

TENSORBOARD = "tensorboard"
PROJECT = "jaxwm"  # name of the project in trackio and Weights & Biases, unless JAXWM_PROJECT says another


def _nothing(*_: Any) -> None:
    """What a sink does with what it does not show."""


class Sink(NamedTuple):
    """What one sink does with a run. All may raise anything: `run.writer.Writer` and `publish` catch it."""

    metrics: Callable[[dict[str, Any], int], None]  # a row as in metrics.jsonl, and its step
    scores: Callable[[list[dict[str, Any]]], None] = _nothing  # rows as in scores.jsonl
    show: Callable[[str, Path, int], None] = _nothing  # a picture or video by name, and its step
    rewind: Callable[[int], None] = _nothing  # what was written from this step on is forgotten, and written again
    flush: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


def check(names: Iterable[str]) -> None:
    """Import what the sinks need. ImportError for a missing library, in one line that names the extra to install."""
    for name in names:
        _IMPORTS.get(name, _nothing)()


def opened(names: Iterable[str], folder: Path, about: Mapping[str, Any], fresh: bool = True) -> dict[str, Sink]:
    """The sinks of the run in `folder`; `about` is its configuration, `fresh` that it begins here.
    Errors as in `check`; ValueError where a sink cannot start, such as one that needs a login."""
    check(names := list(names))
    if fresh:
        (folder / LOG).unlink(missing_ok=True)
    sinks = {}
    for name in names:
        try:
            sinks[name] = SINKS[name](folder, about)
        except Exception as error:
            for sink in sinks.values():
                with contextlib.suppress(Exception):
                    sink.close()
            raise ValueError(f"--log {name} cannot start ({brief(error)}): repair that, or leave it out") from error
    return sinks


def publish(names: Iterable[str], folder: Path, files: Iterable[Path], step: int) -> None:
    """Show pictures and videos of the run in `folder`, by the name of their file. A sink that fails costs a warning:
    the files are on disk."""
    for name in names:
        try:
            (sink,) = opened([name], folder, read_config(folder), fresh=False).values()
            try:
                for file in files:
                    sink.show(f"{file.parent.name}/{file.name}" if file.parent != folder else file.name, file, step)
            finally:
                sink.close()
        except Exception as error:
            warnings.warn(f"{name} does not show the pictures of {folder} ({brief(error)})", stacklevel=2)


def brief(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]


def hints(names: Iterable[str], folder: Path) -> list[str]:
    """How to look at each sink."""
    ways = {
        TENSORBOARD: f"tensorboard --logdir {folder / TENSORBOARD}",
        "trackio": f"trackio show --project {_project()}",
        "wandb": f"wandb, project {_project('WANDB_PROJECT')}",
        "csv": f"{folder / 'metrics.csv'}, {folder / 'scores.csv'}",
    }
    return [ways[name] for name in names]


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by tag; a list, one value for each member, becomes name/0, name/1, ..."""
    return {name: value for name, value in flat(row).items() if isinstance(value, int | float)}


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without lists: their entries are name/0, name/1, ..."""
    found = {}
    for name, value in row.items():
        inner = flat({f"{name}/{index}": x for index, x in enumerate(value)}) if isinstance(value, list) else None
        found |= {name: value} if inner is None else inner
    return found


def _project(variable: str = "JAXWM_PROJECT") -> str:
    return os.environ.get(variable) or os.environ.get("JAXWM_PROJECT") or PROJECT


def _identity(folder: Path) -> str:
    """The name of a run among all runs of a project: its folder's, and letters that are its own."""
    file = folder / LOG
    if not file.exists():
        write_json(file, {"id": f"{folder.absolute().name}-{secrets.token_hex(3)}"})
    return read_json(file)["id"]


# --- TensorBoard --------------------------------------------------------------------------------------------------


def import_tensorboard() -> tuple[Any, Any]:
    """tensorboardX's `EventsWriter` and `event_pb2`; ImportError tells how to install it."""
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
    except ImportError as error:
        raise ImportError("TensorBoard output needs tensorboardX: pip install 'jaxwm[log]'") from error
    return EventsWriter, event_pb2


def tensorboard(folder: Path, about: Mapping[str, Any]) -> Sink:
    """Event files in RUN/tensorboard. Pictures have a folder in it: of two in one, TensorBoard reads the newer."""
    board, gallery = (_Events(folder / TENSORBOARD / inner) for inner in ("", "pictures"))

    def add(row: Mapping[str, Any], step: int) -> None:
        for tag, value in scalars(row).items():
            board.write(step, summary={"value": [{"tag": tag, "simple_value": value}]})

    def scores(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            add({f"episode/{name}/{row['member']}": row[name] for name in ("return", "length")}, row["env_steps"])

    def show(name: str, file: Path, step: int) -> None:
        if file.suffix != ".mp4":  # it shows GIF and PNG only
            with Image.open(file) as image:
                size = dict(width=image.width, height=image.height, colorspace=3)
            picture = {**size, "encoded_image_string": file.read_bytes()}
            gallery.write(step, summary={"value": [{"tag": name, "image": picture}]})

    def close() -> None:
        board.close()
        gallery.close()

    restart = lambda step: board.write(step, session_log={"status": 1})  # noqa: E731  # START: later points are void
    return Sink(add, scores, show, restart, board.flush, close)


class _Events:
    """A TensorBoard event file, written in this thread: tensorboardX's own SummaryWriter writes in another one, and
    hangs the program for good when the disk is full. It is made with its first event."""

    def __init__(self, path: Path):
        self._path, self._file = path, None
        self._writer, self._events = import_tensorboard()

    def write(self, step: int, **content: Any) -> None:
        if self._file is None:
            self._path.mkdir(parents=True, exist_ok=True)
            # files are named by the second: without more in its name a quick restart would overwrite one
            self._file = self._writer(str(self._path / "events"), filename_suffix=f".{time.time_ns()}")
        self._file.write_event(self._events.Event(wall_time=time.time(), step=step, **content))

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


# --- trackio ------------------------------------------------------------------------------------------------------


def import_trackio() -> Any:
    """The module `trackio`; ImportError tells how to install it."""
    try:
        import trackio  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("trackio output needs trackio: pip install 'jaxwm[log]'") from error
    return trackio


def trackio(folder: Path, about: Mapping[str, Any]) -> Sink:
    """trackio's database, by default on this machine (`TRACKIO_DIR`); its own variables send it elsewhere."""
    module, name = import_trackio(), _identity(folder)
    with contextlib.redirect_stdout(io.StringIO()):  # it says at length what `hints` says in a line
        run = module.init(
            project=_project(), name=name, group=folder.absolute().parent.name, config=flat(about) or None,
            resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False,
        )  # fmt: skip

    def show(name: str, file: Path, step: int) -> None:
        kind = module.Image if file.suffix == ".png" else module.Video
        run.log({name: kind(str(file))}, step=step)

    def close() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            module.finish()  # the run's own `finish` would be called again at the exit

    return Sink(lambda row, step: run.log(scalars(row), step=step), show=show, close=close)


# --- Weights & Biases ---------------------------------------------------------------------------------------------


def import_wandb() -> Any:
    """The module `wandb`; ImportError tells how to install it."""
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("Weights & Biases output needs wandb: pip install 'jaxwm[wandb]'") from error
    if not hasattr(wandb, "init"):  # a folder of that name, as offline runs leave it
        raise ImportError("Weights & Biases output needs wandb: pip install 'jaxwm[wandb]'")
    return wandb


def wandb(folder: Path, about: Mapping[str, Any]) -> Sink:
    """Weights & Biases, as `WANDB_MODE` and its other variables say; offline runs lie in RUN/wandb."""
    module, name = import_wandb(), _identity(folder)
    run = module.init(
        project=_project("WANDB_PROJECT"), id=name, name=name, group=folder.absolute().parent.name, dir=str(folder),
        resume="allow", config=dict(about) or None, settings=module.Settings(console="off", silent=True),
    )  # fmt: skip
    for axis in ("env_steps", "updates"):
        run.define_metric(axis, hidden=True)
    # rows keep a count of their own: wandb would merge those of one step, and drop what a resumed run writes again
    run.define_metric("*", step_metric="env_steps" if about.get("data") is None else "updates")

    def show(name: str, file: Path, step: int) -> None:
        kind = module.Image if file.suffix == ".png" else module.Video
        run.log({name: kind(str(file)), "env_steps": step, "updates": step})

    return Sink(lambda row, step: run.log(scalars(row)), show=show, close=run.finish)


# --- CSV ----------------------------------------------------------------------------------------------------------


def csv(folder: Path, about: Mapping[str, Any]) -> Sink:
    """metrics.csv and scores.csv in the run directory; a list has a column for each entry."""
    tables = [_Csv(folder / METRICS), _Csv(folder / SCORES)]

    def scores(rows: list[dict[str, Any]]) -> None:
        tables[1].add(rows)

    def rewind(step: int) -> None:
        for table in tables:
            table.renew()

    return Sink(lambda row, step: tables[0].add([row]), scores, rewind=rewind)


class _Csv:
    """A .jsonl file as CSV next to it. Rows with a new column, and errors, have it made again from that file."""

    def __init__(self, source: Path):
        self.source, self.path = source, source.with_suffix(".csv")
        self.columns: list[str] = []
        self.renew()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Rows that the .jsonl file already has."""
        named = [flat(row) for row in rows]
        if any(name not in self.columns for row in named for name in row):
            return self.renew()
        columns, self.columns = self.columns, []  # until all is written
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv_files.DictWriter(file, columns).writerows(named)
        self.columns = columns

    def renew(self) -> None:
        """Write the whole file again, at once."""
        self.columns = []
        rows = [flat(row) for row in read_jsonl(self.source)] if self.source.exists() else []
        columns = list(dict.fromkeys(name for row in rows for name in row))
        temporary = self.path.with_name(f".{self.path.name}.part")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv_files.DictWriter(file, columns)
            if columns:
                table.writeheader()
            table.writerows(rows)
        temporary.replace(self.path)
        self.columns = columns


SINKS: dict[str, Callable[[Path, Mapping[str, Any]], Sink]] = {
    TENSORBOARD: tensorboard, "trackio": trackio, "wandb": wandb, "csv": csv,
}  # fmt: skip
"""Word of `--log` -> its sink."""

_IMPORTS: dict[str, Callable[[], Any]] = {
    TENSORBOARD: import_tensorboard, "trackio": import_trackio, "wandb": import_wandb,
}  # fmt: skip
