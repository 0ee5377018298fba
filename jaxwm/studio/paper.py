"""Pictures with words around them: text, legends, notes, frames and strips of numbers.

A picture is uint8 `[height, width, 3]`; sizes are in pixels. Text is set in DejaVu Sans, as in the plots."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jaxwm.studio.names import plain

BLACK, BLUE, ORANGE, GREY, LINE = "#000000", "#0072B2", "#E69F00", "#8A8A8A", "#CCCCCC"

MARGIN, GAP = 8, 8  # around a sheet, and between its parts
TEXT, TITLE = 11, 13  # heights of letters
SWATCH = 12  # side of a colour in a legend
STRIP, MOST_STRIP, STRIP_LINE = 28, 64, 240  # least and greatest height of a strip of numbers, width of its curve
Legend = Sequence[tuple[np.ndarray, str]]
"""Small pictures and what they mean."""


@cache
def font(size: int, bold: bool = False) -> Any:
    """Matplotlib's own font."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def width_of(text: str, size: int = TEXT, bold: bool = False) -> int:
    """Pixels that a line of text needs."""
    return math.ceil(font(size, bold).getlength(text))


def blank(width: int, height: int, colour: str = "white") -> np.ndarray:
    """A picture of one colour."""
    return np.asarray(Image.new("RGB", (width, height), colour))


def lines(texts: Sequence[str], size: int = TEXT, bold: bool = False, width: int = 0) -> np.ndarray:
    """Lines of text on white, as wide as they are, or `width`."""
    each = round(1.45 * size)
    width = width or max((width_of(text, size, bold) for text in texts), default=1)
    image = Image.new("RGB", (max(width, 1), max(1, each * len(texts))), "white")
    for i, text in enumerate(texts):
        ImageDraw.Draw(image).text((0, i * each), text, BLACK, font(size, bold))
    return np.asarray(image)


def note(shape: tuple[int, ...], text: str, ground: str = "#F4F4F2") -> np.ndarray:
    """A light picture of `shape` with a few words in its middle, one below the other where it is narrow."""
    height, width = shape[:2]
    image = Image.new("RGB", (width, height), ground)
    text = text if width_of(text) < width - 4 else text.replace(" ", "\n")
    place = width / 2, height / 2
    ImageDraw.Draw(image).text(place, text, GREY, font(TEXT), anchor="mm", align="center")
    return np.asarray(image)


def framed(picture: np.ndarray, colour: str = LINE, width: int = 1) -> np.ndarray:
    """The picture with a border around it."""
    return np.asarray(ImageOps.expand(Image.fromarray(picture), width, colour))


def row(pictures: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Pictures from left to right on white, aligned at the top."""
    height = max(len(picture) for picture in pictures)
    pad = lambda p, g: np.pad(p, ((0, height - len(p)), (g, 0), (0, 0)), constant_values=255)  # noqa: E731
    return np.concatenate([pad(picture, gap if i else 0) for i, picture in enumerate(pictures)], 1)


def stack(pictures: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Pictures from top to bottom on white, aligned at the left."""
    turn = lambda picture: picture.swapaxes(0, 1)  # noqa: E731
    return turn(row([turn(picture) for picture in pictures], gap))


def page(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """A stack with white margins."""
    return np.pad(stack(pictures), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def patch(colour: str) -> np.ndarray:
    """A colour in a legend."""
    return framed(blank(SWATCH - 2, SWATCH - 2, colour))


def ring(colour: str) -> np.ndarray:
    """The colour of a frame in a legend."""
    return framed(blank(SWATCH - 6, SWATCH - 6), colour, 3)


def legend(entries: Legend, width: int) -> np.ndarray:
    """Pictures with words, from left to right and in as many lines as `width` needs."""
    rows: list[list[np.ndarray]] = [[]]
    used = 0
    for swatch, text in entries:
        entry = row([np.pad(swatch, ((2, 0), (0, 0), (0, 0)), constant_values=255), lines([text])], 5)
        if used and used + entry.shape[1] > width:
            rows.append([])
            used = 0
        rows[-1].append(entry)
        used += entry.shape[1] + 2 * GAP
    return stack([row(entries, 2 * GAP) for entries in rows], 2)


def strips(names: Sequence[str], values: np.ndarray, now: int, height: int = 0) -> np.ndarray:
    """A strip of paper for each column of `values [T, D]`, written up to row `now`; the scale is that of all rows.
    They share `height` pixels, as far as that leaves enough for each. Numbers that are only ever 0 or 1 jump."""
    each = min(MOST_STRIP, max(STRIP, height // len(names)))
    label, value = (max(width_of(text) for text in texts) + GAP for texts in (names, ["-000.00"]))
    left = MARGIN + label + value
    width = left + STRIP_LINE + MARGIN
    image = Image.new("RGB", (width, each * len(names)), "white")
    draw = ImageDraw.Draw(image)
    low, high = values.min(0), values.max(0)
    y = np.where(high > low, (values - low) / np.where(high > low, high - low, 1), 0.5)
    x = left + np.arange(len(values)) * STRIP_LINE / max(1, len(values) - 1)
    for i, name in enumerate(names):
        top, middle = i * each, (i + 0.5) * each
        points = [(float(x[t]), top + 6 + (each - 12) * (1 - float(y[t, i]))) for t in range(now + 1)]
        draw.text((MARGIN, middle), name, BLACK, font(TEXT), anchor="lm")
        draw.text((left - GAP, middle), plain(values[now, i]), BLACK, font(TEXT), anchor="rm")
        if i:
            draw.line([(0, top), (width, top)], LINE)
        if np.isin(values[:, i], (0, 1)).all():
            points = [p for (_, y0), (x1, y1) in pairwise(points[:1] + points) for p in ((x1, y0), (x1, y1))]
        if len(points) > 1:
            draw.line(points, BLUE, 2)
        draw.circle(points[-1], 3, ORANGE)
    return np.asarray(image)
