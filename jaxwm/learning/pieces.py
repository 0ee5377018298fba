"""Work on a large batch in pieces that fit a CPU's cache, and the routes that each kind of device prefers.

On CPUs a layer over 16,000 rows waits for memory; the same rows 1,000 at a time stay in cache from the first layer to
the last, and back. On accelerators one large piece is best. Both compute the same numbers up to the order of sums."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.types import Array

Rows = Any  # A pytree of arrays that share their first axis; cut, `[n, rows / n, ...]`.


class Routes(NamedTuple):
    """What one kind of device prefers. 0 stands for all at once."""

    images: int = 0  # Images that go through convolutions, and back, together.
    dreams: int = 0  # Dreams that are rolled out and judged together.
    own_gradients: bool = False
    """Use convolutions with hand-written gradients, and of pairs of pixels where channels are few: XLA's own are many
    times slower on CPUs, above all in loops."""
    subpixel: bool = True
    """Double images and convolve them in one convolution at the lower resolution (9 instead of 25 products)."""
    apart: bool = True
    """Work out the gradient of a recurrent model outside its loop: fewer and larger kernels, for more FLOPs."""
    cudnn: bool = False
    """Leave attention in half precision to cuDNN, which never holds the scores of all pairs of tokens."""


PLAIN = Routes(subpixel=False, apart=False)  # The mathematics as written, for reading and for tests.

ROUTES = {"cpu": Routes(images=8, dreams=64, own_gradients=True, apart=False), "gpu": Routes(cudnn=True)}
"""By backend; others take the defaults of `Routes`. Measured in benchmarks/NOTES.md."""


def routes() -> Routes:
    """The routes for the device that programs are compiled for."""
    return ROUTES.get(jax.default_backend(), Routes())


def _length(rows: Rows) -> int:
    """Of the first axis: rows, or pieces where they are cut."""
    return jax.tree.leaves(rows)[0].shape[0]


def split(rows: Rows, size: int) -> Rows:
    """`[R, ...] -> [n, R / n, ...]` with the largest pieces of at most `size` rows that divide R.
    n = 1 for size 0, and where only pieces of less than an eighth of `size` would divide R: those do not pay."""
    count = _length(rows)
    piece = max(k for k in range(1, min(size or count, count) + 1) if count % k == 0)
    if 8 * piece < size:
        piece = count
    return jax.tree.map(lambda x: x.reshape(count // piece, piece, *x.shape[1:]), rows)


def merge(rows: Rows) -> Rows:
    """Invert `split`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def _only(rows: Rows) -> Rows:
    return jax.tree.map(lambda x: x[0], rows)


def map_pieces(fn: Callable[[Any, Rows], Rows], params: Any, rows: Rows) -> Rows:
    """`fn(params, piece) -> piece` over cut rows, one piece after the other; the gradient computes each piece again."""
    if _length(rows) == 1:
        return jax.tree.map(lambda x: x[None], fn(params, _only(rows)))
    fn = jax.checkpoint(fn, prevent_cse=False)
    return jax.lax.scan(lambda _, piece: (None, fn(params, piece)), None, rows)[1]


def loss_over_pieces(
    fn: Callable[[Any, Rows, Rows, Any], tuple[Array, Rows]], params: Any, rows: Rows, data: Rows = (), shared: Any = ()
) -> tuple[Array, Rows]:
    """Sum of the losses of cut rows, and what `fn` returns beside them, stacked.
    `fn(params, rows, data, shared) -> (loss, aux)` sees one piece of `rows` and `data`, and all of `shared`. The result
    has gradients for `params` and `rows`; `data`, `shared` and `aux` are constants. As nothing follows a loss but a
    factor, its gradient is taken while the piece is still in cache, instead of in a second pass."""
    if _length((rows, data)) == 1:
        stop = jax.lax.stop_gradient
        loss, aux = fn(params, _only(rows), stop(_only(data)), stop(shared))
        return loss, stop(jax.tree.map(lambda x: x[None], aux))
    return _loss_over_pieces(fn, params, rows, data, shared)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_over_pieces(fn: Any, params: Any, rows: Rows, data: Rows, shared: Any) -> tuple[Array, Rows]:
    def step(total, piece):
        loss, aux = fn(params, *piece, shared)
        return total + loss, aux

    return jax.lax.scan(step, jnp.zeros(()), (rows, data))


def _loss_over_pieces_forward(fn: Any, params: Any, rows: Rows, data: Rows, shared: Any) -> Any:
    def step(carry, piece):
        total, gradient = carry
        (loss, aux), (weights, inputs) = jax.value_and_grad(fn, (0, 1), has_aux=True)(params, *piece, shared)
        return (total + loss, jax.tree.map(jnp.add, gradient, weights)), (aux, inputs)

    start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    (total, weights), (aux, inputs) = jax.lax.scan(step, start, (rows, data))
    return (total, aux), (weights, inputs)


def _loss_over_pieces_backward(fn: Any, gradients: Any, outer: Any) -> Any:
    factor, _ = outer
    weights, inputs = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)
    return weights, inputs, None, None


_loss_over_pieces.defvjp(_loss_over_pieces_forward, _loss_over_pieces_backward)
