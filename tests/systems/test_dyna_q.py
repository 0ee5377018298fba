"""Dyna-Q: the worlds by exhaustive computation, one update by hand, and learning against the book's figures."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import dyna
from jaxwm import agents, envs
from jaxwm.__main__ import main
from jaxwm.agents import dyna_q
from jaxwm.envs.pure import EnvState
from jaxwm.envs.tabular import COLUMNS, GOAL, MOVES, ROWS, WALLS
from jaxwm.report.charts import Series
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import member_keys
from jaxwm.types import Batch, Index, Record

# --- The worlds ---------------------------------------------------------------------------------------------------


def transitions(env, states, time, actions: int):
    """Next states `[A, S, ...]`, rewards and ends `[A, S]` of every action in every state."""
    count = len(states)
    keys = jax.random.split(jax.random.key(0), count)
    none = np.zeros(count, np.int32)
    now = EnvState((states, none + time), keys, none > 0, none)
    step = jax.jit(env.step)
    found = [jax.device_get(step(now, none + a)) for a in range(actions)]
    after = np.stack([state.state[0] for state, _ in found])
    return after, np.stack([step.reward for _, step in found]), np.stack([step.is_terminal for _, step in found])


def test_the_best_taxi_driver_earns_as_much_as_in_gymnasium():
    """Value iteration over all states: 7.93 on average over the 300 starts."""
    states = np.array([*np.ndindex(5, 5, 5, 4)], np.int32)  # row, column, passenger, destination
    after, reward, end = transitions(envs.make("tabular/Taxi", num_envs=500), states, 0, 6)
    index = ((after[..., 0] * 5 + after[..., 1]) * 5 + after[..., 2]) * 4 + after[..., 3]
    value = np.zeros(500)
    for _ in range(200):
        value = (reward + ~end * value[index]).max(0)
    starts = [i for i, (_, _, p, d) in enumerate(states) if p < 4 and p != d]
    assert len(starts) == 300 and value[starts].mean() == pytest.approx(7.93, abs=0.005)


@pytest.mark.parametrize(
    ("task", "size", "limit", "best"), [("FrozenLake", 4, 100, 0.744), ("FrozenLake8x8", 8, 200, 0.913)]
)
def test_the_best_way_over_the_ice_is_as_safe_as_in_gymnasium(task, size, limit, best):
    """Backward induction over the steps that are left; slipping sideways has probability 2/3."""
    states = np.array([*np.ndindex(size, size)], np.int32)
    env = envs.make(f"tabular/{task}", num_envs=size * size, slippery=False)
    after, reward, end = transitions(env, states, 0, 4)
    index, value = after[..., 0] * size + after[..., 1], np.zeros(size * size)
    for _ in range(limit):
        sure = reward + ~end * value[index]
        value = np.mean([sure, np.roll(sure, 1, 0), np.roll(sure, -1, 0)], 0).max(0)
    assert value[0] == pytest.approx(best, abs=0.0015)


def test_the_shortest_way_through_the_maze_has_fourteen_steps():
    env = envs.make("tabular/DynaMaze")
    (_, step), move = jax.device_get(jax.jit(env.reset)(jax.random.key(0))), jax.jit(env.step)
    assert step.obs.shape == (1, 6, 9, 1) and step.obs[0, 2, 0, 0] and step.obs.sum() == 1
    reached, frontier, steps = {(2, 0)}, [(2, 0)], 0
    while (0, 8) not in reached:
        steps, found = steps + 1, set()
        for place in frontier:
            for action in range(4):
                none = np.zeros(1, np.int32)
                _, step = move((np.array([place], np.int32), none, none, none > 0), none + action)
                found.add(tuple(int(x) for x in np.argwhere(np.asarray(step.obs)[0, ..., 0])[0]))
        frontier = list(found - reached)
        reached |= found
    assert steps == 14


def test_walls_change_after_real_steps_and_not_with_episodes():
    env = envs.make("tabular/BlockingMaze", change=5)
    place, none, move = np.array([[4, 8]], np.int32), np.zeros(1, np.int32), jax.jit(env.step)
    for total, expected in ((4, 3), (5, 4)):  # the gap on the right is open for five steps
        _, step = move((place, none + total, none, none > 0), none)
        assert np.argwhere(np.asarray(step.obs)[0, ..., 0]).tolist() == [[expected, 8]]
    state = (np.array([GOAL], np.int32), none + 7, none + 3, none == 0)
    (place, total, time, over), step = jax.device_get(move(state, none))
    assert step.is_first[0] and not over[0] and (int(total[0]), int(time[0])) == (7, 0) and place.tolist() == [[5, 3]]


# --- One update by hand -------------------------------------------------------------------------------------------


@functools.cache
def agent_of(**options):
    """An agent of the frozen lake, its first state and its jitted functions."""
    env = envs.make("tabular/FrozenLake")
    agent = dyna_q.make(env.spec, agents.settings("dyna-q", "maze", **options))
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    act, imagine = (jax.jit(f, static_argnums=4) for f in (agent.act, agent.imagine))
    updates = {name: jax.jit(step.update) for name, step in agent.train_steps.items()}
    return SimpleNamespace(agent=agent, state=state, env=env, act=act, imagine=imagine, **updates)


def pair(s: int, a: int, reward: float, after: int, first=False, terminal=False) -> Batch:
    """The two records of a transition."""
    obs = (np.arange(16) == np.array([[[s], [after]]])).reshape(1, 2, 4, 4, 1)
    flags = (np.array([[False, flag]]) for flag in (first, terminal, terminal))
    record = Record(obs, np.array([[0, reward]], np.float32), *flags, np.array([[a, 0]], np.int32), {})
    zero = np.zeros(1, np.int32)
    return Batch(record, Index(zero, zero), np.ones(1, np.float32))


@pytest.mark.parametrize("model", ["last", "counts"])
def test_real_steps_teach_the_table_and_the_model(model):
    one = agent_of(model=model, discount=0.5)
    real = lambda *args: jax.device_get(one.real(*args))  # noqa: E731
    state, _, metrics = real(one.state, pair(3, 1, 2.0, 5), jax.random.key(0))
    assert state.params["q"][3, 1] == pytest.approx(0.1 * 2.0) and metrics["td_error"] == 2.0
    state, _, _ = real(state, pair(5, 0, 1.0, 3), jax.random.key(0))
    assert state.params["q"][5, 0] == pytest.approx(0.1 * (1.0 + 0.5 * 0.2))
    before = state
    state, _, _ = real(state, pair(5, 2, 9.0, 1, first=True), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state, before)  # a new episode follows from nothing
    state, _, _ = real(state, pair(3, 1, 0.0, 7, terminal=True), jax.random.key(0))
    assert state.params["q"][3, 1] == pytest.approx(0.2 - 0.1 * 0.2), "no value follows the end"
    memory = state.memory
    assert int(memory.count) == 2 and memory.pairs[:2].tolist() == [3 * 4 + 1, 5 * 4 + 0]
    assert (int(memory.time), int(memory.tried[3, 1]), int(memory.tried[5, 0])) == (3, 3, 2)
    if model == "last":
        assert (int(memory.model.state[3, 1]), float(memory.model.reward[3, 1]), float(memory.model.alive[3, 1])) == (
            7,
            0,
            0,
        )
    else:
        assert float(memory.model.visits[3, 1]) == 2 and float(memory.model.reward[3, 1]) == 2.0
        assert memory.model.alive[3, 1].tolist() == [float(s == 5) for s in range(16)]


def test_planning_learns_from_the_model_and_the_bonus():
    """One known pair that leads from 3 to the end with reward 1, last tried 4 steps ago."""
    one = agent_of(planning=1, bonus=0.5, step_size=1.0)
    state, _, _ = one.real(one.state, pair(3, 1, 1.0, 7, terminal=True), jax.random.key(0))
    assert int(state.memory.count) == 4, "with a bonus, all actions of a state become known"
    state = state._replace(memory=state.memory._replace(time=np.int32(5)), params={"q": np.zeros((16, 4), np.float32)})
    seen = {}
    for seed in range(40):
        new, _, _ = one.plan(state, pair(0, 0, 0, 0), jax.random.key(seed))
        q = np.asarray(new.params["q"])
        where = np.argwhere(q)
        assert len(where) == 1 and where[0, 0] == 3
        seen[int(where[0, 1])] = float(q[3, where[0, 1]])
    tried, never = 1.0 + 0.5 * 2.0, 0.5 * 5**0.5
    assert seen == {1: pytest.approx(tried), 0: pytest.approx(never), 2: pytest.approx(never), 3: pytest.approx(never)}


def test_an_empty_model_plans_nothing_and_dreams_stay_in_place():
    one = agent_of()
    new, _, _ = one.plan(one.state, pair(0, 0, 0, 0), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, new, one.state)
    dream = one.imagine(one.state, pair(0, 0, 0, 9).record, None, jax.random.key(0), 3)
    assert (
        dream.obs.shape == (1, 3, 4, 4, 1)
        and dream.latent.tolist() == [[9, 9, 9]]
        and dream.cont.tolist() == [[1, 1, 1]]
    )


@pytest.mark.parametrize("model", ["last", "counts"])
def test_dreams_walk_through_what_was_learned(model):
    one = agent_of(model=model, discount=0.5)
    state = one.state
    for step in (pair(0, 2, 0.0, 1), pair(1, 2, 0.5, 2), pair(2, 1, 1.0, 6, terminal=True)):
        state, _, _ = one.real(state, step, jax.random.key(0))
    given = np.array([[2, 2, 1]], np.int32)
    dream = jax.device_get(one.imagine(state, pair(9, 0, 0, 0).record, given, jax.random.key(0), 3))
    assert dream.latent[0, :2].tolist() == [1, 2] and dream.reward[0].tolist() == [0.0, 0.5, 1.0]
    assert dream.cont[0].tolist() == [1.0, 1.0, 0.0] and dream.action.tolist() == [[2, 2, 1]]


def test_ties_are_broken_at_random_and_epsilon_is_kept():
    one = agent_of(epsilon=0.3)
    step = jax.device_get(jax.jit(one.env.reset)(jax.random.key(0))[1])
    step = jax.tree.map(lambda x: np.repeat(x, 4000, 0), step)
    act = lambda state, mode: np.asarray(one.act(state, (), step, jax.random.key(1), mode)[1])  # noqa: E731
    assert np.bincount(act(one.state, "greedy"), minlength=4) / 4000 == pytest.approx(0.25, abs=0.03)
    best = np.zeros((16, 4), np.float32)
    best[0, 2] = 1
    state = one.state._replace(params={"q": best})
    assert (act(state, "greedy") == 2).all()
    assert (act(state, "explore") == 2).mean() == pytest.approx(0.7 + 0.3 / 4, abs=0.03)


@pytest.mark.parametrize("name", ["gymnax/CartPole-v1", "gymnax/Catch-bsuite", "probe/Recall"])
def test_observations_that_are_no_table_are_refused(name):
    with pytest.raises(ValueError, match=f"dyna-q needs the index of a state.*{name}"):
        agents.make("dyna-q", envs.make(name).spec)


@pytest.mark.parametrize("name", ["gymnax/FrozenLake-misc", "gymnax/DeepSea-bsuite", "tabular/Taxi"])
def test_a_state_index_is_seen(name):
    assert agents.make("dyna-q", envs.make(name).spec)


# --- Learning -----------------------------------------------------------------------------------------------------


def test_planning_shortens_the_second_episode():
    """The book's figure 8.2 (30 runs): about 40 steps with n = 50, and the shortest ways (14) from the fourth on."""
    trained = dyna.train("DynaMaze", 10, episodes=20, planning=50)
    found = dyna.lengths(trained)
    assert found[1] < 80 and (found[3:20] <= 20).all() and (found >= 14).all()
    for each in trained.episodes:  # real steps until the end, length, return
        assert (each[:, 0] == each[:, 1].cumsum()).all() and (each[:, 1] >= 14).all() and (each[:, 2] == 1).all()


def test_cumulative_reward_counts_real_steps():
    """Episodes of 3, 2 and 4 steps with rewards 1, 0 and 2, and one of 9 steps with reward 1."""
    episodes = [np.array([[3.0, 3, 1], [5, 2, 0], [9, 4, 2]]), np.array([[9.0, 9, 1]])]
    found = dyna.rewards(dyna.Trained(episodes, agent_of().agent, None), 9)
    assert found[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 3] and found[:, 1].tolist() == [0] * 9 + [1]


def test_the_goal_is_reached_by_the_worst_member():
    curve = Series("", 0, np.array([2, 10, 20]), np.array([[0.0, 0.8], [0.6, 0.9], [0.7, 0.7]]))
    assert dyna.steps_to(curve, 0.6) == 10 and dyna.steps_to(curve, 0.7) == 20 and dyna.steps_to(curve, 0.8) is None


@pytest.mark.slow
def test_first_episodes_without_planning_are_those_of_a_random_walk():
    """Expected steps from the start by linear algebra: before the first reward all actions are equal, and in the second
    episode all but the last one of the first, which leads into the goal from below."""
    free = [(r, c) for r in range(ROWS) for c in range(COLUMNS) if (r, c) not in WALLS["DynaMaze"] and (r, c) != GOAL]
    expected = []
    for sure in (0.25, 0.9 + 0.1 / 4):
        moves = np.zeros((len(free), len(free)))
        for i, (r, c) in enumerate(free):
            for action, (down, right) in enumerate(MOVES):
                odds = [sure, *[(1 - sure) / 3] * 3][action] if (r, c) == (1, 8) else 0.25
                to = (min(max(r + down, 0), ROWS - 1), min(max(c + right, 0), COLUMNS - 1))
                if to != GOAL:
                    moves[i, free.index(to) if to in free else i] += odds
        expected.append(np.linalg.solve(np.eye(len(free)) - moves, np.ones(len(free)))[free.index((2, 0))])
    trained = dyna.train("DynaMaze", 300, episodes=2, planning=0)
    for episode in (0, 1):
        found = np.array([each[episode, 1] for each in trained.episodes])
        assert found.mean() == pytest.approx(expected[episode], abs=3 * found.std() / 300**0.5)


@pytest.mark.slow
def test_steps_per_episode_are_those_of_the_book():
    none, five = (dyna.lengths(dyna.train("DynaMaze", 30, episodes=40, planning=n)) for n in (0, 5))
    assert dyna.first_good(none) >= 20 and 4 <= dyna.first_good(five) <= 8
    assert none[1] > 3 * five[1] and 100 < five[1] < 250


def after_the_change(task: str, members: int, preset: str, steps: int, change: int) -> list[np.ndarray]:
    """Reward of Dyna-Q+ and Dyna-Q `[M]` between the change and the end."""
    both: tuple[dict[str, Any], ...] = ({}, {"bonus": 0.0})
    trained = [dyna.train(task, members, steps, preset=preset, **options) for options in both]
    return [total[-1] - total[change] for total in (dyna.rewards(each, steps) for each in trained)]


@pytest.mark.slow
def test_the_bonus_finds_the_shortcut():
    plus, plain = after_the_change("ShortcutMaze", 3, "plus", 6000, 3000)
    assert plus.min() >= 200 and plain.max() <= 180


@pytest.mark.slow
def test_the_bonus_finds_a_way_around_the_block():
    plus, plain = after_the_change("BlockingMaze", 10, "blocking", 3000, 1000)
    assert plus.min() >= 40 and np.median(plain) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "preset", "goal"),
    [("FrozenLake", "lake", 0.70), ("FrozenLake8x8", "lake8x8", 0.85), ("Taxi", "taxi", 7.7)],
)
def test_models_save_real_steps(task, preset, goal):
    """The minimum of three seeds over 1,000 episodes, after 20,000 real steps; without planning nobody gets there."""
    env = envs.make(f"tabular/{task}", num_envs=1000)
    for options, there in (({}, True), ({"planning": 0}, False)):
        trained = dyna.train(task, 3, steps=20_000, preset=preset, **options)
        found = evaluate(trained.agent, env, trained.state, member_keys(1, 3), 1000).means()
        assert (found >= goal).all() if there else (found < goal).all()


@pytest.mark.slow
def test_the_command_line_trains_stops_and_dreams(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(f"train dyna-q --env tabular/DynaMaze --members 2 --steps 3000 --episodes 5 --run {run}".split()) == 0
    assert main(f"eval {run} --episodes 5".split()) == 0
    assert main(f"dream {run} --context 2 --horizon 8 --episodes 2 --sequences 4".split()) == 0
    assert "trained (greedy)" in capsys.readouterr().out and (tmp_path / "run" / "dreams" / "dream.gif").exists()
