"""Checkpoints with orbax: the whole `Life` and the cursor, in two items, so that weights load without the replay.

`agent` holds the agent's state `[M, ...]`, `rest` everything else of `Life`, `about` the cursor and what the caller
adds. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxwm.training.trainer import Cursor, Life

ITEMS = ("agent", "rest", "about")


def manager(folder: Path, keep: int = 2) -> ocp.CheckpointManager:
    """Opens `folder` for saving (asynchronously) and restoring; the newest `keep` checkpoints stay."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
    return ocp.CheckpointManager(folder.absolute(), item_names=ITEMS, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, life: Life, cursor: Cursor, about: dict[str, Any]) -> None:
    """Save under the environment step. `life` is copied to the host before this returns, so it may be donated next."""
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            agent=ocp.args.StandardSave(life.agent),
            rest=ocp.args.StandardSave(life._replace(agent=None)._asdict()),
            about=ocp.args.JsonSave({"cursor": list(cursor), **about}),
        ),
        force=True,
    )


def latest(checkpoints: ocp.CheckpointManager) -> int:
    """Environment step of the newest checkpoint; FileNotFoundError where there is none."""
    step = checkpoints.latest_step()
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {checkpoints.directory}: the run stopped before its first one")
    return step


def check_any(folder: Path) -> None:
    """FileNotFoundError where `folder` holds no checkpoint; unlike `manager` this makes no folder."""
    if not any(path.name.isdecimal() for path in (folder.iterdir() if folder.is_dir() else ())):
        raise FileNotFoundError(
            f"no checkpoint in {folder}: the run stopped before its first one. Delete {folder.parent} and train again"
        )


def check_shapes(checkpoints: ocp.CheckpointManager, like: dict[str, Any]) -> None:
    """ValueError where the newest checkpoint has other arrays than `like`: {place, such as "rest/ring/data": pytree}.

    Costs one small file to read. A checkpoint whose description cannot be read is left for `restore` to judge.
    """
    place = checkpoints.directory / str(latest(checkpoints))
    for name, tree in like.items():
        item, *inner = name.split("/")
        try:
            stored: Any = ocp.PyTreeCheckpointHandler().metadata(place / item).tree
        except Exception:
            continue
        for key in inner:
            stored = stored[key]
        found, wanted = _by_path(stored), _by_path(tree)
        if wrong := [path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path)]:
            path = min(wrong, key=lambda path: (len(path), path))  # parameters rather than the optimiser's copies
            shapes = f"{found.get(path, 'absent')} in the checkpoint, {wanted.get(path, 'absent')} by config.json"
            raise ValueError(
                f"the checkpoint {place} does not fit its config.json ({name}/{path} is {shapes}): put back the "
                "config.json that the run was started with, or train a new run"
            )


def _by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def restore_agent(checkpoints: ocp.CheckpointManager, like: Any, step: int | None = None) -> Any:
    """The agent's state; `like` gives structure, shapes and dtypes. FileNotFoundError without any checkpoint."""
    step = latest(checkpoints) if step is None else step
    args = ocp.args.Composite(agent=ocp.args.StandardRestore(_shapes(like)))
    return checkpoints.restore(step, args=args)["agent"]


def restore(
    checkpoints: ocp.CheckpointManager, like: Life, step: int | None = None
) -> tuple[Life, Cursor, dict[str, Any]]:
    """A whole run: life, cursor and what was saved about it. FileNotFoundError without any checkpoint."""
    step = latest(checkpoints) if step is None else step
    item = checkpoints.restore(
        step,
        args=ocp.args.Composite(
            agent=ocp.args.StandardRestore(_shapes(like.agent)),
            rest=ocp.args.StandardRestore(_shapes(like._replace(agent=None)._asdict())),
            about=ocp.args.JsonRestore(),
        ),
    )
    about = dict(item["about"])
    return Life(**{**item["rest"], "agent": item["agent"]}), Cursor(*about.pop("cursor")), about


def _shapes(tree: Any) -> Any:
    """What orbax restores into: on the devices of `tree`, or on the first one; never where the run was saved."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: getattr(x, "sharding", None) or first  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)
