"""Proximal policy optimisation (Schulman et al. 2017): the model-free baseline that learns from its newest steps only.

Sees any mix of sensors, predicts nothing, acts with a stochastic policy. It collects `horizon` rows, then passes over
them some epochs in minibatches, and forgets them.

N environments, T rows (`horizon`). Four things differ from the paper: vectors pass through symlog in place of running
standardisation; weights start as truncated normals instead of orthogonal; a time limit bootstraps with the value of the
last observation; and as the newest step is only recorded once its action is chosen, each batch begins with one row that
the policy before the last update has played (its ratio is right)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.agents.system import System, hyper_of
from jaxwm.control import ppo
from jaxwm.control.policy import Actor, action_distribution, forced
from jaxwm.distributions import Normal
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import State, Updated, fresh_state
from jaxwm.nets.encoders import Encoder
from jaxwm.nets.layers import Head, apply
from jaxwm.nets.sensors import kinds
from jaxwm.schedule import FOREVER, Collect, Repeat, Train
from jaxwm.spaces import head_sizes
from jaxwm.types import Acted, Agent, Array, Batch, Box, Key, PyTree, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of proximal policy optimisation; defaults are those of the paper for MuJoCo (table 3)."""

    layers: Count = 2  # Hidden layers of policy and value.
    units: Count = 64  # Width of the hidden layers.
    depth: Count = 32  # Channels of the first convolution, where there are images.
    envs: Count = 1  # Environments, N.
    horizon: Count = 2048  # Rows of N steps between two updates, T.
    epochs: Count = 10  # Passes over the newest rows in an update.
    minibatches: Count = 32  # Minibatches of a pass; a divisor of the T * N steps.
    lr: Varies[Positive] = 3e-4  # Learning rate of Adam.
    lr_decay_updates: Natural = 0  # Gradient steps until the learning rate has fallen to 0; 0: it never falls.
    discount: Varies[Fraction] = 0.99  # Discount, gamma.
    lam: Varies[Fraction] = 0.95  # Lambda of the advantage estimates.
    clip: Varies[Positive] = 0.2  # How far the probability ratio counts, epsilon.
    clip_value: bool = False  # Whether a value counts no further than `clip` from the old one.
    value_scale: Varies[Amount] = 1.0  # Weight of the value loss (half the squared error), c1.
    entropy: Varies[Amount] = 0.0  # Weight of the policy's entropy, c2.
    max_grad_norm: Positive = 0.5  # Norm at which gradients are clipped.
    capacity: int = 4096  # Replay size in environment steps: T + 1 rows are read.

    def __post_init__(self):
        check_types(self)
        check_number("capacity", self.capacity, least=(self.horizon + 1) * self.envs, whole=True)
        if self.horizon * self.envs % self.minibatches:
            raise ValueError(
                f"minibatches must divide the {self.horizon * self.envs} steps of an update (horizon * envs), not "
                f"{self.minibatches}"
            )


class Network(nn.Module):
    """Policy and value of observations `[..., *shapes]`, with separate encoders: `{output: [..., size]}`."""

    spec: Any
    sizes: dict[str, int]
    config: Config

    @nn.compact
    def __call__(self, obs: PyTree) -> dict[str, Array]:
        config, out = self.config, {}
        act = "tanh" if "image" not in kinds(self.spec).values() else "relu"
        for name, sizes, outscale in (("policy", self.sizes, 0.01), ("value", {"value": 1}, 1.0)):
            x = Encoder(self.spec, config.depth, config.units, config.layers, act=act, name=f"{name}_encoder")(obs)
            out |= Head(sizes, 0, config.units, outscale, name=name)(x)
        return out


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build proximal policy optimisation for an environment. ValueError for observations that cannot be encoded."""
    kinds(spec.obs)
    sizes = {"mean": spec.action.size} if isinstance(spec.action, Box) else head_sizes(spec.action)
    net, tx = Network(spec.obs, sizes, config), optim.adam(config.max_grad_norm, 1e-5)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = {"net": net.init(key, jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), spec.obs))}
        if isinstance(spec.action, Box):
            params["log_std"] = jnp.full(spec.action.size, -0.5)
        return fresh_state(params, tx.init(params), hyper)

    def act(state: State, carry: tuple[()], step: Step, key: Key, mode: str) -> Acted:
        policy, value = judged(spec, net, state.params, step.obs)
        raw = forced(spec.action, step, key, mode)
        if raw is None:
            raw = policy.mode() if mode == "greedy" else policy.sample(key)
        extras = {"raw": raw, "log_prob": policy.log_prob(raw), "value": value}
        return carry, jnp.clip(raw, -1.0, 1.0) if isinstance(spec.action, Box) else raw, extras

    reset = lambda state, num_envs: ()  # noqa: E731
    step = TrainStep(partial(update, spec, net, config, tx), config.envs, config.horizon + 1, "latest", shared=True)
    return Agent(init, reset, act, {"ppo": step}, None, schedule(config), hyper_of(config))


def judged(spec: Spec, net: Network, params: PyTree, obs: PyTree) -> tuple[Actor, Array]:
    """The policy at `obs [..., *shapes]`, and their values `[...]`."""
    out = apply(net, params["net"], obs)
    if not isinstance(spec.action, Box):
        return action_distribution(spec.action, out), out["value"][..., 0]
    std = jnp.broadcast_to(jnp.exp(params["log_std"]), out["mean"].shape)
    return Actor(Normal(out["mean"], std), spec.action), out["value"][..., 0]


def update(
    spec: Spec, net: Network, config: Config, tx: Any, state: State, batch: Batch, key: Key, share: Share = ALONE
) -> Updated:
    """Learn from the newest rows `[N, T + 1]` (algorithm 1, line 6)."""
    hyper = state.hyper
    how = ppo.Settings(
        hyper["clip"], hyper["value_scale"], hyper["entropy"], config.epochs, config.minibatches, config.clip_value
    )

    def network(params: PyTree, obs: PyTree, action: Array) -> ppo.Outputs:
        policy, value = judged(spec, net, params, obs)
        return ppo.Outputs(policy.log_prob(action), policy.entropy(), value)

    rows = as_rows(share.gather(share.local_rows(batch.record)), hyper["discount"], hyper["lam"])
    rate = lambda state: hyper["lr"] * optim.decay(state.step, config.lr_decay_updates)  # noqa: E731
    state, metrics = ppo.optimise(network, state, rows, how, tx, rate, key, share=share)
    return state, {}, metrics


def as_rows(record: Record, discount: Array, lam: Array) -> ppo.Rows:
    """The rows `[T * N]` of records `[N, T + 1]`; what is no step of an episode weighs nothing."""
    record = jax.tree.map(lambda x: x.swapaxes(0, 1), record)
    value, going = record.extras["value"], discount * ~record.is_terminal
    advantage = ppo.advantages(record.reward, value, going, record.is_last, lam)
    now = jax.tree.map(lambda x: x[:-1], record)
    real = (~now.is_last).astype(jnp.float32)
    found = ppo.Rows(
        now.obs, now.extras["raw"], now.extras["log_prob"], now.extras["value"], advantage, advantage + value[:-1], real
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """The newest rows, and what is learned from them, in turn."""
    return Collect(config.envs), Repeat(FOREVER, (Collect(config.horizon * config.envs), Train("ppo")))


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "mujoco": Config(),
    "atari": Config(
        layers=1, units=512, envs=8, horizon=128, epochs=3, minibatches=4, lr=2.5e-4, clip=0.1, entropy=0.01,
        lr_decay_updates=117_180, capacity=2048,
    ),
    "small": Config(
        envs=4, horizon=128, epochs=4, minibatches=4, lr=2.5e-4, entropy=0.01, value_scale=0.5, clip_value=True,
        capacity=1024, lr_decay_updates=15_616,
    ),
}  # fmt: skip
"""Tables 3 and 5 of the paper (10 million steps of the agent), and a small one for 500,000 steps of small tasks."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2017, env="gymnax/CartPole-v1", steps=500_000, baseline=True,
    summary="proximal policy optimisation (Schulman et al. 2017)",
    paper="Schulman et al., Proximal Policy Optimization Algorithms",
    sees="CNN or MLP, by the kind of observation",
    predicts="nothing: model-free",
    acts="stochastic policy; clipped ratios, generalised advantages, some epochs over the newest steps",
)  # fmt: skip
