"""Statistics of sweeps: by hand, and the published aggregates of Atari-100k from its scores."""

from __future__ import annotations

import numpy as np
import pytest

from jaxwm.report import statistics


def test_aggregates_by_hand():
    scores = {"a": [0.0, 1.0], "b": [2.0, 3.0], "c": [4.0, 11.0], "d": [0.5, 0.5]}
    assert statistics.mean(scores) == pytest.approx((0.5 + 2.5 + 7.5 + 0.5) / 4)
    assert statistics.median(scores) == pytest.approx(1.5)
    assert statistics.iqm(scores) == pytest.approx(
        (0.5 + 1 + 2 + 3) / 4
    )  # of 0 .5 .5 1 2 3 4 11 without two at either end
    assert statistics.optimality_gap(scores) == pytest.approx(1 - (0 + 1 + 1 + 1 + 1 + 1 + 0.5 + 0.5) / 8)


def test_profile_and_improvement_by_hand():
    scores = {"a": [0.0, 1.0], "b": [2.0, 3.0, 4.0]}
    assert statistics.profile(scores, np.array([-1.0, 0.5, 2.0])) == pytest.approx([1, 0.75, 1 / 3])
    assert statistics.improvement({"a": [1.0, 2.0], "b": [0.0]}, {"a": [1.0], "b": [1.0]}) == pytest.approx(0.375)
    with pytest.raises(ValueError, match="no task"):
        statistics.improvement({"a": [1.0]}, {"b": [1.0]})


def test_bootstrap_is_stratified():
    """Tasks whose runs agree leave no uncertainty, however far the tasks are apart."""
    scores = {"a": [1.0, 1.0], "b": [100.0, 100.0]}
    assert statistics.interval(statistics.mean, scores, times=50) == (50.5, 50.5, 50.5)
    assert statistics.interval(statistics.improvement, scores, {"a": [0.0], "b": [200.0]}, times=50) == (0.5, 0.5, 0.5)
    low, high = statistics.profile_band(scores, np.array([0.0, 50.0, 200.0]), times=50)
    assert low.tolist() == high.tolist() == [1, 0.5, 0]
    assert np.isnan(statistics.interval(statistics.mean, {"a": [1.0], "b": [3.0]}).low)


def test_bootstrap_covers_the_truth():
    """Of 200 samples about 95 % of the intervals hold the true mean; with 20 runs the bootstrap is a little narrow."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        scores = {"a": rng.normal(1.0, 1.0, 20), "b": rng.normal(3.0, 2.0, 20)}
        found = statistics.interval(statistics.mean, scores, times=300, seed=i)
        hits += found.low <= 2.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


PUBLISHED = {  # mean, median, IQM over games, IQM over runs; as printed by the papers where they print them
    "simple": (0.332, 0.134, 0.209, 0.130),
    "twm": (0.956, 0.505, 0.530, 0.459),
    "iris": (1.046, 0.289, 0.543, 0.501),
    "delta_iris": (1.383, 0.594, 0.705, 0.682),
    "rem": (1.222, 0.280, 0.725, 0.673),
    "storm": (1.266, 0.580, 0.679, None),
    "diamond": (1.459, 0.373, 0.757, 0.641),
    "dreamerv3": (1.221, 0.469, 0.525, 0.505),
    "simulus": (1.645, 0.982, 1.091, 0.990),
    "muzero": (0.562, 0.227, 0.288, None),
    "efficientzero": (1.943, 1.090, 1.047, None),
    "bbf": (2.247, 0.917, 1.139, None),
}


@pytest.mark.parametrize("column", PUBLISHED)
def test_published_aggregates(column):
    """To three digits."""
    *over_games, over_runs = PUBLISHED[column]
    scores = statistics.human_normalised({game: [score] for game, score in statistics.published()[column].items()})
    assert len(scores) == 26
    assert [float(fn(scores)) for fn in (statistics.mean, statistics.median, statistics.iqm)] == pytest.approx(
        over_games, abs=0.0006
    )
    if over_runs:
        runs = statistics.human_normalised(statistics.published_runs()[column])
        assert statistics.iqm(runs) == pytest.approx(over_runs, abs=0.0006)
        assert statistics.mean(runs) == pytest.approx(over_games[0], abs=0.002)  # the table is rounded to 0.1


def test_unknown_game():
    with pytest.raises(ValueError, match="Tetris"):
        statistics.human_normalised({"Tetris": [1.0]})
