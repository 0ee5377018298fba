"""The contract of an agent, on every system in a tiny size: modes, memory, learning, dreams, and its whole life.

Everything is compiled once per system: the life in `lived`, acting in `moves`. That is most of the time of these tests,
so most systems are in the slow suite; the default one checks their shapes (test_presets.py) and losses.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import page
import pytest
from arrays import assert_close, assert_same, layout, raw
from compiling import compiles
from lives import MEMBERS, Lived, end_of, live, middle_of, trainer_of
from tiny import Built, build

from jaxwm import Cursor, agents, replay
from jaxwm.run.checkpoint import Checkpoints
from jaxwm.types import ActionSpace, Batch, Box, Data, Dream, Step

MODES = ("random", "explore", "greedy")
HORIZON = 3


def one(tree: Any) -> Any:
    """The first member of a population, on the host."""
    return jax.tree.map(lambda x: x[0], jax.device_get(tree))


def of_one(tiny: Built, data: Any) -> Any:
    """What the first member has of a replay; recordings are shared."""
    return data if isinstance(tiny.env, Data) else one(data)


def inside(space: ActionSpace, action: np.ndarray) -> bool:
    """Whether actions `[N, ...]` belong to the space."""
    if isinstance(space, Box):
        return action.dtype == np.float32 and action.shape[1:] == (space.size,) and (np.abs(action) <= 1).all()
    most = np.asarray(space.n)
    return action.dtype == np.int32 and action.shape[1:] == most.shape and ((action >= 0) & (action < most)).all()


LIVED = ("dreamer-v3", "dyna-q", "ppo", page.NAME)
"""Systems of the default suite: one for each way of living (train as you go, from a table, on what was collected
last, and a planner's). The others live in the slow suite."""
SYSTEMS = [pytest.param(name, marks=[pytest.mark.slow] * (name not in LIVED)) for name in (*agents.AGENTS, page.NAME)]


@pytest.fixture(scope="module", params=SYSTEMS)
def tiny(request):
    with page.registered(request.param):
        yield build(request.param)


@pytest.fixture(scope="module")
def lived(tiny) -> Lived:
    trainer = trainer_of(tiny)
    end = end_of(tiny, trainer)
    life, cursor, reports = live(trainer, trainer.init(0), Cursor(), end, 64)
    assert cursor == end
    return Lived(tiny, trainer, jax.device_get(life._replace(key=())), end, reports)


# --- Acting -------------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """What a mode answers to `step`, with the memory of before."""

    carry: Any
    step: Step
    answers: dict[str, tuple[Any, Any, Any]]  # mode -> (carry, action, extras)


def remember(tiny: Built, state: Any) -> Any:
    """The memory before an episode."""
    return jax.jit(lambda state: tiny.agent.reset(state, tiny.env.num_envs))(state)


@pytest.fixture(scope="module")
def moves(tiny: Built, lived: Lived):
    """`(state, act, moves)`: some steps of the environment, each answered in every mode; the greedy one is played."""
    if tiny.agent.act is None:
        pytest.skip(f"nothing acts in {tiny.name}")
    state = one(lived.life.agent)

    @jax.jit
    def act(state, carry, step, key):
        return {mode: tiny.agent.act(state, carry, step, key, mode) for mode in MODES}

    reset, step_fn = jax.jit(tiny.env.reset), jax.jit(tiny.env.step)
    carry, (handle, step), found = remember(tiny, state), reset(jax.random.key(1)), []
    for t in range(5):
        answers = act(state, carry, step, jax.random.key(t))
        found.append(Move(carry, step, answers))
        carry = answers["greedy"][0]
        handle, step = step_fn(handle, answers["greedy"][1])
    return state, act, found


def test_every_mode_acts_inside_the_space(tiny, moves):
    for move in moves[2]:
        for mode in MODES:
            assert inside(tiny.env.spec.action, np.asarray(move.answers[mode][1])), mode


def test_memory_and_extras_have_one_structure(tiny, moves):
    state, _, found = moves
    start = layout(jax.eval_shape(lambda s: tiny.agent.reset(s, tiny.env.num_envs), state))
    extras = layout(found[0].answers["random"][2])
    for move in found:
        for mode in MODES:
            assert layout(move.answers[mode][0]) == start and layout(move.answers[mode][2]) == extras, mode
    assert isinstance(extras, dict)
    for leaf in jax.tree.leaves(found[0].answers["random"][2]):
        assert leaf.shape[0] == tiny.env.num_envs


def test_acting_is_pure(tiny, moves):
    """The same question has the same answer, and asking changes nothing."""
    state, act, found = moves
    before = raw(state)
    again = act(state, found[-1].carry, found[-1].step, jax.random.key(len(found) - 1))
    assert_same(again, found[-1].answers)
    assert_same(state, before)


def test_a_new_episode_forgets(tiny, moves):
    """Where `is_first` is set, the memory of another episode has no influence; elsewhere it may."""
    state, act, found = moves
    step = found[0].step
    assert np.asarray(step.is_first).all()
    key = jax.random.key(0)
    used = act(state, found[-1].answers["explore"][0], step, key)
    for mode in MODES:
        memory, action, extras = used[mode]
        assert_same((action, extras), found[0].answers[mode][1:])
        if mode != "random":  # an old plan may lie there until somebody plans
            assert_same(memory, found[0].answers[mode][0])


# --- Learning -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches(lived) -> dict[str, Batch]:
    """What each train step of the first member would read next."""
    tiny, life = lived.tiny, lived.life
    state = one(life.agent)
    rings = {name: ring._replace(data=of_one(tiny, ring.data)) for name, ring in life.rings.items()}
    drawn = {}
    for name, step in tiny.agent.train_steps.items():
        sampler = replay.sampler(step.sampler, step.batch_size, step.length)
        reads = rings[step.reads] if isinstance(step.reads, str) else {ring: rings[ring] for ring in step.reads}
        draw = jax.jit(sampler.draw)
        drawn[name] = draw(state, reads, life.cursors.get(name, sampler.start), jax.random.key(7))[0]
    return jax.device_get(drawn)


@pytest.fixture(scope="module")
def update(tiny):
    """The system's `train_step`, traced once for all that ask."""
    return jax.jit(tiny.agent.train_step)


def test_a_step_keeps_the_structure_of_the_state(tiny, lived, batches, update):
    """Of the state, by shapes alone; what the steps of a life changed are the weights."""
    before, after = one(lived.trainer.init(0).agent), one(lived.life.agent)
    found, metrics = jax.eval_shape(update, after, batches, jax.random.key(3))
    assert layout(found) == layout(after) == layout(before)
    assert set(before._fields) >= {"params", "opt", "hyper", "step"}
    assert (np.asarray(after.step) > np.asarray(before.step)).all()
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), raw(after.params), raw(before.params))
    assert any(jax.tree.leaves(changed))
    if tiny.name.startswith("dreamer"):
        assert all(any(jax.tree.leaves(part)) for part in changed.values()), "some component has no gradient"
    for name, value in metrics.items():
        assert value.shape == () and value.dtype == jnp.float32, name
    if tiny.name != "dyna-q":  # a table has errors
        assert any("loss" in name for name in metrics), sorted(metrics)


MAPPED = ("ppo", "dyna-q")
"""Systems whose mapped updates are compiled in the default suite: the gradient step is one function of them all."""


def check_mapped(update: Any, lived: Lived, batches: dict[str, Batch]) -> None:
    """`train_step` under `vmap` over two members and `pmap` over one is `train_step`."""
    state, key = one(lived.life.agent), jax.random.key(3)
    expected, metrics = update(state, batches, key)
    half = {name: value / 2 for name, value in state.hyper.items()}
    stacked = lambda *trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
    pair = stacked(state, state)._replace(hyper=stacked(state.hyper, half))
    two, both = jax.jit(jax.vmap(update, (0, None, None)))(pair, batches, key)
    each, single = jax.pmap(update)(stacked(state), stacked(batches), key[None])
    for found, numbers in ((two, both), (each, single)):
        assert layout(one(found)) == layout(expected)
        assert_close(one(found).params, expected.params, 1e-3, 1e-4)
        assert_close(one(numbers), metrics, 1e-2, 1e-3)
    apart = jax.tree.map(lambda x: bool((x[0] != x[1]).any()), raw(two.params))
    assert not half or any(jax.tree.leaves(apart)), "members with other hyper-parameters learn alike"


def test_a_step_is_the_same_under_jit_vmap_and_pmap(tiny, lived, batches, update):
    if tiny.name not in MAPPED:
        pytest.skip("in the slow suite")
    check_mapped(update, lived, batches)


@pytest.mark.slow
def test_mapped_steps_of_the_other_systems(tiny, lived, batches, update):
    if tiny.name in MAPPED:
        pytest.skip("in the default suite")
    check_mapped(update, lived, batches)


# --- Dreaming -----------------------------------------------------------------------------------------------------


def test_dreams_have_the_shapes_of_the_contract(tiny, lived):
    """Three steps after a context of two records, with the policy's actions and with given ones."""
    if tiny.agent.imagine is None:
        pytest.skip(f"{tiny.name} has no generative model")
    state, space = one(lived.life.agent), tiny.env.spec.action
    ring = lived.life.ring._replace(data=of_one(tiny, lived.life.ring.data))
    context = jax.device_get(jax.jit(lambda ring: replay.sample(ring, jax.random.key(0), 2, 2))(ring).record)
    imagine = partial(tiny.agent.imagine, horizon=HORIZON)
    free = jax.eval_shape(lambda s, c, k: imagine(s, c, None, k), state, context, jax.random.key(0))
    given = np.stack([context.action[:, -1]] * HORIZON, 1)
    dream = jax.jit(imagine)(state, context, given, jax.random.key(0))
    assert isinstance(dream, Dream) and layout(free) == layout(dream)
    assert dream.reward.shape == dream.cont.shape == (2, HORIZON)
    assert dream.reward.dtype == dream.cont.dtype == jnp.float32
    assert ((dream.cont >= 0) & (dream.cont <= 1)).all() and np.isfinite(dream.reward).all()
    assert inside(space, np.asarray(dream.action).reshape(2 * HORIZON, *dream.action.shape[2:]))
    np.testing.assert_array_equal(dream.action, given)
    if dream.obs is not None:
        frames = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, HORIZON, *x.shape), x.dtype), visible(tiny))
        assert layout(dream.obs) == layout(frames)


def visible(tiny: Built) -> Any:
    """The sensors that a dream shows: not the reserved ones."""
    obs = tiny.env.spec.obs
    return (
        {k: v for k, v in obs.items() if k not in ("legal", "to_play", "action", "sim")}
        if isinstance(obs, dict)
        else obs
    )


# --- A whole life -------------------------------------------------------------------------------------------------


def test_the_life_reports_what_it_did(lived):
    """Metrics `[M]` that are finite, episodes counted once, counters that agree with each other."""
    life, trainer = lived.life, lived.trainer
    acts = lived.tiny.agent.act is not None
    assert int(life.counters.steps) == int(life.counters.rows) * lived.tiny.env.num_envs * acts
    assert int(life.counters.updates) > 0 and not np.asarray(life.skipped.total).any()
    names = set().union(*(report.metrics for report in lived.reports))
    assert names
    for report in lived.reports:
        assert not report.faults
        for name, value in report.metrics.items():
            assert value.shape == (MEMBERS,) and np.isfinite(value).all(), name
    ended = [(e["member"], e["env_steps"]) for report in lived.reports for e in report.episodes]
    assert bool(ended) == acts and all(
        0 <= member < MEMBERS and steps <= int(life.counters.steps) for member, steps in ended
    )
    assert trainer.finished(lived.end) == (lived.end.segment == len(trainer.segments))


def test_members_differ(lived):
    params = raw(lived.life.agent.params)
    assert any(jax.tree.leaves(jax.tree.map(lambda x: bool((x[0] != x[1]).any()), params)))


def test_any_chunks_give_the_same_bits_and_nothing_is_compiled_again(lived):
    """The first chunks compiled everything; other lengths, and another life, are the same programs."""
    trainer = lived.trainer
    with compiles() as again:
        life, cursor, _ = live(trainer, trainer.init(0), Cursor(), lived.end, 3)
    assert cursor == lived.end and again.count == 0
    assert_same(life._replace(key=()), lived.life)


def test_a_run_that_is_saved_goes_on_as_the_same_run(lived, tmp_path):
    """Half a life, a checkpoint, and the other half: the bits of the whole."""
    trainer, middle = lived.trainer, middle_of(lived.tiny, lived.trainer)
    life, cursor, _ = live(trainer, trainer.init(0), Cursor(), middle, 64)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, life, cursor, {})
        checkpoints.wait()
        found = checkpoints.restore(trainer.init(1))
    assert found.cursor == middle
    life, cursor, _ = live(trainer, trainer.restored(found.life), found.cursor, lived.end, 64)
    assert cursor == lived.end
    assert_same(life._replace(key=()), lived.life)
