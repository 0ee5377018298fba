"""Sources of records that are not environments: recorded episodes and video, in the formats that people have."""

from pathlib import Path
from typing import Any

from jaxwm.data.formats import append, open_recording, recorded_env
from jaxwm.data.recording import Episode, Recording
from jaxwm.data.streams import streams_of
from jaxwm.types import Data

__all__ = ["Episode", "Recording", "append", "open_data", "open_recording", "recorded_env"]


def open_data(
    path: str | Path, streams: int = 1, seed: int = 0, held_out: bool = False, part: tuple[int, int] = (0, 1),
    **options: Any,
) -> Data:  # fmt: skip
    """A recording as a source of records: `streams` streams side by side, of all episodes in an order drawn by `seed`.

    One of 20 episodes, where there are so many, is kept apart: with `held_out` the source is only those. A stream is
    cut where the next begins. With `part=(i, k)` the source has the i-th of k equal groups of the streams only, so that
    k processes read different records. Only what is read is loaded, and checked then as `envs.border` says: a number
    that is not finite becomes 0, and an action outside of [-1, 1] is clipped, with one warning each. Options as for
    `open_recording`.

    Raises:
        FileNotFoundError, ImportError: as `open_recording`.
        ValueError: as `open_recording`; too few records. When read: a file is damaged there, or an action or a one-hot
            observation is out of range.
    """
    return streams_of(open_recording(path, **options), streams, seed, held_out, part)
