"""MB-MPO: trust-region steps, the policy's adaptation and its baseline by hand, dreams in the network of a task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs, replay, spaces
from jaxwm.agents import mb_mpo
from jaxwm.control import trpo
from jaxwm.types import Batch, Box, Discrete, Index, Record, Spec

SPEC = envs.make("continuous/Pendulum").spec
TINY = agents.settings(
    "mb-mpo", networks=2, model_layers=1, model_units=8, units=8, layers=1, tasks=4, paths=3, horizon=5, envs=2,
    adapt_lr=0.5, capacity=100,
)  # fmt: skip
NET = mb_mpo.network(SPEC, TINY)


def weights_of(seed: int):
    net = NET.init(jax.random.key(seed), jnp.zeros((1, 3)))
    net = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(seed + 1), x.shape), net)
    return {"net": net, "log_std": jnp.full(1, -0.3)}


def paths_of(seed: int, weights, count: int = 6, steps: int = 5) -> mb_mpo.Paths:
    keys = jax.random.split(jax.random.key(seed), 3)
    obs, reward = jax.random.normal(keys[0], (count, steps, 3)), jax.random.normal(keys[1], (count, steps))
    chosen = mb_mpo.policy(NET, weights, obs)
    action = chosen.pick(jax.random.normal(keys[2], chosen.mean.shape))
    return mb_mpo.Paths(obs, action, chosen.log_prob(action).sum(-1), reward, jnp.ones((count, steps)))


# --- Trust regions ------------------------------------------------------------------------------------------------


def test_conjugate_gradients_solve():
    root = np.random.default_rng(0).normal(size=(6, 6))
    matrix, target = jnp.asarray(root @ root.T + np.eye(6), jnp.float32), jnp.arange(6.0)
    found = jax.jit(lambda: trpo.conjugate_gradients(lambda x: matrix @ x, target, 12))()
    np.testing.assert_allclose(matrix @ found, target, atol=1e-3)


def test_a_step_goes_as_far_as_the_region_in_the_natural_direction():
    """A linear gain and a quadratic divergence: sqrt(2 delta / g F^-1 g) F^-1 g."""
    bend, slope = jnp.array([4.0, 1.0]), jnp.array([1.0, 2.0])
    params = {"a": jnp.array([0.5]), "b": jnp.array([-1.0])}
    flat = lambda p: jnp.stack([p["a"][0] - 0.5, p["b"][0] + 1.0])  # noqa: E731
    gain, apart = lambda p: slope @ flat(p), lambda p: 0.5 * (bend * flat(p) ** 2).sum()
    found, metrics = jax.jit(lambda p: trpo.step(gain, apart, p, trpo.Settings(0.01, damping=0.0)))(params)
    natural = slope / bend
    expected = np.sqrt(0.02 / (slope @ natural)) * natural
    scale = np.linalg.norm(flat(found)) / np.linalg.norm(expected)
    assert 0.79 < scale < 1.001 and float(metrics["divergence"]) <= 0.01 and float(metrics["accepted"]) == 1
    np.testing.assert_allclose(
        flat(found) / np.linalg.norm(flat(found)), expected / np.linalg.norm(expected), atol=1e-4
    )


@pytest.mark.parametrize("gain", [lambda p: -jnp.abs(p["x"]).sum(), lambda p: p["x"].sum() * jnp.nan])
def test_a_step_that_gains_nothing_is_not_taken(gain):
    params = {"x": jnp.zeros(2)}
    apart = lambda p: (p["x"] ** 2).sum()  # noqa: E731
    found, metrics = jax.jit(lambda p: trpo.step(gain, apart, p, trpo.Settings()))(params)
    assert not found["x"].any() and float(metrics["accepted"]) == 0


# --- The policy ---------------------------------------------------------------------------------------------------


def test_advantages_are_what_the_baseline_does_not_explain():
    """By hand, with a path that ends after two steps; returns that are linear in the features leave nothing."""
    paths = paths_of(0, weights_of(0), 4, 6)
    alive = np.ones((4, 6), np.float32)
    alive[1, 2:] = 0
    paths = paths._replace(alive=jnp.asarray(alive))
    found = jax.jit(mb_mpo.advantages)(paths, jnp.float32(0.9))
    total = np.zeros((4, 7))
    for t in reversed(range(6)):
        total[:, t] = alive[:, t] * (np.asarray(paths.reward)[:, t] + 0.9 * total[:, t + 1])
    x = np.asarray(mb_mpo.features(paths.obs), np.float64)
    rows = alive.astype(bool)
    fitted = np.linalg.solve(x[rows].T @ x[rows] + 1e-5 * np.eye(10), x[rows].T @ total[:, :6][rows])
    rest = (total[:, :6] - x @ fitted)[rows]
    np.testing.assert_allclose(np.asarray(found)[rows], (rest - rest.mean()) / rest.std(), atol=2e-2)
    assert x.shape[-1] == 10 and x[0, 3, 6] == pytest.approx(0.03)


def test_an_adaptation_is_a_step_of_policy_gradient():
    """Of the mean of log-density times advantage, by differences."""
    weights = weights_of(0)
    paths = paths_of(1, weights)
    advantage = jax.random.normal(jax.random.key(5), (6, 5))
    moved = jax.jit(lambda w: mb_mpo.adapt(NET, w, paths, advantage, jnp.float32(0.5)))(weights)

    @jax.jit
    def value(std):
        chosen = mb_mpo.policy(NET, weights | {"log_std": std}, paths.obs)
        return (chosen.log_prob(paths.action).sum(-1) * advantage).mean()

    numeric = (value(jnp.full(1, -0.299)) - value(jnp.full(1, -0.301))) / 2e-3
    assert float(moved["log_std"][0] + 0.3) == pytest.approx(0.5 * float(numeric), rel=0.02)
    ratio = jax.jit(lambda w: mb_mpo.surrogate(NET, w, paths, jnp.ones((6, 5))))(weights)
    assert float(ratio) == pytest.approx(1.0, abs=1e-5)


# --- The system ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system():
    agent = mb_mpo.make(SPEC, TINY)
    return agent, jax.jit(agent.init)(jax.random.key(0), agent.hyper)


def first_records(count: int) -> Batch:
    obs = jax.random.normal(jax.random.key(3), (count, 1, 3))
    zero, first = jnp.zeros((count, 1)), jnp.ones((count, 1), bool)
    record = Record(obs, zero, first, ~first, ~first, zero[..., None], {})
    return Batch(record, Index(jnp.arange(count), jnp.zeros(count, jnp.int32)), jnp.ones(count))


def test_each_task_dreams_in_its_network(system):
    """Network e is that of tasks 2 e and 2 e + 1: where it stands still, nothing moves."""
    state = system[1]
    last = {name: value.at[0].set(0.0) for name, value in state.params["model"].items() if name[-1] == "1"}
    params = state.params | {"model": state.params["model"] | last}
    start = jax.random.normal(jax.random.key(0), (4, 3, 3))
    found = jax.jit(lambda p: mb_mpo.dream(SPEC, TINY, p, p["adapted"], start, jax.random.key(1)))(params)
    assert found.obs.shape == (4, 3, 5, 3) and found.reward.shape == (4, 3, 5) and (found.alive == 1).all()
    still = np.asarray(found.obs[:, :, -1] == start)
    assert still[:2].all() and not still[2:].all(-1).any()
    np.testing.assert_array_equal(found.obs[:, :, 0], start)


def test_a_step_improves_the_adapted_policies_and_moves_the_policy_alone(system):
    agent, state = system
    step = agent.train_steps["policy"]
    assert (step.batch_size, step.length) == (12, 1)
    after, _, metrics = jax.jit(step.update)(state, first_records(12), jax.random.key(2))
    assert float(metrics["accepted"]) == 1 and float(metrics["gain"]) > 0
    assert 0 < float(metrics["divergence"]) <= 0.0101
    same = lambda name: jax.tree.map(np.testing.assert_array_equal, after.params[name], state.params[name])  # noqa: E731
    same("model"), same("adapted")
    assert not np.array_equal(after.params["policy"]["log_std"], state.params["policy"]["log_std"])


def test_every_environment_is_played_by_the_policy_of_its_task(system):
    agent, state = system
    finish = agent.train_steps["adapt"].update
    state, _, metrics = jax.jit(finish)(state, first_records(12), jax.random.key(2))
    assert float(metrics["distance"]) > 0
    step = spaces.blank_step(SPEC, 6)._replace(obs=jnp.ones((6, 3)))
    action = jax.jit(lambda s: agent.act(s, (), step, jax.random.key(0), "greedy")[1])(state)[:, 0]
    assert len(set(np.asarray(action[:4]).tolist())) == 4 and action[4] == action[0] and action[5] == action[1]


def test_first_records_are_drawn_alike():
    """Of all episodes that the ring holds, and of nothing else."""
    first = np.zeros((10, 2), bool)
    first[[1, 4, 9], [0, 1, 0]] = True
    blank = Record(
        jnp.zeros((2, 1)), *(jnp.zeros(2, x) for x in (jnp.float32, bool, bool, bool)), jnp.zeros((2, 1)), {}
    )
    ring = replay.init(blank, 40, 2)
    for t in range(8):
        ring = replay.add(ring, blank._replace(is_first=jnp.asarray(first[t]), reward=jnp.full(2, float(t))))
    batch = replay.starts(ring, jax.random.key(0), 400)
    found = np.asarray(batch.record.reward[:, 0])
    assert set(found.tolist()) == {1.0, 4.0} and 150 < (found == 1).sum() < 250
    assert np.asarray(batch.record.is_first).all()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Spec("t/Chosen", jax.ShapeDtypeStruct((3,), jnp.float32), Discrete(3)), "Gaussian policy"),
        (Spec("t/Unknown", jax.ShapeDtypeStruct((3,), jnp.float32), Box(1)), "reward of t/Unknown is not known"),
    ],
)
def test_what_it_cannot_do_is_one_line(spec, words):
    with pytest.raises(ValueError, match=words):
        agents.make("mb-mpo", spec)
    with pytest.raises(ValueError, match="multiple of the 2 networks"):
        dataclasses.replace(TINY, tasks=3)
