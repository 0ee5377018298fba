"""The runs below some folders, as JSON for the page: progress, curves, what differs between them, pictures.

Visitors name runs by labels, which are looked up in a list that was made by walking the folders: a label is never
joined to a path."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxwm.report import curves, story
from jaxwm.report.story import Story
from jaxwm.run import directory, load
from jaxwm.run.json_files import finite
from jaxwm.run.plan import Plan

PICTURES = ("*.png", "*.gif", "dreams/*.png", "dreams/*.gif", "report/*.png")
ALIVE = 90.0  # seconds after its last row that a run counts as running
NO_SETTINGS = ("jaxwm", "sharing", "log")
"""Entries of a configuration that say nothing about learning."""


class Shelf:
    """Runs and files of weights at and below `roots`; whatever is damaged costs a line, not the page."""

    def __init__(self, roots: Sequence[Path]):
        self.roots = [Path(root) for root in roots]
        self._stories: dict[Path, tuple[tuple, Story | str]] = {}
        self._lock = threading.Lock()

    def paths(self) -> dict[str, Path]:
        """Label -> a run's directory or a file of weights, sorted."""
        found: dict[str, Path] = {}
        for root in self.roots:
            many = len(self.roots) > 1
            for path in _inside(root):
                label = path.relative_to(root).as_posix() if path != root else path.name
                label = f"{root.name}/{label}" if many and path != root else label
                found.setdefault(label.removesuffix(f"/{load.WEIGHTS}"), path)
        return dict(sorted(found.items()))

    def path(self, label: str) -> Path:
        """Where a run is. FileNotFoundError for a label that is not in the list."""
        if (path := self.paths().get(label)) is None:
            raise FileNotFoundError(f"there is no run {label[:80]!r} here")
        return path

    def plan(self, label: str) -> Plan:
        """The plan of a run; errors as in `load.plan_of`."""
        return load.plan_of(self.path(label))

    def story(self, path: Path) -> Story | str:
        """What a run's files say, read again only where they have changed; a line where they cannot be read."""
        files = [path / name for name in (directory.CONFIG, directory.METRICS, directory.SCORES, directory.EVALUATION)]
        stamp = tuple((s.st_mtime_ns, s.st_size) if (s := _stat(file)) else None for file in files)
        with self._lock:
            if path not in self._stories or self._stories[path][0] != stamp:
                try:
                    found: Story | str = story.read([path])[0]
                except (ValueError, OSError) as error:
                    found = str(error)
                self._stories[path] = stamp, found
            return self._stories[path][1]

    # --- What the page shows ----------------------------------------------------------------------------------------
    def summary(self, now: float) -> list[dict[str, Any]]:
        """A row for each run; `now` is the time in seconds since 1970."""
        return [
            finite(_row(label, path, self.story(path) if path.is_dir() else None, now))
            for label, path in self.paths().items()
        ]

    def _chosen(self, labels: Sequence[str]) -> list[Story]:
        paths = self.paths()
        found = [(label, self.story(paths[label])) for label in labels if label in paths and paths[label].is_dir()]
        return [s._replace(label=label, index=i) for i, (label, s) in enumerate(found) if isinstance(s, Story)]

    def metrics(self, labels: Sequence[str]) -> list[dict[str, str]]:
        """The metrics that can be drawn, with what they are called and which way is good."""
        names = story.metric_names(self._chosen(labels))
        first = [{"name": "return", "title": "training return", "note": "higher is better"}]
        return first + [
            dict(zip(("name", "title", "note"), (name, *curves.words(name)), strict=True)) for name in names
        ]

    def curves(self, labels: Sequence[str], metric: str) -> list[dict[str, Any]]:
        """A metric of some runs: `steps [K]` and `values [K][M]`, None where a member has none."""
        chosen = self._chosen(labels)
        if metric == "return":
            series = [curve for s in chosen for curve in curves.learning_curves([s])]
        else:
            series = [curves.metric_curve(s, metric) for s in chosen]
        out = [
            dict(label=s.label, unit=s.unit, steps=s.steps.tolist(), values=s.values.tolist())
            for s in series
            if len(s.steps)
        ]
        return finite(out)

    def differences(self, labels: Sequence[str]) -> dict[str, list[Any]]:
        """The settings that some runs share and in which they differ: name -> the value of each, as text."""
        flat = [story.flatten(s.config) for s in self._chosen(labels)]
        shared = [name for name in flat[0] if all(name in entries for entries in flat)] if flat else []
        rows = {
            name.removeprefix("settings."): [str(entries[name]) for entries in flat]
            for name in shared
            if name not in NO_SETTINGS
        }
        return {name: values for name, values in rows.items() if len(set(values)) > 1}

    def pictures(self, label: str) -> list[str]:
        """Names of a run's pictures."""
        return sorted(self._pictures(label))

    def picture(self, label: str, name: str) -> Path:
        """The file of one of them. FileNotFoundError for any other name."""
        if (file := self._pictures(label).get(name)) is None:
            raise FileNotFoundError(f"there is no picture {name[:80]!r} of this run")
        return file

    def _pictures(self, label: str) -> dict[str, Path]:
        home = self.path(label)
        inside = [file for pattern in PICTURES for file in home.glob(pattern)] if home.is_dir() else []
        real = home.resolve()
        return {file.relative_to(home).as_posix(): file for file in inside if file.resolve().is_relative_to(real)}


def _inside(root: Path) -> list[Path]:
    """Runs and weights at and below a path."""
    if root.is_file():
        return [root]
    runs = story.find(root) if root.is_dir() else []
    weights = (
        [file for file in root.rglob("*.safetensors") if not any(run in file.parents for run in runs)]
        if root.is_dir()
        else []
    )
    return [*runs, *weights]


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:
        return None


def _row(label: str, path: Path, found: Story | str | None, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "state": "weights", "members": 1, "fault": None, "playable": True}
    if found is None:
        try:
            plan = load.plan_of(path)
        except (ValueError, OSError) as error:
            return row | {"state": "damaged", "fault": str(error), "playable": False}
        return row | {"agent": plan.agent, "env": plan.env, "members": plan.members}
    playable = _has_checkpoint(path)
    if isinstance(found, str):
        return row | {"state": "damaged", "fault": found, "playable": playable}
    row |= {"agent": found.config["agent"], "env": found.env, "members": found.members, "playable": playable}
    total = found.config["steps"] or found.config.get("updates")
    row |= {"done": found.progress(), "total": total, "unit": found.unit, "seed": found.config["seed"]}
    written = max(
        (s.st_mtime for name in (directory.METRICS, directory.SCORES, directory.CONFIG) if (s := _stat(path / name))),
        default=0,
    )
    row["state"] = "finished" if found.evaluation else "running" if now - written < ALIVE else "stopped"
    row["age"] = round(now - written)
    row["return"] = _last(found)
    row["fault"] = _fault(found)
    if found.scored:
        row |= {"score": float(found.trained.mean()), "worst": float(found.trained.min()), "random": found.chance}
    return row


def _has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint that is complete: its name is a number."""
    folder = path / directory.CHECKPOINTS
    try:
        return any(child.name.isdigit() for child in folder.iterdir()) if folder.is_dir() else False
    except OSError:
        return False


def _last(found: Story) -> float | None:
    """The mean training return of the last episodes, of all members."""
    scores = [row["return"] for row in found.scores[-20:] if row["return"] is not None]
    return float(np.mean(scores)) if scores else None


def _fault(found: Story) -> str | None:
    """What went wrong while training, in a line."""
    skipped = sum(np.nansum(np.array(row[story.SKIPPED], float)) for row in found.metrics if story.SKIPPED in row)
    if skipped:
        return f"{int(skipped):,} updates were not finite and were undone"
    if found.metrics and found.metrics[-1].get("restarts"):
        return f"simulators were restarted {found.metrics[-1]['restarts']} times"
    return None
