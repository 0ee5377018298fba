"""A latent world that is never decoded: it predicts its own encodings, rewards and ends (Hansen et al. 2024).

B batch, H horizon, L numbers of a latent, A numbers of an encoded action, K bins."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.distributions import SymlogTwoHot
from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.nets import encoders
from jaxwm.nets.encoders import Encoder
from jaxwm.nets.layers import apply
from jaxwm.nets.simnorm import Normed
from jaxwm.types import Array, Key, PyTree, Spec


class World(NamedTuple):
    """The components over explicit parameters `{"enc", "emb", "dyn", "rew"[, "end"]}`."""

    spec: Spec
    enc: Encoder
    emb: Normed  # what the encoder saw as a latent
    dyn: Normed
    rew: Normed
    end: Normed | None  # None where episodes never end
    bins: Array  # [K], in symlog space
    routes: Routes = PLAIN

    def init(self, key: Key) -> dict[str, PyTree]:
        """Fresh parameters."""
        keys = jax.random.split(key, 5)
        blank = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), self.spec.obs)
        enc = self.enc.init(keys[0], blank)
        seen = jax.eval_shape(lambda p: apply(self.enc, p, blank), enc)
        latent = jnp.zeros((1, self.emb.outputs))
        pair = jnp.concatenate([latent, jnp.zeros((1, spaces.action_size(self.spec.action)))], -1)
        params = {"enc": enc, "emb": self.emb.init(keys[1], jnp.zeros(seen.shape))}
        params |= {"dyn": self.dyn.init(keys[2], pair), "rew": self.rew.init(keys[3], pair)}
        return params | ({"end": self.end.init(keys[4], latent)} if self.end else {})

    def encode(self, params: PyTree, obs: PyTree) -> Array:
        """The latents `[..., L]` of observations."""
        seen = encoders.encode(self.enc, params["enc"], obs, self.spec.obs, self.routes)
        return apply(self.emb, params["emb"], seen)

    def advance(self, params: PyTree, latent: Array, action: Array) -> Array:
        """The latents `[..., L]` that follow encoded actions `[..., A]`."""
        return apply(self.dyn, params["dyn"], jnp.concatenate([latent, action], -1))

    def unroll(self, params: PyTree, latent: Array, actions: Array) -> Array:
        """All latents `[H + 1, ..., L]` from the first one on, under encoded actions `[H, ..., A]`."""

        def step(latent: Array, action: Array) -> tuple[Array, Array]:
            latent = self.advance(params, latent, action)
            return latent, latent

        _, ahead = jax.lax.scan(step, latent, actions)
        return jnp.concatenate([latent[None], ahead])

    def reward(self, params: PyTree, latent: Array, action: Array) -> SymlogTwoHot:
        """The reward `[...]` of encoded actions `[..., A]` at latents `[..., L]`."""
        return SymlogTwoHot(apply(self.rew, params["rew"], jnp.concatenate([latent, action], -1)), self.bins)

    def ended(self, params: PyTree, latent: Array) -> Array | None:
        """The logit `[...]` that an episode ended with this latent; None where none does."""
        return apply(self.end, params["end"], latent)[..., 0] if self.end else None

    def going_on(self, params: PyTree, latent: Array) -> Array:
        """The probability `[...]` that an episode goes on after this latent."""
        logit = self.ended(params, latent)
        return jnp.ones(latent.shape[:-1]) if logit is None else jax.nn.sigmoid(-logit)
