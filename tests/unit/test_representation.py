"""The loss that takes the decoder's place: against NumPy, by hand, and on devices that share it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.learning.share import Share
from jaxwm.models.representation import cross_correlation, health, redundancy_loss

REDUNDANCY = 5e-4


def by_numpy(guess: np.ndarray, tokens: np.ndarray, redundancy: float) -> float:
    """The definition, number by number, in float64: correlation coefficients of NumPy, summed."""
    guess, tokens = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (guess, tokens))
    width, total = guess.shape[-1], 0.0
    for i in range(width):
        for j in range(width):
            c = np.corrcoef(guess[:, i], tokens[:, j])[0, 1]
            total += (c - 1) ** 2 if i == j else redundancy * c**2
    return total


def data(rows: tuple[int, ...] = (4, 6), width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A guess and the tokens it is about: related, with means and scales of their own."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(*rows, width)) * np.arange(1, width + 1) + 3
    guess = 0.3 * tokens + rng.normal(size=tokens.shape) - 2
    return guess.astype(np.float32), tokens.astype(np.float32)


loss = jax.jit(lambda guess, tokens: redundancy_loss(guess, tokens, REDUNDANCY))


def test_the_loss_is_that_of_the_definition():
    guess, tokens = data()
    np.testing.assert_allclose(loss(guess, tokens), by_numpy(guess, tokens, REDUNDANCY), rtol=1e-5)
    scaled, moved = guess * np.float32([2, 0.1, 5, 1, 3]), guess + np.float32(40)  # standardised: neither matters
    for same in (scaled, moved):
        np.testing.assert_allclose(loss(same, tokens), loss(guess, tokens), rtol=1e-4)


def test_the_gradient_is_that_of_the_definition():
    """That of the guess, although its mean counts as a constant, by central differences; tokens have none."""
    guess, tokens = data()
    ours, none = jax.jit(jax.grad(loss, (0, 1)))(guess, tokens)
    assert not np.asarray(none).any()
    rng, step = np.random.default_rng(1), 1e-5
    for _ in range(3):
        way = rng.normal(size=guess.shape)
        ahead, behind = (by_numpy(guess + s * step * way, tokens, REDUNDANCY) for s in (1, -1))
        np.testing.assert_allclose((np.asarray(ours, np.float64) * way).sum(), (ahead - behind) / (2 * step), rtol=1e-4)


def test_perfect_and_constant_numbers():
    """Tokens that a linear map of the guess is lose nothing on the diagonal; a constant, on either side, loses 1."""
    _, tokens = data((64,))
    c = jax.jit(cross_correlation)(2 * tokens - 7, tokens)
    np.testing.assert_allclose(c, np.corrcoef(tokens.T), atol=1e-5)
    still = tokens.copy()
    still[:, 2] = 0.1
    for pair in ((still, tokens), (tokens, still)):
        grown = loss(*pair)
        assert np.isfinite(grown) and 1 - 1e-3 < grown < 1 + 1e-1
        assert np.isfinite(jax.grad(loss)(*pair)).all()


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_share_the_loss_of_the_whole_batch(devices):
    """Each has its rows: all say the loss of one device with all rows, and the mean of their gradients is its gradient.
    The gradient is that of the parameters behind the guess. Mapping over a named axis stands for devices here."""
    guess, tokens = data((8, 3))
    weight = np.random.default_rng(2).normal(size=(5, 5)).astype(np.float32)

    def one(weight, guess, tokens, share):
        return redundancy_loss(guess @ weight, tokens, REDUNDANCY, share)

    def apart(guess, tokens):
        share = Share("share", split=True)
        value, gradient = jax.value_and_grad(one)(weight, guess, tokens, share)
        return value, share.mean(gradient), health(guess, share)

    alone = jax.jit(jax.value_and_grad(lambda w: one(w, guess, tokens, Share())))(weight)
    rows = [x.reshape(devices, -1, *x.shape[1:]) for x in (guess, tokens)]
    value, gradient, found = jax.jit(jax.vmap(apart, axis_name="share"))(*rows)
    np.testing.assert_allclose(value, np.full(devices, alone[0]), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.stack([alone[1]] * devices), rtol=1e-4, atol=1e-6)
    for name, number in jax.jit(health)(guess).items():
        np.testing.assert_allclose(found[name], np.full(devices, number), rtol=1e-5)


def test_health_tells_collapse():
    """Independent numbers of one size have the full rank, copies of one number rank 1, constants no spread."""
    rng = np.random.default_rng(3)
    free = np.linalg.qr(rng.normal(size=(64, 6)) - 0.0)[0]
    free = np.linalg.qr(free - free.mean(0))[0] * 8  # columns without mean, orthogonal, with deviation 1
    found = jax.jit(health)
    np.testing.assert_allclose(found(free)["latent/rank"], 6, rtol=1e-4)
    np.testing.assert_allclose(found(free)["latent/std"], 1, rtol=1e-4)
    copies = jnp.repeat(free[:, :1], 6, 1) * jnp.arange(1, 7)
    np.testing.assert_allclose(found(copies)["latent/rank"], 1, rtol=1e-4)
    dead = found(jnp.ones((8, 4)))
    assert float(dead["latent/std"]) == 0 and np.isfinite(float(dead["latent/rank"]))
