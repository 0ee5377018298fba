"""Policies as distributions over actions, for every kind of action space."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxwm.distributions import Normal, OneHot, TanhNormal, bounded_normal, one_hot
from jaxwm.errors import check_choice
from jaxwm.spaces import head_sizes, masks_of, noise, noise_size, random_action, wide
from jaxwm.types import ActionSpace, Array, Box, Discrete, Key, Mode, Step


class Actor(NamedTuple):
    """A policy's distribution: one categorical per choice, or one density per entry of a vector."""

    parts: tuple[OneHot, ...] | Normal | TanhNormal
    space: ActionSpace

    @property
    def _vector(self) -> Normal | TanhNormal | None:
        return self.parts if isinstance(self.parts, Normal | TanhNormal) else None

    def _choices(self, values: Array) -> Iterator[tuple[OneHot, Array]]:
        """Every categorical with its own entry of `values`."""
        split = values[..., None] if isinstance(self.space, Discrete) else values
        return ((part, split[..., i]) for i, part in enumerate(self.parts))  # type: ignore[misc]

    def _join(self, indices: list[Array]) -> Array:
        return indices[0] if isinstance(self.space, Discrete) else jnp.stack(indices, -1)

    def sample(self, key: Key) -> Array:
        """Draw an action `[...]`."""
        lead = self._vector.mean.shape[:-1] if self._vector else self.parts[0].logp.shape[:-1]  # type: ignore[union-attr]
        return self.pick(noise(self.space, jax.random.uniform(key, (*lead, noise_size(self.space)))))

    def pick(self, noise: Array) -> Array:
        """The action that `noise(space, ...)` decides; of a vector, with gradients."""
        if self._vector:
            return self._vector.pick(noise)
        return self._join([part.invert(uniform) for part, uniform in self._choices(noise)])

    def mode(self) -> Array:
        """The likeliest action `[...]`, or the mean of a vector."""
        return self._vector.mode() if self._vector else self._join([part.mode() for part in self.parts])  # type: ignore[union-attr]

    def log_prob(self, action: Array) -> Array:
        """Summed over the entries of an action: `[...]`."""
        if self._vector:
            return self._vector.log_prob(action).sum(-1)
        return sum(part.log_prob(index) for part, index in self._choices(action))  # type: ignore[return-value]

    def entropy(self) -> Array:
        """Summed over the entries of an action: `[...]`; of `TanhNormal` it has no closed form."""
        if isinstance(self.parts, Normal):
            return self.parts.entropy().sum(-1)
        return sum(part.entropy() for part in self.parts)  # type: ignore[union-attr, return-value]

    def encoded(self, action: Array) -> Array:
        """`encode(space, action)` with gradients of the policy: straight-through where the action is discrete."""
        if self._vector:
            return action
        return jnp.concatenate([part.straight_through(index) for part, index in self._choices(action)], -1)


def action_distribution(
    space: ActionSpace, outputs: dict[str, Array], unimix: float = 0.0, legal: Array | None = None
) -> Actor:
    """The distribution behind the outputs of a head with `head_sizes(space)`.
    Choices that are not `legal [..., A]`, where that is said, have probability 0."""
    if isinstance(space, Box):
        return Actor(bounded_normal(outputs["mean"], outputs["std"]), space)
    masks = masks_of(space, legal)
    return Actor(tuple(one_hot(outputs[name], unimix, masks[i]) for i, name in enumerate(head_sizes(space))), space)


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
    swap = jax.random.uniform(k_mix, (len(action),)) < amount
    return jnp.where(wide(swap, action), random_action(space, k_noise, len(action), legal), action)
