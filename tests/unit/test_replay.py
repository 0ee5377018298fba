"""The replay ring: what is written is what is read, and nothing is copied on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import replay
from jaxwm.types import Batch, Index, Record

ENVS = 3


def record(row: int, envs: int = ENVS) -> Record:
    """A row whose numbers tell where it belongs: obs = 100 * row + env."""
    values = 100 * row + jnp.arange(envs)
    flag = jnp.zeros(envs, bool)
    extras = {"latent": -jnp.ones((envs, 2))}
    return Record(values[:, None], values.astype(jnp.float32), flag, flag, flag, values, extras)


def filled(rows: int, capacity: int) -> replay.Ring:
    ring = replay.init(record(0), capacity * ENVS, ENVS)
    for row in range(rows):
        ring = replay.add(ring, record(row))
    return ring


def places(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Rows and environments `[B, L]` that the content of a batch comes from."""
    values = np.asarray(batch.record.action)
    return values // 100, values % 100


@pytest.mark.parametrize("rows", [7, 10, 11, 23])
def test_sequences_are_consecutive_and_never_cross_the_write_head(rows):
    batch = replay.sample(filled(rows, 10), jax.random.key(0), 500, 4)
    row, env = places(batch)
    assert (np.diff(row, axis=1) == 1).all() and (env == env[:, :1]).all()
    assert row.min() == max(0, rows - 10) and row.max() == rows - 1  # both ends are reached
    np.testing.assert_array_equal(row[:, 0], batch.index.row)
    np.testing.assert_array_equal(env[:, 0], batch.index.env)
    assert set(env[:, 0]) == set(range(ENVS))


def test_uniform_sampling_is_uniform():
    row, _ = places(replay.sample(filled(23, 10), jax.random.key(1), 7000, 4))
    counts = np.bincount(row[:, 0] - 13, minlength=7)
    assert len(counts) == 7 and np.abs(counts - 1000).max() < 150  # five standard deviations


def test_latest_reads_the_newest_records():
    row, env = places(replay.sample(filled(23, 10), jax.random.key(0), 3, 4, "latest"))
    assert (row == np.arange(19, 23)).all()
    assert (env[:, 0] == [0, 1, 2]).all()


def test_online_queue_gives_every_sequence_once_and_in_order():
    ring, given, queue = replay.init(record(0), 60, ENVS), [], replay.online(2, 4)
    cursor = queue.start
    for row in range(21):
        ring = replay.add(ring, record(row))
        if row >= 4:
            batch, after = queue.draw((), ring, cursor, jax.random.fold_in(jax.random.key(0), row))
            rows, envs = places(batch)
            given += [(int(r), int(e)) for r, e in zip(rows[:, 0], envs[:, 0], strict=True)][: int(after - cursor)]
            cursor = after
    complete = [(4 * chunk, env) for chunk in range(5) for env in range(ENVS)]
    assert given == complete


def test_online_queue_skips_what_was_overwritten():
    ring = filled(43, 10)  # rows 33..42 are left: the first whole sequence of 4 starts at 36
    queue = replay.online(5, 4)
    batch, cursor = queue.draw((), ring, queue.start, jax.random.key(0))
    row, env = places(batch)
    assert int(cursor) == 36 // 4 * ENVS + 3
    assert (row[:3, 0] == 36).all() and (env[:3, 0] == [0, 1, 2]).all()
    assert int(queue.draw((), ring, cursor, jax.random.key(0))[1]) == int(cursor)


def test_update_writes_back_the_last_records_and_the_last_overlapping_sequence_wins():
    ring = filled(13, 10)
    index = Index(jnp.array([5, 4, 6]), jnp.array([1, 1, 2]))
    batch = Batch(replay.take(ring, index, 4), index, jnp.ones(3))
    feedback = {"latent": jnp.arange(3.0)[:, None, None] * jnp.ones((3, 3, 2))}
    after = np.asarray(replay.update(ring, batch, feedback).data.extras["latent"])
    expected = -np.ones((10, ENVS, 2))
    for b, (row, env) in enumerate([(5, 1), (4, 1), (6, 2)]):
        for t in range(1, 4):
            expected[(row + t) % 10, env] = b
    np.testing.assert_array_equal(after, expected)


def test_a_ring_smaller_than_a_step_is_refused():
    with pytest.raises(ValueError, match="smaller than one step"):
        replay.init(record(0), 2, ENVS)


def test_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="unknown sampler 'unifrom'"):
        replay.sample(filled(10, 10), jax.random.key(0), 2, 4, "unifrom")


def _temporary_bytes(rows: int, members: int) -> int:
    """Scratch memory of a loop that adds, samples and writes back, over a ring of images."""
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    flag, number = jax.ShapeDtypeStruct((2,), bool), jax.ShapeDtypeStruct((2,), jnp.float32)
    shapes = Record(image, number, flag, flag, flag, number, {"latent": jax.ShapeDtypeStruct((2, 8), jnp.float32)})
    example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def loop(ring, key):
        def step(ring, t):
            ring = replay.add(ring, jax.tree.map(lambda x: x + t.astype(x.dtype), example))
            batch = replay.sample(ring, jax.random.fold_in(key, t), 4, 8)
            feedback = {"latent": batch.record.extras["latent"] + batch.record.obs.mean()}
            return replay.update(ring, batch, feedback), batch.record.reward.sum()

        return jax.lax.scan(step, ring, jnp.arange(5))

    ring = jax.eval_shape(lambda: replay.init(example, 2 * rows, 2))
    grow = lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype)  # noqa: E731
    ring = ring._replace(data=jax.tree.map(grow, ring.data))
    fn = jax.vmap(loop, (replay.AXES, None), (replay.AXES, 0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(fn, donate_argnums=0).lower(ring, key).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("members", [1, 3])
def test_scratch_memory_does_not_grow_with_the_ring(members):
    small, large = _temporary_bytes(100, members), _temporary_bytes(50_000, members)
    assert large <= small + 1024, "the ring is copied somewhere in the loop"
