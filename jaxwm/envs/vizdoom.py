"""ViZDoom's scenarios, out of envpool."""

import ctypes
import os
import sys
from typing import Any

import numpy as np

from jaxwm.envs.envpool import Face, at_least, env
from jaxwm.envs.tasks import bare, versioned
from jaxwm.types import Env

TICS = dict.fromkeys(
    ("Basic", "BasicAudio", "BasicNotifications", "PredictPosition", "RocketBasic", "SimplerBasic"), 300
)
TICS["Deathmatch"] = 4200
"""Task -> time limit of the scenario in tics, where that is not 2100. envpool does not keep to it by itself."""

SEVERAL = frozenset({"Cig", "MultiDuel"})

_SURVIVE, _KILL = (1.0, 0.0), (-1.0, 100.0)
PAID = dict(
    Basic=_KILL, BasicAudio=_KILL, BasicNotifications=_KILL, RocketBasic=_KILL, SimplerBasic=_KILL,
    D1Basic=_SURVIVE, D2Navigation=_SURVIVE, TakeCover=_SURVIVE, HealthGathering=(1.0, -100.0),
    HealthGatheringSupreme=(1.0, -100.0), MyWayHome=(-1e-4, 1.0), PredictPosition=(-1e-3, 1.0),
)  # fmt: skip
"""Task -> the rewards for a tic and for the end of an episode, where envpool's own would be 0 or beside the point."""


def vizdoom(
    task: str, num_envs: int = 1, *, image_size: int = 64, frame_skip: int = 4, stack: int = 1,
    max_tics: int | None = None, num_threads: int = 0,
) -> Env:  # fmt: skip
    """A scenario of ViZDoom, such as "TakeCover": step aside from fireballs, as long as possible.

    Observations are uint8 `[image_size, image_size, C]`, the whole view without a status bar, C = 3 * stack, or stack
    in the grey scenarios (D1 to D4, RocketBasic, SimplerBasic). Actions are `Discrete`: each combination of buttons
    that makes sense; in TakeCover left, stay, right.

    The reward of a scenario is paid by a script inside its map, which envpool does not read. In those of `PAID` it is
    rebuilt: so much for each tic (1/35 s), so much at a true end. TakeCover pays the tics survived: frame_skip at every
    step, 0 at the one that ends in death; a return is the published survival in tics, less what was survived of the
    last step. Basic pays -1 for a tic and 100 for the kill, which is near the scenario's own. In the others it is
    envpool's: 1 for a kill or a frag, small amounts for hits, health, armor and ammunition. DeadlyCorridor therefore
    does not pay for getting nearer to its end.

    frame_skip   tics that an action is held.
    stack        frames in the image, newest last.
    max_tics     time limit; there `is_last` is set alone. `Spec.max_steps` is that over frame_skip. Without one that of
                 the scenario, 2100 in most.
    num_threads  threads of the pool; 0 lets envpool choose.

    Raises ValueError for a value out of range, and for Cig and MultiDuel, whose other players nobody opens."""
    name, native_task = f"vizdoom/{task}", versioned("vizdoom", task)
    scenario = bare(native_task)
    if scenario in SEVERAL:
        raise ValueError(f"{name} is for several players over a network, and ends the process: take Deathmatch")
    max_tics = TICS.get(scenario, 2100) if max_tics is None else max_tics
    at_least(name, 1, image_size=image_size, frame_skip=frame_skip, stack=stack)
    at_least(name, frame_skip, max_tics=max_tics)
    native = dict(img_height=image_size, img_width=image_size, stack_num=stack, frame_skip=frame_skip)
    native |= dict(max_episode_steps=max_tics // frame_skip, num_threads=num_threads)
    native |= dict(use_combined_action=True, use_inter_area_resize=True)
    more: dict[str, Any] = dict(channels_first=True, before=_stop_blas_threads)
    if scenario in PAID:
        tic, end = PAID[scenario]
        more["reward"] = lambda terminated: np.where(terminated, end, tic * frame_skip)
    if scenario == "TakeCover":
        more["adapt"] = _left_stay_right
    return env(name, native_task, num_envs, native, **more)


def _left_stay_right(face: Face, _: Any) -> Face:
    order = np.array([2, 0, 1], np.int32)  # envpool's: stay, right, left
    return face._replace(write=lambda chosen: order[chosen])


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
