"""Arrays that are spread over several processes, which all run the same program; each holds its part of the members.
With a single process everything here is what it would be without."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxwm.types import PyTree


def several() -> bool:
    """Whether more than one process takes part."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def barrier(word: str) -> None:
    """Wait until all processes have come here."""
    if several():
        multihost_utils.sync_global_devices(word)


def agree(stop: bool, *numbers: int) -> tuple[bool, list[int]]:
    """Whether any process wants to stop, and the first one's numbers: what depends on time differs between them."""
    if not several():
        return stop, list(numbers)
    table = np.asarray(multihost_utils.process_allgather(np.array([int(stop), *numbers], np.int32)))
    return bool(table[:, 0].any()), table[0, 1:].tolist()


def fetch(tree: PyTree) -> PyTree:
    """Whole arrays on the host, in every process. All must call it."""
    if not several():
        return jax.device_get(tree)

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_get(x)
        if x.is_fully_replicated:
            return jax.device_get(x.addressable_data(0))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


_copy = jax.jit(partial(jax.tree.map, jax.numpy.copy))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process has as a whole, spread as `shardings` say; the result owns its memory. `shardings` is a
    prefix of the tree, as for `jax.device_put`."""
    if not several():
        return jax.device_put(_copy(tree), shardings)

    def one(x: Any, sharding: Sharding) -> Any:
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x), sharding))
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(lambda sharding, part: jax.tree.map(lambda x: one(x, sharding), part), shardings, tree)


def local_part(x: Any) -> np.ndarray:
    """This process's part `[M / processes, ...]` of an array `[M, ...]` that is spread along its first axis. One of
    NumPy belongs to this process alone, as in an evaluation, where each plays for all members."""
    if isinstance(x, np.ndarray) or not several():
        return np.asarray(x)
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def global_array(tree: PyTree, sharding: Sharding) -> PyTree:
    """The inverse of `local_part`: one array out of the parts of all processes."""
    if not several():
        return tree
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)
