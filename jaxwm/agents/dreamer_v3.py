"""Dreamer V3: mastering diverse domains through world models (Hafner et al. 2023; Nature 2025).

Sees through convolutions or an MLP, predicts with a recurrent state-space model of categorical latents, acts with an
actor-critic trained inside dreams, and alternates collecting and learning at a fixed train ratio.

Letters: B batch, T trained records of a sequence (one context record more is read), D deter, S latents, C classes,
H horizon, R = B * T starts of dreams. Dreams are time first: `[H + 1, R, ...]`.

Where the paper and the official code differ, this file does the following:

- discrete actors mix 1 % of the uniform policy, as in the paper (the code's categorical head ignores the setting);
  `actor_unimix=0` gives the code's behaviour;
- `is_terminal` means a true end, as in the paper (the code's Atari wrapper also marks time limits);
- the train ratio of Atari-100k is 256, as in the code (128 is reported for the paper's runs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, action_distribution
from jaxwm.distributions import TwoHot, symexp_bins, twohot
from jaxwm.errors import check_range, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import PLAIN, Routes, cut, join, routes, terminal
from jaxwm.learning.share import ALONE, Share
from jaxwm.models import rssm
from jaxwm.models.latent_world import Carry, World
from jaxwm.models.rssm import RSSM, Categorical, Latent, flatten
from jaxwm.nets import encoders
from jaxwm.nets.layers import Head, apply
from jaxwm.schedule import pace
from jaxwm.types import FOREVER, Agent, Array, Batch, Collect, Dream, Key, Record, Repeat, Spec, Step, Train, TrainStep

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class Config:
    """Settings of Dreamer V3. Defaults are the published ones at 12 million parameters."""

    # Size.
    deter: int = 2048
    """Width of the recurrent state."""
    hidden: int = 256
    """Width of the layers inside the recurrence, the prior and the posterior."""
    stoch: int = 32
    """Number of categorical latents."""
    classes: int = 16
    """Classes of each latent."""
    units: int = 256
    """Width of all MLPs."""
    depth: int = 16
    """Convolution channels; the stages have 2, 3, 4 and 4 times as many."""
    blocks: int = 8
    """Blocks of the recurrent state; deter must be a multiple."""
    bins: int = 255
    """Bins of the reward and value distributions."""
    sensor_layers: int = 3
    """Layers of the vector encoder and decoder."""
    policy_layers: int = 3
    """Layers of actor and critic."""
    model_layers: int = 1
    """Layers of the reward and continue heads."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments, norms and losses stay float32. Use bfloat16 on GPUs and TPUs."""

    # Data.
    envs: int = 1
    """Parallel environments of each member."""
    batch_size: int = 16
    """Sequences of an update."""
    batch_length: int = 64
    """Trained records of a sequence; one more is read as context."""
    train_ratio: float = 256.0
    """Replayed records per environment step."""
    prefill: int = 1024
    """Environment steps of random play before learning starts."""
    capacity: int = 5_000_000
    """Replay size of a member in environment steps (never more than the run collects)."""
    online: bool = True
    """Give every new sequence out once before sampling uniformly."""

    # World model.
    rec_scale: float = 1.0
    rew_scale: float = 1.0
    con_scale: float = 1.0
    dyn_scale: float = 1.0
    rep_scale: float = 0.1
    free_nats: float = 1.0
    """KL below which neither prior nor posterior is pushed."""
    unimix: float = 0.01
    """Share of the uniform distribution in every latent."""

    # Behaviour.
    imag_length: int = 15
    """Steps of a dream."""
    temperature: float = 1.0
    """Temperature of the latents in dreams: above 1 they are less certain, and harder to exploit (Ha & Schmidhuber
    2018)."""
    disagreement: float = 0.0
    """Reward taken off in dreams for each unit by which an ensemble of one-step models disagrees there; the ensemble
    exists only where this is not 0."""
    ensemble: int = 5
    """Models of that ensemble (Sekar et al. 2020, who seek the disagreement that is avoided here)."""
    policy_scale: float = 1.0
    value_scale: float = 1.0
    repval_scale: float = 0.3
    """Weight of the critic loss on replayed sequences, whose gradient also shapes the model."""
    slow_scale: float = 1.0
    """Weight of the pull towards the slow critic."""
    slow_rate: float = 0.02
    """Share of the critic that enters the slow critic in each update."""
    actor_unimix: float = 0.01
    """Share of the uniform policy in discrete actors."""
    horizon: float = 333.0
    """Effective horizon in steps; the discount is 1 - 1 / horizon."""
    lam: float = 0.95
    """Lambda of the returns."""
    entropy: float = 3e-4
    """Weight of the policy's entropy. 3e-4 belongs to learning rate 4e-5; raise both together."""

    # Optimiser.
    lr: float = 4e-5
    """Learning rate after the warm-up."""
    warmup: int = 1000
    """Updates over which the learning rate rises from 0."""
    decay: int = 0
    """Updates over which it falls linearly to 0, counted from the start; 0 for a constant rate, as published."""
    agc: float = 0.3
    """Largest gradient of a tensor relative to its weights."""

    def __post_init__(self):
        check_types(self)
        check_range(self, "deter hidden stoch units depth blocks envs batch_size imag_length capacity", least=1)
        check_range(self, "classes", least=1, most=256)  # the replay keeps them as bytes
        check_range(self, "batch_length", least=2)  # the critic's replay loss needs a next record
        check_range(self, "sensor_layers policy_layers model_layers prefill warmup decay free_nats", least=0)
        check_range(self, "entropy disagreement", least=0)
        check_range(self, "ensemble", least=2)
        check_range(self, "rec_scale rew_scale con_scale dyn_scale rep_scale", least=0)
        check_range(self, "policy_scale value_scale repval_scale slow_scale", least=0)
        check_range(self, "unimix actor_unimix lam", least=0, most=1)
        check_range(self, "slow_rate", above=0, most=1)
        check_range(self, "train_ratio lr agc temperature", above=0)
        check_range(self, "horizon", above=1)
        if self.deter % self.blocks:
            raise ValueError(f"deter ({self.deter}) must be a multiple of blocks ({self.blocks})")
        if self.bins < 3 or self.bins % 2 == 0:  # symmetric bins with one at 0
            raise ValueError(f"need an odd number of bins, at least 3, got {self.bins}")


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
}
"""Published sizes by parameter count, and small presets whose networks and learning rates suit two CPU cores."""


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
    dec: encoders.Decoder
    rew: Head
    con: Head
    pol: Head
    val: Head
    dis: Head | None = None  # one-step models of the next latent, with a leading ensemble axis in their parameters


def build(spec: Spec, config: Config, routes: Routes = PLAIN) -> Networks:
    """The networks of an agent for this environment; ValueError for observations that no encoder fits."""
    dtype = jnp.dtype(config.dtype)
    enc = encoders.Encoder(spec.obs, config.depth, config.units, config.sensor_layers, dtype, routes)
    lead = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), spec.obs)
    tokens, _ = jax.eval_shape(enc.init_with_output, jax.random.key(0), lead)
    latents = Categorical(config.stoch, config.classes, config.unimix)
    dyn = RSSM(
        spaces.action_size(spec.action),
        tokens.shape[-1],
        config.deter,
        config.hidden,
        latents,
        config.blocks,
        dtype=dtype,
    )
    dec = encoders.Decoder(
        spec.obs, config.depth, config.units, config.deter, config.stoch * config.classes, config.sensor_layers,
        config.blocks, dtype, routes,
    )  # fmt: skip
    model_layers, policy_layers = config.model_layers, config.policy_layers
    return Networks(
        enc,
        dyn,
        dec,
        rew=Head({"bins": config.bins}, model_layers, config.units, 0.0, dtype),
        con=Head({"logit": 1}, model_layers, config.units, 1.0, dtype),
        pol=Head(spaces.head_sizes(spec.action), policy_layers, config.units, 0.01, dtype),
        val=Head({"bins": config.bins}, policy_layers, config.units, 0.0, dtype),
        dis=Head({"stoch": config.stoch * config.classes}, model_layers, config.units, 1.0, dtype)
        if config.disagreement
        else None,
    )


def init_params(nets: Networks, spec: Spec, key: Key, ensemble: int = 0) -> dict[str, Any]:
    """Fresh parameters `{component: tree}`."""
    heads = {name: getattr(nets, name) for name in ("rew", "con", "pol", "val")}
    params = World(spec, nets.enc, nets.dyn, nets.dec).init(key, heads)
    if nets.dis:
        inputs = jnp.concatenate([rssm.initial(nets.dyn, 1).feat(), jnp.zeros((1, nets.dyn.actions))], -1)
        keys = jax.random.split(jax.random.fold_in(key, len(params)), ensemble)
        params["dis"] = jax.vmap(nets.dis.init, (0, None))(keys, inputs)
    return params


def make(spec: Spec, config: Config = PRESETS["12m"]) -> Agent:
    """Dreamer V3 for an environment.

    The replay extras are the posterior latents: `deter [N, D]` in the compute type and `stoch` uint8 `[N, S]` class
    indices. They are refreshed by every update that reads them.
    """
    nets = build(spec, config, routes())
    learner = Learner(nets, spec, config, routes())
    world = learner.world
    tx = optim.laprop(config.agc)

    def init(key: Key, hyper: Any) -> State:
        params = init_params(nets, spec, key, config.ensemble)
        slow = jax.tree.map(jnp.copy, params["val"])
        hyper = optim.numbers(hyper)
        return State(params, slow, ac.initial_range(), tx.init(params), hyper, jnp.zeros((), jnp.int32))

    def reset(state: State, num_envs: int) -> Carry:
        return world.reset(num_envs)

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> tuple[Carry, Array, dict[str, Array]]:
        def choose(latent: Latent, key: Key) -> Array:
            policy = learner.actor(state.params, latent.feat())
            return policy.mode() if mode == "greedy" else policy.sample(key)

        carry = world.act(state, carry, step, key, mode, choose)
        return carry, carry.action, world.pack(carry.latent)

    def update(
        state: State, batch: Batch, key: Key, share: Share = ALONE
    ) -> tuple[State, dict[str, Array], dict[str, Array]]:
        size, length = batch.record.reward.shape
        noise = share.part(learner.noise(key, share.whole(size), length))
        grads, aux = jax.grad(learner.loss, has_aux=True)(state.params, state, share.batch(batch.record), noise, share)
        latents, returns, metrics = aux
        grads, metrics = share.mean(grads), share.mean(metrics)
        direction, opt = tx.update(grads, state.opt, state.params)
        rate = state.hyper["lr"] * optim.warmup(state.step, config.warmup) * optim.decay(state.step, config.decay)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        metrics["grad_norm"] = optim.norm(grads)
        slow = ac.track(params["val"], state.slow, config.slow_rate)
        feedback = share.back(world.pack(latents))
        return State(params, slow, returns, opt, state.hyper, state.step + 1), feedback, metrics

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        world.check_dream(context, actions, horizon)
        return learner.dream(state, context, actions, key, horizon)

    sampler = "online" if config.online else "uniform"
    step = TrainStep(update, config.batch_size, config.batch_length + 1, sampler, shared=True)
    hyper = dict(lr=config.lr, entropy=config.entropy, horizon=config.horizon, lam=config.lam)
    return Agent(init, reset, act, {"all": step}, imagine, schedule(config), hyper)


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then collecting and learning in turn so that each step is replayed `train_ratio` times."""
    per_update = config.batch_size * config.batch_length / config.train_ratio  # environment steps
    steps, updates = pace(per_update, config.envs)
    body = (Collect(steps), Train("all", updates))
    prefill = max(config.prefill, config.envs * (config.batch_length + 1))  # at least one whole sequence
    return Collect(prefill, "random"), Repeat(FOREVER, body)


class Noise(NamedTuple):
    """The random numbers of an update, as drawn for the whole batch."""

    observe: Array  # [B, T, S], uniform
    plan: Array  # [B, T, H + 1, ...], see `acting.noise`
    imagine: Array  # [B, T, H, S], uniform


class Judged(NamedTuple):
    """What heads say of a dream, time first."""

    reward: Array  # [H + 1, R]
    cont: Array  # [H + 1, R], discounted
    value: Array  # [H + 1, R]
    returns: Array  # [H, R]
    weight: Array  # [H, R], probability that the dream goes on until there
    spread: Array | None  # [H, R], disagreement of the ensemble


@dataclass(frozen=True)
class Learner:
    """The mathematics of one update, over explicit parameters."""

    nets: Networks
    spec: Spec
    config: Config
    routes: Routes = PLAIN

    @property
    def world(self) -> World:
        return World(self.spec, self.nets.enc, self.nets.dyn, self.nets.dec, self.routes)

    # Small views on the networks.

    def actor(self, params: Any, feat: Array) -> Actor:
        return action_distribution(
            self.spec.action, apply(self.nets.pol, params["pol"], feat), self.config.actor_unimix
        )

    def scalar(self, name: str, params: Any, feat: Array) -> TwoHot:
        """The reward ("rew") or value ("val") distribution; `params` are the head's own."""
        return TwoHot(apply(getattr(self.nets, name), params, feat)["bins"], symexp_bins(self.config.bins))

    def continues(self, params: Any, feat: Array) -> Array:
        """Logit of the discounted continue flag, `[...]`."""
        return apply(self.nets.con, params["con"], feat)["logit"][..., 0]

    def guesses(self, params: Any, feat: Array, action: Array) -> Array:
        """The ensemble's predictions of the next stoch `[K, ..., S * C]` from `feat [..., F]` and the action there."""
        head = self.nets.dis
        assert head is not None
        inputs = jnp.concatenate([feat, self.world.encode(action).astype(feat.dtype)], -1)
        return jax.vmap(lambda p: apply(head, p, inputs)["stoch"])(params["dis"])

    # The loss.

    def noise(self, key: Key, batch: int, length: int) -> Noise:
        """All random numbers of an update of `length` records, the context included.

        They come from one draw, as a generator takes longer to compile than to run.
        """
        horizon, stoch, width = self.config.imag_length, self.config.stoch, spaces.noise_size(self.spec.action)
        sizes = stoch, (horizon + 1) * width, horizon * stoch
        draw = jax.random.uniform(key, (batch * (length - 1) * sum(sizes),)).reshape(batch, length - 1, sum(sizes))
        observe, plan, imagine = jnp.split(draw, (sizes[0], sizes[0] + sizes[1]), -1)
        plan = spaces.noise(self.spec.action, plan.reshape(*plan.shape[:2], horizon + 1, width))
        return Noise(observe, plan, imagine.reshape(*imagine.shape[:2], horizon, stoch))

    def loss(self, params: Any, state: State, record: Record, noise: Noise, share: Share = ALONE):
        """The total loss of sequences `[B, T + 1]`, and `(latents [B, T], return range, metrics)`."""
        config = self.config
        with jax.named_scope("world_model"):
            latents, losses, metrics = self.world_model(params, record, noise.observe, state.hyper["horizon"])
        record = jax.tree.map(lambda x: x[:, 1:], record)  # the first one was context
        with jax.named_scope("behaviour"):
            behaviour, returns, ranges, more = self.behaviour(params, state, latents, noise, share)
            losses, metrics = losses | behaviour, metrics | more
        with jax.named_scope("replay_value"):
            losses["repval"] = self.replay_value(params, state, record, latents.feat(), returns).mean()
        if config.disagreement:
            losses["dis"] = self.ensemble_loss(params, jax.tree.map(sg, latents), record).mean()
        metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
        total = sum(getattr(config, f"{name}_scale", 1.0) * loss for name, loss in losses.items())
        return total, (jax.tree.map(sg, latents), ranges, metrics | {"loss": total})

    def world_model(self, params: Any, record: Record, uniform: Array, horizon: float | Array):
        """Posterior latents `[B, T]`, the mean losses of everything that is predicted from them, and metrics."""
        config, world = self.config, self.world
        context = jax.tree.map(lambda x: x[:, 0], world.unpack(record.extras))
        latents, post, prior = world.infer(params, record, uniform, context)
        record = jax.tree.map(lambda x: x[:, 1:], record)
        dyn, rep = rssm.kl_losses(post, prior, config.free_nats)
        losses: dict[str, Array] = {"dyn": dyn, "rep": rep}
        feat = latents.feat()
        reward = self.scalar("rew", params["rew"], feat)
        losses["rew"] = reward.loss(twohot(record.reward, reward.bins))
        target = (1.0 - record.is_terminal) * (1 - 1 / horizon)
        logit = self.continues(params, feat)
        losses["con"] = jax.nn.softplus(logit) - logit * target
        losses = {name: loss.mean() for name, loss in losses.items()}
        losses["rec"], metrics = world.reconstruction(params["dec"], latents, record.obs)
        return latents, losses, metrics

    def ensemble_loss(self, params: Any, latents: Latent, record: Record) -> Array:
        """Squared errors `[B, T - 1]` of all one-step models, summed; 0 across the start of an episode."""
        guess = self.guesses(params, latents.feat()[:, :-1], record.action[:, :-1])
        error = jnp.square(guess - flatten(latents.stoch)[:, 1:].astype(jnp.float32)).sum((0, -1))
        return error * (1.0 - record.is_first[:, 1:])

    def rollout(self, params: Any, starts: Latent, plan: Array, uniform: Array) -> tuple[Latent, Array]:
        """Dreams `[H + 1, R, ...]` under the policy, without gradients; the noise is time first."""
        actor = lambda feat: self.actor(params, feat)  # noqa: E731
        return self.world.rollout(params, starts, actor, plan, uniform, self.config.temperature)

    def behaviour(self, params: Any, state: State, latents: Latent, noise: Noise, share: Share = ALONE):
        """Actor and critic learn in dreams that start at every latent `[B, T]`.

        Returns the mean losses, the lambda-returns of the starts `[B, T]`, the new return range, and metrics. Dreams
        are rolled out and judged a few at a time; advantages then wait for the range of all returns.
        """
        lead, flat = latents.deter.shape[:2], lambda x: sg(x).reshape(-1, *x.shape[2:])
        starts, plan, uniform = jax.tree.map(flat, (latents, noise.plan, noise.imagine))
        pieces = cut((starts, plan, uniform), self.routes.dreams)
        count = len(starts.deter) * self.config.imag_length

        def judge(val, _, piece, shared):
            (starts, plan, uniform), (params, state) = piece, shared
            dream, actions = self.rollout(params, starts, plan.swapaxes(0, 1), uniform.swapaxes(0, 1))
            feat = dream.feat()
            loss, judged = self.judge(val, params, state, feat, actions)
            return loss.sum(), (feat, actions, judged)

        value_loss, (feat, actions, judged) = terminal(
            judge, params["val"], (), pieces, (params, state._replace(opt=None))
        )
        returns = join(judged.returns.swapaxes(1, 2))  # [R, H]
        ranges = state.returns.update(share.gather(returns))
        advantage = (judged.returns - judged.value[:, :-1]) / ranges.scale()

        def act(pol, _, piece, hyper):
            feat, actions, *rest = piece
            loss, entropy = self.policy_loss(pol, hyper, feat[:-1], actions[:-1], *rest)
            return loss.sum(), entropy.mean()

        data = feat, actions, advantage, judged.weight
        policy_loss, entropy = terminal(act, params["pol"], (), data, state.hyper)
        center = share.mean(advantage.mean())
        metrics = {
            "dream/reward": judged.reward.mean(),
            "dream/return": returns[:, 0].mean(),
            "dream/continue": judged.cont.mean(),
            "dream/value": judged.value.mean(),
            "policy/entropy": entropy.mean(),
            "policy/advantage_std": jnp.sqrt(share.mean(jnp.square(advantage - center).mean())),
            "policy/return_scale": ranges.scale(),
        }
        if self.config.disagreement:
            metrics["dream/disagreement"] = judged.spread.mean()
        losses = {"policy": policy_loss / count, "value": value_loss / count}
        return losses, returns[:, 0].reshape(lead), ranges, metrics

    def judge(self, val: Any, params: Any, state: State, feat: Array, actions: Array) -> tuple[Array, Judged]:
        """Critic losses `[H, R]` of dreams `feat [H + 1, R, F]`, and what the rest of the world says of them."""
        config = self.config
        reward = self.scalar("rew", params["rew"], feat).mean()
        raw, spread = reward, None
        if config.disagreement:
            spread = self.guesses(params, feat[:-1], actions[:-1]).std(0).mean(-1)
            reward = reward.at[1:].add(-config.disagreement * spread)
        cont = jax.nn.sigmoid(self.continues(params, feat))
        value = self.scalar("val", val, feat)
        guess = sg(value.mean())
        slow = self.scalar("val", state.slow, feat).mean()
        # The predicted continue holds the discount; the root's own flag counts as well.
        weight = jnp.cumprod(cont, 0)[:-1]
        returns = ac.lambda_return(reward, guess, cont, jnp.zeros_like(cont), state.hyper["lam"])
        target = twohot(returns, value.bins) + config.slow_scale * twohot(slow[:-1], value.bins)
        loss = weight * TwoHot(value.logits[:-1], value.bins).loss(target)
        return loss, Judged(raw, cont, guess, returns, weight, spread)

    def policy_loss(
        self, pol: Any, hyper: Any, feat: Array, actions: Array, advantage: Array, weight: Array
    ) -> tuple[Array, Array]:
        """REINFORCE losses and entropies `[H, R]` at `feat [H, R, F]`."""
        policy = self.actor({"pol": pol}, feat)
        entropy = policy.entropy()
        return -weight * (policy.log_prob(actions) * advantage + hyper["entropy"] * entropy), entropy

    def replay_value(self, params: Any, state: State, record: Record, feat: Array, boot: Array) -> Array:
        """Critic loss `[T - 1, B]` on the replayed sequence, bootstrapped with the dreamed returns `boot [B, T]`."""
        feat = feat.swapaxes(0, 1)
        reward, last, boot = record.reward.T, record.is_last.T, boot.T
        discount = (1.0 - record.is_terminal.T) * (1 - 1 / state.hyper["horizon"])
        returns = ac.lambda_return(reward, boot, discount, last, state.hyper["lam"])
        value = self.scalar("val", params["val"], feat)
        slow = self.scalar("val", state.slow, sg(feat)).mean()
        target = twohot(returns, value.bins) + self.config.slow_scale * twohot(slow[:-1], value.bins)
        return (1.0 - last[:-1]) * TwoHot(value.logits[:-1], value.bins).loss(target)

    # Dreams to look at.

    def dream(self, state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        """Filter `context [B, L]` from its stored first latent, then roll on; see `Agent.imagine`."""
        params, discount = state.params, 1 - 1 / state.hyper["horizon"]
        actor = lambda feat: self.actor(params, feat)  # noqa: E731
        latent, taken = self.world.dream(params, context, actions, actor, key, horizon, self.config.temperature)
        feat = latent.feat()
        reward = self.scalar("rew", params["rew"], feat).mean()
        cont = jax.nn.sigmoid(self.continues(params, feat)) / discount  # the flag was learnt discounted
        dream = Dream(self.world.decode(params, latent), reward, jnp.minimum(1.0, cont), taken, latent)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), dream)
