"""Pure environments out of functions: nested observations, their own metrics, resets that are rare."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import same
from toys import toy_agent

from jaxwm import envs
from jaxwm.envs.border import Misfit
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import Cursor, member_keys
from jaxwm.training.trainer import Trainer
from jaxwm.types import Discrete, Spec

STRUCT = jax.ShapeDtypeStruct


def walk(num_envs, rare=False, names=True):
    """A random walk that ends at +-3; counts its steps to the right, which `metrics` reports."""
    spec = Spec("my/Walk", STRUCT((1,), jnp.float32), Discrete(2), 50)

    def reset(key):
        place = jax.random.randint(key, (), -1, 2)
        return {"place": place, "right": jnp.int32(0), "key": jax.random.fold_in(key, 1)}, place[None]

    def step(key, state, action):
        move = jnp.where(jax.random.bernoulli(jax.random.fold_in(state["key"], state["place"])), 1, -1)
        place = state["place"] + move
        new = {"place": place, "right": state["right"] + (move > 0), "key": key}
        return new, place[None], move, jnp.abs(place) >= 3, False

    metrics = (lambda state: {"right": state["right"], "near/zero": state["place"] == 0}) if names else None
    return envs.from_functions(spec, reset, step, num_envs, metrics, rare_resets=rare)


def test_rare_resets_give_the_same_stream():
    """Of members and their environments; typed keys in the state included."""

    def members(env):
        def one(key):
            state, _ = env.reset(key)
            return jax.lax.scan(lambda state, _: env.step(state, jnp.zeros(5, jnp.int32)), state, None, 30)[1]

        return jax.device_get(jax.jit(jax.vmap(one))(member_keys(0, 3)))

    usual = members(walk(5))
    assert usual.is_last.sum() > 10 and same(usual, members(walk(5, rare=True)))


def test_a_reset_that_is_rare_is_not_run_without_need():
    """Nothing outside of the loop that runs it depends on it: a callback counts."""
    ran = []

    def reset(key):
        jax.debug.callback(lambda: ran.append(1))
        return jnp.int32(0), jnp.zeros(1)

    def step(key, time, action):
        return time + 1, jnp.zeros(1), 0.0, time + 1 >= 4, False

    env = envs.from_functions(Spec("t/x", STRUCT((1,), jnp.float32), Discrete(2)), reset, step, 2, rare_resets=True)
    jax.block_until_ready(
        jax.jit(lambda key: jax.lax.scan(env.step, env.reset(key)[0], jnp.zeros((9, 2), jnp.int32)))(jax.random.key(0))
    )
    jax.effects_barrier()
    assert len(ran) == 1 + 2  # the first episodes at once, then one of each environment after 4 steps


def test_metrics_are_reported_at_the_end_of_episodes():
    """While training and in evaluations: the right steps of a walk are (length + its sum) / 2."""
    env = walk(4)
    trainer = Trainer(toy_agent(length=3), env, members=2, capacity=400)
    life, cursor, _ = trainer.run(trainer.init(0), Cursor(), 60)  # random play
    life, cursor, report = trainer.run(life, cursor, 60)
    ended = [[e for e in report.episodes if e["member"] == m] for m in range(2)]
    assert set(report.played) == {"right", "near/zero"} and all(len(found) > 5 for found in ended)
    expected = [np.mean([(e["length"] + e["return"]) / 2 for e in found]) for found in ended]
    np.testing.assert_allclose(report.played["right"], expected, rtol=1e-5)
    assert report.played["near/zero"].tolist() == [0, 0]
    scores = evaluate(trainer.agent, walk(8), life.agent, member_keys(3, 2), episodes=16, mode="random")
    np.testing.assert_allclose(scores.metrics["right"], (scores.length + scores.total) / 2)
    assert cursor != Cursor() and walk(8, names=False).metrics(life.env) == {}


class Place(NamedTuple):
    x: jax.Array
    y: jax.Array


def test_nested_observations_become_one_dict():
    """Names are kept, forms too: the environment returns what it was described with."""
    given = {
        "goal": {"place": Place(STRUCT((), jnp.int32), STRUCT((2,), jnp.int8)), "colour": (STRUCT((3,), jnp.bool_),)},
        "view": STRUCT((48, 64), jnp.uint8),
        "bytes": STRUCT((5,), jnp.uint8),
        "half": STRUCT((4,), jnp.float16),
    }
    spec = Spec("my/Nest", given, Discrete(2))
    assert {name: (s.shape, s.dtype.name if hasattr(s.dtype, "name") else np.dtype(s.dtype).name)
            for name, s in spec.obs.items()} == {
        "goal_place_x": ((), "float32"), "goal_place_y": ((2,), "float32"), "goal_colour_0": ((3,), "bool"),
        "view": ((48, 64, 1), "uint8"), "bytes": ((5,), "float32"), "half": ((4,), "float32"),
    }  # fmt: skip
    show = lambda n: jax.tree.map(lambda s: jnp.full(s.shape, n, s.dtype), given)  # noqa: E731
    env = envs.from_functions(spec, lambda key: ((), show(1)), lambda key, s, a: (s, show(3), 0.0, False, False), 2)
    _, step = jax.jit(lambda: env.step(env.reset(jax.random.key(0))[0], jnp.zeros(2, jnp.int32)))()
    assert step.obs["goal_place_y"].tolist() == [[3, 3]] * 2 and step.obs["view"].shape == (2, 48, 64, 1)

    class World:
        def reset(self, seed=None):
            return jax.tree.map(np.asarray, show(1)), {}

        def step(self, action):
            return jax.tree.map(np.asarray, show(2)), 0.0, False, False, {}

    hosted = envs.from_gymnasium(lambda seed: World(), 2, spec)
    _, step = hosted.reset(jax.random.split(jax.random.key(0), 1))
    assert step.obs["goal_colour_0"].all() and step.obs["bytes"].dtype == np.float32
    wrong = envs.from_functions(spec, lambda key: ((), {**show(1), "goal": jnp.zeros(3)}), lambda *_: None, 1)  # type: ignore
    with pytest.raises(Misfit, match="has the sensors 'bytes', 'goal', 'half', 'view', expected"):
        jax.eval_shape(wrong.reset, jax.random.key(0))


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (
            {"a": {"b": STRUCT((1,), jnp.float32)}, "a_b": STRUCT((1,), jnp.float32)},
            "two sensors would be called 'a_b'",
        ),
        ({"a": {3: STRUCT((1,), jnp.float32)}}, "named by text, not by 3"),
        ({"a": (STRUCT((0,), jnp.float32),)}, r"'a_0' of shape \(0,\) is empty"),
        ({"a": [1]}, "'a_0' must be a jax.ShapeDtypeStruct, not int"),
        (STRUCT((2,), jnp.complex64), "'obs' is complex64: sensors are numbers or flags"),
    ],
)
def test_what_is_no_sensor_is_named(obs, words):
    with pytest.raises(ValueError, match=words):
        Spec("my/Nest", obs, Discrete(2))
