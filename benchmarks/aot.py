"""What an update would be on an H100, without one: compiled for it, and counted.

    V=$(python -c 'import jax; print(jax.__version__)')
    pip install --no-deps --target .aot jax-cuda12-plugin==$V jax-cuda12-pjrt==$V nvidia-cuda-nvcc-cu12
    python -m benchmarks.aot --site .aot

Kernels are counted as often as they would run: those of a loop's body times its trips. Bytes are what kernels read and
write, so together with FLOPs they bound the time from below (the roofline). Kernels are chosen without autotuning and
from a short description of the device, so the choice is not a real GPU's; counts, loops and memory are what to read.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

FLOPS, BYTES, LAUNCH = 990e12, 3.35e12, 3e-6
"""An H100 SXM by its datasheet: dense bfloat16 FLOP/s, bytes/s; and seconds that a tiny kernel was seen to take."""
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
        "while", "call", "conditional", "async-done", "async-update", "copy-done", "opt-barrier"}  # fmt: skip
"""Instructions that launch nothing themselves."""


@dataclass(frozen=True)
class Options:
    """Compile an update of Dreamer V3 for an H100 and count what it launches."""

    site: Path
    """Folder of the CUDA wheels, installed apart (see the top of this file)."""
    preset: str = "12m"
    """Size of the model."""
    setting: Literal["a", "b"] = "b"
    """Observations: a, 16 numbers; b, images of 64 x 64 x 3."""
    batch: int = 16
    length: int = 64
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    save: bool = True
    """Keep the record in benchmarks/results/."""


# --- Reading a program --------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    """One line of a compiled program."""

    name: str
    bytes: int
    kind: str
    operands: list[str]
    calls: list[str]
    trips: int  # of a loop; 1 where unknown


class Cost(NamedTuple):
    """Of one call of a computation."""

    launches: int
    bytes: int


SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
         "u64": 8, "f64": 8}  # fmt: skip
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(?:, (.*))?$")


def size(shape: str) -> int:
    """Bytes of `f32[16,64]{1,0}`, or of a tuple of such."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(SIZES.get(kind, 0) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in parts)


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a compiled program by name, and the name of its entry."""
    found, entry, lines = {}, "", []
    for line in text.splitlines():
        if head := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{", line):
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif match := LINE.match(line):
            name, shape, kind, operands, rest = match.groups()
            calls = re.findall(r"(?:calls|body|to_apply|called_computations=\{)=?%?([\w.\-]+)", rest or "")
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest or "")
            lines.append(Instruction(name, size(shape), kind, re.findall(r"%([\w.\-]+)", operands), calls,
                                     int(trips[1]) if trips else 1))  # fmt: skip
    return found, entry


def moved(call: Instruction, sizes: dict[str, int], body: list[Instruction]) -> int:
    """Bytes that a kernel reads and writes. Of what is only sliced, or written into, no more than that part counts."""
    inner = {i.name: i for i in body}
    parameters = [i for i in body if i.kind == "parameter"]
    total = call.bytes
    for parameter, operand in zip(parameters, call.operands, strict=False):
        users = [i for i in body if parameter.name in i.operands]
        if users and all(u.kind in ("dynamic-slice", "slice") for u in users):
            total += sum(u.bytes for u in users)
        elif any(u.kind == "dynamic-update-slice" and u.operands[0] == parameter.name for u in users):
            part = sum(inner[u.operands[1]].bytes for u in users if u.kind == "dynamic-update-slice")
            total += 2 * part - sizes[operand]  # the result is the operand itself, in place
        else:
            total += sizes[operand]
    return max(total, 0)


def cost(name: str, program: dict[str, list[Instruction]], loops: Counter[tuple[int, int]]) -> Cost:
    """Kernels and bytes of one call of a computation; `loops` counts those met, by trips and kernels of a trip."""
    lines, launches, traffic = program[name], 0, 0
    sizes = {i.name: i.bytes for i in lines}
    for line in lines:
        if line.kind in ("while", "call", "conditional", "async-start") and line.calls:
            inside = [cost(called, program, loops) for called in line.calls if called in program]
            each = max(inside, default=Cost(0, 0))
            if line.kind == "while":
                loops[line.trips, each.launches] += 1
            launches, traffic = launches + line.trips * each.launches, traffic + line.trips * each.bytes
        elif line.kind not in FREE:
            launches += 1
            body = program.get(line.calls[0], []) if line.kind == "fusion" and line.calls else []
            traffic += moved(line, sizes, body) if body else line.bytes + sum(sizes.get(x, 0) for x in line.operands)
    return Cost(launches, traffic)


# --- Compiling ----------------------------------------------------------------------------------------------------


def h100(site: Path) -> Any:
    """A device to compile for. Set the environment before JAX starts."""
    from jax._src.lib import xla_client

    plugin = site / "jax_plugins" / "xla_cuda12" / "xla_cuda_plugin.so"
    if not plugin.exists():
        raise SystemExit(f"no {plugin}: install the CUDA wheels apart, as the top of {Path(__file__).name} says")
    api = xla_client.load_pjrt_plugin_dynamically("cuda", str(plugin))
    xla_client.initialize_pjrt_plugin("cuda")
    topology = xla_client.make_c_api_device_topology(api, "h100", topology="1x1x1", target_config=TARGET)
    return topology._make_compile_only_devices()[0]


def main(options: Options) -> None:
    """Compile, count, print, keep."""
    nvcc = options.site.resolve() / "nvidia" / "cuda_nvcc"
    os.environ["PATH"] = f"{nvcc}/bin:{os.environ['PATH']}"
    os.environ["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={nvcc} --xla_gpu_autotune_level=0"
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    from jax.sharding import SingleDeviceSharding

    from benchmarks.ours import make
    from benchmarks.run import record
    from jaxwm.learning import pieces
    from jaxwm.training.flops import flops
    from jaxwm.training.trainer import Trainer
    from jaxwm.types import Env

    place = SingleDeviceSharding(h100(options.site))
    pieces.ROUTES.clear()  # the routes of a GPU
    sizes = dict(batch_size=options.batch, batch_length=options.length, dtype=options.dtype)
    spec, agent = make(options.setting, options.preset, **sizes)
    unused: Any = None
    update, arguments = Trainer(agent, Env(spec, unused, unused, 1, True), capacity=2000).footprint()["updates"]["all"]
    arguments = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), arguments)
    began = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    program, entry = computations(compiled.as_text())
    loops: Counter[tuple[int, int]] = Counter()
    found = cost(entry, program, loops)
    work, memory = flops(update, *arguments), compiled.memory_analysis()
    result = {
        "launches": found.launches,
        "loops": [dict(trips=trips, launches=each, times=n) for (trips, each), n in loops.most_common()],
        "gflop": work / 1e9,
        "gigabytes": found.bytes / 1e9,
        "arithmetic_ms": 1e3 * work / FLOPS,
        "memory_ms": 1e3 * found.bytes / BYTES,
        "launch_ms": 1e3 * LAUNCH * found.launches,
        "scratch_mb": memory.temp_size_in_bytes / 1e6,  # type: ignore[union-attr]
        "compile_seconds": seconds,
    }
    what = {k: getattr(options, k) for k in ("preset", "setting", "batch", "length", "dtype")}
    print(json.dumps(what | result, indent=1))
    if options.save:
        name = f"aot-h100-{options.preset}-{options.setting}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
        kept = record(what | result, "benchmarks.aot") | {"device": "compiled for NVIDIA H100, not run"}
        (Path(__file__).parent / "results" / name).write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
