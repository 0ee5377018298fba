"""PlaNet: learning latent dynamics for planning from pixels (Hafner et al. 2019).

Sees through convolutions or an MLP, predicts with a recurrent state-space model of Gaussian latents, acts by the
cross-entropy method in latent space, and alternates collecting an episode and fitting the model. There is no policy and
no value: every step searches for the best of many imagined action sequences.

B sequences of T records, H planning horizon, P candidates.

Where this file chooses:

- the model is trained with the one-step KL only, as in the final version of the paper's code (overshooting is off);
- images keep their 8 bits (the code quantises them to 5 and adds noise), vectors pass through symlog;
- the end of an episode is not predicted, as in the paper: the planner believes that the task goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import planning
from jaxwm.control.policy import disturb
from jaxwm.errors import Amount, Count, Natural, Positive, Several, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, State, Updated, fresh_state, gradient_step
from jaxwm.models.latent_world import Carry, World, build_classic_world
from jaxwm.models.rssm import Gaussian, Latent, floored, joint
from jaxwm.nets.layers import Head, apply
from jaxwm.schedule import phases
from jaxwm.types import Acted, Agent, Array, Batch, Box, Dream, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of PlaNet. Defaults are the published ones."""

    # Size.
    deter: Count = 200  # Width of the recurrent state.
    hidden: Count = 200  # Width of the layers around it.
    stoch: Count = 30  # Number of Gaussian latents.
    units: Count = 300  # Width of the reward head and of the MLPs for vectors.
    layers: Natural = 3  # Layers of these.
    depth: Count = 32  # Channels of the first convolution; the others have 2, 4 and 8 times as many.
    dtype: Literal["float32", "bfloat16"] = "float32"  # Compute type; parameters, moments and losses stay float32.
    # Data.
    envs: Count = 1  # Parallel environments of each member.
    batch_size: Count = 50  # Sequences of an update.
    batch_length: Several = 50  # Records of a sequence.
    prefill: Natural = 2500  # Environment steps of random play before learning starts: five episodes of 500 steps.
    collect: Count = 500  # Environment steps between two phases of learning: one episode.
    phase_updates: Natural = 100  # Updates of such a phase.
    capacity: Count = 1_000_000  # Replay size of a member in environment steps (never more than the run collects).
    # World model.
    min_std: Positive = 0.1  # Smallest standard deviation of a latent.
    free_nats: Amount = 3.0  # KL, mean over the batch, below which it is not pushed.
    rec_scale: Amount = 0.5  # Weight of the squared error of observations: 1/2 for a unit normal.
    rew_scale: Amount = 10.0  # Weight of the squared error of rewards, half of which is a unit normal's.
    # Planner.
    plan_horizon: Count = 12  # Steps of a plan.
    candidates: Count = 1000  # Action sequences tried in each iteration.
    elites: Count = 100  # Best of them, to which the search distribution is fitted.
    iterations: Count = 10  # Iterations for each action.
    noise: Varies[Amount] = 0.3  # Standard deviation of the noise on actions while collecting.
    # Optimiser.
    lr: Varies[Positive] = 1e-3  # Learning rate of Adam.
    eps: Positive = 1e-4  # Epsilon of Adam.
    clip: Positive = 1000.0  # Largest norm of the gradient.

    def __post_init__(self):
        check_types(self)
        check_number("elites", self.elites, most=self.candidates, whole=True)


# --- The loss ---------------------------------------------------------------------------------------------------------
def loss(nets: Networks, params: Any, record: Record, uniform: Array, share: Share = ALONE) -> Losses:
    """The negative variational bound (equation 3) of sequences `[B, T]`; `uniform [B, T, S]` decides the latents."""
    chex.assert_equal_shape_prefix((record.reward, uniform), 2)
    config = nets.config
    _, losses, metrics = nets.world.predictions(params, nets.heads, record, uniform)
    kl = floored(joint(losses["dyn"], losses["rep"]), config.free_nats, share)
    total = config.rec_scale * losses["rec"] + config.rew_scale * losses["rew"] + kl
    return total, ({}, metrics | {"loss": total})


# --- Planning ---------------------------------------------------------------------------------------------------------
def predict_reward(nets: Networks, params: Any, feat: Array) -> Array:
    """Predict the rewards `[...]` that arrive with latents `feat [..., F]`."""
    return apply(nets.heads["rew"], params["rew"], feat)["mean"][..., 0]


def planned_return(nets: Networks, params: Any, start: Latent) -> planning.Score:
    """Score action sequences `[P, H, A]` from one latent by the sum of the predicted rewards (algorithm 2): `[P]`."""

    def score(actions: Array, key: Key) -> Array:
        starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(actions), *x.shape)), start)
        latents = nets.world.open_loop(params, starts, actions.swapaxes(0, 1), key)
        return predict_reward(nets, params, latents.feat()).sum(0)

    return score


def plans(nets: Networks, params: Any, starts: Latent, key: Key, horizon: int) -> Array:
    """Plan from every latent `[B, ...]` by the cross-entropy method: actions `[B, horizon, A]`."""
    config, size = nets.config, nets.world.spec.action.size
    sizes = size, horizon, config.candidates, config.elites, config.iterations
    planner = planning.cem(*sizes, momentum=0.0, init_std=1.0, bounded=False)

    def plan(start: Latent, key: Key) -> Array:
        memory, first = planner.plan(planned_return(nets, params, start), planner.start(), key)
        return jnp.concatenate([first[None], memory.mean[:-1]])  # what is kept for the next step is the rest of it

    return jax.vmap(plan)(starts, jax.random.split(key, len(starts.deter)))


# --- Wiring -----------------------------------------------------------------------------------------------------------
class Networks(NamedTuple):
    """The components; the heads' parameters live under their names next to those of the world."""

    world: World
    heads: dict[str, Head]
    config: Config


def build(spec: Spec, config: Config) -> Networks:
    """Build the networks; ValueError for observations that no encoder fits."""
    latents = Gaussian(config.stoch, config.min_std)
    world = build_classic_world(spec, latents, config, config.layers, ("relu", "relu"))
    heads = {"rew": Head({"mean": 1}, config.layers, config.units, dtype=world.dyn.dtype, act="relu")}
    return Networks(world, heads, config)


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build PlaNet for an environment with continuous actions; ValueError for others.
    The replay extras are the latents that acting saw: `deter [N, D]` and `stoch [N, S]`; dreams start from them."""
    if not isinstance(spec.action, Box):
        advice = "take dreamer-v2 or dreamer-v3"
        raise ValueError(f"planet plans over continuous actions (Box); {spec.name} has {spec.action}: {advice}")
    nets = build(spec, config)
    world = nets.world
    tx = optim.apart({"all": ("enc", "dyn", "dec", "rew")}, optim.adam(config.clip, config.eps))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = world.init(key, nets.heads)
        return fresh_state(params, tx.init(params), hyper)

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> Acted:
        def choose(latent: Latent, key: Key) -> Array:
            k_plan, k_noise = jax.random.split(key)
            action = plans(nets, state.params, latent, k_plan, config.plan_horizon)[:, 0]
            return action if mode == "greedy" else disturb(spec.action, action, state.hyper["noise"], k_noise)

        return world.act(state.params, carry, step, key, mode, choose)

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record = share.local_rows(batch.record)
        uniform = share.uniform(key, (*record.reward.shape, config.stoch))
        objective = lambda params: loss(nets, params, record, uniform, share)  # noqa: E731
        return gradient_step(state, objective, tx, state.hyper["lr"], share=share)

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        """As in `Agent.imagine`; without actions one plan is made for the whole dream, where the dream starts."""
        spaces.check_dream(world.spec.action, context, actions, horizon, least=2)
        k_filter, k_plan, k_dream = jax.random.split(key, 3)
        starts = world.last(state.params, context, k_filter)
        taken = plans(nets, state.params, starts, k_plan, horizon) if actions is None else actions
        taken = taken.swapaxes(0, 1)
        latents = world.open_loop(state.params, starts, taken, k_dream)
        reward = predict_reward(nets, state.params, latents.feat())
        return world.shown(state.params, latents, taken, reward, jnp.ones_like(reward))

    steps = {"all": TrainStep(update, config.batch_size, config.batch_length, shared=True)}
    return Agent(init, world.reset, act, steps, imagine, phases(config), hyper_of(config))


# --- Presets ----------------------------------------------------------------------------------------------------------
PUBLISHED = Config()
MICRO = replace(
    PUBLISHED, deter=32, hidden=64, stoch=8, units=64, layers=2, depth=8, envs=4, batch_size=16, batch_length=20,
    prefill=1000, collect=100, phase_updates=40, capacity=100_000, free_nats=1.0, rec_scale=30.0,
    lr=2e-3, plan_horizon=15, candidates=100, elites=10, iterations=4,
)  # fmt: skip
PRESETS = {"published": PUBLISHED, "micro": MICRO}
"""The paper's, and one for vectors on two CPU cores, where a few unit normals would hardly count next to the KL."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2019, env="gymnax/Pendulum-v1", steps=6000, actions=("Box",),
    offline=True, renamed={"updates": "phase_updates"},
    summary="Gaussian latents, cross-entropy planning in latent space (Hafner et al. 2019)",
    paper="Hafner et al., Learning Latent Dynamics for Planning from Pixels",
    sees="CNN or MLP; a Gaussian latent",
    predicts="RSSM: GRU and Gaussian prior; reward head; decoder",
    acts="cross-entropy method over action sequences in latent space, anew at every step",
)  # fmt: skip
