"""Planners over action sequences: random shooting, CEM, iCEM and MPPI behind one interface.

A planner looks for the sequence of actions with the highest return; where returns come from (an ensemble, a recurrent
model, the simulator) is the caller's `Score`. Everything is for one environment: agents `vmap` over theirs. Letters: P
candidates, K elites, H horizon, A action size. Actions lie in [-1, 1].

Returns that are not finite count as the worst there are, so that a model that diverges is no place to go to."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.errors import check_choice, check_number
from jaxwm.types import Array, Key

Score = Callable[[Array, Key], Array]
"""`(candidates [P, H, A], key) -> returns [P]`, to be maximised. P may differ between calls of one planner."""


class Memory(NamedTuple):
    """What a plan leaves for the next step: the mean `[H, A]` to start from; for iCEM also elites `[K', H, A]`, of
    which there are none (`have` False) at first. For MPPI `kept` are sequences of the caller's, which it forgets."""

    mean: Array
    kept: Any = None
    have: Any = None  # bool []


class Planner(NamedTuple):
    """`start() -> Memory` before the first step; `plan(score, memory, key) -> (memory, action [A])` at each step.
    The memory that `plan` returns is already shifted by one step."""

    start: Callable[[], Memory]
    plan: Callable[[Score, Memory, Key], tuple[Memory, Array]]


def cem(
    size: int, horizon: int, candidates: int = 400, elites: int = 40, iterations: int = 5, momentum: float = 0.1,
    init_std: float = 0.5, min_std: float = 0.0, warm_start: bool = True, bounded: bool = True,
    returns: Literal["mean", "best"] = "mean",
) -> Planner:  # fmt: skip
    """Cross-entropy method (Rubinstein 1999) for `size` actions; the defaults are those of PETS (Chua et al. 2018).
    Every iteration moves mean and variance to those of the elites, keeping the share `momentum` of the old. `bounded`
    draws normals cut at two standard deviations, which are at most half the distance to the nearer bound; otherwise
    normals are clipped to [-1, 1], as in PlaNet (Hafner et al. 2019). The action is the first of the final mean, or of
    the best candidate met. A warm start is the last mean, shifted by a
    step, with 0 behind.
    Raises ValueError for a setting out of range."""
    _check(size, horizon, candidates, elites, iterations, min_std, init_std)
    check_number("momentum", momentum, least=0, most=1)
    check_choice("returns", returns, ("mean", "best"))

    def draw(mean: Array, std: Array, key: Key) -> Array:
        if not bounded:
            return jnp.clip(mean + std * jax.random.normal(key, (candidates, *mean.shape)), -1.0, 1.0)
        std = jnp.minimum(std, (1 - jnp.abs(mean)) / 2)
        return mean + std * jax.random.truncated_normal(key, -2.0, 2.0, (candidates, *mean.shape))

    def plan(score: Score, memory: Memory, key: Key) -> tuple[Memory, Array]:
        def improve(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            mean, var, best, top = carry
            k_draw, k_score = jax.random.split(jax.random.fold_in(key, i))
            tried = draw(mean, jnp.maximum(jnp.sqrt(var), min_std), k_draw)
            value, elite = _best(score(tried, k_score), tried, elites)
            best, top = jnp.where(value[0] > top, elite[0], best), jnp.maximum(value[0], top)
            mix = lambda old, new: momentum * old + (1 - momentum) * new  # noqa: E731
            return mix(mean, elite.mean(0)), mix(var, elite.var(0)), best, top

        mean, var = memory.mean, jnp.full_like(memory.mean, init_std**2)
        mean, _, best, _ = jax.lax.fori_loop(0, iterations, improve, (mean, var, mean, jnp.array(-jnp.inf)))
        after = _shift(mean, jnp.zeros_like(mean[:1])) if warm_start else jnp.zeros_like(mean)
        return memory._replace(mean=after), mean[0] if returns == "mean" else best[0]

    return Planner(lambda: Memory(jnp.zeros((horizon, size))), plan)


def shooting(size: int, horizon: int, candidates: int = 500) -> Planner:
    """Random shooting (Richards 2005): the first action of the best of `candidates` sequences of uniform actions.
    Nothing is kept from step to step. Raises ValueError for a setting out of range."""
    _check(size, horizon, candidates, 1, 1, 0.0, 1.0)

    def plan(score: Score, memory: Memory, key: Key) -> tuple[Memory, Array]:
        k_draw, k_score = jax.random.split(key)
        tried = jax.random.uniform(k_draw, (candidates, horizon, size), minval=-1.0)
        _, best = _best(score(tried, k_score), tried, 1)
        return memory, best[0, 0]

    return Planner(lambda: Memory(jnp.zeros((horizon, size))), plan)


def icem(
    size: int, horizon: int, candidates: int = 100, elites: int = 10, iterations: int = 3, momentum: float = 0.1,
    init_std: float = 0.5, min_std: float = 0.0, exponent: float = 2.0, decay: float = 1.25, keep: float = 0.3,
) -> Planner:  # fmt: skip
    """iCEM (Pinneri et al. 2020): CEM with coloured noise, a shrinking population, and elites that are kept.
    Iteration i draws max(candidates / decay^i, 2 * elites) sequences, whose noise has a power spectrum of
    1 / frequency^`exponent` along time; the share `keep` of the elites of the last iteration, or of the last step,
    competes with them, and in the last iteration the mean does. The action is the first of the best one of the end.
    Raises ValueError for a setting out of range."""
    _check(size, horizon, candidates, elites, iterations, min_std, init_std)
    check_number("momentum", momentum, least=0, most=1)
    check_number("keep", keep, least=0, most=1)
    check_number("decay", decay, least=1)
    check_number("exponent", exponent, least=0)
    count = max(1, round(keep * elites))
    basis = jnp.asarray(coloured(horizon, exponent))

    def draw(mean: Array, std: Array, key: Key, number: int) -> Array:
        noise = jnp.einsum("hf,pfa->pha", basis, jax.random.normal(key, (number, *mean.shape)))
        return jnp.clip(mean + std * noise, -1.0, 1.0)

    def plan(score: Score, memory: Memory, key: Key) -> tuple[Memory, Array]:
        mean, kept, have = memory
        std, elite = jnp.full_like(mean, init_std), kept
        for i in range(iterations):  # the population shrinks: every iteration is a program of its own
            k_draw, k_score = jax.random.split(jax.random.fold_in(key, i))
            number = max(round(candidates / decay**i), 2 * elites)
            tried = draw(mean, std, k_draw, number + count)
            tried = tried.at[number:].set(jnp.where(have, kept, tried[number:]))
            if i == iterations - 1:
                tried = tried.at[0].set(mean)
            _, elite = _best(score(tried, k_score), tried, elites)
            mean = momentum * mean + (1 - momentum) * elite.mean(0)
            std = jnp.maximum(momentum * std + (1 - momentum) * elite.std(0), min_std)
            kept, have = elite[:count], jnp.bool_(True)
        last = draw(mean, jnp.full_like(mean, init_std), jax.random.fold_in(key, iterations), count)[:, -1:]
        kept = jnp.concatenate([kept[:, 1:], last], 1)
        return Memory(_shift(mean, mean[-1:]), kept, have), elite[0, 0]

    plans = count, horizon, size
    return Planner(lambda: Memory(jnp.zeros(plans[1:]), jnp.zeros(plans), jnp.zeros((), bool)), plan)


def mppi(
    size: int, horizon: int, candidates: int = 512, elites: int = 64, iterations: int = 6, temperature: float = 0.5,
    max_std: float = 2.0, min_std: float = 0.05, adapt: bool = True,
    returns: Literal["mean", "elite", "noisy"] = "mean",
) -> Planner:  # fmt: skip
    """Model-predictive path integral control, in the form and with the defaults of TD-MPC2 (Hansen et al. 2024).
    Every iteration moves mean and standard deviation to those of the elites weighted by `path_weights`; sequences are
    normals clipped to [-1, 1] with standard deviations from `min_std` to `max_std`, at first the latter. Sequences in
    `Memory.kept`, such as those of a policy, are candidates of every iteration, in place of as many that are drawn. The
    action is the first of the final mean, or of an elite drawn by its weight, which is what TD-MPC2 does; "noisy" adds
    noise of the final standard deviation, to explore. With `adapt` off, all candidates as elites and one iteration this
    is MPPI of Williams et al. (2017) with lambda = 1 / temperature and without a price of control.
    Raises ValueError for a setting out of range."""
    _check(size, horizon, candidates, elites, iterations, min_std, max_std)
    check_number("temperature", temperature, above=0)
    check_choice("returns", returns, ("mean", "elite", "noisy"))

    def plan(score: Score, memory: Memory, key: Key) -> tuple[Memory, Array]:
        kept = jnp.zeros((0, horizon, size)) if memory.kept is None else memory.kept
        shape = candidates - len(kept), horizon, size

        def improve(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            mean, std, *_ = carry
            k_draw, k_score = jax.random.split(jax.random.fold_in(key, i))
            drawn = jnp.clip(mean + std * jax.random.normal(k_draw, shape), -1.0, 1.0)
            tried = jnp.concatenate([kept, drawn])
            value, elite = _best(score(tried, k_score), tried, elites)
            weight = path_weights(value, temperature)
            mean = jnp.einsum("k,kha->ha", weight, elite)
            spread = jnp.sqrt(jnp.einsum("k,kha->ha", weight, jnp.square(elite - mean)))
            return mean, jnp.clip(spread, min_std, max_std) if adapt else std, elite[:, 0], weight

        begin = memory.mean, jnp.full_like(memory.mean, max_std), jnp.zeros((elites, size)), jnp.zeros(elites)
        mean, std, firsts, weight = jax.lax.fori_loop(0, iterations, improve, begin)
        action, (k_elite, k_noise) = mean[0], jax.random.split(jax.random.fold_in(key, iterations))
        if returns != "mean":
            action = firsts[jax.random.categorical(k_elite, jnp.log(weight))]
        if returns == "noisy":
            action = jnp.clip(action + std[0] * jax.random.normal(k_noise, action.shape), -1.0, 1.0)
        return memory._replace(mean=_shift(mean, jnp.zeros_like(mean[:1])), kept=None), action

    return Planner(lambda: Memory(jnp.zeros((horizon, size))), plan)


def path_weights(value: Array, temperature: float) -> Array:
    """exp(temperature * (value - best)), normalised: returns `[K]` to weights `[K]` that sum to 1.
    `temperature` multiplies, as in TD-MPC2; it is 1 / lambda of Williams et al. (2017)."""
    best = value.max()
    shifted = jnp.where(jnp.isfinite(best), value - best, 0.0)
    return jax.nn.softmax(temperature * shifted)


def coloured(horizon: int, exponent: float) -> np.ndarray:
    """The matrix `[H, H]` that turns white noise into noise with power 1 / frequency^exponent and variance 1.
    Its columns are cosines and sines of the frequencies k / H; the constant has the power of the lowest of them (Timmer
    & König 1995). With exponent 0 the matrix is orthogonal."""
    time, columns = np.arange(horizon), []
    for k in range(horizon // 2 + 1):
        scale, angle = max(k, 1) ** (-exponent / 2), 2 * np.pi * k * time / horizon
        if k == 0 or 2 * k == horizon:
            columns.append(scale * np.cos(angle))
        else:
            columns += [np.sqrt(2) * scale * np.cos(angle), np.sqrt(2) * scale * np.sin(angle)]
    basis = np.stack(columns, 1)
    return (basis / np.sqrt(np.square(basis).sum(1, keepdims=True))).astype(np.float32)


def _shift(plan: Array, last: Array) -> Array:
    """A plan `[H, A]` a step later, with `last` `[1, A]` behind."""
    return jnp.concatenate([plan[1:], last])


def _best(value: Array, tried: Array, count: int) -> tuple[Array, Array]:
    """The `count` highest returns, best first, and their candidates; what is not finite is the worst there is."""
    value, index = jax.lax.top_k(jnp.where(jnp.isfinite(value), value, -jnp.inf), count)
    return value, tried[index]


def _check(size: int, horizon: int, candidates: int, elites: int, iterations: int, min_std: Any, init_std: Any) -> None:
    """ValueError for a planner's setting out of range."""
    for name, value in dict(size=size, horizon=horizon, candidates=candidates, iterations=iterations).items():
        check_number(f"{name} of a planner", value, least=1, whole=True)
    check_number(f"elites of a planner with {candidates} candidates", elites, least=1, most=candidates, whole=True)
    check_number("the first standard deviation of a planner", init_std, above=0)
    check_number("min_std of a planner", min_std, least=0, most=init_std)
