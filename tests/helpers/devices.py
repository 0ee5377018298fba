"""Four devices on one machine: the same update and the same runs as on one, however they are spread. Prints JSON.

    python tests/helpers/devices.py runs | sharing | steps NAME...

"runs" are Dreamer V3's update, populations and shards; "sharing" is whether devices share the updates of some toys;
"steps" is one gradient step of each named case of `STEPS`. This is a script, because JAX counts its devices when it
starts.
"""

import json
import re
import sys
from functools import partial
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is all the work here

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from fast import TIME, random_record, random_state, tiny, tree_apart  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402
from toys import toy_agent  # noqa: E402

from jaxwm import agents, envs  # noqa: E402
from jaxwm.agents import dreamer_v3 as v3  # noqa: E402
from jaxwm.learning.share import ALONE, Share  # noqa: E402
from jaxwm.training.life import Cursor, member_keys  # noqa: E402
from jaxwm.training.trainer import Trainer  # noqa: E402
from jaxwm.types import Agent, Batch, Box, Discrete, Index, Record, Spec, Step  # noqa: E402

SIZE = 4
SPEC = Spec("test", jax.ShapeDtypeStruct((5,), jnp.float32), Discrete(3))
MESH = Mesh(np.array(jax.devices()), ("share",), axis_types=(AxisType.Auto,))
EACH, WHOLE = PartitionSpec("share"), PartitionSpec()
ROWS = 211
"""Capacity of a replay in rows: a number that no other array has."""


def batch_of(seed: int) -> Batch:
    zero = jnp.zeros(SIZE, jnp.int32)
    return Batch(random_record(SPEC, jax.random.key(seed), (SIZE, TIME + 1)), Index(zero, zero), jnp.ones(SIZE))


def farthest(a, b) -> float:
    """Largest difference of any two leaves."""
    gaps = jax.tree.map(lambda x, y: np.abs(x.astype(np.float64) - y.astype(np.float64)).max(), a, b)
    return float(max(jax.tree.leaves(gaps)))


def over(fn, in_specs: Any, out_specs: Any):
    return jax.jit(jax.shard_map(fn, mesh=MESH, in_specs=in_specs, out_specs=out_specs, check_vma=False))


def state_of(out):
    return out[0].params, out[0].slow, out[0].returns, out[0].opt, out[1]["deter"]


def updates() -> dict[str, Any]:
    """One update: on one device; by four that hold the batch, hold a quarter each, or are left to the compiler."""
    config = tiny(batch_size=SIZE, warmup=0, lr=1e-3)
    agent, learner = v3.make(SPEC, config), v3.Learner(v3.build(SPEC, config), SPEC, config)
    update: Any = agent.train_steps["all"].update
    alone = jax.jit(update)

    def start(key):
        return random_state(learner.nets, SPEC, config)._replace(opt=agent.init(key, agent.hyper).opt)

    state, _, _ = alone(jax.jit(start)(jax.random.key(0)), batch_of(1), jax.random.key(1))  # now there are moments
    batch, key = batch_of(2), jax.random.key(2)
    rows = jax.tree.map(lambda x: EACH if x.ndim else WHOLE, batch)

    def of_each(*arguments):
        """Every device's results, in front of each other."""
        return jax.tree.map(lambda x: x[None], update(*arguments, share=Share("share")))

    split = over(partial(update, share=Share("share", split=True)), (WHOLE, rows, WHOLE), (WHOLE, EACH, WHOLE))
    placed = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(MESH, spec)), batch, rows)
    before, expected, held, quarters, compiled = jax.device_get(
        (state, alone(state, batch, key), over(of_each, WHOLE, EACH)(state, batch, key), split(state, batch, key),
         alone(state, placed, key))
    )  # fmt: skip
    first, *others = (jax.tree.map(lambda x, i=i: x[i], held) for i in range(len(jax.devices())))

    def gradient(state, record, noise, share):
        return share.mean(jax.grad(lambda p: v3.loss(learner, p, state, record, noise, share)[0])(state.params))

    noise = learner.noise(key, *batch.record.reward.shape)
    together = over(partial(gradient, share=Share("share", split=True)), (WHOLE, EACH, EACH), WHOLE)
    one = jax.jit(partial(gradient, share=ALONE))
    gradients = jax.device_get((together(state, batch.record, noise), one(state, batch.record, noise)))
    # `pmap(train_step)`: a member on each device, beside one after another
    count = len(jax.devices())
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    batches, keys = [batch_of(i) for i in range(count)], member_keys(0, count)
    mapped = jax.pmap(agent.train_step)(stack([state] * count), stack(batches), keys)[0]
    looped = stack([alone(state, batches[i], jax.random.fold_in(keys[i], 0))[0] for i in range(count)])

    numbers = lambda out: {name: float(value) for name, value in out[2].items()}  # noqa: E731
    return {
        "devices": len(jax.devices()),
        "moved": farthest(expected[0].params, before.params),
        "flips": [int((out[1]["stoch"] != expected[1]["stoch"]).sum()) for out in (first, quarters, compiled)],
        "apart": {
            name: tree_apart(state_of(out), state_of(expected))
            for name, out in (("held", first), ("quarters", quarters), ("compiler", compiled))
        },
        "gradients": tree_apart(*gradients),
        "pmap": tree_apart(*jax.device_get(((mapped.params, mapped.opt), (looped.params, looped.opt)))),
        "metrics": [numbers(first), numbers(expected)],
        "between": max(farthest(first, other) for other in others),
    }


def life(trainer: Trainer, steps: int) -> Any:
    now, cursor = trainer.init(0), Cursor()
    while int(now.counters.steps) < steps:
        now, cursor, _ = trainer.run(now, cursor, 8)
    return now


def talk(trainer: Trainer) -> list[str]:
    """Lines of the compiled programs in which devices talk to each other."""
    word = re.compile(r"= .*(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
    texts = [program.as_text() for program in trainer._program.programs.values()]
    return [line.strip() for text in texts for line in text.splitlines() if word.search(line)]


def populations() -> dict[str, Any]:
    """Runs of four members on one device and on four."""

    def trainer(devices: int) -> Trainer:
        env = envs.make("gymnax/Catch-bsuite", num_envs=2)
        return Trainer(toy_agent(), env, 4, 100, devices=jax.devices()[:devices])

    one, four = trainer(1), trainer(4)
    a, b = life(one, 200), life(four, 200)
    pick = lambda life: (life.agent.params, life.ring.data, life.score)  # noqa: E731
    return {
        "updates": int(a.counters.updates),
        "population": farthest(*jax.device_get((pick(b), pick(a)))),
        "members of a device": [x.data.shape[0] for x in b.ring.data.reward.addressable_shards],
        "talk": talk(four),
    }


def shards() -> dict[str, Any]:
    """One member on four devices: each holds a quarter of the replay, and none of it is gathered."""
    env = envs.make("gymnax/Catch-bsuite", num_envs=4)
    options = dict(batch_size=4, batch_length=8, imag_length=3, envs=4, prefill=64, train_ratio=8.0, free_nats=0.0)
    agent = v3.make(env.spec, agents.settings("dreamer-v3", "nano", **options))
    trainer = Trainer(agent, env, 1, 4 * ROWS, shards=4)
    now = life(trainer, 400)
    lines = talk(trainer)
    return {
        "held": [x.data.shape for x in now.ring.data.reward.addressable_shards],
        "shared updates": len(lines),
        "replay gathered": [line for line in lines if re.search(rf"\b{ROWS}\b", line.split("metadata")[0])],
        "finite": all(bool(np.isfinite(x).all()) for x in jax.device_get(jax.tree.leaves(now.agent.params))),
        "sharded updates": int(now.counters.updates),
        "skipped": int(jax.device_get(now.skipped.total).sum()),
    }


# --- Which updates are shared -----------------------------------------------------------------------------------------


def working_agent(size: int, weights: int = 1) -> Agent:
    """A toy whose devices together multiply two matrices of `size` in an update, and which has so many parameters."""
    agent = toy_agent(batch=4)

    def init(key, hyper):
        state = agent.init(key, hyper)
        return state._replace(params=state.params | {"unused": jnp.zeros(weights)})

    def update(state, batch, key, share=ALONE):
        reward = share.local_rows(batch.record.reward)
        product = jnp.full((len(reward) * size // 4, size), reward.mean()) @ jnp.ones((size, size))
        state = state._replace(params=state.params | {"mean": share.mean(product.mean())}, step=state.step + 1)
        return state, {}, {"mean": state.params["mean"]}

    step = agent.train_steps["average"]._replace(update=update, shared=True)
    return agent._replace(init=init, train_steps={"average": step})


def sharing() -> dict[str, Any]:
    """`{case: (whether updates are shared, devices that hold a member, GFLOPs of an update)}` of a trainer's choice."""

    def choice(size: int, members: int = 1, weights: int = 1, **options) -> tuple[Any, int, float]:
        agent, env = working_agent(size, weights), envs.make("gymnax/Catch-bsuite", num_envs=2)
        trainer = Trainer(agent, env, members, 100, **options)
        return trainer.sharing, trainer.spread.copies, trainer.work("average") / 1e9

    return {
        "small": choice(100),
        "small, with many parameters": choice(100, weights=10**7),
        "large": choice(1200),
        "large, of two members": choice(1200, members=2),
        "large, of four members": choice(1200, members=4),
        "large, but said not to be": choice(1200, sharing=False),
        "small, but said to be large": choice(100, sharing=True),
    }


# --- One gradient step of every system --------------------------------------------------------------------------------

VECTOR, IMAGE = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)
BOARD = {
    "board": jax.ShapeDtypeStruct((3, 3, 2), jnp.bool_),
    "legal": jax.ShapeDtypeStruct((9,), jnp.bool_),
    "to_play": jax.ShapeDtypeStruct((), jnp.int32),
    "sim": (),
}
GAME = Spec("test", BOARD, Discrete(9), simulate=lambda sim, action: sim, players=2)
OLD = dict(deter=8, hidden=8, stoch=3, units=8, depth=1, batch_size=8, batch_length=4)
DREAMS = OLD | dict(imag_length=3)
BARLOW = DREAMS | dict(blocks=4, classes=4, bins=11, warmup=0, representation="barlow")
WORLD = dict(codes=3, depth=1, units=4, vision_batch=8, memory_batch=8, memory_length=4)
PLANES = jax.ShapeDtypeStruct((4, 4, 2), jnp.bool_)
TOKENS = dict(codes=6, code_width=4, depth=4, patch=2, frames=5, width=8, heads=2, layers=1, units=8, burn_in=3,
              imag_length=4, tokenizer_batch=16, model_batch=8, policy_batch=8, revive=0, dropout=0.1)  # fmt: skip
BLOCKS = dict(patch=2, codes=6, frames=5, width=8, heads=2, layers=1, units=8, burn_in=2, imag_length=4, envs=8,
              rollout=3, model_batch=8)  # fmt: skip
PAINT = dict(past=2, channels=4, sizes=2, doublings=0, blocks=1, cond=8, passes=2, outcome_channels=4, outcome_sizes=1,
             outcome_blocks=1, outcome_cond=4, outcome_units=4, units=8, burn_in=2, horizon=3, dream_steps=4,
             denoiser_batch=8, outcome_batch=8, policy_batch=8)  # fmt: skip
SEARCH = dict(width=8, units=8, batch_size=8, reanalyse=0, optimizer="sgd", unroll=3, td_steps=2, depth=1)
STORM = dict(stoch=3, classes=4, width=8, heads=2, hidden=8, units=8, depth=1, dropout=0.1, batch_size=8, dreams=8)
STORM |= dict(batch_length=4, context=3, imag_length=3)
EXTRAS = dict(consistency=1.0, prefix=True, correction=100, decoder=True)
BOARDS = dict(channels=4, head=2, units=4, batch_size=8, batch_length=5)
STEPS: dict[str, Any] = {  # name: system, preset, environment, settings, train step
    "planet": ("planet", "micro", Spec("test", VECTOR, Box(2)), OLD | dict(free_nats=0.01), "all"),
    "dreamer-v1": ("dreamer-v1", "micro", Spec("test", VECTOR, Box(2)), DREAMS | dict(free_nats=0.01), "all"),
    "dreamer-v2": ("dreamer-v2", "micro", Spec("test", VECTOR, Box(2)), DREAMS | dict(classes=4), "all"),
    "barlow": ("dreamer-v3", "nano", Spec("test", VECTOR, Discrete(3)), BARLOW, "all"),
    "pets": ("pets", "small", Spec("test", VECTOR, Box(2)), dict(reward="learned", units=8, batch_size=8), "model"),
    "sac": ("sac", "small", Spec("test", VECTOR, Box(2)), dict(units=8, batch_size=8), "sac"),
    "ppo": ("ppo", "small", Spec("test", VECTOR, Box(2)), dict(units=8, envs=8, horizon=4, minibatches=2), "ppo"),
    "vision": ("world-models", "takecover-small", Spec("test", IMAGE, Discrete(3)), WORLD, "vision"),
    "memory": ("world-models", "takecover-small", Spec("test", IMAGE, Discrete(3)), WORLD, "memory"),
    "tokenizer": ("iris", "micro", Spec("test", PLANES, Discrete(3)), TOKENS, "tokenizer"),
    "tokens": ("iris", "micro", Spec("test", PLANES, Discrete(3)), TOKENS, "model"),
    "frames": ("iris", "micro", Spec("test", PLANES, Discrete(3)), TOKENS, "policy"),
    "block": ("token-dyna", "micro", Spec("test", PLANES, Discrete(3)), BLOCKS, "model"),
    "real": ("token-dyna", "micro", Spec("test", PLANES, Discrete(3)), BLOCKS, "real"),
    "painter": ("diamond", "micro", Spec("test", PLANES, Discrete(3)), PAINT, "denoiser"),
    "outcome": ("diamond", "micro", Spec("test", PLANES, Discrete(3)), PAINT, "outcome"),
    "lasting": ("diamond", "micro", Spec("test", PLANES, Discrete(3)), PAINT, "policy"),
    "alphazero": ("alphazero", "tictactoe", GAME, BOARDS, "all"),
    "muzero": ("muzero", "catch", Spec("test", VECTOR, Box(2)), SEARCH | dict(sampled=3), "learn"),
    "efficientzero": ("efficientzero", "catch", Spec("test", VECTOR, Discrete(3)), SEARCH | EXTRAS, "learn"),
    "storm-model": ("storm", "micro", Spec("test", VECTOR, Box(2)), STORM, "model"),
    "storm-behaviour": ("storm", "micro", Spec("test", VECTOR, Box(2)), STORM, "behaviour"),
}  # fmt: skip


def filled(shape: Any, key: Any) -> Any:
    """Random numbers of a type: a few flags, small integers, floats in [0, 1)."""
    if shape.dtype == jnp.bool_:
        return jax.random.uniform(key, shape.shape) < 0.2
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return jax.random.randint(key, shape.shape, 0, 255 if shape.dtype == jnp.uint8 else 2).astype(shape.dtype)
    return jax.random.uniform(key, shape.shape, shape.dtype)


def case(name: str) -> tuple[Any, Any, Any]:
    """A train step, and functions of a seed: a state in which everything moves, and a batch."""
    system, preset, spec, options, which = STEPS[name]
    agent = agents.make(system, spec, preset, **options)
    step = agent.train_steps[which]
    rows = step.batch_size * (5 if name == "pets" else 1)
    leaf = lambda s: jax.ShapeDtypeStruct((rows, step.length, *s.shape), s.dtype)  # noqa: E731
    obs = jax.tree.map(
        leaf, {k: v for k, v in spec.obs.items() if k != "sim"} if isinstance(spec.obs, dict) else spec.obs
    )
    number, flag = leaf(jax.ShapeDtypeStruct((), jnp.float32)), leaf(jax.ShapeDtypeStruct((), jnp.bool_))

    def acted(state: Any) -> Any:
        first = jax.tree.map(lambda s: jnp.zeros((rows, *s.shape), s.dtype), spec.obs)
        now = Step(first, jnp.zeros(rows), *[jnp.zeros(rows, bool)] * 3)
        return agent.act(state, agent.reset(state, rows), now, jax.random.key(0), "random")[1:]

    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), agent.hyper))
    long = lambda s: jax.ShapeDtypeStruct((rows, step.length, *s.shape[1:]), s.dtype)  # noqa: E731
    action, extras = jax.tree.map(long, jax.eval_shape(acted, state))

    def fill(tree: Any, seed: int) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return jax.tree.unflatten(structure, [filled(x, key) for x, key in zip(leaves, keys, strict=True)])

    def start(seed: int) -> Any:
        state = jax.jit(agent.init)(jax.random.key(seed), agent.hyper)
        noise = jax.tree.map(lambda x: 0.1 * (x - 0.5), fill(state.params, seed))
        return state._replace(params=jax.tree.map(jnp.add, state.params, noise))

    def batch(seed: int) -> Batch:
        record = fill(Record(obs, number, flag, flag, flag, action, extras), seed)
        index = Index(jnp.arange(rows), jnp.zeros(rows, jnp.int32))
        return Batch(record, index, 0.5 + fill(jax.ShapeDtypeStruct((rows,), jnp.float32), seed + 1))

    return step, start, batch


def distances(ours: Any, theirs: Any) -> dict[str, float]:
    """`tree_apart`, with 0 for leaves that are equal, zeros among them."""
    found, leaves = tree_apart(ours, theirs), jax.tree_util.tree_leaves_with_path(theirs)
    for mine, (path, leaf) in zip(jax.tree.leaves(ours), leaves, strict=True):
        if np.array_equal(mine, leaf):
            found[jax.tree_util.keystr(path)] = 0.0
    return found


def gradient_step_of(name: str) -> dict[str, Any]:
    """One step by one device, by four that hold the batch or a quarter each, and of four members by `pmap`."""
    step, start, batch_of = case(name)
    update: Any = step.update
    alone = jax.jit(update)
    state, batch, key = jax.jit(start, static_argnums=0)(1), batch_of(2), jax.random.key(3)
    state = alone(state, batch_of(4), jax.random.key(5))[0]  # now there are moments
    rows = jax.tree.map(lambda x: EACH, batch)

    def each_network(x):
        """PETS: a device holds a quarter of the transitions of every network."""
        return x.reshape(5, 4, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    quarters = jax.tree.map(each_network, batch) if name == "pets" else batch

    def of_each(*arguments):
        return jax.tree.map(lambda x: x[None], update(*arguments, share=Share("share")))

    split = over(partial(update, share=Share("share", split=True)), (WHOLE, rows, WHOLE), (WHOLE, EACH, WHOLE))
    expected, held, parts = jax.device_get(
        (alone(state, batch, key), over(of_each, WHOLE, EACH)(state, batch, key), split(state, quarters, key))
    )
    first, *others = (jax.tree.map(lambda x, i=i: x[i], held) for i in range(len(jax.devices())))
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    batches, keys = [batch_of(i) for i in range(4)], jax.random.split(jax.random.key(6), 4)
    mapped = jax.pmap(update)(stack([state] * 4), stack(batches), keys)[0]
    looped = stack([alone(state, one, k)[0] for one, k in zip(batches, keys, strict=True)])
    learned = lambda state: {"opt": state.opt, "rest": state._replace(params=(), opt=(), hyper=())}  # noqa: E731
    numbers = lambda out: {name: float(value) for name, value in out[2].items()}  # noqa: E731
    whole = lambda out: (learned(out[0]), out[1])  # noqa: E731
    apart = {"held": distances(whole(first), whole(expected)), "quarters": distances(whole(parts), whole(expected))}
    return {
        "apart": apart,
        "pmap": distances(*jax.device_get((learned(mapped), learned(looped)))),
        "metrics": [numbers(expected), numbers(first), numbers(parts)],
        "between": max(farthest(first[0], other[0]) for other in others),
        "moved": farthest(expected[0].params, state.params),
    }  # fmt: skip


if __name__ == "__main__":
    what, *names = sys.argv[1:]
    modes = {
        "runs": lambda: updates() | populations() | shards(),
        "sharing": sharing,
        "steps": lambda: {name: gradient_step_of(name) for name in names},
    }
    print(json.dumps(modes[what]()))
