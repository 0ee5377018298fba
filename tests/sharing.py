"""One update of a tiny Dreamer V3 on one device, and shared by two; prints how far apart they are as JSON.

A script, because the number of devices is fixed when JAX starts.
"""

import json
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, Mesh, PartitionSpec  # noqa: E402
from test_fast_step import TIME, random_record, random_state, tiny, tree_apart  # noqa: E402

from jaxwm.agents import dreamer_v3 as v3  # noqa: E402
from jaxwm.types import Batch, Discrete, Index, Spec  # noqa: E402

SIZE = 4
SPEC = Spec("test", jax.ShapeDtypeStruct((5,), jnp.float32), Discrete(3))


def batch_of(seed: int) -> Batch:
    zero = jnp.zeros(SIZE, jnp.int32)
    return Batch(
        random_record(SPEC, jax.random.key(seed), (SIZE, TIME + 1)), Index(zero, zero), jnp.ones(SIZE), zero[0]
    )


def farthest(a, b) -> float:
    """Largest difference of any two leaves."""
    gaps = jax.tree.map(lambda x, y: np.abs(x.astype(np.float64) - y.astype(np.float64)).max(), a, b)
    return float(max(jax.tree.leaves(gaps)))


def main() -> dict:
    config = tiny(batch_size=SIZE, warmup=0, lr=1e-3)
    agent = v3.make(SPEC, config)
    update = agent.train_steps["all"].update

    def shared(*arguments):
        """Every device's results, in front of each other."""
        return jax.tree.map(lambda x: x[None], update(*arguments, axis="share"))

    mesh = Mesh(np.array(jax.devices()), ("share",), axis_types=(AxisType.Auto,))
    specs: Any = dict(in_specs=PartitionSpec(), out_specs=PartitionSpec("share"))
    together = jax.jit(jax.shard_map(shared, mesh=mesh, check_vma=False, **specs))
    alone = jax.jit(update)

    def start(key):
        opt = agent.init(key, agent.hyper).opt
        return random_state(v3.build(SPEC, config), SPEC, config)._replace(opt=opt)

    state, _, _ = alone(jax.jit(start)(jax.random.key(0)), batch_of(1), jax.random.key(1))  # now there are moments
    arguments = state, batch_of(2), jax.random.key(2)
    before, expected, found = jax.device_get((state, alone(*arguments), together(*arguments)))
    first, second = (jax.tree.map(lambda x, i=i: x[i], found) for i in (0, 1))

    pick = lambda out: (out[0].params, out[0].slow, out[0].returns, out[0].opt, out[1]["deter"])  # noqa: E731
    numbers = lambda out: {name: float(value) for name, value in out[2].items()}  # noqa: E731
    return {
        "devices": len(jax.devices()),
        "moved": farthest(expected[0].params, before.params),
        "flips": int((first[1]["stoch"] != expected[1]["stoch"]).sum()),
        "apart": tree_apart(pick(first), pick(expected)),
        "metrics": [numbers(first), numbers(expected)],
        "between": farthest(first, second),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
