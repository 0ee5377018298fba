"""Ways to draw batches from a ring: uniform, latest, online, prioritised. Letters as in `replay.ring`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxwm.errors import check_number
from jaxwm.replay.ring import Ring, capacity, oldest, take
from jaxwm.types import Array, Batch, Index, Key, PyTree


def _uniform(ring: Ring, key: Key, batch: int, length: int) -> Index:
    """Any start from which `length` records follow, in any environment."""
    k_row, k_env = jax.random.split(key)
    num_envs = ring.data.reward.shape[1]
    first = oldest(ring)
    row = jax.random.randint(k_row, (batch,), first, jnp.maximum(first + 1, ring.rows - length + 1))
    return Index(row, jax.random.randint(k_env, (batch,), 0, num_envs))


def sample(ring: Ring, key: Key, batch: int, length: int, how: str = "uniform") -> Batch:
    """Draw sequences `[batch, length]`. Fill the ring with at least `length` rows before.

    "uniform": any start. "latest": the newest `length` records of environments in turn. "online": sequences that were
    never given out come first, in the order in which they were completed (consecutive, not overlapping), the rest of
    the batch is uniform; `update` marks them as given.
    """
    check_number("batch", batch, least=1, whole=True)
    check_number(f"length in a replay of {capacity(ring)} rows", length, least=1, most=capacity(ring), whole=True)
    num_envs = ring.data.reward.shape[1]
    index = _uniform(ring, key, batch, length)
    online = jnp.zeros((), jnp.int32)
    if how == "latest":
        index = Index(jnp.broadcast_to(ring.rows - length, (batch,)), jnp.arange(batch) % num_envs)
    elif how == "online":
        queue = queued(ring, length) + jnp.arange(batch)
        ready = ring.rows // length * num_envs
        online = jnp.clip(ready - queue[0], 0, batch)
        fresh = jnp.arange(batch) < online
        index = Index(
            jnp.where(fresh, queue // num_envs * length, index.row), jnp.where(fresh, queue % num_envs, index.env)
        )
    elif how != "uniform":
        raise ValueError(f"unknown sampler {how!r}; there are uniform, latest and online, or pass a function")
    return Batch(take(ring, index, length), index, jnp.ones(batch), online)


def prioritised(ring: Ring, key: Key, batch: int, length: int, alpha: float, beta: float) -> Batch:
    """Sequences by the priority of their last record, p ** alpha (Schaul et al. 2016), stratified.

    `weight` is (1 / (count p)) ** beta, divided by its greatest entry in the batch.
    """
    rows, num_envs = ring.data.extras["priority"].shape
    slot = jnp.arange(rows)
    newest = (ring.rows - 1 - slot) // rows * rows + slot  # the row that a slot holds; before 0 where it is empty
    ready = newest >= oldest(ring) + length - 1
    mass = jnp.where(ready[:, None], ring.data.extras["priority"] ** alpha, 0.0).reshape(-1)
    ends = jnp.cumsum(mass)
    points = (jnp.arange(batch) + jax.random.uniform(key, (batch,))) / batch * ends[-1]
    drawn = jnp.clip(jnp.searchsorted(ends, points, side="right"), 0, len(mass) - 1)
    index = Index(newest[drawn // num_envs] - (length - 1), drawn % num_envs)
    chance = mass[drawn] / ends[-1]
    weight = (ready.sum() * num_envs * chance) ** -beta
    return Batch(take(ring, index, length), index, weight / weight.max(), jnp.zeros((), jnp.int32))


def queued(ring: Ring, length: int) -> Array:
    """Number of the next sequence in the online queue; those already overwritten are skipped.

    Sequence q covers the rows from `q // N * length` of environment `q % N`.
    """
    num_envs = ring.data.reward.shape[1]
    return jnp.maximum(ring.given, -(-oldest(ring) // length) * num_envs)


Sampler = Callable[[PyTree, Ring, Key], Batch]


def sampler(how: str | Sampler, batch: int, length: int) -> Sampler:
    """A `TrainStep.sampler` as a function `(state, ring, key) -> Batch`."""
    if callable(how):
        return how
    return lambda state, ring, key: sample(ring, key, batch, length, how)
