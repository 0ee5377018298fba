"""AlphaZero: board games and their opponents, results of games by hand, the loss in NumPy, runs, play."""

import functools
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxwm import agents, envs
from jaxwm.__main__ import main
from jaxwm.agents import alphazero
from jaxwm.control import search
from jaxwm.envs import opponents
from jaxwm.studio import episodes, play
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import Cursor, member_keys
from jaxwm.training.trainer import Trainer
from jaxwm.types import Batch, Index, Record

TINY = dict(
    simulations=4,
    match_simulations=4,
    blocks=0,
    channels=4,
    head=2,
    units=4,
    batch_size=4,
    batch_length=10,
    envs=4,
    capacity=400,
)


def walk(env, moves):
    """The steps of an environment of one game after each of `moves`."""
    advance = jax.jit(env.step)
    handle, step = jax.jit(env.reset)(jax.random.key(0))
    steps = [step]
    for move in moves:
        handle, step = advance(handle, np.array([move], np.int32))
        steps.append(step)
    bare = [step._replace(obs={k: x for k, x in step.obs.items() if k != "sim"}) for step in steps]
    return jax.tree.map(lambda x: np.asarray(x)[0], bare)


# --- Environments -------------------------------------------------------------------------------------------------


def test_a_game_of_self_play():
    """X takes the left column against O in the middle one: the reward is the winner's, who moved last."""
    steps = walk(envs.make("pgx/TicTacToe"), [0, 1, 3, 4, 6, 8, 5])
    assert [int(s.obs["to_play"]) for s in steps] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert [float(s.reward) for s in steps] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert [bool(s.is_last) for s in steps] == [False] * 5 + [True, False, False]
    assert [bool(s.is_first) for s in steps] == [True] + [False] * 5 + [True, False]
    assert (steps[5].is_terminal, steps[5].obs["legal"].all()) == (True, True)
    assert steps[4].obs["legal"].tolist() == [False, False, True, False, False, True, True, True, True]
    board = steps[3].obs["board"]  # O is to move: its own piece first
    assert np.argwhere(board[..., 0]).tolist() == [[0, 1]] and np.argwhere(board[..., 1]).tolist() == [[0, 0], [1, 0]]
    assert steps[6].obs["board"].sum() == 0 and steps[7].obs["board"].sum() == 1


def test_the_model_is_absorbing_after_the_end():
    env = envs.make("pgx/TicTacToe")
    step, simulate = jax.jit(env.reset)(jax.random.key(0))[1], jax.jit(env.spec.simulate)
    seen = []
    for move in (0, 1, 3, 4, 6, 2, 2):
        step = jax.device_get(simulate(step.obs["sim"], np.array([move], np.int32)))
        seen.append((float(step.reward[0]), bool(step.is_last[0])))
    assert seen == [(0.0, False)] * 4 + [(1.0, True), (0.0, True), (0.0, True)]


def test_the_perfect_model_of_a_search():
    """Rewards for the mover, -1 between players, 0 at the end, illegal moves masked, the network silent after it."""
    env = envs.make("pgx/TicTacToe")
    model = alphazero.perfect_model(env.spec.simulate, lambda params, board: (jnp.ones((1, 9)), jnp.array([0.5])))
    step, expand = jax.jit(env.reset)(jax.random.key(0))[1], jax.jit(functools.partial(model, None))
    place, found = (step.obs["sim"], step.obs["to_play"]), []
    for move in (0, 1, 3, 4, 6, 5):
        node, place = jax.device_get(expand(jax.random.key(0), np.array([move], np.int32), place))
        found.append((float(node.reward[0]), float(node.discount[0]), float(node.value[0])))
        if len(found) == 2:
            assert node.prior_logits[0].tolist() == [search.MASKED] * 2 + [1.0] * 7
    assert found == [(0.0, -1.0, 0.5)] * 4 + [(1.0, 0.0, 0.0), (0.0, 0.0, 0.0)]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["TicTacToe", "ConnectFour"])
def test_sides_alternate_and_the_score_is_the_agents(task):
    """Random moves against random ones: every game ends in 1, 0 or -1, and both sides win some."""
    env = envs.make(f"pgx/{task}", 64, opponent="random")

    def turn(carry, key):
        handle, step = carry
        handle, step = env.step(handle, opponents.at_random(key, step.obs["sim"]))
        return (handle, step), (step.reward, step.is_last, step.is_first, step.obs["to_play"], handle.side)

    start = env.reset(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), env.spec.max_steps + 10)
    reward, last, first, turn_of, side = map(np.asarray, jax.jit(lambda s: jax.lax.scan(turn, s, keys)[1])(start))
    assert set(reward[last]) >= {1.0, -1.0} and (reward[~last] == 0).all()
    assert (turn_of == side)[~last].all(), "the agent sees its own turns"
    assert (np.asarray(start[0].side) == np.arange(64) % 2).all()
    assert (side[1:] != side[:-1])[first[1:]].all() and (side[1:] == side[:-1])[~first[1:]].all()
    assert (reward[last & (side == 0)]).mean() > (reward[last & (side == 1)]).mean(), "moving first helps"


def test_minimax_is_perfect():
    best = opponents.best_moves()
    assert best[0].all(), "every first move draws"
    number = lambda mine, theirs: sum(3**i for i in mine) + 2 * sum(3**i for i in theirs)  # noqa: E731
    assert np.flatnonzero(best[number([0, 1], [3, 4])]).tolist() == [2], "it wins"
    assert np.flatnonzero(best[number([0], [3, 4])]).tolist() == [5], "it parries"
    assert np.flatnonzero(best[number([], [0])]).tolist() == [4], "the middle alone holds against a corner"
    assert np.flatnonzero(best[number([], [4])]).tolist() == [0, 2, 6, 8], "a corner alone holds against the middle"
    board = np.zeros((2, 3, 3, 2), bool)
    board[0, 0, 1, 0] = board[0, 2, 2, 1] = True
    assert jax.jit(opponents.position)(board).tolist() == [number([1], [8]), 0]


def test_perfect_players_draw_and_beat_random_ones():
    env = envs.make("pgx/TicTacToe", 200, opponent="minimax")

    @jax.jit
    def game(perfect):
        def turn(carry, key):
            handle, step, total, over = carry
            best, any_move = (choose(key, step.obs["sim"]) for choose in (opponents.minimax, opponents.at_random))
            handle, step = env.step(handle, jnp.where(perfect, best, any_move))
            return (handle, step, total + ~over * step.reward, over | step.is_last), None

        start = *env.reset(jax.random.key(0)), jnp.zeros(200), jnp.zeros(200, bool)
        return jax.lax.scan(turn, start, jax.random.split(jax.random.key(2), 6))[0][2]

    assert (np.asarray(game(True)) == 0).all()
    chance = np.asarray(game(False))
    assert chance.max() <= 0 and chance.mean() < -0.7


@pytest.mark.slow
def test_plain_tree_search_wins_parries_and_tries_every_move():
    spec = envs.make("pgx/TicTacToe").spec
    start = envs.make("pgx/TicTacToe", 8).reset(jax.random.key(0))[1].obs["sim"]
    choose = opponents.mcts(spec.simulate, 200)
    for moves, answer in (([0, 3, 1, 4], 2), ([0, 3, 1], 2)):
        sim = start
        for move in moves:
            sim = spec.simulate(sim, jnp.full(8, move)).obs["sim"]
        assert (jax.jit(choose)(jax.random.key(0), sim) == answer).all()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("ConnectFour", dict(opponent="minimax"), "minimax is for pgx/TicTacToe alone"),
        ("ConnectFour", dict(opponent="human"), "opponent must be one of 'self', 'random', 'minimax', 'mcts'"),
        ("TicTacToe", dict(side="left"), "side must be one of"),
        ("TicTacToe", dict(opponent="mcts", simulations=0), "simulations must be"),
        ("TicTacToe", dict(oponent="mcts"), "did you mean 'opponent'"),
    ],
)
def test_wrong_options_of_games_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(f"pgx/{task}", **options)


# --- Results and loss ---------------------------------------------------------------------------------------------


def record(to_play, reward, first, last, terminal, value):
    """One sequence of tic-tac-toe records, boards and policies at random."""
    row = lambda x, dtype: np.array([x], dtype)  # noqa: E731
    length, rng = len(to_play), np.random.default_rng(5)
    legal = (rng.uniform(size=(1, length, 9)) < 0.6) | (np.arange(9) == 3)
    policy = (rng.uniform(size=(1, length, 9)) * legal).astype(np.float32)
    board = rng.uniform(size=(1, length, 3, 3, 2)) < 0.3
    obs = {"board": board, "legal": legal, "to_play": row(to_play, np.int32)}
    extras = {"policy": policy / policy.sum(-1, keepdims=True), "value": row(value, np.float32)}
    extras["random"] = np.zeros((1, length), bool)
    flags = (row(x, bool) for x in (first, last, terminal))
    return Record(obs, row(reward, np.float32), *flags, row([3] * length, np.int32), extras)


GAMES = record(
    #         a win of player 0 ...  a game that is cut off
    to_play=[0, 1, 0, 1, 0, 1, 0],
    reward=[0, 0, 0, 1, 0, 0, 0],
    first=[0, 0, 0, 0, 1, 0, 0],
    last=[0, 0, 0, 1, 0, 0, 0],
    terminal=[0, 0, 0, 1, 0, 0, 0],
    value=[0, 0, 0, 9, 0, 0, 0.25],
)


def results(games, bootstrap):
    return jax.device_get(jitted_results(games, bootstrap))


jitted_results = jax.jit(alphazero.results, static_argnums=1)


def test_results_of_games_by_hand():
    """Player 0 makes the winning move in record 2, whose reward arrives with record 3."""
    result, known = results(GAMES, False)
    assert result[0, :3].tolist() == [1.0, -1.0, 1.0] and known[0].tolist() == [True] * 3 + [False] * 3
    result, known = results(GAMES, True)
    assert result[0, :3].tolist() == [1.0, -1.0, 1.0] and result[0, 4:].tolist() == [0.25, -0.25]
    assert known[0].tolist() == [True] * 3 + [False, True, True], "nothing follows from the end of the game before"


def test_a_time_limit_is_no_end_and_one_player_keeps_the_sign():
    none = np.zeros((1, 7), np.int32)
    games = GAMES._replace(is_terminal=none > 0, obs={**GAMES.obs, "to_play": none})
    result, known = results(games, False)
    assert result[0, :3].tolist() == [10.0, 10.0, 10.0] and known[0, :3].all()


def batch_of(games) -> Batch:
    return Batch(games, Index(*np.zeros((2, 1), np.int32)), np.ones(1, np.float32))


def test_the_loss_in_numpy():
    env = envs.make("pgx/TicTacToe")
    config = agents.settings("alphazero", "tictactoe", **TINY, l2=0.01)
    agent = alphazero.make(env.spec, config)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    games = GAMES._replace(extras=GAMES.extras | {"random": np.arange(7)[None] == 4})
    found = jax.jit(agent.train_steps["all"].update)(state, batch_of(games), jax.random.key(0))
    (new, feedback, metrics), state = jax.device_get((found, state))
    logits, value = map(np.asarray, jax.jit(alphazero.Net(9, config).apply)(state.params, GAMES.obs["board"][0]))
    legal, target = GAMES.obs["legal"][0], GAMES.extras["policy"][0]
    cross, error = [], []
    for t, z in ((0, 1.0), (1, -1.0), (2, 1.0), (4, 0.25), (5, -0.25)):
        odds = np.exp(logits[t][legal[t]]) / np.exp(logits[t][legal[t]]).sum()
        cross.append(-(target[t][legal[t]] * np.log(odds)).sum())
        if t != 4:  # what follows from a move at random says nothing of the position
            error.append((z - value[t]) ** 2)
    square = sum(float(np.square(x).sum()) for x in jax.tree.leaves(state.params))
    assert metrics["loss/policy"] == pytest.approx(np.mean(cross), rel=1e-4)
    assert metrics["loss/value"] == pytest.approx(np.mean(error), rel=1e-4)
    assert metrics["loss"] == pytest.approx(np.mean(cross) + np.mean(error) + 0.01 * square, rel=1e-4)
    assert feedback == {} and int(new.step) == 1 and metrics["known"] == pytest.approx(0.8)
    step = np.concatenate(
        [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (state.params, new.params)), strict=True)]
    )
    moved = np.abs(step)[np.abs(step) > 0]
    np.testing.assert_allclose(np.median(moved), config.lr, rtol=1e-2)  # the first step of Adam


def test_the_learning_rate_falls_where_the_paper_says():
    env = envs.make("pgx/TicTacToe")
    agent = agents.make("alphazero", env.spec, "alphazero", **TINY, optimizer="sgd", lr=0.2, l2=0.0)
    state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
    state, update = jax.device_get(state), jax.jit(agent.train_steps["all"].update)
    length = {}
    for done in (0, 99_999, 100_000, 300_000, 500_000):
        new = jax.device_get(update(state._replace(step=np.int32(done)), batch_of(GAMES), jax.random.key(0))[0])
        moves = jax.tree.map(lambda a, b: np.square(a - b).sum(), new.params, state.params)
        length[done] = float(sum(jax.tree.leaves(moves))) ** 0.5
    ratios = [length[0] / length[done] for done in (99_999, 100_000, 300_000, 500_000)]
    assert ratios == pytest.approx([1, 10, 100, 1000], rel=0.02)


# --- The agent ----------------------------------------------------------------------------------------------------


@functools.cache
def beginners():
    """An agent, 32 games that begin with up to three moves at random, and where both start."""
    env = envs.make("pgx/TicTacToe", 32)
    agent = agents.make("alphazero", env.spec, "tictactoe", **TINY, random_moves=3)

    @jax.jit
    def begin(key):
        state = agent.init(key, agent.hyper)
        return state, (agent.reset(state, 32), *env.reset(key))

    return env, agent, *begin(jax.random.key(0))


@functools.cache
def games_in(mode: str) -> SimpleNamespace:
    """24 turns of the games of `beginners`."""
    env, agent, state, start = beginners()

    def turn(carry, key):
        memory, handle, step = carry
        memory, action, extras = agent.act(state, memory, step, key, mode)
        legal = jnp.take_along_axis(step.obs["legal"], action[:, None], 1)[:, 0]
        return (memory, *env.step(handle, action)), (legal, extras, memory, step.is_first)

    keys = jax.random.split(jax.random.key(1), 24)
    legal, extras, memory, first = jax.device_get(jax.jit(lambda start: jax.lax.scan(turn, start, keys)[1])(start))
    return SimpleNamespace(legal=legal, extras=extras, moves=memory.moves, opening=memory.opening, first=first)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["random", "explore", "greedy"])
def test_moves_are_legal_and_extras_have_one_structure(mode):
    games = games_in(mode)
    moves, extras = games.moves, games.extras
    assert games.legal.all() and games.first[1:].any() and (moves[games.first] == 1).all() and int(moves.max()) <= 10
    assert extras["random"].any() == (mode == "explore")
    assert extras["policy"].shape == (24, 32, 9) and extras["value"].shape == (24, 32)
    assert extras["policy"].dtype == extras["value"].dtype == np.float32
    np.testing.assert_allclose(extras["policy"].sum(-1), 1, rtol=1e-5)


def test_games_of_self_play_begin_at_random():
    """Up to `random_moves` of the first moves, each number in some game, and none later."""
    games = games_in("explore")
    assert set(np.unique(games.opening)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(games.extras["random"], games.moves <= games.opening)
    assert alphazero.PRESETS["tictactoe"].random_moves > 0, "the preset begins games at random"


@pytest.mark.slow
def test_an_untrained_search_wins_and_parries():
    """With 200 simulations a network that knows nothing is enough to see one or two moves ahead."""
    env = envs.make("pgx/TicTacToe", 2)
    for kind in ("gumbel", "puct"):
        agent = agents.make("alphazero", env.spec, "tictactoe", **TINY | dict(match_simulations=200, search=kind))
        state = jax.jit(agent.init)(jax.random.key(0), agent.hyper)
        act = jax.jit(lambda step, a=agent, s=state: a.act(s, a.reset(s, 2), step, jax.random.key(0), "greedy")[1:])
        for moves, answer in (([0, 3, 1, 4], 2), ([0, 3, 1], 2)):
            step = env.reset(jax.random.key(0))[1]
            for move in moves:
                step = env.spec.simulate(step.obs["sim"], jnp.full(2, move))
            action, extras = act(step)
            assert action.tolist() == [answer] * 2, (kind, moves)
            assert (extras["policy"].argmax(-1) == answer).all()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "actions"), [("GardnerChess", 1225), ("Go9x9", 82)])
def test_larger_games_play_and_learn(task, actions):
    env = envs.make(f"pgx/{task}", 2)
    small = TINY | dict(batch_length=3, batch_size=2, envs=2, simulations=2, capacity=20)
    agent = agents.make("alphazero", env.spec, "gumbel", **small)
    trainer = Trainer(agent, env, 1, 20)
    life, cursor = trainer.init(0), Cursor()
    while not int(life.counters.updates):
        life, cursor, report = trainer.run(life, cursor, 4)
    assert np.isfinite(report.metrics["loss"]).all() and life.ring.data.extras["policy"].shape[-1] == actions
    assert int(life.step.obs["sim"]._step_count.max()) >= 3


def test_other_systems_play_for_one_side_alone():
    with pytest.raises(ValueError, match=r"muzero plays for one side.*give it an opponent"):
        agents.make("muzero", envs.make("pgx/TicTacToe").spec)
    assert agents.make("muzero", envs.make("pgx/TicTacToe", opponent="random").spec, "catch")


def test_environments_that_cannot_be_simulated_are_refused():
    with pytest.raises(ValueError, match="alphazero searches in the environment itself"):
        agents.make("alphazero", envs.make("gymnax/Catch-bsuite").spec)
    with pytest.raises(ValueError, match="capacity must be"):
        agents.settings("alphazero", "tictactoe", capacity=10)
    for name in ("simulations", "match_simulations"):
        with pytest.raises(ValueError, match="simulations must be"):
            agents.settings("alphazero", "tictactoe", **{name: 0})


# --- Runs and play ------------------------------------------------------------------------------------------------


FLAGS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in TINY.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run by the command line, which reads its own checkpoint once more: the games on the table are part of it."""
    folder = tmp_path_factory.mktemp("runs") / "games"
    command = f"train alphazero --env pgx/TicTacToe --members 1 --steps 160 --episodes 10 {FLAGS} --run {folder}"
    assert main(f"{command} --score-option opponent=nobody".split()) == 2
    assert main(f"{command} --score-option opponent=minimax".split()) == 0
    assert main(f"resume {folder}".split()) == 0
    return folder


@pytest.mark.slow
def test_scores_are_those_of_an_opponent(run, capsys):
    assert main(f"eval {run} --episodes 20 --score-option side=first".split()) == 0
    assert main(f"eval {run} --episodes 20 --score-option opponent=nobody".split()) == 2
    said = capsys.readouterr()
    assert (
        "20 episodes after 160 environment steps" in " ".join(said.out.split())
        and "opponent must be one of" in said.err
    )


def played(run, side, words):
    """What a game in the terminal says, and its result."""
    words, out = iter(words), io.StringIO()

    def ask(prompt):
        try:
            return next(words)
        except StopIteration:
            raise EOFError from None

    result = play.play(episodes.open_player(run, 0, 1), Console(file=out, width=100), side, ask)
    return result, out.getvalue()


@pytest.mark.slow
def test_a_person_plays_in_the_terminal(run):
    result, said = played(run, "first", ["5", "ten", "5", "1", "2", "3", "4", "6", "7", "8", "9"])
    assert result in (-1.0, 0.0, 1.0) and "not 'ten'; you can play" in said and "not '5'" in said
    assert "the agent plays" in said and ("you win" in said or "a draw" in said or "the agent wins" in said)
    assert {1.0: "you win", 0.0: "a draw", -1.0: "the agent wins"}[result] in said
    result, said = played(run, "second", ["q"])
    assert result is None and "the agent plays" in said and "X" in said
    assert played(run, "first", [])[0] is None
    with pytest.raises(ValueError, match="side must be one of"):
        played(run, "third", [])


@pytest.mark.slow
def test_boards_and_moves_in_words():
    step = envs.make("pgx/ConnectFour").reset(jax.random.key(0))[1]
    assert play.moves("ConnectFour", step) == {str(i + 1): i for i in range(7)}
    assert play.board("ConnectFour", step).split("\n")[-1] == "1 2 3 4 5 6 7"
    go = envs.make("pgx/Go9x9").reset(jax.random.key(0))[1]
    assert {"A9": 0, "J1": 80, "PASS": 81}.items() <= play.moves("Go9x9", go).items()
    chess = envs.make("pgx/GardnerChess")
    step = chess.reset(jax.random.key(0))[1]
    known = play.moves("GardnerChess", step)
    assert sorted(known) == ["A2A3", "B1A3", "B1C3", "B2B3", "C2C3", "D2D3", "E2E3"]
    assert play.board("GardnerChess", step).split("\n")[0] == "5 r n b q k"
    step = chess.spec.simulate(step.obs["sim"], jnp.array([known["C2C3"]]))
    assert "2 P P . P P" in play.board("GardnerChess", step)
    assert {"B4C3", "D4C3", "B5A3", "B5C3", "A4A3"} <= set(play.moves("GardnerChess", step))


# --- Learning -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tic_tac_toe_is_never_lost():
    """Three seeds, 200 games from each side against perfect play."""
    config = agents.settings("alphazero", "tictactoe")
    env = envs.make("pgx/TicTacToe", config.envs)
    agent = alphazero.make(env.spec, config)
    trainer = Trainer(agent, env, 3, config.capacity)
    life, cursor = trainer.init(0), Cursor()
    while int(life.counters.steps) < 40_000:
        life, cursor, _ = trainer.run(life, cursor, 256)
    for side in ("first", "second"):
        judge = envs.make("pgx/TicTacToe", 200, opponent="minimax", side=side)
        assert (evaluate(agent, judge, life.agent, member_keys(1, 3), 200).total == 0).all(), side
