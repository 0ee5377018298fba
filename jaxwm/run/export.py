"""Weights alone, as one safetensors file: parameters of a run and, as its metadata, what is needed to use them.

It loads in any framework; tensors `[M, ...]` are named by their place in `State.params`: `pol/params/out/kernel`."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxwm.run.checkpoint import by_path

FORMAT = "jaxwm parameters 1"


def write(file: Path, params: Any, about: dict[str, Any]) -> int:
    """Write parameters and JSON-able facts about them; the size in bytes. An existing file is replaced at once."""
    named = {name: np.asarray(x) for name, x in by_path(jax.device_get(params)).items()}
    temporary = file.with_name(f".{file.name}.part")
    try:
        save_file(named, temporary, metadata={"format": FORMAT, "about": json.dumps(about)})
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file.stat().st_size


def read_about(file: Path) -> dict[str, Any]:
    """The facts: `plan` as JSON, and `steps`. FileNotFoundError without the file, ValueError if it is none of ours or
    damaged."""
    with _open(file) as content:
        try:
            about = json.loads(content.metadata()["about"])
            if not (isinstance(about["plan"]["agent"], str) and isinstance(about["steps"], int)):
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{file} does not say what its weights are: it is damaged") from None
        return about


def read(file: Path, like: Any) -> Any:
    """The parameters, in the structure of `like` (shape structs); ValueError where they do not fit it."""
    wanted = by_path(like)
    with _open(file) as content:
        if names := sorted(wanted.keys() ^ set(content.keys())):
            raise ValueError(f"{file} was written by another version of jaxwm: it differs in {', '.join(names[:3])}")
        arrays = {name: content.get_tensor(name) for name in wanted}
    for name, x in wanted.items():
        if arrays[name].shape != x.shape:
            raise ValueError(f"{file} holds {name} as {arrays[name].shape}, its settings say {x.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name].astype(x.dtype) for name, x in wanted.items()])


def _open(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        content = safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file, or damaged: {error}") from None
    if (content.metadata() or {}).get("format") != FORMAT:
        raise ValueError(f"{file} was not written by jaxwm export")
    return content
