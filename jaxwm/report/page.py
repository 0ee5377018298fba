"""`jaxwm report`: the plain files of run directories as one page, report.md, with figures.

Nothing is computed again: what is not in config.json, metrics.jsonl, scores.jsonl, evaluation.json and dreams/ is said
to be missing. M is the number of members of a run, K the number of points of a curve.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib
import numpy as np

import jaxwm
from jaxwm.report import charts, tasks
from jaxwm.report import markdown as md
from jaxwm.run import directory, json_files, machine
from jaxwm.run.directory import EVALUATION
from jaxwm.run.plan import Plan

REPORT = "report.md"
DREAMS = "dreams"
PICTURES = (".png", ".gif")

CURVE_BINS = 20
"""Points of a learning curve, each the mean of the episodes that ended in that stretch of environment steps."""

MARK = 0.9
"""What counts as good when runs are compared by how soon they are."""

METRIC_BINS = 200
"""Largest number of points of the other curves."""

AXES = ("env_steps", "updates", "seconds")
EPISODES = "return"
"""The metrics' own copy of scores.jsonl."""

GAUGE = ("gauge/dreamed", "gauge/real", "gauge/gap")
SKIPPED = "skipped"
VERSIONS = ("jaxwm", "jax")


class Story(NamedTuple):
    """All that a run directory tells. `evaluation` is {} for a run that is not finished."""

    label: str
    index: int
    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    evaluation: dict[str, Any]

    @property
    def env(self) -> str:
        return self.config["env"]

    @property
    def members(self) -> int:
        return self.config["members"]

    def progress(self) -> int:
        """Environment steps so far, of each member."""
        return max((row["env_steps"] for row in [*self.metrics[-1:], *self.scores[-1:]]), default=0)


def report(paths: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write report.md and its figures about run directories, or directories that contain some; its path.

    `out` is the directory to write to, by default RUN/report for one run and report-TIME for several.

    Raises:
        FileNotFoundError: a path is no run directory and contains none.
        ValueError: no path, or a damaged file; the message tells which.
        PermissionError: `out` cannot be written to.
    """
    stories = read(paths)
    out = _prepare(Path(out) if out else _default_out(stories))
    with matplotlib.rc_context(charts.STYLE):
        sections = [_overview(stories), tasks.section(_results(stories), out), *_by_environment(stories, out)]
        sections += [_gauge(stories, out), _dreams(stories, out)]
    sections += [_throughput(stories), _settings(stories), _reproduce(stories)]
    title = stories[0].label if len(stories) == 1 else f"{len(stories)} runs"
    head = f"# Report: {title}\n\nWritten {time.strftime('%Y-%m-%d %H:%M')} by jaxwm {jaxwm.__version__}."
    (out / REPORT).write_text("\n\n".join([head, *filter(None, sections)]) + "\n", encoding="utf-8")
    return out / REPORT


def _default_out(stories: list[Story]) -> Path:
    return stories[0].path / "report" if len(stories) == 1 else Path(time.strftime("report-%Y%m%d-%H%M%S"))


def _prepare(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT).touch()
    except OSError as error:
        raise PermissionError(
            f"cannot write to {out} ({error.strerror}): choose another directory with --out"
        ) from None
    return out


# --- Reading ------------------------------------------------------------------------------------------------------


def find(path: Path) -> list[Path]:
    """The run directories at and below `path`, sorted. Left out: hidden directories, links to others than runs."""
    if (path / directory.CONFIG).is_file():
        return [path]
    if not path.is_dir():
        return []
    children = [child for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    children = [child for child in children if not child.is_symlink() or (child / directory.CONFIG).is_file()]
    return [run for child in children for run in find(child)]


def read(paths: Iterable[str | Path]) -> list[Story]:
    """The runs at `paths` and below, each once. Raises as `report` does."""
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = find(path)
        if not found:
            raise FileNotFoundError(
                f"{path} is no run directory and contains none: there is no {directory.CONFIG} in it"
            )
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
    return [_part(story, dict(zip(vary, values, strict=True)), chosen) for values, chosen in groups.items()]


def _part(story: Story, hyper: dict[str, float], chosen: list[int]) -> Story:
    """The members `chosen` of a story, as a run with these hyper-parameters."""
    if not hyper:
        return story

    def pick(row: dict[str, Any]) -> dict[str, Any]:
        some = lambda value: isinstance(value, list) and len(value) == story.members  # noqa: E731
        return {name: [value[i] for i in chosen] if some(value) else value for name, value in row.items()}

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
    try:
        metrics, scores = _lines(path / directory.METRICS), _lines(path / directory.SCORES)
    except ValueError as error:
        raise ValueError(f"{error}; delete that line, or leave this run out") from None
    return Story(label, 0, path, config, metrics, scores, _evaluation(path / EVALUATION))


def _lines(file: Path) -> list[dict[str, Any]]:
    return json_files.read_jsonl(file) if file.exists() else []


def _evaluation(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; delete it, or leave this run out") from None


# --- Curves -------------------------------------------------------------------------------------------------------


def binned(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of `values [K, M]` in the bins of `steps [K]`: centres and means of the bins that hold a row.

    NaN entries do not count; a bin with nothing else stays NaN: a gap.
    """
    which = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, len(edges) - 2)
    used = np.unique(which)
    means = [np.ma.masked_invalid(values[which == bin]).mean(0).filled(np.nan) for bin in used]
    centres = (edges[:-1] + edges[1:]) / 2
    return centres[used], np.array(means, float).reshape(len(used), values.shape[1])


def learning_curve(story: Story, edges: np.ndarray) -> charts.Series:
    """Training returns `[K, M]`. A member without an episode in a bin is interpolated between its other bins."""
    grid = (edges[:-1] + edges[1:]) / 2
    columns = []
    for member in range(story.members):
        rows = [row for row in story.scores if row["member"] == member and row["return"] is not None]
        steps = np.array([row["env_steps"] for row in rows], float)
        centres, means = binned(steps, np.array([[row["return"]] for row in rows]).reshape(-1, 1), edges)
        nothing = np.full(len(grid), np.nan)
        columns.append(np.interp(grid, centres, means[:, 0], np.nan, np.nan) if rows else nothing)
    return charts.Series(story.label, story.index, grid, np.stack(columns, 1))


def reached(curve: charts.Series, mark: float) -> np.ndarray:
    """The environment steps `[M]` at which each member's curve is first at the `mark`; inf where it never is."""
    there = curve.values >= mark  # NaN is not
    return np.where(there.any(0), curve.steps[there.argmax(0)], np.inf)


def column(story: Story, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric as `steps [K]`, `values [K, M]`, of the rows that have it; null is NaN. A scalar has one column."""
    rows = [row for row in story.metrics if name in row]
    values = [row[name] if isinstance(row[name], list) else [row[name]] for row in rows]
    table = np.array(values, float).reshape(len(rows), -1 if rows else story.members)  # None becomes NaN
    return np.array([row["env_steps"] for row in rows], float), table


def metric_curve(story: Story, name: str, bins: int = METRIC_BINS) -> charts.Series:
    """A metric over the environment steps, in at most `bins` points."""
    steps, values = column(story, name)
    edges = np.linspace(0, max(story.progress(), 1), bins + 1)
    return charts.Series(story.label, story.index, *binned(steps, values, edges))


def metric_names(stories: list[Story]) -> list[str]:
    """The metrics to draw, in the order in which they first appear."""
    names = dict.fromkeys(name for story in stories for row in story.metrics for name in row)
    return [name for name in names if name not in (*AXES, EPISODES, *GAUGE, SKIPPED)]


# --- Sections -----------------------------------------------------------------------------------------------------


def _overview(stories: list[Story]) -> str:
    header = ["run", "agent", "environment", "members", "seed", "environment steps of each", "state"]
    rows = []
    for story in stories:
        config, steps = story.config, f"{story.progress():,} of {story.config['steps']:,}"
        names = [story.label, config["agent"], story.env]
        rows.append(
            [*names, story.members, config["seed"], steps, "finished" if story.evaluation else "**unfinished**"]
        )
    notes = [note for story in stories for note in _notes(story)]
    return "\n\n".join(filter(None, ["## Runs", md.table(header, rows), md.bullets(notes)]))


def _notes(story: Story) -> Iterable[str]:
    """What is missing or odd in a run."""
    name = f"**{md.cell(story.label)}**"
    if not story.evaluation:
        command = md.code(f"{machine.program()} resume {shlex.quote(str(story.path))}")
        yield f"{name} is unfinished: there is no {EVALUATION}. Go on with {command}."
    if not story.metrics:
        yield f"{name} has no metrics yet."
    if not story.scores:
        yield f"{name} has no scores yet: no training episode has ended."
    if not story.evaluation.get("complete", True):
        yield f"{name}: some evaluation episodes were cut off by the step limit; their returns are lower bounds."
    for metric in metric_names([story]):
        steps, values = column(story, metric)
        for member in np.flatnonzero(~np.isfinite(values).all(0)):
            bad = ~np.isfinite(values[:, member])
            yield (
                f"{name}: {md.code(metric)} of member {member} is null (NaN or infinite) in {bad.sum():,} of "
                f"{len(bad):,} rows, first at {steps[bad][0]:,.0f} environment steps. Curves show the other members."
            )


def _results(stories: list[Story]) -> list[tasks.Result]:
    """Evaluations, by system: the agent, and those of its settings that differ between runs of one environment."""
    flat = [flatten(story.config["settings"]) for story in stories]
    differing: dict[str, None] = {}
    for i, story in enumerate(stories):
        for j in range(i):
            if stories[j].env == story.env and stories[j].config["agent"] == story.config["agent"]:
                differing |= {name: None for name in flat[i] if flat[j].get(name) != flat[i][name]}
    found = []
    for story, settings in zip(stories, flat, strict=True):
        if result := story.evaluation:
            own = [f"{name} {settings[name]}" for name in differing if name in settings]
            system = ", ".join([story.config["agent"], *own])
            trained, chance = (np.array(result[name], float) for name in ("trained", "random"))
            how = result["env_steps"], result["episodes"], story.config.get("env_options", {})
            found.append(tasks.Result(system, story.env, story.label, trained, chance, *how))
    return found


def _by_environment(stories: list[Story], out: Path) -> Iterable[str]:
    """A section for each environment: returns, evaluation, losses, the other metrics."""
    for env in dict.fromkeys(story.env for story in stories):
        group = [story for story in stories if story.env == env]
        names = metric_names(group)
        losses = [name for name in names if "loss" in name.split("/")]
        curves = _curves(group)
        parts = [f"## {env}", _returns(env, group, curves, out), "### Evaluation", _scores(group)]
        parts += _sooner(group, curves)
        parts += _multiples("Losses", env, group, losses, out)
        parts += _multiples("Other metrics", env, group, [name for name in names if name not in losses], out)
        yield "\n\n".join(parts)


def _curves(group: list[Story]) -> list[charts.Series]:
    """Learning curves of the runs that have scores, over the same stretches of environment steps."""
    edges = _edges(group)
    return [learning_curve(story, edges) for story in group if story.scores]


def _edges(group: list[Story]) -> np.ndarray:
    return np.linspace(0, max(max(story.progress() for story in group), 1), CURVE_BINS + 1)


def _returns(env: str, group: list[Story], series: list[charts.Series], out: Path) -> str:
    scored = [story for story in group if story.evaluation]
    if not series and not scored:
        return "No scores yet: no training episode has ended."
    finals = [
        charts.Final(s.label, s.index, s.evaluation["env_steps"], np.array(s.evaluation["trained"])) for s in scored
    ]
    chance = float(np.mean([np.mean(s.evaluation["random"]) for s in scored])) if scored else None
    image = md.save(charts.returns(env, series, finals, chance), out, f"returns-{env}", f"Learning curves on {env}")
    return (
        f"{image}\n\nTraining returns are raw and belong to the exploring policy. A point is the mean of the episodes "
        f"that ended within {_edges(group)[1]:,.0f} environment steps of a member; a member in whose stretch no "
        "episode ended is interpolated. The evaluation, drawn beyond the end, plays the greedy policy in environments "
        "of its own."
    )


def _sooner(group: list[Story], curves: list[charts.Series]) -> list[str]:
    """How soon each of several runs is good."""
    scored = [story for story in group if story.evaluation]
    if len(scored) < 2:
        return []
    chance = np.mean([np.mean(story.evaluation["random"]) for story in scored])
    mark = chance + MARK * (max(np.mean(story.evaluation["trained"]) for story in scored) - chance)
    rows, text = [], lambda steps: f"{steps:,.0f}" if np.isfinite(steps) else "-"
    for curve in curves:
        steps = reached(curve, mark)
        rows.append([curve.label, " ".join(map(text, steps)), text(np.median(steps)), text(steps.max())])
    return [
        "### Steps to the mark",
        md.table(["run", "environment steps of each member", "median", "last"], rows),
        f"The mark is a training return of {mark:.2f}, {MARK:.0%} of the way from the random policy to the best "
        "evaluation here; - says that the learning curve of a member has no point there.",
    ]


def _scores(group: list[Story]) -> str:
    header = ["run", "environment steps", "episodes of each", "each member", "mean", "minimum", "random"]
    rows = []
    for story in (story for story in group if story.evaluation):
        result, trained = story.evaluation, np.array(story.evaluation["trained"])
        each = " ".join(f"{value:.2f}" for value in trained)
        numbers = [trained.mean(), trained.min(), np.mean(result["random"])]
        steps = f"{result['env_steps']:,}"
        rows.append([story.label, steps, result["episodes"], each, *(f"{x:.2f}" for x in numbers)])
    waiting = [f"{md.cell(story.label)} is not evaluated yet." for story in group if not story.evaluation]
    table = [md.table(header, rows), "Mean returns. The minimum is that of the worst member."] if rows else []
    return "\n\n".join([*table, *waiting])


def _multiples(title: str, env: str, group: list[Story], names: list[str], out: Path) -> list[str]:
    panels = {}
    for name in names:
        series = [metric_curve(story, name) for story in group]
        series = [curve for curve in series if np.isfinite(curve.values).any()]
        if series:
            panels[name] = series
    if not panels:
        return [f"### {title}", "None recorded yet."]
    kind = title.lower().replace(" ", "-")
    return [f"### {title}", md.save(charts.multiples(panels), out, f"{kind}-{env}", f"{title} on {env}")]


def _gauge(stories: list[Story], out: Path) -> str:
    """Whether the policy earns in dreams what it earns in the environment."""
    measured = [story for story in stories if any(GAUGE[0] in row for row in story.metrics)]
    parts = ["## Exploitation gauge"]
    if without := [story.label for story in stories if story not in measured]:
        parts.append(
            f"Not recorded in {', '.join(map(md.cell, without))}: no {md.code(GAUGE[0])} in {directory.METRICS}."
        )
    curves = [[metric_curve(story, name) for name in GAUGE] for story in measured]
    if curves:
        image = md.save(charts.gauge(curves), out, "gauge", "Dreamed and real return from the same states")
        text = (
            "The policy's return in a dream and in the environment, from the same states. The gap is dreamed minus "
            "real: near zero, dreams can be trusted; a gap that grows while the real return does not means that the "
            "policy exploits errors of its model."
        )
        parts += [text, image, _gauge_table(measured)]
    return "\n\n".join(parts)


def _gauge_table(stories: list[Story]) -> str:
    rows = []
    for story in stories:
        columns = [column(story, name) for name in GAUGE]
        steps = columns[0][0][-1]
        for member, newest in enumerate(zip(*(values[-1] for _, values in columns), strict=True)):
            rows.append([story.label, f"{steps:,.0f}", member, *map(md.number, newest)])
    return md.table(["run", "environment steps", "member", "dreamed", "real", "gap"], rows)


def _dreams(stories: list[Story], out: Path) -> str:
    """The pictures in RUN/dreams, copied beside the report."""
    parts = []
    for story in stories:
        pictures = sorted(file for file in (story.path / DREAMS).glob("**/*") if file.suffix.lower() in PICTURES)
        if pictures:
            parts.append(f"### {md.cell(story.label)}")
        for picture in pictures:
            name = picture.relative_to(story.path / DREAMS)
            copy = Path(DREAMS) / story.label / name
            (out / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, out / copy)
            parts.append(f"{name.as_posix()}\n\n![{name.as_posix()}]({quote(copy.as_posix())})")
    return "\n\n".join(["## Dreams", *parts]) if parts else ""


def _throughput(stories: list[Story]) -> str:
    header = ["run", "steps/s", "updates/s", "wall time", "compile time", "updates of each member", "skipped updates"]
    rows = [[story.label, *_pace(story), _skipped(story)] for story in stories]
    skipped = any(SKIPPED in row for story in stories for row in story.metrics)
    if not skipped:
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = "Rates are sums over the members, while learning: compiling and random play at the start do not count."
    if skipped:
        text += " Skipped updates are counts of each member."
    return f"## Throughput\n\n{md.table(header, rows)}\n\n{text}"


def _pace(story: Story) -> list[str]:
    """Steps a second, updates a second, wall time, compile time, updates."""
    learning = [row for row in story.metrics if row.get("updates")]
    rates = ["-", "-"]
    if learning and (seconds := learning[-1]["seconds"] - learning[0]["seconds"]) > 0:
        counts = [learning[-1][name] - learning[0][name] for name in AXES[:2]]
        rates = [f"{count * story.members / seconds:,.1f}" for count in counts]
    wall = story.evaluation.get("seconds", story.metrics[-1]["seconds"] if story.metrics else None)
    updates = learning[-1]["updates"] if learning else 0
    return [*rates, _duration(wall), _duration(story.evaluation.get("compile_seconds")), f"{updates:,}"]


def _skipped(story: Story) -> str:
    """Updates that were undone, of each member, until the newest row."""
    counts = [row[SKIPPED] for row in story.metrics if SKIPPED in row]
    return " ".join(f"{count:,}" for count in counts[-1]) if counts else "-"


def _settings(stories: list[Story]) -> str:
    """What differs between the runs, and, folded away, what does not."""
    flat = [flatten({k: v for k, v in story.config.items() if k not in VERSIONS}) for story in stories]
    names = list(dict.fromkeys(name for entries in flat for name in entries))
    absent = object()
    differing = [name for name in names if any(e.get(name, absent) != flat[0].get(name, absent) for e in flat)]
    show = lambda entries, name: md.code(json.dumps(entries[name])) if name in entries else "-"  # noqa: E731
    parts = ["## Settings"]
    if len(stories) > 1:
        rows = [[md.code(name), *(show(entries, name) for entries in flat)] for name in differing]
        header = ["setting", *(story.label for story in stories)]
        parts.append(md.table(header, rows) if rows else "The runs have the same settings.")
    common = [[md.code(name), show(flat[0], name)] for name in names if name not in differing]
    title = "All settings" if len(stories) == 1 else "Settings that all runs share"
    table = md.table(["setting", "value"], common)
    parts.append(f"<details>\n<summary>{title} ({len(common)})</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts)


def flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries by dotted names; an empty dict stays an entry."""
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _reproduce(stories: list[Story]) -> str:
    header = ["run", *VERSIONS]
    rows = [[story.label, *(story.config.get(name, "-") for name in VERSIONS)] for story in stories]
    parts = ["## How to run it again", md.table(header, rows)]
    for story in {story.path: story for story in reversed(stories)}.values():  # a run may have several stories
        try:
            parts.insert(
                2,
                f"{md.cell(story.label)}:\n\n```\n{Plan.from_json(directory.read_config(story.path)).command(machine.program())}\n```",
            )
        except ValueError as error:
            parts.insert(2, f"{md.cell(story.label)}: no command, because {error}.")
    return "\n\n".join(parts)


# --- Markdown -----------------------------------------------------------------------------------------------------


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds:.1f} s"
        if seconds < 60
        else f"{seconds / 60:.1f} min"
        if seconds < 3600
        else f"{seconds / 3600:.1f} h"
    )
