"""Dreamer V2: mastering Atari with discrete world models (Hafner et al. 2021).

Sees and predicts as Dreamer V1 does, but with categorical latents, a layer norm in the GRU, and a KL whose two halves
are balanced. Acts with an actor that mixes REINFORCE with the gradient through the dream; a slow critic sees beyond the
end of the dream.

B sequences of T records, R = B * T starts of dreams, H horizon. Dreams are time first: `[H + 1, R, ...]`.

Where this file chooses:

- the defaults are those of Atari; `actor_mix` 1 is pure REINFORCE, 0 the pure gradient through the dream that the paper
  uses for continuous control;
- continuous actors are the bounded normal of Dreamer V3 (the code cuts a normal at the bounds);
- images keep their channels (the code takes grey ones), vectors pass through symlog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, action_distribution, legal_of
from jaxwm.distributions import sg
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import merge
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, every, gradient_step
from jaxwm.models.latent_world import Carry, World, build_classic_world, groups_of
from jaxwm.models.rssm import Categorical, Latent
from jaxwm.nets.layers import Head, apply
from jaxwm.schedule import phases
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Metrics, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of Dreamer V2. Defaults are the published ones for Atari."""

    # Size.
    deter: Count = 600  # Width of the recurrent state.
    hidden: Count = 600  # Width of the layers around it.
    stoch: Count = 32  # Number of categorical latents.
    classes: int = 32  # Classes of each latent.
    units: Count = 400  # Width of all MLPs.
    layers: Natural = 4  # Layers of all MLPs.
    depth: Count = 48  # Channels of the first convolution; the others have 2, 4 and 8 times as many.
    dtype: Literal["float32", "bfloat16"] = "float32"  # Compute type; parameters, moments and losses stay float32.
    # Data.
    envs: Count = 1  # Parallel environments of each member.
    batch_size: Count = 50  # Sequences of an update.
    batch_length: Several = 50  # Records of a sequence.
    prefill: Natural = 50_000  # Environment steps of random play before learning starts (200,000 frames).
    collect: Count = 16  # Environment steps between two phases of learning.
    phase_updates: Natural = 1  # Updates of such a phase.
    capacity: Count = 2_000_000  # Replay size of a member in environment steps (never more than the run collects).
    # World model.
    kl_scale: Amount = 0.1  # Weight of the KL.
    kl_balance: Fraction = 0.8
    """Share of the KL that pulls the prior towards the posterior; the rest pulls the posterior."""
    rec_scale: Amount = 0.5  # Weight of the squared error of observations: 1/2 for a unit normal.
    con_scale: Amount = 5.0  # Weight of the continue flag.
    squash: bool = True  # Learn from tanh of the rewards, as on Atari.
    # Behaviour.
    imag_length: Count = 15  # Steps of a dream.
    discount: Varies[Fraction] = 0.999  # Discount of rewards.
    lam: Varies[Fraction] = 0.95  # Lambda of the returns.
    actor_mix: Varies[Fraction] = 1.0
    """Share of REINFORCE in the actor's loss; the rest is the gradient through the dream."""
    entropy: Varies[Amount] = 1e-3  # Weight of the policy's entropy.
    slow_every: Count = 100  # Updates between two copies of the critic to the slow one.
    # Optimiser.
    model_lr: Varies[Positive] = 2e-4  # Learning rate of the world model and its heads.
    actor_lr: Varies[Positive] = 4e-5  # Learning rate of the actor.
    value_lr: Varies[Positive] = 1e-4  # Learning rate of the critic.
    eps: Positive = 1e-5  # Epsilon of Adam.
    clip: Positive = 100.0  # Largest norm of the gradient of model, actor and critic, each.
    weight_decay: Amount = 1e-6  # Share of a weight that is lost in each update, in units of the learning rate.

    def __post_init__(self):
        check_types(self)
        check_number("classes", self.classes, least=1, most=256, whole=True)  # the replay keeps them as bytes


# --- Losses -----------------------------------------------------------------------------------------------------------
def loss(nets: Networks, params: Any, state: State, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """The losses of model, actor and critic on sequences `[B, T]` in one sum: each reaches its own parameters only."""
    chex.assert_rank((record.reward, record.is_first), 2)
    k_observe, k_behaviour = jax.random.split(key)
    latents, model, metrics = model_loss(nets, params, record, k_observe, share)
    starts = merge(sg(latents))
    policy, value, more = behaviour_losses(nets, params, state, starts, k_behaviour, share)
    total = model + policy + value
    return total, ({}, metrics | more | {"loss/policy": policy, "loss/value": value, "loss": total})


def model_loss(
    nets: Networks, params: Any, record: Record, key: Key, share: Share = ALONE
) -> tuple[Latent, Array, Metrics]:
    """Posterior latents `[B, T]`, the loss of the world model (equation 2) with a balanced KL, and its metrics."""
    config = nets.config
    if config.squash:
        record = record._replace(reward=jnp.tanh(record.reward))
    uniform = share.uniform(key, (*record.reward.shape, config.stoch))
    latents, losses, metrics = nets.world.predictions(params, nets.heads, record, uniform)
    kl = config.kl_balance * losses["dyn"] + (1 - config.kl_balance) * losses["rep"]  # algorithm 2
    total = config.rec_scale * losses["rec"] + losses["rew"] + config.con_scale * losses["con"]
    return latents, total + config.kl_scale * kl, metrics


def behaviour_losses(
    nets: Networks, params: Any, state: State, starts: Latent, key: Key, share: Share = ALONE
) -> tuple[Array, Array, Metrics]:
    """Actor and critic loss in dreams from `starts [R]` (equations 4 to 6), and metrics."""
    chex.assert_rank(starts.deter, 2)
    hyper, actor = state.hyper, partial(nets.actor, params)
    dream, actions = nets.world.explore(sg(params), starts, actor, nets.config.imag_length, key, share)
    feat = dream.feat()
    reward, cont = nets.predict_reward_and_continue(sg(params), feat)
    slow, cont = nets.value(state.slow, feat), hyper["discount"] * cont
    returns = ac.lambda_return(reward, slow, cont, jnp.zeros_like(cont), hyper["lam"])
    weight = sg(ac.dream_weights(cont))
    policy = actor(sg(feat[:-1]))
    score = ac.reinforce(policy, actions[:-1], returns - slow[:-1])
    gain = hyper["actor_mix"] * score + (1 - hyper["actor_mix"]) * returns
    entropy = policy.entropy()
    policy_loss = ac.actor_loss(gain, entropy, weight, hyper["entropy"]).mean()
    value_loss = ac.critic_loss(nets.value(params["val"], sg(feat[:-1])), returns, weight).mean()
    metrics = {"dream/reward": reward.mean(), "dream/return": returns[0].mean(), "policy/entropy": entropy.mean()}
    return policy_loss, value_loss, metrics


# --- Wiring -----------------------------------------------------------------------------------------------------------
class State(NamedTuple):
    """Everything that learning changes."""

    params: dict[str, Any]
    slow: Any  # slow copy of the critic
    opt: Any
    hyper: dict[str, Array]
    step: Array  # updates so far


@dataclass(frozen=True)
class Networks:
    """The components over explicit parameters; those of a head live under its name, next to those of the world."""

    world: World
    heads: dict[str, Head]
    config: Config

    def actor(self, params: Any, feat: Array, legal: Array | None = None) -> Actor:
        """The policy at `feat [..., F]`, over `legal` actions `[..., A]`: in dreams those that the decoder predicts."""
        legal = self.world.legal(params["dec"], feat) if legal is None else legal
        outputs = apply(self.heads["pol"], params["pol"], feat)
        return action_distribution(self.world.spec.action, outputs, legal=legal)

    def value(self, params: Any, feat: Array) -> Array:
        """The critic `[...]`; `params` are its own."""
        return apply(self.heads["val"], params, feat)["mean"][..., 0]

    def predict_reward_and_continue(self, params: Any, feat: Array) -> tuple[Array, Array]:
        """Predicted reward and continue flag `[...]`."""
        reward = apply(self.heads["rew"], params["rew"], feat)["mean"][..., 0]
        return reward, jax.nn.sigmoid(apply(self.heads["con"], params["con"], feat)["logit"][..., 0])


def build(spec: Spec, config: Config) -> Networks:
    """Build the networks; ValueError for observations that no encoder fits."""
    latents = Categorical(config.stoch, config.classes)
    world = build_classic_world(spec, latents, config, config.layers, ("elu", "elu"), norm=True)
    outputs = {"rew": {"mean": 1}, "con": {"logit": 1}, "pol": spaces.head_sizes(spec.action), "val": {"mean": 1}}
    head = partial(Head, layers=config.layers, units=config.units, dtype=world.dyn.dtype, act="elu")
    return Networks(world, {name: head(sizes) for name, sizes in outputs.items()}, config)


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build Dreamer V2 for an environment.
    The replay extras are the latents that acting saw: `deter [N, D]` and `stoch` uint8 `[N, S]` class indices; dreams
    to look at start from them, sequences to learn from start from nothing."""
    nets = build(spec, config)
    world, groups = nets.world, groups_of(nets.heads)
    tx = optim.apart(groups, optim.adam(config.clip, config.eps))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = world.init(key, nets.heads)
        slow = jax.tree.map(jnp.copy, params["val"])
        return State(params, slow, tx.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32))

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> Acted:
        def choose(latent: Latent, key: Key) -> Array:
            policy = nets.actor(state.params, latent.feat(), legal_of(step))
            return policy.mode() if mode == "greedy" else policy.sample(key)

        return world.act(state.params, carry, step, key, mode, choose)

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record, rates = share.local_rows(batch.record), optim.rates_of(groups, state.hyper)
        objective = lambda params: loss(nets, params, state, record, key, share)  # noqa: E731
        new, _, metrics = gradient_step(state, objective, tx, rates, weight_decay=config.weight_decay, share=share)
        return new._replace(slow=every(config.slow_every, new.step, new.params["val"], state.slow)), {}, metrics

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        def predict(feat: Array) -> tuple[Array, Array]:
            reward, cont = nets.predict_reward_and_continue(state.params, feat)
            return jnp.arctanh(jnp.clip(reward, -0.999, 0.999)) if config.squash else reward, cont

        actor = partial(nets.actor, state.params)
        return world.dream(state.params, context, actions, actor, key, horizon, predict)

    steps = {"all": TrainStep(update, config.batch_size, config.batch_length, shared=True)}
    return Agent(init, world.reset, act, steps, imagine, phases(config), hyper_of(config))


# --- Presets ----------------------------------------------------------------------------------------------------------
PUBLISHED = Config()
NANO = replace(
    PUBLISHED, deter=32, hidden=32, stoch=4, classes=8, units=32, layers=1, depth=2, envs=4, batch_size=16,
    batch_length=10, prefill=256, collect=4, phase_updates=2, capacity=100_000, kl_scale=0.3, rec_scale=1.0,
    squash=False, imag_length=8, discount=0.99, model_lr=8e-3, actor_lr=2e-3, value_lr=3e-3, entropy=6e-2,
    slow_every=20,
)  # fmt: skip
MICRO = replace(
    NANO, deter=64, hidden=64, stoch=8, units=64, layers=2, depth=8, batch_length=16, collect=8, imag_length=10,
    model_lr=3e-3, actor_lr=1e-3, entropy=2e-2,
)  # fmt: skip
PRESETS = {"atari": PUBLISHED, "nano": NANO, "micro": MICRO}
"""The paper's, and two for vectors and small grids on two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="nano", year=2021, steps=14000, obeys=("legal",), mixed=True, offline=True,
    copies={"slow": "val"}, renamed={"updates": "phase_updates", "decay": "weight_decay"},
    summary="categorical latents, REINFORCE and gradients through dreams mixed (Hafner et al. 2021)",
    paper="Hafner et al., Mastering Atari with Discrete World Models",
    sees="CNN or MLP; a latent of categoricals",
    predicts="RSSM: layer-norm GRU and categorical prior, balanced KL; reward and continue heads; decoder",
    acts="actor-critic inside dreams: REINFORCE mixed with the gradient through the dream; slow critic",
)  # fmt: skip
