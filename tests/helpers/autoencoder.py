"""A small system without an environment: an autoencoder of recordings. Nothing acts in it, and it dreams nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwm.types import FOREVER, Agent, Load, Repeat, Spec, Train, TrainStep


@dataclass(frozen=True)
class Config:
    """Settings of the autoencoder."""

    codes: int = 8
    """Size of a code."""
    lr: float = 3e-3
    """Learning rate."""
    envs: int = 2
    """Streams of recordings side by side."""
    capacity: int = 1000
    """Records that the replay holds."""
    rows: int = 40
    """Rows to load before learning starts."""


class State(NamedTuple):
    """What learning changes."""

    params: Any
    opt: Any
    hyper: Any
    step: Any


def make(spec: Spec, config: Config = Config()) -> Agent:
    """The autoencoder of a recording's one sensor, flattened."""
    size, adam = spec.obs.size, optax.scale_by_adam()

    def init(key, hyper):
        down, up = jax.random.normal(key, (2, size, config.codes)) / jnp.sqrt(size)
        params = {"enc": down, "dec": up.T}
        hyper = {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
        return State(params, adam.init(params), hyper, jnp.zeros((), jnp.int32))

    def error(params, obs):
        flat = obs.astype(jnp.float32).reshape(-1, size)
        return jnp.square(jnp.tanh(flat @ params["enc"]) @ params["dec"] - flat).mean()

    def update(state, batch, key):
        loss, grads = jax.value_and_grad(error)(state.params, batch.record.obs)
        direction, opt = adam.update(grads, state.opt)
        params = jax.tree.map(lambda p, d: p - state.hyper["lr"] * d, state.params, direction)
        return State(params, opt, state.hyper, state.step + 1), {}, {"loss": loss}

    def scores(state, batch, key):
        return {"squared error": error(state.params, batch.record.obs)}

    schedule = (Load(config.rows), Repeat(FOREVER, (Load(1), Train("all", 2))))
    return Agent(init, None, None, {"all": TrainStep(update, 16, 1)}, None, schedule, {"lr": config.lr}, scores)


PRESETS = {"small": Config()}
