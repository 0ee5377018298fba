"""Trained on probes, Dreamer V3 predicts the values that the mathematics gives, not just the returns.

The value of a state leaves out the reward that arrived with it: V(s_t) = E[r_{t+1} + gamma_{t+1} V(s_{t+1})] under the
trained policy, with gamma = 1 - 1 / horizon at every state that is not terminal and 0 at those that are. The horizon is
short here, so that a discount too many or too few is seen.

Compiling takes longer than learning. The first tests therefore train once, on `medley`, whose episodes are the probes
in turn; the others train on each probe alone.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import agents, envs
from jaxwm.agents import dreamer_v3 as v3
from jaxwm.envs.pure import from_functions
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import Cursor, member_keys
from jaxwm.training.trainer import Trainer
from jaxwm.types import Box, Discrete, Env, Spec

MEMBERS, HORIZON = 2, 2.0
GAMMA = 1 - 1 / HORIZON
OPTIMAL = 0.99
"""Value of a reward of +1 for one action and -1 for the other: the sampled policy keeps 1 % of the uniform one."""

SETTINGS = dict(
    discount_horizon=HORIZON, imag_length=4, batch_size=8, batch_length=8, train_ratio=32.0, envs=8, prefill=256,
    capacity=1000, lr=5e-3, entropy=1e-2, free_nats=0.0, rep_scale=0.02,
)  # fmt: skip
"""Dreams as exact as possible: what is seen may be remembered in full, and the prior learns it in full (a free nat
would let it confuse the kinds of episodes). The small replay forgets the random actions, whose rewards pull the critic
down through the loss on replayed sequences."""


def medley(num_envs: int = 1) -> Env:
    """Episodes of four kinds: reward 1; reward s / 2 with the sign s seen; reward 1 after a second step; reward +-1 for
    the action. obs is float32 `[6]`: the kind (one-hot), s, and the step of the episode."""

    def show(state):
        kind, sign, time = state
        return jnp.concatenate([jax.nn.one_hot(kind, 4), sign[None], time[None].astype(jnp.float32)])

    def reset(key):
        a, b = jax.random.split(key)
        state = jax.random.randint(a, (), 0, 4), jax.random.rademacher(b, (), jnp.float32), jnp.int32(0)
        return state, show(state)

    def step(key, state, action):
        kind, sign, time = state
        state = kind, sign, time + 1
        reward = jnp.array([1.0, sign / 2, time, 2.0 * action - 1])[kind]
        return state, show(state), reward, (kind != 2) | (time == 1), False

    spec = Spec("test/Medley", jax.ShapeDtypeStruct((6,), jnp.float32), Discrete(2), 2)
    return from_functions(spec, reset, step, num_envs)


def train(make_env, steps: int, members: int = MEMBERS, **options) -> SimpleNamespace:
    """A population after `steps` environment steps, with what is needed to look at it."""
    config = agents.settings("dreamer-v3", "nano", **(SETTINGS | options))
    env = make_env(config.envs)
    agent = v3.make(env.spec, config)
    trainer = Trainer(agent, env, members, config.capacity)
    life, cursor = trainer.init(0), Cursor()
    while (left := steps - int(life.counters.steps)) > 0:
        life, cursor, _ = trainer.run(life, cursor, -(-left // trainer.steps_per_iteration(cursor)))
    learner = v3.Learner(v3.build(env.spec, config), env.spec, config)
    return SimpleNamespace(agent=agent, learner=learner, state=life.agent, make_env=make_env)


def look(trained: SimpleNamespace, steps: int, num_envs: int = 64):
    """Observations and critic's values of the first `steps` states of episodes, `[M, steps, N, ...]`."""
    agent, learner, env = trained.agent, trained.learner, trained.make_env(num_envs)

    def one(state, key):
        handle, step = env.reset(key)

        def turn(loop, t):
            carry, handle, step = loop
            carry, action, _ = agent.act(state, carry, step, jax.random.fold_in(key, t), "greedy")
            value = learner.scalar("val", state.params["val"], carry.latent.feat()).mean()
            return (carry, *env.step(handle, action)), (step.obs, value)

        return jax.lax.scan(turn, (agent.reset(state, num_envs), handle, step), jnp.arange(steps))[1]

    return jax.device_get(jax.jit(jax.vmap(one))(trained.state, member_keys(5, len(trained.state.step))))


def returns(trained: SimpleNamespace, episodes: int = 64) -> np.ndarray:
    """Greedy returns `[M, episodes]`."""
    keys = member_keys(1, len(trained.state.step))
    scores = evaluate(trained.agent, trained.make_env(episodes), trained.state, keys, episodes)
    assert scores.complete.all()
    return scores.total


def check(values: np.ndarray, expected, within: float = 0.1):
    """The values `[M, K]` or `[K]` are `expected`, in the median and nearly always.

    Not always: a latent is a sample, and 1 % of each is uniform, so some states are taken for others.
    """
    error = values - expected
    assert (np.abs(np.median(error, -1)) < within).all(), np.median(error, -1)
    assert ((np.abs(error) < 3 * within).mean(-1) > 0.85).all(), error


# --- All at once --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return train(medley, 3200)


@pytest.fixture(scope="module")
def seen(trained):
    """Kind, sign and value `[M, 2, N]` of the first two states of episodes, ends of episodes and new ones included."""
    obs, value = look(trained, 2)
    return SimpleNamespace(kind=obs[..., :4].argmax(-1), sign=obs[..., 4], time=obs[..., 5], value=value)


def of(seen, kind: int, time: int = 0):
    """Sign and value `[K]` of every member's states of a kind at a step."""
    chosen = (seen.kind == kind) & (seen.time == time)
    return [(seen.sign[m][chosen[m]], seen.value[m][chosen[m]]) for m in range(MEMBERS)]


@pytest.mark.slow
def test_constant_reward(seen):
    for _, value in of(seen, 0):
        check(value, 1.0)


@pytest.mark.slow
def test_reward_that_is_seen(seen):
    for sign, value in of(seen, 1):
        assert set(sign) == {-1.0, 1.0}
        check(value[sign < 0], -0.5)
        check(value[sign > 0], 0.5)


@pytest.mark.slow
def test_reward_two_steps_away_is_discounted_once(seen):
    for _, value in of(seen, 2):
        check(value, GAMMA)
    for _, value in of(seen, 2, time=1):
        check(value, 1.0)


@pytest.mark.slow
def test_reward_for_an_action(seen):
    for _, value in of(seen, 3):
        check(value, OPTIMAL)


@pytest.mark.slow
def test_returns_of_the_trained_policy(trained):
    """-1 comes from the wrong action alone, taken in an eighth of all episodes by chance.

    Trained members hardly take it (not never: see `check`).
    """
    total = returns(trained)
    assert set(np.unique(total)) - {-1.0} == {-0.5, 0.5, 1.0}
    assert ((total == -1).mean(-1) <= 2 / 64).all(), (total == -1).sum(-1)


# --- One by one ---------------------------------------------------------------------------------------------------


def probe(name: str):
    return lambda num_envs: envs.make(f"probe/{name}", num_envs=num_envs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected", "score"),
    [("ConstantReward", 1.0, 1.0), ("TwoStepDiscount", GAMMA, 1.0), ("ActionReward", OPTIMAL, 1.0)],
)
def test_probe(name, expected, score):
    trained = train(probe(name), 1600)
    _, value = look(trained, 1)
    check(value[:, 0], expected)
    assert (returns(trained) == score).all()


@pytest.mark.slow
def test_obs_reward():
    obs, value = look(train(probe("ObsReward"), 1600), 1)
    check(value[:, 0], obs[:, 0, :, 0])


@pytest.mark.slow
def test_continuous_target():
    """The best action is 1/2; a standard deviation of at least 0.1 costs the sampled policy at least 0.01."""
    trained = train(probe("ContinuousTarget"), 3200)
    assert trained.make_env(1).spec.action == Box(1)
    _, value = look(trained, 1)
    check(value[:, 0], -0.015, within=0.05)
    assert (returns(trained) > -0.01).all()


@pytest.mark.slow
def test_multi_sensor():
    """An image, a vector and two actions: each half of the reward needs another sensor and another action."""
    trained = train(probe("MultiSensor"), 2400, members=1)
    _, value = look(trained, 1)
    check(value[:, 0], OPTIMAL)
    assert (returns(trained).mean(1) > 0.95).all()
