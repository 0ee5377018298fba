"""FLOP counts against closed forms; bytes; text for people."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxwm.run import cost
from jaxwm.training.flops import flops

M, K, N = 3, 5, 7


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def conv(x, kernel, stride=1, **options):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


# --- Products -----------------------------------------------------------------------------------------------------


def test_matmul():
    assert flops(jnp.dot, shape(M, K), shape(K, N)) == 2 * M * K * N


def test_batched_matmul():
    assert flops(jnp.matmul, shape(4, M, K), shape(4, K, N)) == 4 * 2 * M * K * N


def test_several_contracted_axes():
    assert flops(partial(jnp.einsum, "abcd,cbe->ade"), shape(2, 3, 4, 5), shape(4, 3, 6)) == 2 * 2 * 3 * 4 * 5 * 6


def test_vmap_over_one_operand():
    assert flops(jax.vmap(jnp.dot, (0, None)), shape(4, M, K), shape(K, N)) == 4 * 2 * M * K * N


def test_elementwise_work_is_free():
    assert flops(lambda x: jnp.tanh(x) + x * 2, shape(M, K)) == 0


def test_grad_of_matmul_costs_two_more_products():
    grad = jax.grad(lambda a, b: jnp.sum(jnp.tanh(a @ b)), (0, 1))
    assert flops(grad, shape(M, K), shape(K, N)) == 3 * 2 * M * K * N


def test_unused_gradient_and_unused_value_are_free():
    def loss(a, b):
        return jnp.sum(a @ b)  # linear: the product itself is not needed for the gradient

    assert flops(jax.grad(loss), shape(M, K), shape(K, N)) == 2 * M * K * N
    assert flops(lambda a, b: (a @ b, a)[1], shape(M, K), shape(K, N)) == 0


# --- Convolutions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_conv(stride):
    expected = 2 * 4 * (16 // stride) ** 2 * 3 * 3 * 5 * 6
    assert flops(partial(conv, stride=stride), shape(4, 16, 16, 5), shape(3, 3, 5, 6)) == expected


def test_grouped_conv():
    x, kernel = shape(4, 16, 16, 6), shape(3, 3, 2, 9)
    assert flops(partial(conv, feature_group_count=3), x, kernel) == 2 * 4 * 16**2 * 9 * 2 * 9


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("argument", [0, 1])
def test_each_gradient_of_a_conv_costs_as_much_as_the_conv(argument, stride, groups):
    """The gradient of the input has inserted zeros, that of the weights of a grouped conv batch groups."""
    x, kernel = shape(4, 16, 16, 6), shape(4, 4, 6 // groups, 9)
    apply = partial(conv, stride=stride, feature_group_count=groups)
    grad = jax.grad(lambda x, kernel: jnp.sum(apply(x, kernel)), argument)
    assert flops(grad, x, kernel) == flops(apply, x, kernel)


# --- Programs inside programs -------------------------------------------------------------------------------------


def test_scan_counts_its_length():
    def seven(w, x):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    once = 2 * M * K * K
    assert flops(seven, shape(K, K), shape(M, K)) == 7 * once
    assert flops(jax.grad(lambda w, x: jnp.sum(seven(w, x))), shape(K, K), shape(M, K)) == 7 * 3 * once


def test_scan_in_scan():
    def inner(w, x):
        return lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]

    def outer(w, x):
        return lax.scan(lambda x, _: (inner(w, x), x), x, length=7)

    assert flops(outer, shape(K, K), shape(M, K)) == 3 * 7 * 2 * M * K * K


def test_scan_output_that_nobody_reads_is_free():
    def last(w, x):
        return lax.scan(lambda x, _: (jnp.tanh(x), x @ w), x, length=7)[0]

    assert flops(last, shape(K, K), shape(M, K)) == 0


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda fn: jax.jit(jax.jit(fn))])
def test_nested_programs(wrap):
    assert flops(lambda a, b: wrap(jnp.dot)(a, b), shape(M, K), shape(K, N)) == 2 * M * K * N


def test_vmap_of_scan_of_jit():
    @jax.jit
    def cell(x, w):
        return jnp.tanh(w @ x)

    def run(w, x):
        return lax.scan(lambda x, _: (cell(x, w), None), x, length=7)[0]

    assert flops(jax.vmap(run, (None, 0)), shape(K, K), shape(4, K)) == 7 * 4 * 2 * K * K


def test_custom_derivatives():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    # the backward pass is deliberately cheaper than the true one
    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (jnp.zeros_like(kept[0]), kept[0].T @ g))
    assert flops(product, shape(M, K), shape(K, N)) == 2 * M * K * N
    grad = jax.grad(lambda a, b: jnp.sum(product(a, b) ** 2), (0, 1))
    assert flops(grad, shape(M, K), shape(K, N)) == 2 * 2 * M * K * N


def test_remat_counts_the_forward_pass_twice():
    def loss(w, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

    args = shape(K, K), shape(M, K)
    plain, again = (flops(jax.value_and_grad(fn), *args) for fn in (loss, jax.checkpoint(loss)))
    assert plain == (2 + 3) * 2 * M * K * K
    assert again == plain + 2 * 2 * M * K * K


def test_cond_counts_the_dearest_branch():
    def choose(index, a, b):
        cheap, dear = lambda a, b: a @ b, lambda a, b: jnp.tanh(a @ b) @ jnp.ones((N, N))
        return lax.switch(index, [cheap, dear, cheap], a, b)

    assert flops(choose, shape(dtype=jnp.int32), shape(M, K), shape(K, N)) == 2 * M * K * N + 2 * M * N * N


def test_loops():
    def known(w, x):
        return lax.fori_loop(0, 7, lambda _, x: x @ w, x)

    def unknown(n, w, x):
        return lax.fori_loop(0, n, lambda _, x: x @ w, x)

    once = 2 * M * K * K
    assert flops(known, shape(K, K), shape(M, K)) == 7 * once
    assert flops(unknown, shape(dtype=jnp.int32), shape(K, K), shape(M, K)) == once


def test_shard_map_counts_every_device():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    product = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data"))
    assert flops(product, shape(8, K), shape(K, N)) == 2 * 8 * K * N


# --- Memory and text ----------------------------------------------------------------------------------------------


def test_tree_bytes():
    tree = {
        "image": shape(2, 64, 64, 3, dtype=jnp.uint8),
        "half": (shape(3, dtype=jnp.bfloat16), None),
        "flag": jnp.zeros((5,), bool),
    }
    assert cost.tree_bytes(tree) == 2 * 64 * 64 * 3 + 3 * 2 + 5
    assert cost.tree_bytes({}) == 0


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_tree_bytes_of_typed_keys(kind):
    def make():
        return jax.random.split(jax.random.key(0, impl=kind), 6)

    words = jax.random.key_data(make()).nbytes
    assert cost.tree_bytes(make()) == cost.tree_bytes(jax.eval_shape(make)) == words


def test_available_memory_is_plausible():
    assert 2**20 < cost.available_memory() < 2**50


def test_available_memory_of_an_accelerator(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300}

    monkeypatch.setattr(cost, "_default_device", Device)
    assert cost.available_memory() == 700


def test_host_memory(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    assert cost._host_memory(str(meminfo)) == 1000 * 1024
    assert cost._host_memory(str(tmp_path / "absent")) > 2**20


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1000, "B", "1.0 kB"),
        (1.234e9, "B", "1.2 GB"),
        (3.4e9, "FLOP", "3.4 GFLOP"),
        (1.337e12, "FLOP", "1.3 TFLOP"),
        (123.4e6, "B", "123 MB"),
        (99.97e6, "B", "100 MB"),
        (999_960, "B", "1.0 MB"),
        (-2.5e3, "B", "-2.5 kB"),
        (0.25, "s", "0.2 s"),
        (12_300, "", "12.3 k"),
        (float("inf"), "FLOP", "inf FLOP"),
    ],
)
def test_human(number, unit, text):
    assert cost.human(number, unit) == text
