"""Suites out of envpool whose tasks need little more than a look at their spaces: MuJoCo's, Procgen, and small ones."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwm.envs.envpool import Face, at_least, drawn, timed
from jaxwm.envs.tasks import bare, versioned
from jaxwm.envs.views import visible
from jaxwm.errors import check_choice, check_number
from jaxwm.types import Box, Discrete, Env, MultiDiscrete

COUNTERS = frozenset({"step_count", "step", "num_mines"})
"""Sensors of jumanji that count."""

TIMED = frozenset(
    "Cleaner Connector JobShop MMST Maze PacMan RobotWarehouse RubiksCube RubiksCube-partly-scrambled SearchAndRescue "
    "SlidingTilePuzzle Snake Tetris".split()
)
"""Tasks of jumanji in which the longest episode is cut by a time limit. In the others it is a solution (TSP: all cities
seen), or envpool tells the two apart."""


def _visible(face: Face, task_spec: Any, counters: frozenset[str] = frozenset()) -> Face:
    obs, read = visible(task_spec.observation_space, face.read, counters)
    return face._replace(obs=obs, read=read)


# --- MuJoCo -------------------------------------------------------------------------------------------------------


def _mujoco(suite: str) -> Callable[..., Env]:
    """The constructor of a suite of MuJoCo tasks, which all have the same options."""

    def make(
        task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0,
        pixels: int = 0, camera: int = -1, stack: int = 1, cripple: int | None = None,
    ) -> Env:  # fmt: skip
        name = f"{suite}/{task}"
        more = drawn(name, pixels, camera, stack, num_threads) or {"adapt": _visible}
        env = timed(name, versioned(suite, task), num_envs, action_repeat, max_steps, num_threads, **more)
        return env if cripple is None else _crippled(env, cripple)

    return make


def _crippled(env: Env, joint: int) -> Env:
    """The environment in which one number of the actions is always 0."""
    assert isinstance(env.spec.action, Box)
    check_number(f"{env.spec.name}: cripple", joint, least=0, most=env.spec.action.size - 1, whole=True)

    def step(handle: Any, action: np.ndarray) -> Any:
        action = np.array(action)
        action[..., joint] = 0.0
        return env.step(handle, action)

    return env._replace(step=step)


mujoco = _mujoco("mujoco")
"""A task of Gymnasium's MuJoCo, such as "Hopper" or "Hopper-v4": float32 vector, Box. Without a version it is the
newest. Options as for `envpool.dmc`. `camera` is the number of a camera of the model, -1 MuJoCo's free one. `cripple`
is the number of a joint that does not move by itself: its action is 0 (Nagabandi et al. 2019)."""

playground = _mujoco("playground")
"""A task of MuJoCo Playground, such as "Go1JoystickFlatTerrain": float32 vectors, Box; options as for `mujoco`.
Where there is a `privileged_state` it is a sensor like `state`."""

robotics = _mujoco("robotics")
"""A task of Gymnasium-Robotics, such as "FetchReach" or "PointMaze_UMaze": float32 vectors, Box; options as for
`mujoco`. Tasks with goals have the sensors `observation`, `achieved_goal` and `desired_goal`, and FrankaKitchen one of
the latter two for each thing in the kitchen. Rewards are sparse, except in the tasks called Dense."""

myosuite = _mujoco("myosuite")
"""A task of MyoSuite, such as "myoElbowPose1D6MRandom": float32 vector, Box; options as for `mujoco`."""


def metaworld(
    task: str, num_envs: int = 1, *, goal: bool = True, action_repeat: int = 1, max_steps: int | None = None,
    num_threads: int = 0, pixels: int = 0, camera: int = -1, stack: int = 1,
) -> Env:  # fmt: skip
    """A task of Meta-World, such as "Reach": float32 `[39]`, Box(4). The last three numbers are the goal's place, which
    is drawn anew for each episode, and 0 where `goal` is False. Episodes end at their limit only. Other options as for
    `mujoco`."""
    name = f"metaworld/{task}"
    check_choice(f"{name}: goal", goal, (True, False))
    more = drawn(name, pixels, camera, stack, num_threads)
    native = more.pop("native", {}) | {"partially_observable": not goal}
    task = f"MetaWorld/{versioned('metaworld', task)}"
    return timed(name, task, num_envs, action_repeat, max_steps, num_threads, native=native, **more)


# --- Images -------------------------------------------------------------------------------------------------------


def procgen(
    task: str, num_envs: int = 1, *, num_levels: int = 0, start_level: int = 0, backgrounds: bool = True,
    action_repeat: int = 1, num_threads: int = 0,
) -> Env:  # fmt: skip
    """A game of Procgen in one of its distributions, such as "CoinrunEasy": uint8 `[64, 64, 3]`, Discrete(15).

    num_levels    levels that are drawn from; 0 is all of them, without end (200 for training in the paper's easy mode).
    start_level   the first of them.
    backgrounds   pictures behind the scene; else it is black.

    Other options as for `envpool.dmc`. Raises ImportError where the Qt 5 libraries are missing."""
    name = f"procgen/{task}"
    at_least(name, 0, num_levels=num_levels, start_level=start_level)
    check_choice(f"{name}: backgrounds", backgrounds, (True, False))
    native = dict(num_levels=num_levels, start_level=start_level, use_backgrounds=backgrounds)
    try:
        return timed(
            name, versioned("procgen", task), num_envs, action_repeat, None, num_threads, native=native,
            channels_first=True,
        )  # fmt: skip
    except ImportError as error:
        if "Qt" not in str(error):
            raise
        advice = "`apt-get install libqt5core5a libqt5gui5` (Debian, Ubuntu)"
        raise ImportError(f"{name} needs the Qt 5 libraries: {advice}") from error


def football(task: str, num_envs: int = 1, *, num_threads: int = 0) -> Env:
    """A scenario of Google Research Football, such as "academy_empty_goal": uint8 `[80, 96, 4]`, Discrete(19).
    The image is the minimap (own players, the others, ball, active player), 72 x 96 with four black rows above and
    below, so that convolutions can halve it. The reward is 1 for a goal and -1 for one of the others.
    `num_threads` as for `envpool.dmc`."""
    native, later = f"gfootball/{versioned('football', task)}", lambda steps: steps + 1
    return timed(f"football/{task}", native, num_envs, 1, None, num_threads, adapt=_padded, limit=later)


def _padded(face: Face, _: Any) -> Face:
    height, width, channels = face.obs.shape
    above = -height % 16 // 2
    rows = (0, 0), (above, -height % 16 - above), (0, 0), (0, 0)
    obs = jax.ShapeDtypeStruct((height + -height % 16, width, channels), np.uint8)
    return face._replace(obs=obs, read=lambda native: np.pad(face.read(native), rows))


# --- Numbers and classes ------------------------------------------------------------------------------------------


def highway(task: str, num_envs: int = 1, *, num_threads: int = 0) -> Env:
    """A task of highway-env, such as "Highway" or "Parking": float32 vectors, Discrete or Box. Tables of vehicles and
    grids are flat. Episodes of "LaneKeeping" never end. Without a version it is the newest. `num_threads` as for
    `envpool.dmc`."""
    native = versioned("highway", task)
    limit = _endless if bare(native) == "LaneKeeping" else _as_said
    return timed(f"highway/{task}", native, num_envs, 1, None, num_threads, adapt=_visible, limit=limit)


def _as_said(steps: int) -> int:
    return steps


def _endless(_: int) -> None:
    return None


def toy(task: str, num_envs: int = 1, *, max_steps: int | None = None, num_threads: int = 0) -> Env:
    """A task of Gymnasium's toy text, such as "Taxi": a one-hot state, Discrete. "Catch" is bool `[10, 5, 1]`, and
    "Blackjack" three one-hot numbers. Without a version it is the newest. Other options as for `envpool.dmc`."""
    native = versioned("toy", task)
    catch = bare(native) == "Catch"
    more = dict(adapt=_planes if catch else _visible, one_hot=not catch and bare(native) != "Blackjack")
    return timed(f"toy/{task}", native, num_envs, 1, max_steps, num_threads, **more)


def _planes(face: Face, task_spec: Any) -> Face:
    """Numbers 0 and 1 as one bool plane."""
    shape = (*task_spec.observation_space.shape, 1)
    read = lambda native: face.read(native).reshape(-1, *shape) > 0  # noqa: E731
    return face._replace(obs=jax.ShapeDtypeStruct(shape, np.bool_), read=read)


def jumanji(task: str, num_envs: int = 1, *, masked: bool = True, num_threads: int = 0) -> Env:
    """A task of jumanji, such as "Game2048" or "Snake", in envpool's C++.

    Sensors are a dict: grids of classes are bool planes, counters float32 `[1]`, other numbers float32. Where the
    action is one choice, or several choices of which each combination is allowed or not (Tetris: rotation and column),
    it is `Discrete` over all of them, and jumanji's `action_mask` is the reserved `legal`. Where several agents choose
    at once the action is `MultiDiscrete`, and `action_mask` an ordinary sensor; so it is everywhere with
    `masked=False`, for systems that do not understand `legal`.

    The end at a time limit is no true end, although envpool says so; "Game2048" has none. Without a version it is the
    newest. `num_threads` as for `envpool.dmc`."""
    native = versioned("jumanji", task)
    game, name = bare(native), f"jumanji/{task}"
    check_choice(f"{name}: masked", masked, (True, False))
    more = dict(
        adapt=_masked if masked else _unmasked,
        timeouts=game in TIMED,
        limit=_endless if game == "Game2048" else _as_said,
    )
    return timed(name, f"Jumanji/{native}", num_envs, 1, None, num_threads, **more)


def _unmasked(face: Face, task_spec: Any) -> Face:
    plain, space = _visible(face, task_spec, COUNTERS), task_spec.action_space
    choices = type(space).__name__ == "Box" and np.dtype(space.dtype).kind != "f"
    return _chosen(plain, space) if choices else plain


def _masked(face: Face, task_spec: Any) -> Face:
    plain = _unmasked(face, task_spec)
    mask = plain.obs.get("action_mask")
    if mask is None or not isinstance(plain.action, Discrete):
        return plain
    structs = {("legal" if key == "action_mask" else key): struct for key, struct in plain.obs.items()}
    structs["legal"] = jax.ShapeDtypeStruct((plain.action.n,), np.bool_)

    def read(native: Any) -> dict[str, np.ndarray]:
        obs = plain.read(native)
        mask = obs.pop("action_mask")
        return obs | {"legal": mask.reshape(len(mask), -1)}

    return plain._replace(obs=structs, read=read)


def _chosen(face: Face, space: Any) -> Face:
    """Several choices, a Box of integers: one `Discrete` where the mask has an entry for each combination of them."""
    low = np.broadcast_to(space.low, space.shape).astype(np.int64)
    sizes = tuple((np.broadcast_to(space.high, space.shape) - low + 1).astype(int).ravel().tolist())
    mask = face.obs.get("action_mask")
    if mask is None or mask.shape != sizes:
        write = lambda action: (action.reshape(-1, *low.shape) + low).astype(space.dtype)  # noqa: E731
        return face._replace(action=MultiDiscrete(sizes), write=write)
    split = lambda action: np.stack(np.unravel_index(action, sizes), -1)  # noqa: E731
    return face._replace(
        action=Discrete(math.prod(sizes)), write=lambda action: (split(action) + low).astype(space.dtype)
    )
