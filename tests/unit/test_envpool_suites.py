"""The suites out of envpool: names with versions, views for encoders, masks, pixels, and what a machine may lack."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces
from opening import problems
from worlds import host_roll

from jaxwm import envs
from jaxwm.envs import families, gym_spaces, minigrid, opengl, tasks, views
from jaxwm.envs.envpool import Face
from jaxwm.types import Box, Discrete, MultiDiscrete

opengl.load()  # before a test opens Procgen
NO_OPENGL = opengl.missing()
pixels = pytest.mark.skipif(bool(NO_OPENGL), reason=f"pixels of MuJoCo: {NO_OPENGL}")


def flag(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.bool_)


def vector(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


# --- Names --------------------------------------------------------------------------------------------------------


def test_without_a_version_a_name_is_the_newest():
    assert tasks.versioned("mujoco", "Hopper") == "Hopper-v5" and tasks.versioned("mujoco", "Hopper-v4") == "Hopper-v4"
    assert tasks.versioned("minigrid", "ObstructedMaze-1Q") == "ObstructedMaze-1Q-v1"
    assert {"Hopper", "Hopper-v3", "Hopper-v5"} < set(tasks.accepted("mujoco"))
    assert "Hopper" not in envs.names()["mujoco"], "the list has full names"
    assert tasks.accepted("atari") == tasks.TASKS["atari"]


def test_versions_are_compared_as_numbers(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "toy", ["Maze-v10", "Maze-v9"])
    assert tasks.newest("toy") == {"Maze": "Maze-v10"}


@pytest.mark.parametrize(
    ("name", "obs", "action", "limit"),
    [
        ("mujoco/Hopper", vector(11), Box(3), 1000),
        ("procgen/CoinrunEasy", jax.ShapeDtypeStruct((64, 64, 3), np.uint8), Discrete(15), 1000),
        ("minigrid/Empty-5x5-v0", {"image": flag(7, 7, 20), "direction": flag(4), "mission": flag(20, 56)},
         Discrete(7), 100),
        ("robotics/FetchReach", {"observation": vector(10), "achieved_goal": vector(3), "desired_goal": vector(3)},
         Box(4), 50),
        ("toy/FrozenLake", flag(16), Discrete(4), 100),
        ("toy/Catch", flag(10, 5, 1), Discrete(3), None),
        ("highway/Racetrack", vector(288), Box(1), 1500),
        ("football/academy_corner", jax.ShapeDtypeStruct((80, 96, 4), np.uint8), Discrete(19), 401),
        ("jumanji/Tetris", {"grid": flag(10, 10), "tetromino": flag(4, 4), "step_count": vector(1), "legal": flag(40)},
         Discrete(40), 400),
        ("jumanji/Knapsack", {"weights": vector(50), "values": vector(50), "packed_items": flag(50), "legal": flag(50)},
         Discrete(50), 50),
        ("jumanji/Cleaner", {"grid": flag(10, 10, 3), "agents_locations": flag(3, 2, 11), "action_mask": flag(3, 4),
                             "step_count": vector(1)}, MultiDiscrete((4, 4, 4)), 100),
    ],
)  # fmt: skip
def test_specs(name: str, obs: Any, action: Any, limit: int | None):
    spec = envs.make(name).spec
    assert (spec.name, spec.obs, spec.action, spec.max_steps) == (name, obs, action, limit)
    assert spec.one_hot == (name == "toy/FrozenLake")


def test_a_crippled_joint_does_not_move_by_itself():
    """Whatever is asked of it; the others go on as before."""
    played = {}
    for joint, action in ((None, [0.5, 0.0]), (1, [0.5, 0.9]), (None, [0.5, 0.9])):
        env = envs.make("mujoco/Swimmer-v4", cripple=joint)
        handle, _ = env.reset(jax.random.split(jax.random.key(0), 1))
        for _ in range(3):
            handle, step = env.step(handle, np.asarray([[action]], np.float32))
        played[joint, action[1]] = np.asarray(step.obs)
        env.close(handle)
    np.testing.assert_array_equal(played[None, 0.0], played[1, 0.9])
    assert not np.array_equal(played[None, 0.9], played[1, 0.9])
    with pytest.raises(ValueError, match="cripple"):
        envs.make("mujoco/Swimmer-v4", cripple=2)


# --- Views --------------------------------------------------------------------------------------------------------


def seen(space: Any, values: Any, counters: frozenset[str] = frozenset()) -> tuple[Any, Any]:
    _, read = gym_spaces.observation_space(space)
    structs, look = views.visible(space, read, counters)
    return structs, look(values)


def test_integers_of_a_small_range_are_classes():
    structs, obs = seen(spaces.Box(-1, 2, (2, 2), np.int32), np.array([[[-1, 0], [1, 2]]]))
    assert structs == flag(2, 2, 4)
    np.testing.assert_array_equal(obs[0], np.eye(4, dtype=bool).reshape(2, 2, 4))
    structs, obs = seen(spaces.Box(0, 1, (3,), np.int8), np.array([[0, 1, 1]], np.int8))
    assert structs == flag(3) and obs.tolist() == [[False, True, True]]
    structs, obs = seen(spaces.Box(0, 4, (20, 20, 2), np.uint8), np.full((1, 20, 20, 2), 3, np.uint8))
    assert structs == flag(20, 20, 2, 5) and obs.sum() == 800 and obs[..., 3].all()


def test_other_numbers_stay_numbers():
    large = spaces.Box(-(2**31), 2**31 - 1, (2, 2), np.int32)
    structs, obs = seen(large, np.array([[[5, 6], [-7, 8]]], np.int32))
    assert structs == vector(4) and obs.tolist() == [[5, 6, -7, 8]]
    structs, obs = seen(spaces.Box(-1, 1, (2, 3, 4), np.float32), np.full((1, 2, 3, 4), 0.5, np.float32))
    assert structs == vector(24) and obs.shape == (1, 24)
    both = spaces.Dict({"step_count": spaces.Discrete(100), "hinge cabinet": spaces.Discrete(3)})
    structs, obs = seen(both, {"step_count": np.array([41]), "hinge cabinet": np.array([2])}, frozenset({"step_count"}))
    assert structs == {"step_count": vector(1), "hinge_cabinet": flag(3)}
    assert obs["step_count"].tolist() == [[41.0]] and obs["hinge_cabinet"].tolist() == [[False, False, True]]


def test_choices_with_a_mask_for_each_combination_are_one():
    space, mask = spaces.Box(0, np.array([1, 2]), (2,), np.int32), np.zeros((1, 2, 3), bool)
    mask[0, 1, 0] = True
    obs = spaces.Dict({"action_mask": spaces.MultiBinary((2, 3))})
    task_spec = SimpleNamespace(observation_space=obs, action_space=space)
    face = families._masked(Face(*gym_spaces.observation_space(obs), *gym_spaces.action_space(space)), task_spec)
    assert face.action == Discrete(6) and face.obs == {"legal": flag(6)}
    legal = face.read({"action_mask": mask})["legal"]
    assert np.flatnonzero(legal[0]).tolist() == [3]
    assert face.write(np.array([3, 5], np.int32)).tolist() == [[1, 0], [1, 2]]


def test_a_mask_may_be_an_ordinary_sensor():
    spec = envs.make("jumanji/Tetris", masked=False).spec
    assert spec.action == Discrete(40) and spec.obs["action_mask"] == flag(4, 10) and "legal" not in spec.obs


def test_missions_are_words():
    text = np.zeros((2, 96), np.float32)
    text[0, :20] = list(b"go to the, red zebra")
    seen = minigrid.mission(text, 4)
    assert seen.shape == (2, 4, len(minigrid.WORDS) + 1) and not seen[1].any()
    assert [minigrid.WORDS[i] for i in seen[0].argmax(-1)] == ["go", "to", "the", ","]
    assert minigrid.mission(text, 9)[0].sum() == 6 and minigrid.mission(text, 9)[0, 5, -1], "zebra is among the others"


@pytest.mark.parametrize("name", ["minigrid/DoorKey-5x5", "babyai/PutNextLocal", "babyai/MiniBossLevel"])
def test_every_cell_and_every_word_is_known(name: str):
    env = envs.make(name, num_envs=8)
    steps = host_roll(env, jax.random.split(jax.random.key(0), 1), np.full((3, 1, 8), 2, np.int32))
    image, mission = steps.obs["image"], steps.obs["mission"]
    for part in np.split(image, np.cumsum(minigrid.PLANES)[:-1], -1):
        assert (part.sum(-1) == 1).all(), "each cell has one object, one colour and one state"
    assert mission.any((-1, -2)).all() and not mission[..., -1].any() and not mission[..., -1, :].any()


def test_football_is_padded_in_the_middle():
    env = envs.make("football/academy_empty_goal_close", num_envs=1)
    image = host_roll(env, jax.random.split(jax.random.key(0), 1), np.zeros((1, 1, 1), np.int32)).obs[0, 0, 0]
    assert image.any((0, 1)).all() and not image[:4].any() and not image[-4:].any()


def test_metaworld_shows_its_goal_unless_told_not_to():
    goals = []
    for goal in (True, False):
        env = envs.make("metaworld/Reach", num_envs=3, goal=goal)
        goals.append(
            host_roll(env, jax.random.split(jax.random.key(0), 1), np.zeros((1, 1, 3, 4), np.float32)).obs[1, 0, :, -3:]
        )
    assert goals[0].all() and len(np.unique(goals[0], axis=0)) == 3 and not goals[1].any()


def test_a_scenario_pays_for_its_end():
    env = envs.make("vizdoom/Basic", num_envs=2)
    assert env.spec.max_steps == 75
    action = np.random.default_rng(0).integers(0, env.spec.action.n, (150, 1, 2), np.int32)
    steps = host_roll(env, jax.random.split(jax.random.key(0), 1), action)
    going = ~steps.is_first & ~steps.is_terminal
    assert (steps.reward[going] == -4).all() and (steps.reward[steps.is_terminal] == 100).all()


# --- Pixels -------------------------------------------------------------------------------------------------------


@pixels
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dmc/CartpoleSwingup", {"pixels": 48, "stack": 2, "action_repeat": 2}),
        ("mujoco/InvertedPendulum", {"pixels": 32, "camera": -1}),
    ],
)
def test_images_of_mujoco(name: str, options: dict[str, Any]):
    env = envs.make(name, num_envs=2, **options)
    side, channels = options["pixels"], 3 * options.get("stack", 1)
    assert env.spec.obs == jax.ShapeDtypeStruct((side, side, channels), np.uint8)
    steps = host_roll(env, jax.random.split(jax.random.key(0), 1), np.ones((3, 1, 2, 1), np.float32))
    assert steps.obs.std() > 5 and (steps.obs[0] != steps.obs[-1]).any()
    if channels == 6:
        np.testing.assert_array_equal(steps.obs[0, ..., :3], steps.obs[0, ..., 3:], "a new episode repeats its image")


@pixels
@pytest.mark.slow
def test_procgen_leaves_mujoco_its_opengl():
    """Qt's libGL, loaded first, would end the process."""
    assert problems(["procgen/CoinrunEasy", "dmc/CheetahRun pixels=48"], steps=2) == {}


@pixels
def test_the_camera_is_an_option():
    first = lambda **more: envs.make("dmc/CheetahRun", pixels=32, **more)  # noqa: E731
    images = []
    for env in (first(), first(camera=0), first(camera=1)):
        handle, step = env.reset(jax.random.split(jax.random.key(0), 1))
        images.append(step.obs)
        env.close(handle)
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).mean() > 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are searched for on Linux only")
def test_pixels_without_opengl_are_one_error(monkeypatch):
    monkeypatch.setattr(opengl, "LIBRARIES", ("libnowhere.so.1", "libnothing.so.8"))
    opengl.missing.cache_clear()
    opengl.load.cache_clear()
    with pytest.raises(ImportError, match=r"neither libnowhere.so.1 nor libnothing.so.8.*apt-get install libegl1"):
        envs.make("dmc/CheetahRun", pixels=64)
    monkeypatch.undo()
    opengl.missing.cache_clear()
    opengl.load.cache_clear()


@pixels
@pytest.mark.skipif(sys.platform != "linux", reason="EGL is probed on Linux only")
def test_an_egl_without_a_driver_is_found_out_before_envpool_dies():
    program = (
        "import jaxwm.envs as envs\ntry: envs.make('dmc/CheetahRun', pixels=64)\nexcept ImportError as e: print(e)"
    )
    setting = {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere", "JAX_PLATFORMS": "cpu", "PATH": ""}
    said = subprocess.run([sys.executable, "-c", program], env=setting, capture_output=True, text=True, timeout=100)
    assert said.returncode == 0 and "EGL finds no device" in said.stdout, said


# --- What a machine lacks -----------------------------------------------------------------------------------------


def test_procgen_names_the_packages_of_qt(monkeypatch):
    import envpool

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("EnvPool Procgen requires the system Qt 5 runtime on Linux.")

    monkeypatch.setattr(envpool, "make_spec", missing)
    with pytest.raises(
        ImportError, match="procgen/CoinrunEasy needs the Qt 5 libraries: `apt-get install libqt5core5a"
    ):
        envs.make("procgen/CoinrunEasy")


def test_bounds_that_are_none_are_refused_with_the_way_out():
    absurd = spaces.Box(np.finfo(np.float64).tiny, np.finfo(np.float64).max, (3,), np.float64)
    with pytest.raises(ValueError, match=r"cannot be scaled from .-1, 1.: wrap the environment"):
        gym_spaces.action_space(absurd, "doom")


def test_ctypes_can_load_nothing_by_a_wrong_name():
    assert opengl._loaded("libnowhere.so.1") is None and opengl._loaded("libnowhere.so.1", ctypes.RTLD_GLOBAL) is None
