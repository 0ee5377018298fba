"""The system of docs/adding_a_system.md, as its code blocks have it."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jaxwm import agents

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_system.md"
NAME = "shooting"


@cache
def system() -> Any:
    """The page's `SYSTEM`, out of its blocks as one file."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = Path(tempfile.mkdtemp()) / f"{NAME}.py"
    file.write_text("\n\n".join(blocks))
    spec = importlib.util.spec_from_file_location(f"page_{NAME}", file)
    assert spec and spec.loader
    module = sys.modules[f"page_{NAME}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SYSTEM


@contextlib.contextmanager
def registered(name: str) -> Iterator[None]:
    """Have the page's system in the registry meanwhile, where `name` is its name."""
    if name != NAME:
        yield
        return
    agents.AGENTS[NAME] = system()
    try:
        yield
    finally:
        del agents.AGENTS[NAME]
