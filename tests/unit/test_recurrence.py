"""The gradient that works outside the loop is that of the loop."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from fast import assert_near

from jaxwm.learning import recurrence
from jaxwm.models import rssm

TIME, BATCH, WIDTH = 5, 3, 4
Key = jax.random.key


def step(params: Any, carry: Any, x: Any, constant: Any) -> tuple[Any, Any]:
    """A recurrence with a reset, a part of the weights, a weight that no carry meets, and two results."""
    alive, noise = constant
    h, total = (jnp.where(alive[:, None], part, 0.0) for part in carry)
    h = jnp.tanh(h @ params["w"][:WIDTH] + x @ params["w"][WIDTH:] + params["b"] + noise)
    return (h, total + h * x), {"double": 2 * h * params["scale"], "input": x * params["lone"]}


def given() -> tuple[Any, ...]:
    shape = lambda i, *dims: jax.random.normal(Key(i), dims)  # noqa: E731
    params = {"w": shape(0, 2 * WIDTH, WIDTH), "b": shape(1, WIDTH), "scale": jnp.float32(1.5), "lone": shape(2, WIDTH)}
    start = shape(3, BATCH, WIDTH), shape(4, BATCH, WIDTH)
    alive = jax.random.bernoulli(Key(5), 0.7, (TIME, BATCH))
    return params, start, shape(6, TIME, BATCH, WIDTH), (alive, shape(7, TIME, BATCH, WIDTH))


@pytest.mark.parametrize("members", [None, 2])
def test_values_and_gradients_are_those_of_the_loop(members):
    params, start, xs, constants = given()
    if members:
        params, start, xs = jax.tree.map(lambda x: jnp.stack([x, x + 1]), (params, start, xs))

    def pulled(loop):
        fn = lambda *arguments: loop(step, *arguments, constants)  # noqa: E731
        out, pull = jax.vjp(jax.vmap(fn) if members else fn, params, start, xs)
        weights = jax.tree.map(lambda x: jax.random.normal(Key(8), x.shape), out)
        return out, pull(weights)

    ours, theirs = (jax.jit(pulled, static_argnums=0)(f) for f in (recurrence.scan_apart, recurrence.scan))
    assert_near(ours, theirs, 1e-6)


def test_weights_are_not_repeated_for_each_time():
    params, start, xs, constants = given()
    loss = lambda params: recurrence.scan_apart(step, params, start, xs, constants)[0][0].sum()  # noqa: E731
    equations = jax.make_jaxpr(jax.grad(loss))(params).jaxpr.eqns
    shapes = {v.aval.shape for equation in equations for v in equation.outvars}
    assert (WIDTH, WIDTH) in shapes and (TIME, WIDTH, WIDTH) not in shapes


MODELS = {
    "v3": rssm.RSSM(2, 6, 8, 8, rssm.Categorical(3, 4, 0.01), blocks=2),
    "v1": rssm.ClassicRSSM(2, 6, 8, 8, rssm.Gaussian(5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_the_same(name):
    """Gradients for weights, tokens, actions and the first latent."""
    model = MODELS[name]
    shape = lambda i, *dims: jax.random.normal(Key(i), dims)  # noqa: E731
    tokens, action = shape(0, BATCH, TIME, 6), shape(1, BATCH, TIME, 2)
    first = jnp.zeros((BATCH, TIME), bool).at[1, 2].set(True)
    uniform = jax.random.uniform(Key(2), (BATCH, TIME, model.latents.stoch))
    params = model.init(Key(3), tokens[:, 0], action[:, 0])
    start = jax.tree.map(lambda x: x + 0.5, rssm.initial(model, BATCH))

    def loss(apart, params, start, tokens, action):
        latents, dist = rssm.observe(model, params, start, tokens, action, first, uniform, apart)
        return jnp.sin(latents.feat()).sum() + sum(jnp.cos(x).sum() for x in jax.tree.leaves(dist))

    apart, within = (
        jax.jit(jax.value_and_grad(loss, (1, 2, 3, 4)), static_argnums=0)(flag, params, start, tokens, action)
        for flag in (True, False)
    )
    assert_near(apart[0], within[0])
    used = lambda g: {k: v for k, v in g["params"].items() if "img" not in k and "prior" not in k}  # noqa: E731
    assert_near(used(apart[1][0]), used(within[1][0]))
    assert_near(apart[1][1:], within[1][1:])
