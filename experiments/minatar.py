"""Dreamer V3 on MinAtar, three seeds a game as one population, on CPU.

Expected: Breakout above three times random (see the README's table); the other games have not been measured.
Time:     about a quarter of an hour a game on two cores.
Command:  make sweep EXPERIMENT=experiments/minatar.py

Seaquest is left out: gymnax simulates it a hundred times slower than the others.
"""

from jaxwm import agents
from jaxwm.training.run import Plan

GAMES = ("Asterix", "Breakout", "Freeway", "SpaceInvaders")


def runs(steps: int = 20_000, members: int = 3) -> dict[str, Plan]:
    settings = agents.settings("dreamer-v3", "micro")
    return {game: Plan("dreamer-v3", f"minatar/{game}", settings, steps, members) for game in GAMES}
