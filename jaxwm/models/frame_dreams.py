"""Dreams of frames: tokens that a `TokenWorld` predicts, decoded for a policy that sees frames (Micheli et al. 2023).

Letters as in `models.token_world`; H frames of a dream, C frames that it begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control.frame_policy import Experience, FramePolicy, dreamed
from jaxwm.learning.share import ALONE, Share
from jaxwm.models.token_world import Past, TokenWorld, newest
from jaxwm.models.tokens import Frame, Rollout, rollout
from jaxwm.nets.lstm import LSTMState
from jaxwm.nets.sensors import sensors
from jaxwm.types import Array, Dream, Key, Record, Spec


class Watch(NamedTuple):
    """What the policy carries through a dream."""

    memory: LSTMState
    first: Array  # bool [B], the next frame begins an episode
    before: LSTMState  # the memory without the frame that was seen last


def check_window(frames: int, context: int, length: int, unseen: int) -> None:
    """ValueError unless dreams of `length` frames after a context fit a window of `frames`, of which the last `unseen`
    frames of a dream need no place."""
    if context + length - unseen > frames:
        raise ValueError(
            f"dreams of {length} frames after a context of {context} do not fit the model's window: "
            f"context + imag_length - {unseen} must be at most frames, {frames}"
        )


@dataclass(frozen=True)
class FrameDreams:
    """A world model and a policy with an eye between them. Parameters are `{"model", "policy", ...}`."""

    spec: Spec
    sensor: str  # the one that is seen
    encode: Callable[[Any, Array], Array]  # (params, frames [..., H, W, C]) -> tokens [..., K]
    decode: Callable[[Any, Array], Array]  # the inverse, in the dtype of the observation
    world: TokenWorld
    policy: FramePolicy
    grid: tuple[int, int]  # rows and columns of tokens
    context: int  # frames that a dream begins with, C
    decoded: bool = True  # the policy sees decoded frames in reality as well

    def frames(self, obs: Any) -> Array:
        """The picture `[..., H, W, C]` of an observation."""
        return sensors(obs)[self.sensor]

    def shown(self, params: Any, frame: Array) -> Array:
        """A real frame as the policy sees it."""
        return self.decode(params, self.encode(params, frame)) if self.decoded else frame

    def recall(self, params: Any, record: Record, length: int) -> tuple[Past, LSTMState]:
        """What a dream after records `[B, L]` begins with: the last `length` frames, and what the policy remembers of
        all that came before the last one."""
        frame, seen = self.frames(record.obs), slice(-length, None)
        memory = self.policy.burnt_in(params["policy"], self.shown(params, frame[:, :-1]), record.is_first[:, :-1])
        past = Past(self.encode(params, frame[:, seen]), record.action[:, seen][:, :-1], record.is_first[:, seen])
        return past, memory

    def dream(
        self, params: Any, past: Past, memory: LSTMState, plan: Array, noise: Array, given: bool = False
    ) -> Rollout:
        """Dream `len(noise)` frames on from a past, time first.
        `plan [H + 1, B, ...]` are the actions, if `given`, or the noise that decides them; `noise [H, B, K]` decides
        the tokens. `seen` are the decoded frames `[H + 1, B, ...]`."""

        def choose(watch: Watch, frame: Frame, plan: Array) -> tuple[Watch, Array, Array]:
            image = self.decode(params, frame.tokens)
            memory, policy = self.policy.look(params["policy"], watch.memory, image, watch.first)
            watch = Watch(memory, jnp.zeros_like(watch.first), watch.memory)
            return watch, plan if given else policy.pick(plan), image

        cache, start = self.world.begin(params["model"], past, len(noise))
        watch = Watch(memory, past.first[:, -1], memory)
        return rollout(self.world.advance(params["model"]), choose, cache, start, plan, noise, watch)

    def experience(self, params: Any, record: Record, length: int, key: Key, share: Share = ALONE) -> Experience:
        """Dreams of `length` frames from the last ones of sequences `[B, L]`, for learning: all of them are drawn."""
        space, batch = self.spec.action, len(record.reward)
        k_plan, k_token, k_outcome = jax.random.split(key, 3)
        past, memory = self.recall(params, record, self.context)
        plan = spaces.noise(space, share.uniform(k_plan, (length, batch, spaces.noise_size(space)), 1))
        noise = share.uniform(k_token, (length - 1, batch, self.world.tokens), 1)
        found = self.dream(params, past, memory, plan, noise)
        uniform = share.uniform(k_outcome, (*noise.shape[:2], 2), 1)
        reward, cont = self.world.drawn(params["model"], found.frames.hidden[1:, :, -1], uniform)
        root = 1.0 - record.is_last[None, :, -1]  # nothing is worth learning where an episode is over
        reward, cont = jnp.concatenate([0 * root, reward]), jnp.concatenate([root, cont])
        return dreamed(found.seen, found.actions, reward, cont, past.first[:, -1], memory)

    def imagine(self, params: Any, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
        """A dream on from `context [B, L]`; see `Agent.imagine`. Where the model's window is full, it goes on from the
        last frames only, as many as a dream begins with; the policy remembers more."""
        spaces.check_dream(self.spec.action, context, given, horizon)
        batch, length = len(context.reward), min(self.context, context.reward.shape[1])
        each = min(horizon, self.world.longest(length))  # frames of a stretch between two such cuts
        plans, noise = self._stretches(given, key, (-(-horizon // each), each, batch))

        def stretch(carry: tuple[Past, LSTMState], x: tuple[Array, Array]) -> tuple[Any, Any]:
            past, memory = carry
            plan, noise = x
            # the last frame is that with which the next stretch begins, so its action is not taken here
            found = self.dream(params, past, memory, jnp.concatenate([plan, plan[-1:]]), noise, given is not None)
            ahead = found.frames.tokens[1:], found.frames.hidden[1:, :, -1], found.seen[1:], found.actions[:-1]
            tokens, hidden, seen, actions = (x.swapaxes(0, 1) for x in ahead)
            return (newest(past, tokens, actions), found.memory.before), (tokens, hidden, seen, actions)

        _, found = jax.lax.scan(stretch, self.recall(params, context, length), (plans, noise))
        joined = lambda x: x.swapaxes(0, 1).reshape(batch, -1, *x.shape[3:])[:, :horizon]  # noqa: E731
        tokens, hidden, seen, actions = map(joined, found)
        reward, end = self.world.outcomes(params["model"], hidden)
        obs = {self.sensor: seen} if isinstance(self.spec.obs, Mapping) else seen
        latent = {"tokens": tokens.reshape(*tokens.shape[:2], *self.grid)}
        return Dream(obs, reward.mean(), 1 - jax.nn.sigmoid(end), actions, latent)

    def _stretches(self, given: Array | None, key: Key, shape: tuple[int, int, int]) -> tuple[Array, Array]:
        """For n stretches of H frames of B dreams, `shape`: the given actions, or the noise behind them, and the noise
        of the tokens."""
        k_plan, k_token = jax.random.split(key)
        space, noise = self.spec.action, jax.random.uniform(k_token, (*shape, self.world.tokens))
        if given is None:
            return spaces.noise(space, jax.random.uniform(k_plan, (*shape, spaces.noise_size(space)))), noise
        spare = shape[0] * shape[1] - given.shape[1]
        filled = jnp.concatenate([given, jnp.repeat(given[:, -1:], spare, 1)], 1).swapaxes(0, 1)
        return filled.reshape(*shape, *given.shape[2:]), noise
