"""What one visitor plays: branches of ticks, in each the real step and, next to it, the dreamed one.

A branch never changes but at its end. Whoever goes on from an older tick gets a new branch, so nothing is lost. The
dream of a tick belongs to an anchor, the tick at which the model last saw reality: what it shows is step t - anchor of
`Agent.imagine` from the records up to the anchor, under the actions taken since."""

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.data import Episode
from jaxwm.errors import check_choice, check_number
from jaxwm.nets.sensors import kind, sensors
from jaxwm.training.life import ACT, ENV, stream
from jaxwm.types import Discrete, Dream, Mode, Record, Step
from jaxwm.web import shown
from jaxwm.web.desk import CONTEXT, Desk, Thought

MOST_TICKS, MOST_BRANCHES, MOST_AHEAD = 2000, 26, 500
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Tick(NamedTuple):
    """A moment of a branch. `step` is the real one `[1, ...]`, None where a recording went another way; `dream` the
    imagined one `[...]`, None up to the anchor."""

    step: Step | None
    handle: Any  # the environment at this moment, where it is a value
    memory: Any  # of the policy, before it sees this moment
    thought: Thought
    anchor: int
    dream: Dream | None
    error: float | None  # between the two
    doubt: float | None  # how far dreams of this moment are apart, where that is measured
    action: np.ndarray | None  # that led here, [1, ...]
    by: str  # who took it: "you", "policy", or "recording"


@dataclass
class Branch:
    """Ticks up to a present; `handle` is the environment there, `base` the context of the dream that runs there."""

    name: str
    ticks: list[Tick]
    handle: Any
    base: Record | None
    parent: tuple[str, int] | None = None
    recorded: Episode | None = None
    key: Any = None  # the environment's
    opened: int = 0  # first tick of the simulator that was rebuilt
    more: int = field(default=0)  # dreamed steps before the present stretch of a long dream


class Session:
    """The branches of one visitor. Every method raises ValueError for what cannot be done, and changes nothing then."""

    def __init__(self, desk: Desk, seed: int | None = None):
        self.desk, self.id = desk, secrets.token_urlsafe(9)
        seed = secrets.randbelow(2**31) if seed is None else seed
        self.key = jax.random.fold_in(desk.key, seed)
        self.state, self.mode, self.sight, self.doubting = desk.player.state, "greedy", "real", False
        self.branches: dict[str, Branch] = {}
        self.games = itertools.count()

    # --- Moments to start from --------------------------------------------------------------------------------------
    def begin(self, ahead: int = 0) -> list[dict[str, Any]]:
        """A new episode in which the policy has made `ahead` steps; its ticks as JSON, the dream begins at the last."""
        check_number("steps", ahead, least=0, most=MOST_AHEAD, whole=True)
        self.close()
        key = jax.random.fold_in(self.key, next(self.games))
        handle, step = self.desk.start(stream(key, ENV))
        memory = self.desk.agent.reset(self.state, 1)
        branch = Branch("A", [], handle, None, key=key)
        branch.ticks.append(self._tick(branch, jax.device_get(step), memory, None, None, "policy"))
        self.branches = {"A": branch}
        for _ in range(ahead):
            self._advance(branch, None, anchored=False)
        self._anchor(branch)
        return self.told(branch)

    def recall(self, episode: Episode, at: int) -> list[dict[str, Any]]:
        """A moment of a recorded episode: real steps are those of the recording, as long as its actions are taken."""
        length = len(episode.reward)
        check_number("step", at, least=0, most=length - 2, whole=True)
        if episode.action is None:
            raise ValueError("nobody acts in this recording: there is no moment to go on from")
        self.close()
        steps = [_recorded(episode, t) for t in range(at + 1)]
        actions = [np.asarray(episode.action[t])[None] for t in range(at + 1)]
        memory, branch = self.desk.agent.reset(self.state, 1), Branch("A", [], None, None, recorded=episode)
        branch.key = jax.random.fold_in(self.key, next(self.games))
        for t, step in enumerate(steps):
            branch.ticks.append(self._tick(branch, step, memory, None, actions[t - 1] if t else None, "recording"))
            memory = self.desk.told(branch.ticks[-1].thought.memory, actions[t])
        self.branches = {"A": branch}
        self._anchor(branch)
        return self.told(branch)

    def told(self, branch: Branch) -> list[dict[str, Any]]:
        """The ticks of a branch as JSON."""
        return [self.show(branch, t) for t in range(len(branch.ticks))]

    # --- Playing ----------------------------------------------------------------------------------------------------
    def step(self, name: str, t: int, action: Any = None) -> tuple[Branch, dict[str, Any]]:
        """Go on from tick `t` of a branch, by an action out of JSON, or the policy's: the branch, a new one where
        something came after `t` already, and its newest tick as JSON."""
        branch = self._find(name, t)
        taken = None if action is None else self.desk.action(action)
        if taken is not None and not _allowed(self.desk.spec.action, taken, branch.ticks[t].step):
            raise ValueError("that move is not legal here")
        if t + 1 >= MOST_TICKS:
            raise ValueError(f"{MOST_TICKS:,} steps are as long as a branch gets: start a new one")
        if t < len(branch.ticks) - 1:
            branch = self._fork(branch, t)
        self._advance(branch, taken)
        return branch, self.show(branch, len(branch.ticks) - 1)

    def dream_here(self, name: str, t: int) -> tuple[Branch, list[dict[str, Any]]]:
        """Let the model see reality up to tick `t`, and dream on from there; a new branch where it is an older tick."""
        branch = self._find(name, t)
        if branch.ticks[t].step is None:
            raise ValueError("there is nothing real here that the model could see: the recording went another way")
        branch = self._fork(branch, t) if t < len(branch.ticks) - 1 else branch
        self._anchor(branch)
        return branch, [self.show(branch, t)]

    def moment(self, name: str, t: int) -> tuple[Any, Step, Any, Record | None]:
        """A tick as the policy met it: its memory, what it saw, the key of its choice, and the context of a dream that
        would begin there (None where there is no model or nothing real)."""
        branch = self._find(name, t)
        tick = branch.ticks[t]
        if (seen := self._seen(tick)) is None:
            raise ValueError("the policy sees nothing here: the recording went another way")
        base = self._base(branch, t) if tick.step is not None else None
        return tick.memory, seen, self._moment(branch, t), base

    def set(self, **options: Any) -> None:
        """Choose `mode` (greedy, explore), `sight` (what the policy sees: real, dream), `temperature`
        of dreams, and `doubt` (whether to measure how far dreams are apart)."""
        if "mode" in options:
            check_choice("mode", options["mode"], ("greedy", "explore"))
            if options["mode"] == "explore":
                self.desk.explores()
            self.mode = options["mode"]
        if "sight" in options:
            check_choice("sight", options["sight"], ("real", "dream"))
            self.sight = options["sight"]
        if "doubt" in options:
            self.doubting = bool(options["doubt"])
        if "temperature" in options:
            self.state = heated(self.desk.player.state, options["temperature"])

    def close(self) -> None:
        """Free simulators and memory; a second call does nothing."""
        for branch in self.branches.values():
            if branch.handle is not None:
                self.desk.close(branch.handle)
        self.branches = {}

    def _find(self, name: str, t: int) -> Branch:
        if name not in self.branches:
            raise ValueError(f"there is no branch {str(name)[:20]!r}")
        check_number("the step", t, least=0, most=len(self.branches[name].ticks) - 1, whole=True)
        return self.branches[name]

    def _fork(self, branch: Branch, t: int) -> Branch:
        """A branch that shares the ticks up to `t`."""
        if len(self.branches) >= MOST_BRANCHES:
            raise ValueError(f"{MOST_BRANCHES} branches are as many as there can be: start a new episode")
        ticks = branch.ticks[: t + 1]
        handle = None if branch.recorded else ticks[t].handle if self.desk.rewinds else self._replay(branch, ticks)
        new = Branch(LETTERS[len(self.branches)], ticks, handle, None, (branch.name, t), branch.recorded, branch.key)
        new.base, new.more = self._base(new, ticks[t].anchor), 0
        self.branches[new.name] = new
        return new

    def _replay(self, branch: Branch, ticks: Sequence[Tick]) -> Any:
        """A simulator that was led to the last tick by the same actions from the same seed."""
        handle, _ = self.desk.start(stream(branch.key, ENV))
        for tick in ticks[1:]:
            assert tick.action is not None
            handle, _ = self.desk.advance(handle, tick.action)
        return handle

    def _advance(self, branch: Branch, action: Any, anchored: bool = True) -> None:
        t, now = len(branch.ticks), branch.ticks[-1]
        by = "you" if action is not None else "policy"
        if action is None:
            now = self._decided(branch, now)
            action = now.thought.action
        memory = self.desk.told(now.thought.memory, action)
        if branch.recorded is not None:
            step = self._replayed(branch, t, action)
        else:
            branch.handle, step = self.desk.advance(branch.handle, action)
            step = jax.device_get(step)
        dream, doubt = self._dream(branch, action) if anchored and self.desk.dreams else (None, None)
        branch.ticks.append(self._tick(branch, step, memory, dream, action, by)._replace(doubt=doubt))
        if anchored and step is not None and step.is_first[0]:  # both begin the next episode together
            self._anchor(branch)

    def _decided(self, branch: Branch, now: Tick) -> Tick:
        """The newest tick, with a thought of the policy where it was not asked yet."""
        mode: Mode = self.mode  # type: ignore[assignment]
        seen = self._seen(now)
        if seen is None:
            raise ValueError(
                "the policy sees nothing here: the recording went another way, and this model shows nothing"
            )
        thought = self.desk.think(self.state, now.memory, seen, self._moment(branch, len(branch.ticks) - 1), mode)
        branch.ticks[-1] = now._replace(thought=thought)
        return branch.ticks[-1]

    def _replayed(self, branch: Branch, t: int, action: np.ndarray) -> Step | None:
        """The next recorded step, if the recording took this action."""
        episode, before = branch.recorded, branch.ticks[-1]
        assert episode is not None and episode.action is not None
        on = before.step is not None and t < len(episode.reward)
        return _recorded(episode, t) if on and np.allclose(episode.action[t - 1], action[0], atol=1e-6) else None

    def _moment(self, branch: Branch, t: int) -> Any:
        return stream(branch.key, ACT, t)

    def _seen(self, tick: Tick) -> Step | None:
        """What the policy sees of a tick: reality, or the dream where it should or must."""
        dreamed = tick.dream is not None and tick.dream.obs is not None
        if dreamed and (self.sight == "dream" or tick.step is None):
            return _as_step(tick.dream, tick.step)
        return tick.step

    def _tick(self, branch: Branch, step: Step | None, memory: Any, dream: Dream | None, action: Any, by: str) -> Tick:
        """A new tick, seen by the policy: at once where it is quick, else only as far as its memory must know."""
        t, old = len(branch.ticks), branch.ticks[-1] if branch.ticks else None
        nothing: Any = None
        handle, anchor = branch.handle if self.desk.rewinds else None, old.anchor if old else 0
        tick = Tick(step, handle, memory, nothing, anchor, dream, None, None, action, by)
        if (seen := self._seen(tick)) is None:
            thought = Thought(memory, action, {}, None, None)
        else:
            mode: Mode = self.mode if self.desk.quick else "random"  # type: ignore[assignment]
            thought = self.desk.think(self.state, memory, seen, self._moment(branch, t), mode)
        return tick._replace(thought=thought, error=_error(self.desk.spec, step, dream))

    # --- Dreaming ---------------------------------------------------------------------------------------------------
    def _anchor(self, branch: Branch) -> None:
        """The dream begins at the newest tick."""
        t = len(branch.ticks) - 1
        branch.ticks[t] = branch.ticks[t]._replace(anchor=t, dream=None, error=None, doubt=None)
        branch.base, branch.more = self._base(branch, t), 0

    def _base(self, branch: Branch, anchor: int) -> Record | None:
        """The context of the dream that begins at a tick."""
        if not self.desk.dreams:
            return None
        ticks = branch.ticks[max(0, anchor - CONTEXT + 1) : anchor + 1]
        ticks = ticks[max((i for i, tick in enumerate(ticks) if tick.step is None), default=-1) + 1 :]
        taken = [tick.action for tick in ticks[1:]]
        taken.append(ticks[-1].thought.action)
        pairs = zip(ticks, taken, strict=True)
        return self.desk.context([self.desk.record(tick.step, tick.thought, a) for tick, a in pairs])  # type: ignore[arg-type]

    def _dream(self, branch: Branch, action: np.ndarray) -> tuple[Dream | None, float | None]:
        """The next dreamed step `[...]` of a branch, and the doubt about it; None where its dream cannot go on."""
        now = branch.ticks[-1]
        assert branch.base is not None
        begin = now.anchor + branch.more
        actions = [tick.action for tick in branch.ticks[begin + 1 :]] + [action]
        if len(actions) > self.desk.horizons[-1]:
            if not self._go_on(branch):
                return None, None
            actions = [action]
        key = jax.random.fold_in(stream(branch.key, ACT, now.anchor), 1 + branch.more)
        found = self.desk.dream(self.state, branch.base, actions, key)  # type: ignore[arg-type]
        doubt = self.desk.doubt(self.state, branch.base, actions, key) if self.doubting else None  # type: ignore[arg-type]
        return jax.tree.map(lambda x: x[0, -1], found), doubt

    def _go_on(self, branch: Branch) -> bool:
        """Let a dream that is as long as programs go dream on from its own last frames; whether there are any."""
        last = branch.ticks[-CONTEXT:]
        if any(tick.dream is None or tick.dream.obs is None for tick in last):
            return False
        steps = [_as_step(tick.dream, None, first=i == 0) for i, tick in enumerate(last)]
        taken: list[Any] = [tick.action for tick in last[1:]]
        taken.append(last[-1].action)
        branch.base = self.desk.context(self.desk.remembered(self.state, steps, taken, branch.key))
        branch.more = len(branch.ticks) - 1 - branch.ticks[-1].anchor
        return True

    # --- Showing ----------------------------------------------------------------------------------------------------
    def show(self, branch: Branch, t: int) -> dict[str, Any]:
        """A tick as JSON; pictures are PNG files in base64."""
        return shown.tick(self.desk, t, branch.ticks[t])

    def gif(self, wanted: Sequence[str]) -> bytes:
        """Branches as an animation: reality and dream next to each other, one row per branch."""
        if not wanted or any(name not in self.branches for name in wanted):
            raise ValueError("there is no such branch")
        return shown.gif(self.desk, {name: self.branches[name].ticks for name in wanted})


def _allowed(space: Any, action: np.ndarray, step: Step | None) -> bool:
    """Whether a single choice is legal at a step `[1, ...]`, as far as it says what is. After an end everything is."""
    if step is None or not isinstance(step.obs, dict) or "legal" not in step.obs or step.is_last[0]:
        return True
    return not isinstance(space, Discrete) or bool(np.asarray(step.obs["legal"])[0, int(action[0])])


def heated(state: Any, temperature: Any) -> Any:
    """A state whose dreams have another temperature; ValueError for a system without one."""
    check_number("the temperature", temperature, least=0.05, most=5)
    if "temperature" not in getattr(state, "hyper", {}):
        raise ValueError("the dreams of this system have no temperature")
    old = state.hyper["temperature"]
    return state._replace(hyper={**state.hyper, "temperature": jax.numpy.full_like(old, temperature)})


def _recorded(episode: Episode, t: int) -> Step:
    """Record t of an episode as a step `[1, ...]`."""
    last = t == len(episode.reward) - 1
    obs = jax.tree.map(lambda x: np.asarray(x[t])[None], episode.obs)
    return _step(obs, episode.reward[t], t == 0, last, last and episode.terminal)


def _as_step(dream: Any, like: Step | None, first: bool = False) -> Step:
    """A dreamed step as one that a policy can see, `[1, ...]`; an action mask is that of the real one, if any."""
    obs = jax.tree.map(lambda x: np.asarray(x)[None], dream.obs)
    if like is not None and isinstance(obs, dict) and isinstance(like.obs, dict):
        obs = like.obs | obs
    return _step(obs, dream.reward, first, False, False)


def _step(obs: Any, reward: Any, *flags: bool) -> Step:
    """A step `[1, ...]` of an observation `[1, ...]`, a reward, and whether it is first, last and terminal."""
    first, last, terminal = (np.array([flag]) for flag in flags)
    values: Any = np.asarray(reward, np.float32)[None], first, last, terminal
    return Step(obs, *values)


def _error(spec: Any, step: Step | None, dream: Dream | None) -> float | None:
    """How far a dreamed observation is from the real one: the mean over sensors of the mean absolute difference, of
    images over 255, and the share of wrong flags."""
    if step is None or dream is None or dream.obs is None:
        return None
    apart = []
    for name, shape in sensors(spec.obs).items():
        real, guess = (np.asarray(x, np.float32) for x in (sensors(step.obs)[name][0], sensors(dream.obs)[name]))
        apart.append(np.abs(real - guess).mean() / (255 if kind(shape) == "image" else 1))
    return float(np.mean(apart))
