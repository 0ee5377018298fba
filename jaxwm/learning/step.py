"""The gradient step of every system: its file holds losses, this one what becomes of their gradients."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.types import Array, Metrics, PyTree

Losses = tuple[Array, tuple[Any, Metrics]]
"""What a loss returns: the mean over the rows of this device, and `(aux, metrics)`; aux is `{}` where there is none."""

Updated = tuple[Any, Any, Metrics]
"""State, feedback for the replay (`{}` for none) and metrics: what the update of a `TrainStep` returns."""


class State(NamedTuple):
    """What every agent's state begins with; a system that has more writes its own."""

    params: Any
    opt: Any
    hyper: dict[str, Array]  # float32 scalars, which may differ between members
    step: Array  # updates so far, int32


class Remembering(NamedTuple):
    """A `State` with a `memory`: what a system keeps beside parameters that learn by gradients."""

    params: Any
    opt: Any
    hyper: dict[str, Array]
    step: Array
    memory: Any


def fresh_state(params: Any, opt: Any, hyper: Mapping[str, Any]) -> State:
    """Return the state before the first update."""
    return State(params, opt, optim.numbers(hyper), jnp.zeros((), jnp.int32))


def gradient_step(
    state: Any, loss: Callable[[Any], Losses], tx: optax.GradientTransformation, rates: Array | Mapping[str, Array],
    part: str | tuple[str, ...] | None = None, weight_decay: float = 0.0, share: Share = ALONE,
) -> Updated:  # fmt: skip
    """Take one gradient step, by all devices that share it.

    Args:
        state: A `State`, or any NamedTuple with its fields.
        loss: What to differentiate. Its metrics are averaged over the devices, its aux stays local.
        tx: Turns gradients into directions of ascent, clipping included. Its state is `state.opt`.
        rates: The learning rate, or one per component of the parameters.
        part: The component of the parameters, and of `state.opt`, that learns, or several; None for all of them.
        weight_decay: Share of a weight that is lost in each step, in units of the learning rate (per-component rates).
        share: The devices.

    Returns:
        The state after it, aux, and the metrics with `grad_norm`, the norm of all gradients before clipping."""
    params, opt = _part(state.params, part), _part(state.opt, part)
    grads, (aux, metrics) = jax.grad(loss, has_aux=True)(params)
    grads, metrics = share.mean(grads), share.mean(metrics)
    direction, opt = tx.update(grads, opt, params)
    params = descend(params, direction, rates, weight_decay)
    metrics = metrics | {"grad_norm": optim.norm(grads)}
    if isinstance(part, str):
        params, opt = {part: params}, {part: opt}
    if part is not None:
        params, opt = state.params | params, state.opt | opt
    return state._replace(params=params, opt=opt, step=state.step + 1), aux, metrics


def _part(tree: Any, part: str | tuple[str, ...] | None) -> Any:
    """One component, several by name, or all."""
    if isinstance(part, tuple):
        return {name: tree[name] for name in part}
    return tree if part is None else tree[part]


def descend(params: PyTree, direction: PyTree, rates: Array | Mapping[str, Array], weight_decay: float = 0.0) -> PyTree:
    """Step down, all at one learning rate, or each component at its own, by which its weights shrink as well."""
    if not isinstance(rates, Mapping):
        return jax.tree.map(lambda p, d: p - rates * d, params, direction)
    step = lambda rate, p, d: (1 - weight_decay * rate) * p - rate * d  # noqa: E731
    one = lambda name: jax.tree.map(lambda p, d: step(rates[name], p, d), params[name], direction[name])  # noqa: E731
    return {name: one(name) for name in params}


def every(updates: int, step: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return `new` where the count of updates `step` is a multiple of `updates`, else `old`: a copy every so often."""
    now = step % updates == 0
    return jax.tree.map(lambda a, b: jnp.where(now, a, b), new, old)
