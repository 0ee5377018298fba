"""Update time, FLOPs, scratch memory, compile time and policy-call time of Dreamer V3.

    make bench                          # both settings, about five minutes on two CPU cores
    make bench ARGS="--settings a --repeats 10"

Setting a: 16-dim vector, 6 actions, batch 16 x 64, size 1m. Setting b: 64 x 64 x 3, 6 actions, batch 8 x 32, size 12m.
Times on shared machines are noisy: read medians beside their range, and compare only inside one run.
"""

import datetime
import json
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxwm import agents
from jaxwm.training.cost import flops, human
from jaxwm.training.trainer import Trainer
from jaxwm.types import Discrete, Env, Spec, Step

SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a": (jax.ShapeDtypeStruct((16,), jnp.float32), dict(preset="1m", batch_size=16, batch_length=64)),
    "b": (jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8), dict(preset="12m", batch_size=8, batch_length=32)),
}


@dataclass(frozen=True)
class Options:
    """Benchmark one update and one policy call of Dreamer V3 on random data."""

    settings: tuple[Literal["a", "b"], ...] = ("a", "b")
    """Which of the two settings."""
    repeats: int = 5
    """Timed updates after a first one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    save: bool = True
    """Keep the result in benchmarks/results/."""


def random_like(tree: Any, key: jax.Array) -> Any:
    """Random data of given shapes: small integers for uint8 and int32, no flags, normal numbers."""

    def leaf(path: Any, s: Any) -> jax.Array:
        if s.dtype == jnp.bool_ or jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return jnp.zeros(s.shape, s.dtype)
        if jnp.issubdtype(s.dtype, jnp.integer):
            return jax.random.randint(jax.random.fold_in(key, hash(str(path)) % 1000), s.shape, 0, 4).astype(s.dtype)
        return jax.random.normal(key, s.shape).astype(s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def seconds(fn: Any, repeats: int) -> list[float]:
    """Wall time of every call of `fn`, which must return arrays; one call before is not counted."""
    jax.block_until_ready(fn())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - began)
    return times


def measure(name: str, options: Options) -> dict[str, Any]:
    """One setting: update and policy call."""
    obs, changes = SETTINGS[name]
    spec = Spec(f"bench/{name}", obs, Discrete(6))
    agent = agents.make("dreamer-v3", spec, **changes, dtype=options.dtype)
    empty: Any = None
    shapes = Trainer(agent, Env(spec, empty, empty, 1, True), capacity=2000).footprint()["updates"]["all"]
    state = agent.init(jax.random.key(0), agent.hyper)
    batch = random_like(shapes[1][1], jax.random.key(1))
    began = time.perf_counter()
    update = jax.jit(agent.train_steps["all"].update).lower(state, batch, jax.random.key(2)).compile()
    compiled = time.perf_counter() - began
    times = seconds(lambda: update(state, batch, jax.random.key(2)), options.repeats)
    work = flops(*shapes[:1], *shapes[1])
    step = random_like(
        Step(*(jax.ShapeDtypeStruct((1, *s), d) for s, d in ((obs.shape, obs.dtype), ((), jnp.float32)))
             , *(jax.ShapeDtypeStruct((1,), jnp.bool_),) * 3), jax.random.key(3)
    )  # fmt: skip
    act = jax.jit(agent.act, static_argnums=4)
    carry = agent.reset(state, 1)
    policy = seconds(lambda: act(state._replace(opt=None), carry, step, jax.random.key(4), "explore"), 50)
    return dict(
        setting=name,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        update_ms=[round(1000 * t, 1) for t in times],
        gflop=round(work / 1e9, 1),
        gflop_per_second=round(work / 1e9 / float(np.median(times)), 1),
        scratch_bytes=update.memory_analysis().temp_size_in_bytes,
        compile_seconds=round(compiled, 1),
        policy_ms=round(1000 * float(np.median(policy)), 3),
    )


def main() -> int:
    options = tyro.cli(Options, prog="benchmarks.run")
    jax.config.update("jax_enable_compilation_cache", False)  # compile times would be those of the cache
    results = [measure(name, options) for name in options.settings]
    table = Table("setting", "parameters", "update (min..max)", "work", "rate", "scratch", "compile", "policy call")
    for r in results:
        ms = r["update_ms"]
        times = f"{np.median(ms):,.0f} ms ({min(ms):,.0f}..{max(ms):,.0f})"
        cells = (f"{r['gflop']} GFLOP", f"{r['gflop_per_second']} GFLOP/s", human(r["scratch_bytes"], "B"))
        table.add_row(
            r["setting"], f"{r['parameters']:,}", times, *cells, f"{r['compile_seconds']} s", f"{r['policy_ms']} ms"
        )
    Console().print(table)
    if options.save:
        keep(results)
    return 0


def keep(results: list[dict[str, Any]]) -> None:
    """Write the results with date, device, versions and command."""
    now = datetime.datetime.now(datetime.UTC)
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "jaxwm")}
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    record = dict(
        date=now.isoformat(timespec="seconds"), device=device, versions=versions,
        command="python -m benchmarks.run " + " ".join(sys.argv[1:]), results=results,
    )  # fmt: skip
    file = Path(__file__).parent / "results" / f"update-{jax.default_backend()}-{now:%Y%m%d-%H%M%S}.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"kept in {file.relative_to(Path(__file__).parent.parent)}")


if __name__ == "__main__":
    sys.exit(main())
