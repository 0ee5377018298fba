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
from jaxwm.nets.layers import MLP, BlockLinear, Linear, NormSilu, apply, from_blocks, to_blocks
from jaxwm.types import Array

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
        self.act_mix = NormSilu(blocked=True)
        self.gates = BlockLinear(self.deter, 3 * self.deter, self.blocks, dtype=self.dtype)
        self.obs = Linear(self.deter + self.tokens, self.hidden, dtype=self.dtype)
        self.act_obs = NormSilu()
        self.post_logits = Linear(self.hidden, latent, dtype=self.dtype)
        self.img = MLP(self.prior_layers, self.hidden, dtype=self.dtype)
        self.prior_logits = Linear(self.hidden, latent, dtype=self.dtype)

    def __call__(self, tokens: Array, action: Array) -> Array:
        """Touches every parameter; for `init`. `tokens [B, E]`, `action [B, A]`."""
        zero = self.initial(len(tokens))
        deter = from_blocks(self.recur(to_blocks(zero.deter, self.blocks), zero, self.embed_action(action)))
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

    def recur(self, blocks: Array, latent: Latent, action: Array) -> Array:
        """The block GRU: the next deter from the latent and the embedded action `[B, hidden]`.

        Takes and returns deter also as `[blocks, B, D / blocks]`, which the loops carry along: were it made from
        `latent.deter` at every step, CPUs would run the gates inside the transposition, many times slower.
        """
        inputs = (
            self.act_deter(self.in_deter(latent.deter)),
            self.act_stoch(self.in_stoch(flatten(latent.stoch))),
            action,
        )
        x = self.act_mix(self.mix(blocks, jnp.concatenate(inputs, -1)))
        reset, cand, update = jnp.split(self.gates(x), 3, -1)
        cand = jnp.tanh(jax.nn.sigmoid(reset) * cand)
        update = jax.nn.sigmoid(update - 1)
        return update * cand + (1 - update) * blocks

    def posterior(self, deter: Array, tokens: Array) -> OneHot:
        """Latent given the observation; `tokens [..., hidden]` come from `embed_tokens`. `[..., S, C]`."""
        x = self.act_obs(self.obs.rows(deter, 0) + tokens)
        return self.dist(self.post_logits(x))

    def prior(self, deter: Array) -> OneHot:
        """Latent without the observation, `[..., S, C]`."""
        return self.dist(self.prior_logits(self.img(deter)))

    def dist(self, logits: Array) -> OneHot:
        return one_hot(logits.reshape(*logits.shape[:-1], self.stoch, self.classes), self.unimix)


def keep(flag: Array, x: Array, axis: int = 0) -> Array:
    """`x` where `flag` holds, 0 elsewhere; the flags' axes begin at `axis` of `x`."""
    return jnp.where(flag.reshape(flag.shape + (1,) * (x.ndim - axis - flag.ndim)), x, jnp.zeros_like(x))


def observe(
    rssm: RSSM, params: Any, start: Latent, tokens: Array, action: Array, is_first: Array, uniform: Array
) -> tuple[Latent, OneHot]:
    """Filter a sequence: posterior latents `[B, T, ...]` and their distributions.

    `action [B, T, A]` is the encoded action taken *before* each observation. Where `is_first [B, T]`, the latent and
    that action are zeroed: both belong to another episode. `uniform [B, T, S]` in [0, 1) decides the latents.
    """
    alive = ~is_first
    actions = apply(rssm, params, keep(alive, action), method="embed_action")
    tokens = apply(rssm, params, tokens, method="embed_tokens")

    def step(carry, inputs):
        action, tokens, alive, uniform = inputs
        blocks, latent = keep(alive, carry[0], 1), jax.tree.map(lambda x: keep(alive, x), carry[1])
        blocks = apply(rssm, params, blocks, latent, action, method="recur")
        deter = from_blocks(blocks)
        dist = apply(rssm, params, deter, tokens, method="posterior")
        latent = Latent(deter, dist.straight_through(dist.invert(uniform)).astype(rssm.dtype))
        return (blocks, latent), (latent, dist)

    start = Latent(start.deter.astype(rssm.dtype), start.stoch.astype(rssm.dtype))
    inputs = (actions.swapaxes(0, 1), tokens.swapaxes(0, 1), alive.T, uniform.swapaxes(0, 1))
    _, out = jax.lax.scan(step, (to_blocks(start.deter, rssm.blocks), start), inputs)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), out)


def imagine(
    rssm: RSSM,
    params: Any,
    start: Latent,
    policy: Callable[[Latent, Any], tuple[Array, Array]],
    plan: Array,
    uniform: Array,
    temperature: float = 1.0,
) -> tuple[Latent, Array]:
    """Roll the prior forward for H steps, time first.

    `policy(latent, plan[t]) -> (action, encoded action [B, A])`, where `plan [H + 1, B, ...]` holds the noise that
    decides, or the actions themselves. `uniform [H, B, S]` in [0, 1) decides the latents, which are drawn at
    `temperature`. Returns latents `[H + 1, B, ...]` (the start first) and the actions `[H + 1, B, ...]` taken in them.
    """
    start = Latent(start.deter.astype(rssm.dtype), start.stoch.astype(rssm.dtype))

    def step(carry, inputs):
        (blocks, latent), (plan, uniform) = carry, inputs
        action, encoded = policy(latent, plan)
        embedded = apply(rssm, params, encoded, method="embed_action")
        blocks = apply(rssm, params, blocks, latent, embedded, method="recur")
        deter = from_blocks(blocks)
        dist = apply(rssm, params, deter, method="prior").tempered(temperature)
        stoch = jax.nn.one_hot(dist.invert(uniform), rssm.classes, dtype=rssm.dtype)
        return (blocks, Latent(deter, stoch)), (latent, action)

    first = to_blocks(start.deter, rssm.blocks), start
    (_, last), (latents, actions) = jax.lax.scan(step, first, (plan[:-1], uniform))
    final, _ = policy(last, plan[-1])
    join = lambda xs, x: jnp.concatenate([xs, x[None]])  # noqa: E731
    return jax.tree.map(join, latents, last), join(actions, final)
