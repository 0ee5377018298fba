"""What a model of frames remembers beyond the last few of them: a small encoder and a recurrence.

In the manner of EDELINE (Lee et al. 2025), whose recurrence is a Mamba: here a gated recurrent unit (Cho et al. 2014),
or a diagonal linear recurrence whose decay depends on its input, a selective state space with one number per channel.

R rows, B batch, T time, A width of an action, U units."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.nets.layers import Conv, Linear
from jaxwm.nets.unet import Halve, whole
from jaxwm.types import Array

GATES = {"gru": 3, "ssm": 2}


class Recall(nn.Module):
    """Frames and the actions after them, one after the other: a state `[B, U]`."""

    kind: Literal["gru", "ssm"]
    channels: tuple[int, ...]  # at each size
    features: int  # that the encoder makes
    action: int  # width of an action
    units: int
    routes: Routes = PLAIN
    dtype: Any = jnp.float32

    def setup(self):
        self.stem = Conv(self.channels[0], 3, routes=self.routes, dtype=self.dtype)
        self.halve = [Halve(self.dtype) for _ in self.channels[1:]]
        self.gates = Linear(self.features + self.action, GATES[self.kind] * self.units)
        if self.kind == "gru":
            self.back = Linear(self.units, 3 * self.units)

    def __call__(self, frame: Array, action: Array) -> Array:
        """Touches every parameter, for `init`."""
        return self.advance(jnp.zeros((len(frame), self.units)), self.see(frame, action))

    def see(self, frame: Array, action: Array) -> Array:
        """What frames `[R, H, W, C]` and actions `[R, A]` contribute to the gates."""
        x = nn.silu(self.stem(whole(frame, len(self.channels))))
        for halve in self.halve:
            x = nn.silu(halve(x))
        return self.gates(jnp.concatenate([x.astype(jnp.float32).reshape(len(x), -1), action], -1))

    def advance(self, state: Array, seen: Array) -> Array:
        """The state after one more frame and action."""
        if self.kind == "ssm":
            keep, new = jnp.split(seen, 2, -1)
            keep = jax.nn.sigmoid(keep + 2.0)
            return keep * state + (1 - keep) * jnp.tanh(new)
        keep, use, new = jnp.split(seen, 3, -1)
        old_keep, old_use, old_new = jnp.split(self.back(state), 3, -1)
        keep, use = jax.nn.sigmoid(keep + old_keep), jax.nn.sigmoid(use + old_use)
        return keep * state + (1 - keep) * jnp.tanh(new + use * old_new)

    def unroll(self, seen: Array, first: Array) -> Array:
        """States after each of sequences `[B, T, ...]`, from nothing where `first`: `[B, T, U]`."""

        def one(state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            state = self.advance(jnp.where(x[1][:, None], 0.0, state), x[0])
            return state, state

        xs = seen.swapaxes(0, 1), first.swapaxes(0, 1)
        return jax.lax.scan(one, jnp.zeros((len(seen), self.units)), xs)[1].swapaxes(0, 1)
