"""AlphaZero on board games, scored against opponents that it has never met: three seeds each as one population.

Expected: minimum of the seeds: tic-tac-toe 0.00 against perfect play (no game lost, from either side); connect four
          0.67 against Monte Carlo tree search (0.05 after 47,680 moves, 0.44 after 120,896), 1.00 against random moves.
          Random play has -0.89 and -1.00. Measured 2026-11-22.
Time:     7 and 39 minutes, on two cores beside other work.
Command:  make sweep EXPERIMENT=experiments/board_games.py ARGS=--no-ray
          jaxwm eval runs/board_games/ConnectFour --episodes 200 --score-option opponent=random
          jaxwm play runs/board_games/ConnectFour
"""

from jaxwm import Plan, agents

GAMES = {"TicTacToe": ("tictactoe", 40_000, "minimax"), "ConnectFour": ("connect-four", 200_000, "mcts")}
"""Game -> preset, moves of each member, opponent of the evaluation (see `jaxwm.envs.pgx.pgx`)."""


def runs(
    games: tuple[str, ...] = tuple(GAMES), seeds: int = 3, steps: int | None = None, episodes: int = 400
) -> dict[str, Plan]:
    """AlphaZero on tic-tac-toe (against perfect play) and connect four (against Monte Carlo tree search).

    Args:
        games: TicTacToe, ConnectFour.
        seeds: Members of the population of each game.
        steps: Moves of self-play of each member (default: 40,000 and 200,000).
        episodes: Games of the evaluation of each member, half of them from each side.
    """
    plans = {}
    for game in games:
        preset, moves, opponent = GAMES[game]
        settings = agents.settings("alphazero", preset)
        score = {"opponent": opponent}
        plans[game] = Plan(
            "alphazero", f"pgx/{game}", settings, steps or moves, seeds, episodes=episodes, keep=20, score_options=score
        )
    return plans
