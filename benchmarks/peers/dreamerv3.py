"""Updates of the official Dreamer V3 (danijar/dreamerv3), imported from a checkout, on random data.

Started by `python -m benchmarks.run --peer dreamerv3=CHECKOUT`; see serve.py for what it says and hears.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false

import functools
import sys
import tempfile
from importlib.metadata import version

from serve import answers, arguments, serve, timed

args = arguments()
say = answers()

import jax  # noqa: E402

original_jit = jax.jit


def jit(fun=None, *positional, **options):
    """The peer hands `jax.jit` its options by position, which newer versions of JAX no longer take."""
    names = ("in_shardings", "out_shardings", "static_argnums", "static_argnames", "donate_argnums")
    options |= dict(zip(names, positional, strict=False))
    options = {k: v for k, v in options.items() if v is not None or not k.endswith("shardings")}
    return functools.partial(jit, **options) if fun is None else original_jit(fun, **options)


jax.jit = jit
jax.config.update("jax_compilation_cache_dir", None)
sys.path.insert(0, str(args.path))

import elements  # noqa: E402
import numpy as np  # noqa: E402
import ruamel.yaml  # noqa: E402
from dreamerv3.agent import Agent  # noqa: E402
from embodied.jax import internal  # noqa: E402

known = ruamel.yaml.YAML(typ="safe").load((args.path / "dreamerv3" / "configs.yaml").read_text())
config = elements.Config(known["defaults"]).update(known[{"a": "size1m", "b": "size12m"}[args.setting]])
config = config.update({
    "batch_size": args.batch,
    "batch_length": args.length,
    "jax.platform": {"cpu": "cpu", "gpu": "cuda"}[args.device],
    "jax.compute_dtype": args.dtype,
    "jax.prealloc": False,
})  # fmt: skip

flag = elements.Space(bool)
sensor = {"a": ("vector", elements.Space(np.float32, (16,))), "b": ("image", elements.Space(np.uint8, (64, 64, 3)))}
observation = {"reward": elements.Space(np.float32), "is_first": flag, "is_last": flag, "is_terminal": flag}
observation |= dict([sensor[args.setting]])
options = elements.Config(
    **config.agent,
    jax={**config.jax, "precompile": False, "profiler": False},
    logdir=tempfile.mkdtemp(),
    **{name: config[name] for name in ("seed", "batch_size", "batch_length", "replay_context", "report_length")},
    replica=0,
    replicas=1,
)
agent = Agent(observation, {"action": elements.Space(np.int32, (), 0, 6)}, options)

rng = np.random.default_rng(0)
length = args.length + config.replay_context


def random(name, space):
    """A batch of one entry; no flag is set, as on our side."""
    shape = (args.batch, length, *space.shape)
    if name == "consec" or space.dtype == bool:
        return np.zeros(shape, space.dtype)
    if np.issubdtype(space.dtype, np.integer):
        return rng.integers(0, 4, shape).astype(space.dtype)
    return rng.normal(size=shape).astype(space.dtype)


batch = {name: random(name, space) for name, space in agent.spaces.items()}
batch = internal.device_put(batch, agent.train_sharded)
seed = agent._seeds(0, agent.train_mirrored)
state = [agent.params, agent.init_train(args.batch)]


def update():
    """The peer's compiled train step, with nothing of its loop around it."""
    params, carry = state
    policy = {k: v for k, v in params.items() if k in agent.policy_keys}
    rest = {k: v for k, v in params.items() if k not in agent.policy_keys}
    with agent.train_mesh:
        params, carry, *results = agent._train(rest, policy, seed, carry, batch)
    jax.block_until_ready((params, carry, results))
    state[:] = params, carry


update()  # compiles
update()
trained = sum(
    v.size for k, v in state[0].items() if k.split("/")[0] in ("enc", "dyn", "dec", "rew", "con", "pol", "val")
)
versions = {name: version(name) for name in ("jax", "jaxlib")}
serve(say, {"parameters": int(trained), "versions": versions}, {"update": timed(update)})
