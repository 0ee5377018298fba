"""The figures of a report. Arrays in, matplotlib figures out: no files, no global state of pyplot.

Letters: K points, M members. Colours are Okabe and Ito's, which colour-blind readers can distinguish."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

# More than seven runs: the colours repeat with another line style.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
STYLES = ("-", "--", "-.", ":")
GREY, GAP, DASHES = "#555555", "#F0F0EC", (0, (6, 3))
MOST_WITH_MEMBERS = 4  # more runs than this in one figure are drawn without a line for each member
NORMALISED = "human-normalised score"

STYLE: Any = rc_params_from_file(str(files("jaxwm.report.data") / "report.mplstyle"), use_default_template=False)
"""For `matplotlib.rc_context`, around drawing and saving."""


class Series(NamedTuple):
    """A quantity of the members of one run: `steps [K]`, `values [K, M]` with NaN where there is none.
    `index` is the place of the run in the report, which gives it its colour in every figure."""

    label: str
    index: int
    steps: np.ndarray
    values: np.ndarray
    unit: str = "environment steps"  # of `steps`: of recordings, updates


def units(counted: Sequence[Any]) -> str:
    """What series, runs or results count, in words."""
    return " or ".join(dict.fromkeys(each.unit for each in counted))


class Panel(NamedTuple):
    """A quantity of several runs, with its title and half a sentence on which direction is good."""

    title: str
    note: str
    series: list[Series]


def returns(title: str, series: list[Series], finals: list[Series], chance: float | None) -> Figure:
    """Learning curves of the runs of one environment, their evaluations (K = 1), and the random policy's return.
    With a single run the stretches in which not all members have an episode are shaded."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel=f"{units([*series, *finals])} per member", ylabel="return of an episode (raw)"
    )
    thin = len(series) <= MOST_WITH_MEMBERS
    for curve in series:
        _draw(axes, curve, members=thin, band=0.15 if thin else 0.06)
    gaps = _shade_gaps(axes, series[0]) if len(series) == 1 else False
    end = max((final.steps[0] for final in finals), default=0)
    for place, final in enumerate(finals, start=1):  # the mean, with a bar from the least to the greatest
        mean, color = final.values.mean(), _look(final.index)["color"]
        spread = [[mean - final.values.min()], [final.values.max() - mean]]
        at = final.steps[0] + 0.02 * place * end
        axes.errorbar(at, mean, spread, fmt="D", color=color, mec="white", ms=9, capsize=5, zorder=5)
    if chance is not None:
        axes.axhline(chance, color=GREY, linestyle=DASHES, linewidth=1.5)
    _ticks(axes, 7)
    handles = _run_handles([*series, *finals])
    handles += _meaning_handles(_several(series), thin, bool(finals), chance is not None)
    handles += [Patch(color=GAP, label="not every member has an episode here")] * gaps
    return _with_legend(figure, handles, 2)


def _shade_gaps(axes: Axes, curve: Series) -> bool:
    """Shade where some members have no point, between the first and the last point of any; whether there is such."""
    there = np.isfinite(curve.values)
    if not there.any():
        return False
    first, last = np.flatnonzero(there.any(1))[[0, -1]]
    half = (curve.steps[1] - curve.steps[0]) / 2 if len(curve.steps) > 1 else 0.5
    missing = curve.steps[first : last + 1][~there[first : last + 1].all(1)]
    for steps in missing:
        axes.axvspan(steps - half, steps + half, color=GAP, linewidth=0, zorder=0)
    return len(missing) > 0


def multiples(panels: list[Panel]) -> Figure:
    """A small figure for each quantity, with a line for each run."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(8, 4 * columns), 2.7 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        for curve in panel.series:
            _draw(axes, curve)
        axes.set_title(panel.title, loc="left", pad=18 if panel.note else 6)
        _note(axes, panel.note)
        _ticks(axes, 4)
        values = _finite(panel.series)
        if len(values) and values.min() > 0 and values.max() > 30 * values.min():
            axes.set_yscale("log")
    for axes in grid[len(panels) :]:
        axes.remove()
    series = [curve for panel in panels for curve in panel.series]
    figure.supxlabel(f"{units(series)} per member", fontsize=11)
    handles = _run_handles(series) + _meaning_handles(_several(series))
    return _with_legend(figure, handles, min(3, columns + 1))


def gauge(runs: list[list[Series]]) -> Figure:
    """Dreamed and real return from the same states, and their gap, three series for each run: a row of axes."""
    figure = Figure(figsize=(9, 3.2 * len(runs) + 0.4), layout="constrained")
    grid = figure.subplots(len(runs), 2, squeeze=False)
    names = {"dreamed return": COLORS[0], "real return": COLORS[3], "gap": COLORS[5]}
    for (left, right), series in zip(grid, runs, strict=True):
        for axes, curve, color in zip((left, left, right), series, names.values(), strict=True):
            _draw(axes, curve, members=True, color=color)
        right.axhline(0, color=GREY, linewidth=1.2)
        left.set(ylabel="return from the same states")
        left.set_title(series[0].label if len(runs) > 1 else "", loc="left")
        right.set(ylabel="gap (dreamed - real)")
        for axes, shown in ((left, series[:2]), (right, series[2:])):
            _ticks(axes, 5)
            _focus(axes, shown)
    figure.supxlabel(f"{units([series[0] for series in runs])} per member", fontsize=11)
    handles: list = [Line2D([], [], color=color, lw=2.2, label=name) for name, color in names.items()]
    handles += _meaning_handles(_several([series[2] for series in runs]), thin=True)
    return _with_legend(figure, handles, 3)


def _focus(axes: Axes, series: list[Series]) -> None:
    """Fit the vertical axis to all but the first tenth of the points where those would squeeze the rest; note it."""
    whole = _finite(series)
    later = _finite([curve._replace(values=curve.values[-(-len(curve.values) // 10) :]) for curve in series])
    if len(later) and 0 < 3 * np.ptp(later) <= np.ptp(whole):
        axes.set_ylim(later.min() - 0.1 * np.ptp(later), later.max() + 0.1 * np.ptp(later))
        _note(axes, f"first points from {whole.min():.3g} to {whole.max():.3g}")


def _draw(axes: Axes, curve: Series, members: bool = False, color: str | None = None, band: float = 0.15) -> None:
    """Mean over the members and the band from the least to the greatest, where all members have a value.
    A thin line for each member is drawn on request, and where the others have gaps."""
    look: Any = _look(curve.index) if color is None else {"color": color, "linestyle": "-"}
    values, there = curve.values, np.isfinite(curve.values)
    whole = np.where(there.all(1, keepdims=True), values, np.nan)
    marker = "." if len(curve.steps) <= 40 else ""  # a point between two gaps has no line
    axes.plot(curve.steps, whole.mean(1), marker=marker, linewidth=2.2, zorder=4, **look)
    if values.shape[1] > 1:
        axes.fill_between(curve.steps, whole.min(1), whole.max(1), color=look["color"], alpha=band, linewidth=0)
        if members or not there.all():
            axes.plot(curve.steps, values, linewidth=0.8, alpha=0.6, zorder=3, marker=marker, markersize=2, **look)


def _look(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": STYLES[index // len(COLORS) % len(STYLES)]}


def _with_legend(figure: Figure, handles: list, columns: int) -> Figure:
    """A legend above the axes; the figure grows by its height, so that the axes do not shrink."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.23 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=10)
    return figure


def _ticks(axes: Axes, most: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def _note(axes: Axes, text: str) -> None:
    """Small words above the left corner."""
    axes.annotate(text, (0, 1), (0, 4), "axes fraction", "offset points", color=GREY, fontsize=9)


def _finite(series: list[Series]) -> np.ndarray:
    values = np.concatenate([curve.values.ravel() for curve in series])
    return values[np.isfinite(values)]


def _several(series: list[Series]) -> bool:
    return any(curve.values.shape[1] > 1 for curve in series)


def _run_handles(series: list[Series]) -> list:
    """A legend entry for each run, where there are several."""
    runs = sorted({curve.index: curve.label for curve in series}.items())
    handles = [Line2D([], [], linewidth=2.2, label=label, **_look(index)) for index, label in runs]
    return handles if len(handles) > 1 else []


def _meaning_handles(several: bool, thin: bool = False, final: bool = False, chance: bool = False) -> list:
    """Legend entries for the marks that mean the same in every run, in grey."""
    handles = []
    if several:
        handles.append(Line2D([], [], color=GREY, linewidth=2.2, label="mean of the members"))
        handles += [Line2D([], [], color=GREY, linewidth=0.8, label="single member")] * thin
        handles.append(Patch(color=GREY, alpha=0.2, label="minimum to maximum of the members"))
    if final:
        label = "greedy evaluation" + " (minimum to maximum)" * several
        handles.append(Line2D([], [], color=GREY, marker="D", linestyle="", ms=8, label=label))
    if chance:
        handles.append(Line2D([], [], color=GREY, linestyle=DASHES, label="random policy"))
    return handles


def aggregates(numbers: dict[str, dict[str, Any]], ours: list[str]) -> Figure:
    """A panel for each aggregate, a row for each system: the estimate, and the interval where there is one.
    `numbers` are `{system: {aggregate: (value, low, high)}}`, `ours` the systems to set off by colour."""
    names, panels = list(numbers)[::-1], list(next(iter(numbers.values())))
    figure = Figure(figsize=(11, 0.28 * len(names) + 1.2), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=True):
        for place, name in enumerate(names):
            value, low, high = numbers[name][panel]
            color = COLORS[1] if name in ours else COLORS[0]
            axes.plot([value], [place], marker="D" if name in ours else "o", color=color, ms=6, zorder=4)
            axes.plot([low, high], [place, place], color=color, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.set_title(panel)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    grid[0].set_yticks(range(len(names)), names)
    figure.supxlabel(f"{NORMALISED}; bars are 95 % intervals", fontsize=11)
    return figure


def profiles(thresholds: np.ndarray, shares: dict[str, tuple[np.ndarray, Any]]) -> Figure:
    """The share of runs above each threshold `[K]`, with a band `(low, high)` where it is not None."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel=NORMALISED, ylabel="share of runs above it", ylim=(0, 1))
    axes.set_title("Performance profiles")
    handles = []
    for index, (name, (share, band)) in enumerate(shares.items()):
        look = _look(index)
        axes.plot(thresholds, share, linewidth=2.2, **look)
        handles.append(Line2D([], [], linewidth=2.2, label=name, **look))
        if band is not None:
            axes.fill_between(thresholds, *band, color=look["color"], alpha=0.2, linewidth=0)
    axes.axvline(1, color=GREY, linestyle=DASHES, linewidth=1.2)
    axes.text(1.03, 0.97, "human", color=GREY, va="top")
    _symlog(axes, 2, (0, 0.5, 1, 1.5, 2, 4, 8))
    return _with_legend(figure, handles, 3)


def bars(scores: dict[str, dict[str, np.ndarray]], label: str, logarithmic: bool = False) -> Figure:
    """The mean of every task of every system as a mark on a row of its own, with a line over its runs."""
    tasks = list(dict.fromkeys(task for each in scores.values() for task in each))
    first = next(iter(scores.values()))
    tasks.sort(key=lambda task: float(np.mean(first[task])) if task in first else -np.inf)
    figure = Figure(figsize=(8, 0.16 * len(tasks) * (1 + len(scores)) / 2 + 1.6), layout="constrained")
    axes = figure.add_subplot(xlabel=label, yticks=range(len(tasks)), yticklabels=tasks, ylim=(-0.6, len(tasks) - 0.4))
    height, handles, several = 0.7 / len(scores), [], False
    for index, (name, each) in enumerate(scores.items()):
        color = _look(index)["color"]
        handles.append(Patch(color=color, label=name))
        for i, runs in ((i, each[task]) for i, task in enumerate(tasks) if task in each):
            place = i + 0.35 - height * (index + 0.5)
            axes.barh(place, np.mean(runs), height, color=color, alpha=0.85, zorder=2)
            axes.plot([min(runs), max(runs)], [place, place], color="black", linewidth=1.0, zorder=3)
            several |= len(runs) > 1
    if logarithmic:
        axes.set_xscale("symlog", linthresh=1)
        low, high = axes.get_xlim()
        _symlog(axes, 1, [tick for tick in (-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high])
    else:  # a task on which no run is much better than chance would push the others aside
        axes.set_xlim(left=max(axes.get_xlim()[0], -1.05))
    axes.axvline(1, color=GREY, linestyle=DASHES, linewidth=1.2)
    axes.axvline(0, color=GREY, linewidth=1.0)
    handles += [Line2D([], [], color="black", linewidth=1.0, label="minimum to maximum of the seeds")] * several
    return _with_legend(figure, handles, 3)


def _symlog(axes: Axes, linear: float, ticks: Sequence[float]) -> None:
    """A logarithmic axis, linear up to `linear`, with these ticks."""
    axes.set_xscale("symlog", linthresh=linear)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
