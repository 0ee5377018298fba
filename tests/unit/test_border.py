"""Right values or a refusal: what environments return, what they are sent, what systems can see."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs
from jaxwm.envs import border, gym_spaces
from jaxwm.envs.border import Misfit
from jaxwm.envs.host import Outcome, host_env
from jaxwm.types import RESERVED, Box, Discrete, MultiDiscrete, Spec

Native = gym.spaces
KEYS = jax.random.split(jax.random.key(0), 1)


def struct(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


class World:
    """A gymnasium environment that returns what it is told, and keeps the actions that it gets."""

    def __init__(self, obs: Any = None, space: Any = None, action: Any = None, then: Any = (0.0, False, False)):
        self.observation_space = space or Native.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = Native.Discrete(2) if action is None else action
        self.obs, self.then = np.zeros(3, np.float32) if obs is None else obs, then
        self.taken: list[Any] = []

    def reset(self, seed: int | None = None) -> Any:
        return self.obs, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return self.obs, *self.then, {}


def hosted(*worlds: World, spec: Spec | None = None) -> tuple[Any, Any, Any]:
    """A host environment of these worlds: itself, and what its reset returned."""
    left = [worlds[0], *worlds] if spec is None else list(worlds)  # the first is built once more for its spaces
    env = envs.from_gymnasium(lambda seed: left.pop(0), len(worlds), spec)
    return env, *env.reset(KEYS)


def pure(spec: Spec, obs: Any, then: Any = (0.0, False, False), num_envs: int = 2) -> Any:
    """A pure environment that returns `obs`; the values are traced, as those of a real one."""
    return envs.from_functions(spec, lambda key: (jnp.int32(0), obs), lambda key, s, a: (s, obs, *then), num_envs)


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


# --- Names and forms of observations ------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [3, 4])
@pytest.mark.parametrize("form", [list, tuple, np.array, jnp.array], ids=lambda f: f.__name__)
def test_lists_and_tuples_are_arrays_and_environments_are_not_mixed_up(form, num):
    """With as many environments as numbers a transposed table would fit."""
    table = np.arange(num * 4, dtype=np.float32).reshape(num, 4)
    space = Native.Box(-np.inf, np.inf, (4,), np.float32)
    _, _, step = hosted(*(World(form(row.tolist()), space) for row in table))
    np.testing.assert_array_equal(step.obs[0], table)


def test_dicts_and_tuples_become_named_sensors():
    space = Native.Dict(
        cards=Native.Tuple((Native.Discrete(3), Native.Box(0, 9, (2,), np.float32))),
        deep=Native.Dict(x=Native.Box(0, 9, ())),
    )
    seen = {"cards": (np.int64(2), [4.0, 5.0]), "deep": {"x": 7.0}, "more": "not declared"}
    env, _, step = hosted(World(seen, space), World(seen, space))
    assert env.spec.obs == {"cards_0": struct(3, dtype=bool), "cards_1": struct(2), "deep_x": struct(1)}
    assert step.obs["cards_0"][0].tolist() == [[False, False, True]] * 2
    assert step.obs["cards_1"][0].tolist() == [[4, 5]] * 2 and step.obs["deep_x"][0].tolist() == [[7]] * 2


BOX = Native.Box(-9, 9, (3,), np.float32)
PAIR = Native.Dict(x=BOX, y=BOX)
THREE = [1.0, 2.0, 3.0]

WRONG_FORMS = [
    ("ragged", BOX, [[1.0], [2.0, 3.0]], "World: the observation is no array"),
    ("None", BOX, None, "World: the observation is None, expected numbers of shape (3,)"),
    ("text", BOX, "abc", "World: the observation is 'abc'"),
    ("complex", BOX, np.zeros(3, complex), "expected numbers of shape (3,)"),
    ("a dict", BOX, {"x": THREE}, "World: the observation is {'x': [1.0, 2.0, 3.0]}, expected numbers"),
    ("no dict", PAIR, THREE, "World: the observation is [1.0, 2.0, 3.0], expected a dict with 'x'"),
    ("a sensor left out", PAIR, {"x": THREE}, "World: the observation has 'x', expected 'y' too"),
    ("a tuple too short", Native.Tuple((BOX, BOX)), (THREE,), "the observation has 1 entries, expected 1 too"),
    ("another size", BOX, [1.0, 2.0], "World: the observation has shape (2,), expected (3,)"),
    ("another shape", Native.Box(0, 255, (48, 64, 1), np.uint8), np.zeros((64, 48, 1), np.uint8),
     "has shape (64, 48, 1), expected (48, 64, 1)"),
    ("channels first", Native.Box(0, 255, (64, 64, 3), np.uint8), np.zeros((3, 64, 64), np.uint8),
     "has shape (3, 64, 64), expected (64, 64, 3)"),
    ("inside a dict", PAIR, {"x": THREE, "y": [1.0]}, "World: the sensor 'y' has shape (1,), expected (3,)"),
]  # fmt: skip


@pytest.mark.parametrize("row", WRONG_FORMS, ids=lambda row: row[0])
def test_observations_of_another_form_are_refused(row):
    _, space, obs, words = row
    world = World(0 if obs is None else obs, space)
    world.obs = obs
    with pytest.raises(Misfit) as error:
        hosted(world, world)
    one_line(error, words)


def test_one_environment_that_differs_is_refused():
    with pytest.raises(Misfit) as error:
        hosted(World(), World(np.zeros(4)))
    one_line(error, "(4,), expected (3,)")


def test_names_of_sensors_are_text_and_differ():
    twice = Native.Dict({"a_b": BOX, "a": Native.Dict(b=BOX)})
    with pytest.raises(ValueError, match="two sensors would be called 'a_b'"):
        hosted(World({}, twice))
    with pytest.raises(ValueError, match="named by text, not by 3"):
        Spec("t/Names", {3: struct(2)}, Discrete(2))


@pytest.mark.parametrize(
    ("obs", "seen", "words"),
    [
        ({"x": struct(2), "y": struct(3)}, {"x": np.zeros(2)}, "t/Form: the observation has the sensors 'x', expected"),
        ({"x": struct(2)}, {"x": np.zeros(2), "z": 1.0}, "has the sensors 'x', 'z', expected 'x'"),
        ({"x": struct(2)}, np.zeros(2), "expected a dict with 'x'"),
        ({"x": struct(2)}, {"x": np.zeros(3)}, "t/Form: the sensor 'x' has shape (3,), expected (2,)"),
        (struct(2, 3, dtype=np.bool_), np.zeros((3, 2), bool), "has shape (3, 2), expected (2, 3)"),
        (struct(2), {"x": np.zeros(2)}, "expected float32 of shape (2,)"),
        (struct(2), None, "t/Form: the observation is None, expected float32 of shape (2,)"),
    ],
)
def test_the_same_holds_for_pure_environments(obs, seen, words):
    spec = Spec("t/Form", obs, Discrete(2))
    with pytest.raises(Misfit) as error:
        jax.eval_shape(pure(spec, seen).reset, jax.random.key(0))
    one_line(error, words)


def test_axes_of_length_one_and_lists_are_taken_by_both():
    spec = Spec("t/Form", struct(2, 2, 1, dtype=np.uint8), Discrete(2))
    picture = np.arange(4, dtype=np.uint8).reshape(2, 2)
    _, step = pure(spec, picture).reset(jax.random.key(0))
    _, _, other = hosted(World(picture.tolist()), World(picture[None]), spec=spec)
    np.testing.assert_array_equal(step.obs, other.obs[0])
    assert step.obs[1, :, :, 0].tolist() == picture.tolist()


def test_a_pool_of_ones_own_is_checked_too():
    class Pool:
        def reset(self):
            return np.zeros((2, 4))

        def step(self, action):
            return Outcome(np.zeros((2, 3)), [1, 2], [False, False], np.array([[0], [1]]))

        def close(self): ...

    spec = Spec("t/Pool", struct(3), Discrete(2))
    with pytest.raises(Misfit, match=r"t/Pool: the observation has shape \(2, 4\), expected \(2, 3\)"):
        host_env(spec, 2, lambda seeds: Pool()).reset(KEYS)
    Pool.reset = lambda self: np.zeros((2, 3))
    env = host_env(spec, 2, lambda seeds: Pool())
    _, step = env.step(env.reset(KEYS)[0], np.zeros((1, 2), np.int32))
    assert step.obs.dtype == step.reward.dtype == np.float32 and step.reward.tolist() == [[1, 2]]
    assert step.is_terminal.tolist() == [[False, True]] and step.is_terminal.dtype == bool


# --- Numbers ------------------------------------------------------------------------------------------------------

FITS = [
    (np.uint8, [0, 255], np.int64), (np.uint8, [0, 255], np.float64), (np.uint8, [0, 1], bool),
    (np.bool_, [0, 1], np.int8), (np.bool_, [0.0, 1.0], np.float32),
    (np.float32, [0.1, -3], np.float64), (np.float32, [2**24, -(2**24)], np.int64), (np.float32, [0, 1], bool),
]  # fmt: skip
LOSES = [
    (np.uint8, [0, 0.7], np.float32, "holds 0.6999", "uint8, whole numbers from 0 to 255"),
    (np.uint8, [0, 300], np.int32, "holds 300 (int32)"),
    (np.uint8, [-1, 0], np.float64, "holds -1.0 (float64)"),
    (np.uint8, [np.nan, 0], np.float64, "holds nan"),
    (np.bool_, [0, 2], np.int64, "holds 2", "0 and 1"),
    (np.bool_, [0, 0.5], np.float64, "holds 0.5"),
    (np.float32, [0, 2**24 + 1], np.int64, "holds 16777217", "up to 2**24"),
    (np.float32, [0, 2**63 - 1], np.int64, "holds 9223372036854775807"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "values", "given"), FITS)
def test_numbers_that_keep_their_value_are_converted(dtype, values, given):
    out = border.array("x", np.array(values, given), (2,), dtype)
    assert out.dtype == dtype and out.tolist() == np.array(values, dtype).tolist()


@pytest.mark.parametrize("row", LOSES)
def test_numbers_that_would_change_are_refused(row):
    dtype, values, given, *words = row
    shape = (2, 1, 1) if dtype == np.uint8 else (2,)  # uint8 is an image
    spec = Spec("t/Cast", struct(*shape, dtype=dtype), Discrete(2))
    with pytest.raises(Misfit) as error:
        hosted(World(np.array(values, given).reshape(shape)), spec=spec)
    one_line(error, "t/Cast: the observation", *words)


@pytest.mark.parametrize(
    ("dtype", "given", "fits"),
    [
        (jnp.uint8, jnp.float32, False), (jnp.uint8, jnp.int32, False), (jnp.uint8, jnp.bool_, True),
        (jnp.bool_, jnp.int32, False), (jnp.bool_, jnp.float32, False),
        (jnp.float32, jnp.int32, True), (jnp.float32, jnp.uint8, True), (jnp.float32, jnp.bfloat16, True),
        (jnp.float32, jnp.complex64, False),
    ],
)  # fmt: skip
def test_pure_environments_are_checked_by_type(dtype, given, fits):
    shape = (2, 1, 1) if dtype == jnp.uint8 else (2,)  # uint8 is an image
    env = pure(Spec("t/Cast", struct(*shape, dtype=dtype), Discrete(2)), jnp.zeros(shape, given))
    if fits:
        assert jax.eval_shape(env.reset, jax.random.key(0))[1].obs.dtype == dtype
        return
    with pytest.raises(Misfit) as error:
        jax.eval_shape(env.reset, jax.random.key(0))
    one_line(error, f"t/Cast: the observation is {jnp.dtype(given)}, expected {jnp.dtype(dtype)}")


@pytest.mark.parametrize("place", [-1, 3, 1.5, None])
def test_a_class_index_is_one_of_the_classes(place):
    with pytest.raises(Misfit) as error:
        hosted(World(place, Native.Discrete(3)) if place is not None else World("none", Native.Discrete(3)))
    one_line(error, "World: the")


def test_classes_are_one_hot():
    _, _, step = hosted(World(np.array([2, 0]), Native.MultiDiscrete([3, 2])))
    assert step.obs[0, 0].tolist() == [False, False, True, True, False]
    env, _, step = hosted(World(-1, Native.Discrete(2, start=-2)))
    assert env.spec.one_hot and step.obs[0, 0].tolist() == [False, True]


@pytest.mark.parametrize("seen", [[True, True, False], [False] * 3])
def test_what_is_declared_one_hot_is(seen):
    spec = Spec("t/State", struct(3, dtype=np.bool_), Discrete(2), one_hot=True)
    with pytest.raises(Misfit, match="t/State: the observation has several entries or none, expected one-hot"):
        hosted(World(np.array(seen)), spec=spec)
    with pytest.raises(ValueError, match="a one-hot observation is a single bool array"):
        Spec("t/State", struct(3), Discrete(2), one_hot=True)


# --- Rewards and flags --------------------------------------------------------------------------------------------

GOOD = [
    (1.5, False, False), (np.ones(1) * 1.5, np.zeros(1, bool), [0]), (np.float64(1.5), np.bool_(0), 0),
    ([[1.5]], 0.0, np.int8(0)), (jnp.float32(1.5), jnp.bool_(False), False),
]  # fmt: skip


@pytest.mark.parametrize("then", GOOD)
def test_rewards_and_flags_are_numbers_also_as_arrays_of_one_entry(then):
    env, handle, _ = hosted(World(then=then), World(then=(2, True, 0)), World())
    _, step = env.step(handle, np.zeros((1, 3), np.int32))
    assert step.reward.tolist() == [[1.5, 2, 0]] and step.reward.dtype == np.float32
    assert step.is_last.tolist() == step.is_terminal.tolist() == [[False, True, False]]
    spec = Spec("t/Reward", struct(3), Discrete(2))
    env = pure(spec, np.zeros(3), [np.asarray(x) for x in then], 3)
    _, step = env.step(env.reset(jax.random.key(0))[0], jnp.zeros(3, jnp.int32))
    assert step.reward.tolist() == [1.5] * 3 and not step.is_last.any() and step.is_last.shape == (3,)


BAD = [
    ((None, False, False), "the reward is None"),
    (("1", False, False), "the reward is '1'"),
    ((1j, False, False), "the reward"),
    ((np.ones(2), False, False), "the reward has shape (2,), expected ()"),
    ((0.0, None, False), "terminated is None"),
    ((0.0, np.zeros(2, bool), False), "terminated has shape (2,)"),
    ((0.0, False, None), "truncated is None"),
    ((0.0, False, [0, 0]), "truncated has shape (2,)"),
]


@pytest.mark.parametrize(("then", "words"), BAD)
def test_other_rewards_and_flags_are_refused(then, words):
    env, handle, _ = hosted(World(then=then))
    with pytest.raises(Misfit) as error:
        env.step(handle, np.zeros((1, 1), np.int32))
    one_line(error, f"World: {words}")
    env = pure(Spec("t/Reward", struct(3), Discrete(2)), np.zeros(3), then)
    with pytest.raises(Misfit) as error:
        jax.eval_shape(env.step, jax.eval_shape(env.reset, jax.random.key(0))[0], struct(2, dtype=np.int32))
    one_line(error, f"t/Reward: {words}")


@pytest.mark.parametrize("value", [2, 0.5, np.nan])
def test_a_flag_is_true_or_false(value):
    env, handle, _ = hosted(World(then=(0.0, value, False)))
    with pytest.raises(Misfit, match="World: terminated holds"):
        env.step(handle, np.zeros((1, 1), np.int32))


# --- Numbers that are not finite ----------------------------------------------------------------------------------


def test_a_number_that_is_not_finite_becomes_zero_and_is_counted():
    """One per step and environment, in observations, rewards and actions; beyond float32 is not finite either."""
    world = World([1.0, np.nan, -np.inf], Native.Box(-9, 9, (3,)), Native.Box(-2, 2, (1,)), (1e300, False, False))
    env, handle, step = hosted(world, World(action=world.action_space))
    assert step.obs[0].tolist() == [[1, 0, 0], [0, 0, 0]] and border.replaced(handle).tolist() == [[1, 0]]
    _, step = env.step(handle, np.array([[[0.5], [np.nan]]], np.float32))
    assert step.reward.tolist() == [[0, 0]] and border.replaced(handle).tolist() == [[2, 1]]


def test_pure_environments_count_without_leaving_the_device():
    """A counter that is NaN as an observation at 2 and inf as a reward at 3, in a scan; the state goes on."""
    spec = Spec("t/Nan", {"x": struct(2), "flag": struct(1, dtype=np.bool_)}, Discrete(2), 6)

    def show(t):
        return {"x": jnp.array([1.0, jnp.nan])[jnp.where(t == 2, 1, 0)] * jnp.ones(2), "flag": jnp.ones(1, bool)}

    def step(key, t, action):
        return t + 1, show(t + 1), jnp.where(t + 1 == 3, -jnp.inf, 1.0), False, t >= 5

    env = envs.from_functions(spec, lambda key: (jnp.int32(0), show(0)), step, 2)

    @jax.jit
    def roll(key):
        return jax.lax.scan(lambda state, _: env.step(state, jnp.zeros(2, jnp.int32)), env.reset(key)[0], None, 13)

    with jax.debug_nans(True):
        state, steps = roll(jax.random.key(0))
    assert border.replaced(state).tolist() == [4, 4] and state.replaced.dtype == jnp.int32  # two episodes
    assert steps.obs["x"][:3, 0, 0].tolist() == [1, 0, 1] and steps.reward[:4, 1].tolist() == [1, 1, 0, 1]
    assert border.replaced(()) == 0


# --- Actions ------------------------------------------------------------------------------------------------------

RANGES = [
    (-0.1, 0.3, np.float64), (1 / 3, 2 / 3, np.float64), (-0.1, 0.3, np.float32), (-0.1, 0.3, np.float16),
    (0, 5e6, np.float32), (1e6, 3e6, np.float64), (-7e6, 8e8, np.float32), (2, 2, np.float32),
    (-np.inf, np.inf, np.float32), (-1e10, 1e10, np.float64),
    (0, 255, np.uint8), (-3, 2, np.int32), (0, 1, np.int8), (-(2**63), 2**63 - 1, np.int64),
]  # fmt: skip


@pytest.mark.parametrize(("low", "high", "dtype"), RANGES)
def test_box_actions_are_inside_and_reach_the_ends(low, high, dtype):
    space = Native.Box(low, high, (1,), dtype)
    ours = np.linspace(-1.5, 1.5, 31, dtype=np.float32)[:, None]
    native = gym_spaces.action_space(space)[1](ours)
    assert native.dtype == dtype and all(space.contains(x) for x in native)
    assert (np.diff(native.astype(np.float64), axis=0) >= 0).all()
    if high - low < 1e9:
        np.testing.assert_array_equal(native[[0, 5, 25, 30], 0], [space.low[0]] * 2 + [space.high[0]] * 2)
    else:
        assert native.min() == -1 and native.max() == 1


def test_boxes_with_odd_ends_are_exact():
    rng = np.random.default_rng(0)
    for low, high in np.sort(rng.uniform(-3, 3, (200, 2)), 1):
        space = Native.Box(low, high, (1,), np.float64)
        ends = gym_spaces.action_space(space)[1](np.array([[-1.0], [1.0]], np.float32))
        assert ends.ravel().tolist() == [low, high]


@pytest.mark.parametrize(("low", "high"), [(0, np.inf), (2, np.inf), (-np.inf, -5), (-5, 1e12), (np.nan, 1)])
def test_boxes_without_a_scale_are_refused(low, high):
    space = Native.Box(0, 1, (1,), np.float32)
    space.low, space.high = np.array([low], np.float32), np.array([high], np.float32)
    with pytest.raises(ValueError, match=r"World: an action between .* cannot be scaled from .*TransformAction"):
        hosted(World(action=space))


@pytest.mark.parametrize(
    "space",
    [
        Native.Discrete(3, start=-1), Native.MultiDiscrete([2, 3], start=[1, -4]), Native.MultiBinary((2, 2)),
        Native.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32), Native.Box(-2, 4, (2, 1)), Native.Box(0, 1, ()),
        Native.Box(0, 9, (2,), np.int16),
    ],
    ids=str,
)  # fmt: skip
def test_actions_of_every_space_are_inside(space):
    """`World.step` asserts that its space contains them."""
    worlds = World(action=space), World(action=space)
    env, handle, _ = hosted(*worlds)
    rng, ours = np.random.default_rng(0), env.spec.action
    for _ in range(20):
        if isinstance(ours, Box):
            action: Any = rng.normal(0, 2, (1, 2, ours.size)).astype(np.float32)
        else:
            action = rng.integers(0, ours.n, (1, 2, *border.action_shape(ours)))
        env.step(handle, jnp.asarray(action))
    assert len({str(x) for x in worlds[1].taken}) > 2


def test_one_discrete_action_is_an_int():
    world = World()
    env, handle, _ = hosted(world)
    env.step(handle, np.ones((1, 1), np.int32))
    assert type(world.taken[0]) is int


@pytest.mark.parametrize(
    ("action", "sent", "words"),
    [
        (Discrete(3), [[3, 0]], "t/Act: the action [3, 0] is outside of 0 to 2"),
        (Discrete(3), [[-1, 0]], "outside of 0 to 2"),
        (Discrete(3), [[0.0, 1.0]], "the action is float32, expected int32"),
        (Discrete(3), [[True, False]], "the action is bool, expected int32"),
        (Discrete(3), [[0, 1, 2]], "has shape (1, 3), expected (1, 2)"),
        (MultiDiscrete((2, 3)), [[[0, 2], [2, 0]]], "outside of 0 to [1, 2]"),
        (Box(2), [[[0.0], [0.0]]], "has shape (1, 2, 1), expected (1, 2, 2)"),
    ],
)
def test_other_actions_are_refused(action, sent, words):
    spec = Spec("t/Act", struct(3), action)
    env, handle, _ = hosted(World(), World(), spec=spec)
    sent = np.array(sent, np.float32) if np.array(sent).dtype == np.float64 else np.array(sent)
    with pytest.raises(Misfit) as error:
        env.step(handle, sent)
    one_line(error, "t/Act: the action", words)
    if "outside" not in words:  # of a pure environment only shape and type are known
        with pytest.raises(Misfit):
            jax.eval_shape(pure(spec, np.zeros(3)).step, None, jnp.asarray(sent[0]))


def test_pure_environments_get_actions_in_their_range():
    spec = Spec("t/Act", struct(2), Box(2))
    env = envs.from_functions(spec, lambda key: (0, jnp.zeros(2)), lambda key, s, a: (s, a, 0.0, False, False), 2)
    sent = jnp.array([[-3.0, 0.25], [jnp.nan, jnp.inf]])
    _, step = env.step(env.reset(jax.random.key(0))[0], sent)
    assert step.obs.tolist() == [[-1, 0.25], [0, 0]]


# --- Reserved sensors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", RESERVED)
@pytest.mark.parametrize("name", agents.AGENTS)
def test_reserved_sensors_are_understood_or_refused(name, key):
    """A system declares what it obeys; all others refuse, before anything else is looked at."""
    leaf = {"legal": struct(3, dtype=np.bool_), "to_play": struct(dtype=np.int32), "sim": struct(4)}[key]
    spec = Spec("t/Mask", {"x": struct(2), key: leaf}, Discrete(3))
    if key in agents.AGENTS[name].obeys:
        return
    with pytest.raises(ValueError) as error:
        agents.make(name, spec)
    one_line(error, name, f"{key!r} ({RESERVED[key]}) of t/Mask", "alphazero")


@pytest.mark.slow
def test_the_mask_is_obeyed():
    """What MuZero sends is legal in every mode. (AlphaZero: tests/systems/test_alphazero.py.)"""
    spec = Spec("t/Mask", {"x": struct(2), "legal": struct(3, dtype=np.bool_)}, Discrete(3))
    agent = agents.make("muzero", spec, preset="catch", simulations=4)
    env = pure(spec, {"x": np.zeros(2), "legal": np.array([False, True, False])}, num_envs=16)
    _, step = env.reset(jax.random.key(0))
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    for mode in ("random", "explore", "greedy"):
        act = jax.jit(lambda key, mode=mode: agent.act(state, agent.reset(state, 16), step, key, mode)[1])
        assert (act(jax.random.key(1)) == 1).all(), mode


def test_a_mask_for_several_choices_at_once_is_refused():
    with pytest.raises(ValueError, match="muzero masks single discrete actions only"):
        legal = {"x": struct(2), "legal": struct(5, dtype=np.bool_)}
        agents.make("muzero", Spec("t/Mask", legal, MultiDiscrete((3, 2))))


def test_a_mask_of_nothing_is_a_mask_of_everything():
    spec = Spec("t/Mask", {"x": struct(2), "legal": struct(3, dtype=np.bool_)}, Discrete(3))
    seen = {"x": np.zeros(2), "legal": np.zeros(3, bool)}
    assert pure(spec, seen).reset(jax.random.key(0))[1].obs["legal"].all()
    assert hosted(World(seen), spec=spec)[2].obs["legal"].all()


@pytest.mark.parametrize("action", [Box(3), Discrete(2), MultiDiscrete((3, 2))])
def test_a_mask_has_one_entry_per_option(action):
    with pytest.raises(ValueError, match="'legal' is reserved for the action mask"):
        Spec("t/Mask", {"x": struct(2), "legal": struct(3, dtype=np.bool_)}, action)


def test_a_sensor_may_be_called_action():
    spec = Spec("t/Free", {"action": struct(3)}, Discrete(2))
    assert agents.make("dreamer-v3", spec, preset="nano")


# --- What can be seen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "ours"),
    [
        ((64, 48), (64, 48, 1)),
        ((64, 48, 3), (64, 48, 3)),
        ((3, 64, 48), (64, 48, 3)),  # channels first
        ((4, 64, 48), (64, 48, 4)),  # grey frames
        ((4, 64, 48, 3), (64, 48, 12)),  # colour frames
        ((64, 48, 3, 4), (64, 48, 3, 4)),  # nobody knows
    ],
)
def test_images_have_their_channels_last(shape, ours):
    """Every pixel keeps its place; frames of a stack follow each other, the newest last."""
    space = Native.Box(0, 255, shape, np.uint8)
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    env, _, step = hosted(World(image, space))
    assert env.spec.obs == struct(*ours, dtype=np.uint8)
    frames = image if len(shape) == 4 and shape[0] == 4 else image[None] if len(shape) == 3 and shape[2] == 3 else None
    if frames is not None:
        np.testing.assert_array_equal(step.obs[0, 0], np.concatenate(list(frames), -1))
    elif len(shape) == 3:
        np.testing.assert_array_equal(step.obs[0, 0, ..., 1], image[1])


@pytest.mark.parametrize("name", ["dreamer-v3", "dreamer-v1", "planet", "muzero", "pets", "world-models"])
@pytest.mark.parametrize(
    "space",
    [
        Native.Box(0, 1, (64, 64, 3), np.float32), Native.Box(0, 255, (64, 64, 3), np.int64),
        Native.Box(0, 1, (64, 64), np.float64), Native.Box(0, 255, (64, 64, 3, 4), np.uint8),
        Native.Box(0, 1, (12288,), np.float32),
    ],
    ids=str,
)  # fmt: skip
def test_images_that_are_no_uint8_are_refused(name, space):
    """They became vectors of 12,288 numbers."""
    spec = envs.from_gymnasium(lambda seed: World(space=space, action=Native.Box(-1, 1, (1,)))).spec
    with pytest.raises(ValueError, match="uint8"):
        agents.make(name, spec, **({"reward": "learned"} if name == "pets" else {}))


@pytest.mark.parametrize("shape", [(), (7,), (3, 3), (376,)])
def test_vectors_are_seen(shape):
    spec = envs.from_gymnasium(lambda seed: World(space=Native.Box(0, 1, shape, np.float64))).spec
    assert len(spec.obs.shape) == 1 and agents.make("dreamer-v3", spec, preset="nano")
