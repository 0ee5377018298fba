"""Curves of runs: training returns and metrics over environment steps, as the points that `charts` draws."""

import numpy as np

from jaxwm.report import data
from jaxwm.report.charts import Panel, Series
from jaxwm.report.story import Story, column

BINS, FILLED = (20, 16, 12, 10, 8, 6, 5, 4), 0.9
"""Points of a learning curve: the first number that leaves so many of them, for every member together."""

METRIC_BINS = 200  # largest number of points of the other curves


def binned(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of `values [K, M]` in the bins of `steps [K]`: centres and means of the bins that hold a row.
    NaN entries do not count; a bin with nothing else stays NaN: a gap."""
    which = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, len(edges) - 2)
    used = np.unique(which)
    means = [np.ma.masked_invalid(values[which == bin]).mean(0).filled(np.nan) for bin in used]
    centres = (edges[:-1] + edges[1:]) / 2
    return centres[used], np.array(means, float).reshape(len(used), values.shape[1])


def learning_curves(group: list[Story]) -> list[Series]:
    """Training returns of the runs that have scores, all over the same stretches of environment steps."""
    end, scored = max([1, *(story.progress() for story in group)]), [story for story in group if story.scores]
    for bins in BINS:
        curves = [learning_curve(story, np.linspace(0, end, bins + 1)) for story in scored]
        if all(_filled(curve.values) >= FILLED for curve in curves):
            break
    return curves


def _filled(values: np.ndarray) -> float:
    """Share of the points `[K, M]` that are there, from the first at which all members have one."""
    there = np.isfinite(values)
    return float(there[there.all(1).argmax() :].mean()) if there.all(1).any() else 0.0


def learning_curve(story: Story, edges: np.ndarray) -> Series:
    """Mean training returns `[K, M]` of the episodes that ended in each bin; NaN for a member without one."""
    centres = (edges[:-1] + edges[1:]) / 2
    values = np.full((len(centres), story.members), np.nan)
    for member in range(story.members):
        rows = [row for row in story.scores if row["member"] == member and row["return"] is not None]
        steps, scores = (np.array([row[name] for row in rows], float) for name in ("env_steps", "return"))
        found, means = binned(steps, scores[:, None], edges)
        values[np.isin(centres, found), member] = means[:, 0]
    return Series(story.label, story.index, centres, values)


def reached(curve: Series, mark: float) -> np.ndarray:
    """The environment steps `[M]` at which each member's curve is first at the `mark`; inf where it never is."""
    there = curve.values >= mark  # NaN is not
    return np.where(there.any(0), curve.steps[there.argmax(0)], np.inf)


def metric_curve(story: Story, name: str) -> Series:
    """A metric over the work done, in at most `METRIC_BINS` points."""
    edges = np.linspace(0, max(story.progress(), 1), METRIC_BINS + 1)
    return Series(story.label, story.index, *binned(*column(story, name), edges), story.unit)


def panels(group: list[Story], names: list[str]) -> list[Panel]:
    """A panel for each metric that some run has; metrics with equal values share one."""
    found: list[Panel] = []
    for name in names:
        series = [curve for story in group if np.isfinite((curve := metric_curve(story, name)).values).any()]
        title, note = words(name)
        twin = next((i for i, panel in enumerate(found) if _same(panel.series, series)), None)
        if twin is not None:
            found[twin] = found[twin]._replace(title=f"{found[twin].title} = {title}")
        elif series:
            found.append(Panel(title, note, series))
    return found


def _same(one: list[Series], other: list[Series]) -> bool:
    """Whether two metrics are equal in every run, and not constant."""
    return len(one) == len(other) and all(
        a.index == b.index and np.array_equal(a.values, b.values, equal_nan=True) and np.nanstd(a.values) > 0
        for a, b in zip(one, other, strict=True)
    )


def words(name: str) -> tuple[str, str]:
    """What a metric is called, and which direction is good ("" where that is not known)."""
    table, (step, _, rest) = data.read("metrics.toml"), name.partition("/")
    if name in table:
        return table[name][0], table[name][1]
    if rest in table:
        return f"{step}: {table[rest][0]}", table[rest][1]
    sensor = name.removeprefix("loss/rec/")
    return (f"reconstruction loss: {sensor}", "lower is better") if sensor != name else (name, "")
