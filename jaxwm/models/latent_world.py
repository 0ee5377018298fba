"""What PlaNet and Dreamer V1, V2 and V3 share: an encoder, a recurrent state-space model, a decoder, and their uses.

What differs between them: layers and latents of the model (`models.rssm`), the heads that read it, and how they act.
Letters as in `models.rssm`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control.policy import forced
from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.learning.share import ALONE, Share
from jaxwm.models import rssm
from jaxwm.models.rssm import Latent, Model, flatten
from jaxwm.nets import encoders, sensors
from jaxwm.nets.layers import Head, apply
from jaxwm.types import Acted, Array, Dream, Key, Record, Spec, Step

Policy = Callable[[Array], Any]  # From `feat [..., F]` to a distribution over actions, a `control.policy.Actor`.


class Carry(NamedTuple):
    """The policy's memory: the last latent and the action taken in it."""

    latent: Latent
    action: Array


class Inferred(NamedTuple):
    """What sequences `[B, T, ...]` of records say."""

    latents: Latent
    post: Any  # the distributions that the latents are drawn from
    prior: Any  # the same without the observation
    tokens: Array  # what the encoder made of the observations, [B, T, E]


def groups_of(heads: Mapping[str, Head]) -> dict[str, tuple[str, ...]]:
    """What has a gradient norm and a learning rate of its own: the model and its heads, the actor, the critic."""
    own = {"actor": ("pol",), "value": ("val",)}
    return {"model": ("enc", "dyn", "dec", *(name for name in heads if name not in ("pol", "val")))} | own


def token_size(enc: encoders.Encoder, spec: Spec) -> int:
    """Numbers that an encoder makes of an observation, E."""
    obs = sensors.with_mask(spec.obs)
    lead = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), obs)
    tokens, _ = jax.eval_shape(enc.init_with_output, jax.random.key(0), lead)
    return tokens.shape[-1]


def build_classic_world(
    spec: Spec, latents: rssm.Latents, config: Any, layers: int, acts: tuple[str, str], norm: bool = False
) -> World:
    """Build the components of PlaNet, Dreamer V1 and V2.
    `config` holds `deter`, `hidden`, `units`, `depth` and `dtype`; the MLPs for vectors have `layers`. `acts` are the
    activations of the sensors and of the recurrent model, whose GRU has a layer norm if `norm`."""
    dtype, obs = jnp.dtype(config.dtype), sensors.with_mask(spec.obs)
    enc = encoders.Encoder(obs, config.depth, config.units, layers, dtype, act=acts[0])
    sizes = spaces.action_size(spec.action), token_size(enc, spec), config.deter, config.hidden
    dyn = rssm.ClassicRSSM(*sizes, latents, acts[1], norm, dtype)
    stoch = math.prod(latents.shape)
    dec = encoders.Decoder(obs, config.depth, config.units, config.deter, stoch, layers, 1, dtype, act=acts[0])
    return World(spec, enc, dyn, dec)


@dataclass(frozen=True)
class World:
    """The components, each a flax module whose parameters stand under its name: `enc`, `dyn`, `dec`. Without a decoder
    dreams show nothing. An action mask is seen and predicted like any other sensor (`sensors.with_mask`)."""

    spec: Spec
    enc: encoders.Encoder
    dyn: Model
    dec: encoders.Decoder | None
    routes: Routes = PLAIN

    def init(self, key: Key, heads: Mapping[str, Head]) -> dict[str, Any]:
        """Fresh parameters of the components and of the heads on top of them."""
        obs = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), self.seen)
        latent, tokens = rssm.initial(self.dyn, 1), jnp.zeros((1, self.dyn.tokens))
        inputs = {"enc": (obs,), "dyn": (tokens, jnp.zeros((1, self.dyn.actions)))}
        inputs |= {"dec": (latent.deter, flatten(latent.stoch))} | {name: (latent.feat(),) for name in heads}
        decoder = {"dec": self.dec} if self.dec else {}
        modules: dict[str, Any] = {"enc": self.enc, "dyn": self.dyn, **decoder, **heads}
        keys = (jax.random.fold_in(key, i) for i in range(len(modules)))
        return {name: modules[name].init(k, *inputs[name]) for name, k in zip(modules, keys, strict=True)}

    @property
    def seen(self) -> Any:
        """The spec of what is seen and predicted."""
        return sensors.with_mask(self.spec.obs)

    def legal(self, dec: Any, feat: Array) -> Array | None:
        """Which actions are legal in the latents behind `feat [..., F]`, bool `[..., A]`, by the decoder's prediction;
        the likeliest one where it finds none. None where the environment does not say. `dec` are its parameters."""
        if sensors.MASK not in sensors.sensors(self.seen):
            return None
        parts = jnp.split(jax.lax.stop_gradient(feat), [self.dyn.deter], -1)
        decoder: Any = self.dec
        logits = apply(decoder, dec, *parts, method="numbers")[sensors.MASK]
        return (logits > 0) | (logits == logits.max(-1, keepdims=True))

    def encode(self, action: Array) -> Array:
        """Encode an action as numbers `[..., A]`."""
        return spaces.encode(self.spec.action, action)

    def pack(self, latent: Latent) -> dict[str, Array]:
        """Latents as replay extras."""
        return {"deter": latent.deter, "stoch": self.dyn.latents.pack(latent.stoch)}

    def unpack(self, extras: dict[str, Array]) -> Latent:
        """The inverse of `pack`."""
        return Latent(extras["deter"], self.dyn.latents.unpack(extras["stoch"]).astype(self.dyn.dtype))

    # Acting.
    def reset(self, state: Any, num_envs: int) -> Carry:
        """The memory before a first step; see `Agent.reset`."""
        return Carry(rssm.initial(self.dyn, num_envs), spaces.blank(self.spec.action, num_envs))

    def filter(self, params: Any, carry: Carry, step: Step, key: Key) -> Latent:
        """One step of `rssm.observe`: `[N, ...]`."""
        tokens = apply(self.enc, params["enc"], sensors.with_mask(step.obs))
        inputs = tokens[:, None], self.encode(carry.action)[:, None], step.is_first[:, None]
        uniform = jax.random.uniform(key, (len(tokens), 1, self.dyn.latents.stoch))
        latents, _ = rssm.observe(self.dyn, params["dyn"], carry.latent, *inputs, uniform)
        return jax.tree.map(lambda x: x[:, 0], latents)

    def act(
        self, params: Any, carry: Carry, step: Step, key: Key, mode: str, choose: Callable[[Latent, Key], Array]
    ) -> Acted:
        """See the newest step, then act at random, if `mode` says so, or by `choose`; the extras are the latents."""
        key, choice = jax.random.split(key)
        latent = self.filter(params, carry, step, key)
        action = forced(self.spec.action, step, choice, mode)
        action = choose(latent, choice) if action is None else action
        return Carry(latent, action), action, self.pack(latent)

    # Learning.
    def infer(self, params: Any, record: Record, uniform: Array, start: Latent | None = None) -> Inferred:
        """Infer posterior latents of sequences, their distributions and the priors, `[B, T, ...]`.
        `start [B, ...]` is the latent of the first record, whose own is then left out. Without it, sequences start from
        nothing. `uniform [B, T, S]` decides the latents."""
        batch, length = record.is_first.shape
        chex.assert_shape(uniform, (batch, length - (start is not None), self.dyn.latents.stoch))
        previous, is_first = self.encode(record.action), record.is_first
        if start is None:
            start, is_first = rssm.initial(self.dyn, len(is_first)), jnp.asarray(is_first).at[:, 0].set(True)
            previous, obs = jnp.concatenate([jnp.zeros_like(previous[:, :1]), previous[:, :-1]], 1), record.obs
        else:
            previous, is_first = previous[:, :-1], is_first[:, 1:]
            obs = jax.tree.map(lambda x: x[:, 1:], record.obs)
        tokens = encoders.encode(self.enc, params["enc"], sensors.with_mask(obs), self.seen, self.routes)
        inputs = start, tokens, previous, is_first, uniform
        latents, post = rssm.observe(self.dyn, params["dyn"], *inputs, self.routes.apart)
        return Inferred(latents, post, apply(self.dyn, params["dyn"], latents.deter, method="prior"), tokens)

    def reconstruction(self, params: Any, latents: Latent, obs: Any) -> tuple[Array, dict[str, Array]]:
        """Mean loss over all sensors, and that of each where there are several; images a few at a time.
        `params` are the decoder's own."""
        decoder: Any = self.dec
        inputs, obs = (latents.deter, flatten(latents.stoch)), sensors.with_mask(obs)
        return encoders.reconstruct(decoder, params, *inputs, obs, self.seen, self.routes)

    def predictions(
        self, params: Any, heads: Mapping[str, Head], record: Record, uniform: Array
    ) -> tuple[Latent, dict[str, Array], dict[str, Array]]:
        """Posterior latents `[B, T]` of sequences from nothing, the mean losses of all that is predicted, and metrics.
        `rec` observations, `rew` rewards as unit normals, `con` the continue flag where there is such a head,
        `dyn` and `rep` the KL towards the posterior and towards the prior."""
        latents, post, prior, _ = self.infer(params, record, uniform)
        feat, losses = latents.feat(), {}
        losses["dyn"], losses["rep"] = (x.mean() for x in rssm.kl_losses(post, prior))
        guess = apply(heads["rew"], params["rew"], feat)["mean"][..., 0]
        losses["rew"] = 0.5 * jnp.square(guess - record.reward).mean()
        if "con" in heads:
            logit = apply(heads["con"], params["con"], feat)["logit"][..., 0]
            losses["con"] = (jax.nn.softplus(logit) - logit * (1.0 - record.is_terminal)).mean()
        losses["rec"], metrics = self.reconstruction(params["dec"], latents, record.obs)
        return latents, losses, metrics | {f"loss/{name}": loss for name, loss in losses.items()}

    # Dreaming.
    def rollout(
        self, params: Any, starts: Latent, actor: Policy, plan: Array, uniform: Array, temperature: float = 1.0,
        gradients: bool = False,
    ) -> tuple[Latent, Array]:  # fmt: skip
        """Dreams `[H + 1, R, ...]` under `actor(feat)`; see `rssm.imagine`.
        With `gradients` they run through latents and actions; what the actor sees is constant (Hafner et al. 2020)."""

        def policy(latent: Latent, noise: Array) -> tuple[Array, Array]:
            dist = actor(jax.lax.stop_gradient(latent.feat()) if gradients else latent.feat())
            action = dist.pick(noise)
            return action, dist.encoded(action) if gradients else self.encode(action)

        return rssm.imagine(self.dyn, params["dyn"], starts, policy, plan, uniform, temperature, gradients)

    def explore(
        self, params: Any, starts: Latent, actor: Policy, horizon: int, key: Key, share: Share = ALONE
    ) -> tuple[Latent, Array]:
        """Roll out with gradients and fresh noise, for learning: dreams and actions `[H + 1, R, ...]`."""
        k_plan, k_dream = jax.random.split(key)
        noise = self.noise(k_plan, k_dream, horizon, len(starts.deter), share)
        return self.rollout(params, starts, actor, *noise, gradients=True)

    def noise(self, k_plan: Key, k_dream: Key, horizon: int, rows: int, share: Share = ALONE) -> tuple[Array, Array]:
        """What decides the actions `[H + 1, R, ...]` and the latents `[H, R, S]` of a dream."""
        space = self.spec.action
        plan = spaces.noise(space, share.uniform(k_plan, (horizon + 1, rows, spaces.noise_size(space)), 1))
        return plan, share.uniform(k_dream, (horizon, rows, self.dyn.latents.stoch), 1)

    def last(self, params: Any, context: Record, key: Key) -> Latent:
        """The latent `[B, ...]` of a context's last record, filtered from the stored one of its first."""
        batch, length = context.reward.shape
        start = jax.tree.map(lambda x: x[:, 0], self.unpack(context.extras))
        uniform = jax.random.uniform(key, (batch, length - 1, self.dyn.latents.stoch))
        latents = self.infer(params, context, uniform, start).latents
        return jax.tree.map(lambda x: x[:, -1], latents)

    def open_loop(self, params: Any, starts: Latent, actions: Array, key: Key) -> Latent:
        """Roll the prior under given actions `[H, R, ...]`: the latents `[H, R, ...]` that they lead to."""
        plan = jnp.concatenate([actions, actions[-1:]])  # the last one is never applied
        uniform = jax.random.uniform(key, (*plan[:-1].shape[:2], self.dyn.latents.stoch))
        pick = lambda latent, action: (action, self.encode(action))  # noqa: E731
        latents, _ = rssm.imagine(self.dyn, params["dyn"], starts, pick, plan, uniform)
        return jax.tree.map(lambda x: x[1:], latents)

    def dream(
        self, params: Any, context: Record, actions: Array | None, actor: Policy, key: Key, horizon: int,
        predict: Callable[[Array], tuple[Array, Array]], temperature: float = 1.0,
    ) -> Dream:  # fmt: skip
        """What follows a context `[B, L]`, under given actions or `actor(feat)`; see `Agent.imagine`.
        `predict(feat)` gives reward and continue. Given actions are followed at temperature 1."""
        spaces.check_dream(self.spec.action, context, actions, horizon, least=2)
        k_observe, k_plan, k_imagine = jax.random.split(key, 3)
        start = self.last(params, context, k_observe)
        if actions is not None:
            taken = actions.swapaxes(0, 1)
            latents = self.open_loop(params, start, taken, k_imagine)
            return self.shown(params, latents, taken, *predict(latents.feat()))
        noise = self.noise(k_plan, k_imagine, horizon, len(context.reward))
        latents, taken = self.rollout(params, start, actor, *noise, temperature)
        latents = jax.tree.map(lambda x: x[1:], latents)
        return self.shown(params, latents, taken[:-1], *predict(latents.feat()))

    def shown(self, params: Any, latents: Latent, actions: Array, reward: Array, cont: Array) -> Dream:
        """The dream `[B, H, ...]` behind latents `[H, B, ...]`, with what a decoder shows of them, if there is one."""
        obs = None
        if self.dec:
            decoded = apply(self.dec, params["dec"], latents.deter, flatten(latents.stoch))
            obs = sensors.observation(decoded, self.spec.obs)
        return Dream(obs, reward, cont, actions, latents).swapped()
