"""Speed of STORM's dream: imagined frames per second next to the same dream in plain PyTorch.

    python -m benchmarks.dreams --torch ~/torch/bin/python              # a table, kept in benchmarks/results/
    python -m benchmarks.dreams --torch ~/torch/bin/python --presets micro --repeats 30

One dream reads the context's tokens, then chooses an action, appends a token to the cache and draws the next latents,
`imag_length` times; no gradients, float32, the batch of one update. The sides are processes that take turns: ours,
PyTorch eager, `torch.compile`, each with the same threads. Times on shared machines are noisy: read the ratios.
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
from jaxwm import agents, envs
from jaxwm.agents import storm
from jaxwm.learning.pieces import map_pieces, merge, routes, split

TORCH = Path(__file__).parent / "peers" / "torch_storm.py"
ENV = "minatar/Breakout"


@dataclass(frozen=True)
class Options:
    """Measure dreams."""

    torch: str = sys.executable
    """Python with PyTorch."""
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


def ours(preset: str, dreams: int) -> None:
    """Our side, as a process: dreams on request."""
    say = answers()
    config, spec = settings(preset, dreams), envs.make(ENV).spec
    it = storm.Learner(storm.build(spec, config, routes()), spec, config, routes())
    params = storm.init_params(it.nets, jax.random.key(0))
    rows, length = config.dreams, config.context
    shape = rows, length, *it.world.latents.shape[:1]
    stoch = jax.nn.one_hot(jax.random.randint(jax.random.key(1), shape, 0, config.classes), config.classes)
    action = jax.random.randint(jax.random.key(2), (rows, length), 0, spec.action.n)

    @jax.jit
    def dream(params: Any, stoch: Any, action: Any, key: Any) -> Any:
        noise = it.noise(key, rows, length, config.imag_length)
        pieces = split((stoch, action, noise), it.routes.dreams)
        return merge(map_pieces(lambda params, piece: after(it, params, *piece).swapaxes(0, 1), params, pieces))

    def run() -> None:
        jax.block_until_ready(dream(params, stoch, action, jax.random.key(3)))

    run()
    count = sum(x.size for x in jax.tree.leaves((params["model"], params["pol"])))
    serve(say, {"parameters": count}, {"update": timed(run)})


def after(it: storm.Learner, params: Any, stoch: Any, action: Any, noise: storm.Noise) -> Any:
    """Features of dreams after contexts whose latents are known."""
    model, first = it.world.ready(params["model"]), jnp.zeros(action.shape, bool)
    start = it.world.begin(model, stoch, action, first, it.config.imag_length)
    return it.follow(model, params["pol"], start, noise)[0]


def settings(preset: str, dreams: int) -> storm.Config:
    config = agents.settings("storm", preset)
    return replace(config, dreams=dreams or config.dreams)


def shapes(config: storm.Config, how: str) -> str:
    """The settings that PyTorch's side is told."""
    names = "stoch", "classes", "width", "layers", "heads", "hidden", "units", "policy_layers", "context"
    told = {name: getattr(config, name) for name in names}
    told |= dict(batch=config.dreams, horizon=config.imag_length, slots=config.context - 1 + config.imag_length)
    return json.dumps(told | dict(actions=envs.make(ENV).spec.action.n, how=how, threads=os.cpu_count()))


def measure(options: Options, preset: str) -> dict[str, Any]:
    """Seconds of dreams of each side, in turns."""
    config = settings(preset, options.dreams)
    command = [sys.executable, "-m", "benchmarks.dreams", "--serve", preset, "--dreams", str(config.dreams)]
    with Worker("ours", [*command, "--device", options.device]) as us:
        sides = {"ours": us}
        with (
            Worker("eager", [options.torch, str(TORCH), shapes(config, "eager")]) as eager,
            Worker("compile", [options.torch, str(TORCH), shapes(config, "compile")]) as compiled,
        ):
            sides |= {"eager": eager, "compile": compiled}
            turns = [[side.update() for side in sides.values()] for _ in range(options.repeats)]
            about = {"torch": eager.ready["torch"]}
    times = dict(zip(sides, zip(*turns, strict=True), strict=True))
    return dict(preset=preset, dreams=config.dreams, horizon=config.imag_length, seconds=times, **about)


def table(results: list[dict[str, Any]]) -> Table:
    out = Table("preset", "dreams x steps", "side", "frames/s", "time / ours", title="STORM's dream")
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
        ours(options.serve, options.dreams)
        return 0
    results = [measure(options, preset) for preset in options.presets]
    console = Console()
    console.print(table(results))
    if options.save:
        console.print(f"kept in {keep('dreams', results, module='benchmarks.dreams')}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
