"""The first ten minutes on a GPU: does everything run, how fast is it, and what holds it back.

    make bench-gpu                                            # on an NVIDIA GPU, at most ten minutes
    python -m benchmarks.gpu --device cpu --small --no-save   # the same parts in tiny sizes, to try this file itself

Parts run in order; one that fails prints its error and the next one starts. The record is written after every part, to
benchmarks/results/ and to --also. gpu_checklist.md says how to read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.ours import (
    OBS,
    Device,
    Program,
    make,
    matrix_peak,
    peak_memory,
    policy,
    random_like,
    seconds,
    start,
)  # fmt: skip
from benchmarks.run import record
from jaxwm import agents, envs
from jaxwm.run.cost import human
from jaxwm.spaces import blank_step
from jaxwm.training.trainer import Trainer
from jaxwm.types import Data, Discrete, Env, Spec

DATASHEET = 990e12
"""Dense bfloat16 FLOP/s of an H100 or H200 SXM, by the datasheet."""
AGREEMENT = "agreement"
UPDATES = {f"{letter} {short}": (letter, size, dtype) for letter, size in (("a", "1m"), ("b", "12m"))
           for short, dtype in (("bf16", "bfloat16"), ("f32", "float32"))}  # fmt: skip
"""Name -> setting, preset and compute type; setting and sizes as in benchmarks/ours.py."""
LARGE = {"200m bf16": ("b", "200m", "bfloat16"), "200m f32": ("b", "200m", "float32")}
MEMBERS = {"a bf16 x4": ("a", "1m", 4), "a bf16 x16": ("a", "1m", 16), "b bf16 x2": ("b", "12m", 2)}
"""Populations of one program, to hold against "a bf16" and "b bf16"."""
LOOPS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
GRAPHS: dict[str, dict[str, Any]] = {
    "no graphs": {"xla_gpu_graph_min_graph_size": 1_000_000},
    "graphs of loops": {"xla_gpu_enable_command_buffer": LOOPS},
    "graphs of unrolled loops": {"xla_gpu_enable_command_buffer": LOOPS, "xla_gpu_command_buffer_unroll_loops": True},
}
"""Compiler options of "b bf16": how many kernels one launch of a CUDA graph stands for."""


@dataclass(frozen=True)
class Options:
    """Check every system on a GPU, and measure Dreamer V3 there."""

    device: Device = "gpu"
    """Where."""
    small: bool = False
    """Tiny sizes for all settings, to try this file without a GPU."""
    budget: float = 600.0
    """Seconds after which nothing more is waited for; what is missing by then is recorded as not reached."""
    repeats: int = 40
    """Timed calls of every program."""
    threads: int = 4
    """Programs that are compiled at once."""
    parts: tuple[Literal["systems", "updates"], ...] = ("systems", "updates")
    """What to do."""
    check: str = ""
    """Only check this system, in this process, and print what was found."""
    save: bool = True
    """Keep the record in benchmarks/results/."""
    also: Path | None = None
    """Another folder for the record."""


class Checklist:
    """Runs parts one by one, keeps what they return, and writes all of it after each."""

    def __init__(self, options: Options):
        self.options, self.began = options, time.time()
        self.results: dict[str, Any] = {}
        self.jobs: dict[str, Future[Any]] = {}
        self.pool = ThreadPoolExecutor(options.threads)
        name = f"gpu-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
        folders = Path(__file__).parent / "results" if options.save else None, options.also
        self.files = [folder / name for folder in folders if folder]

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return max(self.options.budget - (time.time() - self.began), 0.0)

    def part(self, name: str, fn: Callable[[], Any]) -> None:
        """Run a part, or note why it did not come to its end."""
        began = time.time()
        try:
            self.results[name] = fn() if self.left else "not reached"
        except Exception as error:
            self.results[name] = dict(error=_one_line(error))
        spent = time.time() - began
        print(f"{name}: {json.dumps(self.results[name])[:1500]} [{spent:.1f} s, {self.left:.0f} s left]", flush=True)
        text = json.dumps(record(self.results, "benchmarks.gpu") | machine(), indent=1) + "\n"
        for file in self.files:
            file.write_text(text)

    def later(self, name: str, fn: Callable[[], Any]) -> None:
        """Compile in a thread what `get` will ask for."""
        self.jobs[name] = self.pool.submit(fn)

    def get(self, name: str, wait: float = 1.0) -> Any:
        """What a thread compiled; raises its error, or TimeoutError."""
        return self.jobs[name].result(timeout=min(wait, self.left))

    def settle(self) -> dict[str, Any]:
        """Wait until every thread is done, as a GPU that compiles (and tries kernels) gives no clean times; but no more
        than what leaves time to measure those that are."""
        began = time.time()
        wait(self.jobs.values(), timeout=0.7 * self.left)
        done = [name for name, job in self.jobs.items() if job.done() and not job.exception()]
        return dict(seconds=round(time.time() - began, 1), compiled=done, missing=sorted(self.jobs.keys() - set(done)))


def _one_line(error: BaseException) -> str:
    return re.sub(r"(/[\w.+-]+){2,}", "PATH", f"{type(error).__name__}: {' '.join(str(error).split())}")[:600]


def machine() -> dict[str, str]:
    """Commit and driver."""
    query = "--query-gpu=name,driver_version,memory.total"
    return dict(
        commit=os.environ.get("COMMIT") or _say("git", "rev-parse", "--short", "HEAD"),
        driver=_say("nvidia-smi", query, "--format=csv,noheader"),
    )


def _say(*command: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


# --- Every system -----------------------------------------------------------------------------------------------------
class Check:
    """The updates of a system's default preset, and its policy, on random data."""

    def __init__(self, name: str, precision: str | None = None, dtype: str | None = None):
        entry, changes = agents.find(name), {} if dtype is None else dict(dtype=dtype)
        settings, none = agents.settings(name, **changes), cast(Any, None)
        source = Env(Spec("bench/b", OBS["b"], Discrete(3), 525), none, none, settings.envs, True)
        if not entry.env.startswith("vizdoom"):  # those engines are not needed to see images
            source = envs.make(entry.env, num_envs=settings.envs)
        if entry.video:
            source = Data(source.spec, none, 20_000, settings.envs)
        self.agent, self.source, self.precision = agents.build(name, source.spec, settings), source, precision
        self.updates = Trainer(self.agent, source, capacity=20_000).footprint()["updates"]

    def run(self) -> dict[str, Any]:
        """Metrics of one update of each kind that are not finite, whether an action came, and the first loss."""
        began, bad, losses, agent = time.time(), [], {}, self.agent
        with jax.default_matmul_precision(self.precision) if self.precision else contextlib.nullcontext():
            state = jax.jit(lambda key: agent.init(key, agent.hyper))(jax.random.key(0))
            for name, (update, (_, batch, _)) in self.updates.items():
                out = jax.jit(update)(state, _valid(random_like(batch, jax.random.key(1))), jax.random.key(2))
                metrics = {key: float(value) for key, value in out[2].items()}
                bad += [f"{name}/{key}" for key, value in metrics.items() if not np.isfinite(value)]
                losses |= {f"{name}/{key}": value for key, value in metrics.items() if key.startswith("loss")}
            action = self._act(state)
        return dict(seconds=round(time.time() - began, 1), bad=bad, action=list(action.shape), losses=losses)

    def _act(self, state: Any) -> Any:
        agent, source = self.agent, self.source
        if not isinstance(source, Env):
            return np.zeros(0)  # nothing acts
        step = random_like(blank_step(source.spec, source.num_envs), jax.random.key(3))
        if source.reset is not None:
            step = jax.jit(source.reset)(jax.random.key(3))[1]
        act = jax.jit(agent.act, static_argnums=4)
        return np.asarray(act(state, agent.reset(state, source.num_envs), step, jax.random.key(4), "greedy")[1])


def _valid(tree: Any) -> Any:
    """Random data in which every move is legal."""
    legal = lambda path, x: jnp.ones_like(x) if "legal" in str(path) else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(legal, tree)


def check(name: str) -> dict[str, Any]:
    """What one process finds out about a system, or with the name "agreement" about Dreamer V3 here and on the CPU."""
    if name != AGREEMENT:
        return Check(name).run()
    exact = dict(name="dreamer-v3", precision="highest", dtype="float32")
    ours = Check(**exact).run()["losses"]
    with jax.default_device(jax.devices("cpu")[0]):
        theirs = Check(**exact).run()["losses"]
    apart = {name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-3) for name in theirs}
    return dict(apart=apart, ok=bool(apart["all/loss"] < 0.02), here=ours, cpu=theirs)


def systems(todo: Checklist) -> dict[str, Any]:
    """Every system, each in a process of its own: one update of each kind and an action, without trying kernels."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", todo.options.device, "--check"]
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    running = {
        name: start([*command, name], env=os.environ | {"XLA_FLAGS": flags}) for name in (AGREEMENT, *agents.AGENTS)
    }
    results = {}
    for name, process in running.items():
        try:
            results[name] = json.loads(process.communicate(timeout=todo.left)[0].splitlines()[-1])
        except Exception as error:
            process.kill()
            results[name] = dict(error=_one_line(error))
        if results[name].get("bad") == []:
            results[name] = "fine"
    return results


# --- Updates ----------------------------------------------------------------------------------------------------------
def program(options: Options, setting: str, preset: str, dtype: str, members: int = 1, **compiler: Any) -> Program:
    """A compiled update; tiny where the options say so."""
    sizes = dict(batch_size=2, batch_length=8) if options.small else dict(batch_size=16, batch_length=64)
    spec, agent = make(setting, "nano" if options.small else preset, dtype=dtype, **sizes)
    return Program(spec, agent, members, compiler)


def measured(p: Program, repeats: int) -> dict[str, Any]:
    """Times of an update that is waited for, and of several that are queued; its work and memory."""
    times = seconds(p, repeats)
    began = time.perf_counter()
    for _ in range(repeats):
        p.queue()
    p()
    queued, middle = (time.perf_counter() - began) / (repeats + 1), float(np.median(times))
    rate = p.flops / middle
    ran: dict[str, Any] = dict(kernels_by_hlo=kernels_in(str(p.compiled.as_text())))
    try:
        ran |= profile(p)
    except Exception as error:
        ran |= dict(profile_error=_one_line(error))
    memory = dict(scratch_bytes=p.scratch, argument_bytes=p.arguments, peak_bytes_of_process=peak_memory())
    return dict(
        median_ms=1e3 * middle, least_ms=1e3 * min(times), most_ms=1e3 * max(times), queued_ms=1e3 * queued,
        updates_per_second=1 / middle, parameters=p.parameters, flops=p.flops, flops_per_second=rate,
        share_of_datasheet=rate / DATASHEET, trace_seconds=p.trace_seconds, compile_seconds=p.compile_seconds,
        **memory, **ran,
    )  # fmt: skip


def kernels_in(text: str) -> int:
    """Kernels that an optimised HLO program starts, at least: each instruction that is no view or loop counts once,
    the body of a loop as often as it is known to turn."""
    views = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
             "after-all", "iota", "add-dependency", "opt-barrier"}  # fmt: skip
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = found[2]
            bodies[name], entry = [], name if found[1] else entry
        elif " = " in line:
            bodies[name].append(line)

    def count(computation: str) -> int:
        total = 0
        for line in bodies.get(computation, ()):
            kind = re.search(r" = .*?([a-z][\w-]*)\(", re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", line))
            total += kind is not None and kind[1] not in views
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            inner = re.search(r" while\(.*body=%?([\w.-]+)| call\(.*to_apply=%?([\w.-]+)", line)
            total += (int(turns[1]) if turns else 1) * count(inner[1] or inner[2]) if inner else 0
        return total

    return count(entry)


def profile(p: Program, updates: int = 5) -> dict[str, Any]:
    """What the device ran in an update, by a profile: kernels, the time it was busy, and the kernels that took most."""
    with tempfile.TemporaryDirectory() as folder:
        settings = jax.profiler.ProfileOptions()
        settings.python_tracer_level, settings.host_tracer_level = 0, 0
        with jax.profiler.trace(folder, profiler_options=settings):
            for _ in range(updates):
                p()
        file = next(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(file))
    count, spent, lines = Counter(), Counter(), Counter()
    for event, line in _device_events(data):
        name = re.sub(r"[_.]?\d+$", "", event.name)
        lines[line] += 1
        count[name] += 1
        spent[name] += event.duration_ns
    most = spent.most_common(25)
    top = [dict(kernel=name[:80], ms=ns / 1e6 / updates, times=count[name] / updates) for name, ns in most]
    busy = sum(spent.values()) / 1e6 / updates
    return dict(kernels=sum(count.values()) / updates, busy_ms=busy, lines=dict(lines), top=top)


def _device_events(data: Any) -> Iterator[tuple[Any, str]]:
    """Whatever ran on the GPU's streams."""
    for plane in data.planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    yield from ((event, line.name) for event in line.events)


def graphs(todo: Checklist) -> dict[str, Any]:
    """Median milliseconds of "b bf16" with fewer and with more of its kernels in CUDA graphs."""
    results = {}
    for name in ("b bf16", *GRAPHS):
        try:
            results[name] = 1e3 * float(np.median(seconds(todo.get(name), todo.options.repeats)))
        except Exception as error:
            results[name] = dict(error=_one_line(error))
    return results


def policies(options: Options) -> dict[str, Any]:
    """Milliseconds of an action for one environment."""
    results = {}
    for name, (letter, preset, dtype) in UPDATES.items():
        if dtype == "bfloat16":
            spec, agent = make(letter, "nano" if options.small else preset, dtype=dtype)
            results[name] = policy(spec, agent, 10 if options.small else 200)._asdict()
    return results


# --- The list ---------------------------------------------------------------------------------------------------------
def submit(todo: Checklist) -> None:
    """Compile everything but the first program, in threads."""
    options, build = todo.options, program
    for name, (setting, preset, dtype) in (UPDATES | LARGE).items():
        if name not in todo.jobs:
            todo.later(name, lambda s=setting, p=preset, d=dtype: build(options, s, p, d))
    for name, compiler in GRAPHS.items():
        todo.later(name, lambda c=compiler: build(options, "b", "12m", "bfloat16", **c))
    for name, (setting, preset, members) in MEMBERS.items():
        todo.later(name, lambda s=setting, p=preset, m=members: build(options, s, p, "bfloat16", m))


def main() -> int:
    options = tyro.cli(Options, prog="benchmarks.gpu")
    start(options.device, "")  # no programs from before: compile times count
    if options.device == "gpu":
        jax.config.update("jax_platforms", "cuda,cpu")  # the CPU as well, to compare with
    if options.check:
        try:
            found = check(options.check)
        except Exception as error:
            found = dict(error=_one_line(error))
        print(json.dumps(found))
        return 0
    todo = Checklist(options)
    if "systems" in options.parts:
        todo.part("systems", lambda: systems(todo))
    if "updates" in options.parts:
        updates(todo)
    print(f"done in {time.time() - todo.began:.0f} s; {human(peak_memory(), 'B')} at most", flush=True)
    os._exit(0)  # a thread that still compiles would be waited for


def updates(todo: Checklist) -> None:
    """Everything about Dreamer V3."""
    options, repeats = todo.options, todo.options.repeats
    peak = lambda: dict(matrix_flops_per_second=matrix_peak("bfloat16"))  # noqa: E731
    todo.part("matrix product, bf16", peak if not options.small else dict)
    todo.later("b bf16", lambda: program(options, "b", "12m", "bfloat16"))
    # while nothing else compiles
    todo.part("update b bf16", lambda: measured(todo.get("b bf16", todo.left), repeats))
    submit(todo)
    todo.part("compiling", todo.settle)
    for name in (*UPDATES, *MEMBERS):
        if name != "b bf16":
            todo.part(f"update {name}", lambda name=name: measured(todo.get(name), repeats))
    todo.part("graphs", lambda: graphs(todo))
    todo.part("policy", lambda: policies(options))
    for name in LARGE:
        todo.part(f"update {name}", lambda name=name: measured(todo.get(name, todo.left), max(repeats // 3, 3)))


if __name__ == "__main__":
    sys.exit(main())
