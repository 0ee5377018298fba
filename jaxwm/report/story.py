"""Reading run directories: config.json, metrics.jsonl, scores.jsonl and evaluation.json of a run as one `Story`.

K is the number of rows that hold a metric, M that of the members."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxwm.run import directory, json_files

GAUGE, SKIPPED = ("gauge/dreamed", "gauge/real", "gauge/gap"), "skipped"
NOT_DRAWN = ("env_steps", "updates", "seconds", "return", *GAUGE, SKIPPED)
"""Entries of metrics.jsonl that are its axes, its own copy of scores.jsonl, or in a section of their own."""


class Story(NamedTuple):
    """The contents of a run directory. `evaluation` is {} for a run that is not finished."""

    label: str
    index: int
    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    evaluation: dict[str, Any]

    @property
    def env(self) -> str:
        """Where its records come from, for headings: an environment, or recordings."""
        env, data = self.config["env"], self.config.get("data")
        return env if data is None else f"recordings of {env}" if env else str(data)

    @property
    def scored(self) -> bool:
        """Whether its policy was evaluated."""
        return "trained" in self.evaluation

    @property
    def acts(self) -> bool:
        """Whether it plays episodes while it learns."""
        return self.config.get("data") is None

    @property
    def unit(self) -> str:
        """What `work` counts."""
        return "environment steps" if self.acts else "updates"

    @property
    def trained(self) -> np.ndarray:
        """Mean returns `[M]` of the evaluation."""
        return np.array(self.evaluation["trained"], float)

    @property
    def chance(self) -> float:
        """Mean return of the random policy in the evaluation."""
        return float(np.mean(self.evaluation["random"]))

    @property
    def members(self) -> int:
        """How many agents were trained at once."""
        return self.config["members"]

    def progress(self) -> int:
        """Environment steps so far, of each member; updates where there is no environment."""
        return max((work(row) for row in [*self.metrics[-1:], *self.scores[-1:]]), default=0)


def work(row: dict[str, Any]) -> int:
    """How far a run was at a row of metrics, or at its evaluation."""
    return row.get("env_steps", row.get("updates", 0))


def find(path: Path) -> list[Path]:
    """The run directories at and below `path`, sorted. Left out: hidden directories, links to others than runs."""
    if (path / directory.CONFIG).is_file():
        return [path]
    children = [child for child in sorted(path.iterdir()) if child.is_dir()] if path.is_dir() else []
    children = [child for child in children if not child.name.startswith(".")]
    inner = (find(child) for child in children if not child.is_symlink() or (child / directory.CONFIG).is_file())
    return [run for runs in inner for run in runs]


def read(paths: Iterable[str | Path]) -> list[Story]:
    """The runs at `paths` and below, each once. Raises as `report` does."""
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not (found := find(path)):
            message = f"{path} is no run directory and contains none: there is no {directory.CONFIG} in it"
            raise FileNotFoundError(message)
        folders |= {folder.resolve(): folder for folder in found}
    if not folders:
        raise ValueError("which runs? jaxwm report RUN..., with RUN a run directory or a directory of runs")
    root = os.path.commonpath([folder.parent for folder in folders])
    whole = [_read(path, str(real.relative_to(root))) for real, path in folders.items()]
    return [story._replace(index=i) for i, story in enumerate(part for story in whole for part in split(story))]


def split(story: Story) -> list[Story]:
    """A run whose members differ in hyper-parameters as one story for each of their values."""
    vary = {name: values for name, values in story.config.get("vary", {}).items() if len(set(values)) > 1}
    groups: dict[tuple, list[int]] = {}
    for member in range(story.members):
        groups.setdefault(tuple(values[member] for values in vary.values()), []).append(member)
    parts = [_part(story, dict(zip(vary, values, strict=True)), chosen) for values, chosen in groups.items()]
    return parts if vary else [story]


def _part(story: Story, hyper: dict[str, float], chosen: list[int]) -> Story:
    """The members `chosen` of a story, as a run with these hyper-parameters."""

    def pick(row: dict[str, Any]) -> dict[str, Any]:
        some = lambda value: [value[i] for i in chosen] if len(value) == story.members else value  # noqa: E731
        inner = {dict: pick, list: some}
        return {name: inner.get(type(value), lambda x: x)(value) for name, value in row.items()}

    scores = [row | {"member": chosen.index(row["member"])} for row in story.scores if row["member"] in chosen]
    config = story.config | {"members": len(chosen), "settings": story.config["settings"] | hyper}
    label = f"{story.label} {', '.join(f'{name} {value:g}' for name, value in hyper.items())}"
    metrics, evaluation = [pick(row) for row in story.metrics], pick(story.evaluation)
    return story._replace(label=label, config=config, metrics=metrics, scores=scores, evaluation=evaluation)


def _read(path: Path, label: str) -> Story:
    config = directory.read_config(path)
    missing = [name for name in ("agent", "env", "settings", "steps", "members", "seed") if name not in config]
    if missing:
        raise ValueError(f"{path / directory.CONFIG} is not a run's: it has no entry {missing[0]!r}; leave {path} out")
    files, culprit = [path / directory.METRICS, path / directory.SCORES], "that line"
    try:
        metrics, scores = (json_files.read_jsonl(file) if file.exists() else [] for file in files)
        culprit = "it"
        file = path / directory.EVALUATION
        evaluation = json_files.read_json(file) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{error}; delete {culprit}, or leave this run out") from None
    return Story(label, 0, path, config, metrics, scores, evaluation)


def column(story: Story, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric as `steps [K]`, `values [K, M]`, of the rows that have it; null is NaN. A scalar has one column."""
    rows = [row for row in story.metrics if name in row]
    values = [row[name] if isinstance(row[name], list) else [row[name]] for row in rows]
    table = np.array(values, float).reshape(len(rows), -1 if rows else story.members)  # None becomes NaN
    return np.array([work(row) for row in rows], float), table


def metric_names(stories: list[Story]) -> list[str]:
    """The metrics to draw, in the order in which they first appear."""
    names = dict.fromkeys(name for story in stories for row in story.metrics for name in row)
    return [name for name in names if name not in NOT_DRAWN]


def flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries by dotted names; an empty dict stays an entry."""
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
