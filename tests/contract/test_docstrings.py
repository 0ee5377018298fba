"""Every public name says what it does, and every field of a Config what it sets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from house import FILES, TREES

from jaxwm import agents

SILENT = {f"run.writer:Silent.{name}" for name in ("metrics", "offsets")}
"""Methods of a writer that writes nothing; `Writer` explains them."""


def public(body: list[ast.stmt], prefix: str) -> list[tuple[str, ast.AST]]:
    """Public functions, classes and methods with their dotted names; a flax module's `setup` is none."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "setup":
            found.append((f"{prefix}{node.name}", node))
            if isinstance(node, ast.ClassDef):
                found += public(node.body, f"{prefix}{node.name}.")
    return found


def undocumented() -> set[str]:
    names = set()
    for module, tree in TREES.items():
        if not ast.get_docstring(tree):
            names.add(module)
        names |= {name for name, node in public(tree.body, f"{module}:") if not ast.get_docstring(node)}  # type: ignore[arg-type]
    return names


def test_public_names_have_docstrings():
    assert undocumented() - SILENT == set()


def bare_fields(config: type) -> set[str]:
    """Fields of a dataclass with neither a comment on their line nor a docstring after it."""
    module = config.__module__.removeprefix("jaxwm.")
    lines = FILES[module].read_text().splitlines()
    (node,) = [n for n in TREES[module].body if isinstance(n, ast.ClassDef) and n.name == config.__name__]
    bare = set()
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            said = isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.strip()
            if not said and not lines[field.lineno - 1].partition("  # ")[2].strip():
                bare.add(field.target.id)
    return bare


@pytest.mark.parametrize("name", agents.AGENTS)
def test_settings_are_explained(name):
    assert bare_fields(agents.find(name).config) == set()


def test_tests_say_what_they_are_about():
    """A module docstring for each file of tests."""
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} begins without a docstring"
