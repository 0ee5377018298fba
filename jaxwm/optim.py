"""Gradient transformations that optax does not have in the form these systems use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def clip_by_tensor_agc(clip: float = 0.3, floor: float = 1e-3) -> optax.GradientTransformation:
    """Adaptive gradient clipping (Brock et al. 2021) per tensor, as in Dreamer V3: |g| <= clip * max(floor, |w|).

    `optax.adaptive_grad_clip` clips per output unit, which is another algorithm.
    """

    def update(updates, state, params=None):
        def one(grad, param):
            limit = clip * jnp.maximum(floor, jnp.linalg.norm(param.ravel()))
            return grad / jnp.maximum(1.0, jnp.linalg.norm(grad.ravel()) / limit)

        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def laprop(agc: float = 0.3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-20):
    """AGC, then RMS scaling, then momentum: the order of LaProp (Ziyin et al. 2020). Gives ascent directions.

    The learning rate is applied by the caller, because it may differ between members of a population.
    """
    return optax.chain(
        clip_by_tensor_agc(agc),
        optax.scale_by_rms(beta2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(beta1, debias=True),
    )


def warmup(step: jax.Array, updates: int) -> jax.Array:
    """Linear ramp from 0 at `step` 0 to 1 at `updates`; 1 throughout for `updates` 0."""
    return jnp.minimum(1.0, step / updates) if updates else jnp.ones(())


def decay(step: jax.Array, updates: int) -> jax.Array:
    """Linear fall from 1 at `step` 0 to 0 at `updates`; 1 throughout for `updates` 0."""
    return jnp.maximum(0.0, 1 - step / updates) if updates else jnp.ones(())
