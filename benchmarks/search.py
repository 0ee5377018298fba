"""Speed of the tree search: actions a second against batch and simulations, and where the time goes.

    python -m benchmarks.search                                     # a table, kept in benchmarks/results/
    python -m benchmarks.search --batches 64 --simulations 16 --kinds gumbel

Two models. "mlp" is a small learned one: latent and layers of 128, reward and value over 601 bins, 4 actions.
"connect four" is AlphaZero's: the game itself and the network of the preset, 7 actions. Each search is timed again with
a model that costs nothing (the same embedding, nothing computed from it): what is left is mctx itself, the rest is the
share outside it. Times on shared machines are noisy: read medians beside their range.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.ours import start
from benchmarks.run import keep
from jaxwm import agents, envs
from jaxwm.agents import alphazero
from jaxwm.control import search
from jaxwm.nets.layers import MLP, Linear, apply

WIDTH, BINS, ACTIONS = 128, 601, 4
SEARCHES = 5
"""Searches in one timed call, so that what a call costs does not count."""


@dataclass(frozen=True)
class Options:
    """Measure searches on random data."""

    models: tuple[Literal["mlp", "connect-four"], ...] = ("mlp", "connect-four")
    """What predicts."""
    kinds: tuple[Literal["gumbel", "puct"], ...] = ("gumbel", "puct")
    """Kinds of search."""
    batches: tuple[int, ...] = (8, 64, 256)
    """Searches at once."""
    simulations: tuple[int, ...] = (16, 32)
    """Simulations of each."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where."""
    repeats: int = 7
    """Timed calls of each."""
    save: bool = True
    """Keep the result in benchmarks/results/."""


class Small(nn.Module):
    """A learned model: `(latent [B, 128], action) -> (reward, value, logits, latent)`."""

    @nn.compact
    def __call__(self, latent: Any, action: Any) -> tuple[Any, ...]:
        x = jnp.concatenate([latent, jax.nn.one_hot(action, ACTIONS)], -1)
        latent = MLP(1, WIDTH, name="dynamics")(x)
        support = jnp.linspace(-1.0, 1.0, BINS)
        mean = lambda name: jax.nn.softmax(Linear(WIDTH, BINS, name=name)(latent)) @ support  # noqa: E731
        return mean("reward"), mean("value"), Linear(WIDTH, ACTIONS, name="logits")(latent), latent


Problem = tuple[Any, search.Root, Callable]
"""`(params, root, model)`: what `search.search` wants beside its settings and a key."""


def mlp(batch: int) -> Problem:
    net, latent = Small(), jax.random.normal(jax.random.key(0), (batch, WIDTH))
    params = net.init(jax.random.key(1), latent, jnp.zeros(batch, jnp.int32))

    def model(params: Any, key: Any, action: Any, latent: Any) -> tuple[Any, Any]:
        reward, value, logits, latent = apply(net, params, latent, action)
        return search.Node(reward=reward, discount=0.99 + 0 * value, prior_logits=logits, value=value), latent

    _, value, logits, latent = net.apply(params, latent, jnp.zeros(batch, jnp.int32))
    return params, search.Root(logits, value, latent, jnp.ones((batch, ACTIONS), bool)), model


def connect_four(batch: int) -> Problem:
    env, config = envs.make("pgx/ConnectFour", batch), agents.settings("alphazero", "connect-four")
    net = alphazero.Net(7, config)
    look = lambda params, board: apply(net, params, board)  # noqa: E731
    _, step = env.reset(jax.random.key(0))
    params = net.init(jax.random.key(1), step.obs["board"])
    logits, value = net.apply(params, step.obs["board"])
    root = search.Root(logits, value, (step.obs["sim"], step.obs["to_play"]), step.obs["legal"])
    return params, root, alphazero.perfect_model(env.spec.simulate, look)  # type: ignore[arg-type]


def free(params: Any, key: Any, action: Any, place: Any) -> tuple[Any, Any]:
    """A model that costs nothing: numbers that differ enough for a tree to grow as with another one."""
    chance = jax.random.uniform(key, (*action.shape, params))
    zero = 0 * chance[:, 0]
    return search.Node(reward=zero, discount=zero + 0.99, prior_logits=chance, value=chance[:, 0]), place


def seconds(settings: search.Settings, params: Any, root: search.Root, model: Callable, repeats: int) -> list[float]:
    """Time of one search of the whole batch, `repeats` times."""

    @jax.jit
    def several(keys: Any) -> Any:
        one = lambda key: search.search(settings, params, root, model, key).action  # noqa: E731
        return jax.lax.map(one, keys)

    times = []
    for i in range(repeats + 1):  # the first one compiles
        keys = jax.random.split(jax.random.key(i), SEARCHES)
        began = time.perf_counter()
        jax.block_until_ready(several(keys))
        times.append((time.perf_counter() - began) / SEARCHES)
    return times[1:]


def measure(name: str, kind: Any, batch: int, simulations: int, repeats: int) -> dict[str, Any]:
    """Actions a second of one setting, and the share of the time that is not mctx's own."""
    params, root, model = {"mlp": mlp, "connect-four": connect_four}[name](batch)
    settings = search.Settings(kind, simulations, bounds=(-1.0, 1.0))
    whole = seconds(settings, params, root, model, repeats)
    own = seconds(settings, root.logits.shape[-1], root, free, repeats)
    return dict(model=name, kind=kind, batch=batch, simulations=simulations, seconds=whole, mctx_seconds=own)


def table(results: list[dict[str, Any]]) -> Table:
    out = Table("model", "root", "batch", "simulations", "actions/s (min..max)", "simulations/s", "outside mctx",
                title="Tree search: median")  # fmt: skip
    for r in results:
        rates = r["batch"] / np.array(r["seconds"])
        middle, share = float(np.median(rates)), 1 - np.median(r["mctx_seconds"]) / np.median(r["seconds"])
        speed = f"{middle:,.0f} ({rates.min():,.0f}..{rates.max():,.0f})"
        cells = r["model"], r["kind"], str(r["batch"]), str(r["simulations"]), speed
        out.add_row(*cells, f"{middle * r['simulations']:,.0f}", f"{max(0.0, float(share)):.0%}")
    return out


def main() -> int:
    options, console = tyro.cli(Options, prog="benchmarks.search"), Console(width=None if sys.stdout.isatty() else 120)
    sizes = [*options.batches, *options.simulations, options.repeats]
    if min(sizes, default=0) < 1:
        print("error: --batches, --simulations and --repeats are at least 1", file=sys.stderr)
        return 2
    start(options.device, os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    results = []
    for setting in product(options.models, options.kinds, options.batches, options.simulations):
        with console.status(" ".join(map(str, setting))):
            results.append(measure(*setting, options.repeats))
    console.print(table(results))
    if options.save:
        print(f"kept in benchmarks/results/{keep('search', results, module='benchmarks.search').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
