"""A member of a run with every program that playing needs, compiled before anybody plays.

All visitors who play with the same member share a desk; what belongs to one visitor is a `session.Session`. Arrays have
a batch of one: `[1, ...]`, and `[1, L, ...]` in a context."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import spaces
from jaxwm.nets.sensors import sensors
from jaxwm.studio import episodes, names, paper, pictures
from jaxwm.studio.episodes import Player
from jaxwm.training.life import ACT, ENV, stream
from jaxwm.training.program import kept
from jaxwm.types import Box, Discrete, Dream, Key, Mode, Record, Step
from jaxwm.web import boards

CONTEXT = 8  # records that the model sees before a dream
HORIZONS = (16, 64)  # lengths of the dreams that are compiled: a short one answers faster
QUICK = 0.06  # seconds; a policy that needs longer is asked only where it plays
SIZE, MOST_NUMBERS = 160, 12  # pixels of a frame, about; numbers of an observation that are shown
DRAWS = 32  # actions of the exploring policy from which its probabilities are counted


class Thought(NamedTuple):
    """What the policy thinks at a step: its memory after it, its action, the extras, and how likely each choice is."""

    memory: Any
    action: np.ndarray
    extras: Any
    odds: list[float] | None
    value: float | None


class Desk:
    """The programs of one member: environment, policy and dream. ValueError where nothing can act in it."""

    def __init__(self, player: Player):
        self.player, self.agent, self.key = player, player.agent, player.key
        if self.agent.act is None:
            raise ValueError(f"{player.plan.agent} cannot be played: nothing acts in it")
        self.env = player.envs(1)
        self.spec = self.env.spec
        self.board = boards.find(self.spec)
        self.painter = boards.painter(self.board) if self.board else pictures.painter(self.spec, SIZE)
        self.start, self.advance, self.close = episodes.single(self.env)
        self.quick, self.horizons = True, HORIZONS
        self._act = jax.jit(self._choose, static_argnums=4)
        self._imagine = jax.jit(self._roll, static_argnums=4)
        self._others: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A program of the pages that is seldom wanted, made when it first is and kept."""
        if name not in self._others:
            self._others[name] = make()
        return self._others[name]

    @property
    def rewinds(self) -> bool:
        """Whether the environment can go back to any moment, because its state is a value."""
        return self.env.pure

    @property
    def dreams(self) -> bool:
        """Whether there is a model to play in."""
        return self.agent.imagine is not None

    def warm(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Compile everything, and measure: how long the policy thinks, and which dreams agree with the longest one."""
        say("the environment")
        handle, step = self.start(stream(self.key, ENV))
        memory = self.agent.reset(self.player.state, 1)
        thought = self._warm_policy(memory, step, say)
        record = self.record(step, thought)
        self.advance(handle, jnp.asarray(record.action))
        self.close(handle)
        if self.dreams:
            self._warm_dreams(self.context([record]), say)

    def _warm_policy(self, memory: Any, step: Step, say: Callable[[str], None]) -> Thought:
        for mode in ("greedy", "explore"):
            say(f"the policy, {mode}")
            thought = self.think(self.player.state, memory, step, self.key, mode)
        began = time.perf_counter()
        self.think(self.player.state, memory, step, self.key, "greedy")
        self.quick = time.perf_counter() - began < QUICK
        if not self.quick:  # while a visitor plays it is not asked, but its memory must see
            say("the policy, random")
            self.think(self.player.state, memory, step, self.key, "random")
        return thought

    def _warm_dreams(self, context: Record, say: Callable[[str], None]) -> None:
        found = {}
        for horizon in HORIZONS:
            say(f"dreams of {horizon} steps")
            actions = np.repeat(context.action[:, -1:], horizon, 1)
            found[horizon] = self._roll_out(self.player.state, context, actions, self.key, horizon)
        first, whole = HORIZONS[0], found[HORIZONS[-1]]
        alike = lambda short: all(  # noqa: E731
            np.allclose(a[:, :first].astype(float), b[:, :first].astype(float), atol=1e-4)
            for a, b in zip(jax.tree.leaves(short._replace(latent=())), jax.tree.leaves(whole._replace(latent=())), strict=True)
        )
        self.horizons = tuple(horizon for horizon in HORIZONS if alike(found[horizon]))

    # --- Policy -----------------------------------------------------------------------------------------------------
    def think(self, state: Any, memory: Any, step: Step, key: Key, mode: Mode) -> Thought:
        """Let the policy see a step `[1, ...]` and choose. Where a search says how likely its choices are, that is
        used; else `DRAWS` actions of the exploring policy are counted."""
        after, action, extras, odds = jax.device_get(self._act(state, memory, step, key, mode))
        value = extras["value"] if isinstance(extras, dict) and np.shape(extras.get("value", ())) == (1,) else None
        return Thought(
            after, action, extras, None if odds is None else odds.round(3).tolist(),
            None if value is None or mode == "random" else float(value[0]),
        )  # fmt: skip

    def _choose(self, state: Any, memory: Any, step: Step, key: Key, mode: Mode) -> tuple[Any, ...]:
        after, action, extras = self.agent.act(state, memory, step, key, mode)
        if mode == "random" or not isinstance(self.spec.action, Discrete):
            return after, action, extras, None
        if isinstance(extras, dict) and np.shape(extras.get("policy", ())) == (1, self.spec.action.n):
            return after, action, extras, extras["policy"][0]
        keys = jax.random.split(key, DRAWS)
        drawn = jax.vmap(lambda key: self.agent.act(state, memory, step, key, "explore")[1][0])(keys)
        return after, action, extras, jax.nn.one_hot(drawn, self.spec.action.n).mean(0)

    def told(self, memory: Any, action: np.ndarray) -> Any:
        """The policy's memory, where another action was taken than it chose. Memories that keep the action itself are
        set right; those that have already worked it in (STORM, World Models) go on believing in their own."""
        if hasattr(memory, "action") and np.shape(memory.action) == action.shape:
            return memory._replace(action=jnp.asarray(action, memory.action.dtype))
        return memory

    # --- Dreams -----------------------------------------------------------------------------------------------------
    def record(self, step: Step, thought: Thought, action: np.ndarray | None = None) -> Record:
        """A record `[1, ...]` of a step, with the action taken after it (that of the policy, if not given)."""
        return jax.device_get(Record(kept(step.obs), *step[1:], thought.action if action is None else action, thought.extras))

    def context(self, records: Sequence[Record]) -> Record:
        """The last `CONTEXT` records as `[1, L, ...]`; where there are fewer, the first one is repeated. It begins an
        episode, at which every model starts anew."""
        last = list(records[-CONTEXT:])
        last = [last[0]] * (CONTEXT - len(last)) + last
        return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x], 1), *last)

    def dream(self, state: Any, context: Record, actions: Sequence[np.ndarray], key: Key) -> Dream:
        """The dream `[1, k, ...]` of `Agent.imagine` after k actions `[1, ...]`, of which the first follows the last
        record of the context. ValueError for more of them than the longest dream has."""
        count = len(actions)
        horizon = next((h for h in self.horizons if h >= count), None)
        if horizon is None:
            raise ValueError(f"a dream has at most {self.horizons[-1]} steps")
        filled = np.stack([*actions, *[actions[-1]] * (horizon - count)], 1)
        last = np.concatenate([context.action[:, :-1], filled[:, :1]], 1)
        found = self._roll_out(state, context._replace(action=last), filled, key, horizon)
        return jax.tree.map(lambda x: x[:, :count], found)

    def _roll(self, state: Any, context: Record, actions: Any, key: Key, horizon: int) -> Dream:
        return self.agent.imagine(state, context, actions, key, horizon)._replace(latent=())  # type: ignore[misc]

    def _roll_out(self, state: Any, context: Record, actions: Any, key: Key, horizon: int) -> Dream:
        return jax.device_get(self._imagine(state, context, actions, key, horizon))

    def remembered(self, state: Any, steps: Sequence[Step], actions: Sequence[np.ndarray], key: Key) -> list[Record]:
        """Records of steps that nobody thought about, such as dreamed or recorded ones: the policy sees them now."""
        memory, out = self.agent.reset(state, 1), []
        for t, (step, action) in enumerate(zip(steps, actions, strict=True)):
            thought = self.think(state, memory, step, stream(key, ACT, t), "greedy" if self.quick else "random")
            memory = self.told(thought.memory, action)
            out.append(self.record(step, thought, action))
        return out

    # --- In pictures and words ---------------------------------------------------------------------------------------------------
    @property
    def numbers(self) -> list[str]:
        """Names of the numbers of an observation that are shown on strips: fewer where there is a picture."""
        if self.board:
            return []
        zeros = jax.tree.map(lambda s: np.zeros(s.shape), kept(self.spec.obs))
        return pictures.numbers(zeros, self.spec)[0][: 4 if self.painter else MOST_NUMBERS]

    @property
    def smooth(self) -> bool:
        """Whether pictures are drawings, whose edges are no pixels of the observation."""
        return bool(self.board) or not any(pictures.is_picture(x) for x in sensors(self.spec.obs).values())

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Colours and what they mean."""
        if self.painter is None:
            return []
        colours = [paper.ORANGE, pictures.SKY] if self.board else pictures.PLANES
        return [(colours[i % len(colours)], word) for i, (_, word) in enumerate(self.painter.colours)]

    def action(self, given: Any) -> np.ndarray:
        """An action `[1, ...]` out of JSON; ValueError where it is none of the environment's."""
        space = self.spec.action
        try:
            x = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            raise ValueError("an action is a number, or a list of numbers") from None
        blank = np.asarray(spaces.blank(space, 1))
        if x.shape != blank.shape[1:] or not np.isfinite(x).all():
            raise ValueError(f"an action of {self.spec.name} has the shape {list(blank.shape[1:])}, not {list(x.shape)}")
        if isinstance(space, Box):
            return np.clip(x, -1, 1)[None]
        most = np.asarray(getattr(space, "n", 1), np.float32)
        choices = x[: len(most)] if most.ndim and x.ndim and len(x) > len(most) else x
        if (choices < 0).any() or (choices >= most).any() or (choices != np.round(choices)).any():
            raise ValueError(f"the choices of {self.spec.name} are whole numbers below {np.asarray(most, int).tolist()}")
        return x.astype(blank.dtype)[None]

    def about(self) -> dict[str, Any]:
        """What a page must know before it shows this desk, as JSON."""
        space, player = self.spec.action, self.player
        said: dict[str, Any] = {"kind": type(space).__name__}
        if isinstance(space, Discrete):
            said["names"] = names.actions(self.spec, space.n) or [f"action {i}" for i in range(space.n)]
        elif isinstance(space, Box):
            said["names"] = names.actions(self.spec, space.size) or [f"entry {i + 1}" for i in range(space.size)]
        else:
            said |= {"n": np.asarray(space.n).tolist(), "size": getattr(space, "size", 0)}
        hyper = getattr(player.state, "hyper", {})
        return {
            "agent": player.plan.agent, "env": self.spec.name, "member": player.member, "members": player.plan.members,
            "steps": player.env_steps, "action": said, "numbers": self.numbers,
            "picture": self.painter is not None, "smooth": self.smooth, "board": self.board and self.board._asdict(), "dreams": self.dreams, "rewinds": self.rewinds, "quick": self.quick,
            "legend": self.legend, "context": CONTEXT, "horizon": self.horizons[-1],
            "temperature": float(hyper["temperature"]) if "temperature" in hyper and self.dreams else None,
        }  # fmt: skip
