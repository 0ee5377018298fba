"""What a program costs: bytes, and the memory there is for them.

Everything here works on shapes: nothing is compiled, run or allocated."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import jax


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
