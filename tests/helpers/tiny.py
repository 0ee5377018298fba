"""Every system in a size that compiles and learns in seconds, and a small world for it. One row per system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from toys import blinking, footage

from jaxwm import agents, envs
from jaxwm.types import Agent, Env

_RSSM = dict(
    deter=16, hidden=8, units=8, stoch=4, depth=2, batch_size=2, batch_length=4, envs=2, prefill=40, capacity=200,
)  # fmt: skip
_SEARCH = dict(
    simulations=4, width=8, units=8, bins=11, envs=2, batch_size=4, unroll=2, td_steps=2, train_ratio=2.0, reanalyse=3,
    prefill=20, capacity=100, projection=8, target_every=3,
)  # fmt: skip

TINY: dict[str, dict[str, Any]] = {
    "dreamer-v3": _RSSM | dict(blocks=4, classes=4, bins=11, imag_length=3, train_ratio=4.0),
    "dreamer-v2": _RSSM | dict(classes=4, imag_length=3, slow_every=3),
    "dreamer-v1": _RSSM | dict(imag_length=3, model_layers=1, value_layers=1, policy_layers=1),
    "planet": _RSSM | dict(layers=1, plan_horizon=3, candidates=8, elites=2, iterations=2, collect=8, updates=2),
    "dyna-q": dict(planning=2),
    "pets": dict(units=16, epochs=1.0, batch_size=16, candidates=8, elites=4, iterations=2, trial=20, capacity=200),
    "world-models": dict(
        codes=3, depth=1, units=4, envs=4, random_steps=160, vision_updates=2, vision_batch=4, memory_updates=2,
        memory_batch=4, memory_length=6, generations=3, population=4, rollouts=3, capacity=200,
    ),
    "iris": dict(
        codes=8, code_width=4, depth=4, patch=5, frames=4, width=8, heads=2, layers=1, units=8, burn_in=2, context=2,
        imag_length=3, envs=2, collect=10, tokenizer_from=20, model_from=30, policy_from=40, tokenizer_updates=2,
        model_updates=2, policy_updates=1, tokenizer_batch=8, model_batch=2, policy_batch=2, capacity=200,
    ),
    "token-dyna": dict(
        patch=5, codes=8, grow=4, frames=4, width=8, heads=2, layers=1, units=8, burn_in=2, context=2, imag_length=3,
        envs=2, rollout=5, model_updates=2, dream_updates=2, model_from=10, dream_from=20, model_batch=2, dream_batch=2,
        capacity=200,
    ),
    "diamond": dict(
        past=2, channels=4, sizes=2, doublings=0, blocks=1, cond=8, passes=2, outcome_channels=4, outcome_sizes=1,
        outcome_blocks=1, outcome_cond=4, outcome_units=4, units=8, burn_in=2, horizon=4, dream_steps=3, envs=2,
        first_collect=20, first_denoiser_updates=0, first_outcome_updates=0, first_policy_updates=0, collect=10,
        denoiser_updates=2, outcome_updates=2, policy_updates=2, denoiser_batch=2, outcome_batch=2, policy_batch=2,
        capacity=200,
    ),
    "genie": dict(
        frames=4, codes=8, code_width=4, tokenizer_layers=1, tokenizer_heads=2, tokenizer_width=8, action_codes=4,
        action_width=4, action_layers=1, action_heads=2, action_dim=8, layers=1, heads=2, width=8, sampling_steps=2,
        tokenizer_updates=2, action_updates=2, tokenizer_batch=4, action_batch=4, batch_size=4, envs=2, capacity=40,
    ),
    "alphazero": dict(
        simulations=4, match_simulations=4, blocks=0, channels=4, head=2, units=4, batch_size=4, batch_length=10,
        envs=4, capacity=400,
    ),
    "muzero": _SEARCH,
    "efficientzero": _SEARCH | dict(correction=20),
    "storm": dict(
        stoch=4, classes=4, width=8, heads=2, hidden=8, units=8, bins=11, dropout=0.1, envs=2, batch_size=2,
        batch_length=6, train_ratio=4.0, prefill=40, capacity=200, dreams=4, context=3, imag_length=3,
    ),
    "sac": dict(units=8, batch_size=8, envs=2, prefill=20, capacity=200),
    "ppo": dict(units=8, envs=2, horizon=8, epochs=2, minibatches=2, capacity=100),
    "mbpo": dict(
        networks=3, elites=2, model_units=8, model_batch=16, epochs=3, refresh=20, epoch_steps=20, rollouts=16, units=8,
        batch_size=8, updates_per_step=2, envs=2, prefill=40, capacity=200,
    ),
    "grbal": dict(
        units=8, window=3, meta_batch=4, epochs=1.0, candidates=8, elites=2, iterations=2, plan_horizon=3, trial=10,
        envs=2, capacity=200,
    ),
    "mb-mpo": dict(
        networks=2, model_layers=1, model_units=8, model_batch=8, epochs=1.0, units=8, layers=1, tasks=2, paths=8,
        horizon=6, meta_steps=2, prefill=20, trial=10, envs=2, capacity=200,
    ),
    "tdmpc2": dict(
        latent=16, enc_units=8, units=8, values=3, bins=11, envs=2, batch_size=8, prefill=20, first_updates=4,
        capacity=200, candidates=8, elites=4, policy_plans=2, iterations=2,
    ),
    "simple": dict(
        depth=4, levels=1, bits=4, chunk=2, lstm_units=4, units=8, dreams=4, imag_length=4, minibatches=2, epochs=2,
        envs=2, collect=20, first_model_updates=3, model_updates=2, policy_updates=2, model_batch=2, targets=2,
        capacity=200,
    ),
    "shooting": dict(units=8, candidates=8, plan_horizon=3, batch_size=4, envs=2, prefill=20, capacity=200),
}  # fmt: skip
"""Settings over those of a system's default preset."""


def _pendulum(num_envs: int) -> Env:
    return envs.make("gymnax/Pendulum-v1", num_envs, max_steps=7)  # episodes end within a test


WORLDS: dict[str, Callable[[int], Any]] = {
    "dreamer-v1": _pendulum,
    "planet": _pendulum,
    "sac": _pendulum,
    "mbpo": _pendulum,
    "grbal": lambda num_envs: envs.make("continuous/Pendulum", num_envs, max_steps=10, flip=0.5),
    "mb-mpo": lambda num_envs: envs.make("continuous/Pendulum", num_envs, max_steps=10),
    "tdmpc2": _pendulum,
    "shooting": _pendulum,  # the system of docs/adding_a_system.md
    "world-models": blinking,  # its own example, TakeCover, starts a game engine for each environment
    "genie": footage,  # nothing acts: recordings
    "dyna-q": lambda num_envs: envs.make("tabular/Taxi", num_envs),  # every step has a reward
    "pets": lambda num_envs: envs.make("continuous/CartPole", num_envs, max_steps=20),
}
"""Where a system lives in tests; the others in the environment that they are trained on by default."""


class Built(NamedTuple):
    """A tiny agent, its settings and its world."""

    name: str
    env: Any  # `Env`, or `Data` where nothing acts
    config: Any
    agent: Agent


def world(name: str, num_envs: int = 1) -> Any:
    """The world of a system."""
    if name in WORLDS:
        return WORLDS[name](num_envs)
    return envs.make(agents.find(name).env, num_envs)


def settings(name: str, **options: Any) -> Any:
    """The tiny settings of a system, with changes."""
    return agents.settings(name, **(TINY[name] | options))


def flags(name: str) -> list[str]:
    """The same as words of a command line."""
    return [word for key, value in TINY[name].items() for word in (f"--{key.replace('_', '-')}", str(value))]


def build(name: str, **options: Any) -> Built:
    """A tiny agent in its world."""
    config = settings(name, **options)
    env = world(name, config.envs)
    return Built(name, env, config, agents.build(name, env.spec, config))
