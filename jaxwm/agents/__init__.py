"""The systems, one file each. `AGENTS` is the whole registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxwm.agents import (
    alphazero,
    dreamer_v1,
    dreamer_v2,
    dreamer_v3,
    dyna_q,
    efficientzero,
    muzero,
    pets,
    planet,
    world_models,
)
from jaxwm.errors import suggest
from jaxwm.types import RESERVED, Agent, Spec


class Entry(NamedTuple):
    """A system: its constructor `(spec, config) -> Agent`, its settings, its presets by name, and what is said of it.

    `sees`, `predicts` and `acts` are half a line each, read in docs/lineage.md and `jaxwm list NAME` (the order is
    printed from `Agent.schedule`). `env` and `steps` (environment steps) are what it is trained on where nothing else
    is said.
    """

    make: Any
    config: type
    presets: dict[str, Any]
    default: str  # preset used when none is named
    summary: str
    year: int = 0
    paper: str = ""  # authors, title
    sees: str = ""
    predicts: str = ""
    acts: str = ""
    env: str = "gymnax/Catch-bsuite"
    steps: int = 6000
    players: int = 1  # most that it can move for, see Spec.players
    video: bool = False  # learns from recordings without actions
    obeys: tuple[str, ...] = ()  # reserved sensors that it understands, see types.RESERVED


AGENTS: dict[str, Entry] = {
    "dreamer-v3": Entry(
        dreamer_v3.make,
        dreamer_v3.Config,
        dreamer_v3.PRESETS,
        "nano",
        "recurrent state-space model, actor-critic inside dreams (Hafner et al. 2023)",
        year=2023,
        paper="Hafner et al., Mastering Diverse Domains through World Models",
        sees="CNN or MLP, by the kind of observation; a latent of categoricals",
        predicts="RSSM: block GRU and categorical prior; reward and continue heads; decoder",
        acts="actor-critic on lambda-returns inside dreams",
    ),
    "dreamer-v2": Entry(
        dreamer_v2.make,
        dreamer_v2.Config,
        dreamer_v2.PRESETS,
        "nano",
        "categorical latents, REINFORCE and gradients through dreams mixed (Hafner et al. 2021)",
        year=2021,
        paper="Hafner et al., Mastering Atari with Discrete World Models",
        sees="CNN or MLP; a latent of categoricals",
        predicts="RSSM: layer-norm GRU and categorical prior, balanced KL; reward and continue heads; decoder",
        acts="actor-critic inside dreams: REINFORCE mixed with the gradient through the dream; slow critic",
        steps=9000,
    ),
    "dreamer-v1": Entry(
        dreamer_v1.make,
        dreamer_v1.Config,
        dreamer_v1.PRESETS,
        "micro",
        "Gaussian latents, value gradients through dreams (Hafner et al. 2020)",
        year=2020,
        paper="Hafner et al., Dream to Control",
        sees="CNN or MLP; a Gaussian latent",
        predicts="RSSM: GRU and Gaussian prior; reward head, continue head on request; decoder",
        acts="actor-critic inside dreams: the actor follows the gradient of values through the dream",
        env="gymnax/Pendulum-v1",
        steps=14000,
    ),
    "planet": Entry(
        planet.make,
        planet.Config,
        planet.PRESETS,
        "micro",
        "Gaussian latents, cross-entropy planning in latent space (Hafner et al. 2019)",
        year=2019,
        paper="Hafner et al., Learning Latent Dynamics for Planning from Pixels",
        sees="CNN or MLP; a Gaussian latent",
        predicts="RSSM: GRU and Gaussian prior; reward head; decoder",
        acts="cross-entropy method over action sequences in latent space, anew at every step",
        env="gymnax/Pendulum-v1",
        steps=6000,
    ),
    "dyna-q": Entry(
        dyna_q.make,
        dyna_q.Config,
        dyna_q.PRESETS,
        "maze",
        "tabular Q-learning with planning in a learned model; Dyna-Q+ with --bonus (Sutton 1990)",
        year=1990,
        paper="Sutton, Integrated Architectures for Learning, Planning, and Reacting",
        sees="the index of the state",
        predicts="table: the last reward and next state of a pair, or counts of all",
        acts="epsilon-greedy on a Q-table taught by each real step and n planned ones",
        env="tabular/DynaMaze",
    ),
    "pets": Entry(
        pets.make,
        pets.Config,
        pets.PRESETS,
        "small",
        "planning with an ensemble of probabilistic networks (Chua et al. 2018)",
        year=2018,
        paper="Chua et al., Deep Reinforcement Learning in a Handful of Trials",
        sees="the numbers of the observation, standardised",
        predicts="bootstrapped ensemble of probabilistic MLPs; reward and end known or learned",
        acts="CEM, iCEM or MPPI over action sequences, each judged by particles through the networks",
        env="continuous/CartPole",
        steps=2010,
    ),
    "world-models": Entry(
        world_models.make,
        world_models.Config,
        world_models.PRESETS,
        "takecover-small",
        "autoencoder, mixture density LSTM, controller evolved in dreams (Ha & Schmidhuber 2018)",
        year=2018,
        paper="Ha and Schmidhuber, World Models",
        sees="convolutional variational autoencoder",
        predicts="LSTM with a mixture density for each latent; done head, reward head on request",
        acts="linear controller evolved by CMA-ES, inside dreams or in the environment",
        env="vizdoom/TakeCover",
        steps=16000,
    ),
    "alphazero": Entry(
        alphazero.make,
        alphazero.Config,
        alphazero.PRESETS,
        "tictactoe",
        "tree search in the environment itself, learned from self-play (Silver et al. 2018)",
        year=2017,
        paper="Silver et al., A General Reinforcement Learning Algorithm That Masters Chess, Shogi and Go",
        sees="the board",
        predicts="nothing: the rules are given, the environment itself is the model",
        acts="tree search (PUCT or Gumbel) with a network's policy and value at the leaves",
        env="pgx/TicTacToe",
        steps=40_000,
        players=2,
        obeys=tuple(RESERVED),
    ),
    "muzero": Entry(
        muzero.make,
        muzero.Config,
        muzero.PRESETS,
        "catch",
        "tree search in a learned model of rewards, values and policies (Schrittwieser et al. 2020)",
        year=2019,
        paper="Schrittwieser et al., Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model",
        sees="residual CNN or MLP; a latent scaled to [0, 1]",
        predicts="residual CNN or MLP: next latent, reward, value, policy; no observations (decoder on request)",
        acts="tree search (PUCT or Gumbel) in the latent; over sampled actions where they are vectors",
        steps=8000,
        obeys=tuple(RESERVED),
    ),
    "efficientzero": Entry(
        efficientzero.make,
        efficientzero.Config,
        efficientzero.PRESETS,
        "catch",
        "MuZero with consistency, value prefixes and corrected old data (Ye et al. 2021)",
        year=2021,
        paper="Ye et al., Mastering Atari Games with Limited Data",
        sees="as MuZero",
        predicts="as MuZero; sums of rewards by an LSTM; latents that agree with what is then seen",
        acts="as MuZero",
        steps=8000,
        obeys=tuple(RESERVED),
    ),
}


def find(name: str) -> Entry:
    """The system called `name`; ValueError with the nearest names."""
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; {suggest(name, AGENTS)} (`jaxwm list` shows all)")
    return AGENTS[name]


def settings(name: str, preset: str | None = None, **options: Any) -> Any:
    """The settings of system `name`: a preset with changes. ValueError names what is unknown and what there is."""
    entry = find(name)
    preset = preset or entry.default
    if preset not in entry.presets:
        raise ValueError(f"unknown preset {preset!r} of {name}; {suggest(preset, entry.presets)}")
    fields = entry.config.__dataclass_fields__
    for option in options:
        if option not in fields:
            raise ValueError(f"{name} has no setting {option!r}; {suggest(option, fields)}")
    base = entry.presets[preset]
    return entry.config(**{**{f: getattr(base, f) for f in fields}, **options})


def make(name: str, spec: Spec, preset: str | None = None, **options: Any) -> Agent:
    """Build a system for an environment: `make("dreamer-v3", env.spec, preset="nano", lr=1e-3)`.

    Raises ValueError for an unknown name, preset or setting, or an observation that no encoder fits.
    """
    if not isinstance(spec, Spec):
        raise ValueError(f"an agent is built for a jaxwm.types.Spec, such as env.spec, not for a {type(spec).__name__}")
    return build(name, spec, settings(name, preset, **options))


def build(name: str, spec: Spec, config: Any) -> Agent:
    """Build a system with settings that are whole.

    Raises ValueError as `make`, for a game against itself where a system plays none, and for a reserved sensor that a
    system does not understand.
    """
    entry = find(name)
    if spec.action is None and not entry.video:
        raise ValueError(f"{name} learns what actions do, and {spec.name} has no action space")
    if spec.players > entry.players:
        raise ValueError(
            f"{name} plays for one side, and {spec.name} wants moves for both: give it an opponent "
            "(--env-option opponent=random or mcts), or take alphazero"
        )
    for key in RESERVED:
        if isinstance(spec.obs, Mapping) and key in spec.obs and key not in entry.obeys:
            able = [other for other, system in AGENTS.items() if key in system.obeys]
            raise ValueError(
                f"{name} does not understand the reserved sensor {key!r} ({RESERVED[key]}) of {spec.name}: take "
                f"{', '.join(able)}, or rename or drop the sensor"
            )
    return entry.make(spec, config)
