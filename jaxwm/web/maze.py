"""A maze that Dyna-Q learns while a visitor watches: explore, dream and plan, with nothing trained before.

Every turn is one real step, what is learned from it, and `planning` updates inside the learned model, the dreams. They
are the train steps of `agents.dyna_q`, compiled once for all visitors."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import agents, envs
from jaxwm.envs.tabular import COLUMNS, GOAL, LATER, ROWS, STARTS, WALLS
from jaxwm.errors import check_choice, check_number
from jaxwm.training import quick
from jaxwm.types import Batch, Index, Record, Step

TASKS = tuple(WALLS)
PLANNING = 50  # most planning updates after a real step
CHANGE = 600  # real steps after which the walls of the changing mazes are others


class Turn(NamedTuple):
    """A visitor's maze: environment, its newest step, the agent's state, and the record before the newest step."""

    handle: Any
    step: Any
    state: Any
    before: Any


class Programs(NamedTuple):
    """What is compiled for a task."""

    env: Any
    begin: Any
    turn: Any


def _record(step: Step, action: Any) -> Record:
    return Record(step.obs, step.reward, step.is_first, step.is_last, step.is_terminal, action, {})


@cache
def programs(task: str) -> Programs:
    """The compiled turn of a maze. ValueError for an unknown one."""
    check_choice("maze", task, TASKS)
    env = envs.make(f"tabular/{task}", 1, change=CHANGE if task in LATER else 0)
    agent = agents.build("dyna-q", env.spec, agents.settings("dyna-q", planning=1, step_size=1.0))
    learn, plan = agent.train_steps["real"].update, agent.train_steps["plan"].update

    def begin(key: Any) -> Turn:
        handle, step = env.reset(key)
        state = agent.init(key, agent.hyper)
        return Turn(handle, step, state, _record(step, jnp.zeros(1, jnp.int32)))

    def turn(old: Turn, key: Any, planning: Any, epsilon: Any, given: Any) -> tuple[Turn, dict[str, Any]]:
        state = old.state._replace(hyper={**old.state.hyper, "epsilon": epsilon})
        k_act, k_plan = jax.random.split(key)
        _, chosen, _ = agent.act(state, (), old.step, k_act, "explore")
        action = jnp.where(given >= 0, given, chosen[0])[None].astype(jnp.int32)
        record = _record(old.step, action)
        handle, step = env.step(old.handle, action)
        pair = jax.tree.map(lambda a, b: jnp.stack([a, b], 1), record, _record(step, action))
        batch = Batch(pair, Index(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)), jnp.ones(1))
        state, _, _ = learn(state, batch, k_plan)

        def once(i: Any, carry: Any) -> Any:
            state, drawn = carry
            k = jax.random.fold_in(k_plan, i)
            place = jax.random.randint(k, (1,), 0, jnp.maximum(state.memory.count, 1))[0]  # the draw of `dyna_q.plan`
            drawn = drawn.at[i].set(jnp.where(state.memory.count > 0, state.memory.pairs[place], -1))
            return plan(state, batch, k)[0], drawn

        state, drawn = jax.lax.fori_loop(0, planning, once, (state, jnp.full(PLANNING, -1)))
        said = {"q": state.params["q"], "known": state.memory.known, "next": state.memory.model.state,
                "drawn": drawn, "place": jnp.argmax(step.obs.reshape(-1)), "reward": step.reward[0],
                "last": step.is_last[0], "first": step.is_first[0], "action": action[0]}  # fmt: skip
        return Turn(handle, step, state, record), said

    return Programs(env, quick.jit(begin), quick.jit(turn))


class Maze:
    """One visitor's maze."""

    def __init__(self, seed: int, task: str = "DynaMaze"):
        self.key = jax.random.key(seed)
        self.reset(task)

    def reset(self, task: str) -> None:
        """Forget everything, in another maze perhaps."""
        self.programs = programs(task)
        self.task, self.count, self.length, self.dreamed = task, 0, 0, 0
        self.lengths: list[int] = []
        self.turned = self.programs.begin(jax.random.fold_in(self.key, 0))

    def advance(self, turns: int, planning: int, epsilon: float, given: int | None = None) -> dict[str, Any]:
        """Some real steps with `planning` dreamed updates after each; `given` is the visitor's own action. The last
        one as JSON. ValueError for numbers out of range."""
        check_number("turns", turns, least=1, most=200, whole=True)
        check_number("planning", planning, least=0, most=PLANNING, whole=True)
        check_number("epsilon", epsilon, least=0, most=1)
        if given is not None:
            check_number("action", given, least=0, most=3, whole=True)
        for _ in range(turns):
            self.count += 1
            key, own = jax.random.fold_in(self.key, self.count), -1 if given is None else given
            self.turned, said = self.programs.turn(self.turned, key, planning, float(epsilon), own)
            said = jax.device_get(said)
            self.length += not said["first"]
            self.dreamed += planning
            if said["last"]:
                self.lengths.append(self.length)
                self.length = 0
        return self.told(said)

    def told(self, said: dict[str, Any]) -> dict[str, Any]:
        """A turn as JSON: values, the model's arrows, the pairs that were dreamed."""
        later = self.task in LATER and self.count > CHANGE
        walls = LATER[self.task] if later else WALLS[self.task]
        known = np.asarray(said["known"])
        return {
            "task": self.task, "rows": ROWS, "columns": COLUMNS, "goal": GOAL, "start": STARTS[self.task],
            "walls": [list(cell) for cell in walls], "changed": later, "count": self.count, "dreamed": self.dreamed,
            "place": int(said["place"]), "reward": float(said["reward"]), "lengths": self.lengths[-200:],
            "episodes": len(self.lengths), "value": np.round(said["q"].max(1), 4).tolist(),
            "q": np.round(said["q"], 3).tolist(), "known": known.tolist(), "next": said["next"].tolist(),
            "drawn": [int(x) for x in said["drawn"] if x >= 0],
        }  # fmt: skip

    def plan(self) -> list[int]:
        """The way that the agent would go from the start: cells, through the model, as far as it expects anything."""
        state = jax.device_get((self.turned.state.params["q"], self.turned.state.memory))
        (q, memory), row = state, STARTS[self.task]
        cell, way = row[0] * COLUMNS + row[1], []
        while int(cell) not in way:
            way.append(int(cell))
            if not q[cell].any() or cell == GOAL[0] * COLUMNS + GOAL[1]:
                break
            cell = memory.model.state[cell, int(np.where(memory.known[cell], q[cell], -np.inf).argmax())]
        return way
