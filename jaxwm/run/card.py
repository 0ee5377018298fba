"""The start-up card of a run: sizes and costs, before memory is taken."""

from __future__ import annotations

from typing import Any

import jax
from rich.console import Console

from jaxwm.run import cost
from jaxwm.run.plan import Plan
from jaxwm.training import processes
from jaxwm.training.trainer import Trainer
from jaxwm.types import Env


def show(console: Console, plan: Plan, trainer: Trainer, sizes: dict[str, Any]) -> None:
    """Print the card; `sizes` are a `Trainer.footprint`. ValueError where not even state and replay fit."""
    copies = trainer.spread.copies  # each holds all of the member; shards split the replay
    replay, state = copies * cost.tree_bytes(sizes["replay"]), cost.tree_bytes(sizes["state"])
    state *= copies * plan.shards
    _check_memory(state + replay)
    say, noun = console.print, "member" if plan.members == 1 else "members"
    say(f"[bold]{plan.agent}[/bold] on [bold]{plan.task}[/bold], {plan.members} {noun}, seed {plan.seed}, "
        f"{jax.default_backend()}")  # fmt: skip
    say(f"  parameters     {sizes['parameters']:,} each")
    say(f"  agent state    {cost.human(state, 'B')}")
    each = "steps of each member" if isinstance(trainer.source, Env) else "records, one copy for all members"
    say(f"  replay         {cost.human(replay, 'B')} for {trainer.capacity:,} {each}")
    for name, (fn, args) in sizes["updates"].items():
        say(f"  update {name:<7} {cost.human(cost.flops(fn, *args), 'FLOP')} each")
    if idle := trainer.spread.idle:
        noun = "device" if idle == 1 else "devices"
        say(f"  idle           {idle} {noun}: make --members a multiple of {idle + trainer.spread.mesh.size}")
    need, free = 2 * state + replay, cost.available_memory()  # gradients and temporaries at least double the state
    if need > 0.9 * free:
        say(f"[bold red]  warning: {cost.human(need, 'B')} needed, {cost.human(free, 'B')} free:[/bold red] lower "
            "--capacity, --members or the preset")  # fmt: skip


def _check_memory(need: int) -> None:
    """ValueError where not even the state and the replay fit: the machine would end the program without a word."""
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()  # members are spread over devices
    free = cost.available_memory() * devices * jax.process_count()
    short, _ = processes.agree(need > free)
    if short:
        raise ValueError(
            f"the run needs more than {cost.human(need, 'B')} of memory and {cost.human(free, 'B')} are free: lower "
            "--capacity, --members or --envs, or take a smaller preset"
        )
