"""What a program costs: floating-point operations, bytes, and the memory there is for them.

Everything here works on shapes: nothing is compiled, run or allocated."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
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


def tree_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or `jax.ShapeDtypeStruct`; a typed PRNG key counts as the words that it holds."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_memory() -> int:
    """Bytes still free for the default device: of the accelerator, or of the host where the device is a CPU."""
    stats = _default_device().memory_stats() or {}
    if "bytes_limit" in stats:
        return max(stats["bytes_limit"] - stats.get("bytes_in_use", 0), 0)
    return _host_memory()


def _default_device() -> Any:
    chosen = getattr(jax.config, "jax_default_device", None)  # a device, the name of a platform, or None
    return jax.local_devices(backend=chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def _host_memory(meminfo: str = "/proc/meminfo") -> int:
    """Linux tells what can be had without swapping; elsewhere all physical memory is the best guess there is."""
    with contextlib.suppress(OSError):
        for line in Path(meminfo).read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def human(number: float, unit: str = "") -> str:
    """`human(1.23e9, "B")` is "1.2 GB", `human(3.4e9, "FLOP")` "3.4 GFLOP". Powers of 1000; one decimal below 100."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    if not math.isfinite(number):
        return f"{number} {unit}".rstrip()
    power = 0
    while abs(number) >= 999.5 and power < len(prefixes) - 1:  # from 999.5 on, it would be printed as 1000
        number, power = number / 1000, power + 1
    whole = abs(number) >= 99.95 or (power == 0 and number == int(number))
    return f"{number:.{0 if whole else 1}f} {prefixes[power]}{unit}".rstrip()
