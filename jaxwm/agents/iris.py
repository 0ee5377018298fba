"""IRIS: transformers are sample-efficient world models (Micheli et al. 2023).

Sees a frame as a few tokens of a discrete autoencoder, predicts with a GPT over tokens and actions, token by token, and
acts with a convolutional LSTM that sees decoded frames only, trained in dreams. The three parts start one after the
other in one body and then learn side by side.

Letters: N environments, B batch, T frames of a sequence, K tokens of a frame, V codes, H frames of a dream. A frame is
followed by its action, so a sequence has T (K + 1) positions. The action predicts the first token of the next frame,
its reward and whether the episode ended there; token k predicts token k + 1; the last token predicts nothing.

What differs from the paper, or the paper leaves open:

- no perceptual loss: its weights would have to be downloaded;
- 0/1 planes are reconstructed with cross-entropy in which cells that are on weigh more; a vector of numbers is refused;
- codes that were idle for `revive` updates restart as latents of the batch, where that is asked for (0, as published);
- windows are cut out of the replay anywhere and cross ends of episodes, across which nothing attends or is learned; the
  paper draws episodes uniformly and pads what is missing. The last frame of a window is only a target;
- decoded frames are rounded to what an environment shows (8 bits, or 0/1);
- a step of a dream counts as much as it is likely to be reached, in every loss; the official results keep the steps
  after an imagined end;
- the policy's memory lives on between rounds of collecting; RMS norm stands for group norm, and weights start as in
  all systems here;
- one coin per environment, not one for all, decides on a random action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm.agents.system import System, hyper_of
from jaxwm.control.frame_policy import FramePolicy, reinforce_loss
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_bins, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models.frame_dreams import FrameDreams, check_window
from jaxwm.models.token_world import TokenWorld, accuracies
from jaxwm.nets.layers import apply
from jaxwm.nets.lstm import LSTMState
from jaxwm.nets.quantiser import Tokenizer, as_floats, as_frame, kept_alive, picture, reconstruction_error
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, after
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of IRIS. Defaults are the published ones, for Atari-100k."""

    # Tokens.
    codes: Several = 512  # Codes of the vocabulary.
    code_width: Count = 512  # Numbers of a code.
    depth: Count = 64  # Channels of the autoencoder.
    patch: Count = 1  # Pixels of the sides of the squares that the autoencoder cuts out first.
    levels: Natural = 4  # Times that it halves what is left; a token stands for patch x 2^levels pixels.
    blocks: Natural = 2  # Residual blocks at each size.
    kernel: Literal[1, 3, 5] = 3  # Sides of its convolutions; with 1, what a token shows depends only on that token.
    attention: bool = True  # Self-attention among cells where 8 or 16 are above each other.
    commitment: Amount = 1.0  # Weight of the loss that ties the encoder to its codes.
    on_weight: Positive = 10.0  # Weight of cells that are on, in the loss of 0/1 planes.
    revive: Natural = 0  # Updates without use after which a code restarts as a latent of the batch; 0: never.
    # World model.
    frames: int = 20  # Frames of a window, and the most that the model remembers.
    layers: Count = 10  # Layers of the transformer.
    heads: Count = 4  # Its heads.
    width: Count = 256  # Its width; its hidden layers are four times as wide.
    dropout: float = 0.1  # Share of what each part of a layer adds that is left out in learning.
    sign_rewards: bool = True  # Learn only the sign of rewards, as published; else their value in `bins` bins.
    bins: int = 255  # Bins of rewards that are not signs.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the transformer; parameters, norms and losses stay float32. Use bfloat16 on GPUs."""
    # Behaviour.
    policy_depth: Count = 32  # Channels of the policy's first two convolutions; two more have twice as many.
    policy_layers: Count = 1  # Layers of the policy's eyes, where it sees planes.
    units: Count = 512  # Width of its LSTM, and of those layers.
    burn_in: Natural = 20  # Frames from which the LSTM remembers when a dream begins.
    context: Count = 1  # Frames that the world model sees before a dream, the first one included.
    imag_length: int = 20  # Frames of a dream, the first one included.
    lam: Varies[Fraction] = 0.95  # Lambda of the returns.
    discount: Varies[Fraction] = 0.995  # Discount per step.
    entropy: Varies[Amount] = 0.001  # Weight of the policy's entropy.
    epsilon: Varies[Fraction] = 0.01  # Share of random actions while collecting.
    temperature: Amount = 0.5  # Temperature of the policy in evaluation; 0 takes the likeliest action.
    # Order.
    envs: Count = 1  # Parallel environments of each member.
    collect: Count = 200  # Environment steps of a round.
    epochs: Natural = 500  # Rounds; 0: until the run ends.
    last_epochs: Natural = 100  # Rounds without collecting, after the others.
    tokenizer_from: Natural = 1000  # Environment steps from which on the autoencoder learns.
    model_from: Natural = 5000  # The same for the world model.
    policy_from: Natural = 10_000  # The same for the policy.
    tokenizer_updates: Natural = 200  # Updates of the autoencoder in a round.
    model_updates: Natural = 200  # Updates of the world model in a round.
    policy_updates: Natural = 200  # Updates of the policy in a round.
    capacity: Count = 100_000  # Replay size of a member in environment steps (never more than the run collects).
    # Optimisers.
    tokenizer_batch: Count = 256  # Frames of an update.
    model_batch: Count = 64  # Windows of an update.
    policy_batch: Count = 64  # Dreams of an update.
    tokenizer_lr: Varies[Positive] = 1e-4  # Learning rate of the autoencoder.
    model_lr: Varies[Positive] = 1e-4  # Learning rate of the world model.
    policy_lr: Varies[Positive] = 1e-4  # Learning rate of the policy.
    weight_decay: Amount = 0.01  # Of the world model's matrices, in units of the learning rate.
    clip: Positive = 10.0  # Largest norm of a part's gradient.

    def __post_init__(self):
        check_types(self)
        check_number("frames", self.frames, least=2, whole=True)
        check_number("imag_length", self.imag_length, least=2, whole=True)
        check_number("dropout", self.dropout, least=0, most=0.99)
        check_bins(self.bins)
        check_window(self.frames, self.context, self.imag_length, unseen=1)


# --- Losses -----------------------------------------------------------------------------------------------------------
def tokenizer_loss(nets: Networks, params: Any, frame: Array) -> Losses:
    """Reconstruction, codebook and commitment (section 2.1) of frames `[B, H, W, C]`; tokens and latents; metrics."""
    chex.assert_rank(frame, 4)
    config = nets.config
    target = as_floats(frame)
    found, painted = apply(nets.tokenizer, params, target)
    error = reconstruction_error(painted, frame, config.on_weight).mean()
    total = error + found.codebook_loss + config.commitment * found.commitment_loss
    parts = {"reconstruction": error, "codebook": found.codebook_loss, "commitment": found.commitment_loss}
    return total, ((found.tokens, found.latents), {"loss": total} | {f"loss/{k}": v for k, v in parts.items()})


def model_loss(nets: Networks, params: Any, tokens: Array, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """Cross-entropies of tokens, rewards and ends (section 2.2) in windows `tokens [B, T + 1, K]`, and metrics."""
    chex.assert_shape((record.reward, record.is_first), tokens.shape[:2])
    world, now = nets.world, jax.tree.map(lambda x: x[:, :-1], record)
    hidden = world.window(params, tokens[:, :-1], now.action, now.is_first, key, share)
    losses = world.outcome_losses(params, hidden[:, :, -1], record, share)
    speaking = jnp.concatenate([hidden[:, :, : world.tokens - 1], hidden[:, :, -1:]], 2)
    guess, target = world.next_token(params, speaking), following(tokens)
    valid = 1.0 - record.is_first[:, 1:, None]  # the first token of another episode is not learned
    known = jnp.concatenate([jnp.ones_like(target[..., 1:], jnp.float32), valid], 2)
    losses["token"] = share.weighted_mean(-guess.log_prob(target), known)
    total = sum(losses.values(), jnp.zeros(()))
    metrics = {"loss": total} | {f"loss/{name}": loss for name, loss in losses.items()}
    goes_on = 1.0 - record.is_first[..., None]  # frames that are not the first of an episode
    same = jnp.concatenate([jnp.repeat(goes_on[:, 1:-1], world.tokens - 1, 2), goes_on[:, 2:]], 2)
    later = guess._replace(logp=guess.logp[:, 1:]), target[:, 1:], following(tokens[:, :-1])
    return total, ({}, metrics | accuracies(*later, same, share))


def following(tokens: Array) -> Array:
    """What each position predicts, `[B, T, K]`: tokens 1 to K - 1 of a frame, then token 0 of the next.
    `tokens [B, T + 1, K]`."""
    return jnp.concatenate([tokens[:, :-1, 1:], tokens[:, 1:, :1]], 2)


# --- Parts ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Networks:
    """The three parts over explicit parameters, for one kind of environment."""

    spec: Spec
    config: Config

    @property
    def sensor(self) -> tuple[str, jax.ShapeDtypeStruct]:
        """Name and shape of what is seen."""
        return picture(self.spec.obs, "iris")

    @property
    def tokenizer(self) -> Tokenizer:
        """The autoencoder."""
        c = self.config
        sizes = c.codes, c.code_width, c.depth, c.patch, c.levels, c.blocks, c.kernel, c.attention
        return Tokenizer(tuple(self.sensor[1].shape), *sizes)

    @property
    def world(self) -> TokenWorld:
        """The transformer and its heads."""
        c = self.config
        sizes = self.tokenizer.tokens, c.codes, c.frames, c.layers, c.heads, c.width, c.dropout
        return TokenWorld(self.spec.action, *sizes, c.sign_rewards, c.bins, dtype=c.dtype)

    @property
    def policy(self) -> FramePolicy:
        """Actor and critic."""
        c = self.config
        return FramePolicy(self.sensor[1], self.spec.action, c.policy_depth, c.policy_layers, c.units)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of the three parts."""
        k_tokenizer, k_model, k_policy = jax.random.split(key, 3)
        tokenizer = self.tokenizer.init(k_tokenizer, jnp.zeros((1, *self.sensor[1].shape)))
        return {"tokenizer": tokenizer, "model": self.world.init(k_model), "policy": self.policy.init(k_policy)}

    def encode(self, params: Any, frame: Array) -> Array:
        """Tokens `[..., K]` of frames `[..., H, W, C]`."""
        rows = as_floats(frame.reshape(-1, *frame.shape[-3:]))
        tokens = apply(self.tokenizer, params["tokenizer"], rows, method="quantise").tokens
        return tokens.reshape(*frame.shape[:-3], -1)

    def decode(self, params: Any, tokens: Array) -> Array:
        """Frames `[..., H, W, C]` of tokens `[..., K]`, as an environment shows them."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        codes = apply(self.tokenizer, params["tokenizer"], rows, method="embed")
        painted = apply(self.tokenizer, params["tokenizer"], codes, method="paint")
        return as_frame(painted.reshape(*tokens.shape[:-1], *painted.shape[1:]), self.sensor[1])

    @property
    def dreams(self) -> FrameDreams:
        """World model and policy with the autoencoder between them."""
        c, grid = self.config, self.tokenizer.grid
        return FrameDreams(
            self.spec, self.sensor[0], self.encode, self.decode, self.world, self.policy, grid, c.context
        )


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build IRIS for an environment of images or 0/1 planes. `State.params` holds "tokenizer", "model" and "policy",
    `State.memory` for how many updates each code was idle, int32 `[V]`. Nothing is kept in the replay.
    ValueError unless the observation is one picture."""
    nets = Networks(spec, config)
    nets.policy.features  # noqa: B018  refuses observations that do not fit
    tx = transformations(config)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = nets.init(key)
        opt = {name: tx[name].init(part) for name, part in params.items()}
        return State(params, opt, optim.numbers(hyper), jnp.zeros((), jnp.int32), jnp.zeros(config.codes, jnp.int32))

    def reset(state: State, num_envs: int) -> LSTMState:
        return nets.policy.reset(num_envs)

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        return nets.dreams.imagine(state.params, context, actions, key, horizon)

    steps = train_steps(nets, tx)
    return Agent(init, reset, partial(act, nets), steps, imagine, schedule(config), hyper_of(config))


def transformations(config: Config) -> dict[str, optax.GradientTransformation]:
    """Adam for each part, with weight decay for the world model."""
    adam = optim.adam(config.clip, 1e-8)
    return {"tokenizer": adam, "model": optim.decayed(adam, config.weight_decay), "policy": adam}


def act(nets: Networks, state: State, carry: LSTMState, step: Step, key: Key, mode: str) -> Acted:
    """See the frame as the tokens show it, remember, act; see `Agent.act`."""
    params = state.params
    frame = nets.dreams.shown(params, nets.dreams.frames(step.obs))
    mix = state.hyper["epsilon"], nets.config.temperature
    return nets.policy.act(params["policy"], carry, frame, step, key, mode, *mix)


def train_steps(nets: Networks, tx: Mapping[str, optax.GradientTransformation]) -> dict[str, TrainStep]:
    """The three parts."""
    config = nets.config

    def tokenizer(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """The autoencoder reconstructs frames `[B, 1]`."""
        frame = share.local_rows(nets.dreams.frames(batch.record.obs)[:, 0])
        objective = lambda params: tokenizer_loss(nets, params, frame)  # noqa: E731
        rate = state.hyper["tokenizer_lr"]
        state, (tokens, latents), metrics = gradient_step(
            state, objective, tx["tokenizer"], rate, "tokenizer", share=share
        )
        state, more = count_codes(config, state, tokens, latents, key, share)
        return state, {}, metrics | more

    def model(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """The transformer predicts tokens, rewards and ends in windows `[B, T + 1]`."""
        record = share.local_rows(batch.record)
        tokens = nets.encode(state.params, nets.dreams.frames(record.obs))
        objective = lambda params: model_loss(nets, params, tokens, record, key, share)  # noqa: E731
        return gradient_step(state, objective, tx["model"], state.hyper["model_lr"], "model", share=share)

    def policy(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Actor and critic learn in dreams from the last frames of sequences `[B, L]`."""
        record = share.local_rows(batch.record)
        seen = nets.dreams.experience(state.params, record, config.imag_length, key, share)
        objective = lambda params: reinforce_loss(nets.policy, params, state.hyper, seen)  # noqa: E731
        return gradient_step(state, objective, tx["policy"], state.hyper["policy_lr"], "policy", share=share)

    return {
        "tokenizer": TrainStep(tokenizer, config.tokenizer_batch, 1, shared=True),
        "model": TrainStep(model, config.model_batch, config.frames + 1, shared=True),
        "policy": TrainStep(policy, config.policy_batch, max(config.burn_in, config.context - 1) + 1, shared=True),
    }


def count_codes(
    config: Config, state: State, tokens: Array, latents: Array, key: Key, share: Share
) -> tuple[State, dict[str, Array]]:
    """Count for how long each code was idle, restart those that were idle for too long; shares in use and dead."""
    part = state.params["tokenizer"]
    inner = part["params"]
    codebook, idle, metrics = kept_alive(inner["codebook"], state.memory, tokens, latents, config.revive, key, share)
    part = part | {"params": inner | {"codebook": codebook}}
    return state._replace(params=state.params | {"tokenizer": part}, memory=idle), metrics


def schedule(config: Config) -> tuple[Repeat, ...]:
    """Rounds of collecting and learning, which each part joins in its turn; then rounds without collecting."""
    names = "tokenizer", "model", "policy"
    start = {name: getattr(config, f"{name}_from") for name in names}
    updates = {name: getattr(config, f"{name}_updates") for name in names}
    parts = [Train(name, after(start[name], updates[name])) for name in names]
    rounds = Repeat(config.epochs or FOREVER, (Collect(config.collect), *parts))
    if not config.epochs or not config.last_epochs:
        return (rounds,)
    return rounds, Repeat(config.last_epochs, tuple(Train(name, updates[name]) for name in names))


# --- Presets ----------------------------------------------------------------------------------------------------------
MICRO = Config(
    codes=256, code_width=32, depth=64, patch=4, levels=0, blocks=1, kernel=1, attention=False, revive=200,
    frames=8, layers=2, heads=4, width=64, dropout=0.0, units=64, burn_in=8, imag_length=8,
    envs=4, epochs=0, tokenizer_from=200, model_from=1600, policy_from=3000,
    tokenizer_updates=40, model_updates=30, policy_updates=20, tokenizer_batch=64, model_batch=16, policy_batch=32,
    tokenizer_lr=2e-3, model_lr=1e-3, policy_lr=1e-3, entropy=0.01, temperature=0.0, discount=0.97,
)  # fmt: skip
SMALL = replace(
    MICRO, codes=512, code_width=64, depth=32, levels=2, kernel=3, width=128, policy_depth=8, units=128, burn_in=4,
    envs=2, tokenizer_from=1000, model_from=2000, policy_from=4000, tokenizer_updates=20, model_updates=20,
    policy_updates=10, tokenizer_batch=16, model_batch=8, policy_batch=16, entropy=0.003, discount=0.99,
)  # fmt: skip
PRESETS: dict[str, Config] = {"published": Config(), "micro": MICRO, "small": SMALL}
"""Published sizes for Atari-100k, and presets for two CPU cores: micro for 0/1 planes, small for images of 64 x 64."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2023, env="minatar/Breakout", steps=12_000, offline=True,
    observations=("image", "binary"),
    summary="discrete autoencoder, GPT over tokens, actor-critic in decoded dreams (Micheli et al. 2023)",
    paper="Micheli et al., Transformers are Sample-Efficient World Models",
    sees="discrete autoencoder: a frame is a few tokens of a learned vocabulary",
    predicts="GPT over tokens and actions, one token after the other; reward and end heads",
    acts="CNN and LSTM on decoded frames, actor-critic on lambda-returns inside dreams",
)  # fmt: skip
