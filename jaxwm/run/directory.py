"""A run directory: plain files that any tool can read, and that tell the whole story of a run.

config.json      what was asked for
metrics.jsonl    one line for each row of metrics
scores.jsonl     one line for each finished episode: member, env_steps, return, length
checkpoints/     what a resumed run starts from
evaluation.json  written last: a run directory that has it is finished
profile.json     what the time went to, on request
.lock            held by the process that writes
tensorboard/     the same metrics for TensorBoard, on request"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jaxwm.errors import nearest
from jaxwm.run import machine
from jaxwm.run.json_files import finite, read_json, to_plain, write_json

CONFIG, METRICS, SCORES, EVALUATION = "config.json", "metrics.jsonl", "scores.jsonl", "evaluation.json"
CHECKPOINTS, LOCK, PROFILE = "checkpoints", ".lock", "profile.json"


def default_path(agent: str, env: str, root: str | Path = "runs") -> Path:
    """A path that is still free: `default_path("dreamer-v3", "gymnax/Catch-bsuite")` is
    runs/dreamer-v3-Catch-bsuite-20260131-120000. Nothing is created."""
    task = env.split("/", 1)[-1]
    name = re.sub(r"[^\w.-]+", "-", f"{agent}-{task}-{time.strftime('%Y%m%d-%H%M%S')}")
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(path for path in map(Path(root).joinpath, names) if not path.exists())


def create(path: str | Path) -> Path:
    """Make a run directory with its `checkpoints/`, and return it. An empty one will do, and one that was left before
    its configuration was written; FileExistsError for any other, OSError where `path` cannot be made."""
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


def _occupied(path: Path) -> str:
    if (path / CONFIG).exists() or (path / CHECKPOINTS).exists():
        command = machine.resume_command(path)
        return f"{path} holds a run already: choose another directory with --run, or go on with `{command}`"
    what = "is not empty" if path.is_dir() else "is a file"
    return f"{path} {what}: choose another directory with --run"


def lock(path: str | Path, what: str = "run", wait: float = 0.0) -> contextlib.ExitStack:
    """Hold the directory `path` until what this returns is closed, or this process ends in whatever way. Waits up to
    `wait` seconds for another process to let go. BlockingIOError names that process."""
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
    held = contextlib.ExitStack()
    held.callback(_let_go, file)
    return held


def _let_go(file: IO[str]) -> None:
    with file, contextlib.suppress(OSError):
        if _same(file):
            os.unlink(file.name)


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
def created(path: str | Path, wait: float = 0.0) -> Iterator[contextlib.ExitStack]:
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


def write_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Write `config` into the run directory `path`; a reader sees the old file or the whole new one. It must come back
    as it went in: TypeError names an entry that has no place in JSON, ValueError one that is NaN or infinite."""
    entries = {}
    for name, value in config.items():
        try:
            entries[name] = plain = to_plain(value)
        except TypeError as error:
            raise TypeError(f"config entry {name!r}: {error}") from None
        if finite(plain) != plain:
            raise ValueError(f"config entry {name!r} holds NaN or infinity, which JSON has no word for: {value!r}")
    write_json(Path(path) / CONFIG, entries)


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of the run directory `path`. FileNotFoundError without one, ValueError for a damaged one."""
    file = Path(path) / CONFIG
    try:
        config = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is no run directory: there is no {CONFIG} in it{_runs_near(path)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: expected an object, found {type(config).__name__}")
    return config


def _runs_near(path: str | Path) -> str:
    """Runs beside `path` with the nearest names, as the end of a message."""
    parent, name = Path(path).parent, Path(path).name
    runs = sorted(folder.parent.name for folder in parent.glob(f"*/{CONFIG}"))
    close = nearest(name, runs) or runs[-3:]
    return f"; did you mean {', '.join(str(parent / run) for run in close)}?" if close else ""
