"""Speed, memory and compile time of Dreamer V3, alone or beside other implementations.

    make bench                                                          # both settings, under ten minutes on two cores
    make bench ARGS="--peer dreamerv3=CHECKOUT --peer r2dreamer=CHECKOUT"        # beside others, update by update
    make bench ARGS="--members 1 2 4 8"                                 # updates/s of populations
    make bench ARGS="--growth"                                          # update time against sizes
    make bench ARGS="--startup"                                         # CPU seconds until a command answers
    make bench ARGS="--device gpu --dtype bfloat16"                     # larger batches, on an NVIDIA GPU

Setting a: 16-dim vector, 6 actions, preset 1m, batch 16 x 64. Setting b: 64 x 64 x 3 uint8, 6 actions, preset 12m,
batch 8 x 32 (on a GPU 16 x 64). Every side works in a process of its own, on random data. Times on shared machines are
noisy: read medians beside their range, and compare only inside one run. peers/README.md says what the others need.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import jaxwm
from benchmarks import scaling, startup
from benchmarks.ours import PRESET, start
from benchmarks.scaling import spread
from benchmarks.sides import Failed, Peer, Ratio, Worker, alternate, parse_peers, ratio
from jaxwm.run.cost import human

ROOT = Path(__file__).parent.parent
SIZES = {("cpu", "a"): (16, 64), ("cpu", "b"): (8, 32), ("gpu", "a"): (16, 64), ("gpu", "b"): (16, 64)}
"""Batch and length of each setting."""
REPEATS = {"a": 10, "b": 4}
Many = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Options:
    """Measure updates, policy calls and whole loops of Dreamer V3 on random data.

    --members, --growth and --startup each print a table of their own instead.
    """

    settings: tuple[Literal["a", "b"], ...] = ("a", "b")
    """Which of the two settings."""
    repeats: int | None = None
    """Timed updates of each side: 10 of setting a and of --members and --growth, 4 of setting b unless given; of
    --startup the calls of each command, else 5."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where; a CPU's cores share each update."""
    peer: Many = ()
    """Another implementation to run beside ours, as NAME=CHECKOUT; may be given again: dreamerv3, r2dreamer,
    or before, an older checkout of this project."""
    peer_python: Many = ()
    """The Python that has a peer's packages, as NAME=EXECUTABLE; else that of CHECKOUT/.venv, or this one."""
    members: tuple[int, ...] = ()
    """Updates/s of populations of these sizes on setting a."""
    growth: bool = False
    """Update time on setting a as batch, length, horizon and members double."""
    startup: bool = False
    """CPU time of the command line until it answers, and until a run has made its first update."""
    preset: str = "nano"
    """Preset of --members and --growth."""
    save: bool = True
    """Keep the result in benchmarks/results/."""


def main() -> int:
    options, console = tyro.cli(Options, prog="benchmarks.run"), Console(width=None if sys.stdout.isatty() else 120)
    try:
        peers = parse_peers(options.peer, options.peer_python)
        if any(number < 1 for number in (*options.members, 1 if options.repeats is None else options.repeats)):
            raise ValueError("--repeats and --members are at least 1")
        # Only workers time the compiler; what runs in this process may find its programs again.
        start(options.device, os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
        _check_device(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        if options.members or options.growth or options.startup:
            _scale(options, console)
        else:
            _updates(options, peers, console)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _updates(options: Options, peers: list[Peer], console: Console) -> None:
    """The main table."""
    with tempfile.TemporaryDirectory() as scratch:
        results = [_setting(name, options, peers, Path(scratch) / name, console) for name in options.settings]
        with console.status("whole loops, and the smallest policy"), _ours("loops", options, Path(scratch)) as worker:
            small = worker.ready
    console.print(update_table(results, small))
    if options.save:
        _kept(keep("update", dict(settings=results, small=small)), console)


def _check_device(device: str) -> None:
    """ValueError where there is no such device."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # the latter where not even JAX's plugin is installed
        message = "JAX finds no GPU; `make bench` measures on the CPU (for a GPU: make setup EXTRAS=dev,log,cuda)"
        raise ValueError(message if device == "gpu" else "JAX finds no CPU device") from None


def _ours(what: str, options: Options, cache: Path, *arguments: str) -> Worker:
    command = [sys.executable, "-m", "benchmarks.ours", "--what", what, "--cache", str(cache)]
    command += ["--dtype", options.dtype, "--device", options.device, *arguments]
    return Worker("ours", command, ROOT)


def _setting(name: str, options: Options, peers: list[Peer], cache: Path, console: Console) -> dict[str, Any]:
    """Everything about one setting: our updates, alone or beside each peer in turn, and the rest of ours."""
    batch, length = SIZES[options.device, name]
    arguments = ("--setting", name, "--batch", str(batch), "--length", str(length))
    repeats, pairs = options.repeats or REPEATS[name], {}
    with console.status(f"setting {name}: compiling") as status, _ours("update", options, cache, *arguments) as ours:
        times = []
        for peer in peers:
            status.update(f"setting {name}: beside {peer.name}")
            common = ("--dtype", options.dtype, "--device", options.device)
            try:
                pairs[peer.name] = _beside(ours, peer, repeats, (*arguments, *common))
                times += [mine for mine, _ in pairs[peer.name]]
                beside = f"setting {name}: our time / that of {peer.name} {ratio(pairs[peer.name])}"
                console.print(beside, highlight=False, soft_wrap=True)
            except Failed as error:
                if error.name == ours.name:
                    raise
                console.print(f"setting {name} goes on without {peer.name}: {error}", markup=False, highlight=False)
        status.update(f"setting {name}")
        times = times or [ours.update() for _ in range(repeats)]
        result = dict(setting=name, preset=PRESET[name], batch=batch, length=length, dtype=options.dtype)
        result |= ours.ready | dict(seconds=times) | ours.ask("details")
        status.update(f"setting {name}: compiling again")
        with _ours("compile", options, cache, *arguments) as warm:
            again = {key: warm.ready[key] for key in ("trace_seconds", "compile_seconds", "cache_hits")}
    result["pairs"], result["warm"] = pairs, again
    result["ratios"] = {peer: ratio(each)._asdict() for peer, each in pairs.items()}
    return result


def _beside(ours: Worker, peer: Peer, repeats: int, arguments: tuple[str, ...]) -> list[tuple[float, float]]:
    """Alternating updates of ours and of a peer that is started for it."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH")}
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(peer.name, peer.command(*arguments), Path(folder), env) as theirs,
    ):
        return alternate(ours, theirs, repeats)


def update_table(results: list[dict[str, Any]], small: dict[str, Any]) -> Table:
    """What was measured, a row each; a column for each setting and one for the smallest preset."""
    heads = [f"{r['setting']}: {r['preset']}, {r['batch']} x {r['length']}, {r['dtype']}" for r in results]
    table = Table("", *heads, "nano, vector", title="Dreamer V3: median (min..max)")
    middle = [float(np.median(r["seconds"])) for r in results]
    rates = [r["flops"] / seconds for r, seconds in zip(results, middle, strict=True)]
    table.add_row("parameters", *(f"{r['parameters']:,}" for r in results))
    table.add_row("update", *(spread(r["seconds"]) for r in results))
    table.add_row("work", *(human(r["flops"], "FLOP") for r in results))
    peaks = [r["matrix_flops_per_second"] for r in results]
    shares = [
        f"{human(rate, 'FLOP/s')}, {rate / peak:.0%} of {human(peak, 'FLOP/s')}"
        for rate, peak in zip(rates, peaks, strict=True)
    ]
    table.add_row("rate, share of a matrix product's", *shares)
    table.add_row("peak memory, compiling included", *(human(r["peak_bytes"], "B") for r in results))
    table.add_row("XLA scratch", *(human(r["scratch_bytes"], "B") for r in results))
    table.add_row("trace + compile", *(_compile(r) for r in results))
    table.add_row("the same from a warm cache", *(_compile(r["warm"]) for r in results))
    calls = [r["policy_ms"] for r in (*results, small)]
    table.add_row("policy call, one environment", *(f"{c['call']:.3f} ms" for c in calls))
    table.add_row("  its program on ready arguments", *(f"{c['ready']:.3f} ms" for c in calls))
    table.add_row("  its network alone, compiled", *(f"{c['network']:.3f} ms" for c in calls))
    table.add_row("  beyond the network", *(f"{c['call'] - c['network']:.3f} ms" for c in calls))
    column = {r["preset"]: 1 + i for i, r in enumerate(results)} | {"nano": 1 + len(results)}
    for r in small["loops"]:
        cells = [""] * (2 + len(results))
        cells[0] = f"whole loop, {r['task']}, {r['preset']}"
        cells[column.get(r["preset"], -1)] = (
            f"{r['steps_per_second']:,.1f} steps/s, {r['updates_per_second']:.2f} updates/s"
        )
        table.add_row(*cells)
    for name in dict.fromkeys(name for r in results for name in r["pairs"]):
        theirs = [[t for _, t in r["pairs"].get(name, ())] for r in results]
        table.add_row(f"{name}: update", *(spread(times) if times else "" for times in theirs))
        ratios = [str(Ratio(**r["ratios"][name])) if name in r["ratios"] else "" for r in results]
        table.add_row(f"  our time / that of {name}", *ratios)
    return table


def _compile(r: dict[str, Any]) -> str:
    return f"{r['trace_seconds']:.1f} + {r['compile_seconds']:.1f} s"


def _scale(options: Options, console: Console) -> None:
    """The tables of --members, --growth and --startup."""
    repeats = options.repeats or 10
    if options.members:
        with console.status("members"):
            results = scaling.members(options.members, options.preset, options.dtype, repeats)
        console.print(scaling.members_table(options.preset, results))
        if options.save:
            _kept(keep("members", results), console)
    if options.growth:
        with console.status("growth"):
            results = scaling.growth(options.preset, options.dtype, repeats)
        console.print(scaling.growth_table(options.preset, results))
        if options.save:
            _kept(keep("growth", results), console)
    if options.startup:
        with console.status("start-up"):
            results = startup.startup(options.repeats or 5)
        console.print(startup.startup_table(results))
        if options.save:
            _kept(keep("startup", results), console)


def command(arguments: Sequence[str], module: str = "benchmarks.run") -> str:
    """The command of a run, without the folders of the machine that it ran on."""
    return " ".join([f"python -m {module}", *map(_hidden, arguments)])


def _hidden(argument: str) -> str:
    head, sign, tail = argument.rpartition("=")
    return f"{head}{sign}PATH" if "/" in tail or "\\" in tail or tail.startswith("~") else argument


def keep(
    kind: str, results: Any, folder: Path = Path(__file__).parent / "results", module: str = "benchmarks.run"
) -> Path:
    """Write results with date, device, versions and command; the file."""
    now = datetime.datetime.now(datetime.UTC)
    file = folder / f"{kind}-{jax.default_backend()}-{now:%Y%m%d-%H%M%S}.json"
    file.write_text(json.dumps(record(results, module), indent=1) + "\n")
    return file


def record(results: Any, module: str) -> dict[str, Any]:
    """Results with date, device, versions and command."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")} | {"jaxwm": jaxwm.__version__}
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores"
    return dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), device=device,
        load=round(os.getloadavg()[0], 2), versions=versions, command=command(sys.argv[1:], module), results=results,
    )  # fmt: skip


def _kept(file: Path, console: Console) -> None:
    console.print(f"kept in {file.relative_to(ROOT)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
