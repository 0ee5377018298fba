"""The recurrent state-space model (Hafner et al. 2019): a deterministic path beside random latents.

Letters: B batch, T time, D deter, S latents, C classes, E tokens, A action size, H horizon. A module holds the layers
of one time step: `RSSM` those of Dreamer V3 with its block-diagonal GRU, `ClassicRSSM` those of PlaNet, Dreamer V1 and
V2. `Categorical` and `Gaussian` say what the random latents are. `observe` and `imagine` are the two loops over a time
step, the same for all. Only the true recurrence runs inside the loops: actions, tokens and random numbers are prepared
before, priors are computed after."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import Normal, OneHot, normal_noise, one_hot, sg
from jaxwm.learning import recurrence
from jaxwm.learning.share import ALONE, Share
from jaxwm.nets.layers import ACTIVATIONS, MLP, BlockLinear, Linear, NormSilu, apply, cast, from_blocks, to_blocks
from jaxwm.types import Array


class Latent(NamedTuple):
    """The model's state: `deter [..., D]` and `stoch [..., S, C]`: one-hot, or numbers with C = 1."""

    deter: Array
    stoch: Array

    def feat(self) -> Array:
        """What heads read: `[..., D + S * C]`."""
        return jnp.concatenate([self.deter, flatten(self.stoch)], -1)


def flatten(stoch: Array) -> Array:
    """`[..., S, C] -> [..., S * C]`."""
    return stoch.reshape(*stoch.shape[:-2], -1)


@dataclass(frozen=True)
class Categorical:
    """S one-hot latents of C classes, with straight-through gradients (Dreamer V2 and V3)."""

    stoch: int
    classes: int
    unimix: float = 0.0

    @property
    def outputs(self) -> int:
        """Numbers from which a distribution is made."""
        return self.stoch * self.classes

    @property
    def shape(self) -> tuple[int, int]:
        """`(S, C)`."""
        return self.stoch, self.classes

    def dist(self, raw: Array) -> OneHot:
        """`raw [..., S * C]` to distributions `[..., S, C]`."""
        return one_hot(raw.reshape(*raw.shape[:-1], *self.shape), self.unimix)

    def draw(self, dist: OneHot, uniform: Array) -> Array:
        """Latents `[..., S, C]` that `uniform [..., S]` decides, with gradients."""
        return dist.straight_through(dist.invert(uniform))

    def dream(self, dist: OneHot, uniform: Array, temperature: float = 1.0) -> Array:
        """The same at a temperature, without gradients."""
        return jax.nn.one_hot(dist.tempered(temperature).invert(uniform), self.classes)

    def pack(self, stoch: Array) -> Array:
        """Latents for the replay: class indices, uint8 `[..., S]`."""
        return jnp.argmax(stoch, -1).astype(jnp.uint8)

    def unpack(self, packed: Array) -> Array:
        """The inverse of `pack`."""
        return jax.nn.one_hot(packed, self.classes)


@dataclass(frozen=True)
class Gaussian:
    """S normal latents (PlaNet, Dreamer V1)."""

    stoch: int
    min_std: float = 0.1

    @property
    def outputs(self) -> int:
        """Numbers from which a distribution is made."""
        return 2 * self.stoch

    @property
    def shape(self) -> tuple[int, int]:
        """`(S, 1)`."""
        return self.stoch, 1

    def dist(self, raw: Array) -> Normal:
        """`raw [..., 2 * S]` to distributions `[..., S]`."""
        mean, std = jnp.split(raw.astype(jnp.float32), 2, -1)
        return Normal(mean, jax.nn.softplus(std) + self.min_std)

    def draw(self, dist: Normal, uniform: Array) -> Array:
        """Latents `[..., S, 1]` that `uniform [..., S]` decides, with gradients."""
        return dist.pick(normal_noise(uniform))[..., None]

    def dream(self, dist: Normal, uniform: Array, temperature: float = 1.0) -> Array:
        """The same with the standard deviation times the temperature's root."""
        return self.draw(dist._replace(std=dist.std * temperature**0.5), uniform)

    def pack(self, stoch: Array) -> Array:
        """Latents for the replay, `[..., S]`."""
        return stoch[..., 0]

    def unpack(self, packed: Array) -> Array:
        """The inverse of `pack`."""
        return packed[..., None]


Latents = Categorical | Gaussian


class RSSM(nn.Module):
    """One time step of Dreamer V3's model."""

    actions: int
    tokens: int
    deter: int
    hidden: int
    latents: Categorical
    blocks: int = 8
    prior_layers: int = 2
    dtype: Any = jnp.float32

    def setup(self):
        latent = self.latents.outputs
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
        zero = initial(self, len(tokens))
        deter = from_blocks(self.recur(to_blocks(zero.deter, self.blocks), zero, self.embed_action(action)))
        return self.posterior(deter, self.embed_tokens(tokens)).logp + self.prior(deter).logp

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
        `latent.deter` at every step, CPUs would run the gates inside the transposition, many times slower."""
        deter = self.act_deter(self.in_deter(latent.deter))
        stoch = self.act_stoch(self.in_stoch(flatten(latent.stoch)))
        x = self.act_mix(self.mix(blocks, jnp.concatenate([deter, stoch, action], -1)))
        reset, cand, update = jnp.split(self.gates(x), 3, -1)
        cand = jnp.tanh(jax.nn.sigmoid(reset) * cand)
        update = jax.nn.sigmoid(update - 1)
        return update * cand + (1 - update) * blocks

    def posterior(self, deter: Array, tokens: Array) -> OneHot:
        """Latent given the observation; `tokens [..., hidden]` come from `embed_tokens`. `[..., S, C]`."""
        x = self.act_obs(self.obs.rows(deter, 0) + tokens)
        return self.latents.dist(self.post_logits(x))

    def prior(self, deter: Array) -> OneHot:
        """Latent without the observation, `[..., S, C]`."""
        return self.latents.dist(self.prior_logits(self.img(deter)))


class ClassicRSSM(nn.Module):
    """One time step of the model of PlaNet, Dreamer V1 and V2: one layer before a GRU, one before each distribution.
    The methods are those of `RSSM`, with one block."""

    actions: int
    tokens: int
    deter: int
    hidden: int
    latents: Latents
    act: str = "elu"
    norm: bool = False
    """Layer norm inside the GRU, whose reset then acts on the whole candidate (Dreamer V2); else the usual GRU."""
    dtype: Any = jnp.float32
    blocks: int = 1

    def setup(self):
        stoch = math.prod(self.latents.shape)
        self.inputs = Linear(stoch + self.actions, self.hidden, dtype=self.dtype)
        self.gru = Linear(self.hidden + self.deter, 3 * self.deter, dtype=self.dtype)
        if self.norm:
            self.gru_norm = nn.LayerNorm(dtype=self.dtype)
        self.obs = Linear(self.deter + self.tokens, self.hidden, dtype=self.dtype)
        self.post = Linear(self.hidden, self.latents.outputs, dtype=self.dtype)
        self.img = MLP(1, self.hidden, self.dtype, self.act)
        self.prior_out = Linear(self.hidden, self.latents.outputs, dtype=self.dtype)

    def __call__(self, tokens: Array, action: Array) -> Any:
        """Touches every parameter; for `init`. `tokens [B, E]`, `action [B, A]`."""
        zero = initial(self, len(tokens))
        deter = self.recur(zero.deter[None], zero, self.embed_action(action))[0]
        return self.posterior(deter, self.embed_tokens(tokens)), self.prior(deter)

    def embed_action(self, action: Array) -> Array:
        """`[..., A] -> [..., hidden]`, the actions' share of the first layer."""
        return self.inputs.rows(action, math.prod(self.latents.shape)) + self.inputs.bias.astype(self.dtype)

    def embed_tokens(self, tokens: Array) -> Array:
        """`[..., E] -> [..., hidden]`, the tokens' share of the posterior's first layer."""
        return self.obs.rows(tokens, self.deter) + self.obs.bias.astype(self.dtype)

    def recur(self, blocks: Array, latent: Latent, action: Array) -> Array:
        """The next deter `[1, B, D]` from the present one, the latent and the embedded action `[B, hidden]`."""
        deter = blocks[0]
        x = self.gru.rows(ACTIVATIONS[self.act](self.inputs.rows(flatten(latent.stoch), 0) + action), 0)
        x, h = x + self.gru.bias.astype(self.dtype), self.gru.rows(deter, self.hidden)
        if self.norm:
            reset, cand, update = jnp.split(self.gru_norm(x + h), 3, -1)
            cand, update = jnp.tanh(jax.nn.sigmoid(reset) * cand), jax.nn.sigmoid(update - 1)
        else:
            (reset, cand, update), (reset_h, cand_h, update_h) = jnp.split(x, 3, -1), jnp.split(h, 3, -1)
            cand, update = jnp.tanh(cand + jax.nn.sigmoid(reset + reset_h) * cand_h), jax.nn.sigmoid(update + update_h)
        return (update * cand + (1 - update) * deter)[None]

    def posterior(self, deter: Array, tokens: Array) -> Any:
        """Latent given the observation; `tokens [..., hidden]` come from `embed_tokens`."""
        return self.latents.dist(self.post(ACTIVATIONS[self.act](self.obs.rows(deter, 0) + tokens)))

    def prior(self, deter: Array) -> Any:
        """Latent without the observation."""
        return self.latents.dist(self.prior_out(self.img(deter)))


Model = RSSM | ClassicRSSM


def initial(rssm: Model, batch: int) -> Latent:
    """The latent before anything was seen: zeros (nothing is learned here)."""
    return Latent(jnp.zeros((batch, rssm.deter), rssm.dtype), jnp.zeros((batch, *rssm.latents.shape), rssm.dtype))


def keep(flag: Array, x: Array, axis: int = 0) -> Array:
    """`x` where `flag` holds, 0 elsewhere; the flags' axes begin at `axis` of `x`."""
    return jnp.where(flag.reshape(flag.shape + (1,) * (x.ndim - axis - flag.ndim)), x, jnp.zeros_like(x))


def observe(
    rssm: Model, params: Any, start: Latent, tokens: Array, action: Array, is_first: Array, uniform: Array,
    apart: bool = False,
) -> tuple[Latent, Any]:  # fmt: skip
    """Filter a sequence: posterior latents `[B, T, ...]` and their distributions.
    `action [B, T, A]` is the encoded action taken *before* each observation. Where `is_first [B, T]`, the latent and
    that action are zeroed: both belong to another episode. `uniform [B, T, S]` in [0, 1) decides the latents. With
    `apart` the gradient does its work outside the loop (`learning.recurrence`), where a device prefers that."""
    chex.assert_shape(action, (*is_first.shape, rssm.actions))
    chex.assert_shape(tokens, (*is_first.shape, rssm.tokens))
    chex.assert_shape(uniform, (*is_first.shape, rssm.latents.stoch))
    params = cast(params, rssm.dtype) if apart else params  # else the loop would add gradients in that type
    alive = ~is_first
    actions = apply(rssm, params, keep(alive, action), method="embed_action")
    tokens = apply(rssm, params, tokens, method="embed_tokens")

    def step(params, carry, inputs, given):
        (action, tokens), (alive, uniform) = inputs, given
        blocks, latent = keep(alive, carry[0], 1), jax.tree.map(lambda x: keep(alive, x), carry[1])
        blocks = apply(rssm, params, blocks, latent, action, method="recur")
        deter = from_blocks(blocks)
        dist = apply(rssm, params, deter, tokens, method="posterior")
        return (blocks, Latent(deter, rssm.latents.draw(dist, uniform).astype(rssm.dtype))), dist

    start = Latent(start.deter.astype(rssm.dtype), start.stoch.astype(rssm.dtype))
    first = to_blocks(start.deter, rssm.blocks), start
    inputs, given = (actions.swapaxes(0, 1), tokens.swapaxes(0, 1)), (alive.T, uniform.swapaxes(0, 1))
    loop: Any = recurrence.scan_apart if apart else recurrence.scan
    (_, latents), dist = loop(step, params, first, inputs, given)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), (latents, dist))


def imagine(
    rssm: Model, params: Any, start: Latent, policy: Callable[[Latent, Any], tuple[Array, Array]], plan: Array,
    uniform: Array, temperature: float = 1.0, gradients: bool = False,
) -> tuple[Latent, Array]:  # fmt: skip
    """Roll the prior forward for H steps, time first.
    `policy(latent, plan[t]) -> (action, encoded action [B, A])`, where `plan [H + 1, B, ...]` holds the noise that
    decides, or the actions themselves. `uniform [H, B, S]` in [0, 1) decides the latents, which are drawn at
    `temperature`, or with `gradients` as they are. Returns latents `[H + 1, B, ...]` (the start first) and the actions
    `[H + 1, B, ...]` taken in them."""
    horizon, rows = len(uniform), len(start.deter)
    chex.assert_shape(uniform, (horizon, rows, rssm.latents.stoch))
    chex.assert_shape(plan, (horizon + 1, rows, ...))
    start = Latent(start.deter.astype(rssm.dtype), start.stoch.astype(rssm.dtype))

    def step(carry, inputs):
        (blocks, latent), (plan, uniform) = carry, inputs
        action, encoded = policy(latent, plan)
        embedded = apply(rssm, params, encoded, method="embed_action")
        blocks = apply(rssm, params, blocks, latent, embedded, method="recur")
        deter = from_blocks(blocks)
        dist = apply(rssm, params, deter, method="prior")
        stoch = rssm.latents.draw(dist, uniform) if gradients else rssm.latents.dream(dist, uniform, temperature)
        return (blocks, Latent(deter, stoch.astype(rssm.dtype))), (latent, action)

    first = to_blocks(start.deter, rssm.blocks), start
    (_, last), (latents, actions) = jax.lax.scan(step, first, (plan[:-1], uniform))
    final, _ = policy(last, plan[-1])
    join = lambda xs, x: jnp.concatenate([xs, x[None]])  # noqa: E731
    return jax.tree.map(join, latents, last), join(actions, final)


def kl_losses(post: Any, prior: Any, free_nats: float = 0.0) -> tuple[Array, Array]:
    """KL(posterior || prior) summed over the latents, `[...]`, not pushed below `free_nats`, twice.
    First with gradients for the prior alone (dynamics loss), then for the posterior alone (representation loss)."""
    frozen = jax.tree.map(sg, (post, prior))
    dyn = frozen[0].kl(prior).sum(-1)
    rep = post.kl(frozen[1]).sum(-1)
    return jnp.maximum(dyn, free_nats), jnp.maximum(rep, free_nats)


def joint(dyn: Array, rep: Array) -> Array:
    """Join the KL's halves to one loss: the number that both are, with the gradients of both (PlaNet, Dreamer V1)."""
    return dyn + rep - sg(rep)


def floored(kl: Array, free_nats: float, share: Share = ALONE) -> Array:
    """Hold a batch's mean KL `[]` at `free_nats`: no gradient where the mean of all devices is below (PlaNet, V1)."""
    chex.assert_rank(kl, 0)
    return jnp.where(share.mean(sg(kl)) < free_nats, free_nats, kl)
