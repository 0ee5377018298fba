"""Evolution: CMA-ES (Hansen 2016) as three pure functions, over evosax.

P candidates of a generation, D parameters. Fitness is maximised here; evosax minimises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.errors import check_number
from jaxwm.types import Array, Key


class Evolution(NamedTuple):
    """An evolution strategy; its state is a pytree of arrays with a `mean [D]` and a `std` (the step size).
    init(key, mean [D]) -> state
    ask(key, state) -> (candidates [P, D], state)
    tell(key, candidates, fitness [P], state) -> state"""

    init: Callable[[Key, Array], Any]
    ask: Callable[[Key, Any], tuple[Array, Any]]
    tell: Callable[[Key, Array, Array, Any], Any]


def cma_es(population: int, size: int, std: float = 0.1) -> Evolution:
    """CMA-ES with `population` candidates of `size` parameters and first step size `std`.
    Candidates of equal fitness are ranked by their place. ValueError for fewer than 2 candidates."""
    from evosax.algorithms import CMA_ES  # importing it computes: not before someone evolves

    check_number("the number of candidates of a generation", population, least=2, whole=True)
    strategy = CMA_ES(population_size=population, solution=jnp.zeros(size))
    params = strategy.default_params.replace(std_init=jnp.asarray(std, jnp.float32))

    # every leaf an array with a type of its own: the state lives in compiled loops
    typed = lambda x: jnp.asarray(x, jnp.asarray(x).dtype)  # noqa: E731
    return Evolution(
        init=lambda key, mean: jax.tree.map(typed, strategy.init(key, mean, params)),
        ask=lambda key, state: strategy.ask(key, state, params),
        tell=lambda key, candidates, fitness, state: strategy.tell(key, candidates, -fitness, state, params)[0],
    )
