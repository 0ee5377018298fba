"""PETS (Chua et al. 2018): plan with an ensemble of probabilistic networks, by trajectory sampling.

One trial of random actions; then, forever: learn the dynamics from all data, and play a trial in which every action is
the first of a plan. A plan is judged by particles that move through the networks: TS-infinity keeps each in one network
for the whole rollout, TS1 redraws its network at every step. Reward and termination are known functions of the
observation (`envs.known`), or two more outputs of the networks (`reward="learned"`).

Letters: E networks, B batch, D numbers of the observation, A actions, H horizon, P candidates, N environments.
Observations are float vectors, actions a `Box`. Where paper and official code differ, this follows the code: 5 epochs
in batches of 32 after each trial, weights kept between trials, learned bounds of the log-variances, variances of CEM
bounded by the distance to the action bounds. Three things differ from the code: a network's bootstrap is made of
Poisson counts that stay as they are when data are added; CEM runs all its iterations; and the plans of an iteration are
compared under the same noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm import replay, spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import planning
from jaxwm.control.policy import forced
from jaxwm.envs.known import KNOWN, check_reward
from jaxwm.errors import Amount, Count, Fraction, Positive, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models import ensemble
from jaxwm.nets.sensors import check_vectors, joined, parted, width
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, passes
from jaxwm.types import Acted, Agent, Array, Batch, Box, Dream, Key, PyTree, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of PETS; defaults are those of the official code for its cartpole."""

    networks: Count = 5  # Networks of the ensemble, E.
    layers: Count = 3  # Hidden layers of a network.
    units: Count = 500  # Width of the hidden layers.
    weight_decay: tuple[float, ...] = (1e-4, 2.5e-4, 2.5e-4, 5e-4)
    """Weight of half the squared weights of each layer in the loss, the output layer included."""
    lr: Varies[Positive] = 1e-3  # Learning rate of Adam.
    batch_size: Count = 32  # Transitions that each network sees in an update.
    epochs: Amount = 5.0  # Passes through all data after each trial; 0 leaves the model untrained.
    deterministic: bool = False
    """Squared error and no noise instead of Gaussians: with one network and one particle, the usual baseline."""
    bounds: Literal["learned", "fixed"] = "learned"
    """Whether the bounds of the log-variances are learned (official code) or stay at +0.5 and -10."""
    bound_scale: Amount = 0.01  # Weight of the distance between the bounds in the loss.
    scale_targets: bool = False  # Whether the targets are standardised too, not the inputs alone.
    reward: Literal["known", "learned"] = "known"
    """Where reward and termination come from: the environment's own functions, or the networks."""
    particles: int = 20  # Particles that judge a plan.
    propagation: Literal["TSinf", "TS1"] = "TSinf"  # Whether a particle keeps its network for the whole rollout.
    planner: Literal["cem", "icem", "mppi"] = "cem"  # How plans are found.
    plan_horizon: Count = 25  # Steps of a plan, H.
    candidates: Count = 400  # Plans that are judged in an iteration, P.
    elites: int = 40  # Best plans, to which the next iteration moves.
    iterations: Count = 5  # Iterations of the planner.
    momentum: Fraction = 0.1  # Share of the old mean and variance that an iteration of cem or icem keeps.
    init_std: Positive = 0.5  # First standard deviation of the actions in a plan.
    exponent: Amount = 2.0  # icem: colour of the noise; 0 is white.
    temperature: Positive = 0.5  # mppi: weight of a return in the exponent.
    trial: Count = 200  # Environment steps of a trial, per environment.
    envs: Count = 1  # Environments.
    capacity: int = 20_000  # Replay size in environment steps.

    def __post_init__(self):
        object.__setattr__(self, "weight_decay", tuple(self.weight_decay))  # a list where it comes out of a file
        check_types(self)
        check_number("elites", self.elites, least=1, most=self.candidates, whole=True)
        check_number("capacity", self.capacity, least=2 * self.envs, whole=True)
        if self.particles < 1 or self.particles % self.networks:
            raise ValueError(
                f"particles must be a multiple of the {self.networks} networks, not {self.particles}: each network "
                "moves the same number of them"
            )
        if len(self.weight_decay) != self.layers + 1:
            raise ValueError(
                f"weight_decay must be {self.layers + 1} numbers, one per layer and one for the output, not "
                f"{self.weight_decay}"
            )
        for rate in self.weight_decay:
            check_number("weight_decay", rate, least=0)


# --- Losses -----------------------------------------------------------------------------------------------------------
def loss(config: Config, model: PyTree, data: ensemble.Transitions, share: Share = ALONE) -> Losses:
    """The loss of section 4 for standardised transitions `[E, B, ...]`, as the settings want it."""
    scale = config.bound_scale if config.bounds == "learned" else None
    return ensemble.loss(model, data, config.weight_decay, scale, config.deterministic, share)


def transitions(spec: Spec, config: Config, record: Record) -> ensemble.Transitions:
    """Of records `[B, 2]`; see `ensemble.transitions`."""
    return ensemble.transitions(spec, record, config.reward == "learned")


# --- The train steps --------------------------------------------------------------------------------------------------
ADAM = optax.scale_by_adam()


def scale(spec: Spec, config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """Fit mean and standard deviation of all transitions so far."""
    found, metrics = ensemble.fitted(spec, batch, config.reward == "learned")
    chosen = found if config.scale_targets else {"inputs": found["inputs"]}
    return state._replace(params=state.params | chosen), {}, metrics


def learn(spec: Spec, config: Config, state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
    """Take a step of Adam for every network, on transitions of its own: `[E * B, 2]` records."""
    inputs, target, ended, real = transitions(spec, config, batch.record)
    network = jnp.arange(config.networks).repeat(len(real) // config.networks)
    env = batch.index.env + share.first(config.envs // share.devices)
    counts = ensemble.bootstrap(state.memory, batch.index.row, env, network)
    weight = real if config.networks == 1 else real * counts  # a single network has no others to differ from
    scales = state.params["inputs"], state.params["targets"]
    data = ensemble.Transitions(scales[0].forward(inputs), scales[1].forward(target), ended, weight)
    data = jax.tree.map(lambda x: x.reshape(config.networks, -1, *x.shape[1:]), data)
    objective = lambda model: loss(config, model, share.local_rows(data, 1), share)  # noqa: E731
    return gradient_step(state, objective, ADAM, state.hyper["lr"], part="model", share=share)


# --- Planning ---------------------------------------------------------------------------------------------------------
def transition(spec: Spec, config: Config, params: PyTree) -> ensemble.Transition:
    """How the ensemble moves particles: a draw from each network's Gaussian, added to the observation.
    A learned reward is the Gaussian's mean; a learned end is a probability, which is taken from the particle's life."""
    model, inputs, targets, known = params["model"], params["inputs"], params["targets"], KNOWN.get(spec.name)

    def step(obs: Array, action: Array, noise: Array) -> tuple[Array, Array, Array]:
        found = ensemble.predict(model, inputs.forward(jnp.concatenate([obs, action], -1)))
        drawn = found.mean
        if not config.deterministic:
            drawn += jnp.exp(found.logvar / 2) * noise
        size = obs.shape[-1]
        after = obs + targets.back(drawn)[..., :size]
        if config.reward == "known" and known and known.reward:
            return after, known.reward(obs, action, after), 1 - known.ends(after)
        return after, targets.back(found.mean)[..., size], 1 - jax.nn.sigmoid(found.logits[..., 0])

    return step


def rollout(spec: Spec, config: Config, params: PyTree, obs: Array, plans: Array, key: Key) -> ensemble.Rollout:
    """Move particles from `obs [C, D]` under `plans [C, H, A]` (trajectory sampling, section 5.1)."""
    chex.assert_equal_shape_prefix((obs, plans), 1)
    return ensemble.rollout(
        transition(spec, config, params), obs, plans, key, networks=config.networks, particles=config.particles,
        outputs=_outputs(spec, config), mix=config.propagation == "TS1",
    )  # fmt: skip


def plan(
    spec: Spec, config: Config, params: PyTree, memory: planning.Memory, obs: Array, key: Key
) -> tuple[planning.Memory, Array]:
    """The action `[N, A]` for observations `[N, D]`: the first of the best plan (algorithm 1)."""
    planner = build_planner(spec.action.size, config)

    def one(memory: planning.Memory, obs: Array, key: Key) -> tuple[planning.Memory, Array]:
        def score(candidates: Array, key: Key) -> Array:
            start = jnp.broadcast_to(obs, (len(candidates), len(obs)))
            return rollout(spec, config, params, start, candidates, key).returns()

        return planner.plan(score, memory, key)

    return jax.vmap(one)(memory, obs, jax.random.split(key, len(obs)))


def fresh_plans(spec: Spec, config: Config, num: int) -> planning.Memory:
    """The planners' memories `[num, ...]` before a first step."""
    start = build_planner(spec.action.size, config).start()
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), start)


def intended_actions(spec: Spec, config: Config, params: PyTree, obs: Array, key: Key, horizon: int) -> Array:
    """The actions `[B, horizon, A]` that the agent means to take: its plan, and a new one where that ends."""

    def extend(obs: Array, key: Key) -> tuple[Array, Array]:
        k_plan, k_roll = jax.random.split(key)
        memory, action = plan(spec, config, params, fresh_plans(spec, config, len(obs)), obs, k_plan)
        meant = jnp.concatenate([action[:, None], memory.mean[:, :-1]], 1)
        found = rollout(spec, config, params, obs, meant, k_roll)
        return found.obs[-1].mean((0, 1)), meant

    _, parts = jax.lax.scan(extend, obs, jax.random.split(key, -(-horizon // config.plan_horizon)))
    return parts.swapaxes(0, 1).reshape(len(obs), -1, parts.shape[-1])[:, :horizon]


def build_planner(actions: int, config: Config) -> planning.Planner:
    """The planner of the settings, for actions of so many numbers."""
    sizes = actions, config.plan_horizon, config.candidates, config.elites, config.iterations
    if config.planner == "cem":
        return planning.cem(*sizes, momentum=config.momentum, init_std=config.init_std)
    if config.planner == "icem":
        return planning.icem(*sizes, momentum=config.momentum, init_std=config.init_std, exponent=config.exponent)
    least = min(0.05, config.init_std)
    return planning.mppi(*sizes, temperature=config.temperature, max_std=config.init_std, min_std=least)


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build PETS for an environment.
    `State.params` holds the networks (`model`) and the scales of their inputs and targets, which are fitted and not
    learned; `State.memory`, a number, decides the bootstraps. ValueError unless observations are float vectors and
    actions a `Box`, and where a reward that is to be known is not."""
    _check_spec(spec, config)
    inputs, outputs = width(spec.obs) + spec.action.size, _outputs(spec, config)
    learned = config.reward == "learned"

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        k_model, k_memory = jax.random.split(key)
        model = ensemble.init(k_model, config.networks, inputs, config.units, config.layers, outputs, int(learned))
        params = {"model": model, "inputs": ensemble.unit(inputs), "targets": ensemble.unit(outputs)}
        bootstraps = jax.random.bits(k_memory, (), jnp.uint32)
        return State(params, {"model": ADAM.init(model)}, optim.numbers(hyper), jnp.zeros((), jnp.int32), bootstraps)

    def act(state: State, carry: planning.Memory, step: Step, key: Key, mode: str) -> Acted:
        if (action := forced(spec.action, step, key, mode)) is not None:
            return carry, action, {}
        fresh = fresh_plans(spec, config, len(step.reward))
        start = jax.tree.map(lambda x, y: jnp.where(spaces.wide(step.is_first, x), x, y), fresh, carry)
        memory, action = plan(spec, config, state.params, start, joined(spec.obs, step.obs), key)
        return memory, action, {}

    def imagine(state: State, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
        """The mean of the particles; `latent` is their standard deviation `[B, H, D]`.
        Without `given` actions a plan is followed to its end, where the next is made from the mean of the particles."""
        spaces.check_dream(spec.action, context, given, horizon)
        k_plan, k_roll = jax.random.split(key)
        start, params = joined(spec.obs, context.obs)[:, -1], state.params
        taken = intended_actions(spec, config, params, start, k_plan, horizon) if given is None else given
        return _dream(spec, rollout(spec, config, params, start, taken, k_roll), taken)

    reset = lambda state, num_envs: fresh_plans(spec, config, num_envs)  # noqa: E731
    everything = lambda state, ring, key, size: replay.all_pairs(ring)  # noqa: E731
    pairs = lambda state, ring, key, size: replay.sample(ring, key, config.networks * size, 2)  # noqa: E731
    steps = {
        "scale": TrainStep(partial(scale, spec, config), config.capacity, 2, everything),
        "model": TrainStep(partial(learn, spec, config), config.batch_size, 2, pairs, shared=True),
    }
    return Agent(init, reset, act, steps, imagine, schedule(config), hyper_of(config))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """A trial of random actions; then learn from everything and play a trial, forever.
    A trial is one record longer than its steps, so that its end is seen."""
    rows = (config.trial + 1) * config.envs

    updates = passes(config.epochs, config.batch_size, config.capacity)
    body = (Train("scale"), Train("model", updates), Collect(rows, "explore", fresh=True))
    return Collect(rows, "random", fresh=True), Repeat(FOREVER, body)


# --- Observations -------------------------------------------------------------------------------------------------
def _check_spec(spec: Spec, config: Config) -> None:
    if not isinstance(spec.action, Box):
        raise ValueError(
            f"pets plans over continuous actions (Box); {spec.name} has {spec.action}: take an environment such as "
            "continuous/CartPole or gymnax/Pendulum-v1, or an agent for discrete actions"
        )
    check_vectors("pets", spec.name, spec.obs)
    if config.reward == "known":
        check_reward(spec.name, " or set --reward learned")


def _outputs(spec: Spec, config: Config) -> int:
    """What the networks predict, O: the change of every number, and the reward where it is not known."""
    return width(spec.obs) + (config.reward == "learned")


def _dream(spec: Spec, found: ensemble.Rollout, actions: Array) -> Dream:
    """Particles `[H, E, Q, B, ...]` as means `[B, H, ...]`; reward and continuing are those of the living."""
    mean = lambda x: x.mean((1, 2)).swapaxes(0, 1)  # noqa: E731
    alive = mean(found.alive)
    before = jnp.maximum(jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], 1), 1e-6)
    spread = found.obs.std((1, 2)).swapaxes(0, 1)
    return Dream(parted(spec.obs, mean(found.obs)), mean(found.reward) / before, alive / before, actions, spread)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "cartpole": Config(),
    "reacher": Config(layers=4, units=200, weight_decay=(2.5e-4, 5e-4, 5e-4, 5e-4, 7.5e-4), lr=7.5e-4, trial=150),
    "pusher": Config(units=200, weight_decay=(2.5e-4, 5e-4, 5e-4, 7.5e-4), candidates=500, elites=50, trial=150),
    "halfcheetah": Config(
        layers=4, units=200, weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), candidates=500, elites=50,
        plan_horizon=30, trial=1000, capacity=300_000,
    ),
    "small": Config(
        layers=2, units=64, weight_decay=(1e-5, 2.5e-5, 5e-5), batch_size=64, epochs=30.0, scale_targets=True,
        particles=5, plan_horizon=20, candidates=50, elites=10, iterations=3,
    ),
}  # fmt: skip
"""Those of the official code, and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2018, env="continuous/CartPole", steps=2010,
    observations=("vector",), actions=("Box",), offline=True,
    renamed={"decay": "weight_decay", "horizon": "plan_horizon"},
    summary="planning with an ensemble of probabilistic networks (Chua et al. 2018)",
    paper="Chua et al., Deep Reinforcement Learning in a Handful of Trials",
    sees="the numbers of the observation, standardised",
    predicts="bootstrapped ensemble of probabilistic MLPs; reward and end known or learned",
    acts="CEM, iCEM or MPPI over action sequences, each judged by particles through the networks",
)  # fmt: skip
