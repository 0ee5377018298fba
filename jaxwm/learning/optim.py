"""Gradient transformations that optax does not have in the form these systems use."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwm.types import Array, PyTree

WIDTH = 256  # Columns of packed tensors.


def numbers(hyper: Mapping[str, Any]) -> dict[str, Array]:
    """Hyper-parameters that may differ between members, as float32 scalars."""
    return {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}


def pack(tree: PyTree) -> Array:
    """All float32 tensors of a tree as one matrix `[rows, WIDTH]`; each starts a row, zeros fill its last one.
    A hundred tensors treated one by one make a program several times as long, most of it the optimiser."""
    parts = []
    for x in jax.tree.leaves(tree):
        parts += [x.ravel(), jnp.zeros(-x.size % WIDTH, x.dtype)]
    return jnp.concatenate(parts).reshape(-1, WIDTH)


def unpack(rows: Array, like: PyTree) -> PyTree:
    """The inverse of `pack`, with the shapes of `like`."""
    tensors, flat, start = [], rows.ravel(), 0
    for x in jax.tree.leaves(like):
        tensors.append(flat[start : start + x.size].reshape(x.shape))
        start += -(-x.size // WIDTH) * WIDTH
    return jax.tree.unflatten(jax.tree.structure(like), tensors)


def norms(matrices: Sequence[Array], like: PyTree) -> Array:
    """The norm of the tensor that each row belongs to, `[K, rows]`, in K packed trees; no scatter: slow on GPUs."""
    heights = [-(-x.size // WIDTH) for x in jax.tree.leaves(like)]
    tensor = np.repeat(np.arange(len(heights)), heights)
    mine = tensor[:, None] == jnp.arange(len(heights))  # not a constant: rows x tensors is large
    squares = jnp.stack([jnp.square(rows).sum(-1) for rows in matrices])
    return jnp.sqrt(jnp.where(mine, squares[..., None], 0.0).sum(-2))[:, tensor]


def clip(grads: Array, weights: Array, like: PyTree, limit: float = 0.3, floor: float = 1e-3) -> Array:
    """Packed gradients with |g| <= limit * max(floor, |w|) for each tensor: adaptive clipping as in Dreamer V3.
    `optax.adaptive_grad_clip` clips per output unit (Brock et al. 2021), which is another algorithm."""
    weight, grad = norms((weights, grads), like)
    return grads / jnp.maximum(1.0, grad / (limit * jnp.maximum(floor, weight)))[:, None]


class LaProp(NamedTuple):
    """Moments of packed gradients."""

    count: Array
    first: Array  # [rows, WIDTH], of gradients scaled by their second moment
    second: Array  # [rows, WIDTH]


def laprop(agc: float = 0.3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-20):
    """AGC, then RMS scaling, then momentum: the order of LaProp (Ziyin et al. 2020). Gives ascent directions.
    Both moments are corrected for their start at 0. The caller applies the learning rate: it may differ by member."""

    def init(params: PyTree) -> LaProp:
        zeros = jnp.zeros_like(pack(params))
        return LaProp(jnp.zeros((), jnp.int32), zeros, jnp.zeros_like(zeros))

    def update(grads: PyTree, state: LaProp, params: PyTree) -> tuple[PyTree, LaProp]:
        grad, count = clip(pack(grads), pack(params), params, agc), state.count + 1
        second = beta2 * state.second + (1 - beta2) * jnp.square(grad)
        scaled = grad / (jnp.sqrt(optax.tree.bias_correction(second, beta2, count)) + eps)
        first = beta1 * state.first + (1 - beta1) * scaled
        return unpack(optax.tree.bias_correction(first, beta1, count), params), LaProp(count, first, second)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def apart(groups: Mapping[str, Sequence[str]], tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` for each group of components on its own, each packed into one matrix: so that each has its own clipping.
    `groups` names the components `{group: (component, ...)}` of trees `{component: tree}`. Gives ascent directions."""

    pick = lambda tree, group: {name: tree[name] for name in groups[group]}  # noqa: E731

    def init(params: PyTree) -> dict[str, Any]:
        return {group: tx.init(pack(pick(params, group))) for group in groups}

    def update(grads: PyTree, state: dict[str, Any], params: PyTree) -> tuple[PyTree, dict[str, Any]]:
        directions, new = {}, {}
        for group in groups:
            like = pick(params, group)
            rows, new[group] = tx.update(pack(pick(grads, group)), state[group], pack(like))
            directions |= unpack(jnp.asarray(rows), like)
        return directions, new

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def rates_of(groups: Mapping[str, Sequence[str]], hyper: Mapping[str, Array]) -> dict[str, Array]:
    """The learning rate of each component, from `{group}_lr` of its group."""
    return {name: hyper[f"{group}_lr"] for group, names in groups.items() for name in names}


def adam(clip: float, eps: float) -> optax.GradientTransformation:
    """Adam's directions for gradients whose norm is first cut at `clip` (Kingma & Ba 2015)."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.scale_by_adam(eps=eps))


def packed(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on one matrix of all tensors: the same where it treats entries alike, in a much smaller program."""

    def update(grads: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        rows, state = tx.update(pack(grads), state)
        return unpack(jnp.asarray(rows), params), state

    return optax.GradientTransformation(lambda params: tx.init(pack(params)), update)  # type: ignore[arg-type]


def decayed(tx: optax.GradientTransformation, weight_decay: float) -> optax.GradientTransformation:
    """`tx`, and decay of the matrices in units of the learning rate (Loshchilov & Hutter 2019)."""
    matrices = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == _KERNEL, tree)  # noqa: E731
    return optax.chain(tx, optax.add_decayed_weights(weight_decay, matrices))


_KERNEL = jax.tree_util.DictKey("kernel")


def adamw(clip: float, eps: float, weight_decay: float, updates: int = 0) -> optax.GradientTransformation:
    """`adam` with decay of the matrices; the rate rises over the first `updates`."""
    rising = optax.scale_by_schedule(lambda count: warmup(jnp.asarray(count) + 1, updates))
    return optax.chain(decayed(packed(adam(clip, eps)), weight_decay), rising)


def norm(tree: PyTree) -> Array:
    """The norm of all tensors together."""
    return jnp.sqrt(jnp.square(pack(tree)).sum())


def warmup(step: jax.Array, updates: int) -> jax.Array:
    """Linear ramp from 0 at `step` 0 to 1 at `updates`; 1 throughout for `updates` 0."""
    return jnp.minimum(1.0, step / updates) if updates else jnp.ones(())


def decay(step: jax.Array, updates: int) -> jax.Array:
    """Linear fall from 1 at `step` 0 to 0 at `updates`; 1 throughout for `updates` 0."""
    return jnp.maximum(0.0, 1 - step / updates) if updates else jnp.ones(())
