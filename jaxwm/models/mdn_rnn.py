"""The MDN-RNN of World Models: an LSTM and a mixture of normals over the next code (Ha & Schmidhuber 2018, A.2).

B batch, T time, Z size of a code, A width of an action, U units, K mixture components of every entry of a code."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxwm.distributions import Mixture, mixture
from jaxwm.nets.layers import Linear
from jaxwm.nets.lstm import LSTM, LSTMState, initial
from jaxwm.types import Array


class Prediction(NamedTuple):
    """Of the next step: the code `[..., Z]`, and, where there are such heads, logit of the end and reward `[...]`."""

    code: Mixture
    done: Array | None
    reward: Array | None


class MDNRNN(nn.Module):
    """LSTM with a mixture density head, and heads for the end of the episode and the reward where asked for.
    It sees code, action, and, with a done head, the flag of a first step, as published; episodes start from state 0."""

    codes: int
    actions: int
    units: int
    mixtures: int = 5
    done: bool = True
    reward: bool = False

    def setup(self):
        self.lstm = LSTM(self.codes + self.actions + self.done, self.units)
        nn.share_scope(self, self.lstm)
        self.mdn = Linear(self.units, 3 * self.codes * self.mixtures)
        if self.done:
            self.end = Linear(self.units, 1)
        if self.reward:
            self.gain = Linear(self.units, 1)

    def __call__(self, code: Array, action: Array) -> Prediction:
        """Touches every parameter, for `init`: `[B, Z]` and `[B, A]`."""
        first = jnp.ones(len(code), bool)
        return self.predict(self.step(self.initial(len(code)), code, action, first).hidden)

    def initial(self, batch: int) -> LSTMState:
        """The LSTM state before a first step."""
        return initial(batch, self.units)

    def inputs(self, code: Array, action: Array, first: Array) -> Array:
        """What code, action and flag `[..., *]` contribute to the gates, `[..., 4U]`."""
        parts = [code, action] + ([first[..., None].astype(code.dtype)] if self.done else [])
        return self.lstm.project(jnp.concatenate(parts, -1))

    def step(self, state: LSTMState, code: Array, action: Array, first: Array) -> LSTMState:
        """One step of any batch shape `[..., *]`."""
        return self.lstm.advance(state, self.inputs(code, action, first), first)

    def unroll(self, state: LSTMState, code: Array, action: Array, first: Array) -> tuple[LSTMState, Array]:
        """States after every step of `[B, T, *]`: the last one, and all hidden ones `[B, T, U]`."""
        return self.lstm.unroll(state, self.inputs(code, action, first), first)

    def predict(self, hidden: Array) -> Prediction:
        """The next step, from hidden states `[..., U]`."""
        code = mixture(self.mdn(hidden), self.mixtures)
        done = self.end(hidden)[..., 0] if self.done else None
        return Prediction(code, done, self.gain(hidden)[..., 0] if self.reward else None)
