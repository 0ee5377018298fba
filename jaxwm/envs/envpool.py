"""envpool: Atari, DeepMind Control, classic control and Box2D, and how any C++ pool of it becomes an `Env`.
The other suites out of envpool: `jaxwm.envs.families`, `jaxwm.envs.vizdoom`.

envpool already resets at the step after the last one and ignores that step's action, gives every environment its own
seed, and draws the same stream for a seed whatever the size of the pool. Its ROMs come inside its assets package."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxwm.envs import gym_spaces, opengl
from jaxwm.envs.host import Outcome, host_env
from jaxwm.envs.tasks import bare, versioned
from jaxwm.errors import check_choice, check_number
from jaxwm.types import Env, PyTree, Spec


class Face(NamedTuple):
    """What an agent sees and does: `Spec.obs` with the reader of native observations, `Spec.action` with the writer of
    native actions. Both work on arrays with the leading axis `[K]`."""

    obs: Any
    read: Any  # Callable[[Any], PyTree]; at first the `border.Reader` of the native space
    action: Any
    write: Callable[[np.ndarray], np.ndarray]


Adapt = Callable[[Face, Any], Face]
"""From the plain `Face` of a task, and envpool's spec of it, to the one we want."""

ENDLESS = 2**31 - 1  # envpool's word for no time limit
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
    at_least(name, 1, image_size=image_size, frame_skip=frame_skip, noop_max=noop_max, stack=stack)
    at_least(name, frame_skip, max_frames=max_frames)
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
    return env(name, f"{game}-v5", num_envs, native, channels_first=True, lives=life_loss == "terminal")


def dmc(
    task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0,
    pixels: int = 0, camera: int | None = None, stack: int = 1,
) -> Env:  # fmt: skip
    """A DeepMind Control task, such as "CartpoleSwingup", with a `Box` action.

    From its state, a dict of float32 vectors: the keys are those of dm_control; a scalar is `[1]`, a matrix is
    flattened. With `pixels` only the image: uint8 `[pixels, pixels, 3 * stack]`.

    action_repeat  an action is applied to that many control steps, and their rewards are added (1 for DreamerV3 from
                   state, 2 from pixels).
    max_steps      replaces the time limit of 1000 control steps, counted in steps of the agent.
    num_threads    threads of the pool; 0 lets envpool choose, and is 1 for pixels.
    pixels         height and width of the image (64 in PlaNet and Dreamer); 0 for the state.
    camera         the model's camera; as in Dreamer 0, and 2 for the quadruped, unless another one is given. -1 is
                   MuJoCo's free camera.
    stack          frames in the image, newest last.

    Raises ValueError for a value out of range, and ImportError where pixels lack OpenGL."""
    usual = 2 if task.startswith("Quadruped") else 0
    drawing = drawn(f"dmc/{task}", pixels, usual if camera is None else camera, stack, num_threads)
    return timed(f"dmc/{task}", f"{task}-v1", num_envs, action_repeat, max_steps, num_threads, **drawing)


def classic(
    task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0
) -> Env:
    """A classic control task, such as "CartPole-v1": float32 vector. Without a version it is the newest. Options as for
    `dmc`."""
    native = versioned("classic", task)
    return timed(f"classic/{task}", native, num_envs, action_repeat, max_steps, num_threads)


def box2d(
    task: str, num_envs: int = 1, *, action_repeat: int = 1, max_steps: int | None = None, num_threads: int = 0,
    image_size: int | None = None,
) -> Env:  # fmt: skip
    """A Box2D task, such as "LunarLander" (float32 vector) or "CarRacing" (uint8 `[96, 96, 3]`, Box(3)).
    Without a version it is the newest. With an `image_size`, CarRacing's image loses the status bar at its bottom and
    is resized to `[image_size, image_size, 3]`, as in World Models (64). Other options as for `dmc`. Raises ValueError
    for an `image_size` where there is no image."""
    name, native = f"box2d/{task}", versioned("box2d", task)
    if image_size is None:
        return timed(name, native, num_envs, action_repeat, max_steps, num_threads)
    at_least(name, 1, image_size=image_size)
    if bare(native) != "CarRacing":
        raise ValueError(f"{name} has no image: leave image_size out")
    obs = jax.ShapeDtypeStruct((image_size, image_size, 3), np.uint8)

    def shrink(images: np.ndarray) -> np.ndarray:
        rows = [Image.fromarray(image[:-CAR_RACING_BAR]) for image in images]
        return np.stack([np.asarray(row.resize(obs.shape[:2], Image.Resampling.BILINEAR)) for row in rows])

    adapt = lambda face, _: face._replace(obs=obs, read=lambda x: shrink(face.read(x)))  # noqa: E731
    return timed(name, native, num_envs, action_repeat, max_steps, num_threads, adapt=adapt)


def timed(
    name: str, task: str, num_envs: int, repeat: int, max_steps: int | None, num_threads: int, **more: Any
) -> Env:
    """A task whose time limit envpool counts in its own steps, with `repeat` of them to one of ours.
    `more` are arguments of `env`; `native` among them adds envpool's own options."""
    at_least(name, 1, action_repeat=repeat)
    native = {"num_threads": num_threads} | more.pop("native", {})
    if max_steps is not None:
        at_least(name, 1, max_steps=max_steps)
        native["max_episode_steps"] = max_steps * repeat
    return env(name, task, num_envs, native, repeat=repeat, **more)


def drawn(name: str, pixels: int, camera: int, stack: int, num_threads: int) -> dict[str, Any]:
    """Arguments of `timed` for an image of MuJoCo in place of the state; none for `pixels=0`.
    One thread draws unless more are asked for: Mesa's software renderer has crashed with two, and is no faster.
    Raises ValueError for a value out of range, and ImportError where there is no OpenGL."""
    at_least(name, 0, pixels=pixels)
    at_least(name, 1, stack=stack)
    at_least(name, -1, camera=camera)
    if not pixels:
        if stack > 1:
            raise ValueError(f"{name}: stack is for images: give pixels=64 too, or leave it out")
        return {}
    opengl.prepare(name)
    size = dict(render_width=pixels, render_height=pixels, render_camera_id=camera)
    native = dict(from_pixels=True, frame_stack=stack, num_threads=num_threads or 1, **size)
    return dict(channels_first=True, native=native)


def env(
    name: str, task: str, num_envs: int, native: dict[str, Any], *, channels_first: bool = False, lives: bool = False,
    repeat: int = 1, adapt: Adapt | None = None, reward: Callable[[np.ndarray], np.ndarray] | None = None,
    before: Callable[[], None] | None = None, one_hot: bool = False, timeouts: bool = False,
    limit: Callable[[int], int | None] = lambda steps: steps,
) -> Env:  # fmt: skip
    """The `Env` of envpool's `task` with envpool's options `native`.
    `adapt` changes what is seen and done, `reward` is a function of `terminated [K]` in place of envpool's, `before` is
    called before a pool is opened. `limit` corrects envpool's word for the longest episode, and `timeouts` says that an
    end there is a time limit although envpool calls it a true one."""
    at_least(name, 0, num_threads=native["num_threads"])
    opengl.load()  # before anything of envpool brings Qt's
    try:
        import envpool
    except ImportError as error:
        raise ImportError(f"{name} needs envpool ({error}): pip install envpool, or take a gymnax one") from error
    if task not in envpool.list_all_envs():  # it knows the games whose ROM it finds
        advice = "ROMs come with its assets: pip install --force-reinstall envpool-assets"
        raise FileNotFoundError(f"{name}: envpool finds no {task}; {advice}")
    with _quiet():
        task_spec = envpool.make_spec(task, **native)
        face = Face(
            *gym_spaces.observation_space(task_spec.observation_space, channels_first, name),
            *gym_spaces.action_space(task_spec.action_space, name),
        )
    if adapt is not None:
        face = adapt(face, task_spec)

    def open_pool(seeds: list[int]) -> _Pool:
        if before is not None:
            before()
        try:
            with _quiet():
                pool = envpool.make_gymnasium(task, num_envs=len(seeds), seed=seeds, **native)
        except RuntimeError as error:  # C++, such as a missing file of its assets
            raise OSError(f"{name}: envpool cannot open it: {error}") from error
        timeout = longest if timeouts else None
        return _Pool(pool, len(seeds), face, lives, repeat, reward, timeout)

    longest = limit(steps) if 0 < (steps := int(task_spec.config.max_episode_steps)) < ENDLESS else None
    max_steps = None if longest is None else -(-longest // repeat)
    return host_env(Spec(name, face.obs, face.action, max_steps, one_hot=one_hot), num_envs, open_pool)


class _Pool:
    """envpool's pool behind the protocol `jaxwm.envs.host.Pool`."""

    def __init__(
        self, pool: Any, size: int, face: Face, lives: bool, repeat: int, reward: Any, timeout: int | None
    ):  # fmt: skip
        self.pool, self.read, self.write = pool, face.read, face.write
        self.watch_lives, self.repeat, self.reward, self.timeout = lives, repeat, reward, timeout
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
        if self.timeout is not None:
            terminated &= info["elapsed_step"] < self.timeout
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


def at_least(name: str, least: int, **options: int) -> None:
    """ValueError unless all `options` are whole numbers of at least `least`."""
    for option, value in options.items():
        check_number(f"{name}: {option}", value, least=least, whole=True)
