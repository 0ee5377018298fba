"""Sharing one update among several devices: each takes a part of the batch, all end with the same result.

Gradients are averaged by hand, so the surrounding `jax.shard_map` needs `check_vma=False`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxwm.types import PyTree


class Share(NamedTuple):
    """The devices of a mapped axis that work out one update together; without an axis, this one alone.

    `split` says whose sequences a batch holds: those of this device (the replay is split too), or those of all.
    """

    axis: str | None = None
    split: bool = False

    def batch(self, rows: PyTree) -> PyTree:
        """This device's sequences of a batch."""
        return rows if self.split else self.part(rows)

    def whole(self, size: int) -> int:
        """Sequences in the batches of all devices, where this one was given `size`."""
        return size * jax.lax.axis_size(self.axis) if self.axis and self.split else size

    def back(self, rows: PyTree) -> PyTree:
        """The inverse of `batch`."""
        return rows if self.split else self.gather(rows)

    def part(self, rows: PyTree) -> PyTree:
        """This device's part of what every device holds: `[B, ...] -> [B / devices, ...]`, which must be whole."""
        return self.cut(rows, 0)

    def cut(self, tree: PyTree, axis: int) -> PyTree:
        """`part` along another axis of the arrays."""
        if self.axis is None:
            return tree
        count, place = jax.lax.axis_size(self.axis), jax.lax.axis_index(self.axis)

        def one(x: Any) -> Any:
            size = x.shape[axis] // count
            return jax.lax.dynamic_slice_in_dim(x, place * size, size, axis)

        return jax.tree.map(one, tree)

    def gather(self, rows: PyTree) -> PyTree:
        """The inverse of `part`."""
        return rows if self.axis is None else jax.lax.all_gather(rows, self.axis, tiled=True)

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over the devices."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

    def key(self, key: Any) -> Any:
        """A random key of this device's own where each has its own sequences."""
        return jax.random.fold_in(key, jax.lax.axis_index(self.axis)) if self.axis and self.split else key


ALONE = Share()
