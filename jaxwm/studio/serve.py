"""`jaxwm serve`: the policy of a run answers over a socket, each client with a memory of its own.

The protocol, and the client for other machines, are `jaxwm.envs.wire`."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape

from jaxwm.envs import border, wire
from jaxwm.studio.episodes import Player
from jaxwm.training.life import ACT, stream
from jaxwm.types import Box, Mode, Spec, Step


def serve(player: Player, mode: Mode, host: str, port: int, console: Console) -> None:
    """Answer clients until an interrupt. ValueError for an agent that does not act or that searches in the simulator
    itself, OSError for a port that is taken."""
    server = prepare(player, mode, host, port, wire.secret(host)[0])
    console.print(f"{player.title()}, {mode} policy", highlight=False)
    console.print(f"  address        {escape(server.address)}", highlight=False)
    if server.token:
        console.print(f"  token          {wire.TOKEN}={server.token}", highlight=False, soft_wrap=True)
    console.print(f'  ask it with    wire.Agent("{escape(server.address)}").act(obs), file jaxwm/envs/wire.py')
    server.run()


def prepare(player: Player, mode: Mode, host: str, port: int, token: str) -> wire.Server:
    """A server that listens, its policy compiled; errors as in `serve`."""
    spec, agent = player.envs(1).spec, player.agent
    if agent.act is None:
        raise ValueError(f"{player.plan.agent} cannot be served: nothing acts in it")
    if isinstance(spec.obs, dict) and "sim" in spec.obs:
        raise ValueError(f"{player.plan.agent} cannot be served: it searches in the simulator of {player.plan.env}")
    act = jax.jit(lambda state, memory, step, key: agent.act(state, memory, step, key, mode)[:2])
    count = itertools.count()

    def join() -> Seat:
        return Seat(player, spec, act, jax.random.fold_in(player.key, next(count)))

    seat = join()
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), spec.obs)
    if spec.one_hot:
        blank.flat[0] = True
    seat.answer({"kind": "act"}, wire.leaves(blank))  # compiles
    return wire.Server("agent", join, host, port, token)


class Seat:
    """What one client talks to: the memory of the policy in the client's episode."""

    def __init__(self, player: Player, spec: Spec, act: Any, key: jax.Array):
        self.player, self.spec, self.act, self.key = player, spec, act, key
        self.memory, self.time = player.agent.reset(player.state, 1), 0

    def answer(self, message: dict[str, Any], arrays: wire.Arrays) -> tuple[dict[str, Any], wire.Arrays]:
        """Say who plays (`join`), or act. ValueError where the observation is not what the agent knows: its memory
        stays as it was."""
        if message.get("kind") == "join":
            return {"kind": "agent", **describe(self.player, self.spec)}, ()
        if message.get("kind") != "act":
            raise ValueError(f"an agent is asked to join or act, not to {message.get('kind')!r}")
        obs = jax.tree.map(lambda x: x[None], wire.nest(arrays))
        obs = border.checked(self.spec, obs, np.zeros(1, bool))
        reward = border.reward(self.spec.name, [message.get("reward", 0.0)], (1,))
        (obs, reward), _ = border.finite((obs, reward))
        first, no = np.array([bool(message.get("first", self.time == 0))]), np.zeros(1, bool)
        step = Step(*jax.tree.map(jnp.asarray, (obs, reward, first, no, no)))
        key = stream(self.key, ACT, self.time)
        self.memory, action = self.act(self.player.state, self.memory, step, key)
        self.time += 1
        return {"kind": "action"}, [((), np.asarray(action)[0])]

    def close(self) -> None:
        """The client has left."""


def describe(player: Player, spec: Spec) -> dict[str, Any]:
    """An agent as JSON: who it is, the shape and dtype of each sensor (of the only one, without a name), its action."""
    shapes: Any = spec.obs if isinstance(spec.obs, dict) else {"": spec.obs}
    seen = {name: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for name, x in shapes.items()}
    space = spec.action
    size = {"size": space.size} if isinstance(space, Box) else {"n": np.asarray(space.n).tolist()}
    who = dict(agent=player.plan.agent, env=player.plan.env, member=player.member, steps=player.env_steps)
    return {**who, "obs": seen, "action": {"kind": type(space).__name__, **size}}
