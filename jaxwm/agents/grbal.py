"""GrBAL (Nagabandi et al. 2019): a model that adapts to what it meets, by one gradient step on the last transitions.

A network predicts how the observation changes. It is trained for what it will be after a step: on windows of twice M
transitions of an episode, its weights take a step of gradient descent on the first M, and those new weights are judged
on the next M (algorithm 1). When acting, the same step is taken anew, from the learned weights, at every step of the
environment; a planner then looks for actions in the adapted model (algorithm 2). A pendulum whose motor is weak or runs
backwards, or a robot with a crippled leg, is so known after M steps.

One trial of random actions, or several; then, forever: learn from all data, and play a trial. The reward is a known
function of the observation (`envs.known`).

Letters: M transitions of a window, B batch, D numbers of the observation, A actions, H horizon, P candidates, N
environments. Observations are float vectors, actions a `Box`. Where paper and official code differ, this follows the
code: no step is taken before M transitions are there. Two things differ from the code: all data are scaled alike, with
the newest statistics, and windows may lie anywhere in the replay; what belongs to another episode than their middle
weighs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm import replay, spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import planning
from jaxwm.control.policy import forced
from jaxwm.envs.known import KNOWN, check_reward
from jaxwm.errors import Amount, Count, Positive, check_number, check_types
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, State, Updated, fresh_state, gradient_step
from jaxwm.models import ensemble
from jaxwm.nets.layers import Head, apply
from jaxwm.nets.sensors import check_vectors, joined, parted, width
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, passes
from jaxwm.types import Acted, Agent, Array, Batch, Box, Dream, Key, PyTree, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of GrBAL; defaults are those of the official code."""

    layers: Count = 3  # Hidden layers of the network.
    units: Count = 512  # Width of the hidden layers.
    window: Count = 16  # Transitions that the model adapts to, and after those predicts, M.
    adapt_lr: Varies[Amount] = 1e-3  # Step size of the adaptation; 0 leaves the model as it was learned.
    adapt_steps: Count = 1  # Gradient steps of an adaptation.
    learn_adapt_lr: bool = False  # Whether each weight matrix and bias learns a factor of the step size of its own.
    objective: Literal["adapted", "plain"] = "adapted"
    """What is learned: to be right after the adaptation, or to be right as it is (the baseline)."""
    second_order: bool = True  # Whether gradients go through the gradient of the adaptation.
    lr: Varies[Positive] = 1e-3  # Learning rate of Adam.
    meta_batch: Count = 10  # Windows of an update, B.
    epochs: Amount = 100.0  # Passes through all data after each trial; 0 leaves the model untrained.
    planner: Literal["shooting", "cem", "icem"] = "shooting"  # How plans are found.
    plan_horizon: Count = 10  # Steps of a plan, H.
    candidates: Count = 500  # Plans that are judged (in an iteration, with cem and icem), P.
    elites: Count = 50  # cem, icem: best plans, to which the next iteration moves.
    iterations: Count = 5  # cem, icem: iterations.
    trial: Count = 1000  # Environment steps of a trial, per environment.
    random_trials: Count = 1  # Trials of random actions at the start.
    envs: Count = 5  # Environments, each of them a task.
    capacity: int = 1_000_000  # Replay size in environment steps.

    def __post_init__(self):
        check_types(self)
        check_number("elites", self.elites, least=1, most=self.candidates, whole=True)
        check_number("trial", self.trial, least=2 * self.window, whole=True)
        check_number("capacity", self.capacity, least=(2 * self.window + 1) * self.envs, whole=True)


# --- The model --------------------------------------------------------------------------------------------------------
class Transitions(NamedTuple):
    """Standardised inputs `[..., D + A]` and targets `[..., D]`, and how much they count, `[...]`."""

    inputs: Array
    target: Array
    weight: Array


def network(spec: Spec, config: Config) -> Head:
    """Standardised observation and action to the standardised change of the observation."""
    return Head({"change": width(spec.obs)}, config.layers, config.units, act="relu")


def squared_error(net: Head, weights: PyTree, data: Transitions) -> Array:
    """Mean over numbers `[...]` of the squared error of each transition."""
    return jnp.square(apply(net, weights, data.inputs)["change"] - data.target).mean(-1)


def adapt(net: Head, config: Config, model: PyTree, data: Transitions, rate: Array) -> PyTree:
    """The weights after the steps on transitions `[M]` (equation 3); where none of them counts, the weights as they
    are. `model` holds the weights (`net`) and the logarithm of each one's factor of the step size (`factor`)."""
    chex.assert_rank(data.weight, 1)
    total = jnp.maximum(data.weight.sum(), 1e-8)
    error = lambda weights: (squared_error(net, weights, data) * data.weight).sum() / total  # noqa: E731
    weights, factor = model["net"], jax.tree.map(jnp.exp, model["factor"])
    for _ in range(config.adapt_steps):
        slope = jax.grad(error)(weights)
        slope = slope if config.second_order else jax.lax.stop_gradient(slope)
        weights = jax.tree.map(lambda w, s, f: w - rate * f * s, weights, slope, factor)
    return weights


# --- Loss -------------------------------------------------------------------------------------------------------------
def windows(spec: Spec, config: Config, params: PyTree, record: Record) -> Transitions:
    """The transitions `[B, T - 1]` of records `[B, T]`, standardised. Only those of the episode of the record in the
    middle weigh something: another episode may be another task."""
    obs = joined(spec.obs, record.obs)
    inputs = jnp.concatenate([obs, record.action], -1)[:, :-1]
    episode = jnp.cumsum(record.is_first, 1)
    middle = min(config.window, obs.shape[1] - 1)
    ours = ~record.is_first[:, 1:] & (episode[:, 1:] == episode[:, middle, None])
    target = params["targets"].forward(obs[:, 1:] - obs[:, :-1])
    return Transitions(params["inputs"].forward(inputs), target, ours.astype(jnp.float32))


def loss(net: Head, config: Config, model: PyTree, data: Transitions, rate: Array, share: Share = ALONE) -> Losses:
    """The error on the second half of windows `[B, 2 M]` of the weights that were adapted on the first (equation 4),
    or, for the plain objective, the error of the weights themselves on both."""
    chex.assert_axis_dimension(data.weight, 1, 2 * config.window)
    if not config.learn_adapt_lr:
        model = model | {"factor": jax.lax.stop_gradient(model["factor"])}
    past = jax.tree.map(lambda x: x[:, : config.window], data)
    future = jax.tree.map(lambda x: x[:, config.window :], data)
    own = jax.vmap(lambda past: adapt(net, config, model, past, rate))(past)
    mean = lambda error, weight: share.weighted_mean(error.ravel(), weight.ravel(), 0)  # noqa: E731
    after = mean(jax.vmap(partial(squared_error, net))(own, future), future.weight)
    plain = squared_error(net, model["net"], data)
    before = mean(plain[:, config.window :], future.weight)
    total = after if config.objective == "adapted" else mean(plain, data.weight)
    return total, ({}, {"loss": total, "loss/before": before, "loss/after": after})


# --- The train steps --------------------------------------------------------------------------------------------------
ADAM = optax.scale_by_adam()


def scale(spec: Spec, config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """Fit mean and standard deviation of all transitions so far."""
    found, metrics = ensemble.fitted(spec, batch)
    return state._replace(params=state.params | found), {}, metrics


def learn(spec: Spec, config: Config, state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
    """Take a step of Adam on windows `[B, 2 M + 1]` of records."""
    data = windows(spec, config, state.params, share.local_rows(batch.record))
    net, rate = network(spec, config), state.hyper["adapt_lr"]
    objective = lambda model: loss(net, config, model, data, rate, share)  # noqa: E731
    return gradient_step(state, objective, ADAM, state.hyper["lr"], part="model", share=share)


# --- Planning ---------------------------------------------------------------------------------------------------------
class Rollout(NamedTuple):
    """Observations `[..., H, D]`, rewards and whether the episode goes on after each step `[..., H]`."""

    obs: Array
    reward: Array
    cont: Array


def rollout(spec: Spec, config: Config, params: PyTree, weights: PyTree, obs: Array, plans: Array) -> Rollout:
    """Follow `plans [C, H, A]` from `obs [C, D]` under the given weights."""
    net, known = network(spec, config), KNOWN[spec.name]

    def step(obs: Array, action: Array) -> tuple[Array, Rollout]:
        x = params["inputs"].forward(jnp.concatenate([obs, action], -1))
        after = obs + params["targets"].back(apply(net, weights, x)["change"])
        return after, Rollout(after, known.reward(obs, action, after), 1 - known.ends(after))  # type: ignore[misc]

    _, found = jax.lax.scan(step, obs, plans.swapaxes(0, 1))
    return jax.tree.map(lambda x: x.swapaxes(0, 1), found)


def total(found: Rollout) -> Array:
    """Sums of the rewards until the end, `[...]`."""
    alive = jnp.cumprod(found.cont, -1)
    before = jnp.concatenate([jnp.ones_like(alive[..., :1]), alive[..., :-1]], -1)
    return (before * found.reward).sum(-1)


def plan(
    spec: Spec, config: Config, params: PyTree, weights: PyTree, memory: planning.Memory, obs: Array, key: Key
) -> tuple[planning.Memory, Array]:
    """The action `[A]` at `obs [D]` in the model with these weights, and the memory of the planner."""

    def score(candidates: Array, key: Key) -> Array:
        start = jnp.broadcast_to(obs, (len(candidates), len(obs)))
        return total(rollout(spec, config, params, weights, start, candidates))

    return build_planner(spec.action.size, config).plan(score, memory, key)


def build_planner(actions: int, config: Config) -> planning.Planner:
    """The planner of the settings, for actions of so many numbers. Where all plans are worth the same, as before a
    motor is known, shooting and icem take any of them, which tells the model something; cem takes their mean."""
    if config.planner == "shooting":
        return planning.shooting(actions, config.plan_horizon, config.candidates)
    kind = planning.icem if config.planner == "icem" else planning.cem
    return kind(actions, config.plan_horizon, config.candidates, config.elites, config.iterations)


# --- Acting -----------------------------------------------------------------------------------------------------------
class Memory(NamedTuple):
    """What acting remembers of each environment: the planner's memory, the last observation `[N, D]` and action
    `[N, A]`, the last M transitions `[N, M, ...]` as they were seen, and how many of them belong to this episode."""

    plan: planning.Memory
    obs: Array
    action: Array
    inputs: Array
    change: Array
    count: Array


def fresh(spec: Spec, config: Config, num: int) -> Memory:
    """The memory before a first step."""
    numbers, actions, start = width(spec.obs), spec.action.size, build_planner(spec.action.size, config).start()
    plans = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), start)
    empty = lambda *shape: jnp.zeros((num, *shape))  # noqa: E731
    past = empty(config.window, numbers + actions), empty(config.window, numbers)
    return Memory(plans, empty(numbers), empty(actions), *past, jnp.zeros(num, jnp.int32))


def remember(config: Config, memory: Memory, step: Step, obs: Array) -> Memory:
    """The memory with the transition that led to `obs [N, D]`; a new episode forgets the other's."""
    pushed = lambda past, new: jnp.concatenate([past[:, 1:], new[:, None]], 1)  # noqa: E731
    inputs = pushed(memory.inputs, jnp.concatenate([memory.obs, memory.action], -1))
    change = pushed(memory.change, obs - memory.obs)
    count = jnp.where(step.is_first, 0, jnp.minimum(memory.count + 1, config.window))
    clear = lambda new: jnp.where(spaces.wide(step.is_first, new), jnp.zeros_like(new), new)  # noqa: E731
    plans = jax.tree.map(clear, memory.plan)
    return memory._replace(plan=plans, inputs=clear(inputs), change=clear(change), count=count)


def act(spec: Spec, config: Config, state: State, carry: Memory, step: Step, key: Key, mode: str) -> Acted:
    """Adapt to the last M transitions and plan in what comes out (algorithm 2); see `Agent.act`."""
    obs, params = joined(spec.obs, step.obs), state.params
    memory = remember(config, carry, step, obs)
    action = forced(spec.action, step, key, mode)
    if action is None:
        full = jnp.broadcast_to((memory.count >= config.window)[:, None], memory.inputs.shape[:2])
        data = Transitions(
            params["inputs"].forward(memory.inputs), params["targets"].forward(memory.change), full.astype(jnp.float32)
        )

        def one(data: Transitions, memory: planning.Memory, obs: Array, key: Key) -> tuple[planning.Memory, Array]:
            weights = adapt(network(spec, config), config, params["model"], data, state.hyper["adapt_lr"])
            return plan(spec, config, params, weights, memory, obs, key)

        plans, action = jax.vmap(one)(data, memory.plan, obs, jax.random.split(key, len(obs)))
        memory = memory._replace(plan=plans)
    return memory._replace(obs=obs, action=action), action, {}


def imagine(
    spec: Spec, config: Config, state: State, context: Record, given: Array | None, key: Key, horizon: int
) -> Dream:
    """What the model expects after it has adapted to the last transitions of the context, as far as there are some.
    Without `given` actions it plans anew at every step."""
    spaces.check_dream(spec.action, context, given, horizon)
    params, net = state.params, network(spec, config)
    recent = jax.tree.map(lambda x: x[:, -(config.window + 1) :], context)
    data = windows(spec, config, params, recent)
    weights = jax.vmap(lambda past: adapt(net, config, params["model"], past, state.hyper["adapt_lr"]))(data)
    planner = build_planner(spec.action.size, config)

    def one(weights: PyTree, obs: Array, actions: Array | None, key: Key) -> tuple[Rollout, Array]:
        def step(carry: tuple[Array, planning.Memory], x: Any) -> tuple[Any, tuple[Rollout, Array]]:
            obs, memory = carry
            if actions is None:
                memory, action = plan(spec, config, params, weights, memory, obs, x)
            else:
                action = x
            found = jax.tree.map(
                lambda x: x[0, 0], rollout(spec, config, params, weights, obs[None], action[None, None])
            )
            return (found.obs, memory), (found, action)

        inputs = jax.random.split(key, horizon) if actions is None else actions
        return jax.lax.scan(step, (obs, planner.start()), inputs)[1]

    start = joined(spec.obs, context.obs)[:, -1]
    found, taken = jax.vmap(one, (0, 0, None if given is None else 0, 0))(
        weights, start, given, jax.random.split(key, len(start))
    )
    return Dream(parted(spec.obs, found.obs), found.reward, found.cont, taken, None)


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build GrBAL for an environment. `State.params` holds the network and the factors of its step sizes (`model`), and
    the scales of inputs and targets, which are fitted and not learned. ValueError unless observations are float
    vectors, actions a `Box` and the reward is known."""
    _check_spec(spec)
    inputs, outputs = width(spec.obs) + spec.action.size, width(spec.obs)
    net = network(spec, config)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        weights = net.init(key, jnp.zeros((1, inputs)))
        model = {"net": weights, "factor": jax.tree.map(lambda _: jnp.zeros(()), weights)}
        params = {"model": model, "inputs": ensemble.unit(inputs), "targets": ensemble.unit(outputs)}
        return fresh_state(params, {"model": ADAM.init(model)}, hyper)

    reset = lambda state, num_envs: fresh(spec, config, num_envs)  # noqa: E731
    everything = lambda state, ring, key, size: replay.all_pairs(ring)  # noqa: E731
    steps = {
        "scale": TrainStep(partial(scale, spec, config), config.capacity, 2, everything),
        "model": TrainStep(partial(learn, spec, config), config.meta_batch, 2 * config.window + 1, shared=True),
    }
    dream = partial(imagine, spec, config)
    return Agent(init, reset, partial(act, spec, config), steps, dream, schedule(config), hyper_of(config))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Trials of random actions; then learn from everything and play a trial, forever.
    A trial is one record longer than its steps, so that its end is seen."""
    rows = (config.trial + 1) * config.envs

    updates = passes(config.epochs, 2 * config.window * config.meta_batch, config.capacity)
    body = (Train("scale"), Train("model", updates), Collect(rows, "explore", fresh=True))
    first = Collect(rows, "random", fresh=True)
    return *[first] * config.random_trials, Repeat(FOREVER, body)


def _check_spec(spec: Spec) -> None:
    if not isinstance(spec.action, Box):
        raise ValueError(
            f"grbal plans over continuous actions (Box); {spec.name} has {spec.action}: take an environment such as "
            "continuous/Pendulum, or an agent for discrete actions"
        )
    check_vectors("grbal", spec.name, spec.obs)
    check_reward(spec.name)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "published": Config(),
    "small": Config(
        units=64, adapt_lr=0.1, adapt_steps=4, learn_adapt_lr=True, meta_batch=16, epochs=100.0, planner="icem",
        plan_horizon=20, candidates=64, elites=8, iterations=3, trial=200, random_trials=3, capacity=50_000,
    ),
}  # fmt: skip
"""The settings of the official code, and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2019, env="continuous/Pendulum", steps=6030,
    observations=("vector",), actions=("Box",), offline=True,
    summary="a model that adapts to the last transitions by a gradient step (Nagabandi et al. 2019)",
    paper="Nagabandi et al., Learning to Adapt in Dynamic, Real-World Environments through Meta-RL",
    sees="the numbers of the observation, standardised",
    predicts="an MLP whose weights take a gradient step on the last transitions; reward known",
    acts="random shooting, CEM or iCEM over action sequences in the adapted model",
)  # fmt: skip
