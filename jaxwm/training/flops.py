"""Floating-point operations of a program, counted in its trace: nothing is compiled, run or allocated."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def flops(fn: Callable[..., Any], *args: Any) -> float:
    """FLOPs of `fn(*args)`: two for each multiply-add of a matrix product or convolution, nothing for the rest.
    XLA's own cost analysis counts the body of a loop once; here a scan counts `length` times. A conditional counts as
    its dearest branch, a loop with an unknown trip count as one turn, and the body of a `shard_map` once a device.
    Padding counts as input, as is the custom; the zeros that a strided convolution's gradient inserts do not. Values
    that no output depends on are free, since XLA removes them. Shapes (`jax.ShapeDtypeStruct`) will do as arguments."""
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return float(_count(live))


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name in _COUNTS:
        return _COUNTS[name](equation)
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":  # the shapes inside are those of one device
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return sum(inner) * times


def _jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    """The programs in one parameter of an equation: by itself, or in a tuple (the branches of a conditional)."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)


def _dot_general(equation: Any) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
    return 2 * math.prod(equation.outvars[0].aval.shape) * terms


def _conv(equation: Any) -> float:
    """Every output element reads one kernel; `rhs` holds the input channels of one feature group only."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
    inserted = math.prod(equation.params["lhs_dilation"])  # of so many input rows, one is not an inserted zero
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps / inserted


_COUNTS = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    # it also carries its transpose and its products, which only differentiation uses
    "custom_linear_solve": lambda equation: _count(equation.params["jaxprs"].solve.jaxpr),
}
