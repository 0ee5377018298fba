"""Ways to draw batches from a ring. Letters as in `replay.ring`.

A `TrainStep` names one of "uniform", "latest" and "online", or brings a function `(state, ring, key, size) -> Batch`,
where `size` is how many sequences to draw, or a `Sampler` of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.errors import check_number
from jaxwm.replay.ring import Ring, capacity, oldest, take
from jaxwm.types import Array, Batch, Index, Key, PyTree


class Sampler(NamedTuple):
    """Batches for a train step: `draw(state, ring, cursor, key) -> (Batch, cursor)`.
    `cursor` is what the sampler remembers between draws, shared by all members; it begins as `start`."""

    draw: Callable[[PyTree, Any, PyTree, Key], tuple[Batch, PyTree]]
    start: PyTree = ()


def sampler(how: str | Sampler | Callable[[PyTree, Any, Key, int], Batch], batch: int, length: int) -> Sampler:
    """Build what `TrainStep.sampler` stands for. ValueError for an unknown word."""
    if isinstance(how, Sampler):
        return how
    if how == "online":
        return online(batch, length)
    if callable(how):
        return Sampler(lambda state, ring, cursor, key: (how(state, ring, key, batch), cursor))
    return Sampler(lambda state, ring, cursor, key: (sample(ring, key, batch, length, how), cursor))


def gather(ring: Ring, index: Index, length: int, weight: Array | None = None) -> Batch:
    """The sequences `[B, length]` that start at `index`, as a batch; `weight [B]` is 1 unless given."""
    return Batch(take(ring, index, length), index, jnp.ones(len(index.row)) if weight is None else weight)


def across(ring: Ring, first: Array, batch: int, length: int) -> Batch:
    """The `length` rows from `first` on, of `batch` environments in turn."""
    index = Index(jnp.broadcast_to(first, (batch,)), jnp.arange(batch) % ring.data.reward.shape[1])
    return gather(ring, index, length)


def sample(ring: Ring, key: Key, batch: int, length: int, how: str = "uniform") -> Batch:
    """Draw sequences `[batch, length]`. Fill the ring with at least `length` rows before.
    "uniform": any start. "latest": the newest `length` records of environments in turn."""
    _check(ring, batch, length)
    if how == "uniform":
        return gather(ring, _uniform(ring, key, batch, length), length)
    if how == "latest":
        return across(ring, ring.rows - length, batch, length)
    raise ValueError(f"unknown sampler {how!r}; there are uniform, latest and online, or pass a function")


def _check(ring: Ring, batch: int, length: int) -> None:
    check_number("batch", batch, least=1, whole=True)
    check_number(f"length in a replay of {capacity(ring)} rows", length, least=1, most=capacity(ring), whole=True)


def _uniform(ring: Ring, key: Key, batch: int, length: int) -> Index:
    """Any start from which `length` records follow, in any environment."""
    k_row, k_env = jax.random.split(key)
    num_envs = ring.data.reward.shape[1]
    first = oldest(ring)
    row = jax.random.randint(k_row, (batch,), first, jnp.maximum(first + 1, ring.rows - length + 1))
    return Index(row, jax.random.randint(k_env, (batch,), 0, num_envs))


def online(batch: int, length: int) -> Sampler:
    """New sequences first, each once, in the order in which they were completed; the rest of a batch is uniform.
    Sequence q covers the rows from `q // N * length` of environment `q % N`: consecutive, not overlapping. The cursor
    is the number of the next one; those already overwritten are passed over."""

    def draw(state: PyTree, ring: Ring, cursor: Array, key: Key) -> tuple[Batch, Array]:
        _check(ring, batch, length)
        index = _uniform(ring, key, batch, length)
        num_envs = ring.data.reward.shape[1]
        first = jnp.maximum(cursor, -(-oldest(ring) // length) * num_envs)
        fresh = jnp.clip(ring.rows // length * num_envs - first, 0, batch)
        queue, new = first + jnp.arange(batch), jnp.arange(batch) < fresh
        row, env = jnp.divmod(queue, num_envs)
        index = Index(jnp.where(new, row * length, index.row), jnp.where(new, env, index.env))
        return gather(ring, index, length), jnp.where(fresh > 0, first + fresh, cursor)

    return Sampler(draw, jnp.zeros((), jnp.int32))


def prioritised(ring: Ring, key: Key, batch: int, length: int, alpha: float, beta: float) -> Batch:
    """Sequences by the priority of their last record, p ** alpha (Schaul et al. 2016), stratified.
    `weight` is (1 / (count p)) ** beta, divided by its greatest entry in the batch."""
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
    return gather(ring, index, length, weight / weight.max())


def all_pairs(ring: Ring) -> Batch:
    """All pairs of records that the ring can hold, `[B, 2]`; `weight` is 0 for those that are not there yet."""
    rows, num_envs = capacity(ring) - 1, ring.data.reward.shape[1]
    row = oldest(ring) + jnp.arange(rows).repeat(num_envs)
    index = Index(row, jnp.tile(jnp.arange(num_envs), rows))
    return gather(ring, index, 2, (row + 1 < ring.rows).astype(jnp.float32))


def going_on(ring: Ring, key: Key, batch: int, newest: Array | int | None = None) -> Batch:
    """Pairs of records `[batch, 2]` within rollouts, from the `newest` rows: of a ring whose streams all begin their
    rollouts in the same rows, none of the pairs spans two of them."""
    rows, num_envs = capacity(ring), ring.data.reward.shape[1]
    row = oldest(ring) + jnp.arange(rows - 1)
    inside = (row + 1 < ring.rows) & ~ring.data.is_first[(row + 1) % rows, 0]
    if newest is not None:
        inside &= row >= ring.rows - newest
    k_row, k_env = jax.random.split(key)
    drawn = jax.random.categorical(k_row, jnp.where(inside, 0.0, -jnp.inf), shape=(batch,))
    return gather(ring, Index(row[drawn], jax.random.randint(k_env, (batch,), 0, num_envs)), 2)


def mixed(*batches: Batch) -> Batch:
    """One batch out of several with records of one layout; nothing can be written back from it."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)


def starts(ring: Ring, key: Key, batch: int) -> Batch:
    """First records of episodes `[batch, 1]`, drawn from all that the ring holds."""
    rows = oldest(ring) + jnp.arange(capacity(ring))
    first = ring.data.is_first[rows % capacity(ring)] & (rows < ring.rows)[:, None]
    count = jnp.cumsum(first.ravel())
    drawn = jax.random.randint(key, (batch,), 0, jnp.maximum(count[-1], 1))
    row, env = jnp.divmod(jnp.searchsorted(count, drawn, side="right"), first.shape[1])
    return gather(ring, Index(rows[row], env), 1)


def recent(
    ring: Ring, key: Key, batch: int, length: int, shares: tuple[float, ...] = (0.1, 0.1, 0.1, 0.7), last: bool = False
) -> Batch:
    """Sequences `[batch, length]` by how recent their episodes are (Alonso et al. 2024).

    The episodes in the ring, in the order in which they began, are cut into as many parts as there are `shares`, the
    last of which takes what is left over. A part is drawn by its share, an episode of it uniformly, and a record of it
    uniformly; with fewer episodes than parts any record. The sequence contains that record anywhere, or as its `last`.
    It lies in the ring, and may cross ends of episodes."""
    _check(ring, batch, length)
    rows, num_envs, begin = capacity(ring), ring.data.reward.shape[1], oldest(ring)
    row = begin + jnp.arange(rows)
    first = (ring.data.is_first[row % rows] & (row < ring.rows)[:, None]).at[0].set(True)
    rank, following = jnp.cumsum(first.ravel()), _next_first(first, row, ring.rows)
    k_part, k_episode, k_record, k_any, k_place = jax.random.split(key, 5)

    part = jax.random.choice(k_part, len(shares), (batch,), p=jnp.array(shares))
    count, size = rank[-1], rank[-1] // len(shares)
    held = jnp.where(part == len(shares) - 1, count - part * size, size)
    episode = part * size + _below(k_episode, held)
    place, env = jnp.divmod(jnp.searchsorted(rank, episode + 1), num_envs)
    record = row[place] + _below(k_record, following[place, env] - row[place])

    any_row, any_env = _uniform(ring, k_any, batch, 1)
    few = count < len(shares)
    record, env = jnp.where(few, any_row, record), jnp.where(few, any_env, env)
    before = length - 1 if last else jax.random.randint(k_place, (batch,), 0, length)
    start = jnp.clip(record - before, begin, jnp.maximum(begin, ring.rows - length))
    return gather(ring, Index(start, env), length)


def _next_first(first: Array, row: Array, end: Array) -> Array:
    """The row in which the next episode of its environment begins, after each record; `end` where none does."""
    at = jnp.where(first, row[:, None], end)
    at = jnp.concatenate([at[1:], jnp.broadcast_to(end, (1, first.shape[1]))])
    return jnp.minimum(jax.lax.cummin(at, axis=0, reverse=True), end)


def _below(key: Key, most: Array) -> Array:
    """Uniform whole numbers from 0 to below `most [B]`."""
    return jnp.minimum((jax.random.uniform(key, most.shape) * most).astype(jnp.int32), jnp.maximum(most - 1, 0))
