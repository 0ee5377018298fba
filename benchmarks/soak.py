"""An hour of everything: chunks on a pure and on a host environment, checkpoints, evaluation, the gauge.

    python -m benchmarks.soak --minutes 60

Prints memory, open files, checkpoints and compilations every minute and writes benchmarks/results/soak-DATE.json. Fails
if anything was compiled after the first round, or if memory grew by more than 5 % after the first ten minutes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import psutil
import tyro
from rich.console import Console

from jaxwm import agents, envs
from jaxwm.run import directory, load, machine
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.run.plan import Plan
from jaxwm.run.writer import Writer
from jaxwm.training.evaluation import evaluator, parallel
from jaxwm.training.life import Cursor, member_keys

TASKS = ("gymnax/Catch-bsuite", "classic/CartPole-v1")
MEMBERS, EPISODES, CHUNK = 2, 20, 16


class Soaked:
    """One run: life, checkpoints, files and a compiled evaluation."""

    def __init__(self, task: str, root: Path):
        settings = agents.settings("dreamer-v3", "nano", capacity=20_000)
        self.plan = Plan("dreamer-v3", task, settings, 10**9, MEMBERS, episodes=EPISODES)
        _, self.agent, self.trainer = load.build(self.plan)
        self.folder = directory.create(root / task.replace("/", "-"))
        self.life, self.cursor = self.trainer.init(0), Cursor()
        self.trainer.compile(self.life)
        self.checkpoints = Checkpoints(self.folder / directory.CHECKPOINTS)
        self.writer = Writer(self.folder)
        env = envs.make(task, num_envs=parallel(self.trainer.source.pure, EPISODES))
        self.evaluate = evaluator(self.agent, env, EPISODES)

    def chunk(self) -> None:
        self.life, self.cursor, report = self.trainer.run(self.life, self.cursor, CHUNK)
        gauge = self.trainer.gauge(self.life, self.plan.gauge)
        self.writer.scores(report.episodes)
        self.writer.metrics({"env_steps": self.steps(), **report.metrics, **gauge})

    def steps(self) -> int:
        return int(self.life.counters.steps)

    def save(self) -> None:
        self.checkpoints.save(self.steps(), self.life, self.cursor, {"offsets": self.writer.offsets(), "seconds": 0.0})
        self.checkpoints.wait()

    def score(self) -> list[float]:
        return self.evaluate(self.life.agent, member_keys(1, MEMBERS)).means().round(2).tolist()


@dataclass(frozen=True)
class Options:
    """Run everything for long, and watch memory and compilations."""

    minutes: float = 60.0
    """How long."""
    busy: float = 1.0
    """Share of each minute that is worked; the rest is slept, for machines that have other work."""
    out: Path = Path("benchmarks/results")
    """Folder of the result."""


def main() -> int:
    options, console = tyro.cli(Options), Console()
    machine.use_compilation_cache()
    machine.use_cores(MEMBERS)
    compiled = _count_compilations()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        runs = [Soaked(task, Path(root)) for task in TASKS]
        began = time.time()
        while time.time() - began < 60 * options.minutes:
            scores = _minute(runs, options.busy)
            rows.append(_row(began, compiled, runs, scores))
            console.print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), soft_wrap=True)
        for soaked in runs:
            soaked.checkpoints.close()
            soaked.trainer.close()
    return _verdict(rows, options, console)


def _minute(runs: list[Soaked], busy: float) -> list[list[float]]:
    """A minute of chunks of every run in turn, a checkpoint and an evaluation of each."""
    began = time.time()
    while time.time() < began + 60 * busy:
        for soaked in runs:
            soaked.chunk()
    for soaked in runs:
        soaked.save()
    scores = [soaked.score() for soaked in runs]
    time.sleep(max(0.0, began + 60 - time.time()))
    return scores


def _count_compilations() -> list[str]:
    """A list that grows with every program that is compiled or read from the cache."""
    seen: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def _row(began: float, compiled: list[str], runs: list[Soaked], scores: list[list[float]]) -> dict[str, Any]:
    process = psutil.Process(os.getpid())
    return {
        "minute": round((time.time() - began) / 60, 1),
        "rss_mb": round(process.memory_info().rss / 1e6, 1),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "compilations": len(compiled),
        "steps": [soaked.steps() for soaked in runs],
        "checkpoints": [len(soaked.checkpoints.steps()) for soaked in runs],
        "scores": scores,
    }


def _verdict(rows: list[dict[str, Any]], options: Options, console: Console) -> int:
    start = next((i for i, row in enumerate(rows) if row["minute"] > 10), 1)
    first, last = rows[min(start, len(rows) - 1)], rows[-1]
    growth = last["rss_mb"] / first["rss_mb"] - 1
    recompiled = last["compilations"] - rows[min(1, len(rows) - 1)]["compilations"]
    flat = growth <= 0.05 and recompiled == 0
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": f"{jax.default_backend()}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "command": f"python -m benchmarks.soak --minutes {options.minutes:g} --busy {options.busy:g}",
        "memory_growth_after_ten_minutes": round(growth, 4),
        "compilations_after_the_first_round": recompiled,
        "flat": flat,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"soak-{datetime.now(UTC):%Y-%m-%d}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(
        f"memory {growth:+.1%}, {recompiled} compilations after the first round: {'flat' if flat else 'NOT FLAT'}"
    )
    console.print(file)
    return 0 if flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
