"""Environments: names, options, native behaviour. What all suites have in common: tests/contract/test_suites.py."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import same
from worlds import actions, check_step, check_stream, host_roll, roll, unrolled

from jaxwm import envs
from jaxwm.envs import gym_spaces, host, tasks
from jaxwm.envs import gymnax as gymnax_module
from jaxwm.envs.registry import OWN
from jaxwm.types import ActionSpace, Box, Discrete, Env, Spec, Step

GYMNAX = [f"{suite}/{task}" for suite in ("gymnax", "minatar") for task in envs.names()[suite]]
FREE_GYMNAX = [name for name in GYMNAX if "MNIST" not in name]  # MNIST is downloaded


FAMILIES = dict(
    babyai=("minigrid", "BabyAI-"), box2d=("box2d", ""), classic=("classic_control", ""),
    football=("gfootball", "gfootball/"), highway=("highway", ""), jumanji=("jumanji", ""),
    metaworld=("mujoco.metaworld", "MetaWorld/"), minigrid=("minigrid", "MiniGrid-"), mujoco=("mujoco.gym", ""),
    myosuite=("mujoco.myosuite", ""), playground=("mujoco.playground", ""), procgen=("procgen", ""),
    robotics=("mujoco.robotics", ""), toy=("toy_text", ""), vizdoom=("vizdoom", ""),
)  # fmt: skip
"""Suite -> the module of envpool that has it, and what its names begin with there."""

LEFT_OUT = {"VizdoomCustom-v1", "IntersectionMultiAgent-v0", "IntersectionMultiAgent-v1"}
"""A scenario without a map, and tasks of two players."""


# --- Names and errors ---------------------------------------------------------------------------------------------


def test_drawing_is_imported_when_it_draws(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with gymnax_module._drawing_later("wave", "sys"):
        import wave as later

        assert type(later) is gymnax_module._Later and type(sys) is not gymnax_module._Later
    assert "wave" not in sys.modules and later.open is importlib.import_module("wave").open
    with pytest.raises(AttributeError, match="nothing"):
        later.nothing  # noqa: B018


def test_gymnax_is_new_enough():
    # 0.0.9, where a resolver lands without a pin, has another step.
    assert tuple(int(part) for part in version("gymnax").split(".")[:3]) >= (1, 0, 1)


def test_names_match_the_registries():
    import gymnax
    from envpool.registration import registry

    listed = envs.names()
    assert {suite: listed[suite] for suite in OWN} == {suite: sorted(tasks) for suite, tasks in OWN.items()}
    ours = set(listed["gymnax"]) | {f"{game}-MinAtar" for game in listed["minatar"]}
    assert ours == set(gymnax.registered_envs)
    native: dict[str, set[str]] = {}
    for task, (backend, *_) in registry.specs.items():
        native.setdefault(backend, set()).add(task)
    assert {f"{task}-v5" for task in listed["atari"]} == native["envpool.atari"] and len(listed["atari"]) == 104
    assert {f"{task}-v1" for task in listed["dmc"]} == native["envpool.mujoco.dmc"]
    for suite, (module, prefix) in FAMILIES.items():
        backend = f"envpool.{module}"
        theirs = {task.removeprefix(prefix) for task in native[backend] if task.startswith(prefix)}
        theirs = {task for task in theirs if "/" not in task}  # aliases such as Jumanji/Snake-v1
        theirs = {task for task in theirs if task[0].isupper() or suite != "highway"} - LEFT_OUT
        assert set(tasks.TASKS[suite]) == theirs
    assert all(tasks == sorted(tasks) for tasks in listed.values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("atari/Pongg", ["'atari/Pongg'", "atari/Pong", "jaxwm list"]),
        ("atari/pong", ["atari/Pong", "jaxwm list"]),
        ("atari/Pong-v5", ["atari/Pong,"]),
        ("Pong", ["suite/Task", "atari/Pong"]),
        ("gymnax/Breakout-MinAtar", ["minatar/Breakout"]),
        ("minatar/Catch", ["gymnax/Catch-bsuite"]),
        ("dmc/cartpole_swingup", ["dmc/CartpoleSwingup"]),
        ("zzz/qqq", ["jaxwm list"]),
    ],
)
def test_unknown_name(name: str, words: list[str]):
    with pytest.raises(ValueError) as error:
        envs.make(name)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("atari/Pong", {"sticki": 0.25}, ["'sticki'", "'sticky'", "life_loss"]),
        ("atari/Pong", {"life_loss": "reset"}, ["'ignore'", "'terminal'"]),
        ("atari/Pong", {"sticky": 2.0}, ["probability"]),
        ("atari/Pong", {"frame_skip": 0}, ["frame_skip", "at least 1"]),
        ("gymnax/CartPole-v1", {"gravitas": 1.0}, ["'gravity'", "max_steps"]),
        ("gymnax/CartPole-v1", {"max_steps": 0}, ["max_steps"]),
        ("minatar/Breakout", {"frame_size": 3}, ["minatar/Breakout", "use_minimal_action_set"]),
        ("gymnax/CartPole-v1", {"image_size": 16}, ["image_size draws 0/1 grids", "leave it out"]),
        ("gymnax/Catch-bsuite", {"image_size": 8}, ["planes are drawn", "at least 10"]),
        ("dmc/CheetahRun", {"pixels": True}, ["pixels must be a whole number", "True"]),
        ("dmc/CheetahRun", {"stack": 2}, ["stack", "pixels=64"]),
        ("mujoco/Hopper", {"camera": -2}, ["camera", "at least -1"]),
        ("metaworld/Reach", {"goal": 1.5}, ["goal", "True, False"]),
        ("procgen/CoinrunEasy", {"num_levels": -1}, ["num_levels", "at least 0"]),
        ("minigrid/Empty-5x5", {"words": 0}, ["words", "at least 1"]),
        ("vizdoom/Basic", {"max_tics": 3}, ["max_tics", "at least 4"]),
        ("dmc/CheetahRun", {"action_repeat": 0}, ["action_repeat"]),
        ("probe/Recall", {"delays": 3}, ["'delay'"]),
        ("probe/ObsReward", {"delay": 3}, ["none"]),
        ("probe/ObsReward", {"num_envs": 0}, ["num_envs"]),
        ("atari/Pong", {"num_envs": 1.5}, ["num_envs"]),
    ],
)
def test_wrong_option(name: str, options: dict[str, Any], words: list[str]):
    with pytest.raises(ValueError) as error:
        envs.make(name, **options)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


# --- Pure environments --------------------------------------------------------------------------------------------


def test_kinds_of_observation():
    kinds = {name: envs.make(name).spec for name in FREE_GYMNAX}
    planes = {name for name, spec in kinds.items() if spec.obs.dtype == np.bool_ and len(spec.obs.shape) == 3}
    assert planes == {"gymnax/Catch-bsuite", "gymnax/DeepSea-bsuite", "gymnax/Pong-misc"} | {
        f"minatar/{game}" for game in envs.names()["minatar"]
    }
    assert kinds["gymnax/Catch-bsuite"].obs.shape == (10, 5, 1)
    assert kinds["minatar/Breakout"].obs.shape == (10, 10, 4)
    assert kinds["gymnax/FrozenLake-misc"].obs == jax.ShapeDtypeStruct((16,), np.bool_)
    rest = [spec.obs for name, spec in kinds.items() if name not in planes and "FrozenLake" not in name]
    assert all(len(obs.shape) == 1 and obs.dtype == np.float32 for obs in rest)


@pytest.mark.parametrize(
    "name",
    [
        "gymnax/Catch-bsuite",
        "gymnax/DeepSea-bsuite",
        "gymnax/Pong-misc",
        *(pytest.param(f"minatar/{game}", marks=pytest.mark.slow) for game in envs.names()["minatar"]),
    ],
)
def test_planes_are_binary_natively(name: str):
    """What is emitted as bool is 0/1 in gymnax too, over random play."""
    import gymnax

    task = name.split("/")[1]
    native, params = gymnax.make(task if name.startswith("gymnax") else f"{task}-MinAtar")

    def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        obs, after, *_ = native.step_env(key, state, native.action_space(params).sample(key), params)
        return jax.tree.map(lambda a, b: a.astype(jnp.asarray(b).dtype), after, state), obs

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        state = jax.tree.map(
            lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), native.reset_env(key, params)[1]
        )
        return jax.lax.scan(step, state, jax.random.split(key, 100))[1]

    assert set(np.unique(run(jax.random.key(1)))) <= {0.0, 1.0}


def test_mnist_is_an_image(monkeypatch: pytest.MonkeyPatch):
    from gymnax.utils import load_mnist

    data = (np.full((100, 28, 28), 200, np.uint8), np.zeros(100, np.int32))
    monkeypatch.setattr(load_mnist, "load_mnist", lambda *_, **__: (data, data))
    env = envs.make("gymnax/MNISTBandit-bsuite")
    assert env.spec.obs == jax.ShapeDtypeStruct((28, 28, 1), np.uint8)
    assert (np.asarray(env.reset(jax.random.key(0))[1].obs) == 200).all()

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(load_mnist, "load_mnist", offline)
    with pytest.raises(ConnectionError, match="downloads"):
        envs.make("gymnax/MNISTBandit-bsuite")


def test_action_of_the_resetting_step_is_ignored():
    env = envs.make("gymnax/CartPole-v1", max_steps=5)
    action = np.zeros((8, 1), np.int32)
    steps = roll(env, jax.random.key(0), action)
    last = int(np.flatnonzero(steps.is_last[:, 0])[0])
    action[last] = 1
    assert same(steps, roll(env, jax.random.key(0), action))
    action[last + 1] = 1
    assert not same(steps, roll(env, jax.random.key(0), action))


def test_time_limit_is_no_terminal():
    steps = roll(envs.make("gymnax/Pendulum-v1", max_steps=5), jax.random.key(0), np.zeros((12, 1, 1), np.float32))
    assert np.flatnonzero(steps.is_last[:, 0]).tolist() == [5, 11] and not steps.is_terminal.any()
    fall = roll(envs.make("gymnax/CartPole-v1"), jax.random.key(0), np.zeros((30, 1), np.int32))
    np.testing.assert_array_equal(fall.is_terminal, fall.is_last)
    assert fall.is_terminal.any()


def test_resets_draw_anew():
    steps = roll(envs.make("gymnax/Pendulum-v1", num_envs=2, max_steps=3), jax.random.key(0), np.zeros((16, 2, 1)))
    starts = steps.obs[steps.is_first]
    assert len(starts) == 10 and len(np.unique(starts.round(5), axis=0)) == 10


def test_members_and_environments_have_their_own_streams():
    """vmap over members changes nothing, and environment n of 3 is environment n of 2."""
    env, small = envs.make("gymnax/Catch-bsuite", num_envs=3), envs.make("gymnax/Catch-bsuite", num_envs=2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4))
    action = actions(env.spec.action, (25, 3), np.random.default_rng(1))
    many = jax.device_get(jax.jit(jax.vmap(lambda key: unrolled(env, key, jnp.asarray(action))))(keys))
    last, one = jax.tree.map(lambda x: x[3], many), roll(env, keys[3], action)
    assert same(last, one)
    assert same(jax.tree.map(lambda x: x[:, :2], one), roll(small, keys[3], action[:, :2]))
    assert not same(jax.tree.map(lambda x: x[0], many), last)


def test_box_actions_reach_the_native_bounds():
    import gymnax

    native, params = gymnax.make("Pendulum-v1")
    env = envs.make("gymnax/Pendulum-v1")
    state, _ = env.reset(jax.random.key(0))
    inner = jax.tree.map(lambda x: x[0], state.state)
    for ours, theirs in ((1.0, 2.0), (-0.5, -1.0), (3.0, 2.0)):
        obs = native.step_env(jax.random.key(0), inner, jnp.array([theirs]), params)[0]
        np.testing.assert_allclose(env.step(state, jnp.array([[ours]]))[1].obs[0], obs, rtol=1e-5)
    low, high = np.array([0.0, -np.inf, 1e-300]), np.array([1.0, np.inf, 1e308])
    with pytest.raises(ValueError, match=r"1e-300 and 1e\+308 cannot be scaled"):
        gym_spaces.box_range(low, high, (3,))
    low, high = gym_spaces.box_range(low[:2], high[:2], (2,))
    assert low.tolist() == [0, -1] and high.tolist() == [1, 1]


def test_options_of_gymnax():
    assert envs.make("gymnax/DeepSea-bsuite", size=12, max_steps=12).spec.obs.shape == (12, 12, 1)
    heavy, light = (envs.make("gymnax/CartPole-v1", gravity=g) for g in (30.0, 9.8))
    action = np.zeros((3, 1), np.int32)
    assert not same(roll(heavy, jax.random.key(0), action), roll(light, jax.random.key(0), action))
    assert envs.make("gymnax/CartPole-v1", max_steps=9).spec.max_steps == 9


# --- Probes -------------------------------------------------------------------------------------------------------


def episode(name: str, *policies: Any, length: int = 1, num_envs: int = 64, **options: Any) -> list[Step]:
    """Steps `[length + 1, N, ...]` of one episode for each policy; `policy(t, obs)` gives the actions `[N, ...]`."""
    env = envs.make(name, num_envs, **options)
    reset, step_fn, out = jax.jit(env.reset), jax.jit(env.step), []
    for policy in policies:
        state, step = reset(jax.random.key(5))
        steps = [step]
        for t in range(length):
            state, step = step_fn(state, jnp.asarray(policy(t, jax.device_get(step.obs))))
            steps.append(step)
        out.append(jax.tree.map(lambda *x: np.stack(x), *jax.device_get(steps)))
        assert out[-1].is_terminal[-1].all() and not out[-1].is_last[:-1].any() and env.spec.max_steps == length
    return out


def test_probe_values():
    nothing = lambda t, obs: np.zeros(64, np.int32)  # noqa: E731
    (out,) = episode("probe/ConstantReward", nothing)
    assert (out.reward[1] == 1).all()
    (out,) = episode("probe/ObsReward", nothing)
    np.testing.assert_array_equal(out.reward[1], out.obs[0, :, 0])
    assert set(out.reward[1]) == {-1.0, 1.0}
    (out,) = episode("probe/TwoStepDiscount", nothing, length=2)
    assert out.obs[:, 0, 0].tolist() == [0, 1, 2] and out.reward[:, 0].tolist() == [0, 0, 1]
    (out,) = episode("probe/ActionReward", lambda t, obs: np.arange(64, dtype=np.int32) % 2)
    assert out.reward[1, :2].tolist() == [-1, 1]
    (out,) = episode("probe/ContinuousTarget", lambda t, obs: np.linspace(-1, 1, 64, dtype=np.float32)[:, None])
    np.testing.assert_allclose(out.reward[1], -((np.linspace(-1, 1, 64) - 0.5) ** 2), atol=1e-6)


def test_probe_recall():
    cue = {}

    def perfect(t: int, obs: np.ndarray) -> np.ndarray:
        if t == 0:
            cue["is"] = obs[:, :4].argmax(-1).astype(np.int32)
        return np.where(obs[:, 4], cue["is"], 0)

    out, forgetful = episode("probe/Recall", perfect, lambda t, obs: np.zeros(64, np.int32), length=5, delay=3)
    assert (out.reward[-1] == 1).all() and not out.reward[:-1].any()
    assert out.obs.sum((1, 2)).tolist() == [64, 0, 0, 0, 64, 64] and out.obs[4, :, 4].all()
    assert set(cue["is"]) == {0, 1, 2, 3}
    assert 0 < forgetful.reward[-1].mean() < 0.5


def test_probe_multi_sensor():
    def perfect(t: int, obs: dict[str, np.ndarray]) -> np.ndarray:
        colour = obs["image"].sum((1, 2)).argmax(-1)
        return np.stack([obs["vector"][:, 0] > 0, colour], -1).astype(np.int32)

    def blind(t: int, obs: dict[str, np.ndarray]) -> np.ndarray:
        return perfect(t, obs) * np.array([1, 0], np.int32)

    out, half = episode("probe/MultiSensor", perfect, blind)
    assert (out.reward[1] == 1).all()
    assert (out.obs["image"][0].sum((1, 2, 3)) == 16 * 16 * 255).all()
    assert set(half.reward[1]) == {0.5, 1.0}


def test_probe_bounce():
    """The ball falls straight to row 3 and bounces to either side; who follows it catches it, whichever side it takes;
    who guesses the side does not."""

    def follow(t: int, obs: np.ndarray) -> np.ndarray:
        ball, hand = obs[..., 0].any(1).argmax(-1), obs[:, 7, :, 1]
        place = (hand * np.arange(8)).sum(-1) / hand.sum(-1)
        return 1 + np.sign(ball - place).astype(np.int32)

    left = lambda t, obs: np.zeros(len(obs), np.int32)  # noqa: E731
    stay = lambda t, obs: np.ones(len(obs), np.int32)  # noqa: E731
    out, guessed = episode("probe/Bounce", follow, left, length=7, num_envs=256, cells=True)
    assert (out.reward[-1] == 1).all() and not out.reward[:-1].any()
    assert set(guessed.reward[-1]) == {-1.0, 1.0} and -0.6 < guessed.reward[-1].mean() < 0.6
    column = out.obs[..., 0].any(2).argmax(-1)  # [8, N]
    np.testing.assert_array_equal(out.obs[..., 0].any(3).argmax(-1), np.arange(8)[:, None] + 0 * column)
    assert (column[:4] == column[0]).all() and (np.abs(np.diff(column[3:], axis=0)) == 1).all()
    inside = (column[3] > 0) & (column[3] < 7)
    assert 0.4 < (column[4] > column[3])[inside].mean() < 0.6
    (image,), (cells,) = (episode("probe/Bounce", stay, length=7, cells=cells) for cells in (False, True))
    assert image.obs.shape == (8, 64, 16, 16, 1) and set(np.unique(image.obs)) == {0, 128, 255}
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        np.testing.assert_array_equal(image.obs[:, :, rows, rows, 0] == 255, cells.obs[..., 0])


# --- envpool ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "obs", "action"),
    [
        ("atari/Pong", {}, jax.ShapeDtypeStruct((64, 64, 3), np.uint8), Discrete(6)),
        ("atari/Breakout", {"image_size": 84, "gray": True, "stack": 4, "full_action_space": True},
         jax.ShapeDtypeStruct((84, 84, 4), np.uint8), Discrete(18)),
        ("classic/CartPole-v1", {}, jax.ShapeDtypeStruct((4,), np.float32), Discrete(2)),
        ("dmc/CartpoleSwingup", {}, {"position": jax.ShapeDtypeStruct((3,), np.float32),
                                     "velocity": jax.ShapeDtypeStruct((2,), np.float32)}, Box(1)),
        ("dmc/WalkerWalk", {}, {"orientations": jax.ShapeDtypeStruct((14,), np.float32),
                                "height": jax.ShapeDtypeStruct((1,), np.float32),
                                "velocity": jax.ShapeDtypeStruct((9,), np.float32)}, Box(6)),
        ("box2d/LunarLander", {}, jax.ShapeDtypeStruct((8,), np.float32), Discrete(4)),
        ("box2d/CarRacing", {}, jax.ShapeDtypeStruct((96, 96, 3), np.uint8), Box(3)),
    ],
)  # fmt: skip
def test_host_contract(name: str, options: dict[str, Any], obs: Any, action: ActionSpace):
    env = envs.make(name, num_envs=2, **options)
    assert not env.pure and env.spec.obs == obs and env.spec.action == action and env.spec.name == name
    steps = host_roll(env, jax.random.split(jax.random.key(0), 2), actions(action, (4, 2, 2), np.random.default_rng(0)))
    check_step(jax.tree.map(lambda x: x[1], steps), env.spec, (2, 2))
    check_stream(steps)
    leaves = jax.tree.leaves(steps.obs)
    assert all(np.isfinite(leaf).all() and (leaf[0] != leaf[-1]).any() for leaf in leaves)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(steps))


def test_host_resets_and_limits():
    env = envs.make("classic/CartPole-v1", num_envs=3, max_steps=15)
    action = actions(env.spec.action, (60, 2, 3), np.random.default_rng(0))
    keys = jax.random.split(jax.random.key(0), 2)
    steps = host_roll(env, keys, action)
    check_stream(steps)
    assert steps.is_terminal.any() and (steps.is_last & ~steps.is_terminal).any() and env.spec.max_steps == 15
    # A step that resets ignores its action.
    changed = np.where(steps.is_last[:-1], 1 - action, action)
    assert same(steps, host_roll(env, keys, changed))
    assert not same(steps, host_roll(env, jax.random.split(jax.random.key(1), 2), action))


def test_host_member_streams_do_not_depend_on_their_number():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
    for name, length in (("classic/CartPole-v1", 30), ("atari/Breakout", 6)):
        env = envs.make(name, num_envs=2)
        action = actions(env.spec.action, (length, 3, 2), np.random.default_rng(0))
        many, one = host_roll(env, keys, action), host_roll(env, keys[1:2], action[:, 1:2])
        assert same(jax.tree.map(lambda x: x[:, 1:2], many), one)
    seeds = host.env_seeds(keys, 2)
    assert len(set(seeds.ravel().tolist())) == 6 and seeds.min() >= 0 and seeds.max() < 2**31
    np.testing.assert_array_equal(seeds[:, :1], host.env_seeds(keys, 1))


def test_host_mistakes():
    env = envs.make("classic/CartPole-v1", num_envs=2)
    with pytest.raises(ValueError, match=r"typed keys \[M\]"):
        env.reset(jax.random.key(0))
    handle, _ = env.reset(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        env.step(handle, np.zeros((2, 3), np.int32))
    env.close(handle)
    env.close(handle)
    with pytest.raises(RuntimeError, match="closed"):
        env.step(handle, np.zeros((3, 2), np.int32))


def test_life_loss_marks_a_terminal_and_the_game_goes_on():
    keys, action = jax.random.split(jax.random.key(0), 1), np.ones((170, 1, 1), np.int32)
    action[::2] = 3
    plain = host_roll(envs.make("atari/Breakout", image_size=16), keys, action)
    lives = host_roll(envs.make("atari/Breakout", image_size=16, life_loss="terminal"), keys, action)
    check_stream(plain)
    check_stream(lives)
    assert same(plain._replace(is_terminal=0), lives._replace(is_terminal=0)), "only the mark differs"
    np.testing.assert_array_equal(plain.is_terminal, plain.is_last)
    over = int(np.flatnonzero(plain.is_last)[0])
    assert plain.is_terminal.sum() == 1 and lives.is_terminal[: over + 1].sum() == 5  # Breakout has five lives
    assert lives.is_terminal[over].all() and lives.is_last[over].all()


def test_atari_time_limit_and_raw_reward():
    env = envs.make("atari/Pong", max_frames=40, image_size=16)
    assert env.spec.max_steps == 10 and envs.make("atari/Pong").spec.max_steps == 27_000
    steps = host_roll(env, jax.random.split(jax.random.key(0), 1), np.zeros((25, 1, 1), np.int32))
    check_stream(steps)
    assert np.flatnonzero(steps.is_last).tolist() == [10, 21] and not steps.is_terminal.any()
    action = np.full((120, 1, 1), 1, np.int32)
    reward = host_roll(envs.make("atari/SpaceInvaders", image_size=16), jax.random.split(jax.random.key(0), 1), action)
    assert reward.reward.max() >= 5, "SpaceInvaders scores 5 and more: the reward is not clipped"


def test_frame_skip_takes_the_maximum_of_the_last_two_frames():
    """One step of 4 frames against four steps of 1 frame, at native size so that nothing is resized."""
    import envpool

    options = dict(num_envs=1, seed=[3], num_threads=1, img_height=210, img_width=160, gray_scale=False, stack_num=1,
                   noop_max=1, use_fire_reset=False)  # fmt: skip
    four = envpool.make_gymnasium("Pong-v5", frame_skip=4, **options)
    one = envpool.make_gymnasium("Pong-v5", frame_skip=1, **options)
    four.reset()
    one.reset()
    for t in range(40):
        action = np.array([t // 5 % 4], np.int32)
        frames = [one.step(action)[0] for _ in range(4)]
        np.testing.assert_array_equal(four.step(action)[0], np.maximum(frames[2], frames[3]))


def test_action_repeat_adds_rewards_and_stops_at_the_end():
    keys = jax.random.split(jax.random.key(0), 2)
    for name, limit in (("dmc/CartpoleSwingup", 9), ("classic/CartPole-v1", 500)):
        single, triple = (
            envs.make(name, 2, max_steps=limit),
            envs.make(name, 2, max_steps=-(-limit // 3), action_repeat=3),
        )
        coarse = actions(triple.spec.action, (3, 2, 2), np.random.default_rng(0))
        fine, repeated = host_roll(single, keys, np.repeat(coarse, 3, 0)), host_roll(triple, keys, coarse)
        np.testing.assert_allclose(repeated.reward[1:], fine.reward[1:].reshape(3, 3, 2, 2).sum(1), rtol=1e-5)
        assert same(repeated.obs, jax.tree.map(lambda x: x[::3], fine.obs))
    # CartPole falls in the middle of a repeat, at different times in different environments.
    env = envs.make("classic/CartPole-v1", 3, action_repeat=4)
    steps = host_roll(env, keys, np.zeros((20, 2, 3), np.int32))
    check_stream(steps)
    assert env.spec.max_steps == 125 and steps.is_terminal.any()
    assert set(np.unique(steps.reward)) - {0, 4} and (np.abs(steps.obs[steps.is_first]) <= 0.05).all()


# --- One's own ----------------------------------------------------------------------------------------------------


def countdown(num_envs: int, start: int = 3) -> Env:
    """A pure example: counts down, the action adds one; weak types and a key in the state on purpose."""
    spec = Spec("my/Countdown", jax.ShapeDtypeStruct((1,), np.float32), Discrete(2), 20)

    def reset(key: jax.Array) -> tuple[Any, Any]:
        state = {"left": start, "time": 0, "key": key}
        return state, jnp.full(1, start)

    def step(key: jax.Array, state: Any, action: Any) -> tuple[Any, ...]:
        left, time = state["left"] - 1 + action, state["time"] + 1
        return {"left": left, "time": time, "key": key}, left[None], 1, left <= 0, time >= 20

    return envs.from_functions(spec, reset, step, num_envs)


class Corridor:
    """A gymnasium-like example on the host: walk right to the end."""

    def __init__(self, seed: int):
        from gymnasium import spaces as native

        self.observation_space = native.Dict(
            place=native.Discrete(4),
            eye=native.Box(0, 255, (3, 3), np.uint8),
            inner=native.Dict(x=native.Box(0, 9, ())),
        )
        self.action_space = native.Box(-2.0, 4.0, (1,))
        self.seed, self.resets, self.closed = seed, 0, False

    def _obs(self) -> dict[str, Any]:
        x = np.float64(self.x)
        return {"place": int(self.x), "eye": np.full((3, 3), self.x, np.uint8), "inner": {"x": x}}

    def reset(self, seed: int | None = None) -> tuple[Any, Any]:
        assert (seed == self.seed) == (self.resets == 0), "only the first reset is seeded"
        self.resets, self.x, self.taken = self.resets + 1, 0, []
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        assert -2.0 <= action[0] <= 4.0
        self.x += int(action[0] > 1)
        return self._obs(), float(action[0]), self.x == 3, False, {}

    def close(self) -> None:
        self.closed = True


def test_register_pure():
    envs.register("my/Countdown", countdown)
    assert "Countdown" in envs.names()["my"]
    env = envs.make("my/Countdown", 2, start=4)
    steps = roll(env, jax.random.key(0), np.zeros((12, 2), np.int32))
    check_step(jax.tree.map(lambda x: x[1], steps), env.spec, (2,))
    check_stream(steps)
    assert steps.obs[:6, 0, 0].tolist() == [4, 3, 2, 1, 0, 4] and np.flatnonzero(steps.is_last[:, 1]).tolist() == [4, 9]
    held = roll(env, jax.random.key(0), np.ones((21, 2), np.int32))
    assert held.is_last[20].all() and not held.is_terminal.any()
    with pytest.raises(ValueError, match="its options are start"):
        envs.make("my/Countdown", begin=4)


def test_register_host():
    made = []

    def make_one(seed: int) -> Corridor:
        made.append(Corridor(seed))
        return made[-1]

    envs.register("my/Corridor", lambda num_envs: envs.from_gymnasium(make_one, num_envs))
    env = envs.make("my/Corridor", num_envs=2)
    assert made.pop().closed, "the one that was built for its spaces"
    assert env.spec.action == Box(1) and env.spec.obs == {
        "place": jax.ShapeDtypeStruct((4,), np.bool_),
        "eye": jax.ShapeDtypeStruct((3, 3, 1), np.uint8),
        "inner_x": jax.ShapeDtypeStruct((1,), np.float32),
    }
    action = np.full((9, 3, 2, 1), 0.5, np.float32)  # 2.5 in the native range
    steps = host_roll(env, jax.random.split(jax.random.key(0), 3), action)
    check_step(jax.tree.map(lambda x: x[1], steps), env.spec, (3, 2))
    check_stream(steps)
    assert steps.obs["place"].argmax(-1)[:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert steps.reward[:5, 2, 1].tolist() == [0, 2.5, 2.5, 2.5, 0]
    assert len(made) == 6 and all(one.closed for one in made) and len({one.seed for one in made}) == 6


def test_from_gymnasium_with_a_spec_and_a_real_environment():
    import gymnasium

    spec = Spec("my/Native", jax.ShapeDtypeStruct((4,), np.float32), Discrete(2), 500)
    make_one = lambda seed: gymnasium.make("CartPole-v1")  # noqa: E731
    given, inferred = envs.from_gymnasium(make_one, 2, spec), envs.from_gymnasium(make_one, 2)
    assert inferred.spec == Spec("CartPole-v1", spec.obs, spec.action, 500)
    keys, action = jax.random.split(jax.random.key(0), 1), np.zeros((25, 1, 2), np.int32)
    a, b = host_roll(given, keys, action), host_roll(inferred, keys, action)
    check_stream(a)
    assert same(a, b) and a.is_terminal.any()


def test_mistakes_in_ones_own_environment():
    with pytest.raises(ValueError, match="built in"):
        envs.register("atari/Pong", countdown)
    for name in ("Countdown", "my/", "/x", "a/b/c"):
        with pytest.raises(ValueError, match="suite/Task"):
            envs.register(name, countdown)
    spec = Spec("my/Bad", jax.ShapeDtypeStruct((2,), np.float32), Discrete(2))
    good = lambda key: (0, jnp.zeros(2))  # noqa: E731
    bad_obs = envs.from_functions(spec, lambda key: (0, jnp.zeros(3)), lambda *_: None)  # type: ignore
    with pytest.raises(ValueError, match=r"observation has shape \(3,\), expected \(2,\)"):
        bad_obs.reset(jax.random.key(0))
    drops = envs.from_functions(spec, good, lambda key, state, action: (state + 0.5, jnp.zeros(2), 0, False, False))
    with pytest.raises(ValueError, match="fractions"):
        drops.step(drops.reset(jax.random.key(0))[0], jnp.zeros(1, int))
    grows = envs.from_functions(spec, good, lambda key, state, action: ((state,), jnp.zeros(2), 0, False, False))
    with pytest.raises(ValueError, match="the state is"):
        grows.step(grows.reset(jax.random.key(0))[0], jnp.zeros(1, int))
    envs.register("my/Odd", lambda num_envs: "no environment")  # type: ignore
    with pytest.raises(ValueError, match="not an Env"):
        envs.make("my/Odd")
