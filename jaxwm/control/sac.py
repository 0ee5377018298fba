"""Soft actor-critic (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905).

Equations are those of that paper. B transitions, D numbers of an observation, A numbers of an action, Q critics.
All of them learn from the same batch with the weights from before the update, as in the official code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm.control.actor_critic import track
from jaxwm.control.policy import Actor, forced
from jaxwm.distributions import TanhNormal, sg
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.nets.layers import Head, apply
from jaxwm.nets.sensors import joined, width
from jaxwm.types import Acted, Array, Batch, Box, Key, PyTree, Spec, Step

PARTS = ("actor", "critic", "alpha")
"""Components of the parameters; `alpha` is the logarithm of the temperature."""

LOG_STD = -20.0, 2.0  # Bounds of the policy's log standard deviation, as in the official code.


class Transition(NamedTuple):
    """Steps: observation and the next one `[B, D]`, action `[B, A]`; reward, whether the episode ended with it and how
    much it counts, float32 `[B]`."""

    obs: Array
    action: Array
    reward: Array
    after: Array
    ended: Array
    weight: Array


def transitions(spec: Spec, batch: Batch) -> Transition:
    """Of pairs of records `[B, 2]`. What is no step of an episode weighs nothing; a time limit is no end."""
    record = batch.record
    chex.assert_shape(record.reward, (None, 2))
    obs = joined(spec.obs, record.obs)
    real = ~record.is_first[:, 1] & ~record.is_last[:, 0]
    ended, weight = record.is_terminal[:, 1].astype(jnp.float32), real.astype(jnp.float32)
    return Transition(obs[:, 0], record.action[:, 0], record.reward[:, 1], obs[:, 1], ended, weight)


# --- Losses -----------------------------------------------------------------------------------------------------------
def soft_value(value: Array, log_prob: Array, alpha: Array) -> Array:
    """V(s) = min_i Q_i(s, a) - alpha log pi(a | s) (eq. 3), from `value [Q, B]` of actions drawn from the policy."""
    chex.assert_equal_shape((value[0], log_prob))
    return value.min(0) - alpha * log_prob


def soft_target(reward: Array, ended: Array, value: Array, discount: Array) -> Array:
    """The soft Bellman backup r + gamma V(s') `[B]` (eq. 2 and 6), whose gradient is cut."""
    chex.assert_equal_shape((reward, ended, value))
    return sg(reward + discount * (1.0 - ended) * value)


def critic_loss(value: Array, target: Array) -> Array:
    """J_Q `[B]` (eq. 5): half the squared error of `value [Q, B]`, summed over the critics."""
    chex.assert_equal_shape((value[0], target))
    return 0.5 * jnp.square(value - target).sum(0)


def actor_loss(value: Array, log_prob: Array, alpha: Array) -> Array:
    """J_pi `[B]` (eq. 9), for actions that carry the policy's gradient: -V(s) with a constant temperature."""
    return -soft_value(value, log_prob, sg(alpha))


def temperature_loss(log_alpha: Array, log_prob: Array, target: Array | float) -> Array:
    """J(alpha) `[B]` (eq. 18) with the entropy `target` in nats. As in the official code log alpha stands where the
    paper has alpha: the sign of the gradient is the same, and alpha stays above 0."""
    return -log_alpha * sg(log_prob + target)


# --- Networks ---------------------------------------------------------------------------------------------------------
class Networks(NamedTuple):
    """Policy and critics of vectors: `actor` maps `[..., D]`, `critic` `[..., D + A]`; there are `critics` of these."""

    spec: Spec
    actor: Head
    critic: Head
    critics: int

    def init(self, key: Key) -> dict[str, Any]:
        """Parameters by the names of `PARTS`; those of the critics are stacked, `[Q, ...]`."""
        k_actor, k_critic = jax.random.split(key)
        size = width(self.spec.obs)
        obs, pair = jnp.zeros((1, size)), jnp.zeros((1, size + self.spec.action.size))
        critic = jax.vmap(lambda k: self.critic.init(k, pair))(jax.random.split(k_critic, self.critics))
        return {"actor": self.actor.init(k_actor, obs), "critic": critic, "alpha": jnp.zeros(())}

    def policy(self, params: PyTree, obs: Array) -> Actor:
        """The policy at `obs [..., D]`: a normal squashed by tanh (appendix C)."""
        out = apply(self.actor, params["actor"], obs)
        return Actor((), self.spec.action, TanhNormal(out["mean"], jnp.exp(jnp.clip(out["std"], *LOG_STD))))

    def draw(self, params: PyTree, obs: Array, noise: Array) -> tuple[Array, Array]:
        """The action `[..., A]` that standard normal `noise [..., A]` decides, and its log-probability `[...]`."""
        action, log_prob = self.policy(params, obs).vector.scored(noise)  # type: ignore[union-attr]
        return action, log_prob.sum(-1)

    def values(self, params: PyTree, obs: Array, action: Array) -> Array:
        """Every critic's value `[Q, ...]`, from their parameters."""
        pair = jnp.concatenate([obs, action], -1)
        return jax.vmap(lambda one: apply(self.critic, one, pair)["value"][..., 0])(params)


def networks(spec: Spec, layers: int, units: int, critics: int = 2) -> Networks:
    """ReLU networks for float vectors and a `Box`. ValueError for other actions."""
    if not isinstance(spec.action, Box):
        raise ValueError(
            f"soft actor-critic acts with continuous actions (Box); {spec.name} has {spec.action}: take an environment "
            "such as gymnax/Pendulum-v1 or continuous/CartPole, or a system for discrete actions"
        )
    actor = Head({"mean": spec.action.size, "std": spec.action.size}, layers, units, 0.1, act="relu")
    return Networks(spec, actor, Head({"value": 1}, layers, units, act="relu"), critics)


def entropy_target(spec: Spec, given: float | None) -> float:
    """The entropy that a temperature aims at: as given, or minus the size of the action (table 1)."""
    return -float(spec.action.size) if given is None else given


def acting(nets: Networks) -> Callable[..., Acted]:
    """`Agent.act` of the policy: a draw from it, or its mode."""
    spec = nets.spec

    def act(state: Any, carry: tuple[()], step: Step, key: Key, mode: str) -> Acted:
        if (action := forced(spec.action, step, key, mode)) is not None:
            return carry, action, {}
        policy = nets.policy(state.params, joined(spec.obs, step.obs))
        return carry, policy.mode() if mode == "greedy" else policy.sample(key), {}

    return act


# --- Learning ---------------------------------------------------------------------------------------------------------
ADAM = optim.apart({name: (name,) for name in PARTS}, optax.scale_by_adam())


def loss(
    nets: Networks, params: PyTree, slow: PyTree, data: Transition, noise: Array, discount: Array, target: float,
    share: Share = ALONE,
) -> Losses:  # fmt: skip
    """The three losses together, each with the gradient of its own component only.
    `slow` are the target critics, `noise [2, B, A]` decides the actions, `target` is the entropy aimed at in nats."""
    chex.assert_equal_shape_prefix((data.obs, data.reward, noise[0]), 1)
    alpha, held = jnp.exp(sg(params["alpha"])), sg(params)
    after, log_after = nets.draw(held, data.after, noise[1])
    future = soft_value(nets.values(slow, data.after, after), log_after, alpha)
    backup = soft_target(data.reward, data.ended, future, discount)
    values = nets.values(params["critic"], data.obs, data.action)
    action, log_prob = nets.draw(params, data.obs, noise[0])
    parts = {
        "loss/critic": critic_loss(values, backup),
        "loss/actor": actor_loss(nets.values(held["critic"], data.obs, action), log_prob, alpha),
        "loss/alpha": temperature_loss(params["alpha"], log_prob, target),
    }
    mean = lambda x: share.weighted_mean(x, data.weight)  # noqa: E731
    metrics = {name: mean(x) for name, x in parts.items()}
    total = sum(metrics.values(), jnp.zeros(()))
    return total, ({}, metrics | {"value": mean(values.mean(0)), "entropy": mean(-log_prob), "alpha": alpha})


def update(
    nets: Networks, state: Any, data: Transition, key: Key, target: float, share: Share = ALONE,
) -> Updated:  # fmt: skip
    """Take one step of Adam for actor, critics and temperature, and move the target critics (`state.slow`) after them.
    `data` are the rows of this device; `state.hyper` has `lr`, `discount` and `tau`."""
    noise = share.normal(key, (2, *data.action.shape), 1)
    hyper: Mapping[str, Array] = state.hyper
    objective = lambda params: loss(nets, params, state.slow, data, noise, hyper["discount"], target, share)  # noqa: E731
    state, _, metrics = gradient_step(state, objective, ADAM, dict.fromkeys(PARTS, hyper["lr"]), PARTS, share=share)
    return state._replace(slow=track(state.params["critic"], state.slow, hyper["tau"])), {}, metrics
