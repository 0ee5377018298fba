"""`jaxwm report`: the plain files of run directories as one page with figures, report.md and report.html.

Nothing is computed again: what is not in config.json, metrics.jsonl, scores.jsonl, evaluation.json and dreams/ is named
as missing. M is the number of members of a run.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np

import jaxwm
from jaxwm.report import charts, data, document, tasks
from jaxwm.report.curves import learning_curves, metric_curve, panels, reached
from jaxwm.report.document import Block, Bullets, Code, Fold, Heading, Picture, Table, Text, code, number, save
from jaxwm.report.story import GAUGE, SKIPPED, Story, column, flatten, metric_names, read, work
from jaxwm.run import directory, machine
from jaxwm.run.plan import Plan

MARKDOWN, HTML = "report.md", "report.html"
RUNS = Path("runs")
DREAMS, FILM = "dreams", "watch.gif"
SHOWN = (".png", ".gif")

MARK = 0.9
"""What counts as good when runs are compared by how soon they are."""

FAR = 0.25
"""A greedy score is far below the training returns by this share of their distance from random play."""

VERSIONS = ("jaxwm", "jax")


def report(paths: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write report.md, report.html and their figures about run directories, or directories that contain some.

    `out` is the directory to write to: by default RUN/report for one run, runs/report-TIME where all runs are below
    runs/, and report-TIME for others.

    Returns:
        The path of report.html.

    Raises:
        FileNotFoundError: a path is no run directory and contains none.
        ValueError: no path, or a damaged file, which the message names.
        PermissionError: `out` cannot be written to.
    """
    stories = read(paths)
    out = _prepare(Path(out) if out else _default_out(stories))
    title = f"Report: {stories[0].label if len(stories) == 1 else f'{len(stories)} runs'}"
    written = f"Written {time.strftime('%Y-%m-%d %H:%M')} by jaxwm {jaxwm.__version__}."
    with matplotlib.rc_context(charts.STYLE):
        blocks = [Heading(1, title), Text(written), *_overview(stories), *tasks.section(_results(stories), out)]
        for env in dict.fromkeys(story.env for story in stories):
            blocks += _environment(env, [story for story in stories if story.env == env], out)
        blocks += _gauge(stories, out)
    blocks += [*_dreams(stories, out), *_throughput(stories), *_settings(stories), *_reproduce(stories)]
    (out / MARKDOWN).write_text(document.markdown(blocks), encoding="utf-8")
    (out / HTML).write_text(document.html(title, blocks, out), encoding="utf-8")
    return out / HTML


def opening(page: Path) -> str:
    """How to look at a report, for the terminal."""
    return (
        f"{page}\nopen it in a browser: {page.resolve().as_uri()} (one file, pictures included; {MARKDOWN} is its text)"
    )


def _default_out(stories: list[Story]) -> Path:
    paths = {story.path for story in stories}
    if len(paths) == 1:
        return paths.pop() / "report"
    inside = all(path.resolve().is_relative_to(RUNS.resolve()) for path in paths)
    return (RUNS if inside else Path()) / time.strftime("report-%Y%m%d-%H%M%S")


def _prepare(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (MARKDOWN, HTML):
            (out / name).touch()
    except OSError as error:
        raise PermissionError(
            f"cannot write to {out} ({error.strerror}): choose another directory with --out"
        ) from None
    return out


# --- Runs ---------------------------------------------------------------------------------------------------------


def _overview(stories: list[Story]) -> list[Block]:
    header = ["run", "agent", "environment", "members", "seed", "progress of each member", "state"]
    rows = []
    for story in stories:
        config, steps = story.config, f"{story.progress():,} of {story.planned:,} {story.unit}"
        names = [story.label, config["agent"], story.env]
        rows.append(
            [*names, story.members, config["seed"], steps, "finished" if story.evaluation else "**unfinished**"]
        )
    notes = [note for story in stories for note in _notes(story)]
    return [Heading(2, "Runs"), Table(header, rows), *([Bullets(notes)] if notes else [])]


def _notes(story: Story) -> Iterable[str]:
    """What is missing or odd in a run."""
    name = f"**{story.label}**"
    if not story.evaluation:
        command = code(f"{machine.program()} resume {shlex.quote(str(story.path))}")
        yield f"{name} is unfinished: there is no {directory.EVALUATION}. Go on with {command}."
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
                f"{name}: {code(metric)} of member {member} is null (NaN or infinite) in {bad.sum():,} of "
                f"{len(bad):,} rows, first at {steps[bad][0]:,.0f} environment steps. The mean has a gap there; thin "
                "lines show the other members."
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
        if story.scored:
            result = story.evaluation
            own = [f"{name} {settings[name]}" for name in differing if name in settings]
            system = ", ".join([story.config["agent"], *own])
            trained, chance = (np.array(result[name], float) for name in ("trained", "random"))
            how = work(result), result["episodes"], story.config.get("env_options", {})
            found.append(tasks.Result(system, story.env, story.label, trained, chance, *how))
    return found


# --- One environment ----------------------------------------------------------------------------------------------


def _environment(env: str, group: list[Story], out: Path) -> list[Block]:
    """Returns, evaluation, losses and the other metrics of the runs in one environment."""
    names = metric_names(group)
    losses = [name for name in names if "loss" in name.split("/")]
    curves = learning_curves(group)
    blocks = [Heading(2, env), *_returns(env, group, curves, out), Heading(3, "Evaluation"), *_scores(group, curves)]
    blocks += _sooner(group, curves)
    blocks += _multiples("Losses", env, group, losses, out)
    return blocks + _multiples("Other metrics", env, group, [name for name in names if name not in losses], out)


def _returns(env: str, group: list[Story], series: list[charts.Series], out: Path) -> list[Block]:
    scored = [story for story in group if story.scored]
    if not series and not scored:
        return [Text("No scores yet: no training episode has ended.")]
    finals = [charts.Final(s.label, s.index, work(s.evaluation), np.array(s.evaluation["trained"])) for s in scored]
    chance = float(np.mean([np.mean(s.evaluation["random"]) for s in scored])) if scored else None
    picture = save(charts.returns(env, series, finals, chance), out, f"returns-{env}", f"Learning curves on {env}")
    text = "The evaluation, drawn beyond the end, plays the greedy policy in environments of its own."
    if series:
        text = (
            "Training returns are raw and belong to the exploring policy. A point is the mean of a member's episodes "
            f"that ended within {2 * series[0].steps[0]:,.0f} environment steps; a member without one has a gap, and "
            f"so has the mean. {text}"
        )
    return [picture, Text(text)]


def _scores(group: list[Story], curves: list[charts.Series]) -> list[Block]:
    header = ["run", "environment steps", "episodes per member", "each member", "mean", "minimum", "random"]
    rows = []
    for story in (story for story in group if story.scored):
        result, trained = story.evaluation, np.array(story.evaluation["trained"])
        each = " ".join(f"{value:.2f}" for value in trained)
        numbers = [trained.mean(), trained.min(), np.mean(result["random"])]
        steps = f"{work(result):,}"
        rows.append([story.label, steps, result["episodes"], each, *(f"{x:.2f}" for x in numbers)])
    blocks: list[Block] = []
    if rows:
        blocks = [Table(header, rows), Text("Mean returns. The minimum is that of the worst member.")]
    notes = [note for story in group for note in _weak(story, curves)]
    return [*blocks, *([Bullets(notes)] if notes else [])]


def _weak(story: Story, curves: list[charts.Series]) -> Iterable[str]:
    """Notes on a run that is not evaluated, or whose greedy policy is worse than it should be."""
    if not story.evaluation:
        yield f"{story.label} is not evaluated yet."
        return
    trained, chance = (float(np.mean(story.evaluation[name])) for name in ("trained", "random"))
    command = f"{machine.program()} eval {shlex.quote(str(story.path))} --mode explore"
    way = f"score the exploring policy with {code(command)}"
    bad = [str(m) for m, score in enumerate(story.evaluation["trained"]) if score < chance <= trained]
    if bad:
        yield f"**{story.label}**: below random play ({chance:.2f}): member {', '.join(bad)}."
    mine = [curve.values[np.isfinite(curve.values).all(1)] for curve in curves if curve.index == story.index]
    last = float(mine[0][-1].mean()) if mine and len(mine[0]) else trained
    below = [f"random play ({chance:.2f})"] if trained < chance else []
    if trained < last - FAR * abs(last - chance):
        below.insert(0, f"the last training returns ({last:.2f})")
    if below:
        yield (
            f"**{story.label}**: the greedy policy ({trained:.2f}) is below {' and '.join(below)}: what it thinks best "
            f"is not good yet. Train longer, or {way}."
        )


def _sooner(group: list[Story], curves: list[charts.Series]) -> list[Block]:
    """How soon each of several runs is good."""
    scored = [story for story in group if story.scored]
    if len(scored) < 2:
        return []
    chance = np.mean([np.mean(story.evaluation["random"]) for story in scored])
    mark = chance + MARK * (max(np.mean(story.evaluation["trained"]) for story in scored) - chance)
    rows, text = [], lambda steps: f"{steps:,.0f}" if np.isfinite(steps) else "-"
    for curve in curves:
        steps = reached(curve, mark)
        rows.append([curve.label, " ".join(map(text, steps)), text(np.median(steps)), text(steps.max())])
    about = (
        f"The mark is a training return of {mark:.2f}, {MARK:.0%} of the way from the random policy to the best "
        "evaluation here; - means that the learning curve of a member has no point there."
    )
    header = ["run", "environment steps of each member", "median", "last"]
    return [Heading(3, "Steps to the mark"), Table(header, rows), Text(about)]


def _multiples(title: str, env: str, group: list[Story], names: list[str], out: Path) -> list[Block]:
    if not (found := panels(group, names)):
        return [Heading(3, title), Text("None recorded yet.")]
    file = f"{title.lower().replace(' ', '-')}-{env}"
    return [Heading(3, title), save(charts.multiples(found), out, file, f"{title} on {env}")]


# --- All runs -----------------------------------------------------------------------------------------------------


def _gauge(stories: list[Story], out: Path) -> list[Block]:
    """Whether the policy earns in dreams what it earns in the environment."""
    measured = [story for story in stories if any(GAUGE[0] in row for row in story.metrics)]
    blocks: list[Block] = [Heading(2, "Exploitation gauge")]
    if without := [story.label for story in stories if story not in measured]:
        blocks.append(Text(f"Not recorded in {', '.join(without)}: no {code(GAUGE[0])} in {directory.METRICS}."))
    if not measured:
        return blocks
    figure = charts.gauge([[metric_curve(story, name) for name in GAUGE] for story in measured])
    text = (
        "The policy's return in a dream and in the environment, from the same states. The gap is dreamed minus "
        "real: near zero, dreams can be trusted; a gap that grows while the real return does not means that the "
        "policy exploits errors of its model."
    )
    picture = save(figure, out, "gauge", "Dreamed and real return from the same states")
    return [*blocks, Text(text), picture, _gauge_table(measured)]


def _gauge_table(stories: list[Story]) -> Table:
    rows = []
    for story in stories:
        columns = [column(story, name) for name in GAUGE]
        steps = columns[0][0][-1]
        for member, newest in enumerate(zip(*(values[-1] for _, values in columns), strict=True)):
            rows.append([story.label, f"{steps:,.0f}", member, *map(number, newest)])
    return Table(["run", "environment steps", "member", "dreamed", "real", "gap"], rows)


def _dreams(stories: list[Story], out: Path) -> list[Block]:
    """The pictures in RUN/dreams and RUN/watch.gif, copied next to the report, and the verdict on the dreams."""
    blocks: list[Block] = []
    captions = data.read("captions.toml")
    for path, label in reversed({story.path: story.label for story in reversed(stories)}.items()):
        files = [file for file in [*(path / DREAMS).glob("**/*"), path / FILM] if file.suffix.lower() in SHOWN]
        files = [file for file in files if file.is_file()]
        rank = {name: i for i, name in enumerate(captions)}
        for file in sorted(files, key=lambda file: (rank.get(file.name, len(rank)), file)):
            folder = path / DREAMS if file.is_relative_to(path / DREAMS) else path
            name = file.relative_to(folder).as_posix()
            copy = Path(DREAMS) / label / name
            (out / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / copy)
            title, text = captions.get(name, (name, ""))
            title = title if len(stories) == 1 else f"{label}: {title[0].lower()}{title[1:]}"
            verdict = _verdict(path) if name == "error.png" else []
            said: list[Block] = [Text(text)] if text else []
            blocks += [Heading(3, title), *said, *verdict, Picture(copy.as_posix(), title)]
    return [Heading(2, "Dreams and videos"), *blocks] if blocks else []


def _verdict(path: Path) -> list[Block]:
    """The sentences that `jaxwm dream` wrote about its errors."""
    try:
        said = json.loads((path / DREAMS / "dreams.json").read_bytes()).get("verdict", [])
    except (OSError, ValueError):
        return []
    return [Bullets(said)] if said else []


def _throughput(stories: list[Story]) -> list[Block]:
    header = ["run", "steps/s", "updates/s", "wall time", "compile time", "updates per member", "skipped updates"]
    rows = [[story.label, *_pace(story), _skipped(story)] for story in stories]
    skipped = any(SKIPPED in row for story in stories for row in story.metrics)
    if not skipped:
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = "Rates are sums over the members, while learning: compiling and random play at the start do not count."
    if skipped:
        text += " Skipped updates are counts of each member."
    return [Heading(2, "Throughput"), Table(header, rows), Text(text)]


def _pace(story: Story) -> list[str]:
    """Steps per second, updates per second, wall time, compile time, updates."""
    learning = [row for row in story.metrics if row.get("updates")]
    rates = ["-", "-"]
    if learning and (seconds := learning[-1]["seconds"] - learning[0]["seconds"]) > 0:
        counts = [learning[-1].get(name, 0) - learning[0].get(name, 0) for name in ("env_steps", "updates")]
        rates = [f"{count * story.members / seconds:,.1f}" for count in counts]
    wall = story.evaluation.get("seconds", story.metrics[-1]["seconds"] if story.metrics else None)
    updates = learning[-1]["updates"] if learning else 0
    return [*rates, _duration(wall), _duration(story.evaluation.get("compile_seconds")), f"{updates:,}"]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    unit, size = next((u for u in (("s", 1), ("min", 60)) if seconds < 60 * u[1]), ("h", 3600))
    return f"{seconds / size:.1f} {unit}"


def _skipped(story: Story) -> str:
    """Updates that were undone, of each member, until the newest row."""
    counts = [row[SKIPPED] for row in story.metrics if SKIPPED in row]
    return " ".join(f"{count:,}" for count in counts[-1]) if counts else "-"


def _settings(stories: list[Story]) -> list[Block]:
    """What differs between the runs, and, folded away, what does not."""
    flat = [flatten({k: v for k, v in story.config.items() if k not in VERSIONS}) for story in stories]
    names = list(dict.fromkeys(name for entries in flat for name in entries))
    absent = object()
    differing = [name for name in names if any(e.get(name, absent) != flat[0].get(name, absent) for e in flat)]
    show = lambda entries, name: code(json.dumps(entries[name])) if name in entries else "-"  # noqa: E731
    blocks: list[Block] = [Heading(2, "Settings")]
    if len(stories) > 1:
        rows = [[code(name), *(show(entries, name) for entries in flat)] for name in differing]
        header = ["setting", *(story.label for story in stories)]
        blocks.append(Table(header, rows) if rows else Text("The runs have the same settings."))
    common = [[code(name), show(flat[0], name)] for name in names if name not in differing]
    title = "All settings" if len(stories) == 1 else "Settings that all runs share"
    return [*blocks, Fold(f"{title} ({len(common)})", Table(["setting", "value"], common))]


def _reproduce(stories: list[Story]) -> list[Block]:
    header = ["run", *VERSIONS]
    rows = [[story.label, *(story.config.get(name, "-") for name in VERSIONS)] for story in stories]
    blocks: list[Block] = [Heading(2, "How to run it again"), Table(header, rows)]
    for path, label in {story.path: story.label for story in reversed(stories)}.items():  # a run may have several
        try:
            blocks[2:2] = [
                Text(f"{label}:"),
                Code(Plan.from_json(directory.read_config(path)).command(machine.program())),
            ]
        except ValueError as error:
            blocks.insert(2, Text(f"{label}: no command, because {error}."))
    return blocks
