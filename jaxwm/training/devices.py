"""What a process decides about JAX before it starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Programs compiled once are kept on disk, unless JAX_COMPILATION_CACHE_DIR says where (or, empty, that not)."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxwm" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_cores(members: int, cores: int | None = None, shards: int = 1) -> None:
    """On a CPU, give members (and their shards) devices of their own, several where there are cores enough.

    `cores` are all of the machine unless given. Call before JAX starts.
    """
    cores = cores or os.cpu_count() or 1
    if members <= 2 * cores:
        count = members * max(1, cores // members)
    else:
        count = max(n for n in range(1, cores + 1) if members % n == 0)
    count = members * shards if shards > 1 else count
    with contextlib.suppress(RuntimeError):  # JAX runs already, in a test or a notebook: leave it as it is
        jax.config.update("jax_num_cpu_devices", count)
