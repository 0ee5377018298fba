"""`jaxwm report`: the plain files of run directories as one page with figures, report.md and report.html.

Nothing is computed again: what is not in config.json, metrics.jsonl, scores.jsonl, evaluation.json and dreams/ is named
as missing. M is the number of members of a run."""

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
from jaxwm.report.data import say
from jaxwm.report.document import Block, bullets, code, heading, number, paragraph, picture, save, table
from jaxwm.report.story import GAUGE, SKIPPED, Story, column, flatten, metric_names, read, work
from jaxwm.run import directory, machine
from jaxwm.run.plan import Plan

MARKDOWN, HTML = "report.md", "report.html"
RUNS, DREAMS, FILM = Path("runs"), "dreams", "watch.gif"
VERSIONS = ("jaxwm", "jax")

MARK = 0.9  # what counts as good when runs are compared by how soon they are, from random play to the best evaluation
FAR = 0.25  # a greedy score is far below the training returns by this share of their distance from random play


def report(paths: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write report.md, report.html and their figures about run directories, or directories that contain some.

    `out` is the directory to write to: by default RUN/report for one run, runs/report-TIME where all runs are below
    runs/, and report-TIME for others. Returns the path of report.html.

    Raises FileNotFoundError for a path that is no run directory and contains none, ValueError for no path and for a
    damaged file, which the message names, PermissionError where `out` cannot be written to."""
    stories = read(paths)
    out = _prepare(Path(out) if out else _default_out(stories))
    title = f"Report: {stories[0].label if len(stories) == 1 else f'{len(stories)} runs'}"
    written = f"Written {time.strftime('%Y-%m-%d %H:%M')} by jaxwm {jaxwm.__version__}."
    with matplotlib.rc_context(charts.STYLE):
        blocks = [heading(1, title), paragraph(written), *_overview(stories), *tasks.section(_results(stories), out)]
        for env in dict.fromkeys(story.env for story in stories):
            blocks += _environment(env, [story for story in stories if story.env == env], out)
        blocks += _gauge(stories, out)
    blocks += [*_dreams(stories, out), *_throughput(stories), *_settings(stories), *_reproduce(stories)]
    (out / MARKDOWN).write_text(document.markdown(blocks), encoding="utf-8")
    (out / HTML).write_text(document.html(title, blocks), encoding="utf-8")
    return out / HTML


def opening(page: Path) -> str:
    """How to look at a report, for the terminal."""
    address = page.resolve().as_uri()
    return f"{page}\nopen it in a browser: {address} (one file, pictures included; {MARKDOWN} is its text)"


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
        message = f"cannot write to {out} ({error.strerror}): choose another directory with --out"
        raise PermissionError(message) from None
    return out


def _overview(stories: list[Story]) -> list[Block]:
    header = ["run", "agent", "environment", "members", "seed", "progress of each member", "state"]
    rows = []
    for story in stories:
        config = story.config
        steps = f"{story.progress():,} of {config['steps'] or config['updates']:,} {story.unit}"
        state = "finished" if story.evaluation else "**unfinished**"
        rows.append([story.label, config["agent"], story.env, story.members, config["seed"], steps, state])
    return [heading(2, "Runs"), table(header, rows), *bullets([note for story in stories for note in _notes(story)])]


def _notes(story: Story) -> Iterable[str]:
    """What is missing or odd in a run."""
    name = f"**{story.label}**"
    if not story.evaluation:
        command = code(f"{machine.program()} resume {shlex.quote(str(story.path))}")
        yield f"{name} is unfinished: there is no {directory.EVALUATION}. Go on with {command}."
    if not story.metrics:
        yield f"{name} has no metrics yet."
    if not story.scores and story.acts:
        yield f"{name} has no scores yet: no training episode has ended."
    if not story.evaluation.get("complete", True):
        yield f"{name}: some evaluation episodes were cut off by the step limit; their returns are lower bounds."
    for metric in metric_names([story]):
        steps, values = column(story, metric)
        for member, bad in enumerate(~np.isfinite(values.T)):
            if bad.any():
                where = dict(bad=bad.sum(), rows=len(bad), first=steps[bad][0], unit=story.unit)
                yield say("null", name=name, metric=metric, member=member, **where)


def _results(stories: list[Story]) -> list[tasks.Result]:
    """Evaluations, by system: the agent, and those of its settings that differ between runs of one environment."""
    flat = [flatten(story.config["settings"]) for story in stories]
    differing: dict[str, None] = {}
    for i, story in enumerate(stories):
        for other, settings in zip(stories[:i], flat, strict=False):
            if other.env == story.env and other.config["agent"] == story.config["agent"]:
                differing |= dict.fromkeys(name for name in flat[i] if settings.get(name) != flat[i][name])
    found = []
    for story, settings in zip(stories, flat, strict=True):
        if story.scored:
            own = [f"{name} {settings[name]}" for name in differing if name in settings]
            system = ", ".join([story.config["agent"], *own])
            chance, options = np.array(story.evaluation["random"], float), story.config.get("env_options", {})
            how = work(story.evaluation), story.evaluation["episodes"], options, story.unit
            found.append(tasks.Result(system, story.env, story.label, story.trained, chance, *how))
    return found


def _environment(env: str, group: list[Story], out: Path) -> list[Block]:
    """Returns, evaluation, losses and the other metrics of the runs in one environment."""
    names, curves = metric_names(group), learning_curves(group)
    scored = [story for story in group if story.scored]
    blocks = [heading(2, env), *(_returns(env, scored, curves, out) if scored or any(s.acts for s in group) else [])]
    blocks += [heading(3, "Evaluation"), *_scores(scored), *_named(group)]
    blocks += bullets([note for story in group for note in _weak(story, curves)])
    blocks += _sooner(scored, curves) if len(scored) > 1 else []
    losses = [name for name in names if "loss" in name.split("/")]
    for title, some in (("Losses", losses), ("Other metrics", [name for name in names if name not in losses])):
        blocks.append(heading(3, title))
        if found := panels(group, some):
            file = f"{title.lower().replace(' ', '-')}-{env}"
            blocks.append(save(charts.multiples(found), out, file, f"{title} on {env}"))
        else:
            blocks.append(paragraph("None recorded yet."))
    return blocks


def _returns(env: str, scored: list[Story], series: list[charts.Series], out: Path) -> list[Block]:
    if not series and not scored:
        return [paragraph("No scores yet: no training episode has ended.")]
    final = lambda s: charts.Series(s.label, s.index, np.array([work(s.evaluation)]), s.trained[None], s.unit)  # noqa: E731
    finals = [final(story) for story in scored]
    chance = float(np.mean([story.chance for story in scored])) if scored else None
    shown = save(charts.returns(env, series, finals, chance), out, f"returns-{env}", f"Learning curves on {env}")
    text = say("evaluation")
    return [shown, paragraph(say("training", width=2 * series[0].steps[0], evaluation=text) if series else text)]


def _scores(scored: list[Story]) -> list[Block]:
    header = ["run", charts.units(scored), "episodes per member", "each member", "mean", "minimum", "random"]
    rows = []
    for story in scored:
        each = " ".join(f"{value:.2f}" for value in story.trained)
        numbers = (f"{x:.2f}" for x in (story.trained.mean(), story.trained.min(), story.chance))
        rows.append([story.label, f"{work(story.evaluation):,}", story.evaluation["episodes"], each, *numbers])
    text = "Mean returns. The minimum is that of the worst member."
    return [table(header, rows), paragraph(text)] if rows else []


def _named(group: list[Story]) -> list[Block]:
    """Scores by name: a system's own, such as errors on recordings that were held out, and what an environment counts
    besides the reward, next to random play."""
    rows = []
    for story in group:
        for name, found in story.evaluation.get("scores", {}).items():
            if name != "return":
                each = [f"{value:.3g}" for value in [*found["trained"], np.mean(found["trained"])]]
                chance = f"{np.mean(found['random']):.3g}" if "random" in found else ""
                work = f"{story.evaluation['updates']:,}"
                rows.append([story.label, name, work, " ".join(each[:-1]), each[-1], chance])
    return [table(["run", "score", "updates", "each member", "mean", "random"], rows)] if rows else []


def _weak(story: Story, curves: list[charts.Series]) -> Iterable[str]:
    """Notes on a run that is not evaluated, or whose greedy policy is worse than it should be."""
    if not story.evaluation:
        yield f"{story.label} is not evaluated yet."
        return
    if not story.scored:
        return
    trained, chance = float(story.trained.mean()), story.chance
    command = f"{machine.program()} eval {shlex.quote(str(story.path))} --mode explore"
    bad = [str(m) for m, score in enumerate(story.trained) if score < chance <= trained]
    if bad:
        yield f"**{story.label}**: below random play ({chance:.2f}): member {', '.join(bad)}."
    mine = [curve.values[np.isfinite(curve.values).all(1)] for curve in curves if curve.index == story.index]
    last = float(mine[0][-1].mean()) if mine and len(mine[0]) else trained
    below = [f"the last training returns ({last:.2f})"] if trained < last - FAR * abs(last - chance) else []
    below += [f"random play ({chance:.2f})"] if trained < chance else []
    if below:
        yield say("weak", label=story.label, trained=trained, below=" and ".join(below), command=command)


def _sooner(scored: list[Story], curves: list[charts.Series]) -> list[Block]:
    """How soon each of several runs is good."""
    chance = np.mean([story.chance for story in scored])
    mark = chance + MARK * (max(story.trained.mean() for story in scored) - chance)
    rows, text = [], lambda steps: f"{steps:,.0f}" if np.isfinite(steps) else "-"
    for curve in curves:
        steps = reached(curve, mark)
        rows.append([curve.label, " ".join(map(text, steps)), text(np.median(steps)), text(steps.max())])
    header = ["run", "environment steps of each member", "median", "last"]
    about = say("mark", mark=mark, share=MARK)
    return [heading(3, "Steps to the mark"), table(header, rows), paragraph(about)]


def _gauge(stories: list[Story], out: Path) -> list[Block]:
    """Whether the policy earns in dreams what it earns in the environment."""
    measured = [story for story in stories if any(GAUGE[0] in row for row in story.metrics)]
    blocks: list[Block] = [heading(2, "Exploitation gauge")]
    if without := [story.label for story in stories if story not in measured]:
        blocks.append(paragraph(f"Not recorded in {', '.join(without)}: no {code(GAUGE[0])} in {directory.METRICS}."))
    if not measured:
        return blocks
    figure = charts.gauge([[metric_curve(story, name) for name in GAUGE] for story in measured])
    rows = []
    for story in measured:
        columns = [column(story, name) for name in GAUGE]
        for member, newest in enumerate(zip(*(values[-1] for _, values in columns), strict=True)):
            rows.append([story.label, f"{columns[0][0][-1]:,.0f}", member, *map(number, newest)])
    header = ["run", charts.units(measured), "member", "dreamed", "real", "gap"]
    shown = save(figure, out, "gauge", "Dreamed and real return from the same states")
    return [*blocks, paragraph(say("gauge")), shown, table(header, rows)]


def _dreams(stories: list[Story], out: Path) -> list[Block]:
    """The pictures in RUN/dreams and RUN/watch.gif, copied next to the report, and the verdict on the dreams."""
    blocks: list[Block] = []
    captions = data.read("captions.toml")
    rank = {name: i for i, name in enumerate(captions)}
    for path, label in _runs(stories).items():
        files = [*(path / DREAMS).glob("**/*"), path / FILM]
        files = [file for file in files if file.suffix.lower() in document.MIME and file.is_file()]
        for file in sorted(files, key=lambda file: (rank.get(file.name, len(rank)), file)):
            name = file.relative_to(path).as_posix().removeprefix(f"{DREAMS}/")
            copy = Path(DREAMS) / label / name
            (out / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / copy)
            title, text = captions.get(name, (name, ""))
            title = title if len(stories) == 1 else f"{label}: {title[0].lower()}{title[1:]}"
            blocks += [heading(3, title)] + ([paragraph(text)] if text else [])
            blocks += bullets(_verdict(path) if name == "error.png" else [])
            blocks.append(picture(out, copy.as_posix(), title))
    return [heading(2, "Dreams and videos"), *blocks] if blocks else []


def _runs(stories: list[Story]) -> dict[Path, str]:
    """The directories of the runs, with the label of the first story: a run may have several."""
    return dict(reversed({story.path: story.label for story in reversed(stories)}.items()))


def _verdict(path: Path) -> list[str]:
    """The sentences that `jaxwm dream` wrote about its errors."""
    try:
        return json.loads((path / DREAMS / "dreams.json").read_bytes()).get("verdict", [])
    except (OSError, ValueError):
        return []


def _throughput(stories: list[Story]) -> list[Block]:
    header = ["run", "steps/s", "updates/s", "wall time", "compile time", "updates per member", "skipped updates"]
    rows = []
    for story in stories:
        skipped = [row[SKIPPED] for row in story.metrics if SKIPPED in row][-1:]  # of each member, until the newest row
        rows.append([story.label, *_pace(story), *(" ".join(f"{count:,}" for count in counts) for counts in skipped)])
    text = say("rates")
    if (width := max(map(len, rows))) == len(header):
        text += " Skipped updates are counts of each member."
    return [heading(2, "Throughput"), table(header[:width], [(row + ["-"])[:width] for row in rows]), paragraph(text)]


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


def _settings(stories: list[Story]) -> list[Block]:
    """What differs between the runs, and, folded away, what does not."""
    flat = [flatten({k: v for k, v in story.config.items() if k not in VERSIONS}) for story in stories]
    names = dict.fromkeys(name for entries in flat for name in entries)
    absent = object()
    differing = [name for name in names if any(e.get(name, absent) != flat[0].get(name, absent) for e in flat)]
    show = lambda entries, name: code(json.dumps(entries[name])) if name in entries else "-"  # noqa: E731
    blocks: list[Block] = [heading(2, "Settings")]
    if len(stories) > 1:
        rows = [[code(name), *(show(entries, name) for entries in flat)] for name in differing]
        header = ["setting", *(story.label for story in stories)]
        blocks.append(table(header, rows) if rows else paragraph("The runs have the same settings."))
    common = [[code(name), show(flat[0], name)] for name in names if name not in differing]
    title = "All settings" if len(stories) == 1 else "Settings that all runs share"
    return [*blocks, document.fold(f"{title} ({len(common)})", table(["setting", "value"], common))]


def _reproduce(stories: list[Story]) -> list[Block]:
    rows = [[story.label, *(story.config.get(name, "-") for name in VERSIONS)] for story in stories]
    blocks = [heading(2, "How to run it again"), table(["run", *VERSIONS], rows)]
    for path, label in _runs(stories).items():
        try:
            command = Plan.from_json(directory.read_config(path)).command(machine.program())
            blocks += [paragraph(f"{label}:"), document.listing(command)]
        except ValueError as error:
            blocks.append(paragraph(f"{label}: no command, because {error}."))
    return blocks
