"""Statistics over tasks and seeds, as Agarwal et al. (2021, "Deep RL at the edge of the statistical precipice") advise.

Scores are `{task: [R] scores of runs}`, normalised where they are aggregated; tasks may differ in their runs."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from jaxwm.report import data

Scores = Mapping[str, Sequence[float] | np.ndarray]
"""Scores `[..., R]` of the R runs of each task; functions below keep the leading axes, of resampled scores."""

RESAMPLES = 2000  # resampled sets of runs behind an interval


class Interval(NamedTuple):
    """An estimate with the 95 % interval of a stratified bootstrap; its ends are NaN where no task has two runs."""

    value: float
    low: float
    high: float


def _means(scores: Scores) -> np.ndarray:  # [..., tasks]
    return np.stack([np.mean(runs, -1) for runs in scores.values()], -1)


def _all(scores: Scores) -> np.ndarray:  # [..., runs of all tasks]
    return np.concatenate([np.asarray(runs, float) for runs in scores.values()], -1)


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return _means(scores).mean(-1)


def median(scores: Scores) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median(_means(scores), -1)


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean: of all runs of all tasks, without a quarter, rounded down, at either end."""
    runs = np.sort(_all(scores), -1)
    cut = runs.shape[-1] // 4
    return runs[..., cut : runs.shape[-1] - cut].mean(-1)


def optimality_gap(scores: Scores, goal: float = 1.0) -> np.ndarray:
    """How far runs stay below `goal` on average; what is above it does not make up for what is below."""
    return goal - np.minimum(_all(scores), goal).mean(-1)


AGGREGATES: dict[str, Callable[[Scores], np.ndarray]]
AGGREGATES = {"mean": mean, "median": median, "IQM": iqm, "optimality gap": optimality_gap}


def resample(scores: Scores, times: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As many runs of every task, drawn from those of the same task with replacement: `[times, R]`."""
    return {task: rng.choice(np.asarray(runs, float), (times, len(runs))) for task, runs in scores.items()}


def interval(fn: Callable[..., np.ndarray], *scores: Scores, times: int = RESAMPLES, seed: int = 0) -> Interval:
    """`fn(*scores)` with its 95 % interval; each of several sets of scores is resampled by itself."""
    value = float(fn(*scores))
    if all(len(runs) < 2 for each in scores for runs in each.values()):
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    low, high = np.percentile(fn(*(resample(each, times, rng) for each in scores)), [2.5, 97.5])
    return Interval(value, float(low), float(high))


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Performance profile `[..., K]`: the share of runs above each threshold, mean over tasks (Dolan & Moré 2002)."""
    shares = [(np.asarray(runs)[..., None] > thresholds).mean(-2) for runs in scores.values()]
    return np.mean(shares, 0)


def profile_band(scores: Scores, thresholds: np.ndarray, times: int = RESAMPLES) -> np.ndarray:
    """Lower and upper end `[2, K]` of the 95 % intervals of `profile`."""
    drawn = profile(resample(scores, times, np.random.default_rng(0)), thresholds)
    return np.percentile(drawn, [2.5, 97.5], axis=0)


def improvement(ours: Scores, theirs: Scores) -> np.ndarray:
    """Probability that a run of ours beats one of theirs on a task that is drawn at random; ties count half."""
    wins = []
    for name in (name for name in ours if name in theirs):
        x, y = np.asarray(ours[name], float)[..., :, None], np.asarray(theirs[name], float)[..., None, :]
        wins.append(((x > y) + 0.5 * (x == y)).mean((-2, -1)))
    if not wins:
        raise ValueError("no task has runs of both")
    return np.mean(wins, 0)


@cache
def published() -> dict[str, dict[str, float]]:
    """Published scores by column and game (data/atari100k.csv; its sources in data/atari100k.md)."""
    rows = list(csv.DictReader(data.text("atari100k.csv").splitlines()))
    columns = [name for name in rows[0] if name != "game"]
    return {name: {row["game"]: float(row[name]) for row in rows if row[name]} for name in columns}


@cache
def published_runs() -> dict[str, dict[str, list[float]]]:
    """Published scores of single seeds by column and game; fewer columns than `published` has."""
    return json.loads(data.text("atari100k_seeds.json"))


def human_normalised(scores: Scores) -> dict[str, np.ndarray]:
    """(score - random) / (human - random) for each run. ValueError for a game that is not among the 26."""
    chance, human = published()["random"], published()["human"]
    if unknown := [game for game in scores if game not in human]:
        raise ValueError(f"no human score is known for {', '.join(unknown)}; the games are {', '.join(human)}")
    return {g: (np.asarray(runs, float) - chance[g]) / (human[g] - chance[g]) for g, runs in scores.items()}
