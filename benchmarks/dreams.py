"""Speed of dreams: imagined frames per second next to the same dream in plain PyTorch.

    python -m benchmarks.dreams --torch ~/torch/bin/python              # a table, kept in benchmarks/results/
    python -m benchmarks.dreams --torch ~/torch/bin/python --presets micro --repeats 30
    python -m benchmarks.dreams --torch ~/torch/bin/python --system diamond --presets micro published --repeats 5

A dream of STORM reads the context's tokens, then chooses an action, appends a token to the cache and draws the next
latents, `imag_length` times. One of DIAMOND chooses an action, paints the next frame in a few passes and judges it,
`dream_steps` times; frames are 64 x 64 in the published size, else 16 x 16. No gradients, float32, the batch of one
update. The sides are processes that take turns: ours, PyTorch eager, `torch.compile`, each with the same threads. Times
on shared machines are noisy: read the ratios.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.ours import start
from benchmarks.peers.serve import answers, serve, timed
from benchmarks.run import keep
from benchmarks.sides import Worker, ratio
from jaxwm import agents, envs, spaces
from jaxwm.agents import diamond, storm
from jaxwm.learning.pieces import map_pieces, merge, routes, split
from jaxwm.models.diffusion import noise_levels
from jaxwm.types import Spec

PEERS, ENV, COLOURS = Path(__file__).parent / "peers", "minatar/Breakout", 3


@dataclass(frozen=True)
class Options:
    """Measure dreams."""

    torch: str = sys.executable
    """Python with PyTorch."""
    system: Literal["storm", "diamond"] = "storm"
    """Whose dreams."""
    presets: tuple[Literal["nano", "micro", "small", "published"], ...] = ("nano", "micro", "published")
    """Sizes."""
    dreams: int = 0
    """Dreams at once; 0 for those of the preset."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where."""
    repeats: int = 15
    """Dreams of each side."""
    save: bool = True
    """Keep the result in benchmarks/results/."""
    serve: str = ""
    """For this program itself: be our side, for this preset."""


def ours(options: Options) -> None:
    """Our side, as a process: dreams on request."""
    say = answers()
    config = settings(options, options.serve)
    params, dream = (ours_of_storm if options.system == "storm" else ours_of_diamond)(config)
    key = jax.random.key(3)

    def run() -> None:
        jax.block_until_ready(dream(params, key))

    run()
    count = sum(x.size for x in jax.tree.leaves(params))
    serve(say, {"parameters": count}, {"update": timed(run)})


def ours_of_storm(config: storm.Config) -> tuple[Any, Any]:
    """Parameters of STORM, and its dream as a compiled function of these and a key."""
    spec = envs.make(ENV).spec
    it = storm.Learner(storm.build(spec, config, routes()), spec, config, routes())
    params = storm.init_params(it.nets, jax.random.key(0))
    rows, length = config.dreams, config.context
    shape = rows, length, *it.world.latents.shape[:1]
    stoch = jax.nn.one_hot(jax.random.randint(jax.random.key(1), shape, 0, config.classes), config.classes)
    action = jax.random.randint(jax.random.key(2), (rows, length), 0, spec.action.n)

    @jax.jit
    def dream(params: Any, key: Any) -> Any:
        noise = it.noise(key, rows, length, config.imag_length)
        pieces = split((stoch, action, noise), it.routes.dreams)
        return merge(map_pieces(lambda params, piece: after(it, params, *piece).swapaxes(0, 1), params, pieces))

    return {name: params[name] for name in ("model", "pol")}, dream


def after(it: storm.Learner, params: Any, stoch: Any, action: Any, noise: storm.Noise) -> Any:
    """Features of dreams after contexts whose latents are known."""
    model, first = it.world.ready(params["model"]), jnp.zeros(action.shape, bool)
    start = it.world.begin(model, stoch, action, first, it.config.imag_length)
    return it.follow(model, params["pol"], start, noise)[0]


def ours_of_diamond(config: diamond.Config) -> tuple[Any, Any]:
    """Parameters of DIAMOND, and its dream as a compiled function of these and a key."""
    side, actions = side_of(config), envs.make(ENV).spec.action
    spec = Spec("own/Frames", jax.ShapeDtypeStruct((side, side, COLOURS), jnp.uint8), actions)
    nets, batch = diamond.Networks(spec, config, routes()), config.policy_batch
    params, start = jax.jit(nets.init)(jax.random.key(0)), nets.dreams.empty(batch)

    @jax.jit
    def dream(params: Any, key: Any) -> Any:
        def one(now: Any, key: Any) -> Any:
            plan = jax.random.uniform(key, (batch, spaces.noise_size(actions)))
            noise = jax.random.normal(jax.random.fold_in(key, 1), (batch, side, side, COLOURS))
            now, _, said = nets.dreams.step(params, now, spaces.noise(actions, plan), noise)
            return now, (now.stack.frame[:, -1], said[0].logits, said[1])

        return jax.lax.scan(one, start, jax.random.split(key, config.dream_steps))[1]

    return params, dream


def side_of(config: diamond.Config) -> int:
    """Pixels of a side of a frame."""
    return 64 if config == agents.settings("diamond", "published", policy_batch=config.policy_batch) else 16


def settings(options: Options, preset: str) -> Any:
    """Settings of a preset with as many dreams as asked for."""
    name = "dreams" if options.system == "storm" else "policy_batch"
    config = agents.settings(options.system, preset)
    return replace(config, **{name: options.dreams or getattr(config, name)})


def size(config: Any) -> tuple[int, int]:
    """Dreams, and frames of each."""
    return (
        (config.dreams, config.imag_length) if hasattr(config, "dreams") else (config.policy_batch, config.dream_steps)
    )


STORM = "stoch", "classes", "width", "layers", "heads", "hidden", "units", "policy_layers", "context"
DIAMOND = "past", "blocks", "cond", "outcome_blocks", "outcome_cond", "outcome_units", "policy_depth", "units"


def shapes(config: Any, how: str) -> str:
    """The settings that PyTorch's side is told."""
    told = {name: getattr(config, name) for name in (STORM if isinstance(config, storm.Config) else DIAMOND)}
    batch, horizon = size(config)
    threads = len(os.sched_getaffinity(0))  # cores that this process may use
    told |= dict(batch=batch, horizon=horizon, actions=envs.make(ENV).spec.action.n, how=how, threads=threads)
    if isinstance(config, storm.Config):
        return json.dumps(told | dict(slots=config.context - 1 + horizon))
    side = side_of(config)
    spec = Spec("own/Frames", jax.ShapeDtypeStruct((side, side, COLOURS), jnp.uint8), envs.make(ENV).spec.action)
    world = diamond.Networks(spec, config).world
    told |= dict(channels=world.channels, outcome_channels=world.outcome_channels, side=side, colours=COLOURS)
    return json.dumps(told | dict(levels=noise_levels(config.passes).tolist()))


def measure(options: Options, preset: str) -> dict[str, Any]:
    """Seconds of dreams of each side, in turns."""
    config, peer = settings(options, preset), str(PEERS / f"torch_{options.system}.py")
    command = [sys.executable, "-m", "benchmarks.dreams", "--system", options.system, "--serve", preset]
    command += ["--dreams", str(options.dreams), "--device", options.device]
    with Worker("ours", command) as us:
        sides = {"ours": us}
        with (
            Worker("eager", [options.torch, peer, shapes(config, "eager")]) as eager,
            Worker("compile", [options.torch, peer, shapes(config, "compile")]) as compiled,
        ):
            sides |= {"eager": eager, "compile": compiled}
            turns = [[side.update() for side in sides.values()] for _ in range(options.repeats)]
            about = {"torch": eager.ready["torch"]}
            about |= {"parameters": {name: side.ready["parameters"] for name, side in sides.items()}}
    times = dict(zip(sides, zip(*turns, strict=True), strict=True))
    dreams, horizon = size(config)
    return dict(system=options.system, preset=preset, dreams=dreams, horizon=horizon, seconds=times, **about)


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(
        "preset", "dreams x steps", "side", "frames/s", "time / ours", title=f"dreams of {results[0]['system']}"
    )
    for r in results:
        frames = r["dreams"] * r["horizon"]
        for side, seconds in r["seconds"].items():
            times = ratio(list(zip(seconds, r["seconds"]["ours"], strict=True)))
            rate = f"{frames / np.median(seconds):,.0f}"
            out.add_row(
                r["preset"], f"{r['dreams']} x {r['horizon']}", side, rate, "" if side == "ours" else str(times)
            )
    return out


def main() -> int:
    options = tyro.cli(Options, prog="python -m benchmarks.dreams", description=__doc__)
    start(options.device, "")
    if options.serve:
        ours(options)
        return 0
    results = [measure(options, preset) for preset in options.presets]
    console = Console()
    console.print(table(results))
    if options.save:
        console.print(f"kept in {keep('dreams', results, module='benchmarks.dreams')}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
