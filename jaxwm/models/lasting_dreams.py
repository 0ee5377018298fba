"""Dreams of frames that live on from one update of a policy to the next (Alonso et al. 2024, section 3.3).

A dream goes on until an imagined end or for `horizon` steps, then begins anew from frames that were really seen. How
often it learns from its steps has nothing to do with how long it is.

Letters as in `models.pixel_world`; H steps of an update, L records that a dream begins with, U units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.control.frame_policy import Experience, FramePolicy
from jaxwm.distributions import sg
from jaxwm.learning.share import ALONE, Share
from jaxwm.models.outcomes import drawn_outcomes
from jaxwm.models.pixel_world import PixelWorld, Stack, stacked
from jaxwm.nets import lstm
from jaxwm.nets.lstm import LSTMState
from jaxwm.nets.sensors import sensors
from jaxwm.types import Array, Dream, Key, Record, Spec


class Dreams(NamedTuple):
    """B dreams at their newest frames."""

    stack: Stack
    outcome: LSTMState  # of the model of rewards and ends, after the newest frame
    memory: LSTMState  # of the policy, before the newest frame
    reward: Array  # arrived with the newest frame
    cont: Array  # the future after it is worth something, 0 or 1
    age: Array  # steps dreamed, int32
    over: Array  # bool, another dream begins in its place
    fresh: Array  # bool, the newest frame is where the dream began


def renewed(over: Array, dreams: Dreams, starts: Dreams, which: Array) -> Dreams:
    """The dreams with those that are `over [B]` replaced by the starts of those numbers, `which [B]`."""
    pick = lambda old, new: jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), new[which], old)  # noqa: E731
    return jax.tree.map(pick, dreams, starts)


@dataclass(frozen=True)
class LastingDreams:
    """A world model and a policy that sees its frames. Parameters are `{"denoiser", "outcome", "policy"}`."""

    spec: Spec
    sensor: str  # the one that is seen
    world: PixelWorld
    policy: FramePolicy
    horizon: int  # most steps of a dream

    def frames(self, obs: Any) -> Array:
        """The picture `[..., H, W, C]` of an observation."""
        return sensors(obs)[self.sensor]

    def empty(self, batch: int) -> Dreams:
        """Dreams that are over, so that all begin with the next update."""
        world, space = self.world, self.spec.action
        frame = jnp.zeros((batch, world.past, *world.frame.shape), world.frame.dtype)
        blank = spaces.blank(space, batch)[:, None].repeat(world.past - 1, 1)
        memory = () if world.memory == "none" else jnp.zeros((batch, world.memory_units))
        stack = Stack(frame, blank, jnp.zeros((batch, world.past), bool), memory)
        zero, over = jnp.zeros(batch), jnp.ones(batch, bool)
        outcome, policy = lstm.initial(batch, world.units), self.policy.reset(batch)
        return Dreams(stack, outcome, policy, zero, zero, jnp.zeros(batch, jnp.int32), over, ~over)

    def starts(self, params: Any, record: Record) -> Dreams:
        """Dreams that begin with the last one of records `[B, L]`; both memories are burnt in on those before it.
        Where an episode is over nothing can be dreamed, and so is the dream."""
        frame, first = self.frames(record.obs), record.is_first
        outcome, _ = self.world.remembered(params["outcome"], frame, record.action, first)
        memory = self.policy.burnt_in(params["policy"], frame[:, :-1], first[:, :-1])
        memory = jax.tree.map(lambda x: jnp.where(first[:, -1:], 0.0, x), memory)
        recalled = self.world.before_last(params["denoiser"], frame, record.action, first)
        stack, over = stacked(frame, record.action, first, self.world.past, recalled), record.is_last[:, -1]
        zero, age = jnp.zeros(len(over)), jnp.zeros(len(over), jnp.int32)
        cont = 1.0 - record.is_terminal[:, -1]
        return Dreams(stack, outcome, memory, zero, cont, age, over, jnp.ones_like(over))

    def step(
        self, params: Any, dreams: Dreams, plan: Array, noise: Array, given: bool = False
    ) -> tuple[Dreams, Array, Any]:
        """One step on: the dreams, but for their rewards and ends; the action; and what is said of those two.
        `plan [B, ...]` is the action, if `given`, or the noise that decides it; `noise [B, H, W, C]` is the frame's."""
        frame, never = dreams.stack.frame[:, -1], jnp.zeros_like(dreams.over)
        memory, policy = self.policy.look(params["policy"], dreams.memory, frame, never)
        action = plan if given else policy.pick(plan)
        stack = self.world.follow(params["denoiser"], dreams.stack, action, noise)
        outcome = self.world.advance(params["outcome"], dreams.outcome, frame, action, stack.frame[:, -1])
        after = dreams._replace(stack=stack, outcome=outcome, memory=memory, age=dreams.age + 1, fresh=never)
        return after, action, self.world.judged(params["outcome"], outcome.hidden)

    def experience(
        self, params: Any, dreams: Dreams, record: Record, steps: int, key: Key, share: Share = ALONE
    ) -> tuple[Dreams, Experience]:
        """Go on with this device's dreams for `steps` steps, for learning: everything is drawn. New ones begin with
        the last one of records `[B, L]`, the n-th of them in a dream's place n rows further on."""
        space, batch = self.spec.action, len(dreams.over)
        k_plan, k_noise, k_outcome = jax.random.split(key, 3)
        plan = spaces.noise(space, share.uniform(k_plan, (steps, batch, spaces.noise_size(space)), 1))
        noise = share.normal(k_noise, (steps, batch, *self.world.frame.shape), 1)
        uniform = share.uniform(k_outcome, (steps, batch, 2), 1)
        starts, whole = share.gather(self.starts(params, record)), batch * share.devices
        place = share.slice(jnp.arange(whole))

        def one(carry: tuple[Dreams, Array], x: tuple[Array, Array, Array]) -> tuple[Any, Any]:
            (now, count), (plan, noise, uniform) = carry, x
            after, action, (reward, end) = self.step(params, now, plan, noise)
            reward, cont = drawn_outcomes(reward, end, uniform, self.world.sign_rewards)
            over = (cont == 0) | (after.age >= self.horizon)
            after = after._replace(reward=reward, cont=cont, over=over)
            # a dream that was over did not go on: another one begins in its place
            after = renewed(now.over, after, starts, (place + count) % whole)
            return (after, count + now.over), (self.row(now), action)

        begun = renewed(dreams.over, dreams, starts, place), dreams.over.astype(jnp.int32)
        (last, _), (rows, action) = jax.lax.scan(one, begun, (plan, noise, uniform))
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), rows, self.row(last))
        action = jnp.concatenate([action, spaces.blank(space, batch)[None]])
        seen = Experience(rows["obs"], action, rows["reward"], rows["cont"], rows["first"], rows["over"],
                          1.0 - rows["over"], begun[0].memory, rows["memory"])  # fmt: skip
        return last, jax.tree.map(sg, seen)

    def row(self, dreams: Dreams) -> dict[str, Any]:
        """What the policy learns from dreams at one moment."""
        kept = dict(reward=dreams.reward, cont=dreams.cont, first=dreams.fresh, over=dreams.over, memory=dreams.memory)
        return kept | {"obs": dreams.stack.frame[:, -1]}

    def imagine(self, params: Any, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
        """A dream on from `context [B, L]`; see `Agent.imagine`."""
        space, batch = self.spec.action, len(context.reward)
        spaces.check_dream(space, context, given, horizon)
        k_plan, k_noise = jax.random.split(key)
        if given is None:
            plan = spaces.noise(space, jax.random.uniform(k_plan, (horizon, batch, spaces.noise_size(space))))
        else:
            plan = given.swapaxes(0, 1)
        noise = jax.random.normal(k_noise, (horizon, batch, *self.world.frame.shape))

        def one(now: Dreams, x: tuple[Array, Array]) -> tuple[Dreams, Any]:
            now, action, (reward, end) = self.step(params, now, *x, given is not None)
            return now, (now.stack.frame[:, -1], reward.mean(), 1 - jax.nn.sigmoid(end), action)

        _, (frame, reward, cont, action) = jax.lax.scan(one, self.starts(params, context), (plan, noise))
        obs = {self.sensor: frame} if isinstance(self.spec.obs, Mapping) else frame
        return Dream(obs, reward, cont, action, {}).swapped()
