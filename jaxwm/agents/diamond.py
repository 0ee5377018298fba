"""DIAMOND: diffusion for world modelling (Alonso et al. 2024).

Sees frames as they are, paints the next frame by diffusion from the last few frames and actions, and acts with a
convolutional LSTM that is trained in painted frames. A second network predicts rewards and ends from pairs of frames.
The first round collects and learns for long; then collecting and learning alternate.

Letters: N environments, B batch, K past frames that the denoiser sees, T records of a window, H steps of an update in
dreams. Frames are `[..., H, W, C]`, in [-1, 1] for the denoiser.

What differs from the paper, or the paper leaves open:

- the first round collects a fixed number of steps; the official code goes on until it has met rare rewards;
- 0/1 planes are painted like images, and cut at one half;
- windows are cut out of the replay anywhere and cross ends of episodes; frames of another episode are unknown to the
  denoiser (0, as its padding), and nothing is predicted across an end. The final frame of an episode is in the replay;
- dreams begin with windows of the present replay, not of a stock that was loaded some time before, and a dream that is
  over takes one step to begin anew;
- values are rounded to 8 bits, where the official code cuts their fractions off;
- convolutions that halve begin like all others, not orthogonal; the actor begins near zero, not at zero;
- one coin per environment decides on a random action, and the policy's memory lives on between rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm import replay
from jaxwm.agents.system import System, hyper_of
from jaxwm.control.frame_policy import FramePolicy, reinforce_loss
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, check_bins, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import PLAIN, Routes, routes
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models.diffusion import wide
from jaxwm.models.lasting_dreams import LastingDreams
from jaxwm.models.outcomes import outcome_losses
from jaxwm.models.pixel_world import PixelWorld, same_episode, signed
from jaxwm.nets.lstm import LSTMState
from jaxwm.nets.quantiser import picture
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, after
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Record, Spec, Step, TrainStep, Varies

PARTS = "denoiser", "outcome", "policy"


@dataclass(frozen=True)
class Config:
    """Settings of DIAMOND. Defaults are the published ones, for Atari-100k."""

    # Denoiser.
    past: Count = 4  # Frames that it sees, with the actions after them.
    targets: Count = 2
    """Frames of a window that it learns to paint; all but the first see its own one-step guesses of those before."""
    channels: Count = 64  # Channels at full size.
    sizes: Count = 4  # Sizes of planes, each half of the one before.
    doublings: Natural = 0  # Halvings that double the channels.
    blocks: Count = 2  # Residual blocks at each size, one more on the way up.
    cond: Count = 256  # Width of what is made of noise level and actions, a multiple of `past`.
    passes: Count = 3  # Passes of the denoiser that paint a frame.
    sampler: Literal["euler", "heun"] = "euler"  # How they follow the noise down; Heun's method takes 2 x passes - 1.
    memory: Literal["none", "gru", "ssm"] = "none"
    """What it remembers beyond them, as EDELINE does: nothing, a gated recurrent unit, or a linear recurrence."""
    memory_units: Count = 512  # Width of that memory.
    recall: Natural = 13  # More frames of a window, and before a dream, for it to remember.
    # Rewards and ends.
    outcome_channels: Count = 32  # Channels of their encoder.
    outcome_sizes: Count = 4  # Sizes of its planes.
    outcome_blocks: Count = 2  # Residual blocks at each size.
    outcome_cond: Count = 128  # Width of what is made of an action.
    outcome_units: Count = 512  # Width of their LSTM and head.
    sign_rewards: bool = True  # Learn only the sign of rewards, as published; else their value in `bins` bins.
    bins: int = 255  # Bins of rewards that are not signs.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the convolutions of both; parameters, norms and losses stay float32. Use bfloat16 on GPUs."""
    # Behaviour.
    policy_depth: Count = 32  # Channels of the policy's first two blocks; two more have twice as many.
    policy_layers: Count = 1  # Layers of the policy's eyes, where it sees planes.
    units: Count = 512  # Width of its LSTM, and of those layers.
    burn_in: Natural = 3  # Frames from which the memories remember when a dream begins, before its first one.
    horizon: Count = 15  # Most steps of a dream.
    dream_steps: Count = 15  # Steps of each dream in an update.
    lam: Varies[Fraction] = 0.95  # Lambda of the returns.
    discount: Varies[Fraction] = 0.985  # Discount per step.
    entropy: Varies[Amount] = 0.001  # Weight of the policy's entropy.
    epsilon: Varies[Fraction] = 0.01  # Share of random actions while collecting.
    temperature: Amount = 1.0  # Temperature of the policy in evaluation; 0 takes the likeliest action.
    # Order.
    envs: Count = 1  # Parallel environments of each member.
    first_collect: Count = 5000  # Environment steps before anything is learned.
    first_denoiser_updates: Natural = 10_000  # Updates of the denoiser after them.
    first_outcome_updates: Natural = 10_000  # The same for the model of rewards and ends.
    first_policy_updates: Natural = 5000  # The same for the policy.
    collect: Count = 100  # Environment steps of a later round.
    epochs: Natural = 950  # Later rounds; 0: until the run ends.
    last_epochs: Natural = 50  # Rounds without collecting, after the others.
    denoiser_updates: Natural = 400  # Updates of the denoiser in a later round.
    outcome_updates: Natural = 400  # Updates of the model of rewards and ends.
    policy_updates: Natural = 400  # Updates of the policy.
    policy_from: Natural = 0  # Environment steps from which on the policy learns in later rounds.
    newest: Fraction = 0.7
    """Share of windows out of the newest quarter of the episodes; the other quarters have equal parts of the rest."""
    capacity: Count = 100_000  # Replay size of a member in environment steps (never more than the run collects).
    # Optimisers.
    denoiser_batch: Count = 32  # Windows of an update.
    outcome_batch: Count = 32  # Windows of an update.
    policy_batch: Count = 32  # Dreams.
    denoiser_lr: Varies[Positive] = 1e-4  # Learning rate of the denoiser.
    outcome_lr: Varies[Positive] = 1e-4  # Learning rate of the model of rewards and ends.
    policy_lr: Varies[Positive] = 1e-4  # Learning rate of the policy.
    warmup: Natural = 100  # Updates of each part over which its learning rate rises.
    weight_decay: Amount = 0.01  # Of all kernels but the policy's, in units of the learning rate.
    denoiser_clip: Positive = 1.0  # Largest norm of the denoiser's gradient.
    clip: Positive = 100.0  # The same for the other two.

    def __post_init__(self):
        check_types(self)
        check_bins(self.bins)
        if self.cond % (2 * self.past):
            raise ValueError(f"cond must be a multiple of 2 x past, {2 * self.past}, not {self.cond}")


# --- Losses -----------------------------------------------------------------------------------------------------------
def denoiser_loss(nets: Networks, params: Any, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """Squared errors of the preconditioned target (Karras et al. 2022, eq. 8) for each target of windows
    `[B, K + targets]`, after what a memory sees first. Once a target is learned, the next one sees the model's guess in
    its place."""
    config, world, early = nets.config, nets.world, nets.recalled
    chex.assert_shape(record.reward, (None, early + config.past + config.targets))
    shown = nets.dreams.frames(record.obs)
    memory = world.recalled(params, shown[:, :-1], record.action[:, :-1], record.is_first[:, :-1])
    memory = jax.tree.map(lambda x: x[:, -config.targets :].swapaxes(0, 1), memory)
    record = jax.tree.map(lambda x: x[:, early:], record)
    frame, first = signed(shown[:, early:]), record.is_first
    sigma, noise, offset = noises(nets, key, frame.shape, share)

    def one(past: Array, x: tuple[Any, ...]) -> tuple[Array, tuple[Array, Array]]:
        target, action, known, valid, memory, sigma, noise, offset = x
        noisy = world.edm.noisy(target, sigma, noise, offset)
        output = world.paint(params, noisy, sigma, past, action, known, memory)
        error = jnp.square(output - world.edm.target(target, noisy, sigma)).mean((1, 2, 3))
        guess = jax.lax.stop_gradient(world.edm.clean(noisy, output, sigma))
        shown = jnp.where(wide(valid), guess, target)[:, None]  # of another episode: as it is
        return jnp.concatenate([past[:, 1:], shown], 1), (error, valid)

    k, places = config.past, range(config.targets)
    past = lambda x: jnp.stack([x[:, i : i + k] for i in places])  # noqa: E731
    targets = frame[:, k:].swapaxes(0, 1), past(record.action), same_episode(past(first)), ~first[:, k:].T, memory
    _, (error, valid) = jax.lax.scan(one, frame[:, :k], (*targets, sigma, noise, offset))
    loss = sum((share.weighted_mean(error[i], valid[i]) for i in places), jnp.zeros(())) / len(places)
    return loss, ({}, {"loss": loss})


def noises(nets: Networks, key: Key, shape: tuple[int, ...], share: Share) -> tuple[Array, Array, Array]:
    """Noise levels `[targets, B]`, noise and offset noise for the targets of windows of such a `shape`."""
    k_level, k_noise, k_offset = jax.random.split(key, 3)
    count, (batch, _, *frame) = nets.config.targets, shape
    sigma = nets.world.edm.level(share.normal(k_level, (count, batch), 1))
    noise = share.normal(k_noise, (count, batch, *frame), 1)
    return sigma, noise, share.normal(k_offset, (count, batch, 1, 1, frame[-1]), 1)


def outcome_loss(nets: Networks, params: Any, record: Record, share: Share = ALONE) -> Losses:
    """Cross-entropies of rewards and ends in windows `[B, T + 1]`."""
    frame = nets.dreams.frames(record.obs)
    _, hidden = nets.world.remembered(params, frame, record.action, record.is_first)
    losses = outcome_losses(*nets.world.judged(params, hidden), record, nets.config.sign_rewards, share)
    total = sum(losses.values(), jnp.zeros(()))
    return total, ({}, {"loss": total} | {f"loss/{name}": loss for name, loss in losses.items()})


# --- Parts ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Networks:
    """The three parts over explicit parameters, for one kind of environment."""

    spec: Spec
    config: Config
    routes: Routes = PLAIN

    @property
    def sensor(self) -> tuple[str, jax.ShapeDtypeStruct]:
        """Name and shape of what is seen."""
        return picture(self.spec.obs, "diamond")

    @property
    def world(self) -> PixelWorld:
        """Denoiser and model of rewards and ends."""
        c = self.config
        channels = tuple(c.channels * 2 ** min(i, c.doublings) for i in range(c.sizes))
        outcome = (c.outcome_channels,) * c.outcome_sizes, c.outcome_blocks, c.outcome_cond, c.outcome_units
        sizes = c.past, channels, c.blocks, c.cond, *outcome, c.passes, c.sampler == "heun", c.sign_rewards, c.bins
        memory = c.memory, c.memory_units
        return PixelWorld(self.sensor[1], self.spec.action, *sizes, *memory, routes=self.routes, dtype=c.dtype)

    @property
    def recalled(self) -> int:
        """Frames that only a memory sees."""
        return 0 if self.config.memory == "none" else self.config.recall

    @property
    def policy(self) -> FramePolicy:
        """Actor and critic."""
        c = self.config
        sizes = c.policy_depth, c.policy_layers, c.units
        return FramePolicy(self.sensor[1], self.spec.action, *sizes, residual=True)

    @property
    def dreams(self) -> LastingDreams:
        """World model and policy together."""
        return LastingDreams(self.spec, self.sensor[0], self.world, self.policy, self.config.horizon)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of the three parts."""
        k_world, k_policy = jax.random.split(key)
        return self.world.init(k_world) | {"policy": self.policy.init(k_policy)}


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build DIAMOND for an environment of images or 0/1 planes. `State.params` holds "denoiser", "outcome" and
    "policy", `State.memory` the dreams that go on with the next update. Nothing is kept in the replay.
    ValueError unless the observation is one picture."""
    nets = Networks(spec, config, routes())
    nets.policy.features  # noqa: B018  refuses observations that do not fit
    tx = transformations(config)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = nets.init(key)
        opt = {name: tx[name].init(part) for name, part in params.items()}
        dreams = nets.dreams.empty(config.policy_batch)
        return State(params, opt, optim.numbers(hyper), jnp.zeros((), jnp.int32), dreams)

    def reset(state: State, num_envs: int) -> LSTMState:
        return nets.policy.reset(num_envs)

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        return nets.dreams.imagine(state.params, context, actions, key, horizon)

    return Agent(init, reset, partial(act, nets), train_steps(nets, tx), imagine, schedule(config), hyper_of(config))


def transformations(config: Config) -> dict[str, optax.GradientTransformation]:
    """Adam with a warm-up for each part, with weight decay for those that model the world."""
    decay = {"denoiser": config.weight_decay, "outcome": config.weight_decay, "policy": 0.0}
    clip = {"denoiser": config.denoiser_clip}
    return {name: optim.adamw(clip.get(name, config.clip), 1e-8, decay[name], config.warmup) for name in PARTS}


def act(nets: Networks, state: State, carry: LSTMState, step: Step, key: Key, mode: str) -> Acted:
    """See the frame, remember, act; see `Agent.act`."""
    frame, mix = nets.dreams.frames(step.obs), (state.hyper["epsilon"], nets.config.temperature)
    return nets.policy.act(state.params["policy"], carry, frame, step, key, mode, *mix)


def train_steps(nets: Networks, tx: Mapping[str, optax.GradientTransformation]) -> dict[str, TrainStep]:
    """The three parts."""
    config = nets.config

    def denoiser(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """The denoiser paints the last frames of windows `[B, K + targets]`."""
        record = share.local_rows(batch.record)
        objective = lambda params: denoiser_loss(nets, params, record, key, share)  # noqa: E731
        return gradient_step(state, objective, tx["denoiser"], state.hyper["denoiser_lr"], "denoiser", share=share)

    def outcome(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Rewards and ends are predicted in windows `[B, T + 1]`."""
        record = share.local_rows(batch.record)
        objective = lambda params: outcome_loss(nets, params, record, share)  # noqa: E731
        return gradient_step(state, objective, tx["outcome"], state.hyper["outcome_lr"], "outcome", share=share)

    def policy(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Actor and critic learn in dreams, some of which begin with the last frames of sequences `[B, L]`."""
        record, dreams = share.local_rows(batch.record), share.slice(state.memory)
        dreams, seen = nets.dreams.experience(state.params, dreams, record, config.dream_steps, key, share)
        objective = lambda params: reinforce_loss(nets.policy, params, state.hyper, seen)  # noqa: E731
        state, aux, metrics = gradient_step(
            state, objective, tx["policy"], state.hyper["policy_lr"], "policy", share=share
        )
        return state._replace(memory=share.gather(dreams)), aux, metrics

    other = (1 - config.newest) / 3
    window = partial(recent, shares=(other, other, other, config.newest))
    past = max(config.burn_in, config.past - 1, nets.recalled) + 1
    return {
        "denoiser": _step(denoiser, config.denoiser_batch, nets.recalled + config.past + config.targets, window),
        "outcome": _step(outcome, config.outcome_batch, config.past + config.horizon, window),
        "policy": _step(policy, config.policy_batch, past, partial(window, last=True)),
    }


def _step(update: Any, batch: int, length: int, window: Any) -> TrainStep:
    return TrainStep(update, batch, length, partial(window, length=length), shared=True)


def recent(state: State, ring: replay.Ring, key: Key, size: int, length: int, **options: Any) -> Batch:
    """The sampler of all three parts; see `replay.recent`."""
    return replay.recent(ring, key, size, length, **options)


def schedule(config: Config) -> tuple[Collect | Train | Repeat, ...]:
    """A long first round, then rounds of collecting and learning, then some without collecting."""
    first = [Train(name, getattr(config, f"first_{name}_updates")) for name in PARTS]
    learn = tuple(Train(name, getattr(config, f"{name}_updates")) for name in PARTS)
    later = (
        (*learn[:2], Train("policy", after(config.policy_from, config.policy_updates))) if config.policy_from else learn
    )
    rounds = Repeat(config.epochs or FOREVER, (Collect(config.collect), *later))
    last = (Repeat(config.last_epochs, learn),) if config.epochs and config.last_epochs else ()
    return Collect(config.first_collect), *(word for word in first if word.updates), rounds, *last


# --- Presets ----------------------------------------------------------------------------------------------------------
MICRO = Config(
    channels=16, sizes=2, doublings=1, blocks=1, cond=64, outcome_channels=16, outcome_sizes=2, outcome_blocks=1,
    outcome_cond=32, outcome_units=64, policy_depth=8, units=64, horizon=8, dream_steps=8, discount=0.97, entropy=0.01,
    temperature=0.0, envs=4, first_collect=400, first_denoiser_updates=0, first_outcome_updates=0,
    first_policy_updates=0, collect=40, epochs=0, denoiser_updates=20, outcome_updates=10, policy_updates=10,
    policy_from=2000, memory_units=64, recall=8, denoiser_batch=16, outcome_batch=16, policy_batch=16,
    denoiser_lr=1e-3, outcome_lr=1e-3, policy_lr=1e-3, warmup=20, clip=10.0,
)  # fmt: skip
CATCH = replace(
    MICRO, channels=8, outcome_channels=8, passes=1, horizon=9, dream_steps=9, first_collect=800, collect=40,
    denoiser_updates=25, outcome_updates=8, policy_updates=8, policy_from=1600, entropy=0.02, discount=0.95,
)  # fmt: skip
PRESETS: dict[str, Config] = {
    "published": Config(), "micro": MICRO, "nano": replace(MICRO, channels=8, passes=1), "catch": CATCH,
}  # fmt: skip
"""Published sizes for Atari-100k, presets for two CPU cores, and catch for Catch drawn as an image of 16 x 16."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2024, env="gymnax/Catch-bsuite", steps=6000, offline=True,
    observations=("image", "binary"),
    summary="frames painted by diffusion, actor-critic in dreams that live on (Alonso et al. 2024)",
    paper="Alonso et al., Diffusion for World Modeling: Visual Details Matter in Atari",
    sees="nothing is encoded: the last frames as they are",
    predicts="U-Net that denoises the next frame in a few passes; CNN and LSTM for reward and end",
    acts="residual CNN and LSTM on frames, actor-critic inside dreams that live on between updates",
)  # fmt: skip
