"""Plots of dreams with matplotlib: truth and dream over time, and error by horizon."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxwm.studio.paper import BLACK, GREY, ORANGE
from jaxwm.studio.pictures import GREEN, SKY
from jaxwm.studio.study import LABELS, mean_and_band, unchanging

STYLES = {"dream": (ORANGE, "-", "o"), "shuffled": (SKY, "--", "s"), "copy": (GREEN, ":", "^")}
"""Colour, line and marker of every curve of an error plot."""


def traces(path: Path, title: str, names: Sequence[str], truth: Any, dream: Any, valid: Any) -> None:
    """A plot for each quantity (rows) and episode (columns): what happened and what was dreamed.
    `truth [B, L + H, D]`, `dream [B, H, D]`, `valid [B, H]`; nothing is drawn after an end. Step 0 was seen last."""
    count, horizon, rows = len(dream), dream.shape[1], len(names)
    context = truth.shape[1] - horizon
    figure = Figure((max(5.5, 1.2 + 2.1 * count), 1.0 + 1.1 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, count, sharex=True, sharey="row", squeeze=False)
    over = np.where(valid[..., None], 0, np.nan)
    then, ahead = np.arange(1 - context, horizon + 1), np.arange(1, horizon + 1)
    style = dict(marker=".", markersize=3) if horizon <= 20 else {}
    for b in range(count):
        real = truth[b] + np.concatenate([np.zeros((context, 1)), over[b]])
        for d in range(rows):
            axis = axes[d, b]
            axis.axvspan(1 - context, 0, color=GREY, alpha=0.2, lw=0, label="context")
            axis.plot(then, real[:, d], color=BLACK, lw=1.2, label="truth", **style)
            axis.plot(ahead, dream[b, :, d] + over[b, :, 0], color=ORANGE, lw=1.4, label="dream", **style)
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes[0, b].set_title(f"sequence {b + 1}", fontsize=9)
        axes[-1, b].set_xlabel("steps dreamed", fontsize=8)
    for d, name in enumerate(names):
        axes[d, 0].set_ylabel(name.replace(" ", "\n", 1) if len(name) > 12 else name, fontsize=8)
        if name == "continue":
            axes[d, 0].set_ylim(-0.05, 1.05)
    figure.suptitle(title, fontsize=10)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path)


def horizon_plot(path: Path, title: str, errors: Mapping[str, tuple[str, dict[str, np.ndarray]]]) -> None:
    """Mean error by step of the dream, with a band of 95 % for the mean.
    `errors` is `{quantity: (unit, {curve: error [B, H]})}` with NaN where an episode is over; curves as in `STYLES`."""
    columns = 2 if len(errors) == 4 else min(3, len(errors))
    rows = -(-len(errors) // columns)
    figure = Figure((0.6 + 3.9 * columns, 1.1 + 2.9 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, (unit, curves)) in zip(axes, errors.items(), strict=False):
        for curve, error in curves.items():
            colour, line, marker = STYLES[curve]
            mean, half = mean_and_band(error)
            steps = np.arange(1, len(mean) + 1)
            dots = dict(marker=marker, markevery=max(1, len(mean) // 10), markersize=4)
            axis.plot(steps, mean, line, color=colour, label=LABELS[curve], **dots)
            axis.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
        axis.set_title(name, fontsize=10)
        if unchanging(curves):
            axis.text(0.5, 0.5, f"{name} never changes here", transform=axis.transAxes, ha="center", fontsize=9)
        axis.set_xlabel("steps dreamed", fontsize=9)
        axis.set_ylabel(unit, fontsize=9)
        axis.set(xlim=(0.5, len(mean) + 0.5), ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axis.grid(color="#E5E5E5", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(errors) :]:
        axis.remove()
    figure.suptitle(title, fontsize=11)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3 if columns > 1 else 1, fontsize=9, frameon=False)
    figure.savefig(path)


def attention(path: Path, title: str, weights: np.ndarray, valid: np.ndarray) -> None:
    """How much each dreamed step owes to each record before it: a plot for each layer (rows) and sequence (columns).
    `weights [B, H, layers, L + H - 1]` are shares of one row, `valid [B, H]`. Step 0 was seen last."""
    count, horizon, layers, reach = weights.shape
    context = reach - horizon + 1
    size = max(5.5, 1.0 + 2.4 * count), 1.3 + 2.2 * layers * min(1.5, max(0.6, horizon / reach))
    figure = Figure(size, layout="constrained", dpi=110)
    axes = figure.subplots(layers, count, sharex=True, sharey=True, squeeze=False)
    future = np.arange(reach) > np.arange(horizon)[:, None] + context - 1
    extent = (0.5 - context, horizon - 0.5, horizon + 0.5, 0.5)
    for b in range(count):
        for layer in range(layers):
            axis, hidden = axes[layer, b], future | ~valid[b][:, None]
            shares = np.ma.masked_where(hidden, weights[b, :, layer])
            image = axis.imshow(shares, cmap="inferno", vmin=0, vmax=1, extent=extent, aspect="auto")
            axis.axvline(0.5, color=GREY, lw=1)
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes[0, b].set_title(f"sequence {b + 1}", fontsize=9)
        axes[-1, b].set_xlabel("step looked at (up to 0: seen)", fontsize=8)
    for layer in range(layers):
        axes[layer, 0].set_ylabel(f"layer {layer + 1}\nstep dreamed", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="share of attention", fraction=0.03)
    figure.savefig(path)
