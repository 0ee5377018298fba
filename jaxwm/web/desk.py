"""A member of a run with every program that playing needs, compiled before anybody plays.

All visitors who play with the same member share a desk; what belongs to one visitor is a `session.Session`. Arrays have
a batch of one: `[1, ...]`, and `[1, L, ...]` in a context."""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import spaces
from jaxwm.nets.sensors import sensors
from jaxwm.studio import episodes, names, paper, pictures
from jaxwm.studio.episodes import Player
from jaxwm.training import quick
from jaxwm.training.life import ACT, ENV, stream
from jaxwm.training.program import kept
from jaxwm.types import Box, Discrete, Dream, Key, Mode, Record, Step
from jaxwm.web import boards

CONTEXT = 8  # records that the model sees before a dream
HORIZONS = (16, 64)  # lengths of the dreams that are compiled: a short one answers faster
QUICK = 0.06  # seconds; a policy that needs longer is asked only where it plays
SIZE, MOST_NUMBERS = 160, 12  # pixels of a frame, about; numbers of an observation that are shown
DOUBTERS = 8  # dreams whose spread is the uncertainty
DRAWS = 32  # actions of the exploring policy from which its probabilities are counted


class Thought(NamedTuple):
    """What the policy thinks at a step: its memory after it, its action, the extras, and how likely each choice is."""

    memory: Any
    action: Any
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
        soon = quick.options()  # visitors wait for the compiler once, and rarely play for long
        self._act = jax.jit(self._choose, static_argnums=4, compiler_options=soon)
        self._imagine = jax.jit(self._roll, static_argnums=4, compiler_options=soon)
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
        """Compile everything, two programs at a time, and measure: how long the policy thinks, and which dreams agree
        with the longest one."""
        say("the environment")
        state, key = self.player.state, self.key
        handle, step = self.start(stream(key, ENV))
        memory = self.agent.reset(state, 1)
        policy = jax.eval_shape(
            lambda state, memory, step: self._choose(state, memory, step, key, "greedy"), state, memory, step
        )
        _, action, extras, _ = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), policy)
        record = self.record(step, Thought(memory, action, extras, None, None))
        jobs: dict[str, Callable[[], Any]] = {"the policy": lambda: self.think(state, memory, step, key, "greedy")}
        for horizon in HORIZONS if self.dreams else ():
            jobs[f"dreams of {horizon} steps"] = lambda h=horizon: self._try(self.context([record]), h)
        found = _side_by_side(jobs, say)
        self.advance(handle, jnp.asarray(action))
        self.close(handle)
        self._measure(memory, step)
        if self.dreams:
            dreams = [found[f"dreams of {horizon} steps"] for horizon in HORIZONS]
            self.horizons = tuple(h for h, dream in zip(HORIZONS, dreams, strict=True) if _begins(dreams[-1], dream))

    def _try(self, context: Record, horizon: int) -> Dream:
        actions = np.repeat(context.action[:, -1:], horizon, 1)
        return self._roll_out(self.player.state, context, actions, self.key, horizon)

    def explores(self) -> None:
        """Compile the exploring policy, for whoever asks for it."""
        handle, step = self.start(stream(self.key, ENV))
        self.think(self.player.state, self.agent.reset(self.player.state, 1), step, self.key, "explore")
        self.close(handle)

    def _measure(self, memory: Any, step: Step) -> None:
        began = time.perf_counter()
        self.think(self.player.state, memory, step, self.key, "greedy")
        self.quick = time.perf_counter() - began < QUICK
        if not self.quick:  # while a visitor plays it is not asked, but its memory must see
            self.think(self.player.state, memory, step, self.key, "random")

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
    def record(self, step: Step, thought: Thought, action: Any = None) -> Record:
        """A record `[1, ...]` of a step, with the action taken after it (that of the policy, if not given)."""
        return jax.device_get(
            Record(kept(step.obs), *step[1:], thought.action if action is None else action, thought.extras)
        )

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

    def doubt(self, state: Any, context: Record, actions: Sequence[np.ndarray], key: Key) -> float | None:
        """How far `DOUBTERS` dreams are apart after the actions: the mean over an observation's entries (of images over
        255) of their standard deviation. None where nothing is shown."""
        horizon = next(h for h in self.horizons if h >= len(actions))
        filled = np.stack([*actions, *[actions[-1]] * (horizon - len(actions))], 1)

        def apart(state: Any, context: Record, actions: Any, key: Key, last: Any) -> Any:
            many = jax.vmap(lambda key: self._roll(state, context, actions, key, horizon))(
                jax.random.split(key, DOUBTERS)
            )
            shown = sensors(many.obs) if many.obs is not None else {}
            scale = lambda x: 255.0 if x.dtype == jnp.uint8 else 1.0  # noqa: E731
            each = [(x[:, 0, last] / scale(x)).std(0).mean() for x in shown.values()]
            return jnp.stack(each).mean() if each else jnp.nan

        program = self.once(f"doubt {horizon}", lambda: jax.jit(apart))
        found = float(program(state, context, filled, key, len(actions) - 1))
        return None if np.isnan(found) else found

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

    # --- In pictures and words --------------------------------------------------------------------------------------
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
            raise ValueError(
                f"an action of {self.spec.name} has the shape {list(blank.shape[1:])}, not {list(x.shape)}"
            )
        if isinstance(space, Box):
            return np.clip(x, -1, 1)[None]
        most = np.asarray(getattr(space, "n", 1), np.float32)
        choices = x[: len(most)] if most.ndim and x.ndim and len(x) > len(most) else x
        if (choices < 0).any() or (choices >= most).any() or (choices != np.round(choices)).any():
            raise ValueError(
                f"the choices of {self.spec.name} are whole numbers below {np.asarray(most, int).tolist()}"
            )
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
            "picture": self.painter is not None, "smooth": self.smooth,
            "board": self.board and self.board._asdict(), "dreams": self.dreams, "rewinds": self.rewinds,
            "quick": self.quick, "legend": self.legend, "context": CONTEXT, "horizon": self.horizons[-1],
            "temperature": float(hyper["temperature"]) if "temperature" in hyper and self.dreams else None,
        }  # fmt: skip


def _side_by_side(jobs: dict[str, Callable[[], Any]], say: Callable[[str], None]) -> dict[str, Any]:
    """Results of jobs by name, two of them at a time: XLA compiles without Python's lock."""
    found: dict[str, Any] = {}
    begun = itertools.count(1)

    def run(name: str) -> None:
        say(f"{name} ({next(begun)} of {len(jobs)})")
        found[name] = jobs[name]()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, name) for name in jobs]:
            done.result()
    return found


def _begins(long: Dream, short: Dream) -> bool:
    """Whether a dream is how a longer one begins, but for rounding."""
    pairs = zip(jax.tree.leaves(short._replace(latent=())), jax.tree.leaves(long._replace(latent=())), strict=True)
    return all(np.allclose(a.astype(float), b[:, : a.shape[1]].astype(float), atol=1e-4) for a, b in pairs)
