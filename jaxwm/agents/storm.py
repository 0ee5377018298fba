"""STORM: efficient stochastic transformer based world models (Zhang et al. 2023).

Sees one frame at a time through a variational autoencoder of categorical latents, predicts the next latents with a
causal transformer over one token per frame (latents and action, mixed), acts with an actor-critic that learns inside
dreams as in Dreamer V3, and alternates collecting, learning the model and learning the behaviour.

Letters: B batch, L records of a sequence, S latents, C classes, Z = S * C, W width, H horizon, R dreams, K context
records of a dream. Dreams are time first: `[H + 1, R, ...]`. Token t mixes z_t and a_t; its output h_t predicts
z_{t+1}, and the reward and the continue flag that arrive with it. The policy reads s_t = [z_t, h_{t-1}], where h_{t-1}
is 0 at the first record of an episode.

Where the paper and the official code differ, or this file from both:

- the policy acts on the latents of the frame that it sees, as in the paper (the code acts on a sample of the prior);
- windows are cut where episodes end: no token sees another episode, and nothing is predicted across
  (`across_episodes=True` does as the code does, in learning and in acting);
- lambda-returns take V(s_{t+1}), as in the paper (the code takes V(s_t)); the critic is pulled towards the slow
  critic's value, as in the paper (in the code towards its lambda-return);
- a free nat holds for every step, as the paper writes it (in the code for the mean of the batch);
- dreams are weighted by the product of predicted continue flags, as in Dreamer V3 (in the code a dream ends where the
  end is likelier than not, and its later steps stay in the losses);
- positions are rotary, so that the window slides while acting: it holds the last `batch_length` records, and each step
  adds one token to the cache (the code computes its last 16 records anew in each step). `positions="learned"` has the
  published table; acting then begins a new window when the table is used up;
- the mixer and all heads have the layers of this library (RMS norm and SiLU), and so have the convolutions in place of
  strided ones with batch norm, whose statistics would be others while acting; dropout leaves the weights of attention;
- actor and critic have gradients clipped on their own; rewards of records, not of a copy with lost lives as ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import actor_critic as ac
from jaxwm.control.behaviour import Evaluated, evaluate, policy_losses
from jaxwm.control.policy import Actor, action_distribution, forced
from jaxwm.distributions import TwoHot, symexp_bins, twohot
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, check_bins, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import PLAIN, Routes, loss_over_pieces, routes, split
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.models import tokens
from jaxwm.models.rssm import Categorical, flatten, keep, kl_losses
from jaxwm.models.stochastic_transformer import PARTS, World
from jaxwm.models.tokens import Frame
from jaxwm.nets import attention, encoders
from jaxwm.nets.attention import Cache, Transformer
from jaxwm.nets.layers import Head, apply, cast
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, pace, prefill
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of STORM. Defaults are the published ones, for Atari."""

    # Size.
    stoch: Count = 32  # Number of categorical latents.
    classes: int = 32  # Classes of each latent.
    width: Count = 512  # Width of a token.
    layers: Count = 2  # Blocks of the transformer.
    heads: Count = 8  # Heads of attention.
    hidden: Count = 1024  # Width of the hidden layer of a block.
    positions: Literal["rotary", "learned"] = "rotary"  # How tokens are ordered; learned ones as published.
    dropout: float = 0.1  # Share of the entries that a block leaves out while the model learns.
    units: Count = 512  # Width of all MLPs.
    depth: Count = 32  # Convolution channels; the stages have 2, 3, 4 and 4 times as many.
    bins: int = 255  # Bins of the reward and value distributions.
    sensor_layers: Natural = 3  # Layers of the vector encoder and decoder.
    model_layers: Natural = 2  # Layers of the reward and continue heads.
    policy_layers: Natural = 2  # Layers of actor and critic.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments, norms and losses stay float32. Use bfloat16 on GPUs and TPUs."""
    remat: bool = False  # Compute the blocks again for the gradient instead of keeping them: less memory, more time.
    # Data.
    envs: Count = 1  # Parallel environments of each member.
    batch_size: Count = 16  # Sequences of an update of the model.
    batch_length: int = 64  # Records of a sequence, and of the window that is seen while acting.
    train_ratio: Positive = 1024.0  # Records that the model learns from for each environment step.
    prefill: Natural = 1024  # Environment steps of random play before learning starts.
    capacity: Count = 100_000  # Replay size of a member in environment steps (never more than the run collects).
    across_episodes: bool = False  # Let windows run across the ends of episodes, as the official code does.
    # World model.
    rec_scale: Amount = 1.0  # Weight of the loss of observations, in nats per step.
    rew_scale: Amount = 1.0  # Weight of the loss of rewards, in nats per step.
    con_scale: Amount = 1.0  # Weight of the loss of continue flags, in nats per step.
    dyn_scale: Amount = 0.5  # Weight of the KL that pulls the prior towards the posterior.
    rep_scale: Amount = 0.1  # Weight of the KL that pulls the posterior towards the prior.
    free_nats: Amount = 1.0  # KL of a step, in nats, below which neither prior nor posterior is pushed.
    unimix: Fraction = 0.01  # Share of the uniform distribution in every latent.
    # Behaviour.
    dreams: Count = 1024  # Dreams of an update of the behaviour.
    context: int = 8  # Real records before each dream.
    imag_length: Count = 16  # Steps of a dream.
    temperature: Positive = 1.0  # Temperature of the latents in dreams.
    slow_scale: Amount = 1.0  # Weight of the pull towards the slow critic.
    slow_rate: float = 0.02  # Share of the critic that enters the slow critic in each update.
    actor_unimix: Fraction = 0.0  # Share of the uniform policy in discrete actors.
    discount: Varies[Fraction] = 0.985  # Discount of rewards.
    lam: Varies[Fraction] = 0.95  # Lambda of the returns.
    entropy: Varies[Amount] = 3e-4
    """Weight of the policy's entropy. 3e-4 belongs to a behaviour_lr of 3e-5; raise both together."""
    # Optimiser.
    lr: Varies[Positive] = 1e-4  # Learning rate of the model.
    behaviour_lr: Varies[Positive] = 3e-5  # Learning rate of actor and critic.
    clip: Positive = 1000.0  # Largest norm of the model's gradient.
    behaviour_clip: Positive = 100.0  # Largest norm of the gradients of the actor and of the critic.

    def __post_init__(self):
        check_types(self)
        check_number("classes", self.classes, least=1, most=256, whole=True)
        check_number("batch_length", self.batch_length, least=2, whole=True)
        check_number("context", self.context, least=2, whole=True)
        check_number("dropout", self.dropout, least=0, most=0.9)
        check_number("slow_rate", self.slow_rate, above=0, most=1)
        if self.context + self.imag_length > self.batch_length and self.positions == "learned":
            text = f"context ({self.context}) and imag_length ({self.imag_length}) are longer than batch_length"
            raise ValueError(f"{text} ({self.batch_length}), the number of learned positions")
        check_bins(self.bins)


# --- Losses -----------------------------------------------------------------------------------------------------------
class Noise(NamedTuple):
    """The random numbers of an update of the behaviour."""

    observe: Array  # [R, K, S], uniform
    plan: Array  # [R, H + 1, ...], see `spaces.noise`
    imagine: Array  # [R, H, S], uniform


def model_loss(
    learner: Learner, params: Any, record: Record, uniform: Array, factors: Array | None = None, share: Share = ALONE
) -> Losses:
    """The loss of the world model on sequences `[B, L]` (equations 4 to 6), and its parts.
    `uniform [B, L, S]` decides the latents, `factors` are those of dropout (`attention.dropout_factors`)."""
    chex.assert_shape(uniform, (*record.reward.shape, learner.config.stoch))
    config, world = learner.config, learner.world
    first, post = world.first(record), world.infer(params, record.obs)
    stoch = world.latents.draw(post, uniform)
    hidden = world.hidden(params, stoch[:, :-1], record.action[:, :-1], first[:, :-1], factors)
    mean = partial(share.weighted_mean, weight=1.0 - first[:, 1:])  # of what is predicted within an episode
    after = jax.tree.map(lambda x: x[:, 1:], (record.reward, record.is_terminal, post))
    losses: dict[str, Array] = {}
    dyn, rep = kl_losses(after[2], world.predict(params, hidden), config.free_nats)
    losses["dyn"], losses["rep"] = mean(dyn), mean(rep)
    reward = learner.reward(params, hidden)
    losses["rew"] = mean(reward.loss(twohot(after[0], reward.bins)))
    logit = learner.continues(params, hidden)
    losses["con"] = mean(jax.nn.softplus(logit) - logit * (1.0 - after[1]))
    losses["rec"], metrics = world.reconstruction(params, stoch, record.obs)
    metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
    total = sum((getattr(config, f"{name}_scale") * loss for name, loss in losses.items()), jnp.zeros(()))
    return total, ({}, metrics | {"loss": total})


def critic_loss(
    learner: Learner, val: Any, state: State, record: Record, noise: Noise
) -> tuple[Array, tuple[Array, Array, Evaluated]]:
    """The summed loss of the critic in dreams that follow contexts `[R, K]`, and the dreams in pieces.
    Of these features `[n, H + 1, R / n, F]`, actions, and what the heads see. `val` learns, all else is constant."""
    chex.assert_equal_shape_prefix((record.reward, noise.observe), 2)

    def dream(val: Any, _: Any, rows: tuple[Record, Noise], state: State) -> tuple[Array, Any]:
        record, noise = rows
        feat, hidden, actions = learner.rollout(state.params, record, noise)
        loss, seen = evaluate_dream(learner, val, state, feat, hidden, record.is_terminal[:, -1])
        return loss.sum(), (feat, actions, seen)

    pieces = split((record, noise), learner.routes.dreams)
    return loss_over_pieces(dream, val, (), pieces, state._replace(opt=None))


def evaluate_dream(
    learner: Learner, val: Any, state: State, feat: Array, hidden: Array, ended: Array
) -> tuple[Array, Evaluated]:
    """Critic losses `[H, R]` of dreams `feat [H + 1, R, F]`, and the dreams as the heads see them.
    `hidden [H + 1, R, W]` are the outputs that predicted them, `ended [R]` says that a root is a terminal state."""
    chex.assert_equal_shape_prefix((feat, hidden), 2)
    params, hyper = state.params["model"], state.hyper
    reward = learner.reward(params, hidden).mean()
    cont = jax.nn.sigmoid(learner.continues(params, hidden))
    cont = cont.at[0].set(1.0 - ended) * hyper["discount"]
    slow = learner.value(state.slow, feat).mean()
    return evaluate(reward, cont, learner.value(val, feat), slow, hyper["lam"], learner.config.slow_scale)


# --- Wiring -----------------------------------------------------------------------------------------------------------
class State(NamedTuple):
    """Everything that learning changes."""

    params: dict[str, Any]  # "model" with its components, "pol" and "val"
    slow: Any  # slow copy of the critic
    returns: ac.ReturnRange
    opt: Any
    hyper: dict[str, Array]
    step: Array  # updates so far, of model and behaviour together


class Carry(NamedTuple):
    """The policy's memory: the tokens of the episode's last records, and what came out at the newest."""

    cache: Cache
    hidden: Array  # [N, W]


class Networks(NamedTuple):
    """The world model, and the heads on top of it: reward, continue flag, actor, critic."""

    world: World
    rew: Head
    con: Head
    pol: Head
    val: Head


MODEL = (*PARTS, "rew", "con")
"""Components that learn together, in `State.params["model"]`."""


def build(spec: Spec, config: Config, routes: Routes = PLAIN) -> Networks:
    """The networks of an agent for this environment; ValueError for observations that no encoder fits."""
    dtype, latents = jnp.dtype(config.dtype), Categorical(config.stoch, config.classes, config.unimix)
    enc = encoders.Encoder(spec.obs, config.depth, config.units, config.sensor_layers, dtype, routes)
    dec = encoders.Decoder(
        spec.obs, config.depth, config.units, 0, latents.outputs, config.sensor_layers, 1, dtype, routes
    )
    net = Transformer(
        config.layers, config.width, config.heads, config.hidden,
        positions=config.batch_length if config.positions == "learned" else 0, window=config.batch_length,
        dropout=config.dropout, dtype=dtype, remat=config.remat, fused=routes.cudnn,
    )  # fmt: skip
    mix, plain = Head({"token": config.width}, 1, config.width, dtype=dtype), partial(Head, layers=0, units=0)
    post, prior = plain({"logits": latents.outputs}, dtype=dtype), plain({"logits": latents.outputs}, dtype=dtype)
    world = World(spec, latents, enc, post, mix, net, prior, dec, routes, config.across_episodes)
    model = partial(Head, layers=config.model_layers, units=config.units, dtype=dtype)
    policy = partial(Head, layers=config.policy_layers, units=config.units, dtype=dtype)
    rew, con = model({"bins": config.bins}, outscale=0.0), model({"logit": 1})
    pol, val = policy(spaces.head_sizes(spec.action), outscale=0.01), policy({"bins": config.bins}, outscale=0.0)
    return Networks(world, rew, con, pol, val)


def init_params(nets: Networks, key: Key) -> dict[str, Any]:
    """Fresh parameters of the model and of the behaviour."""
    width, size = nets.world.net.width, nets.world.latents.outputs
    inputs = {"rew": width, "con": width, "pol": size + width, "val": size + width}
    keys = jax.random.split(jax.random.fold_in(key, len(PARTS)), len(inputs))
    heads = {
        name: getattr(nets, name).init(k, jnp.zeros((1, inputs[name]))) for name, k in zip(inputs, keys, strict=True)
    }
    model = nets.world.init(key) | {"rew": heads["rew"], "con": heads["con"]}
    return {"model": model, "pol": heads["pol"], "val": heads["val"]}


@dataclass(frozen=True)
class Learner:
    """The networks over explicit parameters; `params` are those of the model unless a docstring says otherwise."""

    nets: Networks
    spec: Spec
    config: Config
    routes: Routes = PLAIN

    @property
    def world(self) -> World:
        """The world model."""
        return self.nets.world

    def feat(self, stoch: Array, hidden: Array) -> Array:
        """What actor and critic read, `[..., Z + W]`."""
        return jnp.concatenate([flatten(stoch), hidden.astype(stoch.dtype)], -1)

    def reward(self, params: Any, hidden: Array) -> TwoHot:
        """The distribution of the reward that arrives with the next record."""
        return TwoHot(apply(self.nets.rew, params["rew"], hidden)["bins"], symexp_bins(self.config.bins))

    def continues(self, params: Any, hidden: Array) -> Array:
        """Logit `[...]` of the next record not being terminal."""
        return apply(self.nets.con, params["con"], hidden)["logit"][..., 0]

    def value(self, val: Any, feat: Array) -> TwoHot:
        """The critic's distribution at `feat [..., F]`; `val` are its own parameters."""
        return TwoHot(apply(self.nets.val, val, feat)["bins"], symexp_bins(self.config.bins))

    def actor(self, pol: Any, feat: Array) -> Actor:
        """The policy at `feat [..., F]`; `pol` are its own parameters."""
        outputs = apply(self.nets.pol, pol, feat)
        return action_distribution(self.spec.action, outputs, self.config.actor_unimix)

    def rollout(self, params: Any, record: Record, noise: Noise) -> tuple[Array, Array, Array]:
        """Dream under the policy after records `[R, K]`, without gradients, from all parameters; see `follow`."""
        model, room = self.world.ready(params["model"]), noise.imagine.shape[1]
        return self.follow(model, params["pol"], self.world.see(model, record, noise.observe, room), noise)

    def follow(self, model: Any, pol: Any, start: tuple[Cache, Frame], noise: Noise) -> tuple[Array, Array, Array]:
        """Features and outputs `[H + 1, R, *]` and actions `[H + 1, R, ...]` of dreams from `World.begin` on.
        `model` are the parameters that are `World.ready`."""
        pol = cast(pol, self.config.dtype)

        def policy(memory: Any, frame: Frame, plan: Array) -> tuple[Any, Array, Array]:
            feat = self.feat(frame.tokens, frame.hidden[:, 0])
            return memory, self.actor(pol, feat).pick(plan), feat

        plan, imagine = (x.swapaxes(0, 1) for x in (noise.plan, noise.imagine))
        advance = self.world.advance(model, self.config.temperature)
        found = tokens.rollout(advance, policy, *start, plan, imagine)
        return found.seen, found.frames.hidden[:, :, 0], found.actions

    def noise(self, key: Key, rows: int, context: int, horizon: int, share: Share = ALONE) -> Noise:
        """Draw all random numbers of dreams, in one draw."""
        stoch, width = self.config.stoch, spaces.noise_size(self.spec.action)
        sizes = context * stoch, (horizon + 1) * width, horizon * stoch
        draw = share.uniform(key, (rows, sum(sizes)))
        observe, plan, imagine = jnp.split(draw, (sizes[0], sizes[0] + sizes[1]), -1)
        plan = spaces.noise(self.spec.action, plan.reshape(rows, horizon + 1, width))
        return Noise(observe.reshape(rows, context, stoch), plan, imagine.reshape(rows, horizon, stoch))


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build STORM for an environment. There are no replay extras: latents are inferred anew from observations."""
    nets = build(spec, config, routes())
    learner = Learner(nets, spec, config, routes())
    world = nets.world
    tx = optim.apart({"model": MODEL}, optim.adam(config.clip, 1e-8))
    head_tx = optim.apart({"head": ("params",)}, optim.adam(config.behaviour_clip, 1e-5))

    def init(key: Key, hyper: Any) -> State:
        params = init_params(nets, key)
        opt = {"model": tx.init(params["model"])} | {name: head_tx.init(params[name]) for name in ("pol", "val")}
        slow = jax.tree.map(jnp.copy, params["val"])
        return State(params, slow, ac.initial_range(), opt, optim.numbers(hyper), jnp.zeros((), jnp.int32))

    def reset(state: State, num_envs: int) -> Carry:
        cache = attention.empty(world.net, num_envs, config.batch_length, apart=True)
        return Carry(cache, jnp.zeros((num_envs, config.width), world.net.dtype))

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> Acted:
        params, key = state.params["model"], jax.random.split(key)
        first = step.is_first & (not config.across_episodes)
        uniform = jax.random.uniform(key[0], (len(step.reward), config.stoch))
        stoch = world.latents.dream(world.infer(params, step.obs), uniform)
        action = forced(spec.action, step, key[1], mode)
        if action is None:
            policy = learner.actor(state.params["pol"], learner.feat(stoch, keep(~first, carry.hidden)))
            action = policy.mode() if mode == "greedy" else policy.sample(key[1])
        cache, token = attention.forget(carry.cache, first), world.token(params, stoch, action)
        cache, hidden = apply(world.net, params["net"], cache, token[:, None], method="extend")
        return Carry(cache, hidden[:, 0]), action, {}

    def learn_model(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record, (k_latents, k_dropout) = share.local_rows(batch.record), jax.random.split(key)
        rows, length = record.reward.shape
        uniform, factors = share.uniform(k_latents, (rows, length, config.stoch)), None
        if config.dropout:
            shape = rows, length - 1, config.layers, 2, config.width
            factors = attention.dropout_factors(world.net, share.uniform(k_dropout, shape))
        objective = lambda params: model_loss(learner, params, record, uniform, factors, share)  # noqa: E731
        return gradient_step(state, objective, tx, state.hyper["lr"], "model", share=share)

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        return dream(learner, state, context, actions, key, horizon)

    steps = {
        "model": TrainStep(learn_model, config.batch_size, config.batch_length, shared=True),
        "behaviour": TrainStep(partial(learn_behaviour, learner, head_tx), config.dreams, config.context, shared=True),
    }
    return Agent(init, reset, act, steps, imagine, schedule(config), hyper_of(config))


def learn_behaviour(learner: Learner, tx: Any, state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
    """One update of the critic in fresh dreams, then one of the actor in the same dreams."""
    record, rate, horizon = share.local_rows(batch.record), state.hyper["behaviour_lr"], learner.config.imag_length
    rows, context = record.reward.shape
    noise = learner.noise(key, rows, context, horizon, share)
    count, entropy = rows * horizon, state.hyper["entropy"]

    def critic(val: Any) -> Losses:
        loss, dreams = critic_loss(learner, val, state, record, noise)
        return loss / count, (dreams, {"loss/value": loss / count})

    def policy(pol: Any) -> Losses:
        loss, _, ranges, metrics = policy_losses(learner.actor, pol, dreams, state.returns, entropy, share)
        return loss / count, (ranges, metrics | {"loss/policy": loss / count})

    new, dreams, first = gradient_step(state, critic, tx, rate, "val", share=share)
    new, ranges, second = gradient_step(new, policy, tx, rate, "pol", share=share)
    slow = ac.track(new.params["val"], state.slow, learner.config.slow_rate)
    norms = {"grad_norm/value": first.pop("grad_norm"), "grad_norm/policy": second.pop("grad_norm")}
    return new._replace(slow=slow, returns=ranges, step=state.step + 1), {}, first | second | norms


def dream(learner: Learner, state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
    """What follows a context `[B, K]`, under given actions or the policy; see `Agent.imagine`.
    `latent` holds `stoch [B, H, S, C]`, `hidden [B, H, W]`, and in `attention [B, H, layers, K + H - 1]` how much each
    dreamed frame owes to every record of the context and to every frame of the dream before it."""
    spaces.check_dream(learner.spec.action, context, actions, horizon, least=2)
    params = state.params["model"]
    rows, length = context.reward.shape
    noise = learner.noise(key, rows, length, horizon)
    cache, start = learner.world.see(params, context, noise.observe, horizon)

    def policy(memory: Any, frame: Frame, plan: Array) -> tuple[Any, Array, tuple[()]]:
        if actions is not None:
            return memory, plan, ()
        feat = learner.feat(frame.tokens, frame.hidden[:, 0])
        return memory, learner.actor(state.params["pol"], feat).pick(plan), ()

    plan = noise.plan.swapaxes(0, 1)
    if actions is not None:
        plan = jnp.concatenate([actions, actions[:, -1:]], 1).swapaxes(0, 1)  # the last one is never applied
    advance = learner.world.advance(params, learner.config.temperature if actions is None else 1.0)
    found = tokens.rollout(advance, policy, cache, start, plan, noise.imagine.swapaxes(0, 1))
    stoch, hidden = found.frames.tokens[1:], found.frames.hidden[1:, :, 0]
    reward, cont = learner.reward(params, hidden).mean(), jax.nn.sigmoid(learner.continues(params, hidden))
    latent = {"stoch": stoch, "hidden": hidden}
    if (looks := learner.world.looks(params, context, noise.observe, found)) is not None:
        latent["attention"] = looks
    return Dream(learner.world.decode(params, stoch), reward, cont, found.actions[:-1], latent).swapped()


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then collecting, learning the model and learning the behaviour in turn."""
    steps, updates = pace(config.batch_size * config.batch_length / config.train_ratio, config.envs)
    body = Collect(steps), Train("model", updates), Train("behaviour", updates)
    return prefill(config.prefill, config.envs, max(config.batch_length, config.context)), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
NANO = Config(
    stoch=8, classes=8, width=32, heads=2, hidden=64, dropout=0.0, units=64, depth=2, bins=41, sensor_layers=1,
    model_layers=1, policy_layers=1, envs=4, batch_size=16, batch_length=16, train_ratio=64.0, prefill=256,
    dreams=128, context=4, imag_length=8, lr=5e-3, behaviour_lr=5e-3, entropy=3e-2, free_nats=0.1, dyn_scale=1.0,
    actor_unimix=0.01,
)  # fmt: skip
MICRO = replace(
    NANO, stoch=16, width=64, heads=4, hidden=128, imag_length=10, lr=3e-3, behaviour_lr=2e-3,
)  # fmt: skip
SMALL = replace(
    MICRO, classes=16, width=128, hidden=256, units=128, depth=8, bins=255, policy_layers=2,
    envs=2, batch_size=8, batch_length=32, train_ratio=32.0, prefill=1024, dreams=64, imag_length=15,
    lr=1e-3, behaviour_lr=5e-4, entropy=3e-3, free_nats=1.0,
)  # fmt: skip
RECALL = dict(batch_length=32, context=12, imag_length=4, train_ratio=128.0)
"""Settings over those of nano for a memory of ten steps (`probe/Recall`): windows and contexts that hold an episode."""

PRESETS: dict[str, Config] = {"published": Config(), "nano": NANO, "micro": MICRO, "small": SMALL}
"""The published sizes, and presets whose networks and learning rates suit two CPU cores: nano and micro for numbers
and planes, small for images of 64 x 64."""

SYSTEM = System(
    make, Config, PRESETS, default="nano", year=2023, steps=8000, offline=True, copies={"slow": "val"},
    summary="transformer over categorical latents, actor-critic inside dreams (Zhang et al. 2023)",
    paper="Zhang et al., STORM: Efficient Stochastic Transformer based World Models for Reinforcement Learning",
    sees="CNN or MLP, by the kind of observation; a latent of categoricals per frame",
    predicts="transformer over one token per frame: categorical prior, reward, continue flag; decoder",
    acts="actor-critic on lambda-returns inside dreams",
)  # fmt: skip
