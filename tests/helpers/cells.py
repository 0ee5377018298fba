"""Records out of nothing, for losses and dreams of frames."""

import numpy as np

from jaxwm.types import Record


def planes(
    shape: tuple[int, ...],
    actions: int,
    batch: int,
    length: int,
    first: tuple[tuple[int, int], ...] = (),
    seed: int = 0,
) -> Record:
    """Random records `[batch, length]` of 0/1 planes; `first` are the (row, time) at which an episode begins."""
    rng = np.random.default_rng(seed)
    flags = np.zeros((2, batch, length), bool)
    for row, time in first:
        flags[0, row, time] = True
        flags[1, row, max(time - 1, 0)] = time > 0
    obs, action = rng.random((batch, length, *shape)) < 0.3, rng.integers(0, actions, (batch, length))
    reward = rng.integers(-2, 3, (batch, length)).astype(np.float32)
    return Record(obs, reward, flags[0], flags[1], flags[1], action.astype(np.int32), {})
