"""Dreamer V3 in a tiny size with random weights and data, and how far two results are apart."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import agents, spaces
from jaxwm.agents import dreamer_v3 as v3
from jaxwm.control import actor_critic as ac
from jaxwm.types import Box, Discrete, MultiDiscrete, Record, Spec

BATCH, TIME = 3, 4
TINY = dict(
    deter=16, blocks=4, hidden=8, units=8, stoch=4, classes=4, bins=11, depth=2, batch_size=BATCH, batch_length=TIME,
    imag_length=3, envs=2, prefill=40, discount_horizon=10.0,
)  # fmt: skip
VECTOR, IMAGE = jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((48, 48, 3), jnp.uint8)
KINDS = {
    "vector": (VECTOR, Discrete(3), {"disagreement": 0.5, "ensemble": 2}),
    "image": (IMAGE, Discrete(3), {}),
    "continuous": (VECTOR, Box(2), {}),
    "dict": ({"image": IMAGE, "vector": VECTOR}, MultiDiscrete((2, 3)), {"rec_scale": 0.7}),
}


def tiny(**options) -> v3.Config:
    return agents.settings("dreamer-v3", "nano", **(TINY | options))


def random_sensor(spec, key, lead):
    if spec.dtype == jnp.uint8:
        return jax.random.randint(key, (*lead, *spec.shape), 0, 256).astype(jnp.uint8)
    return jax.random.normal(key, (*lead, *spec.shape))


def random_record(spec: Spec, key, lead: tuple[int, int]) -> Record:
    """Sequences with an episode's start, a time limit and a true end in them."""
    keys = iter(jax.random.split(key, 8))
    obs = jax.tree.map(lambda s: random_sensor(s, next(keys), lead), spec.obs)
    action = jax.random.normal(next(keys), (*lead, 2)) if isinstance(spec.action, Box) else None
    if action is None:
        options = jnp.asarray(spaces.choices(spec.action))
        action = jax.random.randint(next(keys), (*lead, len(options)), 0, options)
        action = action[..., 0] if isinstance(spec.action, Discrete) else action
    flag = jnp.zeros(lead, bool)
    first, last, terminal = flag.at[0, 3].set(True), flag.at[0, 2].set(True).at[1, 3].set(True), flag.at[0, 2].set(True)
    stoch = jax.random.randint(next(keys), (*lead, 4), 0, 4).astype(jnp.uint8)
    extras = {"deter": jax.random.normal(next(keys), (*lead, 16)), "stoch": stoch}
    return Record(obs, jax.random.normal(next(keys), lead), first, last, terminal, action, extras)


def random_state(nets: v3.Networks, spec: Spec, config: v3.Config) -> v3.State:
    """Every tensor has a gradient, the slow critic is another one, the range is not trivial, rewards are of order 1."""
    params = v3.init_params(nets, spec, jax.random.key(1), config.ensemble)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, leaves)
    for head in (params["rew"]["params"], params["val"]["params"]):
        head["bins"]["bias"] -= 5.0 * jnp.abs(jnp.arange(config.bins) - config.bins // 2)
    slow = jax.tree.map(lambda x: x + 0.05, params["val"])
    hyper = {k: jnp.float32(v) for k, v in dict(lr=1e-3, entropy=1e-2, discount_horizon=10.0, lam=0.95).items()}
    return v3.State(params, slow, ac.ReturnRange(jnp.float32(-1), jnp.float32(2)), None, hyper, jnp.int32(0))


def apart(ours, theirs) -> float:
    """Largest difference over the largest entry of `theirs`; infinite where one is not finite, or `theirs` is 0."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / scale) if np.isfinite(ours).all() and scale > 0 else float("inf")


def tree_apart(ours, theirs) -> dict[str, float]:
    """`apart` of every leaf, by its path."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(apart, ours, theirs))
    return {jax.tree_util.keystr(path): value for path, value in leaves}


def assert_near(ours, theirs, limit: float = 1e-5):
    far = {path: value for path, value in tree_apart(ours, theirs).items() if not value <= limit}
    assert not far, f"more than {limit} apart: {far}"


def assert_same_metrics(ours: dict, theirs: dict):
    """Means of numbers of either sign may be almost 0: 1e-6 is near enough there."""
    assert ours.keys() == theirs.keys()
    far = {k: (float(ours[k]), float(theirs[k])) for k in ours if not np.isclose(ours[k], theirs[k], 1e-5, 1e-6)}
    assert not far, f"apart: {far}; where only dreams and what follows them are, rounding may have flipped a sample"
