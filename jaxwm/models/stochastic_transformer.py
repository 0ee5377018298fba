"""The world model of STORM (Zhang et al. 2023): categorical latents of single frames, and a transformer over time.

Letters: B batch, L records, S latents, C classes, Z = S * C, W width of a token, E tokens of the encoder, H horizon.
Token t mixes z_t and a_t; what comes out of the transformer there, h_t, predicts z_{t+1}. Heads that read h are the
system's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.distributions import OneHot
from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.models import tokens
from jaxwm.models.latent_world import token_size
from jaxwm.models.rssm import Categorical, flatten, keep
from jaxwm.models.tokens import Frame
from jaxwm.nets import encoders, sensors
from jaxwm.nets.attention import Cache, Transformer
from jaxwm.nets.layers import Head, apply, cast
from jaxwm.types import Array, Key, Record, Spec

PARTS = ("enc", "post", "mix", "net", "prior", "dec")


@dataclass(frozen=True)
class World:
    """The components, each a flax module whose parameters stand under its name (`PARTS`)."""

    spec: Spec
    latents: Categorical
    enc: encoders.Encoder
    post: Head
    mix: Head
    net: Transformer
    prior: Head
    dec: encoders.Decoder
    routes: Routes = PLAIN
    across: bool = False  # Let windows run across the ends of episodes.

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of the components."""
        obs = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), self.spec.obs)
        zeros, size = (lambda *shape: jnp.zeros((1, *shape))), self.latents.outputs
        inputs = {"enc": (obs,), "post": (zeros(token_size(self.enc, self.spec)),), "dec": (zeros(0), zeros(size))}
        inputs |= {"mix": (zeros(size + spaces.action_size(self.spec.action)),)}
        inputs |= {"net": (zeros(1, self.net.width),), "prior": (zeros(self.net.width),)}
        return {
            name: getattr(self, name).init(jax.random.fold_in(key, i), *inputs[name]) for i, name in enumerate(PARTS)
        }

    # Learning.
    def first(self, record: Record) -> Array:
        """Where a new episode begins, bool `[B, L]`; nowhere if windows run across."""
        return record.is_first & (not self.across)

    def infer(self, params: Any, obs: Any) -> OneHot:
        """The latents `[..., S, C]` of observations, each from itself only."""
        seen = encoders.encode(self.enc, params["enc"], obs, self.spec.obs, self.routes)
        return self.latents.dist(apply(self.post, params["post"], seen)["logits"])

    def token(self, params: Any, stoch: Array, action: Array) -> Array:
        """Tokens `[..., W]` of latents `[..., S, C]` and the actions taken there."""
        inputs = jnp.concatenate([flatten(stoch), spaces.encode(self.spec.action, action)], -1)
        return apply(self.mix, params["mix"], inputs)["token"]

    def hidden(self, params: Any, stoch: Array, action: Array, first: Array, factors: Array | None = None) -> Array:
        """Outputs of the transformer `[B, L, W]` over whole windows; `factors` are those of dropout."""
        return apply(self.net, params["net"], self.token(params, stoch, action), first, factors)

    def predict(self, params: Any, hidden: Array) -> OneHot:
        """The latents `[..., S, C]` that follow outputs `[..., W]`: the prior."""
        return self.latents.dist(apply(self.prior, params["prior"], hidden)["logits"])

    def reconstruction(self, params: Any, stoch: Array, obs: Any) -> tuple[Array, dict[str, Array]]:
        """Mean loss of observations `[B, L]` decoded from their latents, and that of each sensor."""
        inputs = self.dec, params["dec"], *_apart(stoch), obs, self.spec.obs, self.routes
        return encoders.reconstruct(*inputs)

    # Dreaming.
    def decode(self, params: Any, stoch: Array) -> Any:
        """Observations that latents `[..., S, C]` stand for."""
        return sensors.observation(apply(self.dec, params["dec"], *_apart(stoch)), self.spec.obs)

    def ready(self, params: Any) -> dict[str, Any]:
        """Parameters as dreams compute with them, cast once."""
        return {name: cast(params[name], self.net.dtype) for name in PARTS if name != "dec"}

    def see(self, params: Any, record: Record, uniform: Array, room: int) -> tuple[Cache, Frame]:
        """What a dream starts from after records `[B, L]`, see `begin`; `uniform [B, L, S]` decides the latents."""
        stoch = self.latents.dream(self.infer(params, record.obs), uniform)
        return self.begin(params, stoch, record.action, self.first(record), room)

    def begin(self, params: Any, stoch: Array, action: Array, first: Array, room: int) -> tuple[Cache, Frame]:
        """The cache of the tokens of all frames `[B, L, ...]` but the last, with `room` for more, and the last frame,
        whose action is yet to be chosen. `first [B, L]` marks starts of episodes."""
        inputs = self.token(params, stoch[:, :-1], action[:, :-1])
        slots = inputs.shape[1] + room
        cache, out = apply(self.net, params["net"], inputs, first[:, :-1], slots, method="read")
        cache = cache._replace(start=jnp.where(first[:, -1], cache.count, cache.start))
        return cache, Frame(stoch[:, -1], keep(~first[:, -1], out[:, -1:]))

    def advance(self, params: Any, temperature: float) -> tokens.Advance:
        """One frame of a dream: one token, from which all latents of the next frame are drawn."""
        inputs = lambda stoch, action: self.token(params, stoch, action)[:, None]  # noqa: E731

        def draw(hidden: Array, noise: Array) -> Array:
            return self.latents.dream(self.predict(params, hidden[:, 0]), noise, temperature)

        return tokens.together(self.net, params["net"], inputs, draw)

    def looks(self, params: Any, context: Record, uniform: Array, found: tokens.Rollout) -> Array | None:
        """How much each frame of a dream owes to every record of its context `[B, L]` and to every dreamed frame before
        it: attention, `[H, B, layers, L + H - 1]`, rows sum to 1. None where learned positions do not reach so far."""
        seen = self.latents.dream(self.infer(params, context.obs), uniform)[:, :-1]
        dreamed, taken = found.frames.tokens[:-1].swapaxes(0, 1), found.actions[:-1].swapaxes(0, 1)
        join = partial(jnp.concatenate, axis=1)
        token = self.token(params, join([seen, dreamed]), join([context.action[:, :-1], taken]))
        if self.net.positions and token.shape[1] > self.net.positions:
            return None
        first = jnp.pad(self.first(context), ((0, 0), (0, dreamed.shape[1] - 1)))
        weights = apply(self.net, params["net"], token, first, method="look")[:, :, seen.shape[1] :]
        return weights.transpose(2, 0, 1, 3)


def _apart(stoch: Array) -> tuple[Array, Array]:
    """What the decoder takes: nothing deterministic, and the latents."""
    return jnp.zeros((*stoch.shape[:-2], 0), stoch.dtype), flatten(stoch)
