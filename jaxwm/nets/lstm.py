"""The long short-term memory (Hochreiter & Schmidhuber 1997), with its inputs apart from its recurrence.

U units. Whoever projects all inputs of a sequence at once leaves one product for each step of the loop."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.nets.layers import Linear
from jaxwm.types import Array


class LSTMState(NamedTuple):
    """Hidden state and cell, `[..., U]`; what was predicted follows from `hidden` alone."""

    hidden: Array
    cell: Array


def initial(batch: int, units: int) -> LSTMState:
    """The state before a first step."""
    return LSTMState(jnp.zeros((batch, units)), jnp.zeros((batch, units)))


class LSTM(nn.Module):
    """An LSTM whose forget gate is biased by 1 (Jozefowicz et al. 2015); `inputs` numbers come in, U go out."""

    inputs: int
    units: int

    def setup(self):
        self.gates = Linear(self.inputs + self.units, 4 * self.units)

    def __call__(self, x: Array) -> Array:
        """Touches every parameter, for `init`: `[B, inputs]`."""
        return self.advance(initial(len(x), self.units), self.project(x), jnp.ones(len(x), bool)).hidden

    def project(self, x: Array) -> Array:
        """What inputs `[..., inputs]` contribute to the gates, `[..., 4U]`."""
        return self.gates(x)

    def advance(self, state: LSTMState, projected: Array, first: Array) -> LSTMState:
        """One step, from projected inputs `[..., 4U]`; where `first [...]` it starts from nothing."""
        hidden, cell = (jnp.where(first[..., None], 0.0, x) for x in state)
        new, keep, fresh, out = jnp.split(projected + self.gates.rows(hidden, self.inputs), 4, -1)
        cell = jax.nn.sigmoid(keep + 1.0) * cell + jax.nn.sigmoid(new) * jnp.tanh(fresh)
        return LSTMState(jax.nn.sigmoid(out) * jnp.tanh(cell), cell)

    def unroll(
        self, state: LSTMState, projected: Array, first: Array, restart: LSTMState | None = None
    ) -> tuple[LSTMState, Array]:
        """States after every step of `[B, T, 4U]`: the last one, and all hidden ones `[B, T, U]`.
        Where `first` it starts from nothing, or from `restart [B, T, U]`."""
        never = jnp.zeros(len(projected), bool)

        def one(state: LSTMState, x: tuple[Array, Array, LSTMState | None]) -> tuple[LSTMState, Array]:
            projected, first, restart = x
            if restart is not None:
                state = jax.tree.map(lambda new, old: jnp.where(first[:, None], new, old), restart, state)
            state = self.advance(state, projected, first if restart is None else never)
            return state, state.hidden

        xs = jax.tree.map(lambda x: x.swapaxes(0, 1), (projected, first, restart))
        state, hidden = jax.lax.scan(one, state, xs)
        return state, hidden.swapaxes(0, 1)
