"""Ensembles of probabilistic networks (Chua et al. 2018): a Gaussian over what changes, with bounded log-variances.

Letters: E networks, B batch, D numbers of the observation, A actions, O outputs (D, and what else is predicted), Q
particles of each network, C rollouts side by side, H horizon. The networks are one stack `[E, ...]`, so that a layer is
one batched product; particles are sorted by network, so that nobody gathers weights.

Each network sees its own bootstrap of the data: the number of times that a record counts for it is a Poisson(1) draw
which depends on the record's place in the replay alone (online bootstrap, Oza & Russell 2001), never drawn anew."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses
from jaxwm.nets.layers import truncated_normal
from jaxwm.nets.sensors import joined
from jaxwm.types import Array, Batch, Key, Metrics, PyTree, Record, Spec

OUTSCALE = 0.44  # Weights start with 1 / (2 sqrt(fan-in)) as standard deviation of a normal that is cut at two of them.
MAX_LOGVAR, MIN_LOGVAR = 0.5, -10.0  # Where the bounds of the log-variances start.

POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(8)]).astype(np.float32)
"""Distribution function of Poisson(1) at 0, 1, ...; more than 8 has probability 1e-6."""


class Scale(NamedTuple):
    """Mean and standard deviation, `[width]`."""

    mean: Array
    std: Array

    def forward(self, x: Array) -> Array:
        """Standardise `x [..., width]`."""
        return (x - self.mean) / self.std

    def back(self, x: Array) -> Array:
        """Invert `forward`."""
        return x * self.std + self.mean


def unit(width: int) -> Scale:
    """The scale that changes nothing."""
    return Scale(jnp.zeros(width), jnp.ones(width))


def fit(x: Array, weight: Array) -> Scale:
    """Mean and standard deviation of `x` `[B, width]` under `weight` `[B]`; where nothing varies the latter is 1."""
    weight = (weight / jnp.maximum(weight.sum(), 1e-8))[:, None]
    mean = (weight * x).sum(0)
    std = jnp.sqrt((weight * jnp.square(x - mean)).sum(0))
    return Scale(mean, jnp.where(std < 1e-6, 1.0, std))


def fitted(spec: Spec, batch: Batch, reward: bool = False) -> tuple[dict[str, Scale], Metrics]:
    """The scales of `inputs` and `targets` of pairs of records `[B, 2]`, and how many are steps of episodes."""
    inputs, target, _, real = transitions(spec, batch.record, reward)
    weight = real * batch.weight
    return {"inputs": fit(inputs, weight), "targets": fit(target, weight)}, {"transitions": weight.sum()}


def init(key: Key, networks: int, inputs: int, units: int, layers: int, outputs: int, logits: int = 0) -> PyTree:
    """Weights of `networks` MLPs with `layers` hidden layers: `kernel{i} [E, in, out]`, `bias{i} [E, 1, out]`.
    The outputs are mean and raw log-variance `[O]` each and `logits`; the bounds `[O]` belong to all networks."""
    widths = [inputs, *[units] * layers, 2 * outputs + logits]
    params = {"max_logvar": jnp.full(outputs, MAX_LOGVAR), "min_logvar": jnp.full(outputs, MIN_LOGVAR)}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        draw = truncated_normal(fan_in, OUTSCALE)
        params[f"kernel{i}"] = draw(jax.random.fold_in(key, i), (networks, fan_in, fan_out))
        params[f"bias{i}"] = jnp.zeros((networks, 1, fan_out))
    return params


class Prediction(NamedTuple):
    """Mean and bounded log-variance `[E, B, O]`, and logits `[E, B, L]` beside them."""

    mean: Array
    logvar: Array
    logits: Array


def predict(params: PyTree, x: Array) -> Prediction:
    """Every network on its own inputs `[E, B, inputs]`."""
    last = sum(name.startswith("kernel") for name in params) - 1
    for i in range(last + 1):
        x = jnp.einsum("ebi,eio->ebo", x, params[f"kernel{i}"]) + params[f"bias{i}"]
        x = jax.nn.silu(x) if i < last else x
    size = params["max_logvar"].size
    logvar = bound(x[..., size : 2 * size], params["min_logvar"], params["max_logvar"])
    return Prediction(x[..., :size], logvar, x[..., 2 * size :])


def bound(logvar: Array, least: Array, most: Array) -> Array:
    """Soft bounds by two softplus (Chua et al. 2018, appendix A.1)."""
    logvar = most - jax.nn.softplus(most - logvar)
    return least + jax.nn.softplus(logvar - least)


def nll(prediction: Prediction, target: Array) -> Array:
    """Gaussian negative log-likelihood without its constant, times 2: `[E, B, O]`."""
    error = jnp.square(prediction.mean - target)
    return error * jnp.exp(-prediction.logvar) + prediction.logvar


def decay(params: PyTree, rates: tuple[float, ...]) -> Array:
    """Half the squared weights of each layer, times its rate; biases are free."""
    return sum((rate / 2 * jnp.square(params[f"kernel{i}"]).sum() for i, rate in enumerate(rates)), jnp.zeros(()))


class Transitions(NamedTuple):
    """What the networks learn from: inputs `[..., D + A]`, targets `[..., O]`, whether the episode ended with it and
    how much it counts, both float32 `[...]`."""

    inputs: Array
    target: Array
    ended: Array
    weight: Array


def transitions(spec: Spec, record: Record, reward: bool) -> Transitions:
    """Of records `[B, 2]` with actions of a `Box`; targets are the change of the observation and, if asked for, the
    `reward`. What is no step of an episode weighs nothing."""
    chex.assert_shape(record.reward, (None, 2))
    obs = joined(spec.obs, record.obs)
    target = obs[:, 1] - obs[:, 0]
    if reward:
        target = jnp.concatenate([target, record.reward[:, 1:]], -1)
    inputs = jnp.concatenate([obs[:, 0], record.action[:, 0]], -1)
    real = ~record.is_first[:, 1] & ~record.is_last[:, 0]
    return Transitions(inputs, target, record.is_terminal[:, 1].astype(jnp.float32), real.astype(jnp.float32))


def loss(
    params: PyTree, data: Transitions, weight_decay: tuple[float, ...], bound_scale: float | None,
    deterministic: bool = False, share: Share = ALONE,
) -> Losses:  # fmt: skip
    """Sum over networks of the mean negative log-likelihood (section 4), weight decay and the price of wide bounds.
    `data` is `[E, B, ...]`, standardised. Ends are learned where the networks have a logit for them. `deterministic`:
    squared error instead. Then, and where `bound_scale` is None, the bounds are not learned."""
    chex.assert_equal_shape((data.ended, data.weight))
    chex.assert_equal_shape_prefix(tuple(data), 2)
    if bound_scale is None or deterministic:
        params = params | {name: jax.lax.stop_gradient(params[name]) for name in ("max_logvar", "min_logvar")}
    found = predict(params, data.inputs)
    error = jnp.square(found.mean - data.target).mean(-1)
    each = error if deterministic else nll(found, data.target).mean(-1)
    if found.logits.shape[-1]:
        each += optax.sigmoid_binary_cross_entropy(found.logits[..., 0], data.ended)
    mean = lambda x: share.weighted_mean(x, data.weight, -1)  # noqa: E731
    total = mean(each).sum() + decay(params, weight_decay)
    if bound_scale is not None and not deterministic:
        total += bound_scale * (params["max_logvar"].sum() - params["min_logvar"].sum())
    metrics = {"loss": mean(each).mean(), "squared_error": mean(error).mean(), "logvar": found.logvar.mean()}
    return total, ({}, metrics)


def held_out(row: Array, env: Array, share: float) -> Array:
    """Whether the records at `row` of environment `env` are kept for validation, bool `[...]`: about that share of
    them, decided by a record's place and by nothing else."""
    return _hashed(jnp.uint32(0), row, env) < share


def bootstrap(seed: Array, row: Array, env: Array, network: Array) -> Array:
    """How often the record at `row` of environment `env` counts for a network: Poisson(1) draws, float32 `[...]`.
    All arguments but `seed` have one shape. The draw depends on nothing else."""

    return (_hashed(seed, row, env, network)[..., None] > POISSON).sum(-1).astype(jnp.float32)


def _hashed(seed: Array, *places: Array) -> Array:
    """A uniform number in [0, 1) for every place, by hashing it: `[...]`, the shape of each of `places`."""

    def one(*place: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), seed)
        for number in place:
            key = jax.random.fold_in(key, number)
        return jax.random.uniform(key)

    return jax.vmap(one)(*(x.ravel() for x in places)).reshape(places[0].shape)


Transition = Callable[[Array, Array, Array], tuple[Array, Array, Array]]
"""`(obs [E, B, D], action [E, B, A], noise [E, B, O]) -> (next obs, reward [E, B], probability of going on [E, B])`."""


class Rollout(NamedTuple):
    """Particles `[H, E, Q, C, ...]`: observations, rewards earned (none after the end), and whether the episode goes on
    after each step. Where particles are mixed, their order is another one at every step."""

    obs: Array
    reward: Array
    alive: Array

    def returns(self) -> Array:
        """Mean over particles of the undiscounted return, `[C]`."""
        return self.reward.sum(0).mean((0, 1))


def rollout(
    transition: Transition, obs: Array, actions: Array, key: Key, networks: int, particles: int, outputs: int, mix: bool
) -> Rollout:
    """Trajectory sampling: `particles` of them from each of `obs` `[C, D]` under `actions` `[C, H, A]`.
    Particle e * Q + q starts with network e. It keeps it (TS-infinity), or with `mix` all are shuffled among the
    networks after every step (TS1), which gives each network its equal share. The rollouts side by side meet the same
    normal noise and the same shuffles: plans are compared under equal luck, and noise costs next to nothing."""
    each, (count, horizon) = particles // networks, actions.shape[:2]

    def spread(x: Array) -> Array:
        """`[C, width]` for every particle: `[E, Q * C, width]`."""
        return jnp.broadcast_to(x, (networks, each, *x.shape)).reshape(networks, each * count, -1)

    def step(carry: tuple[Array, Array], x: tuple[Array, Array, Key]) -> tuple[tuple[Array, Array], Rollout]:
        (obs, alive), (action, noise, k_mix) = carry, x
        noise = jnp.broadcast_to(noise, (networks, each, count, outputs)).reshape(networks, each * count, -1)
        obs, reward, cont = transition(obs, spread(action), noise)
        after = obs, alive * cont
        if mix:
            order = jax.random.permutation(k_mix, particles)
            after = jax.tree.map(lambda x: x.reshape(particles, count, -1)[order].reshape(x.shape), after)
        return after, Rollout(obs, alive * reward, alive * cont)

    k_noise, k_mix = jax.random.split(key)
    noise = jax.random.normal(k_noise, (horizon, networks, each, 1, outputs))
    start = spread(obs), jnp.ones((networks, each * count))
    _, found = jax.lax.scan(step, start, (actions.swapaxes(0, 1), noise, jax.random.split(k_mix, horizon)))
    return jax.tree.map(lambda x: x.reshape(horizon, networks, each, count, *x.shape[3:]), found)
