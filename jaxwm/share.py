"""Sharing one update among several devices: each takes a part of the batch, all end with the same result.

Gradients are averaged by hand, so the surrounding `jax.shard_map` needs `check_vma=False`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxwm.types import PyTree


class Share(NamedTuple):
    """This device's part of a batch that every device of a mapped axis holds; without an axis, all of it."""

    axis: str | None = None

    def part(self, rows: PyTree) -> PyTree:
        """`[B, ...] -> [B / devices, ...]`; B must be a multiple of the number of devices."""
        if self.axis is None:
            return rows
        count, place = jax.lax.axis_size(self.axis), jax.lax.axis_index(self.axis)

        def one(x: Any) -> Any:
            size = x.shape[0] // count
            return jax.lax.dynamic_slice_in_dim(x, place * size, size)

        return jax.tree.map(one, rows)

    def gather(self, rows: PyTree) -> PyTree:
        """The inverse of `part`."""
        return rows if self.axis is None else jax.lax.all_gather(rows, self.axis, tiled=True)

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over the devices."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)


ALONE = Share()
