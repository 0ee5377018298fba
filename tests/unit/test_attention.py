"""The transformer: token by token over a cache it is the masked pass over the window, and nothing leaks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import assert_close, assert_same

from jaxwm.models import tokens
from jaxwm.nets import attention
from jaxwm.nets.attention import Transformer, empty
from jaxwm.nets.layers import apply

B, T, W = 2, 12, 8
Key = jax.random.key
SHAPE = dict(layers=2, width=W, heads=2, hidden=16)
KINDS = {
    "rotary": Transformer(**SHAPE),
    "learned": Transformer(**SHAPE, positions=T),
    "pre": Transformer(**SHAPE, positions=T, norm="pre", act="gelu"),
    "window": Transformer(**SHAPE, window=5),
    "block": Transformer(**SHAPE, block=3),
}


def given(net: Transformer) -> tuple[Any, jax.Array, jax.Array]:
    """Parameters, tokens `[B, T, W]`, and flags of segments: the rows begin new ones at different tokens."""
    x = jax.random.normal(Key(0), (B, T, W))
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(net.init)(Key(1), x))
    first = jnp.zeros((B, T), bool).at[0, 6].set(True).at[1, 3].set(True).at[1, 9].set(True)
    return params, x, first


def stepwise(net: Transformer, params: Any, x: jax.Array, first: jax.Array, slots: int, size: int = 1) -> jax.Array:
    """What comes out where tokens are appended `size` at a time."""
    pieces = lambda x: x.reshape(B, T // size, size, *x.shape[2:]).swapaxes(0, 1)  # noqa: E731
    step = lambda cache, inputs: apply(net, params, cache, *inputs, method="extend")  # noqa: E731
    _, out = jax.lax.scan(step, empty(net, B, slots), (pieces(x), pieces(first)))
    return out.swapaxes(0, 1).reshape(x.shape)


@pytest.mark.parametrize(
    ("kind", "slots", "size"),
    [
        pytest.param("rotary", T, 1, marks=pytest.mark.slow),
        ("rotary", 16, 4),
        ("learned", T, 1),
        pytest.param("pre", T, 1, marks=pytest.mark.slow),
        ("window", 5, 1),
        ("block", T, 3),
    ],
)
def test_a_cache_gives_what_the_whole_window_gives(kind, slots, size):
    """Also where the cache is shorter than the window and goes round."""
    net = KINDS[kind]
    params, x, first = given(net)
    both = lambda *given: (stepwise(net, *given, slots, size), apply(net, *given))  # noqa: E731
    assert_close(*jax.jit(both)(params, x, first), 1e-4, 1e-5)


def test_a_window_that_was_read_goes_on_in_its_cache():
    net = KINDS["learned"]
    params, x, first = given(net)

    @jax.jit
    def both(params, x, first):
        cache, head = apply(net, params, x[:, :8], first[:, :8], 10, method="read")
        cache, tail = apply(net, params, cache, x[:, 8:10], first[:, 8:10], method="extend")
        return jnp.concatenate([head, tail], 1), apply(net, params, x[:, :10], first[:, :10]), cache

    out, whole, cache = both(params, x, first)
    assert_close(out, whole, 1e-4, 1e-5)
    assert int(cache.count) == 10 and cache.start.tolist() == [6, 9] and cache.keys[0].shape == (B, 10, 2, 4)


def test_rows_that_count_apart_forget_apart():
    """Emptied where a segment begins, a row gives the same, and its memory is as if nothing had been before."""
    net = KINDS["rotary"]
    params, x, first = given(net)

    def step(cache, inputs):
        x, first = inputs
        return apply(net, params, attention.forget(cache, first), x[:, None], method="extend")

    run = jax.jit(lambda x, first: jax.lax.scan(step, empty(net, B, 8, apart=True), (x.swapaxes(0, 1), first.T)))
    cache, out = run(x, first)
    assert_close(out[:, :, 0].swapaxes(0, 1), jax.jit(apply, static_argnums=0)(net, params, x, first), 1e-4, 1e-5)
    assert cache.count.tolist() == [6, 3]
    again, _ = run(x.at[1, :9].set(7.0), first)
    assert_same(jax.tree.map(lambda x: x[1], again), jax.tree.map(lambda x: x[1], cache))


def test_a_token_sees_neither_other_segments_nor_what_follows():
    """Which entries of the past `[T]` have a gradient at each token: those of its segment up to itself."""
    net = KINDS["rotary"]
    params, x, first = given(net)
    jacobian = jax.jit(jax.jacobian(lambda x: apply(net, params, x, first)[1, :, 0]))(x)  # [T, B, T, W]
    seen = np.abs(jacobian).sum(-1) > 1e-6
    segment = np.cumsum(np.asarray(first[1]))
    expected = (segment[:, None] == segment) & (np.arange(T)[:, None] >= np.arange(T))
    np.testing.assert_array_equal(seen[:, 1], expected)
    assert not seen[:, 0].any(), "rows see each other"


def test_a_new_segment_is_the_same_wherever_it_begins():
    """Positions count from the start of a segment, learned ones too."""
    net = KINDS["learned"]
    both = lambda params, x, first: (apply(net, params, x, first)[:1, 6:], apply(net, params, x[:1, 6:]))  # noqa: E731
    assert_close(*jax.jit(both)(*given(net)), 1e-4, 1e-5)


def test_a_row_without_learned_positions_left_begins_again():
    net = Transformer(**SHAPE, positions=4)
    x = jax.random.normal(Key(0), (B, T, W))
    params = jax.jit(net.init)(Key(1), x[:, :4])

    @jax.jit
    def both(params):
        out = stepwise(net, params, x, jnp.zeros((B, T), bool), 4)
        return out, jnp.concatenate([apply(net, params, x[:, t : t + 4]) for t in range(0, T, 4)], 1)

    assert_close(*both(params), 1e-4, 1e-5)


def test_dropout_remat_and_half_precision():
    """Gradients are finite; computing blocks again changes nothing, and bfloat16 little."""
    net = Transformer(**SHAPE, dropout=0.5)
    params, x, first = given(net)
    keep = attention.dropout_factors(net, jax.random.uniform(Key(2), (B, T, 2, 2, W)))
    assert set(np.unique(keep)) == {0.0, 2.0}

    def gradient(net: Transformer) -> Any:
        loss = lambda params: jnp.square(apply(net, params, x, first, keep).astype(jnp.float32)).mean()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    plain = gradient(net)
    assert all(bool(jnp.isfinite(g).all() and (g != 0).any()) for g in jax.tree.leaves(plain))
    assert_close(gradient(net.clone(remat=True)), plain, 1e-4, 1e-6)
    half = net.clone(dtype=jnp.bfloat16)
    near, exact = jax.jit(lambda p: (apply(half, p, x, first), apply(net, p, x, first)))(params)
    assert near.dtype == jnp.bfloat16
    assert_close(near.astype(jnp.float32), exact, 0.1, 0.1)


def test_what_does_not_fit_is_one_clear_error():
    net = KINDS["learned"]
    params, x, _ = given(net)
    with pytest.raises(ValueError, match="longer than the 12 learned positions"):
        apply(net, params, jnp.concatenate([x, x], 1))
    with pytest.raises(ValueError, match="does not hold"):
        apply(net, params, x, None, 4, method="read")
    with pytest.raises(ValueError, match="does not hold"):
        apply(net, params, empty(net, B, 4), x, method="extend")
    with pytest.raises(ValueError, match="even width"):
        Transformer(2, 6, 2, 8).init(Key(0), jnp.zeros((1, 2, 6)))


# --- Dreams -------------------------------------------------------------------------------------------------------

K, H, CODES = 3, 3, 5
TABLE = jax.random.normal(Key(7), (CODES, W))  # embeds codes; the same table reads them


def draw(hidden: jax.Array, noise: jax.Array) -> jax.Array:
    """The likeliest code; the noise is in its favour."""
    return jnp.argmax(hidden @ TABLE.T + noise[..., None] * jnp.arange(CODES), -1)


def dream(advance: Any, net: Transformer, tokens_: jax.Array, slots: int, **options) -> tokens.Rollout:
    """H frames after a first one that the cache does not hold."""
    noise = jax.random.uniform(Key(3), (H, B, K))
    plan = jax.random.normal(Key(4), (H + 1, B, W))
    policy = lambda memory, frame, plan: (memory + 1, plan, frame.tokens[:, 0])  # noqa: E731
    start = tokens.Frame(tokens_, jnp.zeros((B, options.get("outputs", 1), W)))
    return tokens.rollout(advance, policy, options.get("cache", empty(net, B, slots)), start, plan, noise, 0)


def check(found: tokens.Rollout, whole: jax.Array, noise: jax.Array) -> None:
    """The dreamed codes `[H, B, K]` are drawn from what the whole pass gives before them."""
    np.testing.assert_array_equal(found.frames.tokens[1:], draw(whole, noise))
    np.testing.assert_array_equal(found.seen, found.frames.tokens[..., 0])
    assert int(found.memory) == H + 1 and found.actions.shape == (H + 1, B, W)


def test_all_tokens_of_a_frame_from_one_pass():
    net = KINDS["block"]
    params, *_ = given(net)
    inputs = lambda codes, action: TABLE[codes] + action[:, None]  # noqa: E731
    first = jnp.arange(B * K).reshape(B, K) % CODES
    slots = H * K
    found = jax.jit(lambda p: dream(tokens.together(net, p, inputs, draw), net, first, slots, outputs=K))(params)
    x = jax.vmap(inputs)(found.frames.tokens, found.actions)[:-1]  # [H, B, K, W]
    whole = (
        jax.jit(apply, static_argnums=0)(net, params, x.swapaxes(0, 1).reshape(B, H * K, W))
        .reshape(B, H, K, W)
        .swapaxes(0, 1)
    )
    check(found, whole, jax.random.uniform(Key(3), (H, B, K)))
    assert_close(found.frames.hidden[1:], whole, 1e-4, 1e-5)


def test_one_token_after_the_other():
    net = KINDS["rotary"]
    params, *_ = given(net)
    inputs, embed = (lambda codes, action: action[:, None]), (lambda code: TABLE[code])
    first = jnp.arange(B * K).reshape(B, K) % CODES
    slots = K + H * (K + 1)

    def run(params):
        cache, _ = apply(net, params, TABLE[first], None, slots, method="read")
        return dream(tokens.in_turn(net, params, inputs, draw, embed), net, first, slots, cache=cache)

    found = jax.jit(run)(params)
    after = [jnp.concatenate([a[:, None], TABLE[c]], 1) for a, c in zip(found.actions, found.frames.tokens[1:])]  # noqa: B905
    whole = jax.jit(apply, static_argnums=0)(
        net, params, jnp.concatenate([TABLE[first], *after], 1)
    )  # [B, K + H (K + 1), W]
    read = whole[:, K:].reshape(B, H, K + 1, W).swapaxes(0, 1)
    check(found, read[:, :, :K], jax.random.uniform(Key(3), (H, B, K)))
    assert_close(found.frames.hidden[1:, :, 0], read[:, :, 0], 1e-4, 1e-5)
    assert int(found.cache.count) == slots
