"""Replay: rings of records on the device (`ring`) and the ways to draw batches from them (`samplers`)."""

from jaxwm.replay.ring import AXES, Ring, add, capacity, cut, init, oldest, take, update
from jaxwm.replay.samplers import Sampler, prioritised, queued, sample, sampler

__all__ = [
    "AXES",
    "Ring",
    "Sampler",
    "add",
    "capacity",
    "cut",
    "init",
    "oldest",
    "prioritised",
    "queued",
    "sample",
    "sampler",
    "take",
    "update",
]
