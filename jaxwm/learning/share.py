"""Sharing one update among several devices: each takes a part of the batch, all end with the same result.

Gradients are averaged by hand, so the surrounding `jax.shard_map` needs `check_vma=False`, and the gradient of a
`pmean` is wrong: a loss never averages what it differentiates. It is a mean over this device's rows, and statistics of
the whole batch enter it as constants."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.types import Array, Key, PyTree


class Share(NamedTuple):
    """The devices of a mapped axis that work out one update together; without an axis, this one only.
    `split` tells whose sequences a batch holds: those of this device (the replay is split too), or those of all."""

    axis: str | None = None
    split: bool = False

    @property
    def devices(self) -> int:
        """How many devices share the update."""
        return jax.lax.axis_size(self.axis) if self.axis else 1

    # Rows.
    def local_rows(self, batch: PyTree, axis: int = 0) -> PyTree:
        """Return this device's sequences of the batch that `update` was given; they lie along `axis`."""
        return batch if self.split else self.slice(batch, axis)

    def batch_rows(self, rows: PyTree) -> PyTree:
        """Invert `local_rows`: one row for each sequence of the batch that `update` was given."""
        return rows if self.split else self.gather(rows)

    def slice(self, tree: PyTree, axis: int = 0) -> PyTree:
        """Return this device's part of what every device holds: `[B, ...] -> [B / devices, ...]`, without remainder."""
        if self.axis is None:
            return tree
        count, place = self.devices, jax.lax.axis_index(self.axis)

        def one(x: Any) -> Any:
            size = x.shape[axis] // count
            return jax.lax.dynamic_slice_in_dim(x, place * size, size, axis)

        return jax.tree.map(one, tree)

    def gather(self, rows: PyTree) -> PyTree:
        """Invert `slice`: the rows of all devices."""
        return rows if self.axis is None else jax.lax.all_gather(rows, self.axis, tiled=True)

    def first(self, rows: int) -> Array | int:
        """Return the place of this device's first row among all, where each has `rows` of its own."""
        return jax.lax.axis_index(self.axis) * rows if self.axis and self.split else 0

    # Statistics.
    def mean(self, tree: PyTree) -> PyTree:
        """Average over the devices."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)

    def statistic(self, x: Array) -> Array:
        """Average a statistic of rows over the devices; its gradient is that of this device's term.
        For a loss that is no mean over rows: of any function of such averages, the mean of the devices' gradients is
        the gradient that one device with all rows would find."""
        return x if self.axis is None else x + jax.lax.stop_gradient(self.mean(jax.lax.stop_gradient(x)) - x)

    def max(self, x: Array) -> Array:
        """Return the greatest of all devices."""
        return x if self.axis is None else jax.lax.pmax(x, self.axis)

    def weighted_mean(self, x: Array, weight: Array, axis: Any = None, least: float = 1.0) -> Array:
        """Return this device's term of sum(x weight) / max(sum(weight), least) over the rows of all devices.
        The average of the devices' terms is that number. `weight` is a constant."""
        weight = weight.astype(jnp.float32)
        total = jnp.maximum(self.mean(weight.sum(axis)), least / self.devices)
        return (x * weight).sum(axis) / total

    # Random numbers.
    def draw(self, draw: Callable[[int], PyTree], rows: int, axis: int = 0) -> PyTree:
        """Draw for the rows of all devices, `draw(rows)`, and return those of this one: the numbers that one would."""
        return self.slice(draw(rows * self.devices), axis)

    def uniform(self, key: Key, shape: tuple[int, ...], axis: int = 0) -> Array:
        """Draw uniform numbers of the local `shape`, whose rows lie along `axis`."""
        return self.draw(lambda n: jax.random.uniform(key, _resized(shape, axis, n)), shape[axis], axis)

    def normal(self, key: Key, shape: tuple[int, ...], axis: int = 0) -> Array:
        """Draw normal numbers of the local `shape`, whose rows lie along `axis`."""
        return self.draw(lambda n: jax.random.normal(key, _resized(shape, axis, n)), shape[axis], axis)

    def key(self, key: Key) -> Key:
        """Return a random key of this device's own where each has its own sequences."""
        return jax.random.fold_in(key, jax.lax.axis_index(self.axis)) if self.axis and self.split else key


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


ALONE = Share()
