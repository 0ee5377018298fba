"""Suites whose library is an extra: skipped where it is missing, and one clear line for who asks for them then."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import EXTRAS, actions, check_step, check_stream, roll, zeros

from jaxwm import envs
from jaxwm.nets import sensors
from jaxwm.studio import names
from jaxwm.types import Discrete, Spec

SHAPES = ["craftax/Classic-Symbolic", "jumanji-jax/Tetris", "xminigrid/MiniGrid-DoorKey-5x5", "brax/inverted_pendulum"]
"""Traced by default: nothing is compiled. The full game of Craftax alone takes a minute."""

PLAYED = {
    "craftax/Classic-Symbolic": {"max_steps": 12},
    "craftax/Classic-Pixels": {"max_steps": 12},
    "craftax/Symbolic": {"max_steps": 12},
    "craftax/Pixels": {"max_steps": 12, "image_size": 64},
    "jumanji-jax/Snake": {"max_steps": 9},
    "jumanji-jax/Maze-v0": {},
    "jumanji-jax/Connector": {},
    "jumanji-jax/SearchAndRescue": {"max_steps": 9},
    "xminigrid/MiniGrid-Empty-5x5": {"max_steps": 9},
    "xminigrid/XLand-MiniGrid-R1-9x9": {"max_steps": 9, "view_size": 3},
    "brax/inverted_pendulum": {"max_steps": 9},
    "brax/reacher": {"max_steps": 9, "action_repeat": 2, "backend": "spring"},
}


def wanted(name: str) -> None:
    """Skip where the library of the suite is not installed."""
    library = EXTRAS[name.split("/")[0]]
    pytest.importorskip(library, reason=f"needs {library}: pip install 'jaxwm[{library}]'", exc_type=ImportError)


BRAX = pytest.mark.filterwarnings("ignore:Accessing .* from `Data` is deprecated:DeprecationWarning")  # in its physics


@BRAX
@pytest.mark.parametrize("name", SHAPES)
def test_steps_fit_their_spec(name):
    wanted(name)
    env = envs.make(name, num_envs=2)
    assert env.pure and env.spec.name == name and sensors.kinds(env.spec.obs)
    state, step = jax.eval_shape(env.reset, jax.random.key(0))
    check_step(step, env.spec, (2,))
    after, step = jax.eval_shape(env.step, state, jnp.asarray(zeros(env.spec.action, (2,))))
    check_step(step, env.spec, (2,))
    layout = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), tree)  # noqa: E731
    assert layout(after) == layout(state)
    assert all(x.shape == (2,) and x.dtype == jnp.float32 for x in jax.eval_shape(env.metrics, state).values())


@BRAX
@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYED)
def test_a_stream_of_steps_keeps_the_contract(name):
    wanted(name)
    env = envs.make(name, num_envs=3, **PLAYED[name])
    action = actions(env.spec.action, (30, 3), np.random.default_rng(0))
    steps = roll(env, jax.random.key(1), action)
    check_stream(steps)
    check_step(jax.tree.map(lambda x: x[1], steps), env.spec, (3,))
    assert not (steps.is_terminal & ~steps.is_last).any() and np.isfinite(steps.reward).all()
    if "max_steps" in PLAYED[name]:
        assert (steps.is_last & ~steps.is_terminal).any(), "a time limit is no true end"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "most"), [("Classic-Symbolic", 22), ("Symbolic", 226)])
def test_craftax_counts_achievements(task, most):
    """What is paid is what was achieved, but for health: the metrics agree with the rewards."""
    wanted("craftax/x")
    env = envs.make(f"craftax/{task}", num_envs=16)

    def play(key):
        def turn(state, key):
            state, step = env.step(state, jax.random.randint(key, (16,), 0, env.spec.action.n))
            return state, (step, env.metrics(state))

        state, first = env.reset(key)
        return first, jax.lax.scan(turn, state, jax.random.split(key, 200))[1]

    first, (steps, metrics) = jax.device_get(jax.jit(play)(jax.random.key(0)))
    total = np.zeros(16)
    for t in range(200):
        total = np.where(steps.is_first[t], 0, total) + steps.reward[t]
        np.testing.assert_allclose(metrics["normalised"][t], 100 * total / most, atol=1e-3)
        each = sum(x[t] for name, x in metrics.items() if name.startswith("achievement/"))
        np.testing.assert_array_equal(metrics["achievements"][t], each)
    assert metrics["achievements"].max() >= 2 and (metrics["achievements"][steps.is_first] == 0).all()
    assert first.obs["map"].sum() >= 16 * np.prod(first.obs["map"].shape[1:3]) * 0.5 and first.obs["numbers"].max() > 5
    assert len([name for name in metrics if name.startswith("achievement/")]) == {22: 22, 226: 67}[most]


def test_the_symbols_of_craftax_are_all_there():
    """Every number of the library's vector is in the dict, once, in order."""
    wanted("craftax/x")
    craftax = importlib.import_module("jaxwm.envs.craftax")
    for game, size in ((craftax.CLASSIC, 1345), (craftax.FULL, 8268)):
        vector = jnp.arange(size, dtype=jnp.float32) % 2
        obs, read = craftax._symbols(game)
        seen = read(vector)
        assert {k: (v.shape, v.dtype) for k, v in seen.items()} == {k: (v.shape, v.dtype) for k, v in obs.items()}
        cells = int(np.prod(game.map))
        assert (seen["map"].ravel() == (vector[:cells] > 0)).all() and size == cells + sum(game.rest)
        numbers, flags = list(seen["numbers"]), list(seen["flags"])
        for place in range(len(game.rest)):
            for i in range(game.rest[place]):
                value = vector[cells + sum(game.rest[:place]) + i]
                assert bool(flags.pop(0)) == bool(value) if place % 2 else numbers.pop(0) == 10 * value


@pytest.mark.parametrize("name", SHAPES)
def test_a_missing_library_is_one_line(name, monkeypatch):
    library = EXTRAS[name.split("/")[0]]
    for module in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{name} needs {library} .*pip install 'jaxwm\[{library}\]'") as error:
        envs.make(name)
    assert "\n" not in str(error.value)


def test_wrong_options_are_named():
    for name, options, words in (
        ("craftax/Classic-Symbolic", {"zombie_helth": 3}, "did you mean 'zombie_health'"),
        ("craftax/Classic-Symbolic", {"image_size": 64}, "no option 'image_size'"),
        ("craftax/Classic-Symbolic", {"max_steps": 0}, "max_steps"),
        ("xminigrid/MiniGrid-Empty-5x5", {"view_size": 4}, "odd number"),
        ("brax/ant", {"backend": "warp"}, "must be one of 'generalized'"),
        ("jumanji-jax/Snake", {"speed": 2}, "does not take these options"),
    ):
        if importlib.util.find_spec(EXTRAS[name.split("/")[0]]):
            with pytest.raises(ValueError, match=words):
                envs.make(name, **options)


def test_blocks_and_actions_of_craftax_have_names():
    wanted("craftax/x")
    constants = importlib.import_module("craftax.craftax_classic.constants")
    spec = Spec("craftax/Classic-Symbolic", {"x": jax.ShapeDtypeStruct((1,), bool)}, Discrete(17))
    words = {"crafting_table": "table", "out_of_bounds": "outside"}
    blocks = [words.get(one.name.lower(), one.name.lower().replace("_", " ")) for one in constants.BlockType]
    assert names.planes(spec.name, 21) == [*blocks, "zombie", "cow", "skeleton", "arrow"]
    given = [one.name.lower().replace("make_", "").replace("_", " ") for one in constants.Action]
    assert names.actions(spec, 17) == ["nothing", *given[1:]]


def test_names_are_those_of_the_libraries():
    listed = envs.names()
    if importlib.util.find_spec("jumanji"):
        import jumanji

        ids = jumanji.registered_environments()
        assert set(listed["jumanji-jax"]) == {*ids, *(i.rpartition("-v")[0] for i in ids)}
    if importlib.util.find_spec("xminigrid"):
        import xminigrid

        assert set(listed["xminigrid"]) == set(xminigrid.registered_environments())
    assert listed["craftax"] == ["Classic-Pixels", "Classic-Symbolic", "Pixels", "Symbolic"]
