"""Dreamer V3 on Atari-100k: 26 games, five seeds a game as one population, 100,000 agent steps (400,000 frames).

Expected: the published scores stand in the README of the official code (boxing 82, krull 8171, road_runner 19230 with
          200 million parameters). Not measured here yet: this needs a GPU.
Command:  make atari100k ARGS="--games Boxing Krull RoadRunner --preset 12m --dtype bfloat16"
          make atari100k ARGS="--games Pong --preset micro --steps 2000 --seeds 1 --episodes 2"   (minutes, on a CPU)

Scores are means of raw returns over evaluation episodes played greedily to the true game over, after training, from
no-op starts of up to 30 frames, without sticky actions, 4 frames a step, lives ignored. Published tables often use
training episodes of the last steps instead: compare with care.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxwm import agents, cli
from jaxwm.training.run import Plan
from jaxwm.training.sweep import sweep

GAMES = (
    "Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber DemonAttack Freeway "
    "Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong PrivateEye Qbert RoadRunner Seaquest "
    "UpNDown"
).split()


@dataclass(frozen=True)
class Options:
    """Atari-100k with Dreamer V3. What is finished is skipped, so the same command goes on after an interruption."""

    games: tuple[str, ...] = tuple(GAMES)
    """Games, in the spelling of `jaxwm list`."""
    seeds: int = 5
    """Members of the population of each game."""
    preset: str = "12m"
    """Size of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; bfloat16 on GPUs."""
    steps: int = 100_000
    """Agent steps (four frames each)."""
    episodes: int = 100
    """Evaluation episodes of each member."""
    root: Path = Path("runs/atari100k")
    """Where the runs go."""


def runs(options: Options = Options()) -> dict[str, Plan]:
    settings = agents.settings("dreamer-v3", options.preset, envs=1, train_ratio=256.0, dtype=options.dtype)
    if unknown := set(options.games) - set(GAMES):
        raise ValueError(f"not among the 26 games: {', '.join(sorted(unknown))}; there are {', '.join(GAMES)}")
    return {
        game: Plan("dreamer-v3", f"atari/{game}", settings, options.steps, options.seeds, episodes=options.episodes)
        for game in options.games
    }


def main() -> int:
    options = tyro.cli(Options, prog="experiments.atari100k")
    cli.use_compilation_cache()
    cli.use_cores(options.seeds)
    return 0 if sweep(runs(options), options.root) else 1


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
