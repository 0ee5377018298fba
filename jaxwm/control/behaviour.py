"""Actor and critic that learn inside dreams as in Dreamer V3: what is left to a system is how it dreams.

H horizon, R dreams, F width of what the heads read; dreams are time first. They are rolled out and evaluated a few at a
time (`learning.pieces`); advantages then wait for the range of all returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from jaxwm.control import actor_critic as ac
from jaxwm.control.policy import Actor
from jaxwm.distributions import TwoHot, sg
from jaxwm.learning.pieces import loss_over_pieces, merge
from jaxwm.learning.share import ALONE, Share
from jaxwm.types import Array


class Evaluated(NamedTuple):
    """A dream as the heads see it, time first."""

    reward: Array  # [H + 1, R]
    cont: Array  # [H + 1, R], discounted
    value: Array  # [H + 1, R]
    returns: Array  # [H, R]
    weight: Array  # [H, R], probability that the dream goes on until there
    spread: Array | None  # [H, R], disagreement of an ensemble of models, where there is one


def evaluate(
    reward: Array, cont: Array, value: TwoHot, slow: Array, lam: Array | float, slow_scale: float
) -> tuple[Array, Evaluated]:
    """Critic losses `[H, R]` (Hafner et al. 2023, equation 5) of dreams `[H + 1, R]`, and the dreams as evaluated.
    `value` learns; `cont` holds the discount, and `slow` are the values of the slow critic."""
    chex.assert_equal_shape((reward, cont, slow))
    guess = sg(value.mean())
    weight = ac.dream_weights(cont)
    returns = ac.lambda_return(reward, guess, cont, jnp.zeros_like(cont), lam)
    now = TwoHot(value.logits[:-1], value.bins)
    loss = ac.twohot_critic_loss(now, returns, slow[:-1], weight, slow_scale)
    return loss, Evaluated(reward, cont, guess, returns, weight, None)


def policy_loss(policy: Actor, actions: Array, advantage: Array, weight: Array, scale: Array) -> tuple[Array, Array]:
    """REINFORCE losses (equation 6) and entropies `[H, R]`, which count `scale` times."""
    entropy = policy.entropy()
    return ac.actor_loss(ac.reinforce(policy, actions, advantage), entropy, weight, scale), entropy


def policy_losses(
    actor: Callable[..., Actor], pol: Any, dreams: tuple[Array, Array, Evaluated], ranges: ac.ReturnRange,
    scale: Array, share: Share = ALONE, constants: tuple[Any, ...] = (),
) -> tuple[Array, Array, ac.ReturnRange, dict[str, Array]]:  # fmt: skip
    """The summed loss of the actor in dreams that come in pieces: features `[n, H + 1, R / n, F]`, actions, evaluated.
    Returns it, the returns `[R, H]`, their new range, and metrics. `actor(pol, feat, *constants)` is the policy; `pol`
    learns."""
    feat, actions, seen = dreams

    def act(pol: Any, _: Any, rows: Any, shared: Any) -> tuple[Array, Array]:
        (feat, actions, advantage, weight), (scale, constants) = rows, shared
        loss, entropy = policy_loss(actor(pol, feat[:-1], *constants), actions[:-1], advantage, weight, scale)
        return loss.sum(), entropy.mean()

    returns = merge(seen.returns.swapaxes(1, 2))  # [R, H]
    ranges = ranges.update(share.gather(returns))
    advantage = (seen.returns - seen.value[:, :-1]) / ranges.scale()
    policy, entropy = loss_over_pieces(act, pol, (), (feat, actions, advantage, seen.weight), (scale, constants))
    metrics = dream_metrics(seen, returns, advantage, share) | {"policy/entropy": entropy.mean()}
    metrics["policy/return_scale"] = ranges.scale()
    return policy, returns, ranges, metrics


def dream_metrics(seen: Evaluated, returns: Array, advantage: Array, share: Share) -> dict[str, Array]:
    """What is reported of dreams: `returns [R, H]`, the rest in pieces."""
    center = share.mean(advantage.mean())
    metrics = {
        "dream/reward": seen.reward.mean(),
        "dream/return": returns[:, 0].mean(),
        "dream/continue": seen.cont.mean(),
        "dream/value": seen.value.mean(),
        "policy/advantage_std": jnp.sqrt(share.mean(jnp.square(advantage - center).mean())),
    }
    return metrics if seen.spread is None else metrics | {"dream/disagreement": seen.spread.mean()}
