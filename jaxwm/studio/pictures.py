"""From observations to pictures: images, 0/1 planes, drawings of known states, and the numbers that are left.

A picture is uint8 `[height, width, 3]`. Colours are those of Okabe and Ito, which the colour-blind can distinguish."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw
from PIL.ImageColor import getrgb

from jaxwm.nets.sensors import kind, sensors
from jaxwm.studio import names, paper
from jaxwm.studio.paper import BLACK, BLUE, GREY, ORANGE
from jaxwm.types import Spec

SKY, GREEN, YELLOW, VERMILLION, PURPLE = "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7"

PLANES = (ORANGE, SKY, GREEN, YELLOW, VERMILLION, PURPLE, "#FFFFFF", BLUE, "#C8C8C8", "#8C510A")
"""Colours of 0/1 planes, channel by channel; where planes overlap the later one is seen."""

FLOOR, GRID = (26, 26, 30), (48, 48, 54)  # what is under the planes, and the lines between their cells
EDGE = 64  # differences of smooth edges that do not count as an error of a drawing
SCALE = 60  # width of the scale of pixel errors in a legend


class Painter(NamedTuple):
    """How observations (without leading axes) are shown."""

    paint: Callable[[Any], np.ndarray]  # observation -> picture
    compare: Callable[[Any, Any], np.ndarray]  # (truth, dream) -> picture of the error, black where they are equal
    colours: paper.Legend  # what the colours of planes mean
    errors: paper.Legend  # what the colours of an error mean


def is_picture(spec: Any) -> bool:
    """Whether a sensor is shown as a picture: uint8 images and 0/1 planes `[H, W, C]`. The rest is drawn as lines."""
    return kind(spec) in ("image", "binary") and len(spec.shape) == 3


def painter(spec: Spec, size: int = 128) -> Painter | None:
    """How observations of an environment are painted, about `size` pixels high; None where they are only numbers.
    Several picture sensors are side by side. The tasks of `DRAWINGS` are drawn from their state."""
    shapes = sensors(spec.obs)
    shown = [name for name, shape in shapes.items() if is_picture(shape)]
    if shown:
        return _pixels(spec, shown, size)
    draw, width = DRAWINGS.get(names.task(spec.name).removesuffix("Continuous"), (None, 0))
    if draw is None or [shape.shape for shape in shapes.values()] != [(width,)]:
        return None
    paint = lambda obs: draw(np.asarray(sensors(obs).popitem()[1], float), size)  # noqa: E731
    apart = lambda truth, dream: np.abs(paint(truth).astype(int) - paint(dream)).max(-1)  # noqa: E731
    compare = lambda truth, dream: _wrong(apart(truth, dream) > EDGE)  # noqa: E731
    return Painter(paint, compare, [], [(paper.patch(VERMILLION), "the two drawings differ")])


def _pixels(spec: Spec, shown: list[str], size: int) -> Painter:
    shapes = sensors(spec.obs)

    def paint(obs: Any) -> np.ndarray:
        return paper.row([_grid(see(sensors(obs)[name]), sensors(obs)[name], size) for name in shown], 4)

    def compare(truth: Any, dream: Any) -> np.ndarray:
        pairs = [(sensors(truth)[name], sensors(dream)[name]) for name in shown]
        return paper.row([_grid(_apart(a, b), a, size) for a, b in pairs], 4)

    planes = [name for name in shown if kind(shapes[name]) == "binary"]
    words = [enumerate(names.planes(spec.name, shapes[name].shape[-1])) for name in planes]
    colours = [(paper.patch(PLANES[i % len(PLANES)]), word) for each in words for i, word in each]
    errors = [(paper.patch(VERMILLION), "wrong cell")] if planes else []
    if len(planes) < len(shown):
        scale = _heat(np.broadcast_to(np.linspace(0, 1, SCALE), (paper.SWATCH - 2, SCALE)))
        errors.append((paper.framed(scale), "pixel error, 0 to 255"))
    return Painter(paint, compare, colours, errors)


def _grid(picture: np.ndarray, x: np.ndarray, size: int) -> np.ndarray:
    """Whole pixels repeated until the longer side has about `size`; lines between planes' cells keep neighbours two."""
    cell = max(1, round(size / max(picture.shape[:2])))
    out = picture.repeat(cell, 0).repeat(cell, 1)
    if x.dtype == np.bool_ and cell > 4:
        out[cell - 1 :: cell], out[:, cell - 1 :: cell] = GRID, GRID
    return out


def token_map(tokens: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture of `shape` of the tokens `[rows, columns]` of a frame: a colour for each code, however many there are.
    Hues a golden section apart keep neighbouring codes distinct."""
    hue = tokens * 0.618034 % 1
    light = 0.55 + 0.45 * ((tokens * 7) % 5) / 4
    cells = (hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.75), light], -1)) * 255).astype(np.uint8)
    rows, columns = (np.arange(n) * k // n for n, k in zip(shape[:2], tokens.shape, strict=True))
    out = cells[rows][:, columns]
    out[1:][rows[1:] != rows[:-1]] = GRID
    out[:, 1:][:, columns[1:] != columns[:-1]] = GRID
    return out


def see(x: np.ndarray) -> np.ndarray:
    """A picture of an image or planes `[H, W, C]`, one pixel per pixel. Of stacked frames the newest is seen."""
    if x.dtype == np.bool_:
        out = np.full((*x.shape[:2], 3), FLOOR, np.uint8)
        for channel in range(x.shape[-1]):
            out[x[..., channel]] = getrgb(PLANES[channel % len(PLANES)])
        return out
    return x[..., -3:] if x.shape[-1] % 3 == 0 else np.repeat(x[..., -1:], 3, -1)


def _apart(truth: np.ndarray, dream: np.ndarray) -> np.ndarray:
    """The error of an image or planes, one pixel per pixel; a cell is wrong where any of its planes is."""
    if truth.dtype == np.bool_:
        return _wrong((truth != dream).any(-1))
    return _heat(np.abs(see(truth).astype(np.float32) - see(dream)).max(-1) / 255)


def _wrong(places: np.ndarray) -> np.ndarray:
    """A picture of what is wrong, of bool `[height, width]`."""
    return np.where(places[..., None], getrgb(VERMILLION), FLOOR).astype(np.uint8)


def _heat(apart: np.ndarray) -> np.ndarray:
    """Differences from 0 to 1 in colours from black to bright."""
    return (colormaps["inferno"](np.sqrt(apart))[..., :3] * 255).astype(np.uint8)  # the root shows small errors too


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


def _lunar_lander(obs: np.ndarray, size: int) -> np.ndarray:
    """The pad is between the flags; legs that touch the ground are green."""
    x, y, angle = float(obs[0]), float(obs[1]) * 0.95 - 0.7, float(obs[4])
    turn = lambda a, b: (x + a * math.cos(angle) - b * math.sin(angle), y + a * math.sin(angle) + b * math.cos(angle))  # noqa: E731
    body = [turn(-0.1, 0.1), turn(0.1, 0.1)]
    down = {s: GREEN if obs[6 + (s > 0)] > 0.5 else GREY for s in (-1, 1)}
    legs = [([turn(s * 0.1, 0.06), turn(s * 0.17, 0)], colour, 0.03) for s, colour in down.items()]
    flags = [([(s * 0.2, -0.7), (s * 0.2, -0.5)], BLUE, 0.03) for s in (-1, 1)]
    return _sketch(size, [([(-1, -0.72), (1, -0.72)], GREY, 0.04), *flags, *legs, (body, ORANGE, 0.14)])


DRAWINGS: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]] = {
    "CartPole": (_cart_pole, 4),
    "Pendulum": (_pendulum, 3),
    "MountainCar": (_mountain_car, 2),
    "Acrobot": (_acrobot, 6),
    "LunarLander": (_lunar_lander, 8),
}
"""Task, whether its actions are discrete or not -> its drawing `(obs, size) -> picture`, and the size of its state."""


def numbers(obs: Any, spec: Spec) -> tuple[list[str], np.ndarray]:
    """Names and values `[..., D]` of all sensors that are not pictures, float32; `obs` has any leading axes."""
    labels, values = [], []
    for name, shape in sensors(spec.obs).items():
        if not is_picture(shape):
            x = np.asarray(sensors(obs)[name], np.float32)
            values.append(x.reshape(*x.shape[: x.ndim - len(shape.shape)], -1))
            labels += names.numbers(spec.name, name, math.prod(shape.shape))
    return labels, np.concatenate(values, -1) if values else np.zeros((0,), np.float32)
