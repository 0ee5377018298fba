"""MiniGrid and BabyAI, out of envpool: grids seen from the agent's eyes, and a mission in words."""

from typing import Any

import jax
import numpy as np

from jaxwm.envs.envpool import Face, timed
from jaxwm.envs.tasks import versioned
from jaxwm.envs.views import one_hot
from jaxwm.errors import check_number
from jaxwm.types import Env

PLANES = 11, 6, 3
"""Kinds of objects, colours and states (open, closed, locked) of a cell."""

WORDS = tuple(
    ", a after and at avoid ball behind blue box door end fetch find from front get go goal green grey hallway in key "
    "lava left matching maze must near next object of on open opening pick purple put reach red right room rooms "
    "square the then to traverse unlock up use yellow you your".split()
)
"""The vocabulary of missions; whatever else comes is the class after the last."""

_SEVERAL = "Boss", "Seq", "Synth"  # in the names of levels whose missions have several parts


def minigrid(
    task: str, num_envs: int = 1, *, words: int | None = None, max_steps: int | None = None, num_threads: int = 0
) -> Env:
    """A task of MiniGrid, such as "Empty-5x5" or "DoorKey-8x8-v0". Without a version it is the newest.

    Sensors, all bool: `image` `[7, 7, 20]`, for each cell in view the kind of object, its colour and its state, one-hot
    side by side; `direction` `[4]`; `mission` `[words, V]`, each word one-hot in `WORDS` (V is one more, for others),
    nothing after the last. Actions are `Discrete(7)`: left, right, forward, pick up, drop, toggle, done.

    words        most words of the mission that are seen; by default 20, and 80 in the BabyAI levels with missions in
                 several parts (Boss, Seq, Synth). What is beyond is cut.
    max_steps    replaces the time limit of the task; the reward of MiniGrid, 1 - 0.9 t / limit, keeps to its own.
    num_threads  threads of the pool; 0 lets envpool choose.

    Raises ValueError for a value out of range."""
    return _grid("minigrid", "MiniGrid", task, num_envs, words, max_steps, num_threads)


def babyai(
    task: str, num_envs: int = 1, *, words: int | None = None, max_steps: int | None = None, num_threads: int = 0
) -> Env:
    """A level of BabyAI, such as "GoToRedBall". Sensors, actions and options are those of `minigrid`. The time limit
    depends on the mission that is drawn: `Spec.max_steps` is None unless `max_steps` is given."""
    return _grid("babyai", "BabyAI", task, num_envs, words, max_steps, num_threads)


def _grid(
    suite: str, prefix: str, task: str, num_envs: int, words: int | None, max_steps: int | None, num_threads: int
) -> Env:
    name = f"{suite}/{task}"
    if words is None:
        words = 80 if any(part in task for part in _SEVERAL) else 20
    check_number(f"{name}: words", words, least=1, whole=True)
    native = f"{prefix}-{versioned(suite, task)}"
    adapt = lambda face, _: _seen(face, words)  # noqa: E731
    return timed(name, native, num_envs, 1, max_steps, num_threads, adapt=adapt)


def _seen(face: Face, words: int) -> Face:
    flag = lambda *shape: jax.ShapeDtypeStruct(shape, np.bool_)  # noqa: E731
    rows, columns, _ = face.obs["image"].shape
    obs = face.obs | {"image": flag(rows, columns, sum(PLANES)), "mission": flag(words, len(WORDS) + 1)}

    def read(native: Any) -> dict[str, np.ndarray]:
        plain = face.read(native)
        return plain | {"image": planes(plain["image"]), "mission": mission(plain["mission"], words)}

    return face._replace(obs=obs, read=read)


def planes(image: np.ndarray) -> np.ndarray:
    """Cells `[K, H, W, 3]` of object, colour and state as bool `[K, H, W, 20]`."""
    return np.concatenate([one_hot(image[..., i], size) for i, size in enumerate(PLANES)], -1)


def mission(text: np.ndarray, words: int) -> np.ndarray:
    """Characters `[K, L]`, padded with zeros, as bool `[K, words, V]`."""
    out = np.zeros((len(text), words, len(WORDS) + 1), np.bool_)
    for row, letters in zip(out, text.astype(np.uint8), strict=True):
        for place, index in enumerate(_spelt(letters.tobytes())[:words]):
            row[place, index] = True
    return out


_INDEX = {word: index for index, word in enumerate(WORDS)}


def _spelt(letters: bytes) -> list[int]:
    """The class of each word."""
    text = letters.rstrip(b"\0").decode("latin-1").replace(",", " , ")
    return [_INDEX.get(word, len(WORDS)) for word in text.split()]
