"""`jaxwm play`: a person against the agent of a run, in the terminal."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxwm import envs
from jaxwm.envs.pgx import PGX
from jaxwm.errors import check_choice
from jaxwm.studio.episodes import Player
from jaxwm.training.life import ACT, ENV, stream
from jaxwm.types import Step

STONES = (" ", "[bold red]X[/bold red]", "[bold cyan]O[/bold cyan]")
"""Nothing, a piece of the player who moved first, one of the other."""

LETTERS = "ABCDEFGHJ"  # columns of a Go board; there is no I
QUIT = ("q", "quit", "exit")


def play(player: Player, console: Console, side: str = "first", ask: Callable[[str], str] = input) -> float | None:
    """One game against a member of a run; its result for the person, 1, 0 or -1, or None if they left.
    `ask` gets the prompt and returns what is typed. ValueError for a wrong side, and where there is no board game."""
    check_choice("--side", side, ("first", "second"))
    suite, _, task = (player.plan.env or "").partition("/")
    if suite != "pgx" or task not in PGX:
        raise ValueError(f"jaxwm play is for board games ({', '.join(PGX)}); this run's is {player.plan.env}")
    person = int(side == "second")
    console.print(f"{player.title()}. You are {STONES[1 + person]}; q leaves.", highlight=False)
    env, agent = envs.make(f"pgx/{task}"), player.agent
    handle, step = jax.jit(env.reset)(stream(player.key, ENV))
    advance, memory = jax.jit(env.step), agent.reset(player.state, 1)
    act = jax.jit(lambda memory, step, t: agent.act(player.state, memory, step, stream(player.key, ACT, t), "greedy"))
    for t in range(2**31):
        mover = int(step.obs["to_play"][0])
        console.print(board(task, step), highlight=False)
        if step.is_last[0]:
            break
        if mover == person:
            if (action := _asked(moves(task, step), console, ask)) is None:
                return None
        else:
            memory, chosen, extras = act(memory, step, t)
            action = int(chosen[0])
            value = f" (expects {float(extras['value'][0]):+.2f})" if "value" in extras else ""
            console.print(f"the agent plays {move_name(task, action, step)}{value}", highlight=False)
        handle, step = advance(handle, np.array([action], np.int32))
    # the reward is that of the player who has moved last, which is the other of the one to play
    result = float(step.reward[0]) * (1 if mover != person else -1)
    console.print({1: "you win", 0: "a draw", -1: "the agent wins"}[int(np.sign(result))])
    return result


def _asked(known: dict[str, int], console: Console, ask: Callable[[str], str]) -> int | None:
    """The action that a person wants; None if they leave."""
    while True:
        try:
            word = ask("your move: ").strip()
        except EOFError:
            return None
        if word.lower() in QUIT:
            return None
        if (name := word if word in known else word.upper()) in known:
            return known[name]
        console.print(f"not {word!r}; you can play {', '.join(known)}", highlight=False)


def moves(task: str, step: Step) -> dict[str, int]:
    """The legal moves of a game `[1]` by name."""
    return {move_name(task, int(action), step): int(action) for action in np.flatnonzero(step.obs["legal"][0])}


def move_name(task: str, action: int, step: Step) -> str:
    """Cells of tic-tac-toe and columns of connect four count from 1; Go has A1 and PASS, chess A2A3 or A4A5N."""
    if task == "Go9x9":
        return "PASS" if action == 81 else f"{LETTERS[action % 9]}{9 - action // 9}"
    return _chess(action, step) if task == "GardnerChess" else str(action + 1)


def _chess(action: int, step: Step) -> str:
    """From and to, and the piece of an underpromotion. Squares are counted by column, from the mover's side."""
    from pgx.gardner_chess import Action

    black = int(step.obs["to_play"][0])
    move = Action._from_label(np.int32(action))  # type: ignore[arg-type]
    squares = [divmod(int(square), 5) for square in (move.from_, move.to)]
    word = "".join(f"{'ABCDE'[column]}{(5 - row) if black else row + 1}" for column, row in squares)
    return word + ("" if int(move.underpromotion) < 0 else "RBN"[int(move.underpromotion)])


def board(task: str, step: Step) -> str:
    """The board of a game `[1]`, in lines."""
    if task == "GardnerChess":
        return _chess_board(step)
    planes, mover = np.asarray(step.obs["board"][0]), int(step.obs["to_play"][0])
    stones = np.where(planes[..., mover], 1, np.where(planes[..., 1 - mover], 2, 0))
    if task == "TicTacToe":
        cells = [STONES[s] if s else f"[dim]{i}[/dim]" for i, s in enumerate(stones.ravel(), start=1)]
        return "\n---+---+---\n".join(f" {' | '.join(cells[i : i + 3])} " for i in (0, 3, 6))
    rows = [" ".join(STONES[s] if s else "." for s in row) for row in stones]
    if task == "ConnectFour":
        return "\n".join([*rows, " ".join("1234567")])
    return "\n".join([f"{9 - r} {row}" for r, row in enumerate(rows)] + [f"  {' '.join(LETTERS)}"])


def _chess_board(step: Step) -> str:
    """White below; capitals are white."""
    state: Any = jax.tree.map(lambda x: x[0], step.obs["sim"])
    rows = state._to_fen().split()[0].split("/")
    spread = ["".join("." * int(c) if c.isdigit() else c for c in row) for row in rows]
    return "\n".join([f"{5 - r} {' '.join(row)}" for r, row in enumerate(spread)] + ["  A B C D E"])
