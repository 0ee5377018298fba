"""What a run shows: the card before it starts, and then its progress, as a bar on a terminal and as lines elsewhere."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxwm.run import cost
from jaxwm.run.plan import Plan
from jaxwm.training import processes
from jaxwm.training.trainer import Trainer
from jaxwm.types import Env

QUIET_SECONDS = 10.0  # time between progress lines where the output is no terminal
SHOWN = ("loss", "loss/rec", "loss/dyn")  # metrics that the progress shows, where they exist


def show_card(console: Console, plan: Plan, trainer: Trainer, sizes: dict[str, Any]) -> None:
    """Print sizes and costs (`sizes` are a `Trainer.footprint`). ValueError where not even state and replay fit."""
    copies = trainer.spread.copies  # each holds all of the member; shards split the replay
    replay, state = copies * cost.tree_bytes(sizes["replay"]), cost.tree_bytes(sizes["state"])
    state *= copies * plan.shards
    need, free = state + replay, cost.available_memory()
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()  # members are spread over devices
    all_free = free * devices * jax.process_count()
    if processes.agree(need > all_free)[0]:  # the machine would end the program without a word
        text = f"the run needs more than {cost.human(need, 'B')} of memory and {cost.human(all_free, 'B')} are free"
        raise ValueError(f"{text}: lower --capacity, --members or --envs, or take a smaller preset")
    say, noun = console.print, "member" if plan.members == 1 else "members"
    where = f"{plan.members} {noun}, seed {plan.seed}, {jax.default_backend()}"
    say(f"[bold]{plan.agent}[/bold] on [bold]{plan.task}[/bold], {where}")
    say(f"  parameters     {sizes['parameters']:,} each")
    say(f"  agent state    {cost.human(state, 'B')}")
    each = "steps of each member" if isinstance(trainer.source, Env) else "records, one copy for all members"
    say(f"  replay         {cost.human(replay, 'B')} for {trainer.capacity:,} {each}")
    for name in sizes["updates"]:
        say(f"  update {name:<7} {cost.human(trainer.work(name), 'FLOP')} each")
    if idle := trainer.spread.idle:
        noun = "device" if idle == 1 else "devices"
        say(f"  idle           {idle} {noun}: make --members a multiple of {idle + trainer.spread.mesh.size}")
    need += state  # gradients and temporaries at least double it
    if need > 0.9 * free:
        text = f"  warning: {cost.human(need, 'B')} needed, {cost.human(free, 'B')} free:"
        say(f"[bold red]{text}[/bold red] lower --capacity, --members or the preset")


class Stage(NamedTuple):
    """What a run is at: `done` of `total` units of work, and a title where it has several stages."""

    title: str
    done: int
    total: int
    unit: str


class Display:
    """Shows the stage of a run, recent returns, losses, speed and the time left in the stage, while in `progress`."""

    def __init__(self, console: Console, members: int):
        self.console, self.members, self.live = console, members, console.is_terminal
        counts = "{task.fields[title]}{task.completed:,.0f}/{task.total:,.0f}{task.fields[unit]}"
        columns = [TextColumn(counts), BarColumn(20), TextColumn("{task.fields[text]}")]
        self.progress = Progress(*columns, console=console, disable=not self.live, transient=True)
        self.task = self.progress.add_task("train", total=1, text="", title="", unit="")
        self.recent: list[list[float]] = [[] for _ in range(members)]
        self.marks: list[tuple[float, int, int, int]] = []  # time, work of the stage, steps, updates
        self.last = Stage("", 0, 1, "")
        self.printed = 0.0

    def update(
        self, stage: Stage, steps: int, updates: int, returns: list[float | None], metrics: dict[str, np.ndarray]
    ) -> None:
        """Show where the run is after a chunk."""
        now, (title, done, total, unit) = time.time(), stage
        for seen, value in zip(self.recent, returns, strict=True):
            if value is not None:
                seen[:] = [*seen[-4:], value]
        if (title, unit) != (self.last.title, self.last.unit):
            self.marks = []
        began = bool(self.marks) and updates > 0 and self.marks[0][3] == 0 and bool(metrics)
        self.marks = [*([] if began else self.marks[-20:]), (now, done, steps, updates)]  # learning is slower
        text, unit = self._text(stage, metrics), f" {unit}" if unit else ""
        self.progress.update(self.task, completed=done, total=total, text=text, title=title, unit=unit)
        turn = title != self.last.title or done >= total > self.last.done
        if not self.live and (turn or now - self.printed > QUIET_SECONDS):
            self.printed = now
            line = f"{title}{done:>{len(f'{total:,}')},}/{total:,}{unit}  {text}"
            self.console.print(line, highlight=False, soft_wrap=True)
        self.last = stage

    def _text(self, stage: Stage, metrics: dict[str, np.ndarray]) -> str:
        parts = []
        if any(self.recent):
            parts.append("return " + " ".join(f"{np.mean(seen):.2f}" if seen else "-" for seen in self.recent[:8]))
        for name, value in metrics.items():
            if (short := name if name in SHOWN else name.split("/", 1)[-1]) in SHOWN:
                parts.append(f"{short.removeprefix('loss/')} {np.nanmean(value):.3g}")
        if len(self.marks) > 1:
            seconds, work, *rates = np.subtract(self.marks[-1], self.marks[0]).tolist()
            seconds = max(seconds, 1e-6)
            for name, rate in zip(("steps", "updates"), rates, strict=True):
                if rate:
                    parts.append(f"{rate / seconds * self.members:,.0f} {name}/s")
            if work > 0:
                minutes, left = divmod(int(max(0, stage.total - stage.done) * seconds / work), 60)
                hours = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
                parts.append(f"ETA {hours}:{left:02d}")
        return "  ".join(parts)
