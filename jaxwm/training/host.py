"""Host environments: the pool of all members, and the loop that steps it around jitted functions."""

from __future__ import annotations

import contextlib
import warnings
from functools import partial
from typing import Any

import jax

from jaxwm import replay
from jaxwm.replay import Ring
from jaxwm.training import processes
from jaxwm.types import Env, Key, Step


@partial(jax.jit, donate_argnums=0)
@partial(jax.vmap, in_axes=(replay.AXES,), out_axes=replay.AXES)
def cut_rings(ring: Ring) -> Ring:
    return replay.cut(ring)


class Pool:
    """A host environment of all members, with the action that it has not taken yet.

    One that dies is built anew, `restarts` times so far, with other seeds; `fresh` tells that it just happened.
    """

    def __init__(self, env: Env, keys: Key):
        self.env, self.handle, self.restarts, self.in_a_row, self.fresh = env, None, 0, 0, False
        self.reset(keys)

    def reset(self, keys: Key) -> None:
        self.close()
        self.keys = keys
        self.handle, self.step = self.env.reset(keys)
        self.action: Any = None

    def close(self) -> None:
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self.env.close(handle)

    def advance(self) -> Step:
        """Take the waiting action, if there is one; the newest step `[M, N, ...]`."""
        if self.action is not None:
            action = processes.local_part(self.action)  # an error of the compiled program is none of the environment's
            try:
                self.handle, self.step = self.env.step(self.handle, action)
                self.action, self.in_a_row = None, 0
            except Exception as error:
                self._restart(error)
        return self.step

    def _restart(self, error: Exception) -> None:
        """Build the pool anew. EnvironmentDied when that has not helped for the third time in a row."""
        self.restarts, self.in_a_row = self.restarts + 1, self.in_a_row + 1
        what = f"{self.env.spec.name} died ({type(error).__name__}: {str(error)[:200]})"
        if self.in_a_row > 3:
            raise EnvironmentDied(f"{what} at its first step, again after 3 restarts") from error
        warnings.warn(f"{what}: restarted, {self.restarts} times so far; its episodes start anew", stacklevel=2)
        with contextlib.suppress(Exception):
            self.close()
        self.handle = None
        self.reset(jax.vmap(lambda key: jax.random.fold_in(key, self.restarts))(self.keys))
        self.fresh = True


class EnvironmentDied(RuntimeError):
    """A host environment fails again and again."""
