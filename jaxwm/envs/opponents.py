"""Fixed opponents for board games: at random, perfect play of tic-tac-toe, plain Monte Carlo tree search.

An opponent is a function `(key, sim) -> action` for N games at once: `sim` is a pgx state `[N, ...]`, the action int32
`[N]`. It shares nothing with the agents that are measured against it."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array, Key, PyTree, Step

Opponent = Callable[[Key, PyTree], Array]

ILLEGAL = float(np.finfo(np.float32).min)  # the logit of an illegal action
EXPLORATION = 2**0.5  # the constant c of UCB1, for values in [-1, 1]
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def at_random(key: Key, sim: Any) -> Array:
    """A legal move, each equally likely."""
    return jax.random.categorical(key, _logits(sim.legal_action_mask))


def _logits(legal: Any) -> Array:
    return jnp.where(legal, 0.0, ILLEGAL)


def minimax(key: Key, sim: Any) -> Array:
    """Perfect play of tic-tac-toe: any of the best moves, each equally likely, so that games differ."""
    best = jnp.asarray(best_moves())[position(sim.observation)]
    return jax.random.categorical(key, _logits(best))


def position(board: Array) -> Array:
    """The number of a position, from planes `[..., 3, 3, 2]` of the player to move and of the other one."""
    cells = board[..., 0] + 2 * board[..., 1].astype(jnp.int32)
    return (cells.reshape(*cells.shape[:-2], 9) * 3 ** np.arange(9)).sum(-1)


@cache
def best_moves() -> np.ndarray:
    """bool `[3 ** 9, 9]`: the moves of greatest value in each position that can occur."""
    table = np.zeros((3**9, 9), bool)

    @cache
    def value(cells: tuple[int, ...]) -> int:
        """1, 0 or -1 for the player to move, whose cells are 1; those of the other one are 2."""
        if any(all(cells[i] == 2 for i in line) for line in LINES):
            return -1
        free = [i for i in range(9) if not cells[i]]
        if not free:
            return 0
        values = {i: -value(_after(cells, i)) for i in free}
        best = max(values.values())
        table[sum(c * 3**i for i, c in enumerate(cells)), [i for i in free if values[i] == best]] = True
        return best

    value((0,) * 9)
    return table


def _after(cells: tuple[int, ...], move: int) -> tuple[int, ...]:
    """The board after a move, as the other player sees it."""
    return tuple((0, 2, 1)[1 if i == move else c] for i, c in enumerate(cells))


def mcts(simulate: Callable[[PyTree, Array], Step], simulations: int) -> Opponent:
    """UCT (Kocsis & Szepesvari 2006): UCB1 in the tree, one random playout for each new node, the most visited move."""
    mctx: Any = import_module("mctx")  # here, as most environments have no use for it

    def playout(key: Key, sim: Any) -> Array:
        """The outcome `[N]` of a random game, for the player to move."""

        def turn(state: tuple) -> tuple:
            key, sim, sign, outcome = state
            key, draw = jax.random.split(key)
            step = simulate(sim, at_random(draw, sim))
            return key, step.obs["sim"], -sign, outcome + sign * step.reward

        ones = jnp.ones(len(sim.terminated))
        return jax.lax.while_loop(lambda s: ~s[1].terminated.all(), turn, (key, sim, ones, 0 * ones))[-1]

    def model(params: None, key: Key, action: Array, sim: Any) -> tuple[Any, Any]:
        step = simulate(sim, action)
        after, discount = step.obs["sim"], jnp.where(step.is_terminal, 0.0, -1.0)
        prior, value = _logits(step.obs["legal"]), playout(key, after)
        return mctx.RecurrentFnOutput(reward=step.reward, discount=discount, prior_logits=prior, value=value), after

    def choose(key: Key, sim: Any) -> Array:
        logits = _logits(sim.legal_action_mask)
        root = mctx.RootFnOutput(prior_logits=logits, value=jnp.zeros(len(logits)), embedding=sim)
        at_root = lambda key, tree, node: ucb1(key, tree, node, 0)  # noqa: E731
        rules = dict(root_action_selection_fn=at_root, interior_action_selection_fn=ucb1)
        rules |= dict(num_simulations=simulations, invalid_actions=~sim.legal_action_mask)
        tree = mctx.search(None, key, root=root, recurrent_fn=model, **rules)
        return tree.summary().visit_counts.argmax(-1).astype(jnp.int32)

    return choose


def ucb1(key: Key, tree: Any, node: Array, depth: Any) -> Array:
    """The action of a node of one tree to try next: q + c sqrt(ln N / n), those never tried first, in random order."""
    tried = tree.children_visits[node]
    chance = jax.random.uniform(key, tried.shape)
    bonus = EXPLORATION * jnp.sqrt(jnp.log(jnp.maximum(1, tried.sum())) / jnp.maximum(1, tried))
    score = jnp.where(tried > 0, tree.qvalues(node) + bonus, 1e3 + chance)
    return jnp.where(tree.children_prior_logits[node] < 0, -jnp.inf, score).argmax(-1).astype(jnp.int32)
