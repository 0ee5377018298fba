"""Dreamer (V1): dream to control, learning behaviors by latent imagination (Hafner et al. 2020).

Sees and predicts as PlaNet does. Acts with an actor that learns by following the gradient of dreamed returns back
through values, rewards, latents and actions; a critic sees beyond the end of the dream.

B sequences of T records, R = B * T starts of dreams, H horizon. Dreams are time first: `[H + 1, R, ...]`.

Where this file chooses:

- every latent of a sequence starts a dream, the last included (the code leaves it out where continues are predicted);
- greedy actions are tanh of the actor's mean (the code takes the likeliest of 100 samples);
- discrete actions are one-hot with straight-through gradients, as in the code; exploring replaces the share `noise` of
  them with random ones (0.1 to 0.4 there), and adds normal noise of that size to continuous ones;
- vectors pass through symlog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, action_distribution, disturb, legal_of
from jaxwm.distributions import TanhNormal, sg
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import merge
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, State, Updated, fresh_state, gradient_step
from jaxwm.models.latent_world import Carry, World, build_classic_world, groups_of
from jaxwm.models.rssm import Gaussian, Latent, floored, joint
from jaxwm.nets.layers import Head, apply
from jaxwm.schedule import phases
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Metrics, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of Dreamer V1. Defaults are the published ones."""

    # Size.
    deter: Count = 200  # Width of the recurrent state.
    hidden: Count = 200  # Width of the layers around it.
    stoch: Count = 30  # Number of Gaussian latents.
    units: Count = 400  # Width of all MLPs.
    depth: Count = 32  # Channels of the first convolution; the others have 2, 4 and 8 times as many.
    model_layers: Natural = 2  # Layers of the reward and continue heads, and of the MLPs for vectors.
    value_layers: Natural = 3  # Layers of the critic.
    policy_layers: Natural = 4  # Layers of the actor.
    dtype: Literal["float32", "bfloat16"] = "float32"  # Compute type; parameters, moments and losses stay float32.
    # Data.
    envs: Count = 1  # Parallel environments of each member.
    batch_size: Count = 50  # Sequences of an update.
    batch_length: Several = 50  # Records of a sequence.
    prefill: Natural = 2500
    """Environment steps of random play before learning starts; as `collect` after an action repeat of 2."""
    collect: Count = 500  # Environment steps between two phases of learning: one episode.
    phase_updates: Natural = 100  # Updates of such a phase.
    capacity: Count = 1_000_000  # Replay size of a member in environment steps (never more than the run collects).
    # World model.
    min_std: Positive = 0.1  # Smallest standard deviation of a latent.
    free_nats: Amount = 3.0  # KL, mean over the batch, below which it is not pushed.
    rec_scale: Amount = 0.5  # Weight of the squared error of observations: 1/2 for a unit normal.
    con_scale: Amount = 0.0
    """Weight of the continue flag; 0: none is predicted, and dreams never end (10 where episodes do)."""
    # Behaviour.
    imag_length: Count = 15  # Steps of a dream.
    discount: Varies[Fraction] = 0.99  # Discount of rewards.
    lam: Varies[Fraction] = 0.95  # Lambda of the returns.
    noise: Varies[Amount] = 0.3
    """Exploration: standard deviation of the noise on continuous actions, share of random discrete ones."""
    init_std: Positive = 5.0  # Standard deviation of the actor before anything is learned.
    # Optimiser.
    model_lr: Varies[Positive] = 6e-4  # Learning rate of the world model and its heads.
    actor_lr: Varies[Positive] = 8e-5  # Learning rate of the actor.
    value_lr: Varies[Positive] = 8e-5  # Learning rate of the critic.
    eps: Positive = 1e-7  # Epsilon of Adam.
    clip: Positive = 100.0  # Largest norm of the gradient of model, actor and critic, each.

    def __post_init__(self):
        check_types(self)


# --- Losses -----------------------------------------------------------------------------------------------------------
def loss(nets: Networks, params: Any, hyper: Any, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """The losses of model, actor and critic on sequences `[B, T]` in one sum: each reaches its own parameters only."""
    chex.assert_rank((record.reward, record.is_first), 2)
    k_observe, k_behaviour = jax.random.split(key)
    latents, model, metrics = model_loss(nets, params, record, k_observe, share)
    starts = merge(sg(latents))
    policy, value, more = behaviour_losses(nets, params, hyper, starts, k_behaviour, share)
    total = model + policy + value
    return total, ({}, metrics | more | {"loss/policy": policy, "loss/value": value, "loss": total})


def model_loss(
    nets: Networks, params: Any, record: Record, key: Key, share: Share = ALONE
) -> tuple[Latent, Array, Metrics]:
    """Posterior latents `[B, T]`, the negative variational bound (equation 10) and its metrics."""
    config = nets.config
    uniform = share.uniform(key, (*record.reward.shape, config.stoch))
    latents, losses, metrics = nets.world.predictions(params, nets.heads, record, uniform)
    total = config.rec_scale * losses["rec"] + losses["rew"] + config.con_scale * losses.get("con", 0.0)
    total += floored(joint(losses["dyn"], losses["rep"]), config.free_nats, share)
    return latents, total, metrics


def behaviour_losses(
    nets: Networks, params: Any, hyper: Any, starts: Latent, key: Key, share: Share = ALONE
) -> tuple[Array, Array, Metrics]:
    """Actor and critic loss in dreams from `starts [R]` (equations 6 to 8), and metrics."""
    chex.assert_rank(starts.deter, 2)
    frozen, actor = sg(params), partial(nets.actor, params)
    dream, _ = nets.world.explore(frozen, starts, actor, nets.config.imag_length, key, share)
    feat = dream.feat()
    reward, cont = nets.predict_reward_and_continue(frozen, feat, hyper["discount"])
    returns = ac.lambda_return(reward, nets.value(frozen, feat), cont, jnp.zeros_like(cont), hyper["lam"])
    # the root's own flag counts as well, but not yet a discount
    _, root = nets.predict_reward_and_continue(frozen, feat[:1], 1.0)
    weight = sg(ac.dream_weights(jnp.concatenate([root, cont[1:]])))
    policy = -(weight * returns).mean()
    value = ac.critic_loss(nets.value(params, sg(feat[:-1])), returns, weight).mean()
    return policy, value, {"dream/reward": reward.mean(), "dream/return": returns[0].mean()}


# --- Wiring -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Networks:
    """The components over explicit parameters; those of a head live under its name, next to those of the world."""

    world: World
    heads: dict[str, Head]
    config: Config

    def actor(self, params: Any, feat: Array, legal: Array | None = None) -> Actor:
        """The policy at `feat [..., F]`: a normal squashed by tanh, or one-hot choices over `legal` actions `[..., A]`,
        in dreams those that the decoder predicts."""
        out = apply(self.heads["pol"], params["pol"], feat)
        legal = self.world.legal(params["dec"], feat) if legal is None else legal
        policy = action_distribution(self.world.spec.action, out, legal=legal)
        if policy.vector is None:
            return policy
        shift = jnp.log(jnp.expm1(self.config.init_std))
        vector = TanhNormal(5 * jnp.tanh(out["mean"] / 5), jax.nn.softplus(out["std"] + shift) + 1e-4)
        return policy._replace(vector=vector)

    def value(self, params: Any, feat: Array) -> Array:
        """The critic `[...]` at `feat [..., F]`."""
        return apply(self.heads["val"], params["val"], feat)["mean"][..., 0]

    def predict_reward_and_continue(self, params: Any, feat: Array, discount: Array | float) -> tuple[Array, Array]:
        """Predicted reward and discounted continue `[...]`."""
        reward = apply(self.heads["rew"], params["rew"], feat)["mean"][..., 0]
        if "con" not in self.heads:
            return reward, jnp.full_like(reward, discount)
        return reward, discount * jax.nn.sigmoid(apply(self.heads["con"], params["con"], feat)["logit"][..., 0])


def build(spec: Spec, config: Config) -> Networks:
    """Build the networks; ValueError for observations that no encoder fits."""
    latents = Gaussian(config.stoch, config.min_std)
    world = build_classic_world(spec, latents, config, config.model_layers, ("relu", "elu"))
    head = partial(Head, units=config.units, dtype=world.dyn.dtype, act="elu")
    heads = {"rew": head({"mean": 1}, config.model_layers)}
    if config.con_scale:
        heads["con"] = head({"logit": 1}, config.model_layers)
    heads["pol"] = head(spaces.head_sizes(spec.action), config.policy_layers)
    heads["val"] = head({"mean": 1}, config.value_layers)
    return Networks(world, heads, config)


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build Dreamer V1 for an environment.
    The replay extras are the latents that acting saw: `deter [N, D]` and `stoch [N, S]`; dreams to look at start from
    them, sequences to learn from start from nothing."""
    nets = build(spec, config)
    world, groups = nets.world, groups_of(nets.heads)
    tx = optim.apart(groups, optim.adam(config.clip, config.eps))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = world.init(key, nets.heads)
        return fresh_state(params, tx.init(params), hyper)

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> Acted:
        def choose(latent: Latent, key: Key) -> Array:
            policy, legal = nets.actor(state.params, latent.feat(), legal_of(step)), legal_of(step)
            k_sample, k_noise = jax.random.split(key)
            if mode == "greedy":
                return policy.mode()
            return disturb(spec.action, policy.sample(k_sample), state.hyper["noise"], k_noise, legal)

        return world.act(state.params, carry, step, key, mode, choose)

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record, hyper = share.local_rows(batch.record), state.hyper
        objective = lambda params: loss(nets, params, hyper, record, key, share)  # noqa: E731
        return gradient_step(state, objective, tx, optim.rates_of(groups, hyper), share=share)

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        actor = partial(nets.actor, state.params)
        predict = partial(nets.predict_reward_and_continue, state.params, discount=1.0)
        return world.dream(state.params, context, actions, actor, key, horizon, predict)

    steps = {"all": TrainStep(update, config.batch_size, config.batch_length, shared=True)}
    return Agent(init, world.reset, act, steps, imagine, phases(config), hyper_of(config))


# --- Presets ----------------------------------------------------------------------------------------------------------
PUBLISHED = Config()
MICRO = replace(
    PUBLISHED, deter=32, hidden=64, stoch=8, units=64, depth=8, value_layers=2, policy_layers=2, envs=4, batch_size=16,
    batch_length=10, prefill=1000, collect=8, phase_updates=2, capacity=100_000, free_nats=1.0, rec_scale=30.0,
    imag_length=12, discount=0.97, model_lr=3e-3, actor_lr=1e-3, value_lr=3e-3, eps=1e-5,
)  # fmt: skip
PRESETS = {"published": PUBLISHED, "micro": MICRO}
"""The paper's, and one for vectors on two CPU cores, where a few unit normals would hardly count next to the KL."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2020, env="gymnax/Pendulum-v1", steps=14000, obeys=("legal",),
    mixed=True, offline=True, renamed={"updates": "phase_updates"},
    summary="Gaussian latents, value gradients through dreams (Hafner et al. 2020)",
    paper="Hafner et al., Dream to Control",
    sees="CNN or MLP; a Gaussian latent",
    predicts="RSSM: GRU and Gaussian prior; reward head, continue head on request; decoder",
    acts="actor-critic inside dreams: the actor follows the gradient of values through the dream",
)  # fmt: skip
