"""Every preset of every system, published sizes too: shapes and types, and lowering for GPUs and TPUs. Nothing is
compiled and nothing allocated.

The default preset of each system is checked whole (weights, modes, updates, dreams), and so are other kinds of
observations and actions in tiny sizes; one system of each kind is lowered too. The slow suite lowers the others, and
traces weights, acting and updates of all other presets.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import layout
from tiny import TINY, build

from jaxwm import Trainer, agents, envs, spaces
from jaxwm.training.life import LOG_AXES
from jaxwm.types import Box, Data, Discrete, Env, MultiDiscrete, Record, Spec

MODES = ("random", "explore", "greedy")
ACCELERATORS = ("cuda", "tpu")
IMAGE, VECTOR = jax.ShapeDtypeStruct((64, 64, 3), np.uint8), jax.ShapeDtypeStruct((4,), np.float32)
PLANES = jax.ShapeDtypeStruct((10, 10, 4), np.bool_)
ATARI, CONTROL = Spec("own/Atari", IMAGE, Discrete(18), 100), Spec("own/Control", IMAGE, Box(6), 100)
NUMBERS, BOARD = Spec("own/Numbers", VECTOR, Box(2), 100), Spec("own/Board", PLANES, Discrete(6), 100)


class Case(NamedTuple):
    """A system with settings, built for a spec."""

    name: str
    settings: Any
    spec: Spec
    label: str
    whole: bool  # check modes, updates, dreams and lowering too


def preset_cases() -> list[Case]:
    """Every preset with a spec of the kind that it was made for."""
    example = lambda name: envs.make(name).spec  # noqa: E731
    kinds = {
        "dreamer-v3": ATARI,
        "dreamer-v2": ATARI,
        "dreamer-v1": CONTROL,
        "planet": CONTROL,
        "dyna-q": example("tabular/DynaMaze"),
        "pets": example("continuous/CartPole"),
        "world-models": ATARI,
        "iris": ATARI,
        "token-dyna": ATARI,
        "diamond": ATARI,
        "genie": ATARI,
        "alphazero": example("pgx/TicTacToe"),
        "muzero": BOARD,
        "efficientzero": BOARD,
        "storm": ATARI,
        "sac": NUMBERS,
        "ppo": NUMBERS,
        "mbpo": example("gymnax/Pendulum-v1"),
        "grbal": example("continuous/Pendulum"),
        "mb-mpo": example("continuous/Pendulum"),
        "tdmpc2": NUMBERS,
        "simple": ATARI,
    }
    special = {
        ("muzero", "pendulum"): NUMBERS,
        ("muzero", "cartpole"): Spec("own/CartPole", VECTOR, Discrete(2), 100),
        ("muzero", "published"): ATARI,
        ("efficientzero", "cartpole"): Spec("own/CartPole", VECTOR, Discrete(2), 100),
        ("efficientzero", "published"): ATARI,
        ("dreamer-v3", "nano"): BOARD,
        ("dreamer-v2", "nano"): BOARD,
        ("storm", "nano"): BOARD,
        ("dreamer-v1", "micro"): NUMBERS,
        ("planet", "micro"): NUMBERS,
        ("world-models", "carracing"): Spec("own/CarRacing", IMAGE, Box(3), 100),
        ("ppo", "atari"): ATARI,
        ("ppo", "small"): Spec("own/CartPole", VECTOR, Discrete(2), 100),
        ("iris", "micro"): BOARD,
        ("token-dyna", "micro"): BOARD,
        ("diamond", "micro"): BOARD,
        ("diamond", "nano"): BOARD,
        ("diamond", "catch"): Spec("own/Icon", jax.ShapeDtypeStruct((16, 16, 3), np.uint8), Discrete(3), 10),
        ("simple", "micro"): BOARD,
        ("simple", "micro-deterministic"): BOARD,
        ("genie", "micro"): BOARD,
        ("genie", "nano"): BOARD,
        ("alphazero", "connect-four"): example("pgx/ConnectFour"),
    }
    return [
        Case(name, settings, special.get((name, preset), kinds[name]), preset, preset == agents.find(name).default)
        for name in agents.AGENTS
        for preset, settings in agents.find(name).presets.items()
    ]


BOTH = Spec("own/Both", {"image": IMAGE, "vector": VECTOR}, MultiDiscrete((2, 3)), 100)
SEEN: dict[str, list[Spec]] = {
    "dreamer-v3": [CONTROL, BOTH, NUMBERS],
    "dreamer-v2": [BOTH, NUMBERS, CONTROL],
    "dreamer-v1": [BOARD, BOTH],
    "muzero": [NUMBERS, ATARI],
    "storm": [BOTH, CONTROL],
    "ppo": [NUMBERS, BOTH],
}
"""Further kinds of observations and actions for systems that take several, in tiny settings."""
LATER = {(name, spec.name) for name, specs in SEEN.items() for spec in specs}
LATER -= {("dreamer-v3", BOTH.name)}
"""Those of them for the slow suite."""

LOWERED = ("dreamer-v3", "muzero", "ppo")
"""Systems whose programs are lowered in the default suite: a recurrent model, a search, and a plain network."""


def cases() -> list[Any]:
    tiny = {name: agents.settings(name, **TINY[name]) for name in SEEN}
    kinds = [Case(name, tiny[name], spec, spec.name, True) for name, specs in SEEN.items() for spec in specs]
    marks = lambda case: [pytest.mark.slow] * (not case.whole or (case.name, case.label) in LATER)  # noqa: E731
    return [pytest.param(c, id=f"{c.name}-{c.label}", marks=marks(c)) for c in preset_cases() + kinds]


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """Programs take the routes of a GPU, as they would be where they are lowered for one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def floats(tree: Any) -> set[str]:
    """Types of the floating leaves."""
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def traced(fn: Any, *arguments: Any, lower: bool = True) -> Any:
    """Shapes of what `fn` returns, after it was lowered for every accelerator."""
    program = jax.jit(fn).trace(*arguments)
    if lower:
        program.lower(lowering_platforms=ACCELERATORS)
    return program.out_info


@pytest.mark.parametrize("case", cases())
def test_shapes_types_and_accelerators(case: Case, on_an_accelerator):
    check(case, lower=case.whole and case.name in LOWERED)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in cases() if c.values[0].whole and c.values[0].name not in LOWERED])
def test_the_other_systems_on_accelerators(case: Case, on_an_accelerator):
    check(case, lower=True)


def check(case: Case, lower: bool) -> None:
    """Weights, memory and modes; of a case that is checked whole updates and dreams as well."""
    agent = agents.build(case.name, case.spec, case.settings)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))
    assert set(state._fields) >= {"params", "opt", "hyper", "step"} and set(state.hyper) == set(agent.hyper)
    assert floats(state.params) == {"float32"}, "weights are float32, whatever is computed with"
    extras = check_acting(agent, case, state, key, lower) if agent.act is not None else {}
    if case.whole:
        check_updates(agent, case, extras, lower)
        if agent.imagine is not None:
            check_dream(agent, case.spec, state, extras)


def check_acting(agent: Any, case: Case, state: Any, key: Any, lower: bool, num: int = 2) -> Any:
    """Memory, actions and extras have one layout in every mode; the extras."""
    carry = jax.eval_shape(lambda s: agent.reset(s, num), state)
    step = spaces.blank_step(case.spec, num)
    modes = MODES if case.whole else ("explore",)
    act = {mode: partial(agent.act, mode=mode) for mode in modes}
    lowered = lambda mode: lower and mode == "explore"  # noqa: E731
    answers = {mode: traced(act[mode], state, carry, step, key, lower=lowered(mode)) for mode in modes}
    blank, extras = jax.eval_shape(lambda: spaces.blank(case.spec.action, num)), answers["explore"][2]
    for mode, (after, action, more) in answers.items():
        assert layout(after) == layout(carry), mode
        assert layout(action) == layout(blank), mode
        assert layout(more) == layout(extras) and isinstance(extras, dict), mode
    return extras


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in cases() if not case.values[0].whole])
def test_updates_of_the_other_presets(case: Case, on_an_accelerator):
    agent, num = agents.build(case.name, case.spec, case.settings), 2
    if agent.act is None:
        return check_updates(agent, case, {})
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))
    carry, key = jax.eval_shape(lambda s: agent.reset(s, num), state), jax.eval_shape(lambda: jax.random.key(0))
    step = spaces.blank_step(case.spec, num)
    check_updates(agent, case, jax.eval_shape(partial(agent.act, mode="explore"), state, carry, step, key)[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", agents.AGENTS)
def test_whole_chunks_lower_for_accelerators(name, on_an_accelerator):
    """Collecting, sampling, learning and writing back, as one program."""
    tiny = build(name)
    trainer = Trainer(tiny.agent, tiny.env, 2, tiny.config.capacity, devices=jax.devices()[:1])
    life, axes = jax.eval_shape(lambda: trainer.init(0)), trainer._program.axes
    on_device = [segment for segment in trainer.segments if trainer._compiles(segment)]  # the host loads recordings
    for segment in {segment.body: segment for segment in on_device}.values():
        chunk = partial(trainer._program.chunk, segment, 4)
        traced(trainer.spread.population(chunk, (axes, None), (axes, LOG_AXES)), life, jnp.zeros((), jnp.int32))


def check_updates(agent: Any, case: Case, extras: Any, lower: bool = False) -> None:
    """An update keeps the state's structure, reports scalars and writes back extras of the last records."""
    for name, (update, arguments) in updates(agent, case).items():
        train, batch = agent.train_steps[name], arguments[1]
        after, feedback, metrics = traced(update, *arguments, lower=lower)
        assert layout(after) == layout(arguments[0]), name
        assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values()), name
        if train.writes is None:
            check_feedback(feedback, extras, train)
        assert batch.record.reward.shape == (batch.weight.shape[0], train.length), name


def updates(agent: Any, case: Case) -> dict[str, Any]:
    """`{name: (update, shapes of its arguments)}`, as the trainer would call it."""
    source: Any = Env(case.spec, lambda key: None, lambda state, action: None, case.settings.envs, True)  # type: ignore[arg-type]
    if agent.act is None:
        source = Data(case.spec, lambda first, count: None, 1000, source.num_envs)  # type: ignore[arg-type, return-value]
    capacity = max(case.settings.capacity, *(step.length * source.num_envs for step in agent.train_steps.values()))
    return Trainer(agent, source, capacity=capacity, devices=jax.devices()[:1]).footprint()["updates"]


def check_feedback(feedback: Any, extras: Any, train: Any) -> None:
    """What is written back are extras of the last records of each sequence."""
    assert set(feedback) <= set(extras)
    for name, value in feedback.items():
        batch, count = value.shape[:2]
        assert batch == train.batch_size and count <= train.length and value.dtype == extras[name].dtype
        assert value.shape[2:] == extras[name].shape[1:], name


def check_dream(agent: Any, spec: Spec, state: Any, extras: Any) -> None:
    """A dream `[B, H]` after a context `[B, 2]`, with the policy's actions and with given ones."""
    batch, length, horizon = 3, 2, 4
    wide = lambda x: jax.ShapeDtypeStruct((batch, length, *x.shape[1:]), x.dtype)  # noqa: E731
    step = spaces.blank_step(spec, batch)
    action = jax.eval_shape(lambda: spaces.blank(spec.action, batch))
    context = jax.tree.map(wide, Record(*step, action, extras))
    key = jax.eval_shape(lambda: jax.random.key(0))
    given = jax.ShapeDtypeStruct((batch, horizon, *action.shape[1:]), action.dtype)
    for actions in (None, given):
        dream = jax.eval_shape(partial(agent.imagine, horizon=horizon), state, context, actions, key)
        number = ((batch, horizon), "float32")
        assert layout(dream.reward) == layout(dream.cont) == number and layout(dream.action) == layout(given)
        if dream.obs is not None:
            assert {x.shape[:2] for x in jax.tree.leaves(dream.obs)} == {(batch, horizon)}
            assert floats(dream.obs) <= {"float32"}
