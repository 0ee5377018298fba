"""Trust-region policy optimisation (Schulman et al. 2015): a step of natural gradient that is as long as the divergence
from the old policy allows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxwm.types import Array, PyTree


class Settings(NamedTuple):
    """How far and how exactly to step."""

    divergence: float | Array = 0.01  # Highest mean KL divergence of the new policy from the old one, delta.
    iterations: int = 10  # Of the conjugate gradients.
    damping: float = 1e-2  # Added to the diagonal of the Fisher matrix, which float32 knows no better than that.
    trials: int = 10  # Of the line search.
    shrink: float = 0.8  # Length of a trial next to that of the last.


def step(
    gain: Callable[[PyTree], Array], divergence: Callable[[PyTree], Array], params: PyTree, how: Settings
) -> tuple[PyTree, dict[str, Array]]:
    """Maximise `gain(params) []` within the trust region `divergence(params) <= delta`, which is 0 where it begins.

    The direction solves F d = g by conjugate gradients, with F the Hessian of the divergence; its length is first the
    one that reaches delta in a quadratic model, and shrinks until the gain grows and the region holds (appendix C).
    Where no trial does, or a number is not finite, the parameters stay as they are.

    Returns:
        The new parameters and metrics: `gain` (how much was gained), `divergence`, `accepted`."""
    flat, unravel = ravel_pytree(params)
    gain_of, divergence_of = (lambda x, fn=fn: fn(unravel(x)) for fn in (gain, divergence))
    before, slope = jax.value_and_grad(gain_of)(flat)
    towards = jax.grad(divergence_of)
    curved = lambda d: jax.jvp(towards, (flat,), (d,))[1] + how.damping * d  # noqa: E731
    direction = conjugate_gradients(curved, slope, how.iterations)
    bend = direction @ curved(direction)
    full = jnp.sqrt(2 * how.divergence / jnp.maximum(bend, 1e-12)) * direction

    def attempt(best: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
        place = flat + how.shrink**i * full
        found, apart = gain_of(place), divergence_of(place)
        good = (found > before) & (apart <= how.divergence) & jnp.isfinite(place).all() & ~best[3]
        pick = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        return (pick(place, best[0]), pick(found, best[1]), pick(apart, best[2]), best[3] | good), None

    start = flat, before, jnp.zeros(()), jnp.zeros((), bool)
    (place, after, apart, accepted), _ = jax.lax.scan(attempt, start, jnp.arange(how.trials, dtype=jnp.float32))
    metrics = {"gain": after - before, "divergence": apart, "accepted": accepted.astype(jnp.float32)}
    return unravel(place), metrics


def conjugate_gradients(product: Callable[[Array], Array], target: Array, iterations: int) -> Array:
    """The solution `[n]` of F x = target, where `product(x)` is F x and F is symmetric and positive definite."""

    def improve(_: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, rest, along, size = carry
        moved = product(along)
        length = size / jnp.maximum(along @ moved, 1e-20)
        left = rest - length * moved
        new = left @ left
        return x + length * along, left, left + new / jnp.maximum(size, 1e-20) * along, new

    start = jnp.zeros_like(target), target, target, target @ target
    return jax.lax.fori_loop(0, iterations, improve, start)[0]
