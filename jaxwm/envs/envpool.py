"""envpool: Atari, DeepMind Control from state, classic control, Box2D and ViZDoom, as C++ pools on the host.

envpool already resets at the step after the last one and ignores that step's action, gives every environment its own
seed, and draws the same stream for a seed whatever the size of the pool. Its ROMs come inside its assets package."""

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image

from jaxwm.envs import gym_spaces
from jaxwm.envs.host import Outcome, host_env
from jaxwm.errors import check_choice, check_number
from jaxwm.types import Env, PyTree, Spec

View = tuple[PyTree, Callable[[np.ndarray], np.ndarray]]
"""Another observation spec, and the function from the native observation to it."""

_BOX2D = "BipedalWalker", "BipedalWalkerHardcore", "CarRacing", "LunarLander", "LunarLanderContinuous"
_BOX2D_NEWEST = {task: f"{task}-v3" for task in _BOX2D}
CAR_RACING_BAR = 12  # rows at the bottom of CarRacing's 96 x 96 image that show speed and steering, not the road


def atari(
    game: str, num_envs: int = 1, *, image_size: int = 64, gray: bool = False,
    resize: Literal["area", "bilinear"] = "area", frame_skip: int = 4, sticky: float = 0.0,
    full_action_space: bool = False, noop_max: int = 30, use_fire_reset: bool = False, stack: int = 1,
    life_loss: Literal["ignore", "terminal"] = "ignore", max_frames: int = 108_000, num_threads: int = 0,
) -> Env:  # fmt: skip
    """An Atari game, such as "Pong", with the Atari-100k settings of DreamerV3 as defaults.

    Observations are uint8 `[image_size, image_size, C]`, C = stack * (1 if gray else 3), newest frame last; actions
    `Discrete`. The reward is the raw change of the score, and an episode is a whole game.

    image_size         64 in DreamerV3, IRIS, STORM, DIAMOND; 96 in EfficientZero; 84 in DQN.
    gray               grey in DQN and TWM, colour in the others.
    resize             "area" averages what a pixel covers, nearer to DreamerV3's antialiased filter than "bilinear".
    frame_skip         4 in all of them: the action is repeated, rewards are added, and the image is the maximum of the
                       last two frames (games flicker); with 1 there is no maximum.
    sticky             probability of repeating the previous action instead; 0.25 in the full-budget protocol (Machado
                       et al., 2018) and in DreamerV3's 200M runs.
    full_action_space  all 18 actions (DreamerV3's 200M runs), not those that the game uses.
    noop_max           an episode starts after at most that many idle frames, drawn anew each time.
    use_fire_reset     press FIRE after each reset; else the agent must (DreamerV3).
    stack              1 for agents with memory (DreamerV3, IRIS, STORM); 4 in DQN, TWM, EfficientZero.
    life_loss          "terminal" sets `is_terminal` without `is_last` when a life is lost, as in STORM: the agent sees
                       an end of the future and the game goes on. It comes close to IRIS, DIAMOND and TWM, which end
                       the training episode there. Evaluate with "ignore".
    max_frames         there `is_last` is set alone; the default is 30 minutes. `Spec.max_steps` is that / frame_skip.
    num_threads        threads of the pool; 0 lets envpool choose.

    Raises ValueError for a value out of range."""
    name = f"atari/{game}"
    _at_least(name, 1, image_size=image_size, frame_skip=frame_skip, noop_max=noop_max, stack=stack)
    _at_least(name, frame_skip, max_frames=max_frames)
    check_number(f"{name}: sticky, a probability,", sticky, least=0, most=1)
    check_choice(f"{name}: resize", resize, ("area", "bilinear"))
    check_choice(f"{name}: life_loss", life_loss, ("ignore", "terminal"))
    for option, value in dict(gray=gray, full_action_space=full_action_space, use_fire_reset=use_fire_reset).items():
        check_choice(f"{name}: {option}", value, (True, False))
    native = dict(img_height=image_size, img_width=image_size, gray_scale=gray, stack_num=stack, noop_max=noop_max)
    native |= dict(frame_skip=frame_skip, repeat_action_probability=sticky, max_episode_steps=max_frames // frame_skip)
    native |= dict(use_inter_area_resize=resize == "area", use_fire_reset=use_fire_reset, num_threads=num_threads)
    # An episodic life would reset the recurrent state, and end what is evaluated, at every life.
    native |= dict(full_action_space=full_action_space, episodic_life=False, reward_clip=False)
    return _env(name, f"{game}-v5", num_envs, native, channels_first=True, lives=life_loss == "terminal")


def dmc(
    task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0,
    pixels: bool = False,
) -> Env:  # fmt: skip
    """A DeepMind Control task from its state, such as "CartpoleSwingup": a dict of float32 vectors, a `Box` action.
    The keys are those of dm_control; a scalar is `[1]`, a matrix is flattened. `action_repeat` applies an action to
    that many control steps and adds their rewards (1 for DreamerV3 from state). `max_steps` replaces the time limit of
    1000 control steps, counted in steps of the agent. Raises ValueError for `pixels=True`."""
    if pixels:
        reason = "rendering MuJoCo in envpool 1.2.5 ends the whole process where EGL is missing"
        raise ValueError(f"dmc/{task} is offered from state only: {reason}, without an exception to catch")
    return _timed(f"dmc/{task}", f"{task}-v1", num_envs, action_repeat, max_steps, num_threads)


def classic(
    task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0
) -> Env:
    """A classic control task, such as "CartPole-v1": float32 vector. Options as for `dmc`."""
    return _timed(f"classic/{task}", task, num_envs, action_repeat, max_steps, num_threads)


def box2d(
    task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0,
    image_size: int | None = None,
) -> Env:  # fmt: skip
    """A Box2D task, such as "LunarLander" (float32 vector) or "CarRacing" (uint8 `[96, 96, 3]`, Box(3)).
    Without a version it is the newest. With an `image_size`, CarRacing's image loses the status bar at its bottom and
    is resized to `[image_size, image_size, 3]`, as in World Models (64). Other options as for `dmc`. Raises ValueError
    for an `image_size` where there is no image."""
    name, native = f"box2d/{task}", _BOX2D_NEWEST.get(task, task)
    if image_size is None:
        return _timed(name, native, num_envs, action_repeat, max_steps, num_threads)
    _at_least(name, 1, image_size=image_size)
    if not native.startswith("CarRacing"):
        raise ValueError(f"{name} has no image: leave image_size out")
    obs = jax.ShapeDtypeStruct((image_size, image_size, 3), np.uint8)

    def shrink(images: np.ndarray) -> np.ndarray:
        rows = [Image.fromarray(image[:-CAR_RACING_BAR]) for image in images]
        return np.stack([np.asarray(row.resize(obs.shape[:2], Image.Resampling.BILINEAR)) for row in rows])

    return _timed(name, native, num_envs, action_repeat, max_steps, num_threads, view=(obs, shrink))


def vizdoom(
    task: str, num_envs: int = 1, *, image_size: int = 64, frame_skip: int = 4, max_tics: int = 2100,
    num_threads: int = 0,
) -> Env:  # fmt: skip
    """ViZDoom's "TakeCover": step aside from fireballs, as long as possible.
    Observations are uint8 `[image_size, image_size, 3]`, the whole view without a status bar; actions are
    `Discrete(3)`: left, stay, right. The reward is the number of tics (game frames, 35 a second) that were survived:
    frame_skip at every step, 0 at the one that ends in death. A return is the published survival in tics, less what was
    survived of the last step.

    frame_skip   tics that an action is held.
    max_tics     time limit; there `is_last` is set alone. `Spec.max_steps` is that over frame_skip.
    num_threads  threads of the pool; 0 lets envpool choose.

    Raises ValueError for a value out of range."""
    name = f"vizdoom/{task}"
    _at_least(name, 1, image_size=image_size, frame_skip=frame_skip)
    _at_least(name, frame_skip, max_tics=max_tics)
    native = dict(img_height=image_size, img_width=image_size, stack_num=1, frame_skip=frame_skip)
    native |= dict(max_episode_steps=max_tics // frame_skip, num_threads=num_threads)
    native |= dict(use_combined_action=True, use_inter_area_resize=True)
    order = np.array([2, 0, 1], np.int32)  # envpool's: stay, right, left
    alive = lambda terminated: np.where(terminated, 0.0, frame_skip)  # noqa: E731  # envpool's own reward is always 0
    return _env(name, f"{task}-v1", num_envs, native, channels_first=True, order=order, reward=alive)


def _timed(
    name: str, task: str, num_envs: int, repeat: int, max_steps: int | None, num_threads: int, view: View | None = None
) -> Env:
    """A task whose time limit envpool counts in its own steps, with `repeat` of them to one of ours."""
    _at_least(name, 1, action_repeat=repeat)
    native = {"num_threads": num_threads}
    if max_steps is not None:
        _at_least(name, 1, max_steps=max_steps)
        native["max_episode_steps"] = max_steps * repeat
    return _env(name, task, num_envs, native, repeat=repeat, view=view)


def _env(
    name: str, task: str, num_envs: int, native: dict[str, Any], *, channels_first: bool = False, lives: bool = False,
    repeat: int = 1, view: View | None = None, order: np.ndarray | None = None,
    reward: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Env:  # fmt: skip
    """The `Env` of envpool's `task` with envpool's options `native`.
    `view` is another observation spec and the function to it, `order` the native action behind each of ours, `reward` a
    function of `terminated [K]` in place of envpool's."""
    _at_least(name, 0, num_threads=native["num_threads"])
    try:
        import envpool
    except ImportError as error:
        raise ImportError(f"{name} needs envpool ({error}): pip install envpool, or take a gymnax one") from error
    if task not in envpool.list_all_envs():  # it knows the games whose ROM it finds
        advice = "ROMs come with its assets: pip install --force-reinstall envpool-assets"
        raise FileNotFoundError(f"{name}: envpool finds no {task}; {advice}")
    with _quiet():
        task_spec = envpool.make_spec(task, **native)
        obs, read = gym_spaces.observation_space(task_spec.observation_space, channels_first, name)
        action, write = gym_spaces.action_space(task_spec.action_space, name)
    if view is not None:
        native_read, (obs, show) = read, view
        read = lambda images: show(native_read(images))  # noqa: E731
    if order is not None:
        write = lambda chosen: order[chosen]  # noqa: E731

    def open_pool(seeds: list[int]) -> _Pool:
        if name.startswith("vizdoom/"):
            _stop_blas_threads()
        with _quiet():
            pool = envpool.make_gymnasium(task, num_envs=len(seeds), seed=seeds, **native)
        return _Pool(pool, len(seeds), read, write, lives, repeat, reward)

    limit = -(-int(task_spec.config.max_episode_steps) // repeat)
    return host_env(Spec(name, obs, action, limit), num_envs, open_pool)


def _stop_blas_threads() -> None:
    """Fork once, alone, so that OpenBLAS (in NumPy and SciPy) has no threads left to join at a fork.
    A pool of ViZDoom forks from several threads at once, and when OpenBLAS joins its threads in two forks at the same
    time, one of them waits for ever. It starts them again when it needs them. C's fork, because Python's warns of
    threads, and the child leaves at once."""
    if sys.platform != "linux":
        return
    libc = ctypes.PyDLL(None)
    fork, leave = libc.fork, libc._exit  # looked up before: the child does nothing but leave
    child = fork()
    if child == 0:
        leave(0)
    if child > 0:
        os.waitpid(child, 0)


class _Pool:
    """envpool's pool behind the protocol `jaxwm.envs.host.Pool`."""

    def __init__(self, pool: Any, size: int, read: Callable, write: Callable, lives: bool, repeat: int, reward: Any):
        self.pool, self.read, self.write = pool, read, write
        self.watch_lives, self.repeat, self.reward = lives, repeat, reward
        self.is_last, self.lives = np.zeros(size, bool), np.zeros(size, np.int32)

    def reset(self) -> PyTree:
        with _quiet():
            obs, info = self.pool.reset()
        self._lost_life(info)
        return self.read(obs)

    def step(self, action: np.ndarray) -> Outcome:
        action = self.write(action)
        obs, reward, terminated, truncated, info = self.pool.step(action)
        terminated, last = terminated.copy(), terminated | truncated
        for _ in range(self.repeat - 1):
            # The step that resets is one step only, and nobody walks past the end of an episode.
            ids = np.flatnonzero(~self.is_last & ~last)
            if not len(ids):
                break
            more, extra, term, trunc, part = self.pool.step(action[ids], ids)
            ids = np.asarray(part["env_id"])  # the order in which the results came
            for whole, new in zip(jax.tree.leaves(obs), jax.tree.leaves(more), strict=True):
                whole[ids] = new
            reward[ids] += extra
            terminated[ids], last[ids] = term, term | trunc
        lost = self._lost_life(info) & ~self.is_last
        self.is_last = last
        reward = reward if self.reward is None else self.reward(terminated)
        return Outcome(self.read(obs), reward, last, terminated | lost)

    def close(self) -> None:
        self.pool.close()

    def _lost_life(self, info: dict[str, Any]) -> np.ndarray:
        """bool `[K]`: one life fewer than at the last call; all False where lives are not watched."""
        if not self.watch_lives:
            return np.zeros(len(self.is_last), bool)
        before, self.lives = self.lives, np.array(info["lives"], np.int32)
        return self.lives < before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without gymnasium's warnings about the float64 bounds that envpool gives to its boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _at_least(name: str, least: int, **options: int) -> None:
    for option, value in options.items():
        check_number(f"{name}: {option}", value, least=least, whole=True)
