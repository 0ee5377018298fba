"""The part of a report about several tasks together: scores by task, and statistics over all of them.

For games of Atari-100k the scores are human-normalised, aggregated with intervals and compared with published ones."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxwm.report import charts, statistics
from jaxwm.report.data import say
from jaxwm.report.document import Block, heading, paragraph, save, table

SCORES, ATARI = "scores.csv", "atari/"
# Human-normalised scores at which performance profiles are drawn.
THRESHOLDS = np.concatenate([np.linspace(0, 2, 41), np.linspace(2.25, 8, 24)])
COMPARED = ("dreamerv3", "storm_repo_2025", "diamond")
"""Published results that are drawn next to ours where all would be too many: one per family."""

ATARI_OPTIONS: dict[str, Any] = dict(frame_skip=4, sticky=0.0, noop_max=30, life_loss="ignore")


class Result(NamedTuple):
    """The evaluation of one run. `system` names the agent, and its settings where systems differ by them."""

    system: str
    task: str
    run: str
    scores: np.ndarray  # [M], mean raw returns of the members
    random: np.ndarray  # [M], of the random policy
    env_steps: int
    episodes: int
    options: dict[str, Any]  # of the environment
    unit: str  # of `env_steps`: a run on recordings counts updates


def section(results: list[Result], out: Path) -> list[Block]:
    """Its figures and scores.csv are written to `out`. Empty for fewer than two tasks."""
    names = {result.task for result in results}
    if len(names) < 2:
        return []
    games = names <= {ATARI + game for game in statistics.published()["human"]}
    _write_csv(results, out / SCORES, games)
    blocks = [heading(2, "All tasks"), _table(results), paragraph(_how(results, games))]
    if games:
        systems = _gathered((result.system, result.task.removeprefix(ATARI), result.scores) for result in results)
        return blocks + _atari(systems, out)
    figure = charts.bars(_gathered(_shares(results)), "return (random policy = 0, best member of the task = 1)")
    return [*blocks, save(figure, out, "tasks", "Returns of all tasks, normalised by random play and the best member")]


def _gathered(parts: Iterable[tuple[str, str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Scores of all members by system and task, from `(system, task, scores)` of runs."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for system, task, scores in parts:
        tasks = found.setdefault(system, {})
        tasks[task] = np.concatenate([tasks.get(task, np.zeros(0)), scores])
    return found


def _shares(results: list[Result]) -> Iterable[tuple[str, str, np.ndarray]]:
    """Scores as shares of the way from random play to the best member of the task."""
    for task in dict.fromkeys(result.task for result in results):
        group = [result for result in results if result.task == task]
        chance = np.mean([result.random.mean() for result in group])
        best = max(result.scores.max() for result in group)
        for result in group:
            share = (result.scores - chance) / (best - chance) if best > chance else np.zeros(len(result.scores))
            yield result.system, task, share


def _table(results: list[Result]) -> Block:
    rows = []
    for r in results:
        digits = 2 if abs(r.scores).max() < 10 else 1
        numbers = r.scores.mean(), r.scores.min(), r.scores.max(), r.random.mean()
        mean, low, high, chance = (f"{x:,.{digits}f}" for x in numbers)
        spread = f"{low} to {high}" if len(r.scores) > 1 else "-"
        rows.append([r.task, r.system, len(r.scores), f"{r.env_steps:,}", mean, spread, chance])
    return table(["task", "system", "seeds", charts.units(results), "mean", "minimum to maximum", "random"], rows)


def _how(results: list[Result], games: bool) -> str:
    """How the scores came about."""
    episodes = " or ".join(f"{n:,}" for n in sorted({result.episodes for result in results}))
    text = say("score", episodes=episodes, file=SCORES)
    if not games:
        return text
    first, *others = (ATARI_OPTIONS | {k: v for k, v in r.options.items() if k in ATARI_OPTIONS} for r in results)
    if any(other != first for other in others):
        return f"{text} {say('incomparable')}"
    ignored = first["life_loss"] == "ignore"
    lives = "lives are ignored" if ignored else "a lost life ends the returns that are learnt from"
    return f"{text} {say('frames', lives=lives, **first)}"


def _write_csv(results: list[Result], file: Path, games: bool) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        header = ["system", "task", "run", "member", "env_steps", "score", "random"]
        writer.writerow(header + ["human_normalised"] * games)
        for r in results:
            normal = statistics.human_normalised({r.task.removeprefix(ATARI): r.scores}) if games else {}
            for m, score in enumerate(r.scores):
                row = [r.system, r.task, r.run, m, r.env_steps, score, r.random[m]]
                writer.writerow(row + [values[m] for values in normal.values()])


def _atari(systems: dict[str, dict[str, np.ndarray]], out: Path) -> list[Block]:
    """Human-normalised statistics of complete systems, next to the published ones on the same games."""
    games = list(dict.fromkeys(game for scores in systems.values() for game in scores))
    ours = {name: statistics.human_normalised(s) for name, s in systems.items() if len(s) == len(games)}
    blocks = [heading(3, "Human-normalised scores")]
    if partial := [name for name in systems if name not in ours]:
        blocks.append(paragraph(f"Left out, because not all games are finished: {', '.join(partial)}."))
    published = _published(games)
    intervals = lambda scores: {k: statistics.interval(fn, scores) for k, fn in statistics.AGGREGATES.items()}  # noqa: E731
    numbers = {name: intervals(scores) for name, scores in (ours | published).items()}
    share = f"{len(games)} of the 26 games" if len(games) < 26 else "all 26 games"
    rows = [[name, *map(_interval, row.values())] for name, row in numbers.items()]
    header = ["", *statistics.AGGREGATES]
    blocks += [paragraph(say("normalised", share=share)), table(header, rows), paragraph(say("published"))]
    if not ours:
        return blocks
    blocks.append(save(charts.aggregates(numbers, list(ours)), out, "aggregates", "Aggregates with intervals"))
    compared = ours | {name: published[name] for name in map(_label, COMPARED) if name in published}
    profiles = {
        name: (statistics.profile(s, THRESHOLDS), statistics.profile_band(s, THRESHOLDS) if name in ours else None)
        for name, s in compared.items()
    }
    blocks.append(save(charts.profiles(THRESHOLDS, profiles), out, "profiles", "Performance profiles"))
    figure = charts.bars(compared, "human-normalised score (human = 1)", logarithmic=True)
    blocks.append(save(figure, out, "games", "Human-normalised score of every game"))
    runs = {name: published[name] for name in map(_label, statistics.published_runs()) if name in published}
    pairs = [(name, other) for name in ours for other in ours | runs if other != name]
    better = lambda name, other: statistics.interval(statistics.improvement, ours[name], (ours | runs)[other])  # noqa: E731
    rows = [[*pair, _interval(better(*pair))] for pair in pairs]
    title, text = heading(3, "Probability of improvement"), paragraph(say("improvement"))
    return [*blocks, title, text, table(["first", "second", "probability"], rows)]


def _label(column: str) -> str:
    """A published result's name in the report, where a system of ours may be called the same."""
    return f"{column} (published)"


def _published(games: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Normalised published scores, by label, of the columns that have all these games: single seeds where there are."""
    runs, found = statistics.published_runs(), {}
    for name, means in statistics.published().items():
        if name not in ("random", "human") and all(game in means for game in games):
            scores = {game: runs[name][game] if name in runs else [means[game]] for game in games}
            found[_label(name)] = statistics.human_normalised(scores)
    return found


def _interval(found: statistics.Interval) -> str:
    return f"{found.value:.3f}" + (f" ({found.low:.3f}, {found.high:.3f})" if np.isfinite(found.low) else "")
