"""Images of any size: padded, scaled, the same for NumPy and JAX."""

from __future__ import annotations

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs import images

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("shape", "size", "how"), [
    ((84, 84, 1), 64, "resize"), ((30, 100, 3), 64, "resize"), ((63, 63, 3), None, "pad"), ((9, 40, 2), 48, "pad"),
])  # fmt: skip
def test_numpy_and_jax_agree(shape, size, how):
    ours, fit = images.fit(shape, size, how)
    batch = RNG.integers(0, 256, (2, 3, *shape), np.uint8)
    out = fit(batch)
    assert out.shape == (2, 3, *ours) and out.dtype == np.uint8 and ours[0] % 16 == 0
    traced = np.asarray(jax.jit(fit)(jnp.asarray(batch)))
    assert np.abs(out.astype(int) - traced).max() <= (1 if how == "resize" else 0)  # rounding of a half


def test_padding_keeps_every_pixel_in_the_middle():
    image = RNG.integers(1, 256, (63, 50, 3), np.uint8)
    ours, fit = images.fit(image.shape, None, "pad")
    assert ours == (64, 64, 3)
    out = fit(image)
    assert (out[:63, 7:57] == image).all() and out.astype(int).sum() == image.astype(int).sum()


def test_scaling_keeps_what_is_even_and_averages():
    _, fit = images.fit((128, 96, 3), 64)
    assert (fit(np.full((128, 96, 3), 137, np.uint8)) == 137).all()
    stripes = np.zeros((128, 96, 3), np.uint8)
    stripes[::2] = 200
    assert np.abs(fit(stripes)[2:-2].astype(int) - 100).max() <= 1
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[:, None, None] * 4, (48, 48, 1))
    grown = images.fit((48, 48, 1), 96)[1](ramp)[:, 0, 0].astype(int)
    assert (np.diff(grown) >= 0).all() and (grown[0], grown[-1]) == (0, 188)


@pytest.mark.parametrize(("arguments", "words"), [
    (((84, 84, 3), 60), "multiple of 16"), (((84, 84, 3), 32), "image size"), (((84, 84, 3),), "give one, 64 is usual"),
    (((84, 84, 3), 64, "pad"), "cannot be padded to 64 x 64"), (((300, 84, 3), None, "pad"), "cannot be padded to 256"),
    (((84, 84, 3), 64, "crop"), "must be one of 'resize', 'pad'"),
])  # fmt: skip
def test_sizes_that_do_not_work(arguments, words):
    with pytest.raises(ValueError, match=words):
        images.fit(*arguments)


class Screen(gym.Env):
    """A grey screen without a channel axis, next to a number."""

    def __init__(self, shape=(40, 50)):
        image = gym.spaces.Box(0, 255, shape, np.uint8)
        self.observation_space = gym.spaces.Dict(screen=image, score=gym.spaces.Box(0, 9, (), np.int64))
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"screen": np.full(self.observation_space["screen"].shape, 9, np.uint8), "score": 3}, {}

    def step(self, action):
        return *self.reset()[:1], 0.0, False, False, {}


def test_planes_are_drawn_as_coloured_rectangles():
    planes = np.zeros((4, 3, 2), bool)
    planes[0, 0, 0] = planes[3, 2, 1] = planes[3, 2, 0] = True
    shape, draw = images.draw(planes.shape, 7)
    image = draw(planes)
    assert shape == image.shape == (7, 7, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[:2, :3], np.broadcast_to(images.COLOURS[0], (2, 3, 3)))
    np.testing.assert_array_equal(image[6:, 5:], np.broadcast_to(images.COLOURS[1], (1, 2, 3)))
    assert not image[2:6].any()
    np.testing.assert_array_equal(jax.jit(draw)(jnp.asarray(planes)), image)


def test_catch_is_drawn_where_an_image_size_is_given():
    plain, drawn = envs.make("gymnax/Catch-bsuite", 2), envs.make("gymnax/Catch-bsuite", 2, image_size=16)
    assert drawn.spec.obs == jax.ShapeDtypeStruct((16, 16, 3), np.uint8)
    cells = np.asarray(jax.jit(plain.reset)(jax.random.key(0))[1].obs)
    image = np.asarray(jax.jit(drawn.reset)(jax.random.key(0))[1].obs)
    rows, columns = np.arange(16) * 10 // 16, np.arange(16) * 5 // 16
    np.testing.assert_array_equal(image.any(-1), cells[:, rows][:, :, columns, 0])


def test_any_environment_of_gymnasium_may_be_fitted():
    env = envs.from_gymnasium(lambda seed: Screen(), 2, fit="pad")
    assert env.spec.obs["screen"].shape == (48, 64, 1)
    _, step = env.reset(jax.random.split(jax.random.key(0), 1))
    assert step.obs["screen"].astype(int).sum() == 2 * 9 * 40 * 50 and step.obs["score"].tolist() == [[[3], [3]]]
    assert envs.from_gymnasium(lambda seed: Screen(), 2, image_size=64).spec.obs["screen"].shape == (64, 64, 1)
    with pytest.raises(ValueError, match="the sensor 'screen': an image of 90 x 50 cannot be padded to 64 x 64"):
        envs.from_gymnasium(lambda seed: Screen((90, 50)), 2, image_size=64, fit="pad")
