"""MB-MPO (Clavera et al. 2018): a policy that adapts to any model of an ensemble by one gradient step.

Each network of an ensemble of dynamics models is a task. For each, the policy dreams paths, takes one step of policy
gradient, and dreams again; the policy before the steps is moved so that the policies after them do better in their
models (MAML, Finn et al. 2017), by trust-region policy optimisation. Where the models agree they are right, and the
policy before the steps knows what to do; where they do not, it learns to be adapted. The adapted policies then play in
the real environment, and their data go to the models (algorithm 2).

Letters: E networks, T tasks (T / E of each network), P paths of a task, H horizon, D numbers of the observation, A
actions, N environments. Observations are float vectors, actions a `Box`; reward and termination are known functions of
the observation (`envs.known`). Where paper and official code differ, this follows the code: dreams begin where episodes
do, the baseline is linear in features of observation and time, advantages are standardised. Three things differ from
the code: networks have SiLUs and no weight norm, they pass a given number of times over the data instead of stopping
early, and the baseline is fitted to the paths that it is used for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm import replay, spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import trpo
from jaxwm.control.policy import forced
from jaxwm.distributions import Normal
from jaxwm.envs.known import KNOWN, check_reward
from jaxwm.errors import Amount, Count, Fraction, Positive, check_number, check_types
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import State, Updated, fresh_state, gradient_step
from jaxwm.models import ensemble
from jaxwm.nets.layers import Head, apply
from jaxwm.nets.sensors import check_vectors, joined, parted, width
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, passes
from jaxwm.types import Acted, Agent, Array, Batch, Box, Dream, Key, PyTree, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of MB-MPO; defaults are those of the official code."""

    networks: Count = 5  # Networks of the ensemble, E.
    model_layers: Count = 2  # Hidden layers of a network.
    model_units: Count = 512  # Width of these.
    model_lr: Varies[Positive] = 1e-3  # Learning rate of the networks.
    model_batch: Count = 500  # Transitions that each network sees in an update.
    epochs: Amount = 50.0  # Passes through all data before the policy learns; 0 leaves the networks untrained.
    layers: Count = 2  # Hidden layers of the policy.
    units: Count = 32  # Width of these.
    tasks: Count = 20  # Adapted policies, T: a multiple of the networks.
    paths: Count = 50  # Dreamed paths of a task, P.
    horizon: Count = 200  # Steps of a path, H.
    adapt_lr: Varies[Amount] = 1e-3  # Step size of the adaptation; 0 learns one policy for all networks.
    divergence: Varies[Positive] = 0.01  # Trust region of a step: KL divergence of the adapted policies.
    meta_steps: Count = 30  # Steps of the policy in each round.
    discount: Varies[Fraction] = 0.99  # Discount of the returns in dreams.
    prefill: Count = 5000  # Environment steps of random actions at the start.
    trial: Count = 200  # Environment steps of each environment in a round.
    envs: Count = 20  # Environments; number n is played by the policy of task n modulo T.
    capacity: int = 100_000  # Replay size in environment steps.

    def __post_init__(self):
        check_types(self)
        check_number("capacity", self.capacity, least=2 * self.envs, whole=True)
        if self.tasks % self.networks:
            raise ValueError(f"tasks must be a multiple of the {self.networks} networks, not {self.tasks}")


# --- The policy -------------------------------------------------------------------------------------------------------
def network(spec: Spec, config: Config) -> Head:
    """Observations to the means of actions."""
    return Head({"mean": spec.action.size}, config.layers, config.units, 0.1, act="tanh")


def policy(net: Head, weights: PyTree, obs: Array) -> Normal:
    """The distribution of actions at `obs [..., D]`. They are clipped where they are carried out."""
    mean = apply(net, weights["net"], obs)["mean"]
    return Normal(mean, jnp.broadcast_to(jnp.exp(weights["log_std"]), mean.shape))


class Paths(NamedTuple):
    """Of one task `[P, H, ...]`: observations, drawn actions, their log-densities `[P, H]`, rewards, and 1 until the
    end of the episode."""

    obs: Array
    action: Array
    log_prob: Array
    reward: Array
    alive: Array


def surrogate(net: Head, weights: PyTree, paths: Paths, advantage: Array) -> Array:
    """Mean of ratio times advantage over the steps of paths; its gradient is the policy gradient where the weights are
    those that the paths were made with."""
    ratio = jnp.exp(policy(net, weights, paths.obs).log_prob(paths.action).sum(-1) - paths.log_prob)
    return (ratio * advantage * paths.alive).sum() / jnp.maximum(paths.alive.sum(), 1.0)


def adapt(net: Head, weights: PyTree, paths: Paths, advantage: Array, rate: Array) -> PyTree:
    """The weights after a step of policy gradient (equation 4)."""
    slope = jax.grad(lambda weights: surrogate(net, weights, paths, advantage))(weights)
    return jax.tree.map(lambda w, s: w + rate * s, weights, slope)


def advantages(paths: Paths, discount: Array) -> Array:
    """Returns to go less a baseline that is linear in features of observation and time (Duan et al. 2016), with mean 0
    and standard deviation 1: `[P, H]`."""
    chex.assert_equal_shape((paths.reward, paths.alive))

    def back(after: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        total = now[1] * (now[0] + discount * after)
        return total, total

    rows = paths.reward.T, paths.alive.T
    total = jax.lax.scan(back, jnp.zeros(len(paths.reward)), rows, reverse=True)[1].T
    x = features(paths.obs)
    weight = paths.alive[..., None]
    square = jnp.einsum("phi,phj->ij", weight * x, x) + 1e-5 * jnp.eye(x.shape[-1])
    fitted = x @ jnp.linalg.solve(square, jnp.einsum("phi,ph->i", weight * x, total))
    rest, count = (total - fitted) * paths.alive, jnp.maximum(paths.alive.sum(), 1.0)
    mean = rest.sum() / count
    std = jnp.sqrt((jnp.square(rest - mean) * paths.alive).sum() / count)
    return (rest - mean) / (std + 1e-8)


def features(obs: Array) -> Array:
    """Observation, its squares, time, its square and cube, and 1: `[P, H, D] -> [P, H, 2 D + 4]`."""
    obs = jnp.clip(obs, -10.0, 10.0)
    time = jnp.broadcast_to(jnp.arange(obs.shape[1])[:, None] / 100.0, (*obs.shape[:2], 1))
    return jnp.concatenate([obs, obs**2, time, time**2, time**3, jnp.ones_like(time)], -1)


# --- Dreams -----------------------------------------------------------------------------------------------------------
def predict(spec: Spec, params: PyTree, obs: Array, action: Array) -> tuple[Array, Array, Array]:
    """Observations `[E, B, D]` after an action, the reward and whether the episode goes on, `[E, B]`."""
    action, known = jnp.clip(action, -1.0, 1.0), KNOWN[spec.name]
    x = params["inputs"].forward(jnp.concatenate([obs, action], -1))
    after = obs + params["targets"].back(ensemble.predict(params["model"], x).mean)
    after = jnp.clip(after, -1000.0, 1000.0)
    return after, known.reward(obs, action, after), 1 - known.ends(after)  # type: ignore[misc]


def dream(spec: Spec, config: Config, params: PyTree, policies: PyTree, start: Array, key: Key) -> Paths:
    """Paths `[T, P, H, ...]` of each task's policy in its network, from observations `[T, P, D]`."""
    net, shape = network(spec, config), start.shape[:2]
    grouped = lambda x: x.reshape(config.networks, -1, x.shape[-1])  # noqa: E731

    def step(carry: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], Paths]:
        obs, alive = carry
        chosen = jax.vmap(partial(policy, net))(policies, obs)
        action = chosen.pick(jax.random.normal(key, chosen.mean.shape))
        after, reward, cont = predict(spec, params, grouped(obs), grouped(action))
        row = Paths(obs, action, chosen.log_prob(action).sum(-1), reward.reshape(shape), alive)
        return (after.reshape(obs.shape), alive * cont.reshape(shape)), row

    _, rows = jax.lax.scan(step, (start, jnp.ones(shape)), jax.random.split(key, config.horizon))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), rows)


# --- The train steps --------------------------------------------------------------------------------------------------
ADAM = optax.scale_by_adam()


def scale(spec: Spec, state: State, batch: Batch, key: Key) -> Updated:
    """Fit mean and standard deviation of all transitions so far."""
    found, metrics = ensemble.fitted(spec, batch)
    return state._replace(params=state.params | found), {}, metrics


def learn(spec: Spec, config: Config, state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
    """Take a step of Adam for every network, on transitions of its own: `[E * B, 2]` records."""
    inputs, target, ended, real = ensemble.transitions(spec, batch.record, reward=False)
    inputs, target = state.params["inputs"].forward(inputs), state.params["targets"].forward(target)
    data = ensemble.Transitions(inputs, target, ended, real)
    data = jax.tree.map(lambda x: x.reshape(config.networks, -1, *x.shape[1:]), data)
    free = (0.0,) * (config.model_layers + 1)
    objective = lambda model: ensemble.loss(model, share.local_rows(data, 1), free, None, True, share)  # noqa: E731
    return gradient_step(state, objective, ADAM, state.hyper["model_lr"], part="model", share=share)


def starts(spec: Spec, config: Config, batch: Batch) -> Array:
    """Where dreams begin, `[T, P, D]`: first records `[T * P, 1]` of episodes."""
    return joined(spec.obs, batch.record.obs)[:, 0].reshape(config.tasks, config.paths, -1)


def adapted(spec: Spec, config: Config, state: State, weights: PyTree, before: Paths) -> PyTree:
    """The policies `[T, ...]` after their steps on paths that were dreamed before."""
    advantage = jax.vmap(partial(advantages, discount=state.hyper["discount"]))(before)
    one = partial(adapt, network(spec, config), weights, rate=state.hyper["adapt_lr"])
    return jax.vmap(one)(before, advantage)


def alike(config: Config, weights: PyTree) -> PyTree:
    """The same policy for every task."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (config.tasks, *x.shape)), weights)


def improve(spec: Spec, config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """Move the policy so that the adapted ones do better (algorithm 1, line 9)."""
    k_before, k_after = jax.random.split(key)
    net, params, start = network(spec, config), state.params, starts(spec, config, batch)
    before = dream(spec, config, params, alike(config, params["policy"]), start, k_before)
    chosen = adapted(spec, config, state, params["policy"], before)
    after = dream(spec, config, params, chosen, start, k_after)
    worth = jax.vmap(partial(advantages, discount=state.hyper["discount"]))(after)
    old = jax.vmap(partial(policy, net))(chosen, after.obs)

    def gain(weights: PyTree) -> Array:
        new = adapted(spec, config, state, weights, before)
        return jax.vmap(partial(surrogate, net))(new, after, worth).mean()

    def divergence(weights: PyTree) -> Array:
        new = jax.vmap(partial(policy, net))(adapted(spec, config, state, weights, before), after.obs)
        return (old.kl(new).sum(-1) * after.alive).sum() / jnp.maximum(after.alive.sum(), 1.0)

    found, metrics = trpo.step(gain, divergence, params["policy"], trpo.Settings(state.hyper["divergence"]))
    sums = {name: (p.reward * p.alive).sum(-1).mean() for name, p in (("before", before), ("after", after))}
    metrics |= {f"return/{name}": value for name, value in sums.items()} | {"loss": -metrics["gain"]}
    return state._replace(params=params | {"policy": found}, step=state.step + 1), {}, metrics


def finish(spec: Spec, config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """Adapt the policy to every network once more: these policies play."""
    params, start = state.params, starts(spec, config, batch)
    before = dream(spec, config, params, alike(config, params["policy"]), start, key)
    chosen = adapted(spec, config, state, params["policy"], before)
    apart = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), chosen, alike(config, params["policy"]))
    metrics = {"distance": jnp.sqrt(sum(jax.tree.leaves(apart)) / config.tasks)}
    return state._replace(params=params | {"adapted": chosen}), {}, metrics


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build MB-MPO for an environment. `State.params` holds the networks (`model`) and the scales of their inputs and
    targets, which are fitted, the `policy`, and the `adapted` ones `[T, ...]`. ValueError unless observations are float
    vectors, actions a `Box` and the reward is known."""
    _check_spec(spec)
    numbers, actions = width(spec.obs), spec.action.size
    net = network(spec, config)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        k_model, k_policy = jax.random.split(key)
        sizes = numbers + actions, config.model_units, config.model_layers, numbers
        model = ensemble.init(k_model, config.networks, *sizes)
        weights = {"net": net.init(k_policy, jnp.zeros((1, numbers))), "log_std": jnp.zeros(actions)}
        scales = {"inputs": ensemble.unit(numbers + actions), "targets": ensemble.unit(numbers)}
        params = {"model": model, "policy": weights, "adapted": alike(config, weights)} | scales
        return fresh_state(params, {"model": ADAM.init(model)}, hyper)

    def act(state: State, carry: tuple[()], step: Step, key: Key, mode: str) -> Acted:
        if (action := forced(spec.action, step, key, mode)) is not None:
            return carry, action, {}
        obs = joined(spec.obs, step.obs)
        mine = jax.tree.map(lambda x: x[jnp.arange(len(obs)) % config.tasks], state.params["adapted"])
        chosen = jax.vmap(partial(policy, net))(mine, obs)
        action = chosen.mode() if mode == "greedy" else chosen.pick(jax.random.normal(key, chosen.mean.shape))
        return carry, jnp.clip(action, -1.0, 1.0), {}

    def imagine(state: State, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
        """The mean of all networks; `latent` is their standard deviation `[B, H, D]`. Without `given` actions the
        policy before its adaptation acts, at that mean."""
        spaces.check_dream(spec.action, context, given, horizon)

        def one(obs: Array, x: Any) -> tuple[Array, tuple[Array, ...]]:
            mean = obs.mean(0)
            action = policy(net, state.params["policy"], mean).mode() if given is None else x
            action = jnp.clip(action, -1.0, 1.0)
            each = jnp.broadcast_to(action, (config.networks, *action.shape))
            after, reward, cont = predict(spec, state.params, obs, each)
            return after, (after.mean(0), after.std(0), reward.mean(0), cont.mean(0), action)

        start = joined(spec.obs, context.obs)[:, -1]
        inputs = jnp.arange(horizon) if given is None else given.swapaxes(0, 1)
        _, rows = jax.lax.scan(one, jnp.broadcast_to(start, (config.networks, *start.shape)), inputs)
        obs, spread, reward, cont, action = (x.swapaxes(0, 1) for x in rows)
        return Dream(parted(spec.obs, obs), reward, cont, action, spread)

    everything = lambda state, ring, key, size: replay.all_pairs(ring)  # noqa: E731
    pairs = lambda state, ring, key, size: replay.sample(ring, key, config.networks * size, 2)  # noqa: E731
    first = lambda state, ring, key, size: replay.starts(ring, key, size)  # noqa: E731
    count = config.tasks * config.paths
    steps = {
        "scale": TrainStep(partial(scale, spec), config.capacity, 2, everything),
        "model": TrainStep(partial(learn, spec, config), config.model_batch, 2, pairs, shared=True),
        "policy": TrainStep(partial(improve, spec, config), count, 1, first),
        "adapt": TrainStep(partial(finish, spec, config), count, 1, first),
    }
    return Agent(init, lambda state, num: (), act, steps, imagine, schedule(config), hyper_of(config))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random actions; then learn the models from everything, learn the policy in them, and let the adapted policies
    play, forever."""
    rows, first = (config.trial + 1) * config.envs, -(-config.prefill // config.envs) * config.envs

    updates = passes(config.epochs, config.model_batch, config.capacity)
    learning = Train("scale"), Train("model", updates), Train("policy", config.meta_steps), Train("adapt")
    return Collect(first, "random"), Repeat(FOREVER, (*learning, Collect(rows, "explore", fresh=True)))


def _check_spec(spec: Spec) -> None:
    if not isinstance(spec.action, Box):
        raise ValueError(
            f"mb-mpo learns a Gaussian policy over continuous actions (Box); {spec.name} has {spec.action}: take an "
            "environment such as continuous/Pendulum, or an agent for discrete actions"
        )
    check_vectors("mb-mpo", spec.name, spec.obs)
    check_reward(spec.name)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "published": Config(),
    "small": Config(
        model_units=64, model_batch=64, epochs=10.0, tasks=5, paths=16, horizon=50, adapt_lr=0.1, meta_steps=30,
        prefill=2010, envs=10, capacity=50_000,
    ),
}  # fmt: skip
"""The settings of the official code, and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2018, env="continuous/Pendulum", steps=30_150,
    observations=("vector",), actions=("Box",), offline=True,
    summary="a policy that adapts to each model of an ensemble by a gradient step (Clavera et al. 2018)",
    paper="Clavera et al., Model-Based Reinforcement Learning via Meta-Policy Optimization",
    sees="the numbers of the observation, standardised",
    predicts="ensemble of deterministic MLPs, each of them a task; reward and end known",
    acts="Gaussian policy after a step of policy gradient in its network (MAML, TRPO in dreams)",
)  # fmt: skip
