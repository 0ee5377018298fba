"""Sweeps on Ray: one task is one compiled population on one device, of this machine or of a cluster.

Ray only finds a free device and starts a process there. All state is in the run directories, which every machine must
see under the same path: the driver reads progress from them, and whoever does a task holds the lock of its directory.
So the driver, a worker or a machine may die at any time; a task that is done again goes on from its checkpoint."""

import contextlib
import importlib.util
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from jaxwm.run import directory, machine, sweep
from jaxwm.run.plan import Plan

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0  # how long Ctrl-C waits for running tasks to save
KNOCK_SECONDS = 10.0  # how long a cluster may take to answer
PACE_SECONDS = 60.0  # stretch over which speed is measured
QUIET_SECONDS = 60.0  # time between progress lines where the output is no terminal and nothing else happens
LIVE_ROWS = 20  # most tasks of the live table; the others are counted
STATES = ("running", "failed", "queued", "stopped", "done")  # of a task, in the order of the live table
STOPPING = "stopping: running tasks save their state (Ctrl-C again to leave at once)"


def available() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def work(plan: dict[str, Any], folder: str, log: str, file: str, cores: int, cpu: bool) -> dict[str, Any]:
    """Do a task in this process, printing to `log`. `{"result": evaluation}`, {} when stopped, or what went wrong:
    `{"error": message, "retry": bool}`; errors travel as text, because not all of them can be pickled."""
    if cpu:  # Ray hides no GPUs from a task that asked for none
        jax.config.update("jax_platforms", "cpu")
    machine.use_compilation_cache()
    machine.use_cores(plan["members"], cores, plan["shards"])
    with open(log, "a", buffering=1, encoding="utf-8") as out, contextlib.redirect_stderr(out):
        print(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} on {socket.gethostname()}, process {os.getpid()}", file=out)
        try:
            if file:
                sweep.load(Path(file))  # it may register environments
            found = sweep.perform(Plan.from_json(plan), Path(folder), Console(file=out, width=120))
        except Exception as error:
            print(f"failed: {sweep.message(error)}", file=out)
            return {"error": sweep.message(error), "retry": sweep.worth_retrying(error)}
    return {"result": found} if found else {}


@dataclass
class Task:
    """A task as the driver sees it."""

    name: str
    plan: Plan
    folder: Path
    log: Path
    state: str = "queued"
    attempts: int = 0
    log_size: int = 0
    note: str = ""
    steps: int = 0

    @property
    def length(self) -> int:
        """Environment steps of the whole task; updates where it learns from recordings."""
        return self.plan.steps or self.plan.updates or 0

    @property
    def open(self) -> bool:
        """Whether something is still to be done."""
        return self.state in ("queued", "running")

    def logged(self) -> int:
        """Bytes of its log."""
        return self.log.stat().st_size if self.log.exists() else 0

    def look(self) -> None:
        """Read from its files how far it is: its steps are in the last whole line of metrics.jsonl."""
        if self.state == "queued" and self.logged() > self.log_size:
            self.state = "running"
        with contextlib.suppress(OSError, ValueError, LookupError):  # there is no such line yet
            if self.open:
                with open(self.folder / directory.METRICS, "rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
                    row = json.loads(file.read().split(b"\n")[-2])
                self.steps = max(self.steps, int(row.get("env_steps", row["updates"])))


def on_ray(
    plans: dict[str, Plan], root: Path, retries: int, console: Console, file: Path | None = None,
    address: str | None = None, cores: int = 1, gpus: int | None = None,
) -> sweep.Outcome:  # fmt: skip
    """All tasks, side by side as the devices allow, for `sweep.sweep`. Workers load `file` first; each task gets
    `cores` and `gpus` (None: one where the cluster has any). ConnectionError where no cluster answers at the address,
    ValueError where no task would ever fit."""
    out = sweep.Outcome({name: found for name in plans if (found := sweep.outcome(root / name))})
    logs = root / sweep.LOGS
    logs.mkdir(exist_ok=True)
    left = {name: plan for name, plan in plans.items() if name not in out.results}
    todo = [Task(n, p, (root / n).absolute(), (logs / f"{n}.txt").absolute()) for n, p in left.items()]
    if not todo:
        return out
    with _ray(address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        rest = (str(file.absolute()) if file else "", cores, gpus == 0)
        gpus = _gpus(todo, gpus, nodes)
        side = _side(cores, gpus, nodes)
        each = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cores} core{'s' * (cores > 1)}"
        console.print(f"{len(todo)} tasks, up to {side} at once with {each} each; what they print is in {logs}")
        # one process a task: JAX sees only its device, and the memory is free again afterwards
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_calls=1, max_retries=0)(work).remote
        start = lambda task: remote(task.plan.to_json(), str(task.folder), str(task.log), *rest)  # noqa: E731
        _Driver(ray, start, retries, console, len(plans), out).loop(todo)
    return out


def _gpus(tasks: list[Task], wanted: int | None, nodes: list[dict[str, float]]) -> int:
    """GPUs of each task: as many as the largest has shards, unless told. ValueError where that is too few."""
    shards = max(task.plan.shards for task in tasks)
    if wanted is None:
        return shards if any(node.get("GPU", 0) for node in nodes) else 0
    if 0 < wanted < shards:
        raise ValueError(f"a run of this experiment has {shards} shards, each on a GPU of its own: --gpus {shards}")
    return wanted


def _side(cores: int, gpus: int, nodes: list[dict[str, float]]) -> int:
    """How many tasks fit at once, each on one machine. ValueError where not even one does."""
    fits = [min(node.get("CPU", 0) // cores, node.get("GPU", 0) // gpus if gpus else math.inf) for node in nodes]
    if not (side := int(sum(fits))):
        have = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
        wants = f"a task wants {cores} cores and {gpus} GPUs"
        raise ValueError(f"{wants}, the machines have {have}: lower --cores or --gpus")
    return side


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at the address, or started here on the loopback interface alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15 tasks starve beside anything else
    import ray

    quiet: Any = dict(log_to_driver=False, configure_logging=False)
    try:
        if address:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if host and port.isdigit():  # where nothing listens Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
            ray.init(address, **quiet)
        else:
            here = dict(_node_ip_address="127.0.0.1", include_dashboard=False, object_store_memory=100 * 2**20)
            ray.init("local", **here, **quiet)
    except Exception as error:
        where, way = "Ray does not start", "run the tasks in this process with --no-ray"
        if address:
            where = f"no Ray cluster answers at {address}"
            way = "start one with `ray start --head`, or leave --address out to use this machine"
        raise ConnectionError(f"{where} ({sweep.message(error)}): {way}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Driver:
    """Hands tasks out, watches them, and tries those again that failed. `start(task)` begins one and returns Ray's
    reference of its result."""

    def __init__(self, ray: Any, start: Any, retries: int, console: Console, count: int, out: sweep.Outcome):
        self.ray, self.start, self.retries, self.console = ray, start, retries, console
        self.out, self.count = out, count
        self.stopping, self.told, self.said = False, 0.0, ""
        self.marks: list[tuple[float, int]] = []

    def loop(self, tasks: list[Task]) -> None:
        """All tasks to their end, or until a signal asks to stop."""
        running = {self._submit(task): task for task in tasks}
        live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        with live or contextlib.nullcontext(), machine.stoppable(self, STOPPING):
            while running and not self.stopping:
                ready, _ = self.ray.wait(list(running), timeout=POLL_SECONDS)
                for reference in ready:
                    task = running.pop(reference)
                    if self._again(task, reference):
                        running[self._submit(task)] = task
                self._show(tasks, live)
            if self.stopping:
                self._stop(running)
        self._show(tasks, None, last=True)

    def _submit(self, task: Task) -> Any:
        task.state, task.attempts, task.log_size = "queued", task.attempts + 1, task.logged()
        return self.start(task)

    def _again(self, task: Task, reference: Any) -> bool:
        """Take note of the end of an attempt; whether another one follows."""
        try:
            found: dict[str, Any] = self.ray.get(reference)
        except Exception as error:  # the process or its machine died, or was killed for lack of memory
            found = {"error": sweep.message(error)}
        if result := found.get("result"):
            task.state, task.steps = "done", task.length
            self.out.results[task.name] = result
            self.console.print(f"{escape(task.name)}: {sweep.summary(result)}")
            return False
        task.note = found.get("error") or "stopped by a signal"
        if again := bool(found.get("retry", True)) and task.attempts <= self.retries:
            how = f"attempt {task.attempts + 1} of {self.retries + 1} goes on from its checkpoint"
            self.console.print(f"[yellow]{escape(task.name)}: {escape(task.note)}; {how}[/yellow]")
        else:
            task.state, self.out.failures[task.name] = "failed", f"{task.note} (see {task.log})"
            self.console.print(f"[red]{escape(task.name)} failed: {escape(self.out.failures[task.name])}[/red]")
        return again

    def _stop(self, running: dict[Any, Task]) -> None:
        """Ask running tasks to save and end; those that are queued never start."""
        self.out.stopped = True
        for reference in running:
            self.ray.cancel(reference, force=False)
        with contextlib.suppress(KeyboardInterrupt):
            self.ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)
        for task in running.values():
            task.state = "stopped"

    def _show(self, tasks: list[Task], live: Live | None, last: bool = False) -> None:
        for task in tasks:
            task.look()
        line = self._line(tasks)
        if live:
            live.update(Group(_rows(tasks), line))
        elif last or time.monotonic() - self.told > QUIET_SECONDS or line.split("  ")[0] != self.said:
            self.told, self.said = time.monotonic(), line.split("  ")[0]
            self.console.print(line, highlight=False, soft_wrap=True)

    def _line(self, tasks: list[Task]) -> str:
        """Counts, speed and the time that is left."""
        states = [task.state for task in tasks]
        counts = {state: states.count(state) for state in ("queued", "running", "stopped")}
        counts |= {"done": len(self.out.results), "failed": states.count("failed")}
        parts = [f"{number} {state}" for state, number in counts.items() if number or state in ("running", "done")]
        text = f"of {self.count} tasks: {', '.join(parts)}"
        now, done = time.monotonic(), sum(task.steps * task.plan.members for task in tasks)
        self.marks = [mark for mark in self.marks if now - mark[0] < PACE_SECONDS] + [(now, done)]
        (t0, s0), (t1, s1) = self.marks[0], self.marks[-1]
        if s1 > s0:
            rate = (s1 - s0) / (t1 - t0)
            left = sum(max(0, task.length - task.steps) * task.plan.members for task in tasks if task.open)
            minutes = int(left / rate / 60)
            return f"{text}  {rate:,.0f} steps/s  ETA {minutes // 60}:{minutes % 60:02d} h"
        return text


def _rows(tasks: list[Task]) -> Table:
    """Tasks that run, then failed ones, queued ones and those that are done, as many as there is room for."""
    rows = Table("task", "environment", "state", "steps", "attempt", "note")
    for task in sorted(tasks, key=lambda task: STATES.index(task.state))[:LIVE_ROWS]:
        steps, note = f"{task.steps:,} of {task.length:,}", task.note[:60] if task.attempts > 1 else ""
        rows.add_row(escape(task.name), task.plan.env, task.state, steps, str(task.attempts), escape(note))
    return rows
