"""Dreamer (V1): dream to control, learning behaviors by latent imagination (Hafner et al. 2020).

Sees and predicts as PlaNet does. Acts with an actor that learns by following the gradient of dreamed returns back
through values, rewards, latents and actions; a critic sees beyond the end of the dream.

B sequences of T records, R = B * T starts of dreams, H horizon. Dreams are time first: `[H + 1, R, ...]`.

Where this file chooses:

- every latent of a sequence starts a dream, the last included (the code leaves it out where continues are predicted);
- greedy actions are tanh of the actor's mean (the code takes the likeliest of 100 samples);
- discrete actions are one-hot with straight-through gradients, as in the code; exploring replaces the share `noise` of
  them with random ones (0.1 to 0.4 there), and adds normal noise of that size to continuous ones;
- vectors pass through symlog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, disturb
from jaxwm.distributions import TanhNormal, one_hot
from jaxwm.errors import check_range, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import join
from jaxwm.models import rssm
from jaxwm.models.latent_world import Carry, World, classic, groups_of
from jaxwm.models.rssm import Gaussian, Latent
from jaxwm.nets.layers import Head, apply
from jaxwm.types import (
    FOREVER,
    Agent,
    Array,
    Batch,
    Box,
    Collect,
    Dream,
    Key,
    Record,
    Repeat,
    Spec,
    Step,
    Train,
    TrainStep,
)

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class Config:
    """Settings of Dreamer V1. Defaults are the published ones."""

    # Size.
    deter: int = 200
    """Width of the recurrent state."""
    hidden: int = 200
    """Width of the layers around it."""
    stoch: int = 30
    """Number of Gaussian latents."""
    units: int = 400
    """Width of all MLPs."""
    depth: int = 32
    """Channels of the first convolution; the others have 2, 4 and 8 times as many."""
    model_layers: int = 2
    """Layers of the reward and continue heads, and of the MLPs for vectors."""
    value_layers: int = 3
    """Layers of the critic."""
    policy_layers: int = 4
    """Layers of the actor."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments and losses stay float32."""

    # Data.
    envs: int = 1
    """Parallel environments of each member."""
    batch_size: int = 50
    """Sequences of an update."""
    batch_length: int = 50
    """Records of a sequence."""
    prefill: int = 2500
    """Environment steps of random play before learning starts; as `collect` after an action repeat of 2."""
    collect: int = 500
    """Environment steps between two phases of learning: one episode."""
    updates: int = 100
    """Updates of such a phase."""
    capacity: int = 1_000_000
    """Replay size of a member in environment steps (never more than the run collects)."""

    # World model.
    min_std: float = 0.1
    """Smallest standard deviation of a latent."""
    free_nats: float = 3.0
    """KL, mean over the batch, below which it is not pushed."""
    rec_scale: float = 0.5
    """Weight of the squared error of observations: 1/2 for a unit normal."""
    con_scale: float = 0.0
    """Weight of the continue flag; 0: none is predicted, and dreams never end (10 where episodes do)."""

    # Behaviour.
    imag_length: int = 15
    """Steps of a dream."""
    discount: float = 0.99
    """Discount of rewards."""
    lam: float = 0.95
    """Lambda of the returns."""
    noise: float = 0.3
    """Exploration: standard deviation of the noise on continuous actions, share of random discrete ones."""
    init_std: float = 5.0
    """Standard deviation of the actor before anything is learned."""

    # Optimiser.
    model_lr: float = 6e-4
    actor_lr: float = 8e-5
    value_lr: float = 8e-5
    eps: float = 1e-7
    """Epsilon of Adam."""
    clip: float = 100.0
    """Largest norm of the gradient of model, actor and critic, each."""

    def __post_init__(self):
        check_types(self)
        check_range(self, "deter hidden stoch units depth envs batch_size capacity collect imag_length", least=1)
        check_range(self, "batch_length", least=2)
        check_range(self, "model_layers value_layers policy_layers prefill updates", least=0)
        check_range(self, "free_nats rec_scale con_scale noise", least=0)
        check_range(self, "discount lam", least=0, most=1)
        check_range(self, "model_lr actor_lr value_lr eps clip min_std init_std", above=0)


PUBLISHED = Config()
MICRO = replace(
    PUBLISHED, deter=32, hidden=64, stoch=8, units=64, depth=8, value_layers=2, policy_layers=2, envs=4, batch_size=16,
    batch_length=10, prefill=1000, collect=8, updates=2, capacity=100_000, free_nats=1.0, rec_scale=30.0,
    imag_length=12, discount=0.97, model_lr=3e-3, actor_lr=1e-3, value_lr=3e-3, eps=1e-5,
)  # fmt: skip
PRESETS = {"published": PUBLISHED, "micro": MICRO}
"""The paper's, and one for vectors on two CPU cores: what is seen is a few numbers, which would hardly count beside the
KL with a unit normal around each."""


class State(NamedTuple):
    """Everything that learning changes."""

    params: dict[str, Any]
    opt: Any
    hyper: dict[str, Array]
    step: Array  # updates so far


def make(spec: Spec, config: Config = PUBLISHED) -> Agent:
    """Dreamer V1 for an environment.

    The replay extras are the latents that acting saw: `deter [N, D]` and `stoch [N, S]`; dreams to look at start from
    them, sequences to learn from start from nothing.
    """
    learner = build(spec, config)
    world = learner.world
    groups = groups_of(learner.heads)
    tx = optim.apart(groups, optim.adam(config.clip, config.eps))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = world.init(key, learner.heads)
        return State(params, tx.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32))

    def reset(state: State, num_envs: int) -> Carry:
        return world.reset(num_envs)

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> tuple[Carry, Array, dict[str, Array]]:
        def choose(latent: Latent, key: Key) -> Array:
            policy = learner.actor(state.params, latent.feat())
            k_sample, k_noise = jax.random.split(key)
            if mode == "greedy":
                return policy.mode()
            return disturb(spec.action, policy.sample(k_sample), state.hyper["noise"], k_noise)

        carry = world.act(state, carry, step, key, mode, choose)
        return carry, carry.action, world.pack(carry.latent)

    def update(state: State, batch: Batch, key: Key) -> tuple[State, dict, dict[str, Array]]:
        grads, metrics = jax.grad(learner.loss, has_aux=True)(state.params, state.hyper, batch.record, key)
        direction, opt = tx.update(grads, state.opt, state.params)
        params = optim.descend(state.params, direction, groups, {g: state.hyper[f"{g}_lr"] for g in groups})
        metrics["grad_norm"] = optim.norm(grads)
        return State(params, opt, state.hyper, state.step + 1), {}, metrics

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        world.check_dream(context, actions, horizon)
        actor = lambda feat: learner.actor(state.params, feat)  # noqa: E731
        latent, taken = world.dream(state.params, context, actions, actor, key, horizon)
        reward, cont = learner.judge(state.params, latent.feat(), 1.0)
        dream = Dream(world.decode(state.params, latent), reward, cont, taken, latent)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), dream)

    steps = {"all": TrainStep(update, config.batch_size, config.batch_length)}
    hyper = {name: getattr(config, name) for name in ("model_lr", "actor_lr", "value_lr", "discount", "lam", "noise")}
    return Agent(init, reset, act, steps, imagine, schedule(config), hyper)


def build(spec: Spec, config: Config) -> Learner:
    """The networks; ValueError for observations that no encoder fits."""
    sizes = config.deter, config.hidden, config.units, config.model_layers, config.depth
    dtype = jnp.dtype(config.dtype)
    world = classic(spec, Gaussian(config.stoch, config.min_std), *sizes, ("relu", "elu"), dtype=dtype)

    def head(outputs: dict[str, int], layers: int) -> Head:
        return Head(outputs, layers, config.units, dtype=dtype, act="elu")

    heads = {"rew": head({"mean": 1}, config.model_layers)}
    if config.con_scale:
        heads["con"] = head({"logit": 1}, config.model_layers)
    heads["pol"] = head(spaces.head_sizes(spec.action), config.policy_layers)
    heads["val"] = head({"mean": 1}, config.value_layers)
    return Learner(world, heads, config)


@dataclass(frozen=True)
class Learner:
    """The mathematics of one update, over explicit parameters."""

    world: World
    heads: dict[str, Head]
    config: Config

    def actor(self, params: Any, feat: Array) -> Actor:
        """The policy at `feat [..., F]`: a normal squashed by tanh, or one-hot choices."""
        space, out = self.world.spec.action, apply(self.heads["pol"], params["pol"], feat)
        if not isinstance(space, Box):
            return Actor(tuple(one_hot(out[name]) for name in spaces.head_sizes(space)), space)
        shift = jnp.log(jnp.expm1(self.config.init_std))
        return Actor(TanhNormal(5 * jnp.tanh(out["mean"] / 5), jax.nn.softplus(out["std"] + shift) + 1e-4), space)

    def value(self, params: Any, feat: Array) -> Array:
        return apply(self.heads["val"], params["val"], feat)["mean"][..., 0]

    def judge(self, params: Any, feat: Array, discount: Array | float) -> tuple[Array, Array]:
        """Predicted reward and discounted continue `[...]`."""
        reward = apply(self.heads["rew"], params["rew"], feat)["mean"][..., 0]
        if "con" not in self.heads:
            return reward, jnp.full_like(reward, discount)
        return reward, discount * jax.nn.sigmoid(apply(self.heads["con"], params["con"], feat)["logit"][..., 0])

    def loss(self, params: Any, hyper: Any, record: Record, key: Key) -> tuple[Array, dict[str, Array]]:
        """The losses of model, actor and critic in one sum: each reaches its own parameters alone."""
        config, (k_observe, k_behaviour) = self.config, jax.random.split(key)
        uniform = jax.random.uniform(k_observe, (*record.reward.shape, config.stoch))
        latents, losses, metrics = self.world.predictions(params, self.heads, record, uniform)
        model = config.rec_scale * losses["rec"] + losses["rew"] + config.con_scale * losses.get("con", 0.0)
        model += jnp.maximum(rssm.joint(losses["dyn"], losses["rep"]), config.free_nats)
        starts = join(sg(latents))
        policy, value, more = self.behaviour(params, hyper, starts, k_behaviour)
        metrics |= more | {"loss/policy": policy, "loss/value": value, "loss": model + policy + value}
        return model + policy + value, metrics

    def behaviour(self, params: Any, hyper: Any, starts: Latent, key: Key) -> tuple[Array, Array, dict[str, Array]]:
        """Actor and critic loss in dreams from `starts [R]` (equations 6 to 8), and metrics."""
        frozen, actor = sg(params), lambda feat: self.actor(params, feat)
        dream, _ = self.world.explore(frozen, starts, actor, self.config.imag_length, key)
        feat = dream.feat()
        reward, cont = self.judge(frozen, feat, hyper["discount"])
        returns = ac.lambda_return(reward, self.value(frozen, feat), cont, jnp.zeros_like(cont), hyper["lam"])
        _, root = self.judge(frozen, feat[:1], 1.0)  # its own flag counts as well, but not yet a discount
        weight = sg(jnp.cumprod(jnp.concatenate([root, cont[1:-1]]), 0))
        policy = -(weight * returns).mean()
        value = 0.5 * (weight * jnp.square(self.value(params, sg(feat[:-1])) - sg(returns))).mean()
        return policy, value, {"dream/reward": reward.mean(), "dream/return": returns[0].mean()}


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random episodes, then learning and collecting in turn."""
    prefill = max(config.prefill, config.envs * config.batch_length)
    return Collect(prefill, "random"), Repeat(FOREVER, (Train("all", config.updates), Collect(config.collect)))
