"""A world model that paints: the next frame by diffusion, its reward and the end by convolutions and an LSTM.

Alonso et al. 2024 (DIAMOND). Parameters are `{"denoiser", "outcome", ...}`.

Letters: B batch, T time, K past frames, U units. Frames are `[..., H, W, C]`, uint8 images or bool planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.distributions import TwoHot
from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.models.diffusion import EDM, noise_levels, sample
from jaxwm.models.outcomes import reward_bins
from jaxwm.nets import lstm
from jaxwm.nets.layers import Conv, Head, Linear, apply
from jaxwm.nets.lstm import LSTM, LSTMState
from jaxwm.nets.quantiser import as_floats, as_frame
from jaxwm.nets.recall import Recall
from jaxwm.nets.unet import Descent, FrameNet, whole
from jaxwm.types import ActionSpace, Array, Key


class Stack(NamedTuple):
    """The last K frames, oldest first."""

    frame: Array  # [B, K, H, W, C]
    action: Array  # [B, K - 1, ...], taken in all but the last
    known: Array  # bool [B, K], of the same episode as the last one
    memory: Any = ()  # [B, U], of all before the last one, where there is one


def same_episode(first: Array) -> Array:
    """Which records belong to the episode of the last one: bool `[..., K]` from `is_first [..., K]`."""
    start = jnp.flip(jnp.cumsum(jnp.flip(first[..., 1:].astype(jnp.int32), -1), -1), -1)
    return jnp.concatenate([start == 0, jnp.ones_like(first[..., :1], bool)], -1)


def stacked(frame: Array, action: Array, first: Array, count: int, memory: Any = ()) -> Stack:
    """The last `count` frames of sequences `[B, L]`; where there are fewer, those that are missing are unknown."""
    missing = max(0, count - frame.shape[1])
    fill = lambda x: jnp.pad(x[:, -count:], [(0, 0), (missing, 0)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    known = jnp.pad(same_episode(first[:, -count:]), ((0, 0), (missing, 0)))
    return Stack(fill(frame), fill(action)[:, :-1], known, memory)


def pushed(stack: Stack, frame: Array, action: Array, memory: Any = ()) -> Stack:
    """The stack after `frame [B, ...]` followed under `action [B, ...]`; `memory` includes both before it."""
    move = lambda old, new: jnp.concatenate([old[:, 1:], new[:, None]], 1)  # noqa: E731
    moved = move(stack.frame, frame), move(stack.action, action), move(stack.known, jnp.ones_like(stack.known[:, 0]))
    return Stack(*moved, memory)


def signed(frame: Array) -> Array:
    """Frames as numbers in [-1, 1]."""
    return 2 * as_floats(frame) - 1


class OutcomeNet(nn.Module):
    """Two frames and the action between them through residual blocks, an LSTM, and heads for reward and end."""

    channels: tuple[int, ...]
    blocks: int
    cond: int
    features: int  # that the encoder makes
    units: int
    bins: int
    routes: Routes = PLAIN
    dtype: Any = jnp.float32

    def setup(self):
        options: dict[str, Any] = dict(routes=self.routes, dtype=self.dtype)
        self.stem = Conv(self.channels[0], 3, **options)
        self.encoder = Descent(self.channels, self.blocks, **options)
        self.lstm = LSTM(self.features, self.units)
        self.head = Head({"bins": self.bins, "end": 1}, 1, self.units, act="silu")

    @nn.compact
    def see(self, before: Array, action: Array, after: Array) -> Array:
        """The share of transitions `[R, H, W, C]`, `[R, A]` in the LSTM's gates."""
        cond = Linear(action.shape[-1], self.cond, name="action")(action)
        x = whole(self.stem(jnp.concatenate([before, after], -1)), len(self.channels))
        x, _ = self.encoder(x, cond)
        return self.lstm.project(x.astype(jnp.float32).reshape(len(x), -1))

    def __call__(self, before: Array, action: Array, after: Array) -> Any:
        """Touches every parameter, for `init`."""
        seen = self.see(before, action, after)
        memory = lstm.initial(len(seen), self.units)
        return self.judge(self.lstm.advance(memory, seen, jnp.ones(len(seen), bool)).hidden)

    def remember(self, memory: LSTMState, seen: Array, first: Array) -> LSTMState:
        """The memory after one transition `[B, ...]`."""
        return self.lstm.advance(memory, seen, first)

    def unroll(self, memory: LSTMState, seen: Array, first: Array) -> tuple[LSTMState, Array]:
        """The memory after transitions `[B, T, ...]`, and the hidden states after each."""
        return self.lstm.unroll(memory, seen, first)

    def judge(self, hidden: Array) -> dict[str, Array]:
        """Logits of the reward's bins and of the end, from hidden states `[..., U]`."""
        return self.head(hidden)


@dataclass(frozen=True)
class PixelWorld:
    """The model over explicit parameters."""

    frame: jax.ShapeDtypeStruct  # [H, W, C]
    space: ActionSpace
    past: int  # frames that the denoiser sees, K
    channels: tuple[int, ...]  # of the denoiser at each size
    blocks: int
    cond: int
    outcome_channels: tuple[int, ...]
    outcome_blocks: int
    outcome_cond: int
    units: int  # of the outcome model's LSTM
    steps: int = 3  # of denoising
    heun: bool = False
    sign_rewards: bool = True
    bins: int = 255
    memory: str = "none"  # "gru" or "ssm", see `nets.recall`
    memory_units: int = 0
    routes: Routes = PLAIN
    dtype: Any = jnp.float32
    edm: EDM = EDM()

    @property
    def net(self) -> FrameNet:
        """The denoiser's network."""
        return FrameNet(self.channels, self.blocks, self.cond, self.routes, jnp.dtype(self.dtype))

    @property
    def outcome(self) -> OutcomeNet:
        """The model of rewards and ends."""
        features = self.cells(self.outcome_channels) * self.outcome_channels[-1]
        sizes = self.outcome_channels, self.outcome_blocks, self.outcome_cond, features, self.units
        bins = len(reward_bins(self.sign_rewards, self.bins))
        return OutcomeNet(*sizes, bins, self.routes, jnp.dtype(self.dtype))

    @property
    def recall(self) -> Recall:
        """What the denoiser remembers beyond its past frames, where it does."""
        channels, action = self.outcome_channels, spaces.action_size(self.space)
        sizes = channels, self.cells(channels) * channels[-1], action, self.memory_units
        return Recall(self.memory, *sizes, self.routes, jnp.dtype(self.dtype))  # type: ignore[arg-type]

    def cells(self, channels: tuple[int, ...]) -> int:
        """Cells of the smallest planes of an encoder."""
        rows, columns = (-(-side // 2 ** (len(channels) - 1)) for side in self.frame.shape[:2])
        return rows * columns

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of both."""
        k_denoiser, k_outcome, k_memory = jax.random.split(key, 3)
        height, width, channels = self.frame.shape
        frame, action = jnp.zeros((1, height, width, channels)), jnp.zeros((1, spaces.action_size(self.space)))
        past = jnp.zeros((1, height, width, self.past * channels))
        actions, known = action[:, None].repeat(self.past, 1), jnp.ones((1, self.past), bool)
        memory = () if self.memory == "none" else (jnp.zeros((1, self.memory_units)),)
        denoiser: Any = self.net.init(k_denoiser, frame, jnp.zeros(1), past, actions, known, *memory)
        if memory:
            denoiser = denoiser | {"memory": self.recall.init(k_memory, frame, action)}
        return {"denoiser": denoiser, "outcome": self.outcome.init(k_outcome, frame, action, frame)}

    # --- Frames -------------------------------------------------------------------------------------------------------
    def paint(
        self, params: Any, noisy: Array, sigma: Array, past: Array, action: Array, known: Array, memory: Any = ()
    ) -> Array:
        """What the network puts out for noisy frames `[B, H, W, C]` at levels `[B]`, after `past [B, K, H, W, C]` in
        [-1, 1] and their actions `[B, K, ...]`, of which those count that are `known [B, K]`, and a `memory [B, U]`
        that includes all of these, where there is one."""
        chex.assert_shape(past, (len(noisy), self.past, *noisy.shape[1:]))
        seen = past * known[..., None, None, None] / self.edm.sigma_data
        seen = jnp.moveaxis(seen, 1, 3).reshape(*noisy.shape[:-1], -1)
        scales = self.edm.scales(sigma)
        into = noisy * scales.into[:, None, None, None]
        more = () if self.memory == "none" else (memory,)
        return apply(self.net, params, into, scales.level, seen, spaces.encode(self.space, action), known, *more)

    def recalled(self, params: Any, frame: Array, action: Array, first: Array) -> Any:
        """Memories after each of frames `[B, T, ...]` and the action after it, `[B, T, U]`; () where there is none."""
        if self.memory == "none":
            return ()
        rows = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        acted = spaces.encode(self.space, action)
        seen = apply(self.recall, params["memory"], rows(signed(frame)), rows(acted), method="see")
        return apply(self.recall, params["memory"], seen.reshape(*first.shape, -1), first, method="unroll")

    def before_last(self, params: Any, frame: Array, action: Array, first: Array) -> Any:
        """The memory `[B, U]` of all records `[B, L]` but the last one; () where there is none."""
        if self.memory == "none":
            return ()
        if frame.shape[1] == 1:
            return jnp.zeros((len(frame), self.memory_units))
        memory = self.recalled(params, frame[:, :-1], action[:, :-1], first[:, :-1])[:, -1]
        return jnp.where(first[:, -1:], 0.0, memory)

    def follow(self, params: Any, stack: Stack, action: Array, noise: Array) -> Stack:
        """The stack with the frame that follows under `action [B, ...]`; `noise [B, H, W, C]` is standard normal."""
        memory = ()
        if self.memory != "none":
            acted = spaces.encode(self.space, action)
            seen = apply(self.recall, params["memory"], signed(stack.frame[:, -1]), acted, method="see")
            memory = apply(self.recall, params["memory"], stack.memory, seen, method="advance")
        return pushed(stack, self.next_frame(params, stack, action, noise, memory), action, memory)

    def next_frame(self, params: Any, stack: Stack, action: Array, noise: Array, memory: Any = ()) -> Array:
        """The frame `[B, H, W, C]` that follows; `memory` includes `action`."""
        past, actions = signed(stack.frame), jnp.concatenate([stack.action, action[:, None]], 1)

        def denoise(noisy: Array, sigma: Array) -> Array:
            level = jnp.full(len(noisy), sigma)
            output = self.paint(params, noisy, level, past, actions, stack.known, memory)
            return self.edm.clean(noisy, output, level)

        painted = sample(denoise, noise, noise_levels(self.steps), self.heun)
        return as_frame(painted if self.frame.dtype == jnp.bool_ else (painted + 1) / 2, self.frame)

    # --- Rewards and ends ---------------------------------------------------------------------------------------------
    def transitions(self, params: Any, frame: Array, action: Array) -> Array:
        """The share of the transitions between frames `[B, T + 1, ...]` in the LSTM's gates: `[B, T, ...]`."""
        rows = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        x, acted = signed(frame), spaces.encode(self.space, action[:, : frame.shape[1] - 1])
        seen = apply(self.outcome, params, rows(x[:, :-1]), rows(acted), rows(x[:, 1:]), method="see")
        return seen.reshape(len(frame), -1, seen.shape[-1])

    def remembered(self, params: Any, frame: Array, action: Array, first: Array) -> tuple[LSTMState, Array]:
        """The memory after records `[B, T + 1, ...]`, and hidden states after each of their transitions `[B, T, U]`.
        What happened before the start of an episode is forgotten."""
        memory = lstm.initial(len(frame), self.units)
        if frame.shape[1] == 1:
            return memory, jnp.zeros((len(frame), 0, self.units))
        seen = self.transitions(params, frame, action)
        memory, hidden = apply(self.outcome, params, memory, seen, first[:, :-1], method="unroll")
        return jax.tree.map(lambda x: jnp.where(first[:, -1:], 0.0, x), memory), hidden

    def advance(self, params: Any, memory: LSTMState, before: Array, action: Array, after: Array) -> LSTMState:
        """The memory after one more transition between frames `[B, ...]`."""
        seen = self.transitions(params, jnp.stack([before, after], 1), action[:, None])[:, 0]
        return apply(self.outcome, params, memory, seen, jnp.zeros(len(seen), bool), method="remember")

    def judged(self, params: Any, hidden: Array) -> tuple[TwoHot, Array]:
        """Reward and the logit of the end, from hidden states `[..., U]`."""
        found = apply(self.outcome, params, hidden, method="judge")
        return TwoHot(found["bins"], reward_bins(self.sign_rewards, self.bins)), found["end"][..., 0]
