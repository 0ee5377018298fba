"""The part of a report about several tasks together: scores by task, and statistics over all of them.

For games of Atari-100k the scores are human-normalised, aggregated with intervals and compared with published ones.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxwm.report import charts, statistics
from jaxwm.report.document import Block, Heading, Table, Text, save

SCORES = "scores.csv"
ATARI = "atari/"
THRESHOLDS = np.concatenate([np.linspace(0, 2, 41), np.linspace(2.25, 8, 24)])
"""Human-normalised scores at which performance profiles are drawn."""

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


def section(results: list[Result], out: Path) -> list[Block]:
    """Its figures and scores.csv are written to `out`. Empty for fewer than two tasks."""
    names = list(dict.fromkeys(result.task for result in results))
    if len(names) < 2:
        return []
    games = all(
        name.removeprefix(ATARI) in statistics.published()["human"] and name.startswith(ATARI) for name in names
    )
    _write_csv(results, out / SCORES, games)
    systems = {name: _scores(results, name, games) for name in dict.fromkeys(result.system for result in results)}
    blocks: list[Block] = [Heading(2, "All tasks"), _table(results), Text(_how(results, games))]
    if games:
        return blocks + _atari(systems, out)
    figure = charts.bars(_shares(results), "return (random policy = 0, best member of the task = 1)")
    return [*blocks, save(figure, out, "tasks", "Returns of all tasks, normalised by random play and the best member")]


def _scores(results: list[Result], system: str, games: bool) -> dict[str, np.ndarray]:
    """All members' scores of a system by task; games without their suite."""
    found: dict[str, list[np.ndarray]] = {}
    for result in (result for result in results if result.system == system):
        found.setdefault(result.task.removeprefix(ATARI) if games else result.task, []).append(result.scores)
    return {task: np.concatenate(scores) for task, scores in found.items()}


def _shares(results: list[Result]) -> dict[str, dict[str, np.ndarray]]:
    """Scores by system and task as shares of the way from random play to the best member of the task."""
    shares: dict[str, dict[str, np.ndarray]] = {}
    for task in dict.fromkeys(result.task for result in results):
        group = [result for result in results if result.task == task]
        chance = np.mean([result.random.mean() for result in group])
        best = max(result.scores.max() for result in group)
        for result in group:
            share = (result.scores - chance) / (best - chance) if best > chance else np.zeros(len(result.scores))
            earlier = shares.setdefault(result.system, {}).get(task, np.zeros(0))
            shares[result.system][task] = np.concatenate([earlier, share])
    return shares


def _table(results: list[Result]) -> Table:
    rows = []
    for r in results:
        digits = 2 if abs(r.scores).max() < 10 else 1
        show = lambda x, digits=digits: f"{x:,.{digits}f}"  # noqa: E731
        spread = f"{show(r.scores.min())} to {show(r.scores.max())}" if len(r.scores) > 1 else "-"
        numbers = show(r.scores.mean()), spread, show(r.random.mean())
        rows.append([r.task, r.system, len(r.scores), f"{r.env_steps:,}", *numbers])
    return Table(["task", "system", "seeds", "environment steps", "mean", "minimum to maximum", "random"], rows)


def _how(results: list[Result], games: bool) -> str:
    """How the scores came about."""
    episodes = " or ".join(f"{n:,}" for n in sorted({result.episodes for result in results}))
    text = (
        f"A score is the mean raw return of {episodes} episodes that the greedy policy of a seed plays in environments "
        f"of its own after training, not of training episodes. All scores: [{SCORES}]({SCORES})."
    )
    if not games:
        return text
    options = [ATARI_OPTIONS | {k: v for k, v in r.options.items() if k in ATARI_OPTIONS} for r in results]
    if any(other != options[0] for other in options):
        return text + " **The runs differ in their environments' options, so their scores do not compare.**"
    o = options[0]
    lives = "lives are ignored" if o["life_loss"] == "ignore" else "a lost life ends the returns that are learnt from"
    return (
        f"{text} An environment step is {o['frame_skip']} frames; episodes start after up to {o['noop_max']} idle "
        f"frames and end at the true game over; {lives}; the previous action is repeated with probability "
        f"{o['sticky']:g} (sticky actions)."
    )


def _write_csv(results: list[Result], file: Path, games: bool) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        header = ["system", "task", "run", "member", "env_steps", "score", "random"]
        writer.writerow(header + (["human_normalised"] if games else []))
        for r in results:
            normal = statistics.human_normalised({r.task.removeprefix(ATARI): r.scores}) if games else {}
            for m, score in enumerate(r.scores):
                row = [r.system, r.task, r.run, m, r.env_steps, score, r.random[m]]
                writer.writerow(row + [values[m] for values in normal.values()])


# --- Atari-100k ---------------------------------------------------------------------------------------------------


def _atari(systems: dict[str, dict[str, np.ndarray]], out: Path) -> list[Block]:
    """Human-normalised statistics of complete systems, next to the published ones on the same games."""
    games = list(dict.fromkeys(game for scores in systems.values() for game in scores))
    complete = {
        name: statistics.human_normalised(scores) for name, scores in systems.items() if len(scores) == len(games)
    }
    blocks: list[Block] = [Heading(3, "Human-normalised scores")]
    if partial := [name for name in systems if name not in complete]:
        blocks.append(Text(f"Left out, because not all games are finished: {', '.join(partial)}."))
    published = _published(games)
    numbers = {name: _aggregates(scores) for name, scores in (complete | published).items()}
    share = f"{len(games)} of the 26 games" if len(games) < 26 else "all 26 games"
    about = (
        f"(score - random) / (human - random), over {share}, published scores over the same ones. Mean and median are "
        "over games, IQM (of the middle half) and optimality gap (how far below human, 0 is best) over all games and "
        "seeds. In brackets: 95 % intervals of a bootstrap that draws seeds within each game; none where single seeds "
        "were not published."
    )
    rows = [[name, *map(_interval, row.values())] for name, row in numbers.items()]
    sources = (
        "Published scores are computed in their own ways, often from training episodes; the sources are in "
        "jaxwm/report/data/atari100k.md."
    )
    blocks += [Text(about), Table(["", *statistics.AGGREGATES], rows), Text(sources)]
    if not complete:
        return blocks
    blocks.append(save(charts.aggregates(numbers, list(complete)), out, "aggregates", "Aggregates with intervals"))
    compared = {name: published[name] for name in map(_label, charts.COMPARED) if name in published}
    profiles = {
        name: (
            statistics.profile(scores, THRESHOLDS),
            statistics.profile_band(scores, THRESHOLDS) if name in complete else None,
        )
        for name, scores in (complete | compared).items()
    }
    blocks.append(save(charts.profiles(THRESHOLDS, profiles), out, "profiles", "Performance profiles"))
    figure = charts.bars(complete | compared, "human-normalised score (human = 1)", logarithmic=True)
    blocks.append(save(figure, out, "games", "Human-normalised score of every game"))
    runs = {name: published[name] for name in map(_label, statistics.published_runs()) if name in published}
    return [*blocks, *_improvement(complete, runs)]


def _label(column: str) -> str:
    """A published result's name in the report, where a system of ours may be called the same."""
    return f"{column} (published)"


def _published(games: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Normalised published scores, by label, of the columns that have all these games: single seeds where there are."""
    runs, means = statistics.published_runs(), statistics.published()
    found = {}
    for name, scores in means.items():
        if name in ("random", "human") or any(game not in scores for game in games):
            continue
        found[_label(name)] = statistics.human_normalised(
            {game: runs[name][game] if name in runs else [scores[game]] for game in games}
        )
    return found


def _aggregates(scores: statistics.Scores) -> dict[str, statistics.Interval]:
    return {name: statistics.interval(fn, scores) for name, fn in statistics.AGGREGATES.items()}


def _interval(found: statistics.Interval) -> str:
    return f"{found.value:.3f}" + (f" ({found.low:.3f}, {found.high:.3f})" if np.isfinite(found.low) else "")


def _improvement(ours: dict[str, Any], theirs: dict[str, Any]) -> list[Block]:
    """Ours against each other and against the published."""
    rows = []
    for name, scores in ours.items():
        others = {k: v for k, v in (ours | theirs).items() if k != name}
        rows += [
            [name, other, _interval(statistics.interval(statistics.improvement, scores, them))]
            for other, them in others.items()
        ]
    text = "How likely a seed of the first scores higher than one of the second on a game drawn at random."
    return [
        Heading(3, "Probability of improvement"),
        Text(text),
        Table(["first", "second", "probability"], rows),
    ]
