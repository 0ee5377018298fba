"""Progress of a run: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

QUIET_SECONDS = 10.0
"""Time between progress lines where the output is no terminal."""

SHOWN = ("loss", "loss/rec", "loss/dyn")
"""Metrics that the progress shows, where they exist."""


class Stage(NamedTuple):
    """What a run is at: `done` of `total` units of work, and a title where it has several stages."""

    title: str
    done: int
    total: int
    unit: str


class Display:
    """Shows the stage of a run, recent returns, losses, speed and the time left in the stage."""

    def __init__(self, console: Console, members: int):
        self.console, self.members, self.live = console, members, console.is_terminal
        columns = [
            TextColumn("{task.fields[title]}{task.completed:,.0f}/{task.total:,.0f}{task.fields[unit]}"),
            BarColumn(20),
            TextColumn("{task.fields[text]}"),
        ]
        self.progress = Progress(*columns, console=console, disable=not self.live, transient=True)
        self.task = self.progress.add_task("train", total=1, text="", title="", unit="")
        self.recent: list[list[float]] = [[] for _ in range(members)]
        self.marks: list[tuple[float, int, int, int]] = []  # time, work of the stage, steps, updates
        self.last = Stage("", 0, 1, "")
        self.printed = 0.0

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(
        self, stage: Stage, steps: int, updates: int, returns: list[float | None], metrics: dict[str, np.ndarray]
    ) -> None:
        """Show where the run is after a chunk."""
        now = time.time()
        for seen, value in zip(self.recent, returns, strict=True):
            if value is not None:
                seen.append(value)
                del seen[:-5]
        if (stage.title, stage.unit) != (self.last.title, self.last.unit):
            self.marks = []
        began = bool(self.marks) and updates > 0 and self.marks[0][3] == 0 and bool(metrics)
        self.marks = [*([] if began else self.marks[-20:]), (now, stage.done, steps, updates)]  # learning is slower
        text = self._text(stage, metrics)
        unit = f" {stage.unit}" if stage.unit else ""
        self.progress.update(
            self.task, completed=stage.done, total=stage.total, text=text, title=stage.title, unit=unit
        )
        turn = stage.title != self.last.title or stage.done >= stage.total > self.last.done
        if not self.live and (turn or now - self.printed > QUIET_SECONDS):
            self.printed = now
            line = f"{stage.title}{stage.done:>{len(f'{stage.total:,}')},}/{stage.total:,}{unit}  {text}"
            self.console.print(line, highlight=False, soft_wrap=True)
        self.last = stage

    def _text(self, stage: Stage, metrics: dict[str, np.ndarray]) -> str:
        parts = []
        if any(self.recent):
            means = [f"{np.mean(seen):.2f}" if seen else "-" for seen in self.recent[:8]]
            parts.append("return " + " ".join(means))
        for name, value in metrics.items():
            if (short := name.split("/", 1)[-1] if name not in SHOWN else name) in SHOWN:
                parts.append(f"{short.removeprefix('loss/')} {np.nanmean(value):.3g}")
        if len(self.marks) > 1:
            (t0, w0, s0, u0), (t1, w1, s1, u1) = self.marks[0], self.marks[-1]
            seconds = max(t1 - t0, 1e-6)
            for name, rate in (("steps", (s1 - s0) / seconds), ("updates", (u1 - u0) / seconds)):
                if rate:
                    parts.append(f"{rate * self.members:,.0f} {name}/s")
            left = max(0, stage.total - stage.done) * seconds / max(w1 - w0, 1e-6)
            if w1 > w0:
                parts.append(f"ETA {int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}" if left >= 3600
                             else f"ETA {int(left) // 60}:{int(left) % 60:02d}")  # fmt: skip
        return "  ".join(parts)
