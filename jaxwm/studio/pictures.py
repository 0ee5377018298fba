"""From observations to pictures that people can look at, and from pictures to GIF and MP4.

A picture is uint8 `[height, width, 3]`. Colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from jaxwm.nets.sensors import kind, sensors
from jaxwm.types import Spec

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8A8A8A"

PLANES = (ORANGE, SKY, GREEN, YELLOW, VERMILLION, PURPLE, "#FFFFFF", BLUE, "#C8C8C8", "#8C510A")
"""Colours of 0/1 planes, channel by channel; where planes overlap the later one is seen."""

FLOOR = (26, 26, 30)
"""What is under the planes."""

GRID = (48, 48, 54)
"""Lines between the cells of planes."""

FORMATS = ("gif", "mp4")

Painter = Callable[[Any], np.ndarray]
"""`one observation (without leading axes) -> picture`."""


# --- Observations -------------------------------------------------------------------------------------------------


def is_picture(spec: Any) -> bool:
    """Whether a sensor is shown as a picture: uint8 images and 0/1 planes `[H, W, C]`. The rest is drawn as lines."""
    return kind(spec) in ("image", "binary") and len(spec.shape) == 3


def painter(spec: Spec, size: int = 128) -> Painter | None:
    """How observations of an environment are painted, about `size` pixels high; None where they are only numbers.

    Several picture sensors stand side by side. CartPole, Pendulum, MountainCar and Acrobot are drawn from their state.
    """
    shapes = sensors(spec.obs)
    names = [name for name, shape in shapes.items() if is_picture(shape)]
    if names:
        return lambda obs: beside([_show(sensors(obs)[name], size) for name in names])
    task = spec.name.split("/")[-1].split("-")[0]
    draw, width = DRAWINGS.get(task, (None, 0))
    if draw is None or [shape.shape for shape in shapes.values()] != [(width,)]:
        return None
    return lambda obs: draw(np.asarray(sensors(obs).popitem()[1], float), size)


def _show(x: np.ndarray, size: int) -> np.ndarray:
    picture = see(x)
    out = enlarge(picture, size)
    cell = len(out) // len(picture)
    if x.dtype == np.bool_ and cell > 4:  # a grid, so that neighbours stay two
        out[cell - 1 :: cell], out[:, cell - 1 :: cell] = GRID, GRID
    return out


def see(x: np.ndarray) -> np.ndarray:
    """A picture of an image or planes `[H, W, C]`, one pixel a pixel. Of stacked frames the newest is seen."""
    if x.dtype == np.bool_:
        out = np.full((*x.shape[:2], 3), FLOOR, np.uint8)
        for channel in range(x.shape[-1]):
            out[x[..., channel]] = _rgb(PLANES[channel % len(PLANES)])
        return out
    return x[..., -3:] if x.shape[-1] % 3 == 0 else np.repeat(x[..., -1:], 3, -1)


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]


def enlarge(picture: np.ndarray, size: int) -> np.ndarray:
    """Whole pixels repeated until the longer side has about `size` pixels; never smaller than before."""
    factor = max(1, round(size / max(picture.shape[:2])))
    return picture.repeat(factor, 0).repeat(factor, 1)


def beside(pictures: Sequence[np.ndarray], gap: int = 4, fill: int = 255) -> np.ndarray:
    """Pictures in a row, aligned at the top."""
    height = max(len(picture) for picture in pictures)
    pad = lambda p, g: np.pad(p, ((0, height - len(p)), (g, 0), (0, 0)), constant_values=fill)  # noqa: E731
    return np.concatenate([pad(picture, gap if i else 0) for i, picture in enumerate(pictures)], 1)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two pictures are apart, black for equal to bright for opposite pixels."""
    apart = np.abs(one.astype(np.float32) - other).max(-1) / 255
    return (colormaps["inferno"](np.sqrt(apart))[..., :3] * 255).astype(np.uint8)  # the root shows small errors too


# --- Drawings of states -------------------------------------------------------------------------------------------


def _sketch(size: int, lines: Sequence[tuple[Any, str, float]], dots: Sequence[tuple[Any, str, float]] = ()):
    """Lines `(points, colour, width)` and dots `(point, colour, radius)` in a frame from -1 to 1, y upwards."""
    scale = 3 * size  # drawn three times as large and reduced, for smooth edges
    image = Image.new("RGB", (scale, scale), "white")
    draw = ImageDraw.Draw(image)
    pixel = lambda p: (float((p[0] + 1) * scale / 2), float((1 - p[1]) * scale / 2))  # noqa: E731
    for points, colour, width in lines:
        draw.line([pixel(p) for p in points], colour, round(width * scale / 2), joint="curve")
    for point, colour, radius in dots:
        draw.circle(pixel(point), radius * scale / 2, colour)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def _cart_pole(obs: np.ndarray, size: int) -> np.ndarray:
    x, angle = obs[0] / 2.4, obs[2]
    tip = x + 0.9 * math.sin(angle), -0.4 + 0.9 * math.cos(angle)
    floor, cart = [(-1, -0.5), (1, -0.5)], [(x - 0.2, -0.4), (x + 0.2, -0.4)]
    return _sketch(size, [(floor, GREY, 0.02), (cart, BLACK, 0.2), ([(x, -0.4), tip], ORANGE, 0.08)])


def _pendulum(obs: np.ndarray, size: int) -> np.ndarray:
    tip = -0.8 * obs[1], 0.8 * obs[0]
    return _sketch(size, [([(0, 0), tip], ORANGE, 0.14)], [(tip, ORANGE, 0.07), ((0, 0), BLACK, 0.06)])


def _mountain_car(obs: np.ndarray, size: int) -> np.ndarray:
    place = lambda x: ((x + 0.3) / 0.95, 0.7 * math.sin(3 * x))  # noqa: E731
    x, y = place(obs[0])
    goal = place(0.5)
    hill, flag = [place(p) for p in np.linspace(-1.25, 0.65, 80)], [goal, (goal[0], goal[1] + 0.25)]
    return _sketch(size, [(hill, GREY, 0.03), (flag, GREEN, 0.05)], [((x, y + 0.09), ORANGE, 0.09)])


def _acrobot(obs: np.ndarray, size: int) -> np.ndarray:
    first, second = math.atan2(obs[1], obs[0]), math.atan2(obs[3], obs[2])
    elbow = 0.45 * math.sin(first), -0.45 * math.cos(first)
    tip = elbow[0] + 0.45 * math.sin(first + second), elbow[1] - 0.45 * math.cos(first + second)
    lines = [([(-1, 0.45), (1, 0.45)], GREY, 0.02), ([(0, 0), elbow], BLUE, 0.1), ([elbow, tip], ORANGE, 0.1)]
    return _sketch(size, lines, [((0, 0), BLACK, 0.06), (elbow, BLACK, 0.06)])


DRAWINGS: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]] = {
    "CartPole": (_cart_pole, 4),
    "Pendulum": (_pendulum, 3),
    "MountainCar": (_mountain_car, 2),
    "MountainCarContinuous": (_mountain_car, 2),
    "Acrobot": (_acrobot, 6),
}
"""Task -> its drawing `(obs, size) -> picture`, and the size of the state that it understands."""


# --- Numbers ------------------------------------------------------------------------------------------------------


def numbers(obs: Any, spec: Any) -> tuple[list[str], np.ndarray]:
    """Names and values `[..., D]` of all sensors that are no pictures, float32; `obs` has any leading axes."""
    names, values = [], []
    for name, shape in sensors(spec).items():
        if not is_picture(shape):
            x = np.asarray(sensors(obs)[name], np.float32)
            values.append(x.reshape(*x.shape[: x.ndim - len(shape.shape)], -1))
            names += [name if math.prod(shape.shape) == 1 else f"{name}[{i}]" for i in range(values[-1].shape[-1])]
    return names, np.concatenate(values, -1) if values else np.zeros((0,), np.float32)


def strips(names: Sequence[str], values: np.ndarray, now: int, height: int = 0) -> np.ndarray:
    """A strip of paper for each column of `values [T, D]`, written up to row `now`; the scale is that of all rows.

    They share `height` pixels, as far as that leaves enough for each.
    """
    each = min(64, max(26, height // len(names)))
    left = 10 + math.ceil(max(font(10).getlength(f"{name} -000.00") for name in names))
    width = left + 240
    image = Image.new("RGB", (width, each * len(names)), "white")
    draw = ImageDraw.Draw(image)
    low, high = values.min(0), values.max(0)
    y = np.where(high > low, (values - low) / np.where(high > low, high - low, 1), 0.5)
    x = left + np.arange(len(values)) * (width - left - 6) / max(1, len(values) - 1)
    for i, name in enumerate(names):
        top = i * each
        points = [(float(x[t]), top + 5 + (each - 10) * (1 - float(y[t, i]))) for t in range(now + 1)]
        draw.text((4, top + each / 2 - 6), f"{name} {values[now, i]:.2f}", "black", font(10))
        draw.line([(left, top + each - 1), (width, top + each - 1)], "#DDDDDD")
        if len(points) > 1:
            draw.line(points, BLUE, 2)
        draw.circle(points[-1], 3, ORANGE)
    return np.asarray(image)


# --- Words and files ----------------------------------------------------------------------------------------------


def font(size: int) -> Any:
    return ImageFont.load_default(size)


def caption(picture: np.ndarray, lines: Sequence[str], width: int = 0, size: int = 12) -> np.ndarray:
    """The picture with lines of text under it, on white, at least `width` pixels wide."""
    width = max(picture.shape[1], width)
    canvas = Image.new("RGB", (width, len(picture) + len(lines) * (size + 4) + 6), "white")
    canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        draw.text((4, len(picture) + 3 + i * (size + 4)), line, "black", font(size))
    return np.asarray(canvas)


def check_format(name: str) -> None:
    """ValueError for an unknown video format, ImportError where mp4 is wanted and cannot be written."""
    if name not in FORMATS:
        raise ValueError(f"--format is {' or '.join(FORMATS)}, not {name!r}")
    if name == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise ImportError("mp4 needs ffmpeg: pip install 'jaxwm[video]', or take --format gif")


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames of one size as GIF (which starts over for ever) or MP4, by the suffix of `path`.

    The last frame stays for a second and a half.
    """
    hold = 1.5
    if path.suffix == ".gif":
        times = [1000 / fps] * (len(frames) - 1) + [1000 * hold]
        imageio.imwrite(path, np.stack(frames), duration=times, loop=0)
        return
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")  # else it forks, which JAX's threads do not survive
    even = [(0, size % 2) for size in frames[0].shape[:2]]  # as the codec wants it
    held = [*frames, *[frames[-1]] * round(hold * fps)]
    video = np.stack([np.pad(frame, (*even, (0, 0)), mode="edge") for frame in held])
    imageio.imwrite(path, video, plugin="FFMPEG", fps=fps, macro_block_size=2)
