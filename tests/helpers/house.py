"""The source of the project, read and parsed."""

import ast
from pathlib import Path

import jaxwm

HOUSE = Path(jaxwm.__file__).parent
FILES = {".".join(path.relative_to(HOUSE).with_suffix("").parts): path for path in sorted(HOUSE.rglob("*.py"))}
"""Module, without `jaxwm.` -> its file; a package is `room.__init__`."""
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
