"""What an action space is to a network: how actions are encoded, drawn and sized, for every kind of space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.distributions import normal_noise
from jaxwm.errors import check_number
from jaxwm.types import ActionSpace, Array, Box, Discrete, Key, Mixed, MultiDiscrete, Record, Spec, Step, action_dtype


def choices(space: ActionSpace) -> tuple[int, ...]:
    """Number of options of every independent discrete choice; empty for a `Box`."""
    if isinstance(space, Discrete):
        return (space.n,)
    return space.n if isinstance(space, MultiDiscrete | Mixed) else ()


def vector_size(space: ActionSpace) -> int:
    """Entries of the vector in an action; 0 where there is none."""
    return space.size if isinstance(space, Box | Mixed) else 0


def separate(space: Mixed, action: Array) -> tuple[Array, Array]:
    """The choices int32 `[..., len(n)]` and the vector `[..., size]` of actions."""
    count = len(space.n)
    return action[..., :count].astype(jnp.int32), action[..., count:]


def head_sizes(space: ActionSpace) -> dict[str, int]:
    """Outputs of an actor's last layer by name."""
    sizes = {f"logits{i}": n for i, n in enumerate(choices(space))}
    vector = vector_size(space)
    return sizes | ({"mean": vector, "std": vector} if vector else {})


def action_size(space: ActionSpace) -> int:
    """Width A of an encoded action."""
    return sum(choices(space)) + vector_size(space)


def encode(space: ActionSpace, action: Array) -> Array:
    """An action as numbers for a network: one-hot choices side by side, then the vector itself, float32 `[..., A]`."""
    if isinstance(space, Box):
        return action
    vector: list[Array] = []
    if isinstance(space, Mixed):
        parts, numbers = separate(space, action)
        vector = [numbers]
    else:
        parts = action[..., None] if isinstance(space, Discrete) else action
    return jnp.concatenate([*(jax.nn.one_hot(parts[..., i], n) for i, n in enumerate(choices(space))), *vector], -1)


def blank(space: ActionSpace, num: int) -> Array:
    """A placeholder action `[num, ...]` of the right shape and dtype."""
    return jnp.zeros((num,) if isinstance(space, Discrete) else (num, noise_size(space)), action_dtype(space))


def blank_step(spec: Spec, num: int) -> Step:
    """The shapes of a step `[num, ...]` of an environment."""
    obs = jax.tree.map(lambda s: jax.ShapeDtypeStruct((num, *s.shape), s.dtype), spec.obs)
    flag = jax.ShapeDtypeStruct((num,), jnp.bool_)
    return Step(obs, jax.ShapeDtypeStruct((num,), jnp.float32), flag, flag, flag)  # type: ignore[arg-type]


def noise_size(space: ActionSpace) -> int:
    """Uniform numbers behind one random choice: one for each of its parts."""
    return len(choices(space)) + vector_size(space)


def noise(space: ActionSpace, uniform: Array) -> Array:
    """What decides random choices, from `uniform [..., noise_size(space)]` in [0, 1): normal for vectors.
    The last axis is gone where there is one choice."""
    if isinstance(space, Mixed):
        count = len(space.n)
        return jnp.concatenate([uniform[..., :count], normal_noise(uniform[..., count:])], -1)
    if isinstance(space, Box):
        return normal_noise(uniform)
    return uniform[..., 0] if isinstance(space, Discrete) else uniform


def random_action(space: ActionSpace, key: Key, num: int, legal: Array | None = None) -> Array:
    """Uniform actions `[num, ...]`; of choices those that are `legal [num, A]`, where that is said."""
    if isinstance(space, Mixed):
        parts = random_action(MultiDiscrete(space.n), jax.random.fold_in(key, 0), num, legal)
        return jnp.concatenate([parts, random_action(Box(space.size), jax.random.fold_in(key, 1), num)], -1)
    if isinstance(space, Box):
        return jax.random.uniform(key, (num, space.size), minval=-1.0, maxval=1.0)
    if legal is not None:
        odds = [jnp.where(mask, 0.0, -jnp.inf) for mask in masks_of(space, legal)]
        if isinstance(space, Discrete):
            return jax.random.categorical(key, odds[0])
        return jnp.stack([jax.random.categorical(jax.random.fold_in(key, i), x) for i, x in enumerate(odds)], -1)
    parts = [jax.random.randint(jax.random.fold_in(key, i), (num,), 0, n) for i, n in enumerate(choices(space))]
    return parts[0] if isinstance(space, Discrete) else jnp.stack(parts, -1)


def masks_of(space: ActionSpace, legal: Array | None) -> list[Any]:
    """The mask `[..., n]` of every discrete choice, cut out of `legal [..., A]`; None for each where there is none.
    Where nothing is legal for a choice, everything is."""
    sizes = choices(space)
    if legal is None:
        return [None] * len(sizes)
    masks = jnp.split(legal, np.cumsum(sizes)[:-1], -1)
    return [mask | ~mask.any(-1, keepdims=True) for mask in masks]


def wide(flag: Array, like: Array) -> Array:
    """A flag `[N]` with axes of size 1 behind it, as many as `like [N, ...]` has."""
    return flag.reshape(-1, *(1,) * (like.ndim - 1))


def check_dream(space: ActionSpace, context: Record, actions: Array | None, horizon: int, least: int = 1) -> None:
    """ValueError where the arguments of `Agent.imagine` do not fit; a context has `least` records."""
    check_number("horizon", horizon, least=1, whole=True)
    check_number("the length of the context", context.reward.shape[-1], least=least)
    if actions is not None:
        expected = (len(context.reward), horizon, *blank(space, 1).shape[1:])
        if actions.shape != expected:
            raise ValueError(f"actions are [B, H, ...] = {expected} here, got {actions.shape}")
