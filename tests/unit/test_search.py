"""Tree search: trees worked out by hand, rules of PUCT and Gumbel worked out in NumPy, illegal moves."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from jaxwm.control import search
from jaxwm.control.search import MASKED, Node, Root, Settings

A = 3


def chain(*edges):
    """A model in which action 0 alone is legal: node i leads to i + 1 by `edges[i] = (reward, discount, value)`."""
    table = jnp.array([*edges, (0.0, 0.0, 0.0)])

    def model(params, key, action, place):
        reward, discount, value = table[jnp.minimum(place, len(edges))].T
        legal = jnp.broadcast_to(jnp.arange(A) == 0, (len(place), A))
        logits = search.mask(jnp.zeros((len(place), A)), legal)
        return Node(reward=reward, discount=discount, prior_logits=logits, value=value), place + 1

    return model


@cache
def searched(settings, model, greedy):
    """The compiled search; 0 as a number and 0 in an array are different programs."""
    heat = lambda temperature: 0.0 if greedy else temperature  # noqa: E731
    return jax.jit(lambda root, key, t: search.search(settings, None, root, model, key, heat(t)))


def run_many(settings, model, count, value=0.0, legal=(True,) * A, logits=(0.0,) * A, temperature=None):
    """The same search from `count` equal roots, which differ in their random numbers; greedy without a temperature."""
    row = (np.array(logits, np.float32), np.float32(value), np.int32(0), np.array(legal))
    root = Root(*(np.stack([x] * count) for x in row))
    program = searched(settings, model, temperature is None)
    heat = np.broadcast_to(np.float32(temperature or 0) if np.ndim(temperature) == 0 else temperature, count)
    return jax.device_get(program(root, jax.random.key(0), heat))


def run(settings, model, value=0.0, legal=(True, False, False), logits=(0.0,) * A):
    return jax.tree.map(lambda x: x[0], run_many(settings, model, 1, value, legal, logits))


def both(**options):
    return [Settings(kind, bounds=(-1.0, 1.0), **options) for kind in ("gumbel", "puct")]


@pytest.mark.parametrize("settings", both(simulations=1), ids=["gumbel", "puct"])
def test_two_players_and_the_reward_of_the_one_who_moved(settings):
    """One edge: its reward 0.1 is the root player's, the value 0.5 behind it the other's."""
    found = run(settings, chain((0.1, -1.0, 0.5)), value=0.2)
    assert found.q[0] == pytest.approx(0.1 - 0.5)
    assert found.value == pytest.approx((0.2 + (0.1 - 0.5)) / 2)


@pytest.mark.parametrize(
    "simulations", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_nothing_is_worth_anything_after_the_end(kind, simulations):
    """The second edge ends the game with reward 1 for its mover; the network's 7 behind it must not count."""
    model = chain((0.1, -1.0, 0.5), (1.0, 0.0, 7.0))
    found = run(Settings(kind, simulations, bounds=(-1.0, 1.0)), model, value=0.2)
    # what each simulation brings back to the root, and to the node behind it (absorbing from the third on)
    root, child = [0.2], []
    for i in range(simulations):
        child.append(0.5 if i == 0 else 1.0)
        root.append(0.1 - child[-1])
    assert found.value == pytest.approx(np.mean(root)) and found.q[0] == pytest.approx(0.1 - np.mean(child))


def test_one_player_adds_up_discounted_rewards():
    found = run(Settings("gumbel", 2), chain((1.0, 0.9, 2.0), (3.0, 0.9, 4.0)), value=0.0)
    first, second = 1.0 + 0.9 * 2.0, 1.0 + 0.9 * (3.0 + 0.9 * 4.0)
    assert found.value == pytest.approx((0.0 + first + second) / 3, rel=1e-5)
    assert found.q[0] == pytest.approx((first + second) / 2, rel=1e-5)


def fork(rewards, discount=0.0):
    """A model of a single move: action a ends with `rewards[a]`; all of them stay legal behind it."""

    def model(params, key, action, place):
        reward = jnp.where(place == 0, jnp.array(rewards)[action], 0.0)
        zero = jnp.zeros(len(place))
        node = Node(reward=reward, discount=zero + discount, prior_logits=jnp.zeros((len(place), A)), value=zero)
        return node, place + 1

    return model


@pytest.mark.parametrize("settings", both(simulations=16, considered=A), ids=["gumbel", "puct"])
def test_the_move_that_wins_is_found(settings):
    found = run(settings, fork((-1.0, 0.0, 1.0)), legal=(True,) * A)
    assert found.action == 2 and found.policy.argmax() == 2 and found.q.tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_the_gumbel_policy_is_that_of_the_paper(bounds):
    """Two simulations visit two of three actions: softmax(logits + (50 + max N) c q), q completed and scaled."""
    logits, rewards, value = np.array([0.5, 0.2, -1.0]), np.array([0.3, -0.6, 0.9]), 0.1
    settings = Settings("gumbel", 2, considered=2, bounds=bounds)
    found = run(settings, fork(tuple(rewards)), value, (True,) * A, tuple(logits))
    prior = np.exp(logits) / np.exp(logits).sum()
    tried = prior[:2] / prior[:2].sum()
    mixed = (value + 2 * tried @ rewards[:2]) / 3
    q = np.array([*rewards[:2], mixed])
    scaled = (q + 1) / 2 if bounds else 0.1 * (q - q.min()) / (q.max() - q.min())
    scores = logits + (50 + 1) * scaled
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose(found.policy, expected, rtol=1e-4)
    assert found.q[2] == 0 and found.action == 0


def test_puct_visits_are_those_of_the_formula():
    """Eleven simulations of a single move, step by step in NumPy with AlphaZero's rule."""
    logits, rewards, sims = np.array([1.0, 0.0, 0.3]), np.array([0.1, 0.6, -0.2]), 11
    found = run(Settings("puct", sims, bounds=(-1.0, 1.0)), fork(tuple(rewards)), 0.0, (True,) * A, tuple(logits))
    prior, visits = np.exp(logits) / np.exp(logits).sum(), np.zeros(A)
    for _ in range(sims):
        total = 1 + visits.sum()
        c = 1.25 + np.log((total + 19652 + 1) / 19652)
        scaled = np.where(visits > 0, (rewards + 1) / 2, 0.0)
        visits[np.argmax(scaled + c * prior * np.sqrt(total) / (1 + visits))] += 1
    np.testing.assert_allclose(found.policy, visits / sims, atol=1e-6)
    assert found.action == visits.argmax()


def test_without_bounds_q_is_scaled_by_the_whole_tree():
    """Schrittwieser et al. 2020, equation 5, against mctx's default, which looks at one node and its children."""
    key = jax.random.key(0)
    rewards = jax.random.normal(key, (100, A))

    def model(params, key, action, place):
        reward = rewards[place, action]
        child = (place * A + action + 1) % 100
        return Node(
            reward=reward, discount=jnp.full(1, 0.9), prior_logits=jnp.zeros((1, A)), value=rewards[child, 0]
        ), child

    root = mctx.RootFnOutput(prior_logits=jnp.zeros((1, A)), value=jnp.zeros(1), embedding=jnp.zeros(1, jnp.int32))
    tree = jax.jit(lambda: mctx.muzero_policy(None, key, root, model, 20, qtransform=search.tree_q).search_tree)()
    one = jax.tree.map(lambda x: x[0], jax.device_get(tree))
    q = np.asarray(one.children_rewards + one.children_discounts * one.children_values)
    tried = np.asarray(one.children_visits) > 0
    low, high = q[tried].min(), q[tried].max()
    rule, common = jax.jit(search.tree_q), jax.jit(mctx.qtransform_by_parent_and_siblings)
    differs = 0.0
    for node in range(21):
        expected = np.where(tried[node], (q[node] - low) / (high - low), 0.0)
        found = np.asarray(rule(one, np.int32(node)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        differs = max(differs, np.abs(found - common(one, np.int32(node))).max())
    assert differs > 0.1


@pytest.mark.parametrize("settings", both(simulations=60, considered=A), ids=["gumbel", "puct"])
def test_illegal_moves_are_tried_in_no_node(settings):
    """Random masks, random values, and legal moves whose prior is 0 in float32."""

    def legal_at(place):
        allowed = jax.random.bernoulli(jax.random.key(3), 0.5, (1000, A))[place % 1000]
        return allowed | (jnp.arange(A) == (place % A)[:, None])

    def model(params, key, action, place):
        child = (place * 7 + action + 1) % 1000
        legal = legal_at(child)
        logits = search.mask(-1e4 * jax.random.uniform(key, (len(place), A)), legal)
        value = jax.random.uniform(key, (len(place),), minval=-1)
        zero = jnp.zeros(len(place))
        return Node(reward=zero, discount=zero - 1, prior_logits=logits, value=value), child

    start = jnp.arange(16) * 31
    root = Root(jnp.zeros((16, A)), jnp.zeros(16), start, legal_at(start))
    grow = jax.jit(lambda key: search._tree(settings, None, root, model, key, 1.0))
    result = grow(jax.random.key(0))
    tree = jax.tree.map(np.asarray, result.search_tree)
    illegal = ~np.asarray(legal_at(tree.embeddings.reshape(-1))).reshape(16, 61, A)
    seen = tree.node_visits > 0
    assert illegal[seen].sum() > 50 and tree.children_visits[seen].sum() > 16 * 60
    assert (tree.children_visits[seen][illegal[seen]] == 0).all()
    assert not illegal[:, 0][np.arange(16), np.asarray(result.action)].any()
    assert (np.asarray(result.action_weights)[illegal[:, 0]] == 0).all()


FLAT, SLOPE = fork((0.0, 0.0, 0.0)), (1.0, 0.0, 0.5)
"""A model in which every move is worth the same, and a prior that prefers some."""


@pytest.mark.parametrize("kind", ["gumbel", pytest.param("puct", marks=pytest.mark.slow)])
def test_greedy_is_the_same_for_every_key_and_exploring_is_not(kind):
    go = partial(run_many, Settings(kind, 8, considered=A, bounds=(-1.0, 1.0)), FLAT, 64, logits=SLOPE)
    still, lively = go(), go(temperature=1.0)
    assert set(still.action) == {0} and len(set(lively.action)) > 1
    assert np.ptp(still.policy, 0).max() < 1e-6


@pytest.mark.parametrize("kind", ["gumbel", pytest.param("puct", marks=pytest.mark.slow)])
def test_each_root_has_its_own_temperature(kind):
    settings = Settings(kind, 8, considered=A, noise=0.0, bounds=(-1.0, 1.0))
    heat = (np.arange(64) < 32).astype(np.float32)
    action = run_many(settings, FLAT, 64, logits=SLOPE, temperature=heat).action
    assert len(set(action[:32])) > 1 and set(action[32:]) == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="uct"), "search must be one of 'gumbel', 'puct', not 'uct'"),
        (dict(simulations=0), "simulations must be a whole number of at least 1"),
        (dict(considered=2.5), "considered must be a whole number"),
        (dict(dirichlet=0.0), "dirichlet must be a number above 0"),
        (dict(noise=1.5), "noise must be"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        search.check(Settings(**change))


def test_masked_logits_are_probability_zero():
    logits = search.mask(jnp.array([3.0, 1.0, 2.0]), jnp.array([True, False, True]))
    assert logits[1] == MASKED and jax.nn.softmax(logits)[1] == 0
