"""Replay: a ring of records on the device, as pure functions over one pytree.

Letters: P capacity in rows (time steps of all environments together), N environments, B batch, L records of a sequence.
Rows are counted from the first one ever written, so the age of a record is `ring.rows - row`; row r lies at `r % P`.
The counters are shared by the members of a population (map them with `AXES`), so that `add` stays an in-place
`dynamic_update_slice`. Inside a compiled loop write first and read the new ring, or XLA copies it at every step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.types import Array, Batch, Index, Record


class Ring(NamedTuple):
    """`data` holds records `[P, N, ...]`; `rows` counts the rows ever written."""

    data: Record
    rows: Array  # int32


AXES: Any = Ring(0, None)  # type: ignore[arg-type]
"""`vmap` axes of a ring in a population: the data differs between members, the counter does not."""

SHARED: Any = Ring(Record(None, None, None, None, None, None, 0), None)  # type: ignore[arg-type]
"""The same for records that all members read from one copy: only the extras are a member's own."""


def init(example: Record, capacity: int, num_envs: int) -> Ring:
    """An empty ring for records shaped like `example` (arrays or shape structs `[N, ...]`).
    `capacity` counts environment steps over all `num_envs` environments; ValueError if not even one row fits."""
    rows = capacity // num_envs
    if rows < 1:
        raise ValueError(f"a replay of {capacity} steps is smaller than one step of {num_envs} environments")
    data = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), example)
    return Ring(data, jnp.zeros((), jnp.int32))


def capacity(ring: Ring) -> int:
    """Rows that fit, P."""
    return ring.data.reward.shape[0]


def add(ring: Ring, record: Record) -> Ring:
    """Write one row `[N, ...]`; the oldest row gives way when the ring is full."""
    slot = ring.rows % capacity(ring)
    data = jax.tree.map(lambda d, x: jax.lax.dynamic_update_index_in_dim(d, x, slot, 0), ring.data, record)
    return ring._replace(data=data, rows=ring.rows + 1)


def extend(ring: Ring, records: Record) -> Ring:
    """Write several rows `[K, N, ...]`, K <= P, oldest first; what `records` lacks (None) stays as it is."""
    count = records.reward.shape[0]
    slots = (ring.rows + jnp.arange(count)) % capacity(ring)
    put = lambda new, old: old if new is None else old.at[slots].set(new)  # noqa: E731
    data = jax.tree.map(put, records, ring.data, is_leaf=lambda x: x is None)
    return Ring(data, ring.rows + count)


def oldest(ring: Ring) -> Array:
    """The first row that is still there."""
    return jnp.maximum(0, ring.rows - capacity(ring))


def take(ring: Ring, index: Index, length: int) -> Record:
    """Sequences `[B, L, ...]` that start at `index`."""
    rows = (index.row[:, None] + jnp.arange(length)) % capacity(ring)
    return jax.tree.map(lambda d: d[rows, index.env[:, None]], ring.data)


def cut(ring: Ring) -> Ring:
    """Mark the newest row as the last of its episodes: what follows is not its continuation."""
    slot = (ring.rows - 1) % capacity(ring)
    return ring._replace(data=ring.data._replace(is_last=ring.data.is_last.at[slot].set(True)))


def update(ring: Ring, batch: Batch, feedback: dict[str, Array], keep: Array | bool = True) -> Ring:
    """Write `feedback` back into the extras of the records it came from.
    `feedback` leaves are `[B, L', ...]` with L' <= L, aligned with the last L' records. Where sequences of a batch
    overlap, the last one of the batch wins: scatters with repeated indices have no promised order on GPUs. Nothing is
    written where `keep`, a bool scalar, is False."""
    if not feedback:
        return ring
    length = batch.record.reward.shape[1]
    count = next(iter(feedback.values())).shape[1]
    rows = batch.index.row[:, None] + jnp.arange(length - count, length)  # [B, L']
    drop = _overwritten(batch.index, rows) | ~jnp.asarray(keep)
    slots = jnp.where(drop, capacity(ring), rows % capacity(ring))  # out of range: dropped
    envs = batch.index.env[:, None]
    extras = dict(ring.data.extras)
    for name, value in feedback.items():
        extras[name] = extras[name].at[slots, envs].set(value, mode="drop")
    return ring._replace(data=ring.data._replace(extras=extras))


def _overwritten(index: Index, rows: Array) -> Array:
    """Which entries `[B, L']` are written by a later sequence of the batch as well."""
    first, last = rows[:, 0], rows[:, -1]
    same = index.env[:, None] == index.env[None, :]
    later = jnp.arange(len(first))[:, None] < jnp.arange(len(first))[None, :]
    inside = (rows[:, :, None] >= first) & (rows[:, :, None] <= last)  # [B, L', B]
    return (inside & (same & later)[:, None, :]).any(-1)
