"""Policies as distributions over actions, for every kind of action space."""

from collections.abc import Mapping
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxwm.distributions import Normal, OneHot, TanhNormal, bounded_normal, one_hot
from jaxwm.errors import check_choice
from jaxwm.spaces import masks_of, noise, noise_size, random_action, separate, vector_size, wide
from jaxwm.types import ActionSpace, Array, Box, Discrete, Key, Mixed, Mode, MultiDiscrete, Step


class Actor(NamedTuple):
    """A policy's distribution: one categorical per choice, and one density per entry of a vector where there is one."""

    parts: tuple[OneHot, ...]
    space: ActionSpace
    vector: Normal | TanhNormal | None = None

    def _split(self, values: Array) -> tuple[list[Array], Array | None]:
        """The entries of `values` that belong to each choice, and those of the vector."""
        if isinstance(self.space, Discrete):
            return [values], None
        count = len(self.parts)
        vector = values if not count else values[..., count:] if self.vector else None
        return [values[..., i] for i in range(count)], vector

    def _join(self, indices: list[Array], vector: Array | None) -> Array:
        if isinstance(self.space, Discrete):
            return indices[0]
        if vector is None:
            return jnp.stack(indices, -1)
        return jnp.concatenate([jnp.stack(indices, -1), vector], -1) if indices else vector

    def sample(self, key: Key) -> Array:
        """Draw an action `[...]`."""
        lead = self.vector.mean.shape[:-1] if self.vector else self.parts[0].logp.shape[:-1]
        return self.pick(noise(self.space, jax.random.uniform(key, (*lead, noise_size(self.space)))))

    def pick(self, noise: Array) -> Array:
        """The action that `noise(space, ...)` decides; of a vector, with gradients."""
        uniform, normal = self._split(noise)
        indices = [part.invert(u) for part, u in zip(self.parts, uniform, strict=True)]
        return self._join(indices, self.vector.pick(normal) if self.vector else None)  # type: ignore[arg-type]

    def mode(self) -> Array:
        """The likeliest action `[...]`, or the mean of a vector."""
        return self._join([part.mode() for part in self.parts], self.vector.mode() if self.vector else None)

    def log_prob(self, action: Array) -> Array:
        """Summed over the entries of an action: `[...]`."""
        indices, vector = self._split(action)
        terms = [part.log_prob(_whole(index)) for part, index in zip(self.parts, indices, strict=True)]
        terms += [self.vector.log_prob(vector).sum(-1)] if self.vector else []  # type: ignore[arg-type]
        return sum(terms)  # type: ignore[return-value]

    def entropy(self) -> Array:
        """Summed over the entries of an action: `[...]`; of `TanhNormal` it has no closed form."""
        terms = [part.entropy() for part in self.parts]
        terms += [self.vector.entropy().sum(-1)] if self.vector else []  # type: ignore[union-attr]
        return sum(terms)  # type: ignore[return-value]

    def encoded(self, action: Array) -> Array:
        """`encode(space, action)` with gradients of the policy: straight-through where the action is discrete."""
        indices, vector = self._split(action)
        terms = [part.straight_through(_whole(index)) for part, index in zip(self.parts, indices, strict=True)]
        return jnp.concatenate([*terms, *([] if vector is None else [vector])], -1) if terms else action


def _whole(index: Array) -> Array:
    """Class indices as whole numbers; a mixed action keeps them as float32."""
    return index if jnp.issubdtype(index.dtype, jnp.integer) else index.astype(jnp.int32)


def action_distribution(
    space: ActionSpace, outputs: dict[str, Array], unimix: float = 0.0, legal: Array | None = None
) -> Actor:
    """The distribution behind the outputs of a head with `head_sizes(space)`.
    Choices that are not `legal [..., A]`, where that is said, have probability 0."""
    parts = tuple(one_hot(outputs[f"logits{i}"], unimix, mask) for i, mask in enumerate(masks_of(space, legal)))
    return Actor(parts, space, bounded_normal(outputs["mean"], outputs["std"]) if vector_size(space) else None)


def check_mode(mode: str) -> None:
    """ValueError unless `mode` is one of `types.Mode`."""
    check_choice("mode", mode, get_args(Mode))


def forced(space: ActionSpace, step: Step, key: Key, mode: str) -> Array | None:
    """Draw the actions `[N, ...]` of mode "random", legal ones where the observation says which are; else None."""
    check_mode(mode)
    if mode != "random":
        return None
    return random_action(space, key, len(step.reward), legal_of(step))


def legal_of(step: Step) -> Array | None:
    """Which actions are legal, bool `[N, A]`, where the observation says so."""
    return step.obs.get("legal") if isinstance(step.obs, Mapping) else None


def disturb(space: ActionSpace, action: Array, amount: Array, key: Key, legal: Array | None = None) -> Array:
    """Exploration of the older agents: normal noise of standard deviation `amount` on vectors, which stay in [-1, 1];
    elsewhere that share of the actions is random, and `legal [N, A]`."""
    k_noise, k_mix = jax.random.split(key)
    if isinstance(space, Box):
        return jnp.clip(action + amount * jax.random.normal(k_noise, action.shape), -1.0, 1.0)
    if isinstance(space, Mixed):
        parts, vector = separate(space, action)
        parts = disturb(MultiDiscrete(space.n), parts, amount, k_mix, legal)
        return jnp.concatenate([parts, disturb(Box(space.size), vector, amount, k_noise)], -1)
    swap = jax.random.uniform(k_mix, (len(action),)) < amount
    return jnp.where(wide(swap, action), random_action(space, k_noise, len(action), legal), action)
