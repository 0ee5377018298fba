"""How a population is spread over devices: members over rows of a mesh, and the devices that share a member.

Everything else in `training` is written for one member. `Spread.population` adds the member axis, by `vmap` inside a
device and by `shard_map` over devices, which never talk to each other unless they share a member."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxwm.learning.share import ALONE, Share
from jaxwm.replay import Ring
from jaxwm.types import Agent, Data, Source

MEMBER = "member"  # the population's `vmap` axis, used only to stop `until` loops together
SHARE = "share"  # the axis of devices that hold the same members and share their updates
SHARED_FLOPS = 3e9  # FLOPs of an update from which sharing it pays: below, waiting for each other costs more
USES = {"numbers": 30, "image": 200}
"""About so many FLOPs of an update belong to each parameter and record, as counted for Dreamer V3: a guess in time."""


class Spread(NamedTuple):
    """Where members live. `shards` devices split a member's batch and replay; without shards, CPU devices that are left
    over share its updates and each holds all of it."""

    mesh: Mesh
    members: int
    shards: int
    idle: int  # devices that take no part

    @property
    def share(self) -> Share:
        """What an update knows of the devices that work on it together."""
        return Share(SHARE, self.shards > 1) if self.mesh.shape[SHARE] > 1 else ALONE

    @property
    def copies(self) -> int:
        """Devices that each hold all of a member."""
        return 1 if self.shards > 1 else self.mesh.shape[SHARE]

    def population(self, fn: Callable, in_axes: Any, out_axes: Any) -> Callable:
        """`fn` of one member for all of them: mapped inside a device, and over devices."""
        size = self.members // self.mesh.shape["device"]
        mapped = jax.vmap(fn, in_axes, out_axes, axis_name=MEMBER, axis_size=size)
        if self.mesh.size == 1:
            return mapped
        specs = dict(in_specs=self.specs(in_axes), out_specs=self.specs(out_axes))
        return jax.shard_map(mapped, mesh=self.mesh, check_vma=False, **specs)

    def specs(self, axes: Any) -> Any:
        """The partition that belongs to `vmap` axes: the member axis is split over devices, and so are the environments
        of a replay where there are shards; the rest is on every device."""
        split = (None, SHARE) if self.shards > 1 else ()

        def one(axis: Any, *records: Any) -> Any:
            if isinstance(axis, Ring):
                data = jax.tree.map(lambda x: one(x, *split), axis.data, is_leaf=lambda x: x is None)
                return Ring(data, PartitionSpec())  # type: ignore[arg-type]
            return PartitionSpec(*records) if axis is None else PartitionSpec("device", *records)

        return jax.tree.map(one, axes, is_leaf=lambda x: x is None or isinstance(x, Ring))

    def places(self, axes: Any) -> Any:
        """`specs` as shardings on the mesh."""
        is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs(axes), is_leaf=is_spec)


def spread(
    agent: Agent, source: Source, members: int, shards: int, devices: Sequence[Any] | None, sharing: bool
) -> Spread:
    """Choose devices (all of this machine unless given): as many of every process as divide the members evenly. Those
    of a CPU that are left over take part in the updates of a member if `sharing`. Raises ValueError where members or
    shards cannot be divided evenly."""
    devices = list(devices or jax.devices())
    if shards > 1:
        _check_shards(agent, source, shards, len(devices))
    groups = [[d for d in devices if d.process_index == i] for i in sorted({d.process_index for d in devices})]
    fits = lambda n: n % shards == 0 and members % (n // shards) == 0  # noqa: E731
    counts = [n for n in range(1, min(map(len, groups)) + 1) if fits(n * len(groups))]
    if not counts:
        text = f"{members} members with {shards} shards cannot be spread evenly over {len(groups)} processes"
        raise ValueError(f"{text}: make --members a multiple of {len(groups)}")
    width = shards
    if sharing and shards == 1 and devices[0].platform == "cpu" and len(groups) == 1:
        width = _copies(agent, len(devices) // counts[-1])
    count = counts[-1] * (width if shards == 1 else 1)
    grid = np.array([device for group in groups for device in group[:count]]).reshape(-1, width)
    on_host = isinstance(source, Data) or not source.pure
    if on_host and any(len({device.process_index for device in row}) > 1 for row in grid):
        text = f"{source.spec.name} runs on the host next to its members, so the shards of a member must belong to one"
        raise ValueError(f"{text} process: take fewer --shards, or one process per member")
    mesh = Mesh(grid, ("device", SHARE), axis_types=(AxisType.Auto,) * 2)
    return Spread(mesh, members, shards, len(devices) - mesh.size)


def _check_shards(agent: Agent, source: Source, shards: int, devices: int) -> None:
    """ValueError where members cannot be spread over `shards` devices each."""
    counts = {"devices": devices, "environments": source.num_envs}
    counts |= {f"sequences in a batch of {name!r}": step.batch_size for name, step in agent.train_steps.items()}
    for what, count in counts.items():
        if count % shards:
            way = "take a number that does, or change --envs or --batch-size (in a sweep, --gpus)"
            raise ValueError(f"{shards} shards do not divide {count} {what}: {way}")


def _copies(agent: Agent, most: int) -> int:
    """How many devices, at most so many, can work out one update."""
    steps = [step for step in agent.train_steps.values() if step.shared]
    return max(n for n in range(1, most + 1) if n == 1 or (steps and all(step.batch_size % n == 0 for step in steps)))


def probably_shared(agent: Agent, source: Source) -> bool:
    """Guess, by parameters and records, whether a shared step has `SHARED_FLOPS`. Counting is exact, but takes a trace,
    and only that of the right spread can be used again."""
    parameters = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper)).params
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(parameters))
    image = any(x.dtype == np.uint8 and len(x.shape) == 3 for x in jax.tree.leaves(source.spec.obs))
    records = max(step.batch_size * step.length for step in agent.train_steps.values() if step.shared)
    return USES["image" if image else "numbers"] * weights * records >= SHARED_FLOPS
