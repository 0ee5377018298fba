"""Writing frames as GIF or MP4."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

FORMATS = ("gif", "mp4")

HOLD = 1.5
"""Seconds that the last frame stays."""

COLOURS = 255
"""Of a GIF; the one that is left marks what did not change since the frame before."""

SAMPLE = 24
"""Frames from which the colours of a GIF are chosen."""

FEWEST = 20
"""Frames that a GIF keeps, whatever its size."""


def check_format(name: str) -> None:
    """ValueError for an unknown video format, ImportError where mp4 is asked for and cannot be written."""
    if name not in FORMATS:
        raise ValueError(f"--format is {' or '.join(FORMATS)}, not {name!r}")
    if name == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise ImportError("mp4 needs ffmpeg: pip install 'jaxwm[video]', or take --format gif")


def write(path: Path, frames: Sequence[np.ndarray], fps: float, most_bytes: int = 0) -> int:
    """Write frames of one size as GIF (which repeats) or MP4, by the suffix of `path`.

    Of a GIF that is larger than `most_bytes` only every second, fourth, ... frame is written, and the last one.

    Returns:
        Which frames were written: every so many.
    """
    if path.suffix != ".gif":
        _write_mp4(path, frames, fps)
        return 1
    every = 1
    while True:
        kept = frames[::-every][::-1]
        _write_gif(path, kept, fps / every)
        if not most_bytes or path.stat().st_size <= most_bytes or len(kept) < 2 * FEWEST:
            return every
        every *= 2


def _write_gif(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """One palette for all frames: what does not change between two of them costs nothing."""
    sample = np.concatenate(frames[:: -(-len(frames) // SAMPLE)])
    palette = Image.fromarray(sample).quantize(COLOURS, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    colours[(colours > 244).all(1)] = 255  # colours are matched coarsely, and white must stay white
    colours[colours.sum(1, dtype=int).argmax()] = 255
    palette.putpalette(colours.tobytes())
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [round(1000 / fps)] * (len(frames) - 1) + [round(1000 * HOLD)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=times, loop=0, disposal=1, optimize=True)


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")  # else it forks, which JAX's threads do not survive
    even = [(0, size % 2) for size in frames[0].shape[:2]]  # the codec needs even sizes
    held = [*frames, *[frames[-1]] * round(HOLD * fps)]
    video = np.stack([np.pad(frame, (*even, (0, 0)), mode="edge") for frame in held])
    imageio.imwrite(path, video, plugin="FFMPEG", fps=fps, macro_block_size=2)
