"""Board games of pgx, pure: two players in turn, or one against a fixed opponent.

An observation is a dict:

- "board": planes `[H, W, C]` as pgx gives them, seen by the player to move (first its own pieces, then the other's);
- "legal": bool `[A]`; after the end all are legal and none changes anything;
- "to_play": int32 `[]`, 0 for the player who moved first, 1 for the other;
- "sim": the state of the game, what `spec.simulate` starts from. It is not kept in the replay.

Without an opponent an environment is self-play: the agent moves for both (`Spec.players` is 2), and the reward is that
of the player who has just moved: 1 for the winning move, 0 otherwise (in Go a move can lose at once, -1). The sum of
such rewards is no score. With one the agent plays one side and sees its own turns only; its reward is 1, 0 or -1."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.envs import border, opponents
from jaxwm.envs.pure import check_num_envs
from jaxwm.errors import check_choice, check_number
from jaxwm.types import Array, Discrete, Env, Key, PyTree, Spec, Step

GAMES = {"TicTacToe": "tic_tac_toe", "ConnectFour": "connect_four", "GardnerChess": "gardner_chess", "Go9x9": "go_9x9"}
"""Task -> the name that pgx has for it."""

LIMITS = {"TicTacToe": 9, "ConnectFour": 42, "GardnerChess": 256, "Go9x9": 162}  # moves to the end of a game


class Table(NamedTuple):
    """N games: their states, the agent's side (0 moves first), which are over, and keys `[N]`."""

    sim: PyTree
    side: Array
    over: Array
    key: Key


def pgx(
    task: str, num_envs: int = 1, opponent: Literal["self", "random", "minimax", "mcts"] = "self",
    side: Literal["both", "first", "second"] = "both", simulations: int = 100,
) -> Env:  # fmt: skip
    """The board game `task`, `num_envs` of it.
    `opponent` moves for the other side: "random", "minimax" (tic-tac-toe, perfect) or "mcts" (plain Monte Carlo tree
    search with `simulations` random playouts a move). `side` is the one the agent plays against it; "both" gives every
    other environment another one and changes with each game. Raises ValueError for an unknown opponent or side, and for
    minimax in another game."""
    check_num_envs(num_envs)
    check_choice("opponent", opponent, ("self", "random", "minimax", "mcts"))
    check_choice("side", side, ("both", "first", "second"))
    check_number("simulations", simulations, least=1, whole=True)
    if opponent == "minimax" and task != "TicTacToe":
        raise ValueError(f"minimax is for pgx/TicTacToe alone: against pgx/{task} take the opponent mcts or random")
    rules, simulate = _rules(task)
    known = {"self": None, "random": opponents.at_random, "minimax": opponents.minimax}
    reply = opponents.mcts(simulate, simulations) if opponent == "mcts" else known[opponent]
    begin = jax.vmap(rules.init)

    def settle(sim: PyTree, side: Array, reward: Array, key: Key, first: Array) -> tuple[Table, Step]:
        """The opponent's move, where it is its turn; then what the agent sees."""
        if reply:
            theirs = ~sim.terminated & (_to_play(sim) != side)
            answer = simulate(sim, reply(jax.random.fold_in(key[0], 1), sim))
            sim = _select(theirs, answer.obs["sim"], sim)
            reward = reward - jnp.where(theirs, answer.reward, 0.0)
        return Table(sim, side, sim.terminated, key), _step(sim, reward, first)

    def reset(key: Key) -> tuple[Table, Step]:
        number = jnp.arange(num_envs)
        keys, draws = _split(jax.vmap(jax.random.fold_in, (None, 0))(key, number))
        sides = (number % 2 if side == "both" else jnp.full(num_envs, side == "second")).astype(jnp.int32)
        return settle(begin(draws), sides, jnp.zeros(num_envs), keys, jnp.ones(num_envs, bool))

    def step(now: Table, action: Array) -> tuple[Table, Step]:
        border.check_action(spec, action, (num_envs,))
        keys, draws = _split(now.key)
        moved = simulate(now.sim, action)
        sim = _select(now.over, begin(draws), moved.obs["sim"])
        sides = now.side ^ now.over if side == "both" else now.side
        return settle(sim, sides, jnp.where(now.over, 0.0, moved.reward), keys, now.over)

    sim = jax.eval_shape(rules.init, jax.random.key(0))
    obs = jax.eval_shape(_step, sim, sim.rewards, sim.terminated).obs
    spec = Spec(f"pgx/{task}", obs, Discrete(obs["legal"].shape[0]), LIMITS[task], simulate, 1 if reply else 2)
    return Env(spec, reset, step, num_envs, True)


def _rules(task: str) -> tuple[Any, Callable[[PyTree, Array], Step]]:
    """pgx's game, and `Spec.simulate` made of it."""
    import pgx

    rules: Any = pgx.make(GAMES[task])  # type: ignore[arg-type]
    advance = jax.vmap(rules.step)

    def simulate(sim: Any, action: Array) -> Step:
        after = advance(sim, action)  # pgx is absorbing: after the end nothing changes and rewards are 0
        reward = jnp.take_along_axis(after.rewards, sim.current_player[:, None], 1)[:, 0]
        return _step(after, reward, jnp.zeros_like(after.terminated))

    return rules, simulate


def _step(sim: Any, reward: Array, first: Array) -> Step:
    """What is seen of games `[N]`, with the reward that led there."""
    obs = {"board": sim.observation, "legal": sim.legal_action_mask, "to_play": _to_play(sim), "sim": sim}
    return Step(obs, reward.astype(jnp.float32), first, sim.terminated, sim.terminated)


def _to_play(sim: Any) -> Array:
    """0 where the player who began moves next, else 1. (pgx's `current_player` is a name, drawn for each game.)"""
    return sim._step_count % 2


def _select(which: Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where `which` `[N]`, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y), a, b)


def _split(keys: Key) -> tuple[Key, Key]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


PGX = {task: partial(pgx, task) for task in GAMES}
