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
- the policy's memory lives on between rounds of collecting; RMS norm stands for group norm;
- one coin per environment, not one for all, decides on a random action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, action_distribution, disturb, forced
from jaxwm.distributions import OneHot, TwoHot, one_hot, sg, symexp_bins, twohot
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import routes
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models.tokens import Frame, Rollout, in_turn, rollout
from jaxwm.nets import lstm
from jaxwm.nets.attention import Transformer, dropout_factors
from jaxwm.nets.encoders import max_pool
from jaxwm.nets.layers import MLP, Conv, Head, Linear, apply
from jaxwm.nets.lstm import LSTM, LSTMState
from jaxwm.nets.quantiser import Tokenizer, as_floats, as_frame, picture, revive, used
from jaxwm.nets.residual import ROUTES
from jaxwm.nets.sensors import kind, sensors
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, after
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Record, Spec, Step, TrainStep, Varies

IDLE = 100  # Updates without use after which a code counts as dead.


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
    sign_rewards: bool = True  # Learn the sign of rewards alone, as published; else their value in `bins` bins.
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
        if self.bins < 3 or self.bins % 2 == 0:  # symmetric bins with one at 0
            raise ValueError(f"need an odd number of bins, at least 3, got {self.bins}")
        if self.context + self.imag_length - 1 > self.frames:
            raise ValueError(
                f"dreams of {self.imag_length} frames after a context of {self.context} do not fit the model's window: "
                f"context + imag_length - 1 must be at most frames, {self.frames}"
            )


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


def reconstruction_error(painted: Array, frame: Array, on_weight: float) -> Array:
    """The error of each entry: absolute for images, cross-entropy for planes, `on_weight` times where a cell is on."""
    if frame.dtype == jnp.uint8:
        return jnp.abs(painted - as_floats(frame))
    weight = jnp.where(frame, on_weight, 1.0)
    return weight * (jax.nn.softplus(painted) - painted * frame)


def model_loss(nets: Networks, params: Any, tokens: Array, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """Cross-entropies of tokens, rewards and ends (section 2.2) in windows `tokens [B, T + 1, K]`, and metrics."""
    batch, length, count = tokens.shape
    chex.assert_shape((record.reward, record.is_first), (batch, length))
    hidden = nets.window(params, tokens[:, :-1], record.action[:, :-1], record.is_first[:, :-1], key, share)
    valid = 1.0 - record.is_first[:, 1:]  # nothing is learned across the start of an episode
    reward, end = nets.outcomes(params, hidden[:, :, -1])
    losses = {"reward": reward.loss(twohot(nets.rewards(record.reward[:, 1:]), reward.bins))}
    losses["end"] = jax.nn.softplus(end) - end * record.is_terminal[:, 1:]
    losses = {name: share.weighted_mean(loss, valid) for name, loss in losses.items()}
    guess = nets.next_token(params, jnp.concatenate([hidden[:, :, : count - 1], hidden[:, :, -1:]], 2))
    target = following(tokens)
    known = jnp.concatenate([jnp.ones((batch, length - 1, count - 1)), valid[..., None]], 2)
    losses["token"] = share.weighted_mean(-guess.log_prob(target), known)
    total = sum(losses.values(), jnp.zeros(()))
    metrics = {"loss": total} | {f"loss/{name}": loss for name, loss in losses.items()}
    return total, ({}, metrics | accuracy(guess, target, tokens, valid, share))


def following(tokens: Array) -> Array:
    """What each position predicts, `[B, T, K]`: tokens 1 to K - 1 of a frame, then token 0 of the next.
    `tokens [B, T + 1, K]`."""
    return jnp.concatenate([tokens[:, :-1, 1:], tokens[:, 1:, :1]], 2)


def accuracy(guess: OneHot, target: Array, tokens: Array, valid: Array, share: Share) -> dict[str, Array]:
    """Share of likeliest tokens `[B, T, K]` that are right, from the second frame on; of those that changed as well."""
    right = (guess.mode() == target)[:, 1:]
    before = following(tokens[:, :-1])
    same = jnp.broadcast_to(valid[:, :-1, None], right.shape)  # the frame goes on from the one before
    same = same.at[:, :, -1].set(valid[:, 1:])
    changed = same * (before != target[:, 1:])
    return {
        "accuracy": share.weighted_mean(right, same),
        "accuracy/changed": share.weighted_mean(right, changed),
        "changed": share.weighted_mean(before != target[:, 1:], same),
    }


def policy_loss(nets: Networks, params: Any, hyper: Any, dreamed: Dreamed, share: Share = ALONE) -> Losses:
    """REINFORCE with a baseline (section 2.3, eq. 3 to 6 of appendix B) in dreams of H frames, time first."""
    chex.assert_equal_shape_prefix((dreamed.reward, dreamed.cont, dreamed.action), 2)
    first = jnp.zeros(dreamed.reward.shape, bool).at[0].set(dreamed.first)
    policy, value = nets.behave(params, dreamed.obs, dreamed.memory, first)
    discount = hyper["discount"] * dreamed.cont
    returns = ac.lambda_return(dreamed.reward, sg(value), discount, jnp.zeros_like(discount), hyper["lam"])
    weight = ac.dream_weights(dreamed.cont)
    now = lambda x: jax.tree.map(lambda leaf: leaf[:-1], x)  # noqa: E731
    policy, value = policy._replace(parts=now(policy.parts)), value[:-1]
    advantage, entropy = returns - sg(value), policy.entropy()
    gain = ac.reinforce(policy, now(dreamed.action), advantage)
    actor = ac.actor_loss(gain, entropy, weight, hyper["entropy"]).mean()
    critic = 2 * ac.critic_loss(value, returns, weight).mean()
    metrics = {"loss/actor": actor, "loss/critic": critic, "policy/entropy": entropy.mean()}
    metrics |= {"dream/return": returns[0].mean(), "dream/value": value.mean(), "dream/reward": dreamed.reward.mean()}
    metrics |= {"dream/continue": dreamed.cont.mean()}
    return actor + critic, ({}, metrics | {"loss": actor + critic})


# --- Networks ---------------------------------------------------------------------------------------------------------
class Eyes(nn.Module):
    """What the policy makes of frames `[R, H, W, C]`: four convolutions, each halved by a maximum; an MLP for planes."""

    depth: int
    layers: int
    units: int

    @nn.compact
    def __call__(self, frame: Array) -> Array:
        x = as_floats(frame)
        if frame.dtype == jnp.bool_:
            return MLP(self.layers, self.units, name="mlp")(x.reshape(len(x), -1))
        for i, channels in enumerate((1, 1, 2, 2)):
            x = max_pool(nn.relu(Conv(channels * self.depth, 3, routes=ROUTES, name=f"conv{i}")(x)))
        return x.reshape(len(x), -1)


class Policy(nn.Module):
    """Actor and critic: eyes and an LSTM, which they share, and a linear layer for each."""

    outputs: dict[str, int]
    features: int  # that the eyes make
    depth: int
    layers: int
    units: int

    def setup(self):
        self.eyes = Eyes(self.depth, self.layers, self.units)
        self.lstm = LSTM(self.features, self.units)
        self.actor = Head(self.outputs, 0, 0, outscale=0.01)
        self.critic = Linear(self.units, 1, outscale=0.0)

    def __call__(self, frame: Array) -> Any:
        """Touches every parameter, for `init`: frames `[R, H, W, C]`."""
        return self.judge(self.lstm(self.eyes(frame)))

    def see(self, frame: Array) -> Array:
        """The share of frames `[..., H, W, C]` in the LSTM's gates."""
        seen = self.eyes(frame.reshape(-1, *frame.shape[-3:]))
        return self.lstm.project(seen).reshape(*frame.shape[:-3], -1)

    def remember(self, memory: LSTMState, seen: Array, first: Array) -> LSTMState:
        """The memory after one frame `[B, ...]`."""
        return self.lstm.advance(memory, seen, first)

    def unroll(self, memory: LSTMState, seen: Array, first: Array) -> tuple[LSTMState, Array]:
        """The memory after frames `[B, T, ...]`, and the hidden states at all of them."""
        return self.lstm.unroll(memory, seen, first)

    def judge(self, hidden: Array) -> tuple[dict[str, Array], Array]:
        """The actor's outputs and the value at hidden states `[..., U]`."""
        return self.actor(hidden), self.critic(hidden)[..., 0]


class Dreamed(NamedTuple):
    """Dreams as the policy learns from them, time first `[H, B, ...]`; constants."""

    obs: Array
    action: Array
    reward: Array  # arrives with the frame; 0 at the first
    cont: Array  # the episode goes on after the frame, 0 or 1
    memory: LSTMState  # [B, U], before the first frame
    first: Array  # bool [B], the first frame begins an episode


class Past(NamedTuple):
    """The last frames before a dream, C of them."""

    tokens: Array  # [B, C, K]
    action: Array  # [B, C - 1, ...], taken in all but the last
    first: Array  # bool [B, C]


@dataclass(frozen=True)
class Networks:
    """The three parts over explicit parameters, for one kind of environment. Every method takes those of its part."""

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
        sizes = c.codes, c.code_width, c.depth, c.patch, c.levels, c.blocks, c.attention
        return Tokenizer(tuple(self.sensor[1].shape), *sizes)

    @property
    def tokens(self) -> int:
        """Tokens of a frame, K."""
        return self.tokenizer.tokens

    @property
    def gpt(self) -> Transformer:
        """The transformer of the world model."""
        c = self.config
        positions = c.frames * (self.tokens + 1)
        return Transformer(
            c.layers, c.width, c.heads, 4 * c.width, positions, "pre", "gelu", dropout=c.dropout,
            dtype=jnp.dtype(c.dtype),
        )  # fmt: skip

    @property
    def parts(self) -> dict[str, Any]:
        """The modules of the world model beside the transformer and the table of tokens, with the width of an input."""
        c, head = self.config, partial(Head, layers=1, units=self.config.width, act="relu")
        rewards = 3 if c.sign_rewards else c.bins
        action = spaces.action_size(self.spec.action)
        return {
            "action": (Linear(action, c.width), action),
            "next": (head({"token": c.codes}), c.width),
            "reward": (head({"bins": rewards}), c.width),
            "end": (head({"logit": 1}), c.width),
        }

    @property
    def policy(self) -> Policy:
        """Actor and critic."""
        c = self.config
        eyes = Eyes(c.policy_depth, c.policy_layers, c.units)
        frame = jnp.zeros((1, *self.sensor[1].shape), self.sensor[1].dtype)
        features = jax.eval_shape(lambda: eyes.init_with_output(jax.random.key(0), frame)[0]).shape[-1]
        return Policy(spaces.head_sizes(self.spec.action), features, c.policy_depth, c.policy_layers, c.units)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of the three parts."""
        c, keys = self.config, iter(jax.random.split(key, 8))
        frame = jnp.zeros((1, *self.sensor[1].shape), self.sensor[1].dtype)
        model = {name: module.init(next(keys), jnp.zeros((1, width))) for name, (module, width) in self.parts.items()}
        model["gpt"] = self.gpt.init(next(keys), jnp.zeros((1, 1, c.width)))
        model["token"] = 0.02 * jax.random.normal(next(keys), (c.codes, c.width))
        tokenizer = self.tokenizer.init(next(keys), as_floats(frame))
        return {"tokenizer": tokenizer, "model": model, "policy": self.policy.init(next(keys), frame)}

    # --- Frames -------------------------------------------------------------------------------------------------------
    def frames(self, obs: Any) -> Array:
        """The picture `[..., H, W, C]` of an observation."""
        return sensors(obs)[self.sensor[0]]

    def as_obs(self, frame: Array) -> Any:
        """The observation that shows a picture."""
        return {self.sensor[0]: frame} if isinstance(self.spec.obs, Mapping) else frame

    def encode(self, params: Any, frame: Array) -> Array:
        """Tokens `[..., K]` of frames `[..., H, W, C]`."""
        rows = as_floats(frame.reshape(-1, *frame.shape[-3:]))
        return apply(self.tokenizer, params, rows, method="quantise").tokens.reshape(*frame.shape[:-3], -1)

    def decode(self, params: Any, tokens: Array) -> Array:
        """Frames `[..., H, W, C]` of tokens `[..., K]`, as an environment shows them."""
        codes = apply(self.tokenizer, params, tokens.reshape(-1, tokens.shape[-1]), method="embed")
        painted = apply(self.tokenizer, params, codes, method="paint")
        return as_frame(painted.reshape(*tokens.shape[:-1], *painted.shape[1:]), self.sensor[1])

    # --- World model --------------------------------------------------------------------------------------------------
    def part(self, params: Any, name: str, x: Array) -> Any:
        """One of `parts`."""
        return apply(self.parts[name][0], params[name], x)

    def embed_action(self, params: Any, action: Array) -> Array:
        """Actions `[..., *]` as inputs `[..., W]`."""
        return self.part(params, "action", spaces.encode(self.spec.action, action))

    def embed(self, params: Any, tokens: Array, action: Array) -> Array:
        """Inputs `[B, T (K + 1), W]` of frames `tokens [B, T, K]`, each followed by its action."""
        parts = params["token"][tokens], self.embed_action(params, action)[:, :, None]
        x = jnp.concatenate(parts, 2)
        return x.reshape(len(x), -1, x.shape[-1])

    def starts(self, first: Array) -> Array:
        """Which inputs begin an episode, `[B, T (K + 1)]`, from flags of frames `[B, T]`."""
        wide = jnp.pad(first[..., None], ((0, 0), (0, 0), (0, self.tokens)))
        return wide.reshape(len(first), -1)

    def window(self, params: Any, tokens: Array, action: Array, first: Array, key: Key, share: Share) -> Array:
        """What the transformer makes of windows, with dropout: `[B, T, K + 1, W]`."""
        x = self.embed(params, tokens, action)
        keep = None
        if self.config.dropout:
            shape = (*x.shape[:2], self.config.layers, 2, x.shape[-1])
            keep = dropout_factors(self.gpt, share.uniform(key, shape))
        hidden = apply(self.gpt, params["gpt"], x, self.starts(first), keep)
        return hidden.astype(jnp.float32).reshape(*tokens.shape[:2], self.tokens + 1, -1)

    def next_token(self, params: Any, hidden: Array) -> OneHot:
        """The distribution of the next token, from `hidden [..., W]`."""
        return one_hot(self.part(params, "next", hidden)["token"])

    def outcomes(self, params: Any, hidden: Array) -> tuple[TwoHot, Array]:
        """Reward and the logit of the end `[...]`, from `hidden [..., W]` at an action."""
        bins = jnp.array([-1.0, 0.0, 1.0]) if self.config.sign_rewards else symexp_bins(self.config.bins)
        reward = TwoHot(self.part(params, "reward", hidden)["bins"], bins)
        return reward, self.part(params, "end", hidden)["logit"][..., 0]

    def rewards(self, reward: Array) -> Array:
        """Rewards as they are learned."""
        return jnp.sign(reward) if self.config.sign_rewards else reward

    # --- Policy -------------------------------------------------------------------------------------------------------
    def behave(self, params: Any, frame: Array, memory: LSTMState, first: Array) -> tuple[Actor, Array]:
        """Policy and value in sequences of frames `[T, B, ...]`, from a memory `[B, U]`."""
        seen = apply(self.policy, params, frame, method="see").swapaxes(0, 1)
        _, hidden = apply(self.policy, params, memory, seen, first.swapaxes(0, 1), method="unroll")
        outputs, value = apply(self.policy, params, hidden.swapaxes(0, 1), method="judge")
        return action_distribution(self.spec.action, outputs), value

    def look(self, params: Any, memory: LSTMState, frame: Array, first: Array) -> tuple[LSTMState, Actor]:
        """Memory and policy after one more frame `[B, ...]`."""
        memory = apply(self.policy, params, memory, apply(self.policy, params, frame, method="see"), first, method="remember")
        return memory, action_distribution(self.spec.action, apply(self.policy, params, memory.hidden, method="judge")[0])

    def burnt_in(self, params: Any, frame: Array, first: Array) -> LSTMState:
        """The memory after frames `[B, T, ...]`, T >= 0, from nothing."""
        memory = lstm.initial(len(frame), self.config.units)
        if not frame.shape[1]:
            return memory
        seen = apply(self.policy, params, frame, method="see")
        return apply(self.policy, params, memory, seen, first, method="unroll")[0]

    # --- Dreams -------------------------------------------------------------------------------------------------------
    def dream(
        self, params: Any, past: Past, memory: LSTMState, plan: Array, noise: Array, given: bool = False
    ) -> Rollout:
        """Dream `len(noise)` frames on from a past, time first.
        `plan [H + 1, B, ...]` are the actions, if `given`, or the noise that decides them; `noise [H, B, K]` decides
        the tokens. `seen` are the decoded frames `[H + 1, B, ...]`."""
        model = params["model"]
        draw = lambda hidden, noise: self.next_token(model, hidden.astype(jnp.float32)).invert(noise)  # noqa: E731
        act = lambda tokens, action: self.embed_action(model, action)[:, None]  # noqa: E731
        advance = in_turn(self.gpt, model["gpt"], act, draw, lambda token: model["token"][token])

        def choose(memory: tuple[LSTMState, Array], frame: Frame, plan: Array) -> Any:
            image = self.decode(params["tokenizer"], frame.tokens)
            state, policy = self.look(params["policy"], *memory[:1], image, memory[1])
            return (state, jnp.zeros_like(memory[1])), plan if given else policy.pick(plan), image

        size = self.tokens + 1
        slots = (past.tokens.shape[1] + len(noise)) * size - 1
        ends = spaces.blank(self.spec.action, len(past.first))[:, None]  # of the last frame: not seen yet
        x = self.embed(model, past.tokens, jnp.concatenate([past.action, ends], 1))[:, :-1]
        first = self.starts(past.first)[:, :-1]
        cache, hidden = apply(self.gpt, model["gpt"], x, first, slots, method="read")
        start = Frame(past.tokens[:, -1], jnp.zeros_like(hidden[:, -1:]))
        return rollout(advance, choose, cache, start, plan, noise, (memory, past.first[:, -1]))
