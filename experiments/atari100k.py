"""Atari-100k: 26 games, five seeds a game as one population, 100,000 agent steps (400,000 frames) each.

Expected: the published scores stand in the report beside ours (Dreamer V3 with 200 million parameters: boxing 82, krull
          8171, road_runner 19230). Not measured here yet: this needs a GPU.
Command:  make atari100k ARGS="--games Boxing Krull RoadRunner --dtype bfloat16"
          make atari100k ARGS="--agent storm --dtype bfloat16"   (storm, iris, diamond, simple in published sizes)
          make atari100k-small   (five games with a model for two CPU cores, preset small: hours a game)
          make atari100k-smoke   (two games with a tiny model: minutes on two CPU cores, scores of no worth)

Scores are means of raw returns over evaluation episodes played greedily to the true game over, after training, from
no-op starts of up to 30 frames, without sticky actions, 4 frames a step, lives ignored. Published tables often use
training episodes of the last steps instead: compare with care.
"""

from typing import Literal

from jaxwm import Plan, agents

GAMES = (
    "Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand",
    "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull",
    "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown",
)  # fmt: skip


def runs(
    games: tuple[str, ...] = GAMES,
    seeds: int = 5,
    agent: str = "dreamer-v3",
    preset: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    train_ratio: float | None = None,
    envs: int = 1,
    steps: int = 100_000,
    episodes: int = 100,
) -> dict[str, Plan]:
    """Atari-100k. The defaults are the whole benchmark.

    Args:
        games: Games, in the spelling of `jaxwm list`.
        seeds: Members of the population of each game.
        agent: Agent, as in `jaxwm list`.
        preset: Its preset (default: 12m of Dreamer V3, published of the others).
        dtype: Compute type; bfloat16 on GPUs.
        train_ratio: Replayed steps for each step of the environment (default: the preset's).
        envs: Copies of a game that each member plays.
        steps: Agent steps (four frames each).
        episodes: Evaluation episodes of each member.
    """
    if unknown := set(games) - set(GAMES):
        raise ValueError(f"not among the 26 games: {', '.join(sorted(unknown))}; there are {', '.join(GAMES)}")
    preset = preset or ("12m" if agent == "dreamer-v3" else "published")
    ratio = {} if train_ratio is None else {"train_ratio": train_ratio}
    settings = agents.settings(agent, preset, envs=envs, dtype=dtype, **ratio)
    return {game: Plan(agent, f"atari/{game}", settings, steps, seeds, episodes=episodes) for game in games}
