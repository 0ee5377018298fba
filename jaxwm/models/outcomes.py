"""What a world model says of rewards and ends: a reward as its sign or in bins, an end as a logit.

Letters: B batch, T predicted steps. Both arrive with the frame that is predicted."""

import chex
import jax
import jax.numpy as jnp

from jaxwm.distributions import TwoHot, one_hot, symexp_bins, twohot
from jaxwm.learning.share import ALONE, Share
from jaxwm.types import Array, Record


def reward_bins(sign: bool, bins: int) -> Array:
    """Values of the bins: the three signs, or `bins` of them in symexp space."""
    return jnp.array([-1.0, 0.0, 1.0]) if sign else symexp_bins(bins)


def outcome_losses(reward: TwoHot, end: Array, record: Record, sign: bool, share: Share = ALONE) -> dict[str, Array]:
    """Mean cross-entropies of rewards and ends of records `[B, T + 1]`, from what was predicted of the last T.
    Nothing is learned across the start of an episode."""
    chex.assert_equal_shape((end, record.reward[:, 1:]))
    target = jnp.sign(record.reward[:, 1:]) if sign else record.reward[:, 1:]
    over = jax.nn.softplus(end) - end * record.is_terminal[:, 1:]
    valid = 1.0 - record.is_first[:, 1:]
    losses = {"reward": reward.loss(twohot(target, reward.bins)), "end": over}
    return {name: share.weighted_mean(loss, valid) for name, loss in losses.items()}


def drawn_outcomes(reward: TwoHot, end: Array, uniform: Array, sign: bool) -> tuple[Array, Array]:
    """Rewards and continues, 0 or 1, that `uniform [..., 2]` decides.
    Rewards that are not signs are expected ones: a rare bin is too far away to draw it."""
    drawn = reward.bins[one_hot(reward.logits).invert(uniform[..., 0])] if sign else reward.mean()
    return drawn, (uniform[..., 1] >= jax.nn.sigmoid(end)).astype(jnp.float32)
