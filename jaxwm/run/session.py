"""One run from start to end: build, compile, train with progress, checkpoint, evaluate.

A run directory is plain files: config.json, metrics.jsonl, scores.jsonl, evaluation.json, checkpoints/.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from jaxwm.run import checkpoint, cost, directory, json_files
from jaxwm.run.directory import EVALUATION
from jaxwm.run.load import build, judge, score
from jaxwm.run.machine import stoppable
from jaxwm.run.plan import Plan, read_plan
from jaxwm.run.writer import Silent, Writer, import_tensorboard
from jaxwm.training import processes
from jaxwm.training.evaluation import Scores
from jaxwm.training.life import Cursor, Report

CHUNK_SECONDS = float(os.environ.get("JAXWM_CHUNK_SECONDS", "1"))
"""How long a chunk should take: the pace of the progress display. Results do not depend on it."""


QUIET_SECONDS = 10.0
"""Time between progress lines where the output is no terminal."""


LOCK_SECONDS = 10.0
"""How long a resumed run waits for the process that had it before: one that was killed takes a moment to be gone."""


SKIP_LIMIT = 100
"""Skipped updates in a row, of any member, after which a run stops."""


RECENT = 20
"""Newest episodes of each member whose mean return decides which checkpoint is the best."""


class Diverged(ValueError):
    """Updates have not been finite for too long."""


class Run:
    """A run that is going on. `start` or `resume`, then `loop`, then `finish`."""

    def __init__(self, plan: Plan, folder: Path, lock: directory.Lock | None, console: Console):
        self.plan, self.folder, self.lock, self.console = plan, folder, lock, console
        if plan.tensorboard:
            import_tensorboard()  # missing? told before anything is computed
        if plan.score_options:
            judge(plan, plan.episodes)  # a wrong option is told now and not after training
        self.env, self.agent, self.trainer = build(plan)
        self.cursor, self.began, self.stopping = Cursor(), time.time(), False
        self.before = 0.0  # seconds of earlier sessions
        self.compile_seconds = 0.0
        self.warned = False
        self.recent: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(plan.members)]

    # --- Starting -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Check the memory, allocate, write config.json, open the files, compile. The folder exists."""
        self._card_before(self.trainer.footprint())
        self.life = self.trainer.init(self.plan.seed)
        if processes.first():
            directory.write_config(self.folder, self.plan.to_json())
        self._open()

    def resume(self) -> None:
        """Go on from the newest good checkpoint, or from the start if there is none yet. What was written after it is
        written again."""
        sizes = self.trainer.footprint()
        with checkpoint.Checkpoints(self.folder / directory.CHECKPOINTS, self.plan.keep) as checkpoints:
            checkpoints.check({"agent": sizes["state"], "rest/rings/real/data": sizes["replay"]["real"]})
            self._card_before(sizes)
            self.life = self.trainer.init(self.plan.seed)
            saved = checkpoints.restore(self.life) if checkpoints.steps() else None
        self._open()
        if saved is None:
            self.writer.truncate(dict.fromkeys(self.writer.offsets(), 0))
            self.console.print("the run stopped before its first checkpoint: starting it again")
            return
        self.life, self.cursor = self.trainer.restored(saved.life), saved.cursor
        self.checkpoints.saved = saved.cursor
        self.writer.truncate(saved.about["offsets"])
        self.before = saved.about["seconds"]
        processes.barrier("truncated")
        for row in json_files.read_jsonl(self.folder / directory.SCORES):
            self.recent[row["member"]].append(row["return"])
        self.console.print(f"resumed at {saved.step:,} environment steps")

    def _open(self) -> None:
        self.checkpoints = checkpoint.Checkpoints(self.folder / directory.CHECKPOINTS, self.plan.keep)
        self.writer = Writer(self.folder, self.plan.tensorboard) if processes.first() else Silent()
        began = time.time()
        with self.console.status("compiling (once; the result is cached)"):
            self.trainer.compile(self.life)
        self.compile_seconds = time.time() - began
        self.console.print(f"  compile time   {self.compile_seconds:.1f} s")

    def _card_before(self, sizes: dict[str, Any]) -> None:
        """The start-up card: sizes (a `Trainer.footprint`) and costs, before memory is taken."""
        copies = (
            self.trainer.spread.copies
        )  # devices that share updates hold all of the member; shards split the replay
        replay, state = copies * cost.tree_bytes(sizes["replay"]), cost.tree_bytes(sizes["state"])
        state *= copies * self.plan.shards
        _check_memory(state + replay)
        say = self.console.print
        say(f"[bold]{self.plan.agent}[/bold] on [bold]{self.plan.env}[/bold], {self.plan.members} members, seed "
            f"{self.plan.seed}, {jax.default_backend()}")  # fmt: skip
        say(f"  parameters     {sizes['parameters']:,} each")
        say(f"  agent state    {cost.human(state, 'B')}")
        say(f"  replay         {cost.human(replay, 'B')} for {self.trainer.capacity:,} steps of each member")
        for name, (fn, args) in sizes["updates"].items():
            say(f"  update {name:<7} {cost.human(cost.flops(fn, *args), 'FLOP')} each")
        spread = self.trainer.spread
        if spread.idle:
            noun = "device" if spread.idle == 1 else "devices"
            say(f"  idle           {spread.idle} {noun}: make --members a multiple of {spread.idle + spread.mesh.size}")
        need, free = 2 * state + replay, cost.available_memory()  # gradients and temporaries at least double the state
        if need > 0.9 * free:
            say(f"[bold red]  warning: {cost.human(need, 'B')} needed, {cost.human(free, 'B')} free:[/bold red] lower "
                "--capacity, --members or the preset")  # fmt: skip

    # --- Training -------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Train until the plan's steps are done or a signal asks to stop; saves on the way and at the end."""
        iterations, saved = 1, time.time()
        display = _Display(self.console, self.plan, int(self.life.counters.steps))
        with display, stoppable(self, "stopping after this chunk; a checkpoint will be saved"):
            while (left := self._left()) > 0:
                due = time.time() - saved > 60 * self.plan.checkpoint_minutes
                stop, (iterations, due) = processes.agree(self.stopping, iterations, due)
                if stop:  # a signal that comes while the processes agree counts next time
                    break
                if due:
                    self.save()
                    saved = time.time()
                began, segment = time.time(), self.cursor.segment
                self._advance(min(left, iterations), display)
                if segment != self.cursor.segment:  # another body has another pace
                    iterations = 1
                    continue
                pace = CHUNK_SECONDS / max(time.time() - began, 1e-3)
                iterations = int(np.clip(iterations * np.clip(pace, 0.25, 4), 1, self.trainer.max_iterations))
        self.stopping, _ = processes.agree(self.stopping)  # here signals are no longer caught
        self.save()
        self.checkpoints.wait()

    def _left(self) -> int:
        """Iterations until the plan's steps are done."""
        if self.trainer.finished(self.cursor):
            return 0
        each = self.trainer.steps_per_iteration(self.cursor)
        missing = self.plan.steps - int(self.life.counters.steps)
        return math.ceil(missing / each) if each else self.trainer.max_iterations

    def _advance(self, iterations: int, display: _Display) -> None:
        self.life, self.cursor, report = self.trainer.run(self.life, self.cursor, iterations)
        steps, updates = int(self.life.counters.steps), int(self.life.counters.updates)
        self.writer.scores(report.episodes)
        returns = self._returns(report)
        row = {"env_steps": steps, "updates": updates, "seconds": round(self.seconds(), 2), "return": returns}
        if report.metrics:
            gauge = self.trainer.gauge(self.life, self.plan.gauge) if self.plan.gauge else {}
            row |= {f"gauge/{name}": value for name, value in gauge.items()}
            row["skipped"] = processes.fetch(self.life.skipped.total)
        if self.trainer.restarts:
            row["env_restarts"] = self.trainer.restarts
        self.writer.metrics(row | report.metrics)
        display.update(steps, updates, returns, report.metrics)
        self._check_finite(report)

    def _check_finite(self, report: Report) -> None:
        """Say when updates are skipped; Diverged when a member had nothing else for `SKIP_LIMIT` updates."""
        if not report.faults:
            return
        runs, total = processes.fetch((self.life.skipped.run, self.life.skipped.total))
        member, steps = int(runs.argmax()), int(self.life.counters.steps)
        terms = ", ".join(name for name, count in report.faults.items() if count[member]) or ", ".join(report.faults)
        if runs[member] < SKIP_LIMIT:
            if not self.warned:
                self.warned = True
                warnings.warn(f"not finite at step {steps:,}: {terms}; such updates are skipped and counted "
                              f"(so far {total.tolist()} of the members)", stacklevel=2)  # fmt: skip
            return
        good = self.checkpoints.steps()
        where = f"the last good checkpoint is at step {good[-1]:,}" if good else "there is no checkpoint yet"
        raise Diverged(
            f"member {member} had {runs[member]} updates in a row that were not finite, until step {steps:,}: {terms}. "
            f"Lower --lr, or look for values that are not finite in observations and rewards; {where} in {self.folder}"
        )

    def _returns(self, report: Report) -> list[float | None]:
        """Mean return of each member's episodes in a chunk; None, not 0, where no episode ended."""
        members: list[list[float]] = [[] for _ in range(self.plan.members)]
        for episode in report.episodes:
            members[episode["member"]].append(episode["return"])
            self.recent[episode["member"]].append(episode["return"])
        return [float(np.mean(values)) if values else None for values in members]

    def seconds(self) -> float:
        """Wall time of the run, earlier sessions included."""
        return self.before + time.time() - self.began

    def save(self) -> None:
        about = {"offsets": self.writer.offsets(), "seconds": self.seconds()}
        score = float(np.mean([np.mean(seen) for seen in self.recent])) if all(self.recent) else -math.inf
        self.checkpoints.save(int(self.life.counters.steps), self.life, self.cursor, about, score)

    # --- The end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close files, checkpoints and environments. The directory stays locked until the evaluation is written."""
        self.writer.close()
        self.checkpoints.close()
        self.trainer.close()

    def finish(self) -> dict[str, Any]:
        """Evaluate greedily beside a random policy, write evaluation.json, print the table."""
        with self.console.status(f"evaluating {self.plan.episodes} episodes"):
            trained = score(self.plan, self.agent, self.life.agent, self.plan.episodes)
            chance = score(self.plan, self.agent, self.life.agent, self.plan.episodes, "random")
        steps = int(self.life.counters.steps)
        result = dict(
            env_steps=steps,
            updates=int(self.life.counters.updates),
            seconds=round(self.seconds(), 1),
            compile_seconds=round(self.compile_seconds, 1),
            episodes=self.plan.episodes,
            mode="greedy",
            trained=trained.means().tolist(),
            random=chance.means().tolist(),
            complete=bool(trained.complete.all()),
        )
        if processes.first():
            json_files.write_json(self.folder / EVALUATION, result)
        self.console.print(table(self.plan, trained, chance, steps))
        if not result["updates"]:
            self.console.print(f"nothing was learned: all {steps:,} steps came before the first update; raise --steps")
        return result


def table(plan: Plan, trained: Scores, chance: Scores, steps: int) -> Table:
    """Trained against random return of every member, and the minimum over members."""
    out = Table(title=f"{plan.env}: mean return of {trained.total.shape[1]} episodes after {steps:,} steps")
    for name in ("member", "trained (greedy)", "random"):
        out.add_column(name, justify="right")
    for m, (a, b) in enumerate(zip(trained.means(), chance.means(), strict=True)):
        out.add_row(str(m), f"{a:.2f}", f"{b:.2f}")
    out.add_section()
    out.add_row("minimum", f"{trained.means().min():.2f}", f"{chance.means().min():.2f}", style="bold")
    return out


def _check_memory(need: int) -> None:
    """ValueError where not even the state and the replay fit: the machine would end the program without a word."""
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()  # members are spread over devices
    free = cost.available_memory() * devices * jax.process_count()
    short, _ = processes.agree(need > free)
    if short:
        raise ValueError(
            f"the run needs more than {cost.human(need, 'B')} of memory and {cost.human(free, 'B')} are free: lower "
            "--capacity, --members or --envs, or take a smaller preset"
        )


class _Display:
    """The progress bar; plain lines now and then where the output is no terminal."""

    def __init__(self, console: Console, plan: Plan, steps: int):
        self.console, self.plan, self.live = console, plan, console.is_terminal
        columns = [
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            BarColumn(20),
            TextColumn("{task.fields[text]}"),
        ]
        self.progress = Progress(*columns, console=console, disable=not self.live, transient=True)
        self.task = self.progress.add_task("train", total=plan.steps, completed=steps, text="")
        self.recent: list[list[float]] = [[] for _ in range(plan.members)]
        self.marks: list[tuple[float, int, int]] = []
        self.told, self.shown = 0.0, steps  # when something was said, and of which step

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, steps: int, updates: int, returns: list[float | None], metrics: dict[str, np.ndarray]) -> None:
        now = time.time()
        for seen, value in zip(self.recent, returns, strict=True):
            if value is not None:
                seen.append(value)
                del seen[:-5]
        if metrics:  # speed and ETA are those of learning; the first chunk of it still warms up
            self.marks = [*self.marks[-20:], (now, steps, updates)]
        text = self._text(steps, metrics)
        self.progress.update(self.task, completed=min(steps, self.plan.steps), text=text)
        done = steps >= self.plan.steps > self.shown
        if not self.live and (done or now - self.told > QUIET_SECONDS):
            self.told, self.shown = now, steps
            self.console.print(f"{steps:>9,}/{self.plan.steps:,} steps  {text}", highlight=False, soft_wrap=True)

    def _text(self, steps: int, metrics: dict[str, np.ndarray]) -> str:
        parts = []
        if any(self.recent):
            means = [f"{np.mean(seen):.2f}" if seen else "-" for seen in self.recent[:8]]
            parts.append("return " + " ".join(means))
        parts += [f"{name[5:]} {metrics[name].mean():.3f}" for name in metrics if name in ("loss/rec", "loss/dyn")]
        if "loss" in metrics:
            parts.insert(1, f"loss {metrics['loss'].mean():.2f}")
        if len(self.marks) > 1:
            (t0, s0, u0), (t1, s1, u1) = self.marks[0], self.marks[-1]
            rate = (s1 - s0) / max(t1 - t0, 1e-6)
            left = max(0, self.plan.steps - steps) / max(rate, 1e-6)
            parts.append(f"{rate * self.plan.members:,.0f} steps/s")
            parts.append(f"{(u1 - u0) / max(t1 - t0, 1e-6) * self.plan.members:,.0f} updates/s")
            parts.append(f"ETA {int(left) // 60}:{int(left) % 60:02d}")
        return "  ".join(parts)


def train(plan: Plan, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """A whole run; the results of the evaluation. Raises what `rundir.create` raises, before anything is computed."""
    console = console or Console(quiet=not processes.first())
    with contextlib.ExitStack() as stack:
        lock = _in_first(lambda: stack.enter_context(directory.created(folder, LOCK_SECONDS)))
        run = Run(plan, folder, lock, console)
        run.start()
    return _complete(run)


def resume(folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Go on with the run in `folder` to the end of its plan. BlockingIOError where another process does so already."""
    plan = read_plan(folder)
    lock = _in_first(lambda: directory.lock(folder, wait=LOCK_SECONDS))
    with lock or contextlib.nullcontext():
        run = Run(plan, folder, lock, console or Console(quiet=not processes.first()))
        run.resume()
        return _complete(run)


def _in_first(action: Callable[[], directory.Lock]) -> directory.Lock | None:
    """What `action` gives in the first process, None in the others; none of them goes on where it fails."""
    lock, problem = None, None
    if processes.first():
        try:
            lock = action()
        except Exception as error:
            problem = error
    failed, _ = processes.agree(problem is not None)
    if problem:
        raise problem
    if failed:
        raise ValueError("the first process of this run could not start: see what it says")
    return lock


def _complete(run: Run) -> dict[str, Any]:
    with run.lock or contextlib.nullcontext():
        try:
            run.loop()
        finally:
            run.close()
        if run.stopping:
            run.console.print(f"stopped and saved; go on with: jaxwm resume {run.folder}")
            return {}
        return run.finish()
