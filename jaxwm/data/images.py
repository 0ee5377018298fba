"""Sensors of a recording as they are wanted: some of them, and images of another size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxwm.data.recording import Episode, Recording
from jaxwm.errors import check_number, suggest


def resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images uint8 `[..., H, W, C]` as `[..., height, width, C]`: each new pixel is the mean of what it covers, or lies
    between its neighbours where it covers less than one."""
    *lead, old_height, old_width, channels = images.shape
    if (old_height, old_width) == (height, width):
        return images
    smaller = height <= old_height and width <= old_width
    how = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    layers = images if channels == 3 else np.moveaxis(images, -1, -3)
    layers = layers.reshape(-1, *layers.shape[-3:] if channels == 3 else (old_height, old_width))
    out = np.stack([np.asarray(Image.fromarray(x).resize((width, height), how)) for x in layers])
    if channels == 3:
        return out.reshape(*lead, height, width, 3)
    return np.ascontiguousarray(np.moveaxis(out.reshape(*lead, channels, height, width), -3, -1))


def is_image(struct: jax.ShapeDtypeStruct) -> bool:
    """Whether a sensor is uint8 `[H, W, C]`."""
    return struct.dtype == np.uint8 and len(struct.shape) == 3


def viewed(recording: Recording, image_size: int | None = None, sensors: str | None = None) -> Recording:
    """A recording with images of `image_size` by `image_size`, and only those of its sensors that `sensors` names,
    separated by commas. ValueError where it has no image or no such sensor, or where sizes differ and stay so."""
    if sensors is not None:
        recording = _chosen(recording, str(sensors).split(","))
    if image_size is None and recording.mixed:
        raise ValueError(recording.mixed)
    if image_size is None:
        return recording
    check_number("image_size", image_size, least=1, whole=True)
    obs = recording.spec.obs
    if not any(map(is_image, jax.tree.leaves(obs))):
        raise ValueError(f"{recording.path} holds no images: leave image_size out")

    def struct(x: Any) -> Any:
        return jax.ShapeDtypeStruct((image_size, image_size, x.shape[-1]), x.dtype) if is_image(x) else x

    def load(episode: int, first: int, count: int) -> Episode:
        piece = recording.load(episode, first, count)
        small = lambda s, x: resized(x, image_size, image_size) if is_image(s) else x  # noqa: E731
        return piece._replace(obs=jax.tree.map(small, obs, piece.obs))

    return recording._replace(spec=replace(recording.spec, obs=jax.tree.map(struct, obs)), load=load)


def _chosen(recording: Recording, names: list[str]) -> Recording:
    obs = recording.spec.obs
    if not isinstance(obs, Mapping):
        raise ValueError(f"{recording.path} has one sensor only: leave sensors out")
    for name in names:
        if name not in obs:
            raise ValueError(f"{recording.path} has no sensor {name!r}; {suggest(name, obs)}")
    pick = lambda x: {name: x[name] for name in names}  # noqa: E731

    def load(episode: int, first: int, count: int) -> Episode:
        piece = recording.load(episode, first, count)
        return piece._replace(obs=pick(piece.obs))

    return recording._replace(spec=replace(recording.spec, obs=pick(obs)), load=load)
