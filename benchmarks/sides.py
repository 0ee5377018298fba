"""The sides of a comparison: which peers there are, processes that run updates on request, ratios of their times."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxwm.errors import suggest

HERE = Path(__file__).parent

MARKS = {
    "dreamerv3": ("dreamerv3/agent.py", "dreamerv3/configs.yaml", "embodied/jax/agent.py"),
    "before": ("benchmarks/ours.py", "jaxwm/agents/dreamer_v3.py"),
    "r2dreamer": ("dreamer.py", "rssm.py", "configs/configs.yaml"),
}
"""Peers, each with files that tell its checkout; the driver is peers/NAME.py."""


class Peer(NamedTuple):
    """Another implementation: its checkout and the Python that has its packages."""

    name: str
    path: Path
    python: str

    def command(self, *arguments: str) -> list[str]:
        return [self.python, str(HERE / "peers" / f"{self.name}.py"), "--path", str(self.path), *arguments]


def parse_peers(peers: Sequence[str], pythons: Sequence[str] = ()) -> list[Peer]:
    """Peers out of arguments `NAME=CHECKOUT` and `NAME=PYTHON`; ValueError says what is wrong with one."""
    paths = [_pair("--peer", text) for text in peers]
    named = dict(_pair("--peer-python", text) for text in pythons)
    found = []
    for name, value in paths:
        path = Path(value).expanduser().resolve()
        if not path.is_dir():
            raise ValueError(f"--peer {name}: there is no folder {path}")
        missing = [mark for mark in MARKS[name] if not (path / mark).is_file()]
        if missing:
            raise ValueError(f"--peer {name}: {path} is no checkout of it: it has no {missing[0]}")
        own = path / ".venv" / "bin" / "python"
        python = named.pop(name, None) or (str(own) if own.is_file() else sys.executable)
        found.append(Peer(name, path, os.path.expanduser(python)))
    if named:
        raise ValueError(f"--peer-python {next(iter(named))}: there is no --peer of that name, or there are two")
    return found


def _pair(option: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (sign and value):
        raise ValueError(f"{option} wants NAME=PATH, such as dreamerv3=../dreamerv3, got {text!r}")
    if name not in MARKS:
        raise ValueError(f"{option}: unknown peer {name!r}; {suggest(name, MARKS)}")
    return name, value


class Failed(RuntimeError):
    """The worker `name` did not start, or ended without an answer."""

    def __init__(self, name: str, what: str):
        super().__init__(f"{name} {what}")
        self.name = name


class Worker:
    """A process that prepares an update, says that it is ready, and then answers requests; see peers/serve.py.

    Raises Failed, with the last lines of its standard error, when it ends before it is asked to.
    """

    def __init__(self, name: str, command: list[str], folder: Path | None = None, env: dict[str, str] | None = None):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        try:
            self._process = subprocess.Popen(command, cwd=folder, env=env, **pipes)
        except OSError as error:
            self._errors.close()
            raise Failed(name, f"does not start: {error}") from error
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, request: str) -> dict[str, Any]:
        """The answer to one request."""
        with contextlib.suppress(BrokenPipeError):  # the answer will be missing, and say why
            print(request, file=self._process.stdin, flush=True)
        return self._answer()

    def update(self) -> float:
        """Run one update; seconds."""
        return self.ask("update")["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        last = "\n".join(f"    {line}" for line in self._errors.read().splitlines()[-8:])
        raise Failed(self.name, f"ended with status {status}; the last lines of its errors:\n{last}")

    def close(self) -> None:
        """Let it end; kill it if it does not within ten seconds."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def alternate(ours: Worker, peer: Worker, repeats: int) -> list[tuple[float, float]]:
    """Seconds of `repeats` updates of each side: ours, theirs, ours, theirs, and so on."""
    return [(ours.update(), peer.update()) for _ in range(repeats)]


class Ratio(NamedTuple):
    """Our time over a peer's: of the medians, and the spread of the ratios of neighbouring updates."""

    medians: float
    least: float
    quarter: float
    three_quarters: float
    most: float

    def __str__(self) -> str:
        quarters = f"{self.quarter:.3f}..{self.three_quarters:.3f}"
        return f"{self.medians:.3f} ({self.least:.3f}..{self.most:.3f}, middle half {quarters})"


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio ours / theirs of paired seconds."""
    ours, theirs = np.asarray(pairs).T
    medians = np.median(ours) / np.median(theirs)
    return Ratio(float(medians), *(float(x) for x in np.percentile(ours / theirs, (0, 25, 75, 100))))
