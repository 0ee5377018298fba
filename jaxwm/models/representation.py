"""Latents that are learned without a decoder: what they say of an observation agrees with what the encoder made of it.

R rows of this device, E numbers that the encoder makes of an observation (its tokens), F numbers of `feat`."""

import jax
import jax.numpy as jnp

from jaxwm.distributions import sg
from jaxwm.learning.share import ALONE, Share
from jaxwm.types import Array

EPS = 1e-10  # Added to variances: a number that never changes counts as 0, and not as its rounding errors.


def cross_correlation(guess: Array, tokens: Array, share: Share = ALONE) -> Array:
    """Correlations `[E, E]` of each number of `guess [R, E]`, first, with each of `tokens`, over the rows of all
    devices. `tokens` are constants.
    Both are standardised by moments of the whole batch. Its means and products are sums over rows, so devices exchange
    these and not the rows. No gradient is lost where the mean of `guess` is a constant: its products with `tokens`
    around their mean do not depend on it, and the variance is least there."""
    guess, tokens = guess.astype(jnp.float32), sg(tokens).astype(jnp.float32)
    tokens -= share.mean(tokens.mean(0))
    tokens *= jax.lax.rsqrt(share.mean(jnp.square(tokens).mean(0)) + EPS)
    guess -= share.mean(sg(guess).mean(0))
    scale = jax.lax.rsqrt(share.statistic(jnp.square(guess).mean(0)) + EPS)
    return scale[:, None] * share.statistic(guess.T @ tokens / len(guess))


def redundancy_loss(guess: Array, tokens: Array, redundancy: float, share: Share = ALONE) -> Array:
    """The loss of Barlow Twins (Zbontar et al. 2021, eq. 1) between `guess` and constants `tokens [..., E]`.
    Each number of `guess` is to go along with its own token, C_ii = 1, and, weighted with `redundancy`, with no other
    one, C_ij = 0. It is no mean over rows: the devices of `share` all return the loss of the whole batch, and the mean
    of their gradients is its gradient."""
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    c = cross_correlation(flat(guess), flat(tokens), share)
    own = jnp.diagonal(c)
    return jnp.square(own - 1).sum() + redundancy * (jnp.square(c).sum() - jnp.square(own).sum())


def health(feat: Array, share: Share = ALONE) -> dict[str, Array]:
    """Whether latents `feat [..., F]` have collapsed: the mean standard deviation of a number, and the effective rank.
    The rank is (sum l)^2 / sum l^2 over the eigenvalues l of the covariance: 1 where all numbers move as one, F where
    they are uncorrelated and equal. Sum l^2 is that of products of rows, so nothing is decomposed."""
    rows = sg(feat).reshape(-1, feat.shape[-1]).astype(jnp.float32)
    rows -= share.mean(rows.mean(0))
    variance = share.mean(jnp.square(rows).mean(0))
    everyone = share.gather(rows)
    squares = share.mean(jnp.square(rows @ everyone.T).sum()) / (len(rows) * len(everyone))
    return {"latent/std": jnp.sqrt(variance).mean(), "latent/rank": jnp.square(variance.sum()) / (squares + EPS)}
