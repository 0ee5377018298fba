"""Vector environments with gymnasium's interface, as pools: many environments behind one `step`.

Gymnasium knows three ways in which an environment among others starts anew, and names its own in
`metadata["autoreset_mode"]`:

- NEXT_STEP: at the step after the last, which ignores its action: as here.
- SAME_STEP: at the last step itself, which hands the last observation over in `info`. There is no step left to show the
  first observation in, so an episode is shown from its second one on. The action between the two is the one that was
  meant for the step after the last, and the reward for it is added to the next one: returns stay whole. An episode of a
  single step is not shown.
- DISABLED: when it is told to. It is told so at the last step, and then is like SAME_STEP."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwm.envs import border, gym_spaces, images
from jaxwm.envs.host import Outcome, host_env, inferred
from jaxwm.errors import check_choice
from jaxwm.types import Env, PyTree

NEXT, SAME, DISABLED = "NextStep", "SameStep", "Disabled"


def from_gymnasium_vector(
    make: Callable[[int], Any], num_envs: int = 1, image_size: int | None = None, fit: images.Fit = "resize"
) -> Env:
    """A host `Env` out of a vector environment with gymnasium's interface.

    `make(count)` returns one of `count` environments: M * N of them are asked for, and one for its spaces. They are
    reset with a list of seeds. Images are scaled or padded as in `from_gymnasium`.

    Raises ValueError for a space without a counterpart in `jaxwm.types` and where the mode of the automatic reset is
    not said, `border.Misfit` when what is returned is not what the spaces say."""
    env = make(1)
    for attribute in ("single_observation_space", "single_action_space"):
        if not hasattr(env, attribute):
            raise ValueError(f"make(count) must return a vector environment: {type(env).__name__} has no {attribute}")
    try:
        option = images.Option(image_size, fit)
        spec, read, write = inferred(env, env.single_observation_space, env.single_action_space, option)
        mode = _mode(env)
    finally:
        getattr(env, "close", lambda: None)()
    return host_env(spec, num_envs, lambda seeds: _Vector(make(len(seeds)), seeds, read, write, mode))


def _mode(env: Any) -> str:
    """How an environment among others starts anew."""
    mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    if mode is None:
        raise ValueError(
            f"{type(env).__name__} does not say how it resets: set its metadata['autoreset_mode'] to one of "
            "gymnasium.vector.AutoresetMode"
        )
    mode = getattr(mode, "value", mode)
    check_choice("metadata['autoreset_mode']", mode, (NEXT, SAME, DISABLED))
    return mode


class _Vector:
    """A `Pool` behind a vector environment."""

    def __init__(self, native: Any, seeds: list[int], read: border.Reader, write: gym_spaces.Writer, mode: str):
        self.native, self.seeds, self.read, self.write, self.mode = native, seeds, read, write, mode
        self.is_last = np.zeros(len(seeds), bool)
        self.owed = np.zeros(len(seeds), np.float64)  # rewards of steps that could not be shown

    def reset(self) -> PyTree:
        return self.read(self.native.reset(seed=list(self.seeds))[0])

    def step(self, action: np.ndarray) -> Outcome:
        first, name, num = self.is_last, self.read.name, (len(self.seeds),)
        native, reward, ended, cut, info = self.native.step(self.write(action))
        reward = border.reward(name, reward, num)
        ended, cut = border.flag(name, "terminated", ended, num), border.flag(name, "truncated", cut, num)
        over, obs = ended | cut, self.read(native)
        self.is_last = over & ~first  # without these: episodes of a single step
        if self.mode != NEXT:
            obs = self._with_ends(obs, over, info)
            shown = np.where(first, 0.0, reward + self.owed)
            reward, self.owed = shown, np.where(first & ~over, reward, 0.0)
        return Outcome(obs, reward, self.is_last.copy(), ended & self.is_last)

    def close(self) -> None:
        self.native.close()

    def _with_ends(self, obs: PyTree, over: np.ndarray, info: Any) -> PyTree:
        """The first observations of new episodes, but for those that have just ended: the last ones of these."""
        if not over.any():
            return obs
        rows = np.flatnonzero(self.is_last)
        if self.mode == DISABLED:
            ends = jax.tree.map(lambda x: x[rows], obs)
            obs = self.read(self.native.reset(options={"reset_mask": over})[0])
        else:
            ends = self.read.rows([self._end(info, i) for i in rows.tolist()]) if len(rows) else None
        put = lambda old, new: _put(old, rows, new)  # noqa: E731
        return jax.tree.map(put, obs, ends) if len(rows) else obs

    def _end(self, info: Any, row: int) -> Any:
        """The last observation of an environment that has started anew since."""
        final = info.get("final_obs", info.get("final_observation"))
        if final is None:
            raise border.Misfit(f"{self.read.name}: an episode ended, and info has no 'final_obs'")
        one_by_one = isinstance(final, np.ndarray) and final.dtype == object
        return final[row] if one_by_one else jax.tree.map(lambda x: x[row], final)


def _put(old: np.ndarray, rows: np.ndarray, new: np.ndarray) -> np.ndarray:
    """`old` with other rows."""
    old = np.array(old)
    old[rows] = new
    return old
