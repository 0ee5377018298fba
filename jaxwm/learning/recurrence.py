"""A loop over time whose gradient does most of its work outside the loop.

The gradient of `lax.scan` stores what each step computed in the forward loop, and adds to the gradient of every weight
in each step of the reverse loop: many tiny kernels on an accelerator, one after the other. But once the forward loop is
done all carries are known, and what the steps computed can be computed again for all of them at once. Only the gradient
of the carry is left to go from step to step. With it, those of the weights are found for all steps at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.types import PyTree

StepFn = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
"""`(params, carry, x, constant) -> (carry, y)`, of one time."""


def scan(step: StepFn, params: PyTree, start: PyTree, xs: PyTree, constants: PyTree) -> tuple[PyTree, PyTree]:
    """`lax.scan` of a step: the carries after each `[T, ...]`, and `ys`. `constants` are to have no gradient."""

    def one(carry: PyTree, inputs: tuple[PyTree, PyTree]) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        after, y = step(params, carry, *inputs)
        return after, (after, y)

    return jax.lax.scan(one, start, (xs, constants))[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_apart(step: StepFn, params: PyTree, start: PyTree, xs: PyTree, constants: PyTree) -> tuple[PyTree, PyTree]:
    """`scan`, with the gradient that this file is about: the same up to the order of sums."""
    return scan(step, params, start, xs, constants)


def _forward(step: StepFn, params: PyTree, start: PyTree, xs: PyTree, constants: PyTree) -> Any:
    out = scan(step, params, start, xs, constants)
    before = jax.tree.map(lambda first, after: jnp.concatenate([first[None], after[:-1]]), start, out[0])
    return out, (params, before, xs, constants)


def _backward(step: StepFn, saved: Any, gradients: Any) -> Any:
    params, before, xs, constants = saved
    after, ys = gradients  # of the carries, where they are read from outside, and of ys
    structure: Any = None

    def linear(params: PyTree, carry: PyTree, x: PyTree, constant: PyTree) -> list[Any]:
        """What the gradient of a step for its carry needs."""
        nonlocal structure
        pull = jax.vjp(lambda carry: step(params, carry, x, constant), carry)[1]
        leaves, structure = jax.tree.flatten(pull)
        return leaves

    first = jax.tree.map(lambda x: x[0], (before, xs, constants))
    varies = _depends(linear, params, first)
    axes: Any = [0 if v else None for v in varies]
    needed = jax.vmap(linear, (None, 0, 0, 0), axes)(params, before, xs, constants)
    fixed = [x for x, v in zip(needed, varies, strict=True) if not v]

    def back(carry: PyTree, inputs: Any) -> tuple[PyTree, PyTree]:
        own, after, y = inputs
        carry = jax.tree.map(jnp.add, carry, after)
        own, rest = iter(own), iter(fixed)
        pull = jax.tree.unflatten(structure, [next(own) if v else next(rest) for v in varies])
        return pull((carry, y))[0], carry

    zero = jax.tree.map(lambda x: jnp.zeros_like(x[0]), after)
    stacked = [x for x, v in zip(needed, varies, strict=True) if v]
    start, carries = jax.lax.scan(back, zero, (stacked, after, ys), reverse=True)
    every = lambda params, xs: jax.vmap(step, (None, 0, 0, 0))(params, before, xs, constants)  # noqa: E731
    weights, inputs = jax.vjp(every, params, xs)[1]((carries, ys))
    return weights, start, inputs, None


def _depends(fn: Callable[..., list[Any]], params: PyTree, others: tuple[PyTree, ...]) -> list[bool]:
    """Which results of `fn(params, *others)` depend on the others; what does not is the same at all times."""
    jaxpr = jax.make_jaxpr(fn)(params, *others).jaxpr
    known = set(jaxpr.invars[len(jax.tree.leaves(params)) :])
    for equation in jaxpr.eqns:
        if any(not hasattr(x, "val") and x in known for x in equation.invars):
            known.update(equation.outvars)
    return [not hasattr(x, "val") and x in known for x in jaxpr.outvars]


scan_apart.defvjp(_forward, _backward)
