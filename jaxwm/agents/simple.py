"""SimPLe: a model-free learner inside a video model (Kaiser et al. 2020, model-based reinforcement learning for Atari).

Sees a stack of four frames; predicts the next frame pixel by pixel, or cell by cell, and its reward, with bits for what
cannot be known; acts with a policy that learns by PPO in dreams of 50 steps, which begin at random real frames and have
no ends. Rounds of collecting, of learning the model and of learning the policy follow each other.

Letters: N environments, B batch, K frames of a stack, T targets of a window, H steps of a dream, Z bits.

The bits: an encoder that sees the target too says what happened. An LSTM learns to predict its bits from what is seen
without the target, and draws them in dreams. `bits=0` is the deterministic model.

What differs from the official code, or the paper leaves open:

- convolutions have this library's layers (RMS norm, SiLU; halving by cells of 2 x 2), no recurrent state and no
  dropout; the smallest planes are joined by dense layers; places are learned; Adam stands for Adafactor, so the model's
  learning rate is not the published one;
- images are as the environment gives them, such as 64 x 64, and not of 105 x 80;
- rewards in dreams are expected ones, not the likeliest;
- every dream begins at a random frame (there the first of each batch begins an episode), none at a last one;
- `still` teaches that nothing moves after an end, with rewards of 0. As published, nothing is learned of what follows;
- one temperature for evaluation, instead of the best of six;
- 0/1 planes are predicted with a cross-entropy for each cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import ppo
from jaxwm.control.frame_policy import Eyes, tempered
from jaxwm.control.policy import Actor, action_distribution, forced
from jaxwm.distributions import sg, twohot
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, check_bins, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models import frame_predictor as video
from jaxwm.nets.layers import Head, apply
from jaxwm.nets.quantiser import picture
from jaxwm.nets.sensors import sensors
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, Word
from jaxwm.types import Acted, Agent, Array, Batch, Box, Dream, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of SimPLe. Defaults are the published ones, for Atari-100k, where the networks have them."""

    stack: Count = 4  # Frames that model and policy see, K.
    # World model.
    depth: Count = 96  # Channels of the first planes.
    patch: Count = 1  # Pixels of the sides of the squares that are cut out first.
    levels: Natural = 5  # Times that planes are halved.
    doublings: Natural = 3  # Times that channels are doubled with it.
    kernel: Literal[1, 3, 5] = 3  # Sides of convolutions; with 1 only halving and the smallest planes join cells.
    mixes: Count = 1  # Residual layers between all cells of the smallest planes, before the bits and again after them.
    bits: Natural = 128  # Bits of what cannot be known, Z; 0: a deterministic model.
    chunk: int = 8  # Bits that are predicted at once.
    lstm_units: Count = 128  # Width of the LSTM that predicts the bits.
    bit_noise: Fraction = 0.1  # Share of the bits that are turned round in learning.
    ramp: Natural = 40_000
    """Updates of the model over which bits become discrete, and the next two shares rise from 0; 0: at once."""
    predicted_bits: Fraction = 0.5  # Share of the bits that the LSTM draws in learning.
    own_frames: Fraction = 1.0  # Share of the frames that are the model's own in windows (scheduled sampling).
    drop_bits: Fraction = 0.2  # Share of the rows that learn without bits, so that actions are learned first.
    drop_ramp: Natural = 20_000  # Updates of the model over which that share falls from 1; 0: at once.
    cutoff: Amount = 0.03  # Cross-entropy of a pixel, in nats, below which it is not pushed further.
    frame_scale: Amount = 1.0  # Weight of the mean cross-entropy of a pixel.
    sign_rewards: bool = True  # Learn only the sign of rewards, as published; else their value in `bins` bins.
    bins: int = 255  # Bins of rewards that are not signs.
    still: bool = False  # Learn that nothing moves after the end of an episode.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the model; parameters, norms and losses stay float32. Use bfloat16 on GPUs."""
    # Behaviour.
    policy_depth: Count = 32  # Channels of the policy's first two convolutions; two more have twice as many.
    policy_layers: Count = 1  # Layers of the policy's eyes, where it sees planes.
    units: Count = 512  # Width of these layers.
    dreams: Count = 16  # Dreams of an update of the policy.
    imag_length: Count = 50  # Steps of a dream, H.
    epochs: Count = 3  # Passes over these steps in an update.
    minibatches: Count = 40  # Minibatches of a pass; a divisor of dreams times steps.
    clip: Varies[Positive] = 0.1  # How far the probability ratio counts, epsilon.
    value_scale: Varies[Amount] = 1.0  # Weight of the value loss (half the squared error).
    entropy: Varies[Amount] = 0.01  # Weight of the policy's entropy.
    discount: Varies[Fraction] = 0.99  # Discount per step.
    lam: Varies[Fraction] = 0.95  # Lambda of the advantage estimates.
    temperature: Amount = 0.5  # Temperature of the policy in evaluation; 0 takes the likeliest action.
    # Order.
    envs: Count = 1  # Parallel environments of each member.
    rounds: Natural = 15  # Rounds of collecting and learning; 0: until the run ends.
    collect: Count = 6400  # Environment steps of a round; those of the first are random.
    first_model_updates: Count = 45_000  # Updates of the model in the first round.
    model_updates: Count = 15_000  # The same in the others.
    policy_updates: Count = 1000  # Updates of the policy in a round.
    capacity: int = 100_000  # Replay size of a member in environment steps (never more than the run collects).
    # Optimisers.
    model_batch: Count = 4  # Windows of an update.
    targets: Count = 6  # Frames that are predicted in a window, T.
    model_lr: Varies[Positive] = 3e-4  # Learning rate of the model.
    policy_lr: Varies[Positive] = 1e-4  # Learning rate of the policy.
    max_grad_norm: Positive = 1.0  # Norm at which gradients are clipped.

    def __post_init__(self):
        check_types(self)
        check_bins(self.bins)
        check_number("chunk", self.chunk, least=1, most=12, whole=True)
        check_number("capacity", self.capacity, least=(self.stack + self.targets) * self.envs, whole=True)
        if self.bits % self.chunk:
            raise ValueError(f"bits must be a multiple of chunk ({self.chunk}), not {self.bits}")
        if self.dreams * self.imag_length % self.minibatches:
            raise ValueError(
                f"minibatches must divide the {self.dreams * self.imag_length} steps of an update (dreams * "
                f"imag_length), not {self.minibatches}"
            )

    @property
    def tokens(self) -> int:
        """Tokens that the bits are predicted in."""
        return self.bits // self.chunk


# --- Networks ---------------------------------------------------------------------------------------------------------
class Player(nn.Module):
    """Policy and value of stacks `[R, H, W, K C]`, which share their eyes: `{output: [R, size]}`."""

    sizes: dict[str, int]
    config: Config

    @nn.compact
    def __call__(self, stack: Array) -> dict[str, Array]:
        config = self.config
        x = Eyes(config.policy_depth, config.policy_layers, config.units, name="eyes")(stack)
        return Head(self.sizes, 1, config.units, outscale=0.01, name="heads")(x)


@dataclass(frozen=True)
class Networks:
    """Model and policy over explicit parameters `{"model", "policy"}`, for one kind of environment."""

    spec: Spec
    config: Config

    @property
    def sensor(self) -> tuple[str, jax.ShapeDtypeStruct]:
        """Name and shape of what is seen."""
        return picture(self.spec.obs, "simple")

    @property
    def model(self) -> video.Predictor:
        """The video model."""
        c, frame = self.config, self.sensor[1]
        sizes = c.depth, c.patch, c.levels, c.doublings, c.kernel, c.mixes, c.bits, c.chunk, c.lstm_units
        rewards = 3 if c.sign_rewards else c.bins
        return video.Predictor(tuple(frame.shape), frame.dtype == jnp.bool_, *sizes, rewards, jnp.dtype(c.dtype))

    @property
    def player(self) -> Player:
        """Policy and value."""
        return Player(spaces.head_sizes(self.spec.action) | {"value": 1}, self.config)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters."""
        k_model, k_policy = jax.random.split(key)
        stack, action = self.blank(1), jnp.zeros((1, spaces.action_size(self.spec.action)))
        return {
            "model": self.model.init(k_model, stack, action), "policy": self.player.init(k_policy, self._flat(stack)),
        }  # fmt: skip

    def blank(self, rows: int) -> Array:
        """Stacks `[rows, K, H, W, C]` of nothing."""
        frame = self.sensor[1]
        return jnp.zeros((rows, self.config.stack, *frame.shape), frame.dtype)

    def frames(self, obs: Any) -> Array:
        """The picture `[..., H, W, C]` of an observation."""
        return sensors(obs)[self.sensor[0]]

    def part(self, params: Any, method: str, *args: Any) -> Any:
        """A method of the model."""
        return apply(self.model, params, *args, method=method)

    def judge(self, params: Any, stack: Array) -> tuple[Actor, Array]:
        """Policy and value `[R]` at stacks `[R, K, H, W, C]`, from the policy's parameters."""
        out = apply(self.player, params, self._flat(stack))
        return action_distribution(self.spec.action, out), out["value"][:, 0]

    def predict(self, params: Any, stack: Array, action: Array, uniform: Array) -> tuple[Array, Array, Array]:
        """What follows stacks and actions `[R, ...]`: frames, expected rewards `[R]`, and the tokens of the bits, which
        `uniform [R, n]` decides."""
        seen, tokens = self.part(params, "look", stack, spaces.encode(self.spec.action, action)), None
        if self.config.bits:
            tokens = self.part(params, "draw", seen, uniform)
        bits = None if tokens is None else video.to_bits(tokens, self.config.chunk)
        logits, reward = self.part(params, "paint", seen, bits)
        frame = video.likeliest(logits, stack)
        return frame, video.reward_of(reward, self.config.sign_rewards).mean(), uniform if tokens is None else tokens

    @staticmethod
    def _flat(stack: Array) -> Array:
        """Stacks `[R, K, H, W, C]` as `[R, H, W, K C]`."""
        x = jnp.moveaxis(stack, 1, 3)
        return x.reshape(*x.shape[:3], -1)


# --- The model's loss -------------------------------------------------------------------------------------------------
class Noise(NamedTuple):
    """The uniform random numbers behind one target of `B` windows."""

    flip: Array  # [B, Z]: which bits are turned round
    hard: Array  # [B, Z]: which are discrete already
    swap: Array  # [B, Z]: which are the LSTM's
    draw: Array  # [B, n]: the LSTM's bits
    drop: Array  # [B]: who learns without bits
    own: Array  # [B]: whose next frame is the model's own


class Shares(NamedTuple):
    """How far the schedules of learning are, each in [0, 1]; see `Config.ramp` and `Config.drop_ramp`."""

    hard: Array
    predicted: Array
    own: Array
    drop: Array


def shares(config: Config, updates: Array) -> Shares:
    """The shares after so many updates of the model."""
    risen = optim.warmup(updates, config.ramp)
    drop = 1.0 - (1.0 - config.drop_bits) * optim.warmup(updates, config.drop_ramp)
    return Shares(risen, config.predicted_bits * risen, config.own_frames * risen, drop)


def discrete(raw: Array, noise: Noise, flips: float, hard: Array) -> tuple[Array, Array]:
    """The bits -1 and 1 behind `raw [B, Z]`, clean and as they are used in learning: with gradients straight through,
    some turned round, and some not discrete yet."""
    soft = jnp.tanh(raw)
    clean = jnp.where(soft > 0, 1.0, -1.0)
    turned = jnp.where(noise.flip < flips, -clean, clean)
    return clean, jnp.where(noise.hard < hard, soft + sg(turned - soft), soft)


def step_losses(
    nets: Networks, params: Any, stack: Array, action: Array, target: Array, reward: Array, noise: Noise, how: Shares
) -> tuple[dict[str, Array], Array]:
    """The losses `[B]` of one target `[B, H, W, C]` of stacks and actions, and the frame that the model would show."""
    chex.assert_equal_shape_prefix((stack, action, target, reward, noise.drop), 1)
    config, code, losses = nets.config, None, {}
    seen = nets.part(params, "look", stack, spaces.encode(nets.spec.action, action))
    if config.bits:
        clean, code = discrete(nets.part(params, "infer", stack, target), noise, config.bit_noise, how.hard)
        tokens = sg(video.to_tokens(clean, config.chunk))
        losses["bits"] = -nets.part(params, "likely", seen, tokens).log_prob(tokens).sum(-1)
        drawn = video.to_bits(sg(nets.part(params, "draw", seen, noise.draw)), config.chunk)
        code = jnp.where(noise.swap < how.predicted, code + sg(drawn - code), code)
    logits, bins = nets.part(params, "paint", seen, code, (noise.drop >= how.drop).astype(jnp.float32))
    error = jnp.maximum(video.frame_error(logits, target), config.cutoff)
    losses["frame"] = error.reshape(len(error), -1).mean(-1)
    guess = video.reward_of(bins, config.sign_rewards)
    losses["reward"] = guess.loss(twohot(jnp.sign(reward) if config.sign_rewards else reward, guess.bins))
    return losses, sg(video.likeliest(logits, target))


class Window(NamedTuple):
    """What a window is learned from, targets first `[T, B, ...]`: the stack before them, actions, targets, rewards,
    which targets begin an episode, and what each counts."""

    stack: Array
    action: Array
    target: Array
    reward: Array
    first: Array
    weight: Array


def window(nets: Networks, record: Record) -> Window:
    """Of records `[B, K + T]`. Over the end of an episode nothing is learned, or that nothing moves (`still`)."""
    config, count = nets.config, nets.config.stack
    frame, later = nets.frames(record.obs), lambda x: x[:, count:].swapaxes(0, 1)
    stack = video.stacked(frame[:, :count], record.is_first[:, :count], count)
    action = record.action[:, count - 1 : -1].swapaxes(0, 1)
    target, reward, first = later(frame), later(record.reward), later(record.is_first)
    if not config.still:
        return Window(stack, action, target, reward, first, 1.0 - first)
    over = jnp.cumsum(first, 0) > 0  # [T, B]
    place = jnp.arange(len(over))[:, None]
    kept = jnp.where(over, -1, place).max(0)  # the last target of the episode; -1: none
    held = jnp.where(over, kept, place) + count
    target = jax.vmap(lambda x, i: x[i], (0, 1), 1)(frame, held)
    none = jnp.zeros_like(first)
    return Window(stack, action, target, jnp.where(over, 0.0, reward), none, jnp.ones(first.shape))


def model_loss(nets: Networks, params: Any, seen: Window, noise: Noise, how: Shares, share: Share = ALONE) -> Losses:
    """The loss of the video model on windows, noise `[T, B, ...]`; the next stack may have the model's own frames."""
    scale = {"frame": nets.config.frame_scale}

    def step(stack: Array, x: tuple[Any, ...]) -> tuple[Array, Any]:
        action, target, reward, first, noise = x
        losses, own = step_losses(nets, params, stack, action, target, reward, noise, how)
        taken = spaces.wide((noise.own < how.own) & ~first, target)
        wrong = lambda x: (x != target).reshape(len(target), -1).mean(-1, dtype=jnp.float32)  # noqa: E731
        return video.push(stack, jnp.where(taken, own, target), first), (losses, wrong(own), wrong(stack[:, -1]))

    _, (losses, error, copied) = jax.lax.scan(
        step, seen.stack, (seen.action, seen.target, seen.reward, seen.first, noise)
    )
    mean = lambda x: share.weighted_mean(x, seen.weight)  # noqa: E731
    parts = {name: mean(x) for name, x in losses.items()}
    total = sum((scale.get(name, 1.0) * part for name, part in parts.items()), jnp.zeros(()))
    error, copied = share.mean(mean(error)), share.mean(mean(copied))
    metrics = {"loss": total, "skill": 1.0 - error / jnp.maximum(copied, 1e-6)}
    return total, ({}, metrics | {f"loss/{name}": part for name, part in parts.items()})


# --- Dreams -----------------------------------------------------------------------------------------------------------
class Dreamt(NamedTuple):
    """Steps of dreams, time first `[H, B, ...]`: the stack that was seen, what the policy did and thought of it, and
    what followed."""

    stack: Array
    action: Array
    log_prob: Array
    value: Array
    frame: Array
    reward: Array
    tokens: Array


def roll(
    nets: Networks, params: Any, stack: Array, plan: Array, uniform: Array, given: bool = False
) -> tuple[Array, Dreamt]:
    """Dream on from stacks `[B, K, H, W, C]`, and the stacks at the end.
    `plan [H, B, ...]` are the actions, if `given`, or the noise that decides them; `uniform [H, B, n]` decides bits."""

    def step(stack: Array, x: tuple[Array, Array]) -> tuple[Array, Dreamt]:
        plan, uniform = x
        policy, value = nets.judge(params["policy"], stack)
        action = plan if given else policy.pick(plan)
        frame, reward, tokens = nets.predict(params["model"], stack, action, uniform)
        return video.push(stack, frame), Dreamt(stack, action, policy.log_prob(action), value, frame, reward, tokens)

    return jax.lax.scan(step, stack, (plan, uniform))


def experience(nets: Networks, state: State, record: Record, key: Key, share: Share = ALONE) -> ppo.Rows:
    """What the policy learns from, `[B * H]`: dreams from the last frames of records `[B, K]`, all devices' together.
    There are no ends; the value of the last stack stands for what would follow. Dreams from an end count nothing."""
    config, batch, space = nets.config, len(record.reward), nets.spec.action
    k_plan, k_bits = jax.random.split(key)
    stack = video.stacked(nets.frames(record.obs), record.is_first, config.stack)
    plan = spaces.noise(space, share.uniform(k_plan, (config.imag_length, batch, spaces.noise_size(space)), 1))
    uniform = share.uniform(k_bits, (config.imag_length, batch, config.tokens), 1)
    end, found = roll(nets, state.params, stack, plan, uniform)
    _, bootstrap = nets.judge(state.params["policy"], end)
    value = jnp.concatenate([found.value, bootstrap[None]])
    reward = jnp.concatenate([jnp.zeros_like(found.reward[:1]), found.reward])  # arrives with the next stack
    going = jnp.full_like(value, state.hyper["discount"])
    advantage = ppo.advantages(reward, value, going, jnp.zeros_like(value), state.hyper["lam"])
    weight = jnp.broadcast_to(1.0 - record.is_last[:, -1], advantage.shape)
    rows = ppo.Rows(found.stack, found.action, found.log_prob, found.value, advantage, advantage + found.value, weight)
    rows = share.gather(jax.tree.map(lambda x: sg(x.swapaxes(0, 1)), rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build SimPLe for an environment of images or 0/1 planes. `State.params` holds "model" and "policy",
    `State.memory` the updates of the model so far, int32. Nothing is kept in the replay; the policy's memory is its
    stack. ValueError unless the observation is one picture and actions are choices."""
    if isinstance(spec.action, Box):
        raise ValueError(f"simple chooses among discrete actions; {spec.name} has {spec.action}: take dreamer-v3")
    nets = Networks(spec, config)
    nets.sensor  # noqa: B018  refuses observations that do not fit
    eps = {"model": 1e-8, "policy": 1e-5}
    tx = {name: optim.apart({name: (name,)}, optim.adam(config.max_grad_norm, e)) for name, e in eps.items()}

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params, opt = nets.init(key), {}
        for one in tx.values():
            made: Any = one.init(params)
            opt |= made
        return State(params, opt, optim.numbers(hyper), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def act(state: State, carry: Array, step: Step, key: Key, mode: str) -> Acted:
        action: Any = forced(spec.action, step, key, mode)
        stack = video.push(carry, nets.frames(step.obs), step.is_first)
        policy, _ = nets.judge(state.params["policy"], stack)
        if mode == "explore":
            action = policy.sample(key)
        elif mode == "greedy":
            action = tempered(policy, config.temperature, key)
        return stack, action, {}

    reset = lambda state, num_envs: nets.blank(num_envs)  # noqa: E731
    steps = train_steps(nets, tx)
    return Agent(init, reset, act, steps, partial(imagine, nets), schedule(config), hyper_of(config))


def train_steps(nets: Networks, tx: Mapping[str, Any]) -> dict[str, TrainStep]:
    """The video model, and the policy inside of it."""
    config = nets.config

    def model(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Predict the last T of records `[B, K + T]`."""
        seen = window(nets, share.local_rows(batch.record))
        noise = draw_noise(config, seen.weight.shape[1], key, share)
        how = shares(config, state.memory)
        objective = lambda params: model_loss(nets, params["model"], seen, noise, how, share)  # noqa: E731
        rate = {"model": state.hyper["model_lr"]}
        state, _, metrics = gradient_step(state, objective, tx["model"], rate, ("model",), share=share)
        return state._replace(memory=state.memory + 1), {}, metrics

    def policy(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Learn by PPO in dreams from the last of records `[B, K]`."""
        k_dream, k_learn = jax.random.split(key)
        rows = experience(nets, state, share.local_rows(batch.record), k_dream, share)
        hyper = state.hyper
        how = ppo.Settings(
            hyper["clip"], hyper["value_scale"], hyper["entropy"], config.epochs, config.minibatches, clip_value=False
        )

        def network(params: Any, obs: Array, action: Array) -> ppo.Outputs:
            found, value = nets.judge(params["policy"], obs)
            return ppo.Outputs(found.log_prob(action), found.entropy(), value)

        rate = {"policy": hyper["policy_lr"]}
        state, metrics = ppo.optimise(network, state, rows, how, tx["policy"], rate, k_learn, ("policy",), share)
        return state, {}, metrics | dream_metrics(rows)

    return {
        "model": TrainStep(model, config.model_batch, config.stack + config.targets, shared=True),
        "policy": TrainStep(policy, config.dreams, config.stack, shared=True),
    }


def dream_metrics(rows: ppo.Rows) -> dict[str, Array]:
    """What the policy found in its dreams: the mean return that it learns from, and value."""
    total = jnp.maximum(rows.weight.sum(), 1.0)
    mean = lambda x: (x * rows.weight).sum() / total  # noqa: E731
    return {"return": mean(rows.returns), "value": mean(rows.value)}


def draw_noise(config: Config, rows: int, key: Key, share: Share = ALONE) -> Noise:
    """The random numbers of an update of `rows` windows, `[T, rows, ...]`."""
    sizes = ((config.bits,),) * 3 + ((config.tokens,), (), ())
    keys = jax.random.split(key, len(sizes))
    return Noise(*(share.uniform(k, (config.targets, rows, *size), 1) for k, size in zip(keys, sizes, strict=True)))


def imagine(nets: Networks, state: State, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
    """See `Agent.imagine`. A dream has no end, and its latent are the tokens of the bits."""
    space, config, batch = nets.spec.action, nets.config, len(context.reward)
    spaces.check_dream(space, context, given, horizon)
    k_plan, k_bits = jax.random.split(key)
    stack = video.stacked(nets.frames(context.obs), context.is_first, config.stack)
    plan = spaces.noise(space, jax.random.uniform(k_plan, (horizon, batch, spaces.noise_size(space))))
    uniform = jax.random.uniform(k_bits, (horizon, batch, config.tokens))
    plan = plan if given is None else given.swapaxes(0, 1)
    _, found = roll(nets, state.params, stack, plan, uniform, given is not None)
    obs = {nets.sensor[0]: found.frame} if isinstance(nets.spec.obs, Mapping) else found.frame
    cont = jnp.ones_like(found.reward)
    return Dream(obs, found.reward, cont, found.action, {"bits": found.tokens}).swapped()


def schedule(config: Config) -> tuple[Word, ...]:
    """Random play, the model and the policy in it; then rounds of the same, played by the policy."""
    policy = Train("policy", config.policy_updates)
    first = Collect(config.collect, "random"), Train("model", config.first_model_updates), policy
    rounds = config.rounds - 1 if config.rounds else FOREVER
    later = Repeat(rounds, (Collect(config.collect), Train("model", config.model_updates), policy))
    return (*first, later) if rounds else first


# --- Presets ----------------------------------------------------------------------------------------------------------
MICRO = Config(
    depth=16, levels=2, doublings=1, kernel=1, bits=16, chunk=4, lstm_units=32, ramp=0, drop_ramp=0, own_frames=0.5,
    drop_bits=0.2, frame_scale=30.0, still=True, policy_layers=2, units=64, dreams=64, imag_length=10, epochs=3,
    minibatches=8, clip=0.2, temperature=0.0, discount=0.97, envs=4, rounds=0, collect=1000,
    first_model_updates=1000, model_updates=500, policy_updates=100, model_batch=16, targets=4, model_lr=2e-3,
    policy_lr=1e-3,
)  # fmt: skip
PRESETS: dict[str, Config] = {
    "published": Config(),
    "micro": MICRO,
    "micro-deterministic": replace(MICRO, bits=0),
}
"""Published sizes for Atari-100k, and presets for 0/1 planes and tiny images on two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2019, env="gymnax/Catch-bsuite", steps=5000, offline=True,
    observations=("image", "binary"), actions=("Discrete", "MultiDiscrete"),
    summary="PPO inside a video model with discrete latent bits (Kaiser et al. 2019)",
    paper="Kaiser et al., Model-Based Reinforcement Learning for Atari",
    sees="a stack of frames, as they are",
    predicts="convolutions: next frame and reward, with bits for what is random, drawn by an LSTM",
    acts="CNN or MLP on stacked frames, PPO in dreams of 50 steps without ends",
)  # fmt: skip
