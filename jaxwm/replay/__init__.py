"""Replay: rings of records on the device (`ring`) and the ways to draw batches from them (`samplers`)."""

from jaxwm.replay.ring import AXES, SHARED, Ring, add, capacity, cut, extend, init, oldest, take, update
from jaxwm.replay.samplers import (
    Sampler,
    across,
    all_pairs,
    gather,
    going_on,
    mixed,
    online,
    prioritised,
    recent,
    sample,
    sampler,
    starts,
)

__all__ = [
    "AXES", "SHARED", "Ring", "Sampler", "across", "add", "all_pairs", "capacity", "cut", "extend", "gather",
    "going_on", "init", "mixed", "oldest", "online", "prioritised", "recent", "sample", "sampler", "starts", "take",
    "update",
]  # fmt: skip
