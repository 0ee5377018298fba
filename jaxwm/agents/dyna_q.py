"""Dyna-Q and Dyna-Q+ (Sutton 1990, 1991; Sutton & Barto 2018, chapter 8): tabular Q-learning with a learned model.

Every real step teaches the Q-table and the model; then `planning` simulated steps, from pairs of state and action that
were met before, teach the Q-table again. With a `bonus` this is Dyna-Q+: a pair that has not been tried for tau real
steps promises bonus * sqrt(tau) more, and untried actions of known states are planned with as well.

S states, A actions. Observations must be one-hot (`Spec.one_hot`), such as those of the `tabular` environments. One
thing differs from the book: a transition is learned after the next action, which the record of its step holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm.agents.system import System, hyper_of
from jaxwm.control.policy import check_mode
from jaxwm.errors import Amount, Count, Fraction, Natural, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.step import Remembering as State
from jaxwm.learning.step import Updated
from jaxwm.schedule import FOREVER, Collect, Repeat, Train
from jaxwm.spaces import check_dream
from jaxwm.types import Acted, Agent, Array, Batch, Discrete, Dream, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of Dyna-Q; defaults are those of the book's Dyna maze."""

    planning: Natural = 5  # Planning updates after each real step, n; 0 is plain Q-learning.
    model: Literal["last", "counts"] = "last"
    """What is kept of a pair: the last reward and next state, or counts of all of them (for stochastic worlds)."""
    step_size: Varies[Fraction] = 0.1  # Step size of the Q-table, alpha.
    epsilon: Varies[Fraction] = 0.1  # Share of random actions while training.
    discount: Varies[Fraction] = 0.95  # Discount, gamma.
    bonus: Varies[Amount] = 0.0  # Reward for time since a pair was tried, kappa: above 0 this is Dyna-Q+.
    envs: Count = 1  # Environments.
    capacity: int = 16  # Replay size in environment steps: only the newest pair is read.

    def __post_init__(self):
        check_types(self)
        check_number("capacity", self.capacity, least=2 * self.envs, whole=True)


class Last(NamedTuple):
    """What followed a pair the last time, each `[S, A]`: next state, reward, whether it went on."""

    state: Array
    reward: Array
    alive: Array


class Counts(NamedTuple):
    """What followed a pair so far: visits and summed reward `[S, A]`, next states that were no end `[S, A, S]`."""

    visits: Array
    reward: Array
    alive: Array


class Memory(NamedTuple):
    """The model and what planning starts from.
    `pairs` `[S * A]` lists the known pairs (state * A + action) in the order in which they became known, `count` of
    them; `tried` `[S, A]` is the real step at which a pair was last tried, `time` the present one."""

    model: Any
    pairs: Array
    known: Array
    count: Array
    tried: Array
    time: Array


# --- The steps of the book's box --------------------------------------------------------------------------------------
Pair = tuple[Array, Array]  # State and action.


def learn(config: Config, spec: Spec, state: State, batch: Batch, key: Key) -> Updated:
    """Learn from the newest transition of every environment: Q-learning (equation 6.8) and the model."""
    record = batch.record
    chex.assert_shape(record.reward, (config.envs, 2))

    def one(state: State, b: Array) -> tuple[State, Array]:
        s, after = state_of(spec, record.obs[b, 0]), state_of(spec, record.obs[b, 1])
        pair, reward, alive = (s, record.action[b, 0]), record.reward[b, 1], ~record.is_terminal[b, 1]
        keep = ~record.is_first[b, 1]  # the first observation of an episode follows from nothing
        q, hyper = state.params["q"], state.hyper
        target = reward + hyper["discount"] * alive * q[after].max()
        q, error = step_towards(q, pair, target, hyper["step_size"] * keep)
        memory = remember(state.memory, pair, reward, after, alive, keep, plus=config.bonus > 0)
        return state._replace(params={"q": q}, memory=memory, step=state.step + keep), jnp.abs(error) * keep

    state, errors = jax.lax.scan(one, state, jnp.arange(config.envs))
    return state, {}, {"td_error": errors.mean(), "known_pairs": state.memory.count.astype(jnp.float32)}


def plan(config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """Make `planning` updates for each real step, from known pairs, drawn uniformly (section 8.2, step f)."""
    memory, hyper = state.memory, state.hyper
    step_size = hyper["step_size"] * (memory.count > 0)
    draws = jax.random.randint(key, (config.planning * config.envs,), 0, jnp.maximum(memory.count, 1))

    def one(q: Array, draw: Array) -> tuple[Array, Array]:
        pair = jnp.divmod(memory.pairs[draw], q.shape[1])
        novelty = hyper["bonus"] * jnp.sqrt((memory.time - memory.tried[pair]).astype(jnp.float32))
        target = expected_target(memory.model, q, pair, hyper["discount"]) + novelty
        q, error = step_towards(q, pair, target, step_size)
        return q, jnp.abs(error)

    q, errors = jax.lax.scan(one, state.params["q"], draws)
    return state._replace(params={"q": q}), {}, {"planned_error": errors.mean()}


def step_towards(q: Array, pair: Pair, target: Array, step_size: Array) -> tuple[Array, Array]:
    """Q `[S, A]` with the entry of a pair a step towards the target, and the error."""
    error = target - q[pair]
    return q.at[pair].add(step_size * error), error


def expected_target(model: Any, q: Array, pair: Pair, gamma: Array) -> Array:
    """Reward and discounted value that the model expects of a pair (equation 8.1 for counts)."""
    if isinstance(model, Last):
        return model.reward[pair] + gamma * model.alive[pair] * q[model.state[pair]].max()
    visits = model.visits[pair]
    seen = (model.reward[pair] + gamma * model.alive[pair] @ q.max(-1)) / jnp.maximum(visits, 1)
    return jnp.where(visits > 0, seen, gamma * q[pair[0]].max())


def remember(memory: Memory, pair: Pair, reward: Array, after: Array, alive: Array, keep: Array, plus: bool) -> Memory:
    """The memory with one more transition; as it was unless `keep`. Only what changes is written."""
    (s, a), actions = pair, memory.tried.shape[1]
    model, time = memory.model, memory.time + keep
    if isinstance(model, Last):
        model = jax.tree.map(lambda x, new: put(x, pair, new, keep), model, Last(after, reward, alive))
    else:
        visits, total = model.visits.at[pair].add(keep), model.reward.at[pair].add(reward * keep)
        model = Counts(visits, total, model.alive.at[s, a, after].add(alive & keep))
    where, new = ((s,), s * actions + jnp.arange(actions)) if plus else (pair, (s * actions + a)[None])
    fresh = keep & ~memory.known[where].any()  # with a bonus, all actions of a state become known with it
    known = memory.known.at[where].max(keep)
    listed = jax.lax.dynamic_slice(memory.pairs, (memory.count,), new.shape)
    listed = jnp.where(fresh, new.astype(jnp.int32), listed)
    pairs = jax.lax.dynamic_update_slice(memory.pairs, listed, (memory.count,))
    count = memory.count + fresh * len(new)
    return Memory(model, pairs, known, count, put(memory.tried, pair, time, keep), time)


def put(table: Array, pair: Pair, value: Array, keep: Array) -> Array:
    """A table `[S, A]` with another entry, where `keep`."""
    return table.at[pair].set(jnp.where(keep, value, table[pair]))


def state_of(spec: Spec, obs: Array) -> Array:
    """The index `[...]` of one-hot observations."""
    return jnp.argmax(obs.reshape(*obs.shape[: obs.ndim - len(spec.obs.shape)], -1), -1)


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build Dyna-Q for an environment; `State.params["q"]` is the Q-table `[S, A]`.
    ValueError unless observations are one-hot and actions discrete."""
    obs = spec.obs
    if not spec.one_hot or not isinstance(spec.action, Discrete):
        raise ValueError(
            f"dyna-q needs the index of a state, a one-hot observation (`Spec.one_hot`), and discrete actions; "
            f"{spec.name} has {obs} and {spec.action}: take one of the tabular environments (`jaxwm list`)"
        )
    states, actions = math.prod(obs.shape), spec.action.n

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        blank = jnp.zeros((states, actions))
        here = jnp.broadcast_to(jnp.arange(states)[:, None], (states, actions))  # an untried action leads nowhere
        model: Any = Last(here, blank, blank + 1)
        if config.model == "counts":
            model = Counts(blank, blank, jnp.zeros((states, actions, states)))
        none = jnp.zeros((), jnp.int32)
        room = jnp.zeros(states * actions + actions, jnp.int32)  # a state's actions are written at once
        memory = Memory(model, room, blank > 0, none, blank.astype(jnp.int32), none)
        return State({"q": blank}, (), optim.numbers(hyper), none, memory)

    def act(state: State, carry: tuple[()], step: Step, key: Key, mode: str) -> Acted:
        check_mode(mode)
        k_tie, k_random, k_mix = jax.random.split(key, 3)
        q = state.params["q"][state_of(spec, step.obs)]  # [N, A]
        best = jnp.argmax(jnp.where(q == q.max(-1, keepdims=True), jax.random.uniform(k_tie, q.shape), -1.0), -1)
        anything = jax.random.randint(k_random, best.shape, 0, actions)
        epsilon = {"random": 1.0, "greedy": 0.0, "explore": state.hyper["epsilon"]}[mode]
        return carry, jnp.where(jax.random.uniform(k_mix, best.shape) < epsilon, anything, best), {}

    steps = {"real": TrainStep(partial(learn, config, spec), config.envs, 2, "latest")}
    if config.planning:
        steps["plan"] = TrainStep(partial(plan, config), 1, 2, "latest")
    reset = lambda state, num_envs: ()  # noqa: E731
    return Agent(init, reset, act, steps, partial(imagine, spec), schedule(config), hyper_of(config))


def imagine(spec: Spec, state: State, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
    """Walk through the model: to the last next state of each pair, or to one drawn from its counts."""
    check_dream(spec.action, context, given, horizon)
    model, q = state.memory.model, state.params["q"]
    size = len(context.reward)

    def walk(s: Array, x: tuple[Array, Array]) -> tuple[Array, tuple[Array, ...]]:
        t, chosen = x
        action = chosen if given is not None else jnp.argmax(q[s], -1)
        pair = s, action
        if isinstance(model, Last):
            after, reward, alive = model.state[pair], model.reward[pair], model.alive[pair]
        else:
            visits = jnp.maximum(model.visits[pair], 1)
            odds = model.alive[pair] / visits[:, None]
            after = jax.random.categorical(jax.random.fold_in(key, t), jnp.log(odds + 1e-30))
            after = jnp.where(odds.sum(-1) > 0, after, s)
            reward, alive = model.reward[pair] / visits, odds.sum(-1)
        return after, (after, reward, alive, action)

    blank = jnp.zeros((horizon, size), jnp.int32) if given is None else given.swapaxes(0, 1)
    _, found = jax.lax.scan(walk, state_of(spec, context.obs[:, -1]), (jnp.arange(horizon), blank))
    places, reward, alive, taken = found
    picture = jax.nn.one_hot(places, len(q), dtype=jnp.bool_).reshape(horizon, size, *spec.obs.shape)
    return Dream(picture, reward, alive.astype(jnp.float32), taken, places).swapped()


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """A real step, what is learned from it, and planning, forever."""
    body = (Train("real"), *([Train("plan")] if config.planning else []), Collect(config.envs))
    return Collect(2 * config.envs), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {  # in worlds without chance a step size of 1 forgets at once what is no longer so
    "maze": Config(),
    "plus": Config(planning=50, bonus=1e-3, step_size=1.0),
    "blocking": Config(planning=10, bonus=1e-4, step_size=1.0),
    "lake": Config(planning=10, model="counts", discount=0.99),
    "lake8x8": Config(planning=50, model="counts", discount=0.999, bonus=1e-6),  # leads to what is new, until a reward
    "taxi": Config(planning=20, discount=0.99, step_size=0.5),
}

SYSTEM = System(
    make, Config, PRESETS, default="maze", year=1990, env="tabular/DynaMaze", observations=("one-hot",),
    actions=("Discrete",),
    summary="tabular Q-learning with planning in a learned model; Dyna-Q+ with --bonus (Sutton 1990)",
    paper="Sutton, Integrated Architectures for Learning, Planning, and Reacting",
    sees="the index of the state",
    predicts="table: the last reward and next state of a pair, or counts of all",
    acts="epsilon-greedy on a Q-table taught by each real step and n planned ones",
)  # fmt: skip
