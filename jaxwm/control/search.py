"""Tree search as a way to act: one interface to mctx for learned and for perfect models.

A `Root` and a model go in, a `Result` comes out: the action to take, the improved policy to learn from, and the value
of the root. B trees at once, A actions, K nodes of a tree (simulations + 1). What to know of a model:

- A value is that of the player to move, a reward that of the player who moved. `Node.discount` carries a value back
  over an edge: `gamma` for one player, -1 where the other player moves next, 0 where the episode ends with the edge.
- After an end the model must be absorbing: reward and value 0. Discount 0 alone keeps it out of the nodes above.
- Illegal actions have logits of `MASKED` (see `mask`) in every node, not only at the root: mctx masks the root alone.

Two kinds of search. "puct" is AlphaZero's and MuZero's (Silver et al. 2018; Schrittwieser et al. 2020, appendix B); its
policy is the share of visits. "gumbel" is Gumbel MuZero (Danihelka et al. 2022): actions of the root are drawn without
replacement and halved, its policy is softmax(logits + sigma(completed q)), better than the prior from two on."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import mctx as _mctx
import numpy as np

from jaxwm.errors import check_choice, check_number
from jaxwm.types import Array, Key, PyTree

mctx: Any = _mctx  # its annotations are too narrow for a type checker: leaves alone count as trees

MASKED = float(np.finfo(np.float32).min)
"""The logit of an illegal action; mctx gives the same one to those of the root."""

Node: Any = mctx.RecurrentFnOutput
"""What a model says of an edge and the node behind it: `reward`, `discount`, `value` [B], `prior_logits` [B, A]."""

Model = Callable[[Any, Key, Array, PyTree], tuple[Any, PyTree]]
"""`(params, key, action [B], embedding [B, ...]) -> (Node, embedding)`."""


class Root(NamedTuple):
    """Where a search starts: `logits` [B, A], `value` [B], `embedding` [B, ...], `legal` bool [B, A]."""

    logits: Array
    value: Array
    embedding: PyTree
    legal: Array


class Settings(NamedTuple):
    """How to search. `bounds` are the least and the greatest value that there can be, where they are known.
    With them "puct" scales q to [0, 1] as AlphaZero does, without them by the least and the greatest q of the whole
    tree, as MuZero does. In both an action that was not tried counts as the worst. The rule by the tree compares q of
    different nodes, so it is meant for one player; games have bounds. "gumbel" scales by the bounds too, and without
    them by the least and the greatest q of the node; then small differences count as much as large ones, so its
    `c_scale` is a tenth (Danihelka et al. 2022: 1 for board games, 0.1 for Atari)."""

    kind: Literal["gumbel", "puct"] = "gumbel"
    simulations: int = 32
    considered: int = 16  # gumbel: actions of the root that are drawn
    c_visit: float = 50.0  # gumbel
    c_scale: float | None = None  # gumbel, for q scaled to [0, 1]; None is 1 with bounds and 0.1 without
    c_init: float = 1.25  # puct
    c_base: float = 19652.0  # puct
    dirichlet: float = 0.3  # puct: concentration of the noise of the root
    noise: float = 0.25  # puct: share of that noise, where there is exploration
    bounds: tuple[float, float] | None = None


class Result(NamedTuple):
    """`action` int32 [B], the improved `policy` [B, A], `value` [B] and `q` [B, A] of the root (0 where not tried)."""

    action: Array
    policy: Array
    value: Array
    q: Array


def check(settings: Settings) -> None:
    """ValueError for a setting that is out of range."""
    check_choice("search", settings.kind, ("gumbel", "puct"))
    for name in ("simulations", "considered"):
        check_number(name, getattr(settings, name), least=1, whole=True)
    for name in ("c_visit", "c_scale", "c_init", "c_base", "dirichlet"):
        if getattr(settings, name) is not None:
            check_number(name, getattr(settings, name), above=0)
    check_number("noise", settings.noise, least=0, most=1)


def mask(logits: Array, legal: Array) -> Array:
    """Logits `[..., A]` with `MASKED` for illegal actions."""
    return jnp.where(legal, logits, MASKED)


_WATCHING: list[list[Any]] = []


@contextlib.contextmanager
def watched() -> Iterator[list[Any]]:
    """Collect the trees (`mctx.Tree`) of the searches that are traced inside, for programs that show them:

    `with watched() as trees: agent.act(...)` and return `trees` from the same traced function."""
    _WATCHING.append([])
    try:
        yield _WATCHING[-1]
    finally:
        _WATCHING.pop()


def search(
    settings: Settings, params: Any, root: Root, model: Model, key: Key, temperature: Array | float = 1.0
) -> Result:
    """Search from B roots.
    `temperature`, a number or `[B]`, is how much the action explores: 0 takes the best one and leaves all noise out
    (the greedy mode). With "puct" actions are drawn from visits ** (1 / temperature), and Dirichlet noise is part of
    every search whose temperature is not the number 0; with "gumbel" it scales the Gumbel noise, the paper's is 1."""
    result = _tree(settings, params, root, model, key, temperature)
    for trees in _WATCHING:
        trees.append(result.search_tree)
    summary = result.search_tree.summary()
    q = jnp.where(summary.visit_counts > 0, summary.qvalues, 0.0)
    return Result(result.action, result.action_weights, summary.value, q)


def _tree(settings: Settings, params: Any, root: Root, model: Model, key: Key, temperature: Any) -> Any:
    """What mctx returns: action, action weights and the tree."""
    start = mctx.RootFnOutput(prior_logits=mask(root.logits, root.legal), value=root.value, embedding=root.embedding)  # type: ignore[call-arg]
    heat = jnp.reshape(jnp.asarray(temperature, jnp.float32), (-1, 1))  # [B or 1, 1]
    common = (params, key, start, model, settings.simulations, ~root.legal)
    low, high = settings.bounds or (0.0, 1.0)
    if settings.kind == "gumbel":
        scale = (settings.c_scale or (1.0 if settings.bounds else 0.1)) / (high - low)  # where q lies on it is the same
        rule = partial(
            mctx.qtransform_completed_by_mix_value, value_scale=scale, maxvisit_init=settings.c_visit,
            rescale_values=settings.bounds is None,
        )  # fmt: skip
        drawn = dict(max_num_considered_actions=min(settings.considered, root.logits.shape[-1]), gumbel_scale=heat)
        return mctx.gumbel_muzero_policy(*common, qtransform=rule, **drawn)
    still = isinstance(temperature, int | float) and temperature == 0
    rule = partial(mctx.qtransform_by_min_max, min_value=low, max_value=high) if settings.bounds else tree_q
    return mctx.muzero_policy(
        *common, qtransform=partial(legal_q, rule), dirichlet_fraction=0.0 if still else settings.noise,
        dirichlet_alpha=settings.dirichlet, pb_c_init=settings.c_init, pb_c_base=settings.c_base, temperature=heat,
    )  # fmt: skip


def tree_q(tree: Any, node: Array, least: float = 1e-8) -> Array:
    """q of a node's actions `[A]`, scaled to [0, 1] by the least and greatest q of the whole tree; 0 where not tried.
    Schrittwieser et al. 2020, equation 5. (mctx's own default looks at a node and its children alone.)"""
    q = tree.children_rewards + tree.children_discounts * tree.children_values  # [K, A]
    tried = tree.children_visits > 0
    low, high = jnp.where(tried, q, jnp.inf).min(), jnp.where(tried, q, -jnp.inf).max()
    scaled = (q[node] - low) / jnp.maximum(high - low, least)
    return jnp.where(tried[node], scaled, 0.0)


def legal_q(rule: Callable, tree: Any, node: Array) -> Array:
    """`rule`, with the lowest score for illegal actions.
    Their prior is 0, but so may be, in float32, that of a legal one; mctx breaks such a tie at random."""
    return jnp.where(tree.children_prior_logits[node] > MASKED / 2, rule(tree, node), -1e9)
