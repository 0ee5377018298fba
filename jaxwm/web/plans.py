"""What a policy intends at a moment, as JSON: its search tree, or sixteen futures that it dreams."""

from typing import Any

import jax
import numpy as np

from jaxwm.control import search
from jaxwm.run.json_files import finite
from jaxwm.studio import names, pictures
from jaxwm.types import Discrete
from jaxwm.web import boards
from jaxwm.web.desk import Desk
from jaxwm.web.session import Session
from jaxwm.web.shown import png

MOST_NODES, FUTURES, AHEAD = 60, 16, 16


def kind_of(desk: Desk) -> list[str]:
    """What can be shown: "tree" where the policy searches one, "futures" where it dreams."""
    memory = desk.agent.reset(desk.player.state, 1)
    step = jax.eval_shape(desk.start, desk.key)[1] if desk.env.pure else None
    searches = step is not None and bool(jax.eval_shape(_searching(desk), desk.player.state, memory, step, desk.key))
    return ["tree"] * searches + ["futures"] * desk.dreams


def _searching(desk: Desk) -> Any:
    """The trees of the greedy policy at a step; none where it searches nothing."""

    def trees(state: Any, memory: Any, step: Any, key: Any) -> list[Any]:
        with search.watched() as found:
            desk.agent.act(state, memory, step, key, "greedy")
        return [
            {
                "visits": tree.node_visits, "value": tree.node_values, "parent": tree.parents,
                "action": tree.action_from_parent, "prior": tree.children_prior_logits[:, 0],
                "q": tree.children_rewards[:, 0] + tree.children_discounts[:, 0] * tree.children_values[:, 0],
                "tried": tree.children_visits[:, 0],
            }
            for tree in found
        ]  # fmt: skip

    return trees


def look(session: Session, branch: str, t: int) -> dict[str, Any]:
    """The plan of the policy at a tick. ValueError where there is nothing to show."""
    desk = session.desk
    memory, step, key, context = session.moment(branch, t)
    out: dict[str, Any] = {"t": t, "branch": branch}
    kinds = kind_of(desk)
    if "tree" in kinds:
        program = desk.once("tree", lambda: jax.jit(_searching(desk)))
        out["tree"] = _tree(desk, jax.device_get(program(session.state, memory, step, key)[0]))
    if "futures" in kinds and context is not None:
        out["futures"] = _futures(session, context, key)
    if len(out) == 2:
        raise ValueError(f"{desk.player.plan.agent} neither searches nor dreams: there is no plan to show")
    return finite(out)


def _named(desk: Desk, action: int) -> str:
    space = desk.spec.action
    if desk.board:
        return boards.move(desk.board, action)
    return (
        names.action(desk.spec, action) if isinstance(space, Discrete) and action < space.n else f"option {action + 1}"
    )


def _tree(desk: Desk, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The most visited nodes of a tree, and what the root knows of each action."""
    visits, parent = found["visits"][0], found["parent"][0]
    order = np.argsort(-visits, kind="stable")[:MOST_NODES]
    kept = {int(node) for node in order if visits[node] > 0} | {0}
    nodes = []
    for node in sorted(kept):
        above = int(parent[node])
        if node and above not in kept:
            continue
        action = int(found["action"][0][node])
        nodes.append({
            "id": node, "parent": above if node else None, "visits": int(visits[node]),
            "value": float(found["value"][0][node]), "action": _named(desk, action) if node else "now",
        })  # fmt: skip
    logits, tried = found["prior"][0].astype(float), found["tried"][0]
    prior = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    root = [
        {
            "action": _named(desk, a),
            "prior": float(prior[a]),
            "visits": int(tried[a]),
            "q": float(found["q"][0][a]) if tried[a] else None,
        }
        for a in np.argsort(-tried, kind="stable")[:24].tolist()
        if prior[a] > 1e-6
    ]
    return {"nodes": nodes, "root": root, "simulations": int(visits[0])}


def _futures(session: Session, context: Any, key: Any) -> dict[str, Any]:
    """Sixteen dreams in which the policy, or its planner, chooses: pictures laid over each other, rewards, numbers."""
    desk = session.desk
    imagine: Any = desk.agent.imagine

    def run(state: Any, context: Any, key: Any) -> Any:
        many = jax.tree.map(
            lambda x: np.repeat(x, FUTURES, 0) if isinstance(x, np.ndarray) else x.repeat(FUTURES, 0), context
        )
        return imagine(state, many, None, key, AHEAD)._replace(latent=())

    dream = jax.device_get(desk.once("futures", lambda: jax.jit(run))(session.state, context, key))
    paths = np.concatenate([np.zeros((FUTURES, 1)), np.cumsum(dream.reward, 1)], 1)
    out: dict[str, Any] = {"returns": paths.round(4).tolist(), "cont": dream.cont.round(3).tolist()}
    out["first"] = [names.action(desk.spec, action) for action in dream.action[:, 0]]
    if dream.obs is None:
        return out
    if desk.painter:
        at = lambda b, t: jax.tree.map(lambda x: x[b, t], dream.obs)  # noqa: E731
        paint: Any = desk.painter.paint
        out["ghosts"] = [
            png(np.mean([paint(at(b, t)) for b in range(FUTURES)], 0).astype(np.uint8)) for t in range(AHEAD)
        ]
    labels, values = pictures.numbers(dream.obs, desk.spec)
    if labels:
        out["numbers"] = {name: values[..., i].round(4).tolist() for i, name in enumerate(labels[:6])}
    return out
