"""Planners on functions with a known optimum, and their parts against closed forms."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.control import planning

SIZE, HORIZON = 2, 4
TARGET = jnp.linspace(-0.8, 0.8, HORIZON * SIZE).reshape(HORIZON, SIZE)

PLANNERS = {
    "cem": planning.cem(SIZE, HORIZON, 200, 20, 10),
    "cem of PlaNet": planning.cem(
        SIZE, HORIZON, 200, 20, 10, momentum=0, init_std=1.0, warm_start=False, bounded=False
    ),
    "best": planning.cem(SIZE, HORIZON, 200, 20, 10, returns="best"),
    "icem": planning.icem(SIZE, HORIZON, 400, 20, 4, exponent=0.5),
    "mppi": planning.mppi(SIZE, HORIZON, 1000, 100, 8, temperature=5.0, max_std=1.0),
}


def quadratic(candidates, key):
    """0 at TARGET, less elsewhere."""
    return -jnp.square(candidates - TARGET).sum((1, 2))


def peaks(candidates, key):
    """Peaks at -0.5 (height 1) and at 0.5 (height 3) in every action."""
    bump = lambda at: jnp.exp(-jnp.square((candidates - at) / 0.3)).mean((1, 2))  # noqa: E731
    return bump(-0.5) + 3 * bump(0.5)


def edges(candidates, key):
    """Not finite where the first action is positive in any entry."""
    first = candidates[:, 0]
    return jnp.where(first[:, 0] > 0, jnp.nan, jnp.where(first[:, 1] > 0, jnp.inf, 0.0))


def nothing(candidates, key):
    return jnp.full(len(candidates), jnp.nan)


SCORES = [quadratic, peaks, edges, nothing]


@pytest.fixture(params=PLANNERS)
def planner(request):
    return PLANNERS[request.param]


def run(planner, score, seeds=3):
    """Plans from the start under several keys: memories and actions with a leading axis of `seeds`."""
    keys = jax.random.split(jax.random.key(0), seeds)
    if score in SCORES:
        return planned(planner)(SCORES.index(score), keys)
    return jax.jit(jax.vmap(lambda key: planner.plan(score, planner.start(), key)))(keys)


@cache
def planned(planner):
    """One program for all of `SCORES`."""

    def plan(which, key):
        return planner.plan(lambda x, k: jax.lax.switch(which, SCORES, x, k), planner.start(), key)

    return jax.jit(jax.vmap(plan, (None, 0)))


def test_planners_maximise_and_depend_on_their_key_alone(planner):
    many = run(planner, quadratic)
    action = np.asarray(many[1])
    np.testing.assert_allclose(action, jnp.stack([TARGET[0]] * 3), atol=0.15)
    assert (action[0] != action[1]).any(), "keys make no difference"
    key = jax.random.split(jax.random.key(0), 3)[1]
    plan = jax.jit(lambda key: planner.plan(quadratic, planner.start(), key))
    alone = plan(key)
    jax.tree.map(np.testing.assert_array_equal, alone, plan(key))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[1], atol=1e-4), alone, many)


def test_the_higher_of_two_peaks_is_found(planner):
    _, action = run(planner, peaks)
    assert (action > 0.2).all()


def test_candidates_and_actions_stay_in_bounds_and_every_score_has_a_key(planner):
    seen, keys = [], []

    def keep(candidates, key):
        seen.append(np.asarray(candidates))
        keys.append(key.tobytes())

    def score(candidates, key):
        jax.debug.callback(keep, candidates, jax.random.key_data(key))
        return candidates.sum((1, 2))

    _, action = run(planner, score, 1)
    jax.effects_barrier()
    assert max(np.abs(x).max() for x in seen) <= 1 and max(x.max() for x in seen) > 0.9
    assert (np.abs(action) <= 1).all() and (action > 0.6).all()
    assert len(keys) >= 4 and len(set(keys)) == len(keys)


def test_returns_that_are_not_finite_lose(planner):
    _, action = run(planner, edges)
    assert (action < 0).all()
    found = run(planner, nothing)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


# --- Memory -------------------------------------------------------------------------------------------------------


def test_warm_starts_are_shifted_by_a_step():
    """A plan that has found the target starts the next one a step later; PlaNet's starts anew."""
    for name, last in (("cem", 0.0), ("icem", TARGET[-1]), ("mppi", 0.0)):
        mean = run(PLANNERS[name], quadratic)[0].mean.mean(0)
        np.testing.assert_allclose(mean[:-1], TARGET[1:], atol=0.2)
        np.testing.assert_allclose(mean[-1], jnp.broadcast_to(last, (SIZE,)), atol=0.2)
    assert not run(PLANNERS["cem of PlaNet"], quadratic)[0].mean.any()


def test_kept_elites_compete_at_the_next_step():
    """With noise far too small to find the target, only the elite in memory can be it."""
    planner = planning.icem(SIZE, HORIZON, 20, 2, 1, init_std=1e-3, keep=0.5)
    plan = jax.jit(lambda memory: planner.plan(quadratic, memory, jax.random.key(0)))
    lucky = planning.Memory(jnp.zeros((HORIZON, SIZE)), TARGET[None], jnp.bool_(True))
    memory, action = plan(lucky)
    np.testing.assert_array_equal(action, TARGET[0])
    np.testing.assert_array_equal(memory.kept[0, :-1], TARGET[1:])
    _, action = plan(lucky._replace(have=jnp.bool_(False)))
    assert (np.abs(action) < 0.1).all()


# --- Closed forms -------------------------------------------------------------------------------------------------


def test_a_bounded_draw_keeps_its_distance_to_the_bounds():
    """At mean 0.9 the standard deviation is at most 0.05, so that two of them reach the bound."""
    seen = []

    def score(candidates, key):
        seen.append(candidates)
        return jnp.zeros(len(candidates))

    planner = planning.cem(1, 1, 4000, 400, 1)
    with jax.disable_jit():
        planner.plan(score, planner.start()._replace(mean=jnp.full((1, 1), 0.9)), jax.random.key(0))
    drawn = np.asarray(seen[0])
    assert 0.99 < drawn.max() <= 1.0 and 0.8 <= drawn.min() < 0.81
    assert drawn.std() == pytest.approx(0.05 * 0.8796, abs=0.001)  # of a normal cut at two standard deviations


def test_one_iteration_of_cem_moves_to_the_elites():
    """Momentum 0.1: 0.1 of the old mean and 0.9 of the mean of the best three."""
    seen = []

    def score(candidates, key):
        seen.append(candidates)
        return candidates[:, 0, 0]

    planner = planning.cem(1, 2, 10, 3, 1, momentum=0.1)
    start = planner.start()._replace(mean=jnp.full((2, 1), 0.2))
    with jax.disable_jit():
        memory, action = planner.plan(score, start, jax.random.key(0))
    drawn = np.asarray(seen[0])[:, :, 0]
    expected = 0.02 + 0.9 * drawn[np.argsort(drawn[:, 0])[-3:]].mean(0)
    assert float(action[0]) == pytest.approx(expected[0]) and float(memory.mean[0, 0]) == pytest.approx(expected[1])


def test_path_weights_are_those_of_the_papers():
    """exp(-(S - min S) / lambda) / eta with S = -return and lambda = 1 / temperature: Williams et al. 2017, eq. 34."""
    value, temperature = np.array([1.0, 3.0, 2.0]), 2.0
    expected = np.exp([-4.0, 0.0, -2.0]) / (np.exp(-4.0) + 1 + np.exp(-2.0))
    np.testing.assert_allclose(planning.path_weights(jnp.asarray(value), temperature), expected, rtol=1e-6)
    np.testing.assert_allclose(planning.path_weights(jnp.asarray([-jnp.inf, 0.0]), 1.0), [0, 1])


def test_one_iteration_of_mppi_is_the_weighted_mean_of_all_candidates():
    """For a linear return c.x under noise of variance s^2 the path integral moves the mean by temperature * s^2 * c."""
    planner = planning.mppi(1, 2, 100_000, 100_000, 1, temperature=2.0, max_std=0.1, min_std=0.0, adapt=False)
    memory, action = run(planner, lambda x, k: 3.0 * x[:, 0, 0] - 5.0 * x[:, 1, 0], 1)
    assert float(action[0, 0]) == pytest.approx(2.0 * 0.01 * 3.0, abs=0.002)
    assert float(memory.mean[0, 0, 0]) == pytest.approx(-2.0 * 0.01 * 5.0, abs=0.002)


@pytest.mark.parametrize("horizon", [8, 9, 1])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_coloured_noise_has_its_spectrum(horizon, exponent):
    """Variance 1 at every time, and power 1 / frequency^exponent, exactly, from the covariance basis @ basis.T."""
    basis = planning.coloured(horizon, exponent).astype(np.float64)
    covariance = basis @ basis.T
    np.testing.assert_allclose(np.diag(covariance), 1.0, rtol=1e-5)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(horizon // 2 + 1), np.arange(horizon)) / horizon)
    power = np.einsum("kt,ts,ks->k", waves, covariance, waves.conj()).real
    expected = np.maximum(np.arange(horizon // 2 + 1), 1.0) ** -exponent
    np.testing.assert_allclose(power / power[0], expected, rtol=1e-4)
    if exponent == 0:
        np.testing.assert_allclose(covariance, np.eye(horizon), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (planning.cem, {"elites": 401}, "elites of a planner with 400 candidates .* at most 400"),
        (planning.cem, {"momentum": 1.5}, "momentum .* at most 1"),
        (planning.cem, {"returns": "worst"}, "returns must be one of 'mean', 'best'"),
        (planning.icem, {"decay": 0.5}, "decay .* at least 1"),
        (planning.mppi, {"temperature": 0.0}, "temperature .* above 0"),
        (planning.mppi, {"min_std": 3.0}, "min_std .* at most 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(1, 3, **options)
