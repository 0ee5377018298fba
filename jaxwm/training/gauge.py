"""The exploitation gauge: what a policy earns in its dreams, minus what it earns for real from the same states.

A policy that is trained in a model finds the model's mistakes. Then dreamed returns rise above real ones, long before
the learning curve falls. Both are measured over the newest stretches of the replay: a dream starts in the latent of a
state that was really visited, and is compared with the rewards that really followed there."""

import jax
import jax.numpy as jnp

from jaxwm import replay
from jaxwm.replay import Ring
from jaxwm.types import Agent, Array, Index, Key, PyTree

CONTEXT = 2  # records before the dream: the stored latent of the first, and the observation to start from
WINDOWS = 64  # most stretches that are compared; fewer where the replay holds fewer that do not overlap


def gauge(agent: Agent, state: PyTree, ring: Ring, key: Key, horizon: int) -> dict[str, Array]:
    """Mean undiscounted return over `horizon` steps, of one member: scalars `dreamed`, `real` and `gap`.
    The dream follows the present policy, the real rewards were earned by policies of the last few hundred steps.
    Windows that start at the end of an episode do not count; where a time limit cuts an episode, the dream is cut too.
    NaN where no window is left."""
    windows = _windows(ring, horizon)
    context = jax.tree.map(lambda x: x[:, :CONTEXT], windows)
    assert agent.imagine is not None
    dream = agent.imagine(state, context, None, key, horizon)
    last, terminal = windows.is_last[:, CONTEXT:], windows.is_terminal[:, CONTEXT:]
    shown = _before(1.0 - last)  # 1 up to the step that ends the episode
    uncut = _before(1.0 - (last & ~terminal))
    valid = 1.0 - windows.is_last[:, CONTEXT - 1]
    dreamed = (dream.reward * _before(dream.cont) * uncut).sum(1)
    real = (windows.reward[:, CONTEXT:] * shown).sum(1)
    mean = lambda x: (x * valid).sum() / valid.sum()  # noqa: E731
    return {"dreamed": mean(dreamed), "real": mean(real), "gap": mean(dreamed - real)}


def _before(x: Array) -> Array:
    """Product of all entries before each one, along time: `[B, H]`, 1 at first."""
    return jnp.cumprod(jnp.concatenate([jnp.ones_like(x[:, :1]), x[:, :-1]], 1), 1)


def _windows(ring: Ring, horizon: int) -> PyTree:
    """The newest stretches `[B, CONTEXT + horizon]`, side by side in time and over the environments."""
    length, num_envs = CONTEXT + horizon, ring.data.reward.shape[1]
    fit = max(1, replay.capacity(ring) // length)
    count = jnp.arange(min(WINDOWS, fit * num_envs))
    start = ring.rows - length * (1 + count // num_envs)
    start = jnp.maximum(start, replay.oldest(ring))  # early on the same stretch counts twice: the mean forgives it
    return replay.take(ring, Index(start, count % num_envs), length)
