"""Writing frames as GIF or MP4."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

FORMATS = ("gif", "mp4")
HOLD = 1.5  # seconds that the last frame stays
COLOURS = 255  # of a GIF; the one that is left marks what did not change since the frame before
SAMPLE, FEWEST = 24, 20  # frames from which the colours of a GIF are chosen, and that it keeps whatever its size


def named(path: Path, format: str) -> Path:
    """`path`, with the suffix of a video format where it has none. Raises as `check_format` does."""
    path = path if path.suffix else path.with_suffix(f".{format}")
    check_format(path.suffix[1:])
    return path


def check_format(name: str) -> None:
    """ValueError for an unknown video format, ImportError where mp4 is asked for and cannot be written."""
    if name not in FORMATS:
        raise ValueError(f"--format is {' or '.join(FORMATS)}, not {name!r}")
    if name == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise ImportError("mp4 needs ffmpeg: pip install 'jaxwm[video]', or take --format gif")


def write(path: Path, frames: Sequence[np.ndarray], fps: float, most_bytes: int = 0) -> int:
    """Write frames of one size as GIF (which repeats) or MP4, by the suffix of `path`; every how many were written.
    That is 1, but for a GIF that would be larger than `most_bytes`: 2, 4, ... The last frame is always written."""
    every, write = 1, _write_gif if path.suffix == ".gif" else _write_mp4
    while True:
        kept = frames[::-every][::-1]
        write(path, kept, fps / every)
        if path.suffix != ".gif" or not most_bytes or path.stat().st_size <= most_bytes or len(kept) < 2 * FEWEST:
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
