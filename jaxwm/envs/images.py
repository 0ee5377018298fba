"""Images of any size as images that convolutions can halve four times: padded with black, or scaled.

One piece for every suite: the functions work on NumPy and on JAX arrays alike, with any leading axes."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxwm.errors import check_choice, check_number

STEP, LEAST, MOST = 16, 48, 256  # sides are multiples of 16 between these, see `nets.sensors.kinds`

Fit = Literal["resize", "pad"]


class Option(NamedTuple):
    """How images are brought to a size that convolutions take: `size` and `fit` as for `fit`; not at all by default."""

    size: int | None = None
    how: Fit = "resize"

    def __bool__(self) -> bool:
        return self.size is not None or self.how == "pad"


PLAIN = Option()


def fit(shape: tuple[int, ...], size: int | None = None, how: Fit = "resize") -> tuple[tuple[int, int, int], Callable]:
    """Our shape `[H, W, C]` of uint8 images `[h, w, c]`, and the function `[..., h, w, c] -> [..., H, W, C]`.

    "resize" scales both sides to `size`, smoothly (linear interpolation, which averages where it shrinks); the sides'
    proportions change where the image is no square. "pad" keeps every pixel and puts black around it: up to `size`, or
    to the smallest sides that convolutions can take.

    ValueError for a `size` that they cannot take, for an image that is larger than `size` and to be padded, and for one
    that is to be scaled without a size."""
    check_choice("the way to fit an image", how, ("resize", "pad"))
    height, width, channels = shape
    if size is not None:
        check_number("the image size", size, least=LEAST, most=MOST, whole=True)
        if size % STEP:
            raise ValueError(f"the image size must be a multiple of {STEP} from {LEAST} to {MOST}, not {size}")
    if how == "resize":
        if size is None:
            raise ValueError("an image is scaled to a size: give one, 64 is usual")
        return (size, size, channels), _scale(height, width, size)
    sides = tuple(size or max(LEAST, STEP * math.ceil(side / STEP)) for side in (height, width))
    if max(height - sides[0], width - sides[1], max(sides) - MOST) > 0:
        most = size or MOST
        raise ValueError(f"an image of {height} x {width} cannot be padded to {most} x {most}: let it be resized")
    return (sides[0], sides[1], channels), _pad(height, width, *sides)


COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (255, 255, 255),
     (0, 114, 178), (200, 200, 200), (140, 81, 10)], np.uint8,
)  # fmt: skip
"""Of 0/1 planes that are drawn, those of Okabe and Ito first."""


def draw(shape: tuple[int, ...], size: int) -> tuple[tuple[int, int, int], Callable]:
    """Our shape `[size, size, 3]` of 0/1 planes `[H, W, C]` that are drawn as an image, and the function.
    Cells become rectangles whose sides differ by at most a pixel; of several planes in a cell the last one is seen."""
    height, width, planes = shape
    check_number(
        "the size of an image in which planes are drawn", size, least=max(height, width), most=MOST, whole=True
    )
    rows, columns = (np.arange(size) * side // size for side in (height, width))
    colours = COLOURS[np.arange(planes) % len(COLOURS)]

    def drawn(obs: Any) -> Any:
        library, image = _library(obs), np.zeros(3, np.uint8)
        for plane in range(planes):
            image = library.where(obs[..., plane, None], colours[plane], image)
        return image[..., rows, :, :][..., columns, :]

    return (size, size, 3), drawn


def _pad(height: int, width: int, tall: int, wide: int) -> Callable[[Any], Any]:
    """Black around the image, as much on either side."""
    top, left = (tall - height) // 2, (wide - width) // 2
    edges = (top, tall - height - top), (left, wide - width - left), (0, 0)

    def pad(image: Any) -> Any:
        return _library(image).pad(image, [(0, 0)] * (image.ndim - 3) + list(edges))

    return pad


def _scale(height: int, width: int, size: int) -> Callable[[Any], Any]:
    """Linear interpolation as a product with one matrix for each side."""
    rows, columns = _weights(height, size), _weights(width, size)

    def scale(image: Any) -> Any:
        lead, channels = image.shape[:-3], image.shape[-1]
        x = rows @ image.astype(np.float32).reshape(*lead, height, width * channels)
        x = columns @ x.reshape(*lead, size, width, channels)
        return x.round().clip(0, 255).astype(np.uint8)

    return scale


def _weights(old: int, new: int) -> np.ndarray:
    """How much each of `old` pixels counts in each of `new` ones, float32 `[new, old]`; rows sum to 1."""
    stretch = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new
    share = np.maximum(0.0, 1 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch)
    return (share / share.sum(1, keepdims=True)).astype(np.float32)


def _library(image: Any) -> Any:
    """NumPy for its arrays, else `jax.numpy`."""
    if isinstance(image, np.ndarray):
        return np
    import jax.numpy as jnp

    return jnp
