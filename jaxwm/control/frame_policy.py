"""Actor and critic that see frames one after the other: convolutions or an MLP, and an LSTM.

Micheli et al. 2023; with residual eyes Alonso et al. 2024.

B batch, T time, U units. Frames are `[..., H, W, C]`, uint8 images or bool planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor, action_distribution, disturb, forced
from jaxwm.distributions import sg
from jaxwm.learning.step import Losses
from jaxwm.nets import lstm
from jaxwm.nets.encoders import max_pool
from jaxwm.nets.layers import MLP, Conv, Head, Linear, apply
from jaxwm.nets.lstm import LSTM, LSTMState
from jaxwm.nets.quantiser import as_floats
from jaxwm.nets.residual import ROUTES
from jaxwm.nets.unet import GroupNorm
from jaxwm.types import Acted, ActionSpace, Array, Key, Step

CHANNELS = (1, 1, 2, 2)  # Channels of the convolutions, in units of `depth`.


class Eyes(nn.Module):
    """What is made of frames `[R, H, W, C]`: four convolutions, or residual blocks, each halved by a maximum; of planes
    by an MLP."""

    depth: int
    layers: int
    units: int
    residual: bool = False

    @nn.compact
    def __call__(self, frame: Array) -> Array:
        x = as_floats(frame)
        if frame.dtype == jnp.bool_:
            return MLP(self.layers, self.units, name="mlp")(x.reshape(len(x), -1))
        if self.residual:
            x = Conv(self.depth, 3, routes=ROUTES, name="stem")(x)
        for i, channels in enumerate(CHANNELS):
            x = max_pool(self.block(x, channels * self.depth, i))
        return x.reshape(len(x), -1)

    def block(self, x: Array, channels: int, i: int) -> Array:
        """One convolution, around which a residual block has a way."""
        conv = Conv(channels, 3, routes=ROUTES, name=f"conv{i}")
        if not self.residual:
            return nn.relu(conv(x))
        around = x if x.shape[-1] == channels else Conv(channels, 1, name=f"around{i}")(x)
        return around + conv(nn.silu(GroupNorm(name=f"norm{i}")(x)))


class Net(nn.Module):
    """Eyes and an LSTM, which actor and critic share, and a linear layer for each."""

    outputs: dict[str, int]
    features: int  # that the eyes make
    depth: int
    layers: int
    units: int
    residual: bool = False

    def setup(self):
        self.eyes = Eyes(self.depth, self.layers, self.units, self.residual)
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

    def unroll(
        self, memory: LSTMState, seen: Array, first: Array, restart: LSTMState | None = None
    ) -> tuple[LSTMState, Array]:
        """The memory after frames `[B, T, ...]`, and the hidden states at all of them; see `LSTM.unroll`."""
        return self.lstm.unroll(memory, seen, first, restart)

    def judge(self, hidden: Array) -> tuple[dict[str, Array], Array]:
        """The actor's outputs and the value at hidden states `[..., U]`."""
        return self.actor(hidden), self.critic(hidden)[..., 0]


@dataclass(frozen=True)
class FramePolicy:
    """The network over explicit parameters."""

    frame: jax.ShapeDtypeStruct  # of the sensor, [H, W, C]
    space: ActionSpace
    depth: int
    layers: int
    units: int
    residual: bool = False  # eyes of residual blocks

    @property
    def features(self) -> int:
        """Numbers that the eyes make of a frame. ValueError for images too small to be halved four times."""
        if self.frame.dtype == jnp.bool_:
            return self.units
        height, width = (side // 2 ** len(CHANNELS) for side in self.frame.shape[:2])
        if not height * width:
            raise ValueError(
                f"the policy halves images four times, down to nothing of {self.frame.shape}: give 16 x 16"
            )
        return height * width * CHANNELS[-1] * self.depth

    @property
    def net(self) -> Net:
        """The network in these sizes."""
        return Net(spaces.head_sizes(self.space), self.features, self.depth, self.layers, self.units, self.residual)

    def init(self, key: Key) -> Any:
        """Fresh parameters."""
        return self.net.init(key, jnp.zeros((1, *self.frame.shape), self.frame.dtype))

    def reset(self, batch: int) -> LSTMState:
        """The memory before a first frame."""
        return lstm.initial(batch, self.units)

    def behave(
        self, params: Any, frame: Array, memory: LSTMState, first: Array, restart: LSTMState | None = None
    ) -> tuple[Actor, Array]:
        """Policy and value in sequences of frames `[T, B, ...]`, time first, from a memory `[B, U]`; where `first` it
        becomes `restart [T, B, U]`, or nothing."""
        swap = lambda tree: jax.tree.map(lambda x: x.swapaxes(0, 1), tree)  # noqa: E731
        seen = swap(apply(self.net, params, frame, method="see"))
        _, hidden = apply(self.net, params, memory, seen, swap(first), swap(restart), method="unroll")
        outputs, value = apply(self.net, params, swap(hidden), method="judge")
        return action_distribution(self.space, outputs), value

    def look(self, params: Any, memory: LSTMState, frame: Array, first: Array) -> tuple[LSTMState, Actor]:
        """Memory and policy after one more frame `[B, ...]`."""
        seen = apply(self.net, params, frame, method="see")
        memory = apply(self.net, params, memory, seen, first, method="remember")
        outputs, _ = apply(self.net, params, memory.hidden, method="judge")
        return memory, action_distribution(self.space, outputs)

    def act(
        self, params: Any, memory: LSTMState, frame: Array, step: Step, key: Key, mode: str, epsilon: Array,
        temperature: float = 0.0,
    ) -> Acted:  # fmt: skip
        """See `frame [N, ...]`, remember, act; see `Agent.act`. Exploring acts at random in a share `epsilon` of the
        steps, and the greedy mode at a `temperature`."""
        k_action, k_mix = jax.random.split(key)
        action: Any = forced(self.space, step, k_action, mode)
        memory, policy = self.look(params, memory, frame, step.is_first)
        if mode == "explore":
            action = disturb(self.space, policy.sample(k_action), epsilon, k_mix)
        elif mode == "greedy":
            action = tempered(policy, temperature, k_action)
        return memory, action, {}

    def burnt_in(self, params: Any, frame: Array, first: Array) -> LSTMState:
        """The memory after frames `[B, T, ...]`, T >= 0, from nothing."""
        memory = self.reset(len(frame))
        if not frame.shape[1]:
            return memory
        seen = apply(self.net, params, frame, method="see")
        return apply(self.net, params, memory, seen, first, method="unroll")[0]


class Experience(NamedTuple):
    """Dreams, or what really happened, as the policy learns from it: time first, `[T, B, ...]`, constants.
    `weight` says how much a step counts; the last one only bootstraps."""

    obs: Array  # frames
    action: Array
    reward: Array  # arrives with the frame
    cont: Array  # the future after the frame is worth something, 0 or 1
    first: Array  # bool, the frame begins an episode
    last: Array  # bool, what follows the frame is another episode
    weight: Array
    memory: LSTMState  # [B, U], before the first frame
    restart: LSTMState | None = None  # [T, B, U], what memory becomes where `first`; None: nothing


def dreamed(obs: Array, action: Array, reward: Array, cont: Array, first: Array, memory: LSTMState) -> Experience:
    """A dream `[T, B]`, whose first frame may begin an episode, `first [B]`. A step counts as it is likely to be
    reached: nothing after an end."""
    weight = jnp.concatenate([ac.dream_weights(cont), jnp.zeros_like(cont[:1])])
    starts = jnp.zeros(cont.shape, bool).at[0].set(first)
    found = Experience(obs, action, reward, cont, starts, jnp.zeros_like(starts), weight, memory)
    return jax.tree.map(sg, found)


def tempered(policy: Actor, temperature: float, key: Key) -> Array:
    """Actions of a cooler policy; the likeliest ones at temperature 0, and of vectors always."""
    if not temperature or policy.vector is not None:
        return policy.mode()
    return policy._replace(parts=tuple(part.tempered(temperature) for part in policy.parts)).sample(key)


def reinforce_loss(policy: FramePolicy, params: Any, hyper: Any, seen: Experience) -> Losses:
    """REINFORCE with the value as its baseline (Williams 1992), squared errors of values, and entropy.
    `hyper` holds `discount`, `lam` and `entropy`."""
    chex.assert_equal_shape((seen.reward, seen.cont, seen.first, seen.last, seen.weight))
    dist, value = policy.behave(params, seen.obs, seen.memory, seen.first, seen.restart)
    returns = ac.lambda_return(seen.reward, sg(value), hyper["discount"] * seen.cont, seen.last, hyper["lam"])
    now = lambda x: jax.tree.map(lambda leaf: leaf[:-1], x)  # noqa: E731
    dist, value, weight = dist._replace(parts=now(dist.parts), vector=now(dist.vector)), value[:-1], seen.weight[:-1]
    entropy = dist.entropy()
    gain = ac.reinforce(dist, now(seen.action), returns - sg(value))
    actor = ac.actor_loss(gain, entropy, weight, hyper["entropy"]).mean()
    critic = 2 * ac.critic_loss(value, returns, weight).mean()
    metrics = {"loss": actor + critic, "loss/actor": actor, "loss/critic": critic, "entropy": entropy.mean()}
    metrics |= {"return": returns[0].mean(), "value": value.mean(), "reward": seen.reward[1:].mean()}
    return actor + critic, ({}, metrics | {"continue": seen.cont.mean()})
