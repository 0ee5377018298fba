"""Start-up of the command line: CPU seconds until it answers, and until a run has made its first update."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from benchmarks.scaling import spread
from benchmarks.sides import Failed
from jaxwm.run.json_files import read_jsonl

ANSWERS = (["--help"], ["--version"], ["list"], ["train", "--help"], ["train", "dreamer-v3", "--help"])
TRAIN = "train dreamer-v3 --preset nano --members 1 --steps 100000 --gauge 0".split()
LIMIT = 300.0
"""Seconds after which a run without an update has failed."""


def startup(repeats: int) -> list[dict[str, Any]]:
    """CPU and wall seconds of each command, best caches: the first call, which fills them, does not count."""
    with tempfile.TemporaryDirectory() as scratch:
        results = [_several(" ".join(words), repeats, lambda words=words: _answer(words)) for words in ANSWERS]
        turn = iter(range(repeats + 1))
        results.append(_several("first update", repeats, lambda: _first_update(Path(scratch), f"run{next(turn)}")))
    return results


def startup_table(results: list[dict[str, Any]]) -> Table:
    table = Table("command", "CPU time", "time", title="Start-up from warm caches: median (min..max)")
    for r in results:
        table.add_row(r["command"], spread(r["cpu_seconds"]), spread(r["seconds"]))
    return table


def _several(command: str, repeats: int, once: Any) -> dict[str, Any]:
    times = [once() for _ in range(repeats + 1)][1:]
    cpu, wall = np.transpose(times).tolist()
    return dict(command=command, cpu_seconds=cpu, seconds=wall)


def _answer(words: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a command that ends by itself."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jaxwm", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise Failed("jaxwm", f"{' '.join(words)} ended with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def _first_update(scratch: Path, name: str) -> tuple[float, float]:
    """CPU and wall seconds until the run's metrics tell of an update; the run is then stopped."""
    run, cache = scratch / name, str(scratch / "cache")
    call = [sys.executable, "-m", "jaxwm", *TRAIN, "--run", str(run)]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAXWM_CHUNK_SECONDS": "0.05"}
    began = time.perf_counter()
    with subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        child = psutil.Process(process.pid)
        try:
            while not _updates(run):
                if process.poll() is not None or time.perf_counter() - began > LIMIT:
                    process.kill()
                    raise Failed("jaxwm", f"made no update: {process.communicate()[1].strip()[-500:]}")
                time.sleep(0.02)
            used = child.cpu_times()
            return used.user + used.system, time.perf_counter() - began
        finally:
            process.kill()


def _updates(run: Path) -> int:
    """Updates that the run's metrics tell of."""
    try:
        return max((row.get("updates", 0) for row in read_jsonl(run / "metrics.jsonl")), default=0)
    except (FileNotFoundError, ValueError):  # not there yet, or cut at a line's middle
        return 0
