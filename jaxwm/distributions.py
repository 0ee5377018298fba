"""Squashing functions and the few distributions that world models need.

Everything is float32 whatever the compute dtype. Shapes: `[...]` are batch axes, K is the number of classes or bins."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array

sg = jax.lax.stop_gradient


def symlog(x: Array) -> Array:
    """sign(x) ln(1 + |x|) (Hafner et al. 2023, eq. 1)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """The inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def symexp_bins(count: int) -> Array:
    """`count` bins at symexp(linspace(-20, 20)), float32 `[count]`, exactly symmetric around zero."""
    return symexp(even_bins(count, 20.0))


def even_bins(count: int, most: float) -> Array:
    """`count` bins from -most to most at equal distances, float32 `[count]`, exactly symmetric around zero."""
    half = jnp.linspace(-most, 0.0, (count + 1) // 2, dtype=jnp.float32)
    return jnp.concatenate([half, -half[: count // 2][::-1]])


def twohot(value: Array, bins: Array) -> Array:
    """Spread `value [...]` over its two nearest bins by distance: `[..., K]`, rows sum to 1.
    Written as a tent function of every bin, which fuses into the loss; a search and two gathers would not."""
    value = jnp.clip(value.astype(jnp.float32), bins[0], bins[-1])[..., None]
    gap = bins[1:] - bins[:-1]
    rising = jnp.concatenate([jnp.ones_like(value), (value - bins[:-1]) / gap], -1)
    falling = jnp.concatenate([(bins[1:] - value) / gap, jnp.ones_like(value)], -1)
    return jnp.maximum(0.0, jnp.minimum(rising, falling))


class TwoHot(NamedTuple):
    """A scalar predicted as a softmax over bins (Hafner et al. 2023, section "Robust predictions")."""

    logits: Array  # [..., K]
    bins: Array  # [K]

    def mean(self) -> Array:
        """`[...]`. Summed symmetrically, so that zero logits give exactly 0."""
        weighted = jax.nn.softmax(self.logits.astype(jnp.float32)) * self.bins
        half = self.bins.shape[0] // 2
        low, middle, high = jnp.split(weighted, [half, weighted.shape[-1] - half], -1)
        return middle.sum(-1) + (low[..., ::-1] + high).sum(-1)

    def loss(self, target: Array) -> Array:
        """Cross-entropy `[...]` against `target [..., K]`, which may be a sum of several two-hot rows."""
        logits = self.logits.astype(jnp.float32)
        target = sg(target)
        return target.sum(-1) * jax.nn.logsumexp(logits, -1) - (target * logits).sum(-1)


class SymlogTwoHot(NamedTuple):
    """A scalar predicted as a softmax over bins that lie evenly in symlog space (Hansen et al. 2024, section 3).
    Its mean is taken there too; that of `TwoHot` with `symexp_bins` is taken in the space of the scalar."""

    logits: Array  # [..., K]
    bins: Array  # [K], in symlog space

    def mean(self) -> Array:
        """symexp of the mean bin, `[...]`."""
        return symexp(TwoHot(self.logits, self.bins).mean())

    def loss(self, value: Array) -> Array:
        """Cross-entropy `[...]` against `value [...]`, spread over its two nearest bins."""
        return TwoHot(self.logits, self.bins).loss(twohot(symlog(value), self.bins))


class OneHot(NamedTuple):
    """A categorical over K classes, as normalised log-probabilities `[..., K]`; where `legal [..., K]` says so, some
    classes are impossible."""

    logp: Array
    legal: Array | None = None

    @property
    def probs(self) -> Array:
        """Probabilities `[..., K]`."""
        return jnp.exp(self.logp)

    def invert(self, uniform: Array) -> Array:
        """The class, int32 `[...]`, at which the cumulative sum passes `uniform [...]`: a sample without K Gumbels."""
        cumulative = jnp.cumsum(sg(self.probs), -1)[..., :-1]
        index = (uniform[..., None] >= cumulative).sum(-1, dtype=jnp.int32)
        if self.legal is None:
            return index
        # sums are rounded: an impossible class at the end may be reached all the same
        return jnp.minimum(index, jnp.where(self.legal, jnp.arange(self.legal.shape[-1]), 0).max(-1).astype(jnp.int32))

    def straight_through(self, index: Array) -> Array:
        """The one-hot `[..., K]` of `index [...]` whose gradient is that of the probabilities (Bengio et al. 2013)."""
        probs = self.probs
        return jax.nn.one_hot(index, probs.shape[-1], dtype=jnp.float32) + probs - sg(probs)

    def tempered(self, temperature: float) -> OneHot:
        """The same with probabilities raised to the power 1 / temperature."""
        return self if temperature == 1 else OneHot(jax.nn.log_softmax(self.logp / temperature))

    def mode(self) -> Array:
        """Likeliest class, int32 `[...]`."""
        return jnp.argmax(self.logp, -1).astype(jnp.int32)

    def log_prob(self, index: Array) -> Array:
        """`[...]` for int32 `index [...]`."""
        return (self.logp * jax.nn.one_hot(index, self.logp.shape[-1])).sum(-1)

    def entropy(self) -> Array:
        """Entropy in nats, `[...]`."""
        return -(self.probs * self.logp).sum(-1)

    def kl(self, other: OneHot) -> Array:
        """KL(self || other), `[...]`."""
        return (self.probs * (self.logp - other.logp)).sum(-1)


IMPOSSIBLE = -128.0
"""The log-probability of an illegal class: its probability is 0 in float32, and it has no gradient."""


def one_hot(logits: Array, unimix: float = 0.0, legal: Array | None = None) -> OneHot:
    """A categorical whose probabilities are mixed with `unimix` of the uniform one, among `legal [..., K]` classes."""
    logits = logits.astype(jnp.float32)
    if legal is not None:
        probs = jax.nn.softmax(jnp.where(legal, logits, -jnp.inf))
        probs = (1 - unimix) * probs + unimix * legal / legal.sum(-1, keepdims=True)
        logp = jnp.log(jnp.where(legal, jnp.maximum(probs, jnp.finfo(jnp.float32).tiny), 1.0))
        return OneHot(jnp.where(legal, logp, IMPOSSIBLE), legal)
    if not unimix:
        return OneHot(jax.nn.log_softmax(logits))
    probs = (1 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1]
    return OneHot(jnp.log(probs))


class Normal(NamedTuple):
    """Independent normals; `log_prob` and `entropy` are per entry, shape of `mean`."""

    mean: Array
    std: Array

    def mode(self) -> Array:
        """The mean, where the density peaks."""
        return self.mean

    def log_prob(self, value: Array) -> Array:
        """Log-density of each entry of `value`."""
        z = (value - self.mean) / self.std
        return -0.5 * z * z - jnp.log(self.std) - 0.5 * np.log(2 * np.pi)

    def entropy(self) -> Array:
        """Differential entropy of each entry, in nats."""
        return jnp.broadcast_to(0.5 * np.log(2 * np.pi * np.e) + jnp.log(self.std), self.mean.shape)

    def pick(self, noise: Array) -> Array:
        """The sample that standard normal `noise` decides, with gradients."""
        return self.mean + self.std * noise

    def kl(self, other: Normal) -> Array:
        """KL(self || other), per entry."""
        ratio, gap = self.std / other.std, (self.mean - other.mean) / other.std
        return 0.5 * (ratio * ratio + gap * gap - 1) - jnp.log(ratio)


class TanhNormal(NamedTuple):
    """A normal squashed into (-1, 1) by tanh; everything is per entry, shape of `mean`, which is that before tanh."""

    mean: Array
    std: Array

    def mode(self) -> Array:
        """tanh of the mean: the median, where the density may peak at the bounds."""
        return jnp.tanh(self.mean)

    def log_prob(self, value: Array) -> Array:
        """Log-density of each entry of `value` in [-1, 1]; at the bounds that just inside them."""
        value = jnp.clip(value, -1 + 1e-6, 1 - 1e-6)
        return Normal(self.mean, self.std).log_prob(jnp.arctanh(value)) - jnp.log1p(-value * value)

    def pick(self, noise: Array) -> Array:
        """The sample that standard normal `noise` decides, with gradients."""
        return jnp.tanh(self.mean + self.std * noise)

    def scored(self, noise: Array) -> tuple[Array, Array]:
        """The same sample with its log-density, from the number before tanh: exact near the bounds, with gradients."""
        raw = self.mean + self.std * noise
        slope = 2 * (np.log(2.0) - raw - jax.nn.softplus(-2 * raw))  # log(1 - tanh(raw)^2)
        return jnp.tanh(raw), Normal(self.mean, self.std).log_prob(raw) - slope


def normal_noise(uniform: Array) -> Array:
    """Standard normal numbers from `uniform [...]` in [0, 1), symmetric: uniform numbers are multiples of 2^-23."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(2 * uniform - (1 - 2**-23))


def bounded_normal(mean: Array, std: Array, low: float = 0.1, high: float = 1.0) -> Normal:
    """Dreamer V3's continuous head: tanh mean and a standard deviation between `low` and `high`, from raw outputs."""
    mean, std = mean.astype(jnp.float32), std.astype(jnp.float32)
    return Normal(jnp.tanh(mean), low + (high - low) * jax.nn.sigmoid(std + 2.0))


class Mixture(NamedTuple):
    """Independent mixtures of K normals, one for every entry of a vector (Bishop 1994): parameters `[..., K]`."""

    logits: Array
    mean: Array
    log_std: Array

    def log_prob(self, value: Array) -> Array:
        """Log density, shape of `value [...]`; that of a narrow normal is above 0."""
        z = (value[..., None] - self.mean) * jnp.exp(-self.log_std)
        parts = -0.5 * z * z - self.log_std - 0.5 * np.log(2 * np.pi)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + parts, -1)

    def tempered(self, temperature: float | Array) -> Mixture:
        """Logits divided by the temperature, standard deviations multiplied by its square root (Ha & Eck 2018)."""
        return Mixture(self.logits / temperature, self.mean, self.log_std + 0.5 * jnp.log(temperature))

    def pick(self, uniform: Array, normal: Array) -> Array:
        """The sample `[...]` that noise decides: `uniform [...]` chooses the component, `normal [...]` the place."""
        index = OneHot(jax.nn.log_softmax(self.logits)).invert(uniform)
        chosen = index[..., None] == jnp.arange(self.logits.shape[-1])
        take = lambda x: jnp.where(chosen, x, 0.0).sum(-1)  # noqa: E731
        return take(self.mean) + jnp.exp(take(self.log_std)) * normal


def mixture(raw: Array, components: int, low: float = -5.0) -> Mixture:
    """Mixtures for Z entries from a head's outputs `[..., 3 * Z * components]`; `low` bounds the log deviation."""
    raw = raw.astype(jnp.float32).reshape(*raw.shape[:-1], 3, -1, components)
    logits, mean, log_std = (raw[..., i, :, :] for i in range(3))
    return Mixture(logits, mean, jnp.maximum(log_std, low))
