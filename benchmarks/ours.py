"""Our side: updates of Dreamer V3 on random data, policy calls and whole loops, as a process of its own.

`python -m benchmarks.ours` is started by `benchmarks.run`; see peers/serve.py for what it says and hears.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.peers.serve import answers, serve, timed
from jaxwm import agents, envs
from jaxwm.learning.share import Share
from jaxwm.training.flops import flops
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Agent, Discrete, Env, Spec, Step

Device = Literal["cpu", "gpu"]
OBS = {"a": jax.ShapeDtypeStruct((16,), jnp.float32), "b": jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)}
PRESET = {"a": "1m", "b": "12m"}


@dataclass(frozen=True)
class Options:
    """Prepare one thing, measure it on request."""

    what: Literal["update", "compile", "loops"]
    """Updates and policy calls; nothing but the update's compile time; whole loops and the smallest policy."""
    setting: Literal["a", "b"] = "a"
    batch: int = 16
    length: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Device = "cpu"
    cache: str = ""
    """Folder of compiled programs; none when empty."""


def start(device: Device, cache: str) -> None:
    """Settle what JAX can only be told before it starts: the device, all its cores, and where programs are kept."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes use the GPU in turn
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[device])
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    jax.config.update("jax_enable_compilation_cache", bool(cache))
    jax.config.update("jax_compilation_cache_dir", cache or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# --- Updates ------------------------------------------------------------------------------------------------------


def random_like(tree: Any, key: jax.Array) -> Any:
    """Random data of given shapes: small integers, no flags, normal numbers."""

    def leaf(path: Any, s: Any) -> jax.Array:
        if s.dtype == jnp.bool_ or jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return jnp.zeros(s.shape, s.dtype)
        own = jax.random.fold_in(key, crc32(str(path).encode()))
        if jnp.issubdtype(s.dtype, jnp.integer):
            return jax.random.randint(own, s.shape, 0, 4).astype(s.dtype)
        return jax.random.normal(own, s.shape).astype(s.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def make(setting: str, preset: str, **changes: Any) -> tuple[Spec, Agent]:
    """The agent of a setting; `changes` are settings of its preset."""
    spec = Spec(f"bench/{setting}", OBS[setting], Discrete(6))
    return spec, agents.make("dreamer-v3", spec, preset, **changes)


def shared(agent: Agent, shares: int, members: int = 1) -> tuple[Callable[..., Any], NamedSharding]:
    """The update of `members` as CPU devices work it out together, and how its arguments lie on them.

    One member's batch is split among `shares` devices, which all hold everything; several members are spread over as
    many devices as divide their number. Other than on CPUs one device does all.
    """
    step, spec = agent.train_steps["all"], PartitionSpec()
    devices = jax.local_devices() if jax.default_backend() == "cpu" else jax.local_devices()[:1]
    count = shares if members == 1 else max(n for n in range(1, len(devices) + 1) if members % n == 0)
    mesh = Mesh(np.array(devices[:count]), ("share",))
    if members > 1:
        update, spec = jax.vmap(step.update), PartitionSpec("share")
    else:
        update = partial(step.update, share=Share("share")) if count > 1 else step.update
    if count > 1:
        update = jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return update, NamedSharding(mesh, spec)


class Program:
    """A compiled update with its state, which every call moves on; `compiler` are options of XLA."""

    def __init__(self, spec: Spec, agent: Agent, members: int = 1, compiler: dict[str, Any] | None = None):
        unused: Any = None
        trainer = Trainer(agent, Env(spec, unused, unused, 1, True), capacity=2000)
        one, (state, batch, key) = trainer.footprint()["updates"]["all"]
        shapes = state, batch, key
        self.parameters = sum(x.size for x in jax.tree.leaves(state.params))
        keys = jax.random.split(jax.random.key(2), members)
        state = jax.jit(jax.vmap(lambda key: agent.init(key, agent.hyper)))(keys)
        stack = lambda s: jax.ShapeDtypeStruct((members, *s.shape), s.dtype)  # noqa: E731
        arguments = state, random_like(jax.tree.map(stack, batch), jax.random.key(1)), keys
        if members == 1:
            arguments = jax.tree.map(lambda x: x[0], arguments)
        update, place = shared(agent, trainer.spread.copies, members)
        self.state, self.batch, self.key = jax.device_put(arguments, place)
        began = time.perf_counter()
        lowered = jax.jit(update, donate_argnums=0).lower(self.state, self.batch, self.key)
        traced = time.perf_counter()
        self.compiled = lowered.compile(compiler)
        self.trace_seconds, self.compile_seconds = traced - began, time.perf_counter() - traced
        self.flops = members * flops(one, *shapes)  # after the trace that was timed, which it would have shortened
        memory: Any = self.compiled.memory_analysis()
        self.scratch, self.arguments = int(memory.temp_size_in_bytes), int(memory.argument_size_in_bytes)

    def queue(self) -> Any:
        """Ask for one update; its results, which may not be there yet."""
        self.state, *results = self.compiled(self.state, self.batch, self.key)
        return self.state, results

    def __call__(self) -> None:
        """One update, done when this returns."""
        jax.block_until_ready(self.queue())


def seconds(fn: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of every call of `fn`, which returns when its work is done; one call before is not counted."""
    fn()
    return [timed(fn)()["seconds"] for _ in range(repeats)]


def matrix_peak(dtype: str) -> float:
    """FLOP/s of the fastest of a few square matrix products, by one device for all cores or by all devices at once."""
    sizes = (1024, 1536, 2048) if jax.default_backend() == "cpu" else (2048, 4096, 8192)
    best = 0.0
    for size in sizes:
        for count in {1, jax.local_device_count()}:
            mesh = Mesh(np.array(jax.local_devices()[:count]), ("device",))
            x = jnp.ones((count, size, size), dtype)
            x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("device")))
            product = jax.jit(jnp.matmul).lower(x, x).compile()
            least = min(seconds(lambda f=product, x=x: jax.block_until_ready(f(x, x)), 4))
            best = max(best, 2 * count * size**3 / least)
    return best


def peak_memory() -> int:
    """Bytes that this process, or its accelerator, has held at most."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() != "cpu" and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else 1024 * rss


# --- Policy calls and loops ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    """Median milliseconds of choosing an action for one environment.

    `call` is what the loop around an environment on the host waits for: observation in, action out, both NumPy.
    `ready` runs the same compiled program on arguments that are on the device. `network` is one turn of a loop of it
    inside a compiled program: the network alone, with nothing of Python or of starting a program.
    """

    call: float
    ready: float
    network: float


def policy(spec: Spec, agent: Agent, repeats: int = 200, turns: int = 100) -> Policy:
    """Time the policy of an untrained agent on random observations, with programs compiled ahead as in training."""
    state = jax.jit(lambda key: agent.init(key, agent.hyper))(jax.random.key(0))._replace(opt=None)
    env: Any = jax.ShapeDtypeStruct((1,), jnp.float32), *(jax.ShapeDtypeStruct((1,), jnp.bool_),) * 3
    obs = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), spec.obs)
    step = random_like(Step(obs, *env), jax.random.key(3))
    carry, key = agent.reset(state, 1), jax.random.key(4)

    def act(state: Any, carry: Any, step: Any, key: Any) -> Any:
        return agent.act(state, carry, step, key, "explore")

    def many(state: Any, carry: Any, step: Any, key: Any) -> Any:
        turn = lambda i, carry: act(state, carry, step, jax.random.fold_in(key, i))[0]  # noqa: E731
        return jax.lax.fori_loop(0, turns, turn, carry)

    arguments = state, carry, step, key
    one, loop = (jax.jit(fn).lower(*arguments).compile() for fn in (act, many))
    host = jax.device_get(step)
    call = seconds(lambda: np.asarray(one(state, carry, host, key)[1]), repeats)
    ready = seconds(lambda: jax.block_until_ready(one(*arguments)), repeats)
    network = [s / turns for s in seconds(lambda: jax.block_until_ready(loop(*arguments)), 10)]
    return Policy(*(1000 * float(np.median(times)) for times in (call, ready, network)))


def loop(task: str, preset: str, iterations: int, dtype: str) -> dict[str, Any]:
    """The whole loop (collect, sample, learn) on a pure environment after prefill: environment steps and updates/s."""
    settings = agents.settings("dreamer-v3", preset, dtype=dtype, capacity=20_000)
    env = envs.make(task, num_envs=settings.envs)
    trainer = Trainer(agents.find("dreamer-v3").make(env.spec, settings), env, capacity=settings.capacity)
    life, cursor = trainer.init(0), Cursor()
    trainer.compile(life)
    while cursor.segment == 0:
        life, cursor, _ = trainer.run(life, cursor, trainer.max_iterations)
    life, cursor, _ = trainer.run(life, cursor, 1)
    counters = jax.device_get(life.counters)
    began = time.perf_counter()
    life, cursor, _ = trainer.run(life, cursor, iterations)
    later = jax.device_get(life.counters)
    spent = time.perf_counter() - began
    rates = {name: float(getattr(later, name) - getattr(counters, name)) / spent for name in ("steps", "updates")}
    return dict(task=task, preset=preset, steps_per_second=rates["steps"], updates_per_second=rates["updates"])


def loops(options: Options) -> dict[str, Any]:
    """Whole loops of the smallest preset and of the one of setting a, and a policy call of the smallest."""
    env = envs.make("gymnax/CartPole-v1", num_envs=1)
    small = policy(env.spec, agents.make("dreamer-v3", env.spec, "nano", dtype=options.dtype))
    rates = [loop("gymnax/Catch-bsuite", "nano", 256, options.dtype)]
    rates += [loop("gymnax/CartPole-v1", PRESET["a"], 12, options.dtype)]
    return dict(policy_ms=small._asdict(), loops=rates)


def main() -> None:
    options = tyro.cli(Options, prog="benchmarks.ours")
    say = answers()
    start(options.device, options.cache)
    if options.what == "loops":
        return serve(say, loops(options), {})
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event.endswith("/cache_hits"):
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    sizes = dict(batch_size=options.batch, batch_length=options.length, dtype=options.dtype)
    spec, agent = make(options.setting, PRESET[options.setting], **sizes)
    program = Program(spec, agent)
    ready = dict(
        parameters=program.parameters, flops=program.flops, scratch_bytes=program.scratch, devices=jax.device_count(),
        trace_seconds=program.trace_seconds, compile_seconds=program.compile_seconds, cache_hits=len(hits),
    )  # fmt: skip
    if options.what == "compile":
        return serve(say, ready, {})
    program()
    program()

    def details() -> dict[str, Any]:
        memory = peak_memory()  # before anything else can raise it
        calls = policy(spec, agent)._asdict()
        return dict(peak_bytes=memory, policy_ms=calls, matrix_flops_per_second=matrix_peak(options.dtype))

    serve(say, ready, {"update": timed(program), "details": details})


if __name__ == "__main__":
    main()
