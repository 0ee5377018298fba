"""Diffusion and its U-Net: published numbers, samplers against exact answers, what a condition and a mask do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.models.diffusion import EDM, noise_levels, rounded, sample
from jaxwm.nets.layers import apply
from jaxwm.nets.unet import Attention, GroupNorm, Halve, UNet, parts

# --- Numbers ------------------------------------------------------------------------------------------------------


def test_the_published_noise_levels_and_preconditioning():
    """DIAMOND: three passes at 5, 0.283 and 0.002, with an offset noise of 0.3."""
    levels = noise_levels(3)
    np.testing.assert_allclose(levels, [5, 0.283, 0.002, 0], atol=5e-4)
    np.testing.assert_array_equal(noise_levels(1), [5, 0])
    found = EDM().scales(jnp.asarray(levels[:3]))
    np.testing.assert_allclose(found.skip, [0.010, 0.595, 0.735], atol=1e-3)
    np.testing.assert_allclose(found.out, [0.498, 0.318, 0.257], atol=1e-3)
    np.testing.assert_allclose(found.into, [0.199, 1.543, 1.715], atol=1e-3)
    np.testing.assert_allclose(found.level, np.log(np.hypot(levels[:3], 0.3)) / 4, atol=1e-6)


def test_levels_to_learn_from_are_log_normal_and_cut():
    found = np.asarray(EDM().level(jnp.array([-10.0, -1.0, 0.0, 1.0, 10.0])))
    np.testing.assert_allclose(found, [0.002, np.exp(-1.6), np.exp(-0.4), np.exp(0.8), 20.0], rtol=1e-5)


def test_the_target_puts_the_clean_picture_back_together():
    """D(x) = skip x + out F(into x), so a network that hits its target is right, up to 8 bits."""
    rng, edm = np.random.default_rng(0), EDM()
    clean = rng.integers(0, 256, (3, 4, 5, 2)) / 255 * 2 - 1
    sigma = np.array([0.01, 1.0, 10.0], np.float32)
    noise, offset = rng.normal(size=clean.shape), rng.normal(size=(3, 1, 1, 2))
    noisy = edm.noisy(clean, sigma, noise, offset)
    np.testing.assert_allclose(noisy, clean + sigma[:, None, None, None] * noise + 0.3 * offset, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(edm.clean(noisy, edm.target(clean, noisy, sigma), sigma), clean, atol=1e-5)


def test_the_target_has_unit_variance():
    """What preconditioning is for (Karras et al. 2022, appendix B.6), of data with the assumed deviation."""
    rng, edm = np.random.default_rng(0), EDM()
    clean = 0.5 * rng.normal(size=(4000, 2, 2, 1))
    for level in (0.01, 0.5, 5.0):
        sigma, offset = np.full(len(clean), level), rng.normal(size=(len(clean), 1, 1, 1))
        noisy = edm.noisy(clean, sigma, rng.normal(size=clean.shape), offset)
        assert np.std(edm.target(clean, noisy, sigma)) == pytest.approx(1.0, abs=0.05)
        assert np.std(noisy * edm.scales(sigma[:1]).into) == pytest.approx(1.0, abs=0.05)


def test_pictures_are_rounded_to_8_bits():
    whole = np.arange(256) / 255 * 2 - 1
    np.testing.assert_allclose(rounded(whole), whole, atol=1e-6)
    np.testing.assert_allclose(rounded(np.array([-3.0, 2.0, 0.4 / 127.5 - 1])), [-1, 1, -1], atol=1e-6)


# --- Samplers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heun", [False, True])
def test_a_denoiser_that_knows_the_answer_gives_it(heun):
    answer = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3)
    for steps in (1, 3):
        found = jax.jit(lambda x, n=steps: sample(lambda x, s: answer, x, noise_levels(n), heun))(answer + 3.0)
        np.testing.assert_allclose(found, answer, atol=1e-4)


def test_samplers_against_a_loop_and_the_exact_flow():
    """For normal data of deviation d the flow is x(s) ~ sqrt(s^2 + d^2); Heun's steps stay nearer to it."""
    d, calls = 0.5, []

    def denoise(x, sigma):
        calls.append(1)
        return x * d**2 / (d**2 + sigma**2)

    levels, x = noise_levels(32), np.array([[[[2.0]]]], np.float32)
    expected = 2.0
    for now, then in itertools.pairwise(levels):
        expected += (then - now) * (expected - expected * d**2 / (d**2 + now**2)) / now
    euler, heun = (float(sample(denoise, x, levels, how)[0, 0, 0, 0]) for how in (False, True))
    exact = 2.0 * d / np.hypot(levels[0], d)
    assert euler == pytest.approx(expected, rel=1e-4)
    assert abs(heun - exact) < abs(euler - exact) / 5
    assert len(calls) == 4, "one trace per scan, two in a step of Heun's, one in its last step"


# --- Networks -----------------------------------------------------------------------------------------------------


def test_groups_and_heads_divide_the_channels():
    assert [parts(n, 32) for n in (4, 32, 64, 96, 100)] == [1, 1, 2, 3, 2] and [parts(n, 8) for n in (6, 64)] == [1, 8]


def test_group_norm_and_what_a_condition_does_to_it():
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 5, 64)).astype(np.float32)
    groups = x.reshape(2, 15, 2, 32)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)
    expected = expected.reshape(x.shape)
    plain = GroupNorm()
    np.testing.assert_allclose(apply(plain, plain.init(jax.random.key(0), x), x), expected, atol=1e-4)
    cond = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    params = plain.init(jax.random.key(0), x, cond)
    kernel = params["params"]["steer"]["kernel"]
    scale, shift = (np.asarray(k)[:, None, None] for k in jnp.split(kernel, 2, -1))
    np.testing.assert_allclose(apply(plain, params, x, cond), expected * (1 + scale) + shift, atol=1e-4)


def test_halving_is_a_convolution_of_stride_2():
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    halve = Halve()
    params = halve.init(jax.random.key(0), x)
    kernel = params["params"]["conv"]["kernel"].reshape(3, 3, 3, 3)
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=numbers)
    np.testing.assert_allclose(apply(halve, params, x), expected, atol=1e-5)


def test_attention_against_a_loop():
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 16)).astype(np.float32)
    net = Attention()
    params = net.init(jax.random.key(0), x)
    np.testing.assert_array_equal(apply(net, params, x), x)  # adds nothing at first
    params["params"]["out"]["kernel"] = jnp.eye(16)
    flat = np.asarray(apply(GroupNorm(), {"params": params["params"]["norm"]}, x)).reshape(6, 16)
    query, key, value = np.split(flat @ np.asarray(params["params"]["in"]["kernel"]), 3, -1)
    out = np.zeros((6, 16), np.float32)
    for head in (slice(0, 8), slice(8, 16)):
        score = np.exp(query[:, head] @ key[:, head].T / np.sqrt(8))
        out[:, head] = score / score.sum(-1, keepdims=True) @ value[:, head]
    np.testing.assert_allclose(apply(net, params, x), x + out.reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (10, 5)], ids=str)
def test_a_u_net_keeps_the_size_and_starts_without_residuals(shape):
    x, cond = jnp.ones((2, *shape, 4)), jnp.ones((2, 3))
    net = UNet((4, 8, 8), 1)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), x, cond))
    assert jax.eval_shape(lambda p: apply(net, p, x, cond), params).shape == x.shape
    names = set(params["params"]["down"])
    assert names == {"halve1", "halve2", "block0_0", "block1_0", "block2_0", "middle0", "middle1"}
    assert (
        "attention" in params["params"]["down"]["middle1"] and "attention" not in params["params"]["down"]["block2_0"]
    )
    assert {f"up{i}_{j}" for i in range(3) for j in range(2)} | {"double0", "double1", "down"} == set(params["params"])
