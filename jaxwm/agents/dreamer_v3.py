"""Dreamer V3: mastering diverse domains through world models (Hafner et al. 2023; Nature 2025).

Sees through convolutions or an MLP, predicts with a recurrent state-space model of categorical latents, acts with an
actor-critic trained inside dreams, and alternates collecting and learning at a fixed train ratio.

Letters: B batch, T trained records of a sequence (one context record more is read), D deter, S latents, C classes,
H horizon, R = B * T starts of dreams. Dreams are time first: `[H + 1, R, ...]`.

Where the paper and the official code differ, this file does the following:

- discrete actors mix 1 % of the uniform policy, as in the paper (the code's categorical head ignores the setting);
  `actor_unimix=0` gives the code's behaviour;
- `is_terminal` means a true end, as in the paper (the code's Atari wrapper also marks time limits);
- the train ratio of Atari-100k is 256, as in the code (128 is reported for the paper's runs)."""

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
from jaxwm.control.policy import Actor, action_distribution, legal_of
from jaxwm.distributions import TwoHot, sg, symexp_bins, twohot
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_bins, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import PLAIN, Routes, loss_over_pieces, routes, split
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.models.latent_world import Carry, World, token_size
from jaxwm.models.representation import health, redundancy_loss
from jaxwm.models.rssm import RSSM, Categorical, Latent, flatten, initial, kl_losses
from jaxwm.nets import encoders
from jaxwm.nets.layers import Head, apply, cast
from jaxwm.nets.sensors import with_mask
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, pace, prefill
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Metrics, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of Dreamer V3. Defaults are the published ones at 12 million parameters."""

    # Size.
    deter: Count = 2048  # Width of the recurrent state.
    hidden: Count = 256  # Width of the layers inside the recurrence, the prior and the posterior.
    stoch: Count = 32  # Number of categorical latents.
    classes: int = 16  # Classes of each latent.
    units: Count = 256  # Width of all MLPs.
    depth: Count = 16  # Convolution channels; the stages have 2, 3, 4 and 4 times as many.
    blocks: Count = 8  # Blocks of the recurrent state; deter must be a multiple.
    bins: int = 255  # Bins of the reward and value distributions.
    sensor_layers: Natural = 3  # Layers of the vector encoder and decoder.
    policy_layers: Natural = 3  # Layers of actor and critic.
    model_layers: Natural = 1  # Layers of the reward and continue heads.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments, norms and losses stay float32. Use bfloat16 on GPUs and TPUs."""
    # Data.
    envs: Count = 1  # Parallel environments of each member.
    batch_size: Count = 16  # Sequences of an update.
    batch_length: int = 64  # Trained records of a sequence; one more is read as context.
    train_ratio: Positive = 256.0  # Replayed records per environment step.
    prefill: Natural = 1024  # Environment steps of random play before learning starts.
    capacity: Count = 5_000_000  # Replay size of a member in environment steps (never more than the run collects).
    online: bool = True  # Give every new sequence out once before sampling uniformly.
    # World model.
    representation: Literal["reconstruction", "barlow"] = "reconstruction"
    """What shapes the latents: showing the observation again, or agreeing with the encoder (R2-Dreamer)."""
    decoder: bool = True  # Learn to show what is imagined; with barlow nothing else learns from it, and it may go.
    rec_scale: Amount = 1.0  # Weight of the loss of observations, in nats per step.
    barlow_scale: Amount = 0.05  # Weight of the loss of barlow.
    redundancy: Amount = 5e-4  # Weight in it of correlations with other numbers of the encoder than the own one.
    rew_scale: Amount = 1.0  # Weight of the loss of rewards, in nats per step.
    con_scale: Amount = 1.0  # Weight of the loss of continue flags, in nats per step.
    dyn_scale: Amount = 1.0  # Weight of the KL that pulls the prior towards the posterior.
    rep_scale: Amount = 0.1  # Weight of the KL that pulls the posterior towards the prior.
    free_nats: Amount = 1.0  # KL of a step, in nats, below which neither prior nor posterior is pushed.
    unimix: Fraction = 0.01  # Share of the uniform distribution in every latent.
    # Behaviour.
    imag_length: Count = 15  # Steps of a dream.
    temperature: Positive = 1.0
    """Temperature of the latents in dreams: above 1 they are less certain, so harder to exploit (Ha, 2018)."""
    disagreement: Amount = 0.0
    """Reward taken off in dreams for each unit by which an ensemble of one-step models (none for 0) disagrees there."""
    ensemble: Several = 5
    """Models of that ensemble (Sekar et al. 2020, who seek the disagreement that is avoided here)."""
    policy_scale: Amount = 1.0  # Weight of the actor's loss.
    value_scale: Amount = 1.0  # Weight of the critic's loss in dreams.
    repval_scale: Amount = 0.3  # Weight of the critic loss on replayed sequences, whose gradient also shapes the model.
    slow_scale: Amount = 1.0  # Weight of the pull towards the slow critic.
    slow_rate: float = 0.02  # Share of the critic that enters the slow critic in each update.
    actor_unimix: Fraction = 0.01  # Share of the uniform policy in discrete actors.
    discount_horizon: Varies[float] = 333.0  # Effective horizon in steps; the discount is 1 - 1 / discount_horizon.
    lam: Varies[Fraction] = 0.95  # Lambda of the returns.
    entropy: Varies[Amount] = 3e-4
    """Weight of the policy's entropy. 3e-4 belongs to learning rate 4e-5; raise both together."""
    # Optimiser.
    lr: Varies[Positive] = 4e-5  # Learning rate after the warm-up.
    warmup: Natural = 1000  # Updates over which the learning rate rises from 0.
    lr_decay_updates: Natural = 0
    """Updates over which it falls linearly to 0, counted from the start; 0 for a constant rate, as published."""
    agc: Positive = 0.3  # Largest gradient of a tensor relative to its weights.

    def __post_init__(self):
        check_types(self)
        check_number("classes", self.classes, least=1, most=256, whole=True)  # the replay keeps them as bytes
        check_number("batch_length", self.batch_length, least=2, whole=True)  # the critic needs a next record
        check_number("slow_rate", self.slow_rate, above=0, most=1)
        check_number("discount_horizon", self.discount_horizon, above=1)
        if self.deter % self.blocks:
            raise ValueError(f"deter ({self.deter}) must be a multiple of blocks ({self.blocks})")
        check_bins(self.bins)
        if self.representation == "reconstruction" and not self.decoder:
            raise ValueError("reconstruction needs the decoder: keep it, or take --representation barlow")


# --- Losses -----------------------------------------------------------------------------------------------------------
class Noise(NamedTuple):
    """The random numbers of an update."""

    observe: Array  # [B, T, S], uniform
    plan: Array  # [B, T, H + 1, ...], see `spaces.noise`
    imagine: Array  # [B, T, H, S], uniform


def loss(learner: Learner, params: Any, state: State, record: Record, noise: Noise, share: Share = ALONE) -> Losses:
    """The total loss of sequences `[B, T + 1]`; latents `[B, T]` and the return range; metrics."""
    batch, length = record.reward.shape
    chex.assert_shape(noise.observe, (batch, length - 1, learner.config.stoch))
    config = learner.config
    with jax.named_scope("world_model"):
        latents, losses, metrics = model_losses(learner, params, state.hyper, record, noise.observe, share)
    record = jax.tree.map(lambda x: x[:, 1:], record)  # the first one was context
    with jax.named_scope("behaviour"):
        behaviour, returns, ranges, more = behaviour_losses(learner, params, state, latents, noise, share)
        losses, metrics = losses | behaviour, metrics | more
    with jax.named_scope("replay_value"):
        losses["repval"] = replay_value_loss(learner, params, state, record, latents.feat(), returns).mean()
    if config.disagreement:
        losses["dis"] = ensemble_loss(learner, params, jax.tree.map(sg, latents), record).mean()
    metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
    total = sum((getattr(config, f"{name}_scale", 1.0) * loss for name, loss in losses.items()), jnp.zeros(()))
    return total, ((jax.tree.map(sg, latents), ranges), metrics | {"loss": total})


def model_losses(
    learner: Learner, params: Any, hyper: Any, record: Record, uniform: Array, share: Share = ALONE
) -> tuple[Latent, Metrics, Metrics]:
    """Posterior latents `[B, T]`, the mean losses of everything that is predicted (equation 3), and metrics."""
    world = learner.world
    context = jax.tree.map(lambda x: x[:, 0], world.unpack(record.extras))
    latents, post, prior, tokens = world.infer(params, record, uniform, context)
    record = jax.tree.map(lambda x: x[:, 1:], record)
    dyn, rep = kl_losses(post, prior, learner.config.free_nats)
    losses: dict[str, Array] = {"dyn": dyn, "rep": rep}
    feat = latents.feat()
    reward = learner.scalar("rew", params["rew"], feat)
    losses["rew"] = reward.loss(twohot(record.reward, reward.bins))
    target = (1.0 - record.is_terminal) * (1 - 1 / hyper["discount_horizon"])
    logit = learner.continues(params, feat)
    losses["con"] = jax.nn.softplus(logit) - logit * target
    chex.assert_equal_shape((record.reward, *losses.values()))
    losses = {name: loss.mean() for name, loss in losses.items()}
    shown, metrics = latents, {}
    if learner.config.representation == "barlow":
        losses["barlow"] = barlow_loss(learner, params["bar"], feat, tokens, share)
        shown, metrics = jax.tree.map(sg, latents), health(feat, share)
    if learner.config.decoder:
        losses["rec"], parts = world.reconstruction(params["dec"], shown, record.obs)
        metrics |= parts
    return latents, losses, metrics


def barlow_loss(learner: Learner, params: Any, feat: Array, tokens: Array, share: Share = ALONE) -> Array:
    """The loss of R2-Dreamer in place of the decoder's: a linear map of `feat [B, T, F]` is to agree with the encoder's
    `tokens [B, T, E]`, which are constants; the encoder learns through `feat`. `params` are the map's own."""
    head: Any = learner.nets.bar
    return redundancy_loss(apply(head, params, feat)["tokens"], tokens, learner.config.redundancy, share)


def ensemble_loss(learner: Learner, params: Any, latents: Latent, record: Record) -> Array:
    """Squared errors `[B, T - 1]` of all one-step models, summed; 0 across the start of an episode."""
    chex.assert_equal_shape_prefix((latents.deter, record.reward), 2)
    guess = learner.guesses(params, latents.feat()[:, :-1], record.action[:, :-1])
    error = jnp.square(guess - flatten(latents.stoch)[:, 1:].astype(jnp.float32)).sum((0, -1))
    return error * (1.0 - record.is_first[:, 1:])


def behaviour_losses(
    learner: Learner, params: Any, state: State, latents: Latent, noise: Noise, share: Share = ALONE
) -> tuple[Metrics, Array, ac.ReturnRange, Metrics]:
    """Actor and critic learn in dreams that start at every latent `[B, T]`.
    Returns the mean losses, the lambda-returns of the starts `[B, T]`, the new return range, and metrics. Dreams are
    rolled out and evaluated a few at a time; advantages then wait for the range of all returns."""
    chex.assert_equal_shape_prefix((latents.deter, noise.plan, noise.imagine), 2)
    lead, flat = latents.deter.shape[:2], lambda x: sg(x).reshape(-1, *x.shape[2:])
    rows = jax.tree.map(flat, (latents, noise.plan, noise.imagine))
    count = len(rows[0].deter) * learner.config.imag_length

    def dream(val: Any, _: Any, rows: Any, constants: Any) -> tuple[Array, Any]:
        (starts, plan, uniform), (params, state) = rows, constants
        latents, actions = learner.rollout(params, starts, plan.swapaxes(0, 1), uniform.swapaxes(0, 1))
        loss, seen = evaluate_dream(learner, val, params, state, latents.feat(), actions)
        return loss.sum(), (latents.feat(), actions, seen)

    actor = lambda pol, feat, dec: learner.actor({"pol": pol, "dec": dec}, feat)  # noqa: E731
    constants = params, state._replace(opt=None)
    value, dreams = loss_over_pieces(dream, params["val"], (), split(rows, learner.routes.dreams), constants)
    given = dreams, state.returns, state.hyper["entropy"]
    policy, returns, ranges, metrics = policy_losses(actor, params["pol"], *given, share, (params.get("dec"),))
    return {"policy": policy / count, "value": value / count}, returns[:, 0].reshape(lead), ranges, metrics


def evaluate_dream(
    learner: Learner, val: Any, params: Any, state: State, feat: Array, actions: Array
) -> tuple[Array, Evaluated]:
    """Critic losses `[H, R]` (equation 5) of dreams `feat [H + 1, R, F]`, and the dreams as the heads see them.
    `val` are the critic's parameters, which learn; `params` are constants."""
    chex.assert_equal_shape_prefix((feat, actions), 2)
    config = learner.config
    reward = learner.scalar("rew", params["rew"], feat).mean()
    raw, spread = reward, None
    if config.disagreement:
        spread = learner.guesses(params, feat[:-1], actions[:-1]).std(0).mean(-1)
        reward = reward.at[1:].add(-config.disagreement * spread)
    cont = jax.nn.sigmoid(learner.continues(params, feat))  # holds the discount
    slow = learner.scalar("val", state.slow, feat).mean()
    value = learner.scalar("val", val, feat)
    loss, seen = evaluate(reward, cont, value, slow, state.hyper["lam"], config.slow_scale)
    return loss, seen._replace(reward=raw, spread=spread)


def replay_value_loss(learner: Learner, params: Any, state: State, record: Record, feat: Array, boot: Array) -> Array:
    """Critic loss `[T - 1, B]` on the replayed sequence, bootstrapped with the dreamed returns `boot [B, T]`."""
    chex.assert_equal_shape((record.reward, boot))
    feat = feat.swapaxes(0, 1)
    reward, last, boot = record.reward.T, record.is_last.T, boot.T
    discount = (1.0 - record.is_terminal.T) * (1 - 1 / state.hyper["discount_horizon"])
    returns = ac.lambda_return(reward, boot, discount, last, state.hyper["lam"])
    value = learner.scalar("val", params["val"], feat)
    slow = learner.scalar("val", state.slow, sg(feat)).mean()
    now = TwoHot(value.logits[:-1], value.bins)
    return ac.twohot_critic_loss(now, returns, slow[:-1], 1.0 - last[:-1], learner.config.slow_scale)


# --- Wiring -----------------------------------------------------------------------------------------------------------
class State(NamedTuple):
    """Everything that learning changes."""

    params: dict[str, Any]
    slow: Any  # slow copy of the critic
    returns: ac.ReturnRange
    opt: Any
    hyper: dict[str, Array]
    step: Array  # updates so far


class Networks(NamedTuple):
    """The components; each is a flax module, its parameters live under the same name in `State.params`."""

    enc: encoders.Encoder
    dyn: RSSM
    dec: encoders.Decoder | None
    rew: Head
    con: Head
    pol: Head
    val: Head
    bar: Head | None = None  # what latents say of the tokens
    dis: Head | None = None  # one-step models of the next latent, with a leading ensemble axis in their parameters


def build(spec: Spec, config: Config, routes: Routes = PLAIN) -> Networks:
    """The networks of an agent for this environment; ValueError for observations that no encoder fits."""
    dtype = jnp.dtype(config.dtype)
    if not config.decoder and with_mask(spec.obs) is not spec.obs:
        raise ValueError(f"{spec.name} has an action mask, which the decoder predicts in dreams: keep the decoder")
    enc = encoders.Encoder(with_mask(spec.obs), config.depth, config.units, config.sensor_layers, dtype, routes)
    latents, deter = Categorical(config.stoch, config.classes, config.unimix), config.deter
    tokens = token_size(enc, spec)
    dyn = RSSM(spaces.action_size(spec.action), tokens, deter, config.hidden, latents, config.blocks, dtype=dtype)
    shape = config.depth, config.units, deter, latents.outputs, config.sensor_layers, config.blocks
    dec = encoders.Decoder(with_mask(spec.obs), *shape, dtype, routes) if config.decoder else None
    bar = Head({"tokens": tokens}, 0, 0, dtype=dtype) if config.representation == "barlow" else None
    model = partial(Head, layers=config.model_layers, units=config.units, dtype=dtype)
    policy = partial(Head, layers=config.policy_layers, units=config.units, dtype=dtype)
    rew, con = model({"bins": config.bins}, outscale=0.0), model({"logit": 1})
    pol, val = policy(spaces.head_sizes(spec.action), outscale=0.01), policy({"bins": config.bins}, outscale=0.0)
    dis = model({"stoch": latents.outputs}) if config.disagreement else None
    return Networks(enc, dyn, dec, rew, con, pol, val, bar, dis)


def init_params(nets: Networks, spec: Spec, key: Key, ensemble: int = 0) -> dict[str, Any]:
    """Fresh parameters `{component: tree}`."""
    heads = {name: getattr(nets, name) for name in ("rew", "con", "pol", "val", "bar") if getattr(nets, name)}
    params = World(spec, nets.enc, nets.dyn, nets.dec).init(key, heads)
    if nets.dis:
        inputs = jnp.concatenate([initial(nets.dyn, 1).feat(), jnp.zeros((1, nets.dyn.actions))], -1)
        keys = jax.random.split(jax.random.fold_in(key, len(params)), ensemble)
        params["dis"] = jax.vmap(nets.dis.init, (0, None))(keys, inputs)
    return params


@dataclass(frozen=True)
class Learner:
    """The networks over explicit parameters."""

    nets: Networks
    spec: Spec
    config: Config
    routes: Routes = PLAIN

    @property
    def world(self) -> World:
        """The part that other systems share: filtering, rolling out, decoding."""
        return World(self.spec, self.nets.enc, self.nets.dyn, self.nets.dec, self.routes)

    def actor(self, params: Any, feat: Array, legal: Array | None = None) -> Actor:
        """The policy at `feat [..., F]`, over `legal` actions `[..., A]`: in dreams those that the decoder predicts."""
        outputs = apply(self.nets.pol, params["pol"], feat)
        legal = self.world.legal(params.get("dec"), feat) if legal is None else legal
        return action_distribution(self.spec.action, outputs, self.config.actor_unimix, legal)

    def scalar(self, name: str, params: Any, feat: Array) -> TwoHot:
        """The reward ("rew") or value ("val") distribution; `params` are the head's own."""
        return TwoHot(apply(getattr(self.nets, name), params, feat)["bins"], symexp_bins(self.config.bins))

    def continues(self, params: Any, feat: Array) -> Array:
        """Logit of the discounted continue flag, `[...]`."""
        return apply(self.nets.con, params["con"], feat)["logit"][..., 0]

    def guesses(self, params: Any, feat: Array, action: Array) -> Array:
        """The ensemble's predictions of the next stoch `[K, ..., S * C]` from `feat [..., F]` and the action there."""
        head: Any = self.nets.dis
        inputs = jnp.concatenate([feat, self.world.encode(action).astype(feat.dtype)], -1)
        return jax.vmap(lambda p: apply(head, p, inputs)["stoch"])(params["dis"])

    def noise(self, key: Key, batch: int, length: int, share: Share = ALONE) -> Noise:
        """Draw all random numbers of an update of `length` records, the context included.
        They come from one draw, as a generator takes longer to compile than to run."""
        horizon, stoch, width = self.config.imag_length, self.config.stoch, spaces.noise_size(self.spec.action)
        sizes = stoch, (horizon + 1) * width, horizon * stoch
        draw = share.uniform(key, (batch, length - 1, sum(sizes)))
        observe, plan, imagine = jnp.split(draw, (sizes[0], sizes[0] + sizes[1]), -1)
        plan = spaces.noise(self.spec.action, plan.reshape(*plan.shape[:2], horizon + 1, width))
        return Noise(observe, plan, imagine.reshape(*imagine.shape[:2], horizon, stoch))

    def rollout(self, params: Any, starts: Latent, plan: Array, uniform: Array) -> tuple[Latent, Array]:
        """Dreams `[H + 1, R, ...]` under the policy, without gradients; the noise is time first."""
        params = {name: cast(params[name], self.config.dtype) for name in ("dyn", "pol", "dec") if name in params}
        actor = partial(self.actor, params)
        return self.world.rollout(params, starts, actor, plan, uniform, self.config.temperature)


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build Dreamer V3 for an environment.
    The replay extras are the posterior latents: `deter [N, D]` in the compute type and `stoch` uint8 `[N, S]` class
    indices. They are refreshed by every update that reads them."""
    nets = build(spec, config, routes())
    learner = Learner(nets, spec, config, routes())
    world, tx = learner.world, optim.laprop(config.agc)

    def init(key: Key, hyper: Any) -> State:
        params = init_params(nets, spec, key, config.ensemble)
        slow = jax.tree.map(jnp.copy, params["val"])
        hyper = optim.numbers(hyper)
        return State(params, slow, ac.initial_range(), tx.init(params), hyper, jnp.zeros((), jnp.int32))

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> Acted:
        def choose(latent: Latent, key: Key) -> Array:
            policy = learner.actor(state.params, latent.feat(), legal_of(step))
            return policy.mode() if mode == "greedy" else policy.sample(key)

        return world.act(state.params, carry, step, key, mode, choose)

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record = share.local_rows(batch.record)
        noise = learner.noise(key, *record.reward.shape, share=share)
        rate = state.hyper["lr"] * optim.warmup(state.step, config.warmup)
        rate *= optim.decay(state.step, config.lr_decay_updates)
        objective = lambda params: loss(learner, params, state, record, noise, share)  # noqa: E731
        new, (latents, ranges), metrics = gradient_step(state, objective, tx, rate, share=share)
        slow = ac.track(new.params["val"], state.slow, config.slow_rate)
        return new._replace(slow=slow, returns=ranges), share.batch_rows(world.pack(latents)), metrics

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        params, discount = state.params, 1 - 1 / state.hyper["discount_horizon"]

        def predict(feat: Array) -> tuple[Array, Array]:
            reward = learner.scalar("rew", params["rew"], feat).mean()
            cont = jax.nn.sigmoid(learner.continues(params, feat)) / discount  # the flag was learnt discounted
            return reward, jnp.minimum(1.0, cont)

        actor = partial(learner.actor, params)
        return world.dream(params, context, actions, actor, key, horizon, predict, config.temperature)

    sampler = "online" if config.online else "uniform"
    step = TrainStep(update, config.batch_size, config.batch_length + 1, sampler, shared=True)
    return Agent(init, world.reset, act, {"all": step}, imagine, schedule(config), hyper_of(config))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then collecting and learning in turn so that each step is replayed `train_ratio` times."""
    per_update = config.batch_size * config.batch_length / config.train_ratio  # environment steps
    steps, updates = pace(per_update, config.envs)
    body = (Collect(steps), Train("all", updates))
    return prefill(config.prefill, config.envs, config.batch_length + 1), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
def _size(deter: int, hidden: int, classes: int, depth: int, units: int) -> Config:
    return Config(deter=deter, hidden=hidden, classes=classes, depth=depth, units=units)


NANO = Config(
    deter=32, hidden=32, stoch=4, classes=8, units=32, depth=2, bins=41, sensor_layers=1, policy_layers=1,
    envs=4, batch_size=16, batch_length=10, imag_length=8, train_ratio=80.0, prefill=256, capacity=100_000,
    lr=1e-2, entropy=3e-2, warmup=100, free_nats=0.1,
)  # fmt: skip
MICRO = replace(
    NANO, deter=64, hidden=64, stoch=8, units=64, batch_length=16, imag_length=15, train_ratio=64.0,
    lr=3e-3, entropy=1e-2, free_nats=1.0,
)  # fmt: skip
SMALL = replace(
    MICRO, deter=256, hidden=128, stoch=16, classes=16, units=128, depth=8, bins=255, policy_layers=2,
    envs=2, batch_size=8, train_ratio=32.0, prefill=1024, lr=1e-3, entropy=3e-3,
)  # fmt: skip
PRESETS: dict[str, Config] = {
    "1m": _size(512, 64, 4, 4, 64),
    "12m": _size(2048, 256, 16, 16, 256),
    "25m": _size(3072, 384, 24, 24, 384),
    "50m": _size(4096, 512, 32, 32, 512),
    "100m": _size(6144, 768, 48, 48, 768),
    "200m": _size(8192, 1024, 64, 64, 1024),
    "400m": _size(12288, 1536, 96, 96, 1536),
    "nano": NANO,
    "micro": MICRO,
    "small": SMALL,
}
"""Published sizes by parameter count, and presets whose networks and learning rates suit two CPU cores: nano and micro
for numbers and planes, small for images of 64 x 64."""

SYSTEM = System(
    make, Config, PRESETS, default="nano", year=2023, obeys=("legal",), mixed=True, offline=True,
    copies={"slow": "val"}, renamed={"horizon": "discount_horizon", "decay": "lr_decay_updates"},
    summary="recurrent state-space model, actor-critic inside dreams (Hafner et al. 2023)",
    paper="Hafner et al., Mastering Diverse Domains through World Models",
    sees="CNN or MLP, by the kind of observation; a latent of categoricals",
    predicts="RSSM: block GRU and categorical prior; reward and continue heads; decoder",
    acts="actor-critic on lambda-returns inside dreams",
)  # fmt: skip
