"""The recurrent state-space model with a block-diagonal GRU and categorical latents (Dreamer V3).

Letters: B batch, T time, D deter, S latents, C classes, E tokens, A action size, H horizon. `RSSM` holds the layers of
one time step; `observe` and `imagine` are the two loops over them. Only the true recurrence runs inside the loops:
actions, tokens and random numbers are prepared before, priors are computed after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import OneHot, one_hot
from jaxwm.nets.layers import MLP, BlockLinear, Linear, NormSilu, apply
from jaxwm.types import Array, Key

sg = jax.lax.stop_gradient


class Latent(NamedTuple):
    """The model's state: `deter [..., D]` and one-hot `stoch [..., S, C]`."""

    deter: Array
    stoch: Array

    def feat(self) -> Array:
        """What heads read: `[..., D + S * C]`."""
        return jnp.concatenate([self.deter, flatten(self.stoch)], -1)


def flatten(stoch: Array) -> Array:
    """`[..., S, C] -> [..., S * C]`."""
    return stoch.reshape(*stoch.shape[:-2], -1)


class RSSM(nn.Module):
    """One time step of the model."""

    actions: int
    tokens: int
    deter: int
    hidden: int
    stoch: int = 32
    classes: int = 32
    blocks: int = 8
    prior_layers: int = 2
    unimix: float = 0.01
    dtype: Any = jnp.float32

    def setup(self):
        latent = self.stoch * self.classes
        self.in_deter = Linear(self.deter, self.hidden, dtype=self.dtype)
        self.in_stoch = Linear(latent, self.hidden, dtype=self.dtype)
        self.in_action = Linear(self.actions, self.hidden, dtype=self.dtype)
        self.act_deter, self.act_stoch, self.act_action = NormSilu(), NormSilu(), NormSilu()
        self.mix = BlockLinear(self.deter, self.deter, self.blocks, 3 * self.hidden, dtype=self.dtype)
        self.act_mix = NormSilu()
        self.gates = BlockLinear(self.deter, 3 * self.deter, self.blocks, dtype=self.dtype)
        self.obs = Linear(self.deter + self.tokens, self.hidden, dtype=self.dtype)
        self.act_obs = NormSilu()
        self.post_logits = Linear(self.hidden, latent, dtype=self.dtype)
        self.img = MLP(self.prior_layers, self.hidden, dtype=self.dtype)
        self.prior_logits = Linear(self.hidden, latent, dtype=self.dtype)

    def __call__(self, tokens: Array, action: Array) -> Array:
        """Touches every parameter; for `init`. `tokens [B, E]`, `action [B, A]`."""
        zero = self.initial(len(tokens))
        deter = self.recur(zero.deter, zero.stoch, self.embed_action(action))
        return self.posterior(deter, self.embed_tokens(tokens)).logp + self.prior(deter).logp

    def initial(self, batch: int) -> Latent:
        """The latent before anything was seen: zeros (nothing is learned here)."""
        return Latent(
            jnp.zeros((batch, self.deter), self.dtype), jnp.zeros((batch, self.stoch, self.classes), self.dtype)
        )

    def embed_action(self, action: Array) -> Array:
        """`[..., A] -> [..., hidden]`, the part of the recurrence that can run before the loop."""
        action = action / sg(jnp.maximum(1.0, jnp.abs(action)))
        return self.act_action(self.in_action(action))

    def embed_tokens(self, tokens: Array) -> Array:
        """`[..., E] -> [..., hidden]`, the tokens' share of the posterior's first layer."""
        return self.obs.rows(tokens, self.deter) + self.obs.bias.astype(self.dtype)

    def recur(self, deter: Array, stoch: Array, action: Array) -> Array:
        """The block GRU: next deter `[B, D]` from the latent and the embedded action `[B, hidden]`."""
        shared = [self.act_deter(self.in_deter(deter)), self.act_stoch(self.in_stoch(flatten(stoch))), action]
        x = self.act_mix(self.mix(deter, jnp.concatenate(shared, -1)))
        x = self.gates(x).reshape(*deter.shape[:-1], self.blocks, 3, self.deter // self.blocks)
        reset, cand, update = (x[..., i, :].reshape(deter.shape) for i in range(3))
        cand = jnp.tanh(jax.nn.sigmoid(reset) * cand)
        update = jax.nn.sigmoid(update - 1)
        return update * cand + (1 - update) * deter

    def posterior(self, deter: Array, tokens: Array) -> OneHot:
        """Latent given the observation; `tokens [..., hidden]` come from `embed_tokens`. `[..., S, C]`."""
        x = self.act_obs(self.obs.rows(deter, 0) + tokens)
        return self.dist(self.post_logits(x))

    def prior(self, deter: Array) -> OneHot:
        """Latent without the observation, `[..., S, C]`."""
        return self.dist(self.prior_logits(self.img(deter)))

    def dist(self, logits: Array) -> OneHot:
        return one_hot(logits.reshape(*logits.shape[:-1], self.stoch, self.classes), self.unimix)


def keep(flag: Array, x: Array) -> Array:
    """`x` where `flag [B]` holds, 0 elsewhere."""
    return jnp.where(flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim)), x, jnp.zeros_like(x))


def observe(
    rssm: RSSM, params: Any, start: Latent, tokens: Array, action: Array, is_first: Array, key: Key
) -> tuple[Latent, OneHot]:
    """Filter a sequence: posterior latents `[B, T, ...]` and their distributions.

    `action [B, T, A]` is the encoded action taken *before* each observation. Where `is_first [B, T]`, the latent and
    that action are zeroed: both belong to another episode.
    """
    batch, time = is_first.shape
    alive = ~is_first
    actions = apply(rssm, params, keep(alive, action), method="embed_action")
    tokens = apply(rssm, params, tokens, method="embed_tokens")
    uniform = jax.random.uniform(key, (time, batch, rssm.stoch))

    def step(latent, inputs):
        action, tokens, alive, uniform = inputs
        deter, stoch = keep(alive, latent.deter), keep(alive, latent.stoch)
        deter = apply(rssm, params, deter, stoch, action, method="recur")
        dist = apply(rssm, params, deter, tokens, method="posterior")
        latent = Latent(deter, dist.straight_through(dist.invert(uniform)).astype(rssm.dtype))
        return latent, (latent, dist)

    start = Latent(start.deter.astype(rssm.dtype), start.stoch.astype(rssm.dtype))
    inputs = (actions.swapaxes(0, 1), tokens.swapaxes(0, 1), alive.T, uniform)
    _, out = jax.lax.scan(step, start, inputs)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), out)


def imagine(
    rssm: RSSM,
    params: Any,
    start: Latent,
    policy: Callable[[Latent, Any], tuple[Array, Array]],
    key: Key,
    horizon: int,
    plan: Array | None = None,
    temperature: float = 1.0,
) -> tuple[Latent, Array]:
    """Roll the prior forward for `horizon` steps, time first.

    `policy(latent, key) -> (action, encoded action [B, A])`; with a `plan [H + 1, B, ...]` it gets `plan[t]` in place
    of the key. Latents are drawn at `temperature`. Returns latents `[H + 1, B, ...]` (the start first) and the actions
    `[H + 1, B, ...]` taken in them.
    """
    start = Latent(start.deter.astype(rssm.dtype), start.stoch.astype(rssm.dtype))
    noises, choices = (jax.random.split(k, horizon + 1) for k in jax.random.split(key))
    choices = choices if plan is None else plan

    def step(latent, inputs):
        noise, choice = inputs
        action, encoded = policy(latent, choice)
        deter = apply(rssm, params, *latent, apply(rssm, params, encoded, method="embed_action"), method="recur")
        dist = apply(rssm, params, deter, method="prior").tempered(temperature)
        stoch = jax.nn.one_hot(dist.sample(noise), rssm.classes, dtype=rssm.dtype)
        return Latent(deter, stoch), (latent, action)

    last, (latents, actions) = jax.lax.scan(step, start, (noises[:-1], choices[:-1]))
    final, _ = policy(last, choices[-1])
    join = lambda xs, x: jnp.concatenate([xs, x[None]])  # noqa: E731
    return jax.tree.map(join, latents, last), join(actions, final)
