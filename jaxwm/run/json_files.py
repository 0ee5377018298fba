"""Values as JSON, and files of it that a reader finds whole."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def write_json(file: Path, data: Any) -> None:
    """Write a whole file at once: a reader, or a machine that comes back, finds the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(json.dumps(data, indent=2) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read it
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def to_plain(value: Any) -> Any:
    """`value` out of nothing but dict, list, str, int, float, bool and None; TypeError where there is no way. Floats of
    an array go by their own shortest text: float32 0.1 is written 0.1, not 0.10000000149011612."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value)  # np.float64 is one too
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(jax.device_get(value))
        if array.dtype.kind in "biu":
            return array.tolist()
        return [to_plain(row) for row in array] if array.ndim else float(str(array[()]))
    raise TypeError(f"cannot write {value!r} ({type(value).__name__}) as JSON")


def finite(plain: Any) -> Any:
    """The same with None (JSON's null) for NaN and infinity."""
    if isinstance(plain, dict):
        return {name: finite(inner) for name, inner in plain.items()}
    if isinstance(plain, list):
        return [finite(inner) for inner in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def read_json(file: Path) -> Any:
    """What `write_json` wrote. FileNotFoundError where there is none, ValueError where it is damaged."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise ValueError(f"{file} is damaged: {error}") from None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file. An unfinished last line, as a killed or still running program leaves it, is skipped.
    FileNotFoundError where there is no such file, ValueError where another line is damaged."""
    *lines, tail = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, tail] if parses(tail) else lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None
    return rows


def parses(line: bytes) -> bool:
    """Whether a line is JSON."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
