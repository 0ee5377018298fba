"""Soft actor-critic (Haarnoja et al. 2018): the model-free baseline of continuous control.

Sees float vectors, predicts nothing, acts with a squashed normal policy whose entropy is kept near a target by a
learned temperature. One update after each environment step, from a replay of everything seen. MBPO is the same
algorithm on imagined steps: with `updates_per_step` at MBPO's number this is its baseline at equal updates.

N environments, B batch. Two things differ from the official code: weights start as truncated normals, and the last
layer of the policy ten times smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm import replay
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import sac
from jaxwm.errors import Count, Fraction, Positive, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Updated
from jaxwm.nets.sensors import check_vectors
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, prefill
from jaxwm.types import Agent, Array, Batch, Key, Spec, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of soft actor-critic; defaults are those of the paper (table 1)."""

    layers: Count = 2  # Hidden layers of policy and critics.
    units: Count = 256  # Width of the hidden layers.
    lr: Varies[Positive] = 3e-4  # Learning rate of Adam.
    discount: Varies[Fraction] = 0.99  # Discount, gamma.
    tau: Varies[Fraction] = 0.005  # Share of the critics that goes into the target critics with each update.
    entropy_target: float | None = None
    """Entropy that the temperature aims at, in nats; None: minus the size of the action."""
    batch_size: Count = 256  # Transitions of an update.
    updates_per_step: Count = 1  # Updates after each environment step.
    envs: Count = 1  # Environments.
    prefill: Count = 5000  # Environment steps of random play before learning starts.
    capacity: int = 1_000_000  # Replay size in environment steps.

    def __post_init__(self):
        check_types(self)
        check_number("capacity", self.capacity, least=2 * self.envs, whole=True)
        if self.entropy_target is not None:
            check_number("entropy_target", self.entropy_target)


class State(NamedTuple):
    """A learner's state; `slow` are the target critics."""

    params: Any
    opt: Any
    hyper: dict[str, Array]
    step: Array
    slow: Any


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build soft actor-critic. ValueError unless the environment observes float vectors and actions are a `Box`."""
    nets = sac.networks(spec, config.layers, config.units)
    check_vectors("sac", spec.name, spec.obs)
    target = sac.entropy_target(spec, config.entropy_target)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = nets.init(key)
        slow = jax.tree.map(jnp.copy, params["critic"])
        return State(params, sac.ADAM.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32), slow)

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        return sac.update(nets, state, sac.transitions(spec, share.local_rows(batch)), key, target, share)

    reset = lambda state, num_envs: ()  # noqa: E731
    pairs = lambda state, ring, key, size: replay.sample(ring, key, size, 2)  # noqa: E731
    steps = {"sac": TrainStep(update, config.batch_size, 2, pairs, shared=True)}
    return Agent(init, reset, sac.acting(nets), steps, None, schedule(config), hyper_of(config))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then a row of environment steps and its updates in turn."""
    body = Collect(config.envs), Train("sac", config.updates_per_step * config.envs)
    return prefill(config.prefill, config.envs, 2), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "published": Config(),
    "small": Config(units=64, lr=2e-3, batch_size=128, tau=0.01, prefill=1000, capacity=100_000),
}
"""Those of the paper, and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2018, env="gymnax/Pendulum-v1", steps=20_000,
    observations=("vector",), actions=("Box",), offline=True, baseline=True, copies={"slow": "critic"},
    summary="soft actor-critic with a learned temperature (Haarnoja et al. 2018)",
    paper="Haarnoja et al., Soft Actor-Critic Algorithms and Applications",
    sees="the numbers of the observation",
    predicts="nothing: model-free",
    acts="squashed normal policy; two critics with slow copies, entropy kept near a target",
)  # fmt: skip
