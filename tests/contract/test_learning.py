"""A probe of every family: the smallest world that shows that a system learns, with a fixed seed, in seconds.

What an untrained or random policy gets is far from each goal. Values in closed form are checked in
tests/systems/test_probes.py, whole tasks in the slow tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tiny import settings
from toys import blinking, lit

from jaxwm import Cursor, Trainer, agents, envs
from jaxwm.training.evaluation import evaluate
from jaxwm.training.life import member_keys
from jaxwm.types import FOREVER

_MUZERO = dict(
    envs=8, width=16, units=32, bins=21, bound=2.0, batch_size=32, lr=1e-2, train_ratio=16.0, discount=0.5,
    prefill=64, capacity=600, simulations=8,
)  # fmt: skip


class Probe(NamedTuple):
    """A system with settings in a world, how long it learns, and what its greedy policy then gets at least."""

    name: str
    env: str
    options: dict[str, Any]
    iterations: int  # of the part of the schedule that does not end
    goal: float


PROBES = [
    Probe(
        "dreamer-v3", "probe/ActionReward",
        dict(deter=32, envs=8, batch_size=8, batch_length=8, train_ratio=32.0, prefill=128, lr=1e-2, entropy=1e-2,
             discount_horizon=2.0, free_nats=0.0),
        80, 0.9,
    ),
    Probe(
        "storm", "probe/ActionReward",
        dict(width=16, units=16, bins=41, envs=8, batch_size=8, batch_length=8, train_ratio=32.0, prefill=64, lr=1e-2,
             behaviour_lr=1e-2, entropy=1e-2, discount=0.5, free_nats=0.0, dreams=32),
        100, 0.9,
    ),
    Probe("pets", "probe/ContinuousTarget", dict(reward="learned", horizon=1, epochs=30.0, lr=1e-2), 4, -0.05),
    Probe("sac", "probe/ContinuousTarget", dict(envs=8, batch_size=32, lr=1e-2, tau=0.05), 40, -0.05),
    Probe("ppo", "probe/ActionReward", dict(envs=8, horizon=16, epochs=4, lr=1e-2, capacity=200), 15, 0.9),
    Probe("muzero", "probe/ActionReward", _MUZERO, 80, 0.9),
    Probe("efficientzero", "probe/ActionReward", _MUZERO, 80, 0.9),
    Probe(
        "iris", "my/Lit",
        dict(patch=2, width=16, units=16, envs=8, collect=40, tokenizer_from=80, model_from=160, policy_from=240,
             tokenizer_updates=20, model_updates=20, policy_updates=20, tokenizer_batch=32, model_batch=16,
             policy_batch=32, capacity=1000, tokenizer_lr=1e-2, model_lr=1e-2, policy_lr=1e-2),
        16, 0.95,
    ),
    Probe(
        "token-dyna", "my/Lit",
        dict(patch=2, width=16, units=16, envs=8, rollout=8, model_updates=8, dream_updates=8, model_from=64,
             dream_from=256, model_batch=16, dream_batch=32, capacity=1000, model_lr=1e-2, policy_lr=1e-2),
        16, 0.95,
    ),
    Probe(
        "diamond", "my/Lit",
        dict(channels=8, cond=16, passes=1, outcome_channels=8, outcome_cond=16, outcome_units=16, units=16, envs=8,
             first_collect=80, collect=40, denoiser_updates=10, outcome_updates=20, policy_updates=20,
             denoiser_batch=16, outcome_batch=16, policy_batch=32, horizon=2, dream_steps=4, capacity=1000,
             denoiser_lr=1e-2, outcome_lr=1e-2, policy_lr=1e-2, warmup=0),
        16, 0.95,
    ),
    Probe("world-models", "my/Blinking", dict(real=True, bias=True, envs=32, population=8, rollouts=4, generations=12,
                                              random_steps=512, capacity=512, dream_length=8), 0, 6.0),
]  # fmt: skip
"""The others: tests/systems/test_dreamer_family.py (dreamer-v1, v2, planet), test_dyna_q.py (in its maze),
test_mbpo.py and test_alphazero.py."""


TOYS = {"my/Blinking": blinking, "my/Lit": lit}


def world(name: str, num_envs: int):
    return TOYS[name](num_envs) if name in TOYS else envs.make(name, num_envs)


SLOW = (
    "dreamer-v3", "muzero", "efficientzero", "world-models", "storm", "iris", "token-dyna", "diamond", "pets", "sac",
)  # fmt: skip
"""They learn for half a minute each, most of it compiling, so in the slow suite. The own tests of Dreamer V3, PETS,
STORM and token-dyna learn what is cheaper."""
CASES = [pytest.param(p, id=p.name, marks=[pytest.mark.slow] * (p.name in SLOW)) for p in PROBES]


@pytest.mark.parametrize("probe", CASES)
def test_it_learns(probe: Probe):
    config = settings(probe.name, **probe.options)
    env = world(probe.env, config.envs)
    agent = agents.build(probe.name, env.spec, config)
    trainer = Trainer(agent, env, 1, config.capacity)
    life, cursor = trainer.init(0), Cursor()
    while not trainer.finished(cursor):
        left = probe.iterations - cursor.iteration if trainer.segments[cursor.segment].times == FOREVER else 256
        if left <= 0:
            break
        life, cursor, _ = trainer.run(life, cursor, left)
    judge = world(probe.env, 32)
    scores = evaluate(agent, judge, life.agent, member_keys(1, 1), 32)
    assert np.isfinite(jax.device_get(scores.total)).all() and scores.means().min() >= probe.goal, scores.means()
