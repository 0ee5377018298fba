"""The fast update is the plain one, in pieces, with own gradients, on two devices; and nothing is copied on the way.

Here numbers are compared with each other; those of the official implementation are in `test_golden.py`.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreams import judged
from fast import (
    BATCH,
    KINDS,
    TIME,
    assert_near,
    assert_same_metrics,
    random_record,
    random_state,
    tiny,
)

from jaxwm import envs, replay
from jaxwm.agents import dreamer_v3 as v3
from jaxwm.learning import pieces
from jaxwm.learning.pieces import PLAIN, Routes
from jaxwm.nets.convolution import convolve, convolve_doubled, convolve_own, double
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer
from jaxwm.types import Record, Spec

sg = jax.lax.stop_gradient


# --- The whole step -----------------------------------------------------------------------------------------------

ROUTES = Routes(images=4, dreams=8, own_gradients=True, subpixel=True, apart=True)
"""With 3 sequences of 4 records: 3 pieces of 4 images, 2 pieces of 6 dreams."""


def scene(name: str) -> SimpleNamespace:
    """A state, a batch and its noise for one kind of observation and action, and the learner of given routes."""
    obs, action, options = KINDS[name]
    spec, config = Spec("test", obs, action), tiny(**options)
    learner = lambda routes: v3.Learner(v3.build(spec, config, routes), spec, config, routes)  # noqa: E731
    plain = learner(PLAIN)
    state = jax.jit(lambda: random_state(plain.nets, spec, config))()
    record = random_record(spec, jax.random.key(3), (BATCH, TIME + 1))
    noise = plain.noise(jax.random.key(4), BATCH, TIME + 1)
    return SimpleNamespace(learner=learner, state=state, record=record, noise=noise)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_step_in_pieces_with_own_gradients_is_the_plain_step(name):
    """The same noise gives the same latents, loss terms, metrics, and gradient of every tensor."""
    it = scene(name)

    def step(routes):
        grad = jax.jit(jax.grad(partial(v3.loss, it.learner(routes)), has_aux=True))
        return grad(it.state.params, it.state, it.record, it.noise)

    (fast, ((latents, ranges), metrics)), (plain, ((expected, old), terms)) = step(ROUTES), step(PLAIN)
    same = np.array_equal(np.argmax(latents.stoch, -1), np.argmax(expected.stoch, -1))
    assert same, "rounding flipped a latent: what follows cannot be compared, choose other noise"
    assert_near(latents, expected)
    assert_same_metrics(metrics, terms)
    assert_near(ranges, old)
    convolutions = {"enc", "dec"} if name in ("image", "dict") else set()
    for component in plain:
        assert_near(fast[component], plain[component], 2e-5 if component in convolutions else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dreams", [0, 4])
def test_dreams_are_judged_as_they_would_be_one_by_one(dreams):
    """`behaviour_losses` is a rollout and `dreams.judged`, the composition that other tests hold against numbers."""
    it = scene("continuous")
    learner = it.learner(Routes(dreams=dreams))
    latents = learner.world.unpack(jax.tree.map(lambda x: x[:, 1:], it.record.extras))

    def whole(params):
        losses, *rest = v3.behaviour_losses(learner, params, it.state, latents, it.noise)
        return losses["policy"] + 0.7 * losses["value"], (losses, *rest)

    def parts(params):
        rows = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        starts = jax.tree.map(rows, latents)
        plan, uniform = (rows(x).swapaxes(0, 1) for x in (it.noise.plan, it.noise.imagine))
        dream, actions = learner.rollout(sg(params), starts, plan, uniform)
        losses, returns, *rest = judged(learner, params, it.state, sg(dream.feat()), sg(actions))
        losses = {k: v.mean() for k, v in losses.items()}
        return losses["policy"] + 0.7 * losses["value"], (losses, returns[0].reshape(BATCH, TIME), *rest)

    ours, theirs = (jax.jit(jax.grad(f, has_aux=True))(it.state.params) for f in (whole, parts))
    assert_same_metrics(ours[1][0], theirs[1][0])
    assert_near(ours[1][1:-1], theirs[1][1:-1])
    assert_same_metrics(ours[1][-1], theirs[1][-1])
    for component, gradient in theirs[0].items():
        if component in ("pol", "val"):
            assert_near(ours[0][component], gradient)
        else:
            assert not any(x.any() for x in jax.tree.leaves((ours[0][component], gradient)))


# --- Pieces -------------------------------------------------------------------------------------------------------


PIECES = [(12, 0, 12), (12, 12, 12), (12, 100, 12), (12, 5, 4), (12, 6, 6), (12, 1, 1), (7, 6, 1), (127, 64, 127)]


@pytest.mark.parametrize(("count", "size", "piece"), PIECES)
def test_pieces_are_the_largest_that_divide_the_rows(count, size, piece):
    rows = {"a": jnp.arange(2 * count).reshape(count, 2), "b": jnp.arange(count)}
    parts = pieces.split(rows, size)
    assert (parts["a"].shape, parts["b"].shape) == ((count // piece, piece, 2), (count // piece, piece))
    jax.tree.map(np.testing.assert_array_equal, pieces.merge(parts), rows)


def given_rows(seed: int = 0):
    """Parameters, rows, data and shared numbers for `score`; 12 rows, not yet cut."""
    k = jax.random.split(jax.random.key(seed), 5)
    params = {"w": jax.random.normal(k[0], (3, 2)), "b": jax.random.normal(k[1], (2,))}
    rows, data = {"x": jax.random.normal(k[2], (12, 3))}, (jax.random.normal(k[3], (12, 2)), jnp.arange(12))
    return params, rows, data, {"scale": jax.random.normal(k[4], (2,))}


def score(params, rows, data, shared):
    """A loss that is not linear in anything, and aux of floats and integers."""
    target, number = data
    y = jnp.tanh(rows["x"] @ params["w"] + params["b"]) * shared["scale"]
    loss = jnp.square(y - target) * jnp.sin(params["b"]).sum()
    return loss.sum(), {"y": y * target, "number": number + (y > 0).sum(-1)}


def in_pieces(size):
    """`score` by `loss_over_pieces`, aux merged again."""

    def total(params, rows, data, shared):
        parts, known = pieces.split(rows, size), pieces.split(data, size)
        loss, aux = pieces.loss_over_pieces(score, params, parts, known, shared)
        return loss, pieces.merge(aux)

    return total


def objective(total, constant: bool):
    """What follows is not just the loss: its gradient gets a factor of its own, and aux is used as well."""

    def value(params, rows, data, shared):
        if constant:
            data, shared = sg((data, shared))
        loss, aux = total(params, rows, data, shared)
        aux = sg(aux) if constant else aux
        return 0.3 * jnp.square(loss) + jnp.sin(loss) + jnp.sum(aux["y"] ** 3), (loss, aux)

    return value


def gradients(fn, constant=False) -> Any:
    """Gradients for parameters, rows, float data and shared numbers, and the values."""

    def value(params, rows, target, shared, number):
        return objective(fn, constant)(params, rows, (target, number), shared)

    grad = jax.grad(value, (0, 1, 2, 3), has_aux=True)
    return lambda params, rows, data, shared: grad(params, rows, data[0], shared, data[1])


@pytest.mark.parametrize("size", [0, 5, 1])
def test_terminal_has_the_gradients_of_the_sum(size):
    """For parameters and rows, whatever is made of the loss; none for data, shared numbers and aux."""
    given = given_rows()
    got, values = jax.jit(gradients(in_pieces(size)))(*given)
    expected, plain = jax.jit(gradients(score, constant=True))(*given)
    assert_near(values, plain)
    assert_near(got[:2], expected[:2])
    assert not any(x.any() for x in jax.tree.leaves(got[2:]))


@pytest.mark.parametrize("size", [0, 4])
def test_terminal_can_be_mapped_over_members(size):
    """Members with their own parameters and rows; what they share is not copied for each."""
    params, rows, data, _ = jax.tree.map(lambda *x: jnp.stack(x), *(given_rows(seed) for seed in range(3)))
    shared, axes = given_rows()[3], (0, 0, 0, None)
    got, values = jax.jit(jax.vmap(gradients(in_pieces(size)), axes))(params, rows, data, shared)
    for m in range(3):
        one = jax.tree.map(lambda x, m=m: x[m], (params, rows, data))
        expected, plain = gradients(score, constant=True)(*one, shared)
        assert_near(jax.tree.map(lambda x, m=m: x[m], values), plain)
        assert_near(jax.tree.map(lambda x, m=m: x[m], got[:2]), expected[:2])


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("size", [0, 5, 1])
def test_over_is_the_function_and_its_gradients(size, members):
    def all_rows(params, x):
        return jnp.tanh(x @ params["w"]) * params["b"]

    def in_parts(params, x):
        return pieces.merge(pieces.map_pieces(all_rows, params, pieces.split(x, size)))

    params, rows, (target, _), _ = given_rows()
    x = rows["x"]
    if members:
        params, x = jax.tree.map(lambda v: jnp.stack([v + i for i in range(members)]), (params, x))

    def pulled(fn):
        fn = jax.vmap(fn) if members else fn
        out, pull = jax.vjp(fn, params, x)
        return out, pull(jnp.broadcast_to(target, out.shape))

    assert_near(jax.jit(lambda: pulled(in_parts))(), jax.jit(lambda: pulled(all_rows))())


# --- Convolutions -------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "own": (convolve_own, convolve),
    "doubled": (convolve_doubled, lambda x, kernel: convolve(double(x), kernel)),
    "doubled_own": (
        lambda x, kernel: convolve_doubled(x, kernel, convolve_own),
        lambda x, kernel: convolve(double(x), kernel),
    ),
}


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(
    ("batch", "width", "kernel", "depth"),
    [(5, 4, 3, (3, 2)), (3, 4, 5, (3, 2)), (1, 5, 5, (1, 4)), (2, 4, 3, (3, 64)), (2, 4, 5, (17, 16))],
)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_own_convolutions_are_the_plain_one_with_its_gradients(name, batch, width, kernel, depth, members):
    """Of images that are not square, some smaller than the kernel, of an odd width, with few and with many channels."""
    lead, keys = (members,) if members else (), jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*lead, batch, 7, width, depth[0]))
    w = jax.random.normal(keys[1], (*lead, kernel, kernel, *depth))

    def pulled(fn):
        fn = jax.vmap(fn) if members else fn
        out, pull = jax.vjp(fn, x, w)
        return out, pull(jax.random.normal(keys[2], out.shape))

    ours, theirs = (jax.jit(lambda fn=fn: pulled(fn))() for fn in CONVOLUTIONS[name])
    assert_near(ours, theirs, 2e-5)


# --- Memory and waiting -------------------------------------------------------------------------------------------


def replay_scratch(rows: int, back: bool) -> int:
    """Scratch bytes of one row written, one batch drawn and, with `back`, its feedback written to a ring of images."""
    shape: Any = jax.ShapeDtypeStruct
    number, flag, action = shape((1,), jnp.float32), shape((1,), bool), shape((1,), jnp.int32)
    image, extras = shape((1, 64, 64, 3), jnp.uint8), {"deter": shape((1, 8), jnp.float32)}
    record, queue = Record(image, number, flag, flag, flag, action, extras), replay.online(4, 8)

    def turn(ring, record, key):
        ring = replay.add(ring, record)
        batch, _ = queue.draw((), ring, queue.start, key)
        total = jax.tree.map(lambda x: x.astype(jnp.float32).sum(), batch.record)
        if back:
            ring = replay.update(ring, batch, {"deter": 2 * batch.record.extras["deter"][:, 1:]})
        return ring, total

    ring = jax.eval_shape(lambda r: replay.init(r, rows, 1), record)
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory: Any = jax.jit(turn, donate_argnums=0).lower(ring, record, key).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= rows * 64 * 64 * 3  # the ring is written in place
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("back", [False, True])
def test_scratch_memory_of_replay_does_not_grow_with_its_capacity(back):
    """Nothing is allocated: the larger ring would have 1.2 GB."""
    assert replay_scratch(100_000, back) == replay_scratch(1000, back)


def dreamer(capacity: int) -> Trainer:
    env = envs.make("gymnax/Catch-bsuite", num_envs=2)
    return Trainer(v3.make(env.spec, tiny()), env, capacity=capacity, max_iterations=4)


@pytest.fixture(scope="module")
def trainer():
    """A trainer of a pure environment with its compiled chunks."""
    trainer = dreamer(1000)
    trainer.compile(jax.eval_shape(lambda: trainer.init(0)))
    return trainer


def chunk_of(trainer: Trainer, segment: int):
    return trainer._program.programs[trainer.segments[segment].body]


@pytest.mark.slow
def test_scratch_memory_of_a_chunk_does_not_grow_with_the_replay(trainer):
    """Collecting, sampling, learning and writing back in one program: no copy of the replay anywhere in it."""
    large = dreamer(100_000)
    program = large._chunk(large.segments[1], jax.eval_shape(lambda: large.init(0)))
    before, after = (x.memory_analysis() for x in (chunk_of(trainer, 1), program))
    assert after.argument_size_in_bytes - before.argument_size_in_bytes > 99_000 * (50 + 16 * 4)
    assert after.temp_size_in_bytes == before.temp_size_in_bytes


@pytest.mark.slow
def test_chunks_run_without_the_host_and_are_compiled_once(trainer):
    """No transfer, no callback; a chunk of another length is the same program, and consumes what it is given."""
    assert not any(word in chunk_of(trainer, i).as_text() for i in (0, 1) for word in ("callback", "infeed", "outfeed"))
    life, compiled = trainer.init(0), []
    life, cursor, _ = trainer.run(life, Cursor(), 4)
    while cursor.segment == 0:
        life, cursor, _ = trainer.run(life, cursor, 4)
    lengths = [jax.device_put(np.int32(n)) for n in (1, 3)]

    def listener(event, duration_secs, **_):
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for length in lengths:
            before = life
            with jax.transfer_guard("disallow"):
                life, _ = chunk_of(trainer, 1)(life, length)
            assert before.ring.data.reward.is_deleted()
        life, cursor, _ = trainer.run(life, cursor, 2)
        trainer.run(life, cursor, 4)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not [event for event in compiled if "compile" in event]
    assert len(trainer._program.programs) == 2
