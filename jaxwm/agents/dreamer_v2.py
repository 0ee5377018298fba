"""Dreamer V2: mastering Atari with discrete world models (Hafner et al. 2021).

Sees and predicts as Dreamer V1 does, but with categorical latents, a layer norm in the GRU, and a KL whose two halves
are balanced. Acts with an actor that mixes REINFORCE with the gradient through the dream; a slow critic sees beyond the
end of the dream.

B sequences of T records, R = B * T starts of dreams, H horizon. Dreams are time first: `[H + 1, R, ...]`.

Where this file chooses:

- the defaults are those of Atari; `actor_mix` 1 is pure REINFORCE, 0 the pure gradient through the dream that the paper
  uses for continuous control;
- continuous actors are the bounded normal of Dreamer V3 (the code cuts a normal at the bounds);
- images keep their channels (the code takes grey ones), vectors pass through symlog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, action_distribution
from jaxwm.errors import check_range, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import join
from jaxwm.models.latent_world import Carry, World, classic, groups_of
from jaxwm.models.rssm import Categorical, Latent
from jaxwm.nets.layers import Head, apply
from jaxwm.types import (
    FOREVER,
    Agent,
    Array,
    Batch,
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
    """Settings of Dreamer V2. Defaults are the published ones for Atari."""

    # Size.
    deter: int = 600
    """Width of the recurrent state."""
    hidden: int = 600
    """Width of the layers around it."""
    stoch: int = 32
    """Number of categorical latents."""
    classes: int = 32
    """Classes of each latent."""
    units: int = 400
    """Width of all MLPs."""
    layers: int = 4
    """Layers of all MLPs."""
    depth: int = 48
    """Channels of the first convolution; the others have 2, 4 and 8 times as many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments and losses stay float32."""

    # Data.
    envs: int = 1
    """Parallel environments of each member."""
    batch_size: int = 50
    """Sequences of an update."""
    batch_length: int = 50
    """Records of a sequence."""
    prefill: int = 50_000
    """Environment steps of random play before learning starts (200,000 frames)."""
    collect: int = 16
    """Environment steps between two phases of learning."""
    updates: int = 1
    """Updates of such a phase."""
    capacity: int = 2_000_000
    """Replay size of a member in environment steps (never more than the run collects)."""

    # World model.
    kl_scale: float = 0.1
    kl_balance: float = 0.8
    """Share of the KL that pulls the prior towards the posterior; the rest pulls the posterior."""
    rec_scale: float = 0.5
    """Weight of the squared error of observations: 1/2 for a unit normal."""
    con_scale: float = 5.0
    """Weight of the continue flag."""
    squash: bool = True
    """Learn from tanh of the rewards, as on Atari."""

    # Behaviour.
    imag_length: int = 15
    """Steps of a dream."""
    discount: float = 0.999
    """Discount of rewards."""
    lam: float = 0.95
    """Lambda of the returns."""
    actor_mix: float = 1.0
    """Share of REINFORCE in the actor's loss; the rest is the gradient through the dream."""
    entropy: float = 1e-3
    """Weight of the policy's entropy."""
    slow_every: int = 100
    """Updates between two copies of the critic to the slow one."""

    # Optimiser.
    model_lr: float = 2e-4
    actor_lr: float = 4e-5
    value_lr: float = 1e-4
    eps: float = 1e-5
    """Epsilon of Adam."""
    clip: float = 100.0
    """Largest norm of the gradient of model, actor and critic, each."""
    decay: float = 1e-6
    """Weight decay, in units of the learning rate."""

    def __post_init__(self):
        check_types(self)
        check_range(self, "deter hidden stoch units depth envs batch_size capacity collect imag_length", least=1)
        check_range(self, "slow_every", least=1)
        check_range(self, "classes", least=1, most=256)  # the replay keeps them as bytes
        check_range(self, "batch_length", least=2)
        check_range(self, "layers prefill updates kl_scale rec_scale con_scale entropy decay", least=0)
        check_range(self, "kl_balance discount lam actor_mix", least=0, most=1)
        check_range(self, "model_lr actor_lr value_lr eps clip", above=0)


PUBLISHED = Config()
NANO = replace(
    PUBLISHED, deter=32, hidden=32, stoch=4, classes=8, units=32, layers=1, depth=2, envs=4, batch_size=16,
    batch_length=10, prefill=256, collect=4, updates=2, capacity=100_000, kl_scale=0.3, rec_scale=1.0, squash=False,
    imag_length=8, discount=0.99, model_lr=8e-3, actor_lr=2e-3, value_lr=3e-3, entropy=6e-2, slow_every=20,
)  # fmt: skip
MICRO = replace(
    NANO, deter=64, hidden=64, stoch=8, units=64, layers=2, depth=8, batch_length=16, collect=8, imag_length=10,
    model_lr=3e-3, actor_lr=1e-3, entropy=2e-2,
)  # fmt: skip
PRESETS = {"atari": PUBLISHED, "nano": NANO, "micro": MICRO}
"""The paper's, and two for vectors and small grids on two CPU cores."""


class State(NamedTuple):
    """Everything that learning changes."""

    params: dict[str, Any]
    slow: Any  # slow copy of the critic
    opt: Any
    hyper: dict[str, Array]
    step: Array  # updates so far


def make(spec: Spec, config: Config = PUBLISHED) -> Agent:
    """Dreamer V2 for an environment.

    The replay extras are the latents that acting saw: `deter [N, D]` and `stoch` uint8 `[N, S]` class indices; dreams
    to look at start from them, sequences to learn from start from nothing.
    """
    learner = build(spec, config)
    world = learner.world
    groups = groups_of(learner.heads)
    tx = optim.apart(groups, optim.adam(config.clip, config.eps))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = world.init(key, learner.heads)
        slow = jax.tree.map(jnp.copy, params["val"])
        return State(params, slow, tx.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32))

    def reset(state: State, num_envs: int) -> Carry:
        return world.reset(num_envs)

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> tuple[Carry, Array, dict[str, Array]]:
        def choose(latent: Latent, key: Key) -> Array:
            policy = learner.actor(state.params, latent.feat())
            return policy.mode() if mode == "greedy" else policy.sample(key)

        carry = world.act(state, carry, step, key, mode, choose)
        return carry, carry.action, world.pack(carry.latent)

    def update(state: State, batch: Batch, key: Key) -> tuple[State, dict, dict[str, Array]]:
        grads, metrics = jax.grad(learner.loss, has_aux=True)(state.params, state, batch.record, key)
        direction, opt = tx.update(grads, state.opt, state.params)
        rates = {group: state.hyper[f"{group}_lr"] for group in groups}
        params = optim.descend(state.params, direction, groups, rates, config.decay)
        metrics["grad_norm"] = optim.norm(grads)
        copy = (state.step + 1) % config.slow_every == 0
        slow = jax.tree.map(lambda new, old: jnp.where(copy, new, old), params["val"], state.slow)
        return State(params, slow, opt, state.hyper, state.step + 1), {}, metrics

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        world.check_dream(context, actions, horizon)
        actor = lambda feat: learner.actor(state.params, feat)  # noqa: E731
        latent, taken = world.dream(state.params, context, actions, actor, key, horizon)
        reward, cont = learner.judge(state.params, latent.feat())
        if config.squash:
            reward = jnp.arctanh(jnp.clip(reward, -0.999, 0.999))
        dream = Dream(world.decode(state.params, latent), reward, cont, taken, latent)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), dream)

    steps = {"all": TrainStep(update, config.batch_size, config.batch_length)}
    names = ("model_lr", "actor_lr", "value_lr", "discount", "lam", "entropy", "actor_mix")
    return Agent(init, reset, act, steps, imagine, schedule(config), {name: getattr(config, name) for name in names})


def build(spec: Spec, config: Config) -> Learner:
    """The networks; ValueError for observations that no encoder fits."""
    sizes = config.deter, config.hidden, config.units, config.layers, config.depth
    dtype = jnp.dtype(config.dtype)
    latents = Categorical(config.stoch, config.classes)
    world = classic(spec, latents, *sizes, ("elu", "elu"), norm=True, dtype=dtype)
    outputs = {"rew": {"mean": 1}, "con": {"logit": 1}, "pol": spaces.head_sizes(spec.action), "val": {"mean": 1}}
    heads = {name: Head(out, config.layers, config.units, dtype=dtype, act="elu") for name, out in outputs.items()}
    return Learner(world, heads, config)


@dataclass(frozen=True)
class Learner:
    """The mathematics of one update, over explicit parameters."""

    world: World
    heads: dict[str, Head]
    config: Config

    def actor(self, params: Any, feat: Array) -> Actor:
        return action_distribution(self.world.spec.action, apply(self.heads["pol"], params["pol"], feat))

    def value(self, params: Any, feat: Array) -> Array:
        """The critic `[...]`; `params` are its own."""
        return apply(self.heads["val"], params, feat)["mean"][..., 0]

    def judge(self, params: Any, feat: Array) -> tuple[Array, Array]:
        """Predicted reward and continue flag `[...]`."""
        reward = apply(self.heads["rew"], params["rew"], feat)["mean"][..., 0]
        return reward, jax.nn.sigmoid(apply(self.heads["con"], params["con"], feat)["logit"][..., 0])

    def loss(self, params: Any, state: State, record: Record, key: Key) -> tuple[Array, dict[str, Array]]:
        """The losses of model, actor and critic in one sum: each reaches its own parameters alone."""
        config, (k_observe, k_behaviour) = self.config, jax.random.split(key)
        if config.squash:
            record = record._replace(reward=jnp.tanh(record.reward))
        uniform = jax.random.uniform(k_observe, (*record.reward.shape, config.stoch))
        latents, losses, metrics = self.world.predictions(params, self.heads, record, uniform)
        kl = config.kl_balance * losses["dyn"] + (1 - config.kl_balance) * losses["rep"]  # algorithm 2
        model = config.rec_scale * losses["rec"] + losses["rew"] + config.con_scale * losses["con"]
        model += config.kl_scale * kl
        starts = join(sg(latents))
        policy, value, more = self.behaviour(params, state, starts, k_behaviour)
        metrics |= more | {"loss/policy": policy, "loss/value": value, "loss": model + policy + value}
        return model + policy + value, metrics

    def behaviour(self, params: Any, state: State, starts: Latent, key: Key) -> tuple[Array, Array, dict[str, Array]]:
        """Actor and critic loss in dreams from `starts [R]` (equations 4 to 6), and metrics."""
        hyper, actor = state.hyper, lambda feat: self.actor(params, feat)
        dream, actions = self.world.explore(sg(params), starts, actor, self.config.imag_length, key)
        feat = dream.feat()
        reward, cont = self.judge(sg(params), feat)
        slow, cont = self.value(state.slow, feat), hyper["discount"] * cont
        returns = ac.lambda_return(reward, slow, cont, jnp.zeros_like(cont), hyper["lam"])
        weight = sg(jnp.cumprod(cont, 0)[:-1])  # the root's own flag counts as well
        policy = actor(sg(feat[:-1]))
        score = policy.log_prob(sg(actions[:-1])) * sg(returns - slow[:-1])
        gain = hyper["actor_mix"] * score + (1 - hyper["actor_mix"]) * returns
        entropy = policy.entropy()
        policy_loss = -(weight * (gain + hyper["entropy"] * entropy)).mean()
        error = self.value(params["val"], sg(feat[:-1])) - sg(returns)
        value_loss = 0.5 * (weight * jnp.square(error)).mean()
        metrics = {"dream/reward": reward.mean(), "dream/return": returns[0].mean(), "policy/entropy": entropy.mean()}
        return policy_loss, value_loss, metrics


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then learning and collecting in turn."""
    prefill = max(config.prefill, config.envs * config.batch_length)
    return Collect(prefill, "random"), Repeat(FOREVER, (Train("all", config.updates), Collect(config.collect)))
