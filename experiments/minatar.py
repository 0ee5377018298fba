"""Dreamer V3 on MinAtar: five games, three seeds a game as one population, on CPU.

Expected: minimum of the seeds (random): Asterix 0.43 (0.52), Breakout 6.54 (0.45), Freeway 11.22 (0.45), Seaquest 0.18
          (0.09), SpaceInvaders 14.10 (4.13).
Time:     three quarters of an hour on two cores.
Command:  make sweep EXPERIMENT=experiments/minatar.py
"""

from jaxwm import Plan, agents

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
