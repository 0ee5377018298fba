"""One run from start to end: build, compile, train with progress, checkpoint, evaluate."""

import contextlib
import math
import os
import shlex
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from jaxwm.run import checkpoint, directory, json_files, machine, profile, sinks
from jaxwm.run import load as loading
from jaxwm.run.display import Display, Stage, show_card
from jaxwm.run.plan import Plan, jax_settings, read_plan
from jaxwm.run.writer import Silent, Writer
from jaxwm.schedule import describe, updates_of
from jaxwm.training import processes
from jaxwm.training.host import EnvironmentDied
from jaxwm.training.life import Cursor, Life, Report
from jaxwm.training.stopwatch import Stopwatch, untimed
from jaxwm.types import Env

CHUNK_SECONDS = float(os.environ.get("JAXWM_CHUNK_SECONDS", "1"))
"""How long a chunk should take: the pace of the progress display. Results do not depend on it."""

LOCK_SECONDS = 10.0  # how long a resumed run waits for the one before: one that was killed takes a moment to be gone
SKIP_LIMIT = 100  # skipped updates in a row, of any member, after which a run stops
GAUGE_SHARE = 0.01  # most of a run's time that the gauge may take: where a dream is dear, it looks more seldom
RECENT = 20  # newest episodes of each member whose mean return decides which checkpoint is the best


class Diverged(ValueError):
    """Updates have not been finite for too long."""


class Budget:
    """A small share of the time, for something that may be done now or later. The first time compiles, and is free."""

    def __init__(self, share: float):
        self.share, self.spent = share, 0.0
        self.last: float | None = None

    def allows(self, seconds: float) -> bool:
        """Whether once more, if it takes as long as the last time, fits into the share of so many seconds."""
        return self.spent + (self.last or 0.0) <= self.share * seconds

    def spend(self, fn: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
        """`fn(*args)`, on this budget."""
        began = time.time()
        if found := fn(*args):
            self.last = 0.0 if self.last is None else time.time() - began
            self.spent += self.last
        return found


class Run:
    """A run that is going on. `start` or `resume`, then `loop`, then `finish`."""

    def __init__(self, plan: Plan, folder: Path, console: Console, sharing: bool | None = None):
        """`sharing` is what was decided when the run began; see `Trainer`."""
        self.plan, self.folder, self.console = plan, folder, console
        sinks.check(plan.log)  # reports a missing library before anything is computed
        if plan.score_options:
            loading.scoring_env(plan, plan.episodes)  # a wrong option is an error now and not after training
        self.measure = Stopwatch() if plan.profile else untimed
        self.source, self.agent, self.trainer = loading.build(plan, measure=self.measure, sharing=sharing)
        self.acts = isinstance(self.source, Env)  # else it learns from recordings, and has no environment steps
        self.cursor, self.began, self.stopping = Cursor(), time.time(), False
        self.before = self.compile_seconds = 0.0  # of earlier sessions, too
        self.gauge = Budget(GAUGE_SHARE)
        self.warned: set[str] = set()
        self.recent: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(plan.members)]

    @property
    def done(self) -> tuple[int, int]:
        """Environment steps and updates of each member so far."""
        return int(self.life.counters.steps), int(self.life.counters.updates)

    def start(self) -> None:
        """Check the memory, allocate, write config.json, open the files, compile. The folder exists."""
        show_card(self.console, self.plan, self.trainer, self.trainer.footprint())
        self._init()
        self._write_config()
        self._open()

    def _write_config(self) -> None:
        """The plan, and whether devices share updates: other code might decide otherwise, and round otherwise."""
        if processes.first():
            directory.write_config(self.folder, self.plan.to_json() | {"sharing": self.trainer.sharing})

    def _init(self, begin: bool = True) -> None:
        """A fresh life, with the weights of another run where the plan says so."""
        self.life = self.trainer.init(self.plan.seed)
        if self.plan.start and begin:
            state = loading.begin(self.plan, processes.fetch(self.life.agent))
            self.console.print(f"  weights        of {self.plan.start}")
            place = lambda new, old: jax.device_put(jax.numpy.copy(new), old.sharding)  # noqa: E731
            self.life = self.life._replace(agent=jax.tree.map(place, state, self.life.agent))

    def resume(self, old: Plan) -> None:
        """Go on from the newest good checkpoint, or from the start if there is none yet. What was written after it is
        written again. `old` is the plan by which the checkpoint was written; this one may be longer."""
        sizes = self.trainer.footprint()
        rows = loading.capacity(old, self.source) // self.source.num_envs
        with checkpoint.Checkpoints(self.folder / directory.CHECKPOINTS, self.plan.keep) as checkpoints:
            grows = self.acts and rows != self.trainer.capacity // self.source.num_envs
            held = partial(_held, rows=rows) if grows else lambda data: data
            replay = held(sizes["replay"]["real"])
            checkpoints.check({"agent": sizes["state"], "rest/rings/real/data": replay})
            show_card(self.console, self.plan, self.trainer, sizes)
            there = bool(checkpoints.steps())
            self._init(begin=not there)
            saved = checkpoints.restore(_with_ring(self.life, held(self.life.ring.data))) if there else None
        if self.plan != old and processes.first():
            (self.folder / directory.EVALUATION).unlink(missing_ok=True)  # it is no longer finished
            self._write_config()
        if saved is None:
            self._open(fresh=False)
            self.writer.truncate(dict.fromkeys(self.writer.offsets(), 0))
            self.console.print("the run stopped before its first checkpoint: starting it again")
            return
        grown = jax.tree.map(_grow, saved.life.ring.data, self.life.ring.data)
        self.life, self.cursor = _with_ring(saved.life, grown), saved.cursor
        self.before, self.compile_seconds = saved.about["seconds"], saved.about.get("compile_seconds", 0.0)
        self._open(fresh=False)
        self.life = self.trainer.restored(self.life)
        self.checkpoints.saved = saved.cursor
        self.writer.truncate(saved.about["offsets"])
        processes.barrier("truncated")
        for row in json_files.read_jsonl(self.folder / directory.SCORES):
            self.recent[row["member"]].append(row["return"])
        self.console.print(f"resumed at {self._where()}")

    def _where(self) -> str:
        """How far the run is, in words."""
        steps, updates = self.done
        return f"{steps:,} environment steps" if self.acts else f"{updates:,} updates"

    def _open(self, fresh: bool = True) -> None:
        self.writer = self._writer(fresh)
        self.checkpoints = checkpoint.Checkpoints(self.folder / directory.CHECKPOINTS, self.plan.keep)
        began = time.time()
        with self.console.status("compiling (once; the result is cached)"):
            self.trainer.compile(self.life)
        self.console.print(f"  compile time   {(seconds := time.time() - began):.1f} s")
        self.compile_seconds += seconds

    def _writer(self, fresh: bool) -> Any:
        """The files of the run and its sinks, in the first process; `fresh` where the run begins here."""
        if not processes.first():
            return Silent()
        opened = sinks.opened(self.plan.log, self.folder, self.plan.to_json(), fresh)
        for hint in sinks.hints(opened, self.folder):
            self.console.print(f"  log            {escape(hint)}", soft_wrap=True, highlight=False)
        return Writer(self.folder, opened)

    def loop(self) -> None:
        """Train until the plan's steps are done or a signal asks to stop; saves on the way and at the end."""
        iterations, saved, first = 1, time.time(), time.time()
        display = Display(self.console, self.plan.members)
        with display.progress, machine.stoppable(self, "stopping after this chunk; a checkpoint will be saved"):
            while (left := self._left()) > 0:
                due = time.time() - saved > 60 * self.plan.checkpoint_minutes
                look = self.gauge.allows(time.time() - first)
                stop, (iterations, due, look) = processes.agree(self.stopping, iterations, due, look)
                if stop:  # a signal that comes while the processes agree counts next time
                    break
                if due:
                    self.measure("save", self.save)
                    saved = time.time()
                began, segment = time.time(), self.cursor.segment
                self._advance(min(left, iterations), display, bool(look))
                if segment != self.cursor.segment:  # another body has another pace
                    iterations = 1
                    continue
                pace = CHUNK_SECONDS / max(time.time() - began, 1e-3)
                iterations = int(np.clip(iterations * np.clip(pace, 0.25, 4), 1, self.trainer.max_iterations))
        self.stopping, _ = processes.agree(self.stopping)  # here signals are no longer caught
        self.measure("save", self.save)
        self.measure("save", self.checkpoints.wait)
        if isinstance(self.measure, Stopwatch) and processes.first():
            self.console.print(profile.write(self.folder, self.measure, time.time() - first))

    def _left(self) -> int:
        """Iterations until the plan is done."""
        if self.trainer.finished(self.cursor):
            return 0
        steps, updates = self.done
        if self.plan.updates is not None and updates >= self.plan.updates:
            return 0
        segment, each = self.trainer.segments[self.cursor.segment], self.trainer.steps_per_iteration(self.cursor)
        left = self.trainer.max_iterations
        if self.plan.steps is not None and each:
            left = math.ceil((self.plan.steps - steps) / each)
        if self.plan.updates is not None and (most := updates_of(segment.body)):
            left = min(left, math.ceil((self.plan.updates - updates) / most))
        return left

    def _stage(self) -> Stage:
        """What the run is at, in the work of its own schedule."""
        if self.trainer.finished(self.cursor):
            return Stage("done", 1, 1, "")
        segment, count = self.trainer.segments[self.cursor.segment], len(self.trainer.segments)
        steps, updates = self.done
        if self.plan.steps is not None and self.trainer.steps_per_iteration(self.cursor):
            return Stage("", min(steps, self.plan.steps), self.plan.steps, "steps")
        if self.plan.updates is not None and updates_of(segment.body) and segment.times > self.plan.updates:
            return Stage("", min(updates, self.plan.updates), self.plan.updates, "updates")
        name = f"stage {self.cursor.segment + 1} of {count}, {', '.join(map(describe, segment.body))}: "
        return Stage(name, self.cursor.iteration, segment.times, "")

    def _advance(self, iterations: int, display: Display, look: bool) -> None:
        """Train a chunk and write what it says; `look` at the gauge too, where there is one."""
        self.life, self.cursor, report = self.trainer.run(self.life, self.cursor, iterations)
        steps, updates = self.done
        self.writer.scores(report.episodes)
        returns = self._returns(report)
        row: dict[str, Any] = {"env_steps": steps} if self.acts else {}
        row |= {"updates": updates, "seconds": round(self.seconds(), 2), "return": returns}
        if report.metrics:
            if look and self.plan.gauge:
                gauge = self.gauge.spend(self.trainer.gauge, self.life, self.plan.gauge)
                row |= {f"gauge/{name}": value for name, value in gauge.items()}
            row["skipped"] = processes.fetch(self.life.skipped.total)
        row |= {f"episode/{name}": value for name, value in report.played.items()}
        if self.trainer.restarts:
            row["env_restarts"] = self.trainer.restarts
        if replaced := self.trainer.replaced(self.life):
            row["replaced"] = replaced
            text = f"{self.source.spec.name} gave numbers that are not finite in {replaced:,} steps so far"
            text = f"{text}: each is taken as 0, and metrics.jsonl counts the steps (replaced)"
            self._warn_once("replaced", text)
        self.writer.metrics(row | report.metrics)
        display.update(self._stage(), steps, updates, returns, report.metrics)
        self._check_finite(report)

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(text, stacklevel=3)

    def _check_finite(self, report: Report) -> None:
        """Say when updates are skipped; Diverged when a member had nothing else for `SKIP_LIMIT` updates."""
        if not report.faults:
            return
        runs, total = processes.fetch((self.life.skipped.run, self.life.skipped.total))
        member, at = int(runs.argmax()), self._where()
        terms = ", ".join(name for name, count in report.faults.items() if count[member]) or ", ".join(report.faults)
        if runs[member] < SKIP_LIMIT:
            text = f"not finite after {at}: {terms}; such updates are skipped and counted"
            return self._warn_once("skipped", f"{text} (so far {total.tolist()} of the members)")
        text = f"member {member} had {runs[member]} updates in a row that were not finite, until {at}: {terms}"
        text = f"{text}. Lower --lr, or look for values that are not finite in observations and rewards"
        raise Diverged(f"{text}; {self.safe()} in {self.folder}")

    def safe(self) -> str:
        """What is saved, in words."""
        good = self.checkpoints.steps()
        return f"the last good checkpoint is at step {good[-1]:,}" if good else "there is no checkpoint yet"

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
        """Write a checkpoint of where the run is now."""
        times = {"seconds": self.seconds(), "compile_seconds": self.compile_seconds}
        about = {"offsets": self.writer.offsets(), **times}
        score = float(np.mean([np.mean(seen) for seen in self.recent])) if all(self.recent) else -math.inf
        self.checkpoints.save(self.done[0 if self.acts else 1], self.life, self.cursor, about, score)

    def close(self) -> None:
        """Close files, checkpoints and environments. The directory stays locked until the evaluation is written."""
        self.writer.close()
        self.checkpoints.close()
        self.trainer.close()

    def finish(self) -> dict[str, Any]:
        """Score the agent, write evaluation.json, print the table: returns next to a random policy's where the agent
        acts, and its own scores on held-out recordings."""
        plan, (steps, updates) = self.plan, self.done
        result: dict[str, Any] = {"env_steps": steps} if self.acts else {}
        result |= dict(updates=updates, seconds=0.0, compile_seconds=round(self.compile_seconds, 1))
        with self.console.status(f"evaluating {plan.episodes} episodes"):
            scores, complete = loading.scores(plan, self.agent, processes.fetch(self.life.agent), plan.episodes)
        if "return" in scores:
            result |= dict(episodes=plan.episodes, mode="greedy", **scores["return"], complete=complete)
        result |= dict(seconds=round(self.seconds(), 1), scores=scores)
        if processes.first():
            json_files.write_json(self.folder / directory.EVALUATION, result)
        self.console.print(table(plan, scores, self._where()))
        if text := _advice(plan, scores, updates, self.folder):
            self.console.print(text, soft_wrap=True)
        return result


def _advice(plan: Plan, scores: dict[str, dict[str, Any]], updates: int, folder: Path) -> str:
    """What to do about a policy that learned nothing, or plays worse than a random one; "" for others."""
    if not updates:
        return "nothing was learned: the run ended before its first update; raise --steps"
    worse = [m for m, (a, b) in enumerate(zip(*scores.get("return", {}).values(), strict=True)) if a < b]
    if not worse:
        return ""
    who = "every member" if len(worse) == plan.members else f"member {', '.join(map(str, worse))}"
    command = f"{machine.program()} eval {shlex.quote(str(folder))} --mode explore"
    text = f"below random play: the greedy policy of {who}. It may need more steps, or a look at how the"
    return f"{text} exploring policy does: {escape(command)}"


def _with_ring(life: Life, data: Any) -> Life:
    return life._replace(rings=life.rings | {"real": life.ring._replace(data=data)})


def _held(data: Any, rows: int) -> Any:
    """The shapes of a replay `[M, P, ...]` as it was before a longer plan made it larger: of `rows` rows."""
    shape = lambda x: (x.shape[0], rows, *x.shape[2:])  # noqa: E731
    place = lambda x: getattr(x, "sharding", None)  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x), x.dtype, sharding=place(x)), data)


def _grow(old: Any, new: Any) -> Any:
    """The rows `[M, P, ...]` of a smaller replay in one of the shape and place of `new`."""
    if old.shape == new.shape:
        return old
    more = [(0, 0), (0, new.shape[1] - old.shape[1])] + [(0, 0)] * (old.ndim - 2)
    return jax.jit(lambda x: jax.numpy.pad(x, more), out_shardings=new.sharding)(old)


def table(
    plan: Plan, scores: dict[str, dict[str, Any]], where: str, mode: str = "greedy", episodes: int | None = None
) -> Table:
    """The named scores of every member, and the worst; a return next to that of random play. What an environment
    counts one by one (`achievement/eat_cow`) is left to evaluation.json and the report."""
    acts = "return" in scores
    what = f"{plan.env}: mean return of {episodes or plan.episodes} episodes" if acts else plan.task
    columns = {f"trained ({mode})": scores["return"]["trained"], "random": scores["return"]["random"]} if acts else {}
    columns |= {name: found["trained"] for name, found in scores.items() if name != "return" and "/" not in name}
    out = Table(*(Column(head, justify="right") for head in ("member", *columns)), title=f"{what} after {where}")
    for m in range(plan.members):
        out.add_row(str(m), *(f"{column[m]:.2f}" for column in columns.values()))
    if acts:
        out.add_section()
        out.add_row("minimum", *(f"{min(column):.2f}" for column in columns.values()), style="bold")
    return out


def train(plan: Plan, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """A whole run; the results of the evaluation. Raises as `directory.create`, before anything is computed."""
    console = console or Console(quiet=not processes.first())
    with contextlib.ExitStack() as stack:
        lock = _in_first(lambda: stack.enter_context(directory.created(folder, LOCK_SECONDS)))
        run = Run(plan, folder, console)
        run.start()
    with lock:
        return _complete(run)


def resume(
    folder: Path, console: Console | None = None, steps: int | None = None, updates: int | None = None
) -> dict[str, Any]:
    """Go on with the run in `folder` to the end of its plan, or of one with more `steps` or `updates`. BlockingIOError
    where another process is working on it, ValueError where it was longer before."""
    console = console or Console(quiet=not processes.first())
    old = read_plan(folder)
    _check_same_jax(folder)
    plan = _longer(old, steps, updates)
    if plan == old and (folder / directory.EVALUATION).exists():
        longer = f"{machine.resume_command(folder)} {'--steps' if old.steps else '--updates'} N"
        text = f"{folder} is finished: nothing to do. Train it longer with `{longer}`"
        console.print(f"{text}, or score it again with `eval`", soft_wrap=True)
        return json_files.read_json(folder / directory.EVALUATION)
    lock = _in_first(lambda: directory.lock(folder, wait=LOCK_SECONDS))
    with lock:
        run = Run(plan, folder, console, directory.read_config(folder).get("sharing"))
        run.resume(old)
        return _complete(run)


def _check_same_jax(folder: Path) -> None:
    """ValueError where a setting of JAX on which a run's numbers depend is not the one that the run began with."""
    now = jax_settings()
    for name, before in directory.read_config(folder).get("jax_settings", now).items():
        if now.get(name) != before:
            text = f"{folder} was begun with {name}={before}, and now it is {now.get(name)}"
            raise ValueError(f"{text}: set {name.upper()} as it was, or its numbers would change")


def _longer(plan: Plan, steps: int | None, updates: int | None) -> Plan:
    """The plan with another length. ValueError where it is shorter than it was."""
    for name, value in (("steps", steps), ("updates", updates)):
        if value is not None:
            before = getattr(plan, name)
            if before is None or value < before:
                text = f"the run was planned with {before} {name}"
                raise ValueError(f"{text}: --{name} must be at least as many, not {value}")
            plan = replace(plan, **{name: value})
    return plan


def _in_first(action: Callable[[], contextlib.ExitStack]) -> contextlib.ExitStack:
    """The lock that `action` takes in the first process; none of the processes goes on where it fails."""
    lock, problem = contextlib.ExitStack(), None
    if processes.first():
        try:
            lock = action()
        except Exception as error:
            problem = error
    failed, _ = processes.agree(problem is not None)
    if failed:
        raise problem or ValueError("the first process of this run could not start: see what it says")
    return lock


def _complete(run: Run) -> dict[str, Any]:
    try:
        return _to_the_end(run)
    except EnvironmentDied as error:
        way = f"{run.safe()}: when it works again, go on with `{machine.resume_command(run.folder)}`"
        raise EnvironmentDied(f"{error}; {way}") from error


def _to_the_end(run: Run) -> dict[str, Any]:
    with contextlib.closing(run):
        run.loop()
    if run.stopping:
        run.console.print(f"stopped and saved; go on with: {machine.resume_command(run.folder)}")
        return {}
    return run.finish()
