"""Dreamer V3 on MinAtar: five games, three seeds a game as one population, on CPU.

Expected: see the table in the README.
Command:  make sweep EXPERIMENT=experiments/minatar.py
"""

from jaxwm import agents
from jaxwm.training.run import Plan

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")


def runs(
    games: tuple[str, ...] = GAMES, seeds: int = 3, preset: str = "micro", steps: int = 20_000, episodes: int = 100
) -> dict[str, Plan]:
    """MinAtar with Dreamer V3.

    Args:
        games: Games, in the spelling of `jaxwm list`.
        seeds: Members of the population of each game.
        preset: Size of the model.
        steps: Environment steps of each member.
        episodes: Evaluation episodes of each member.
    """
    settings = agents.settings("dreamer-v3", preset, imag_length=10, entropy=3e-2)
    return {game: Plan("dreamer-v3", f"minatar/{game}", settings, steps, seeds, episodes=episodes) for game in games}
