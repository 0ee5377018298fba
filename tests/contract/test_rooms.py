"""The house: who may import whom, what the lower rooms never do, and how large things may be. Read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from house import FILES, TREES

BASE = {"types", "errors"}
FLOOR = BASE | {"distributions", "spaces", "schedule", "replay", "learning"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "distributions": BASE,
    "spaces": BASE | {"distributions"},
    "schedule": BASE,
    "replay": BASE,
    "envs": BASE | {"distributions", "spaces"},
    "data": BASE | {"distributions", "spaces", "replay", "envs"},
    "learning": BASE | {"distributions", "spaces"},
    "nets": BASE | {"distributions", "spaces", "learning"},
    "control": BASE | {"distributions", "spaces", "learning", "nets"},
    "models": BASE | {"distributions", "spaces", "learning", "nets", "control"},
    "training": FLOOR | {"envs", "data"},
    "agents": FLOOR | {"envs", "data", "nets", "control", "models"},
}
BELOW["run"] = BELOW["agents"] | {"agents", "training"}
BELOW["studio"] = BELOW["run"] | {"run"}
BELOW["report"] = BELOW["run"] | {"run"}
BELOW["web"] = BELOW["run"] | {"run", "studio", "report"}
BELOW["cli"] = BELOW["web"] | {"web"}
"""Room -> the rooms that it may import. Arrows point down only; nothing imports `cli`."""

FRONT = {"__init__", "__main__"}
"""`jaxwm` itself and `python -m jaxwm`: the doors, which may import everything and which nothing below imports, but
for the version."""


def room(module: str) -> str:
    return module.split(".")[0]


def imports(module: str) -> Iterator[str]:
    """Modules of the project that a module imports, inside functions too; a name out of a package is its module."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            parts = name.split(".")
            if parts[0] == "jaxwm":
                inner = ".".join(parts[1:])
                while inner and inner not in FILES and f"{inner}.__init__" not in FILES:
                    inner = inner.rpartition(".")[0]
                yield inner if inner in FILES else f"{inner}.__init__".lstrip(".")


def test_every_room_is_in_the_table():
    assert {room(module) for module in FILES} - FRONT - set(BELOW) == set(), "say in BELOW what the new room imports"
    for name, below in BELOW.items():
        for other in below:
            assert BELOW[other] <= below, f"{name} -> {other} -> {BELOW[other] - below}"
            assert name not in BELOW[other], f"{name} and {other} may import each other"


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    if module in FRONT:
        return
    allowed = BELOW[room(module)] | {room(module)}
    wrong = {other for other in imports(module) if room(other) not in allowed and other != "__init__"}
    assert not wrong, f"{module} must not import {sorted(wrong)}"


def test_the_front_door_is_imported_for_the_version_only():
    for module, tree in TREES.items():
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxwm"
        }
        assert module in FRONT or used <= {"__version__"}, f"{module} uses jaxwm.{used}"


def test_no_module_imports_itself_by_way_of_others():
    """The packages' own `__init__` files count as what they import; the front door does not."""
    edges = {module: {other for other in imports(module) if other not in FRONT} for module in FILES}
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join((*path[path.index(module) :], module))
        if module not in state:
            state[module] = 1
            for other in edges[module]:
                if other != module:
                    visit(other, (*path, module))
            state[module] = 2

    for module in FILES:
        visit(module, ())


# --- What arrays never do -----------------------------------------------------------------------------------------

FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rename", "touch"}
FILE_MODULES = {"os", "pathlib", "shutil", "tempfile", "subprocess", "multiprocessing", "socket", "signal", "threading"}
DEVICE_CALLS = {
    "devices", "local_devices", "device_count", "local_device_count", "default_backend", "process_count",
    "process_index",
}  # fmt: skip
WORLD = {"envs", "data", "run", "studio", "report", "web", "cli"}
"""Rooms that read files, start simulators or own machines."""
ALLOWED = {
    "learning.pieces": {"default_backend"},  # routes: which convolution, which piece size
    "training.quick": {"default_backend"},  # how much the compiler optimises
    "training.spread": {"devices"},  # the devices of a run, where none are given
    "training.processes": {"process_count", "process_index"},  # arrays that several processes hold
    "training.host": {"process_count", "process_index"},  # whose environments this process steps
}
"""Module -> what it may ask the machine."""


def asked(tree: ast.AST) -> set[str]:
    """Files, processes and devices that the code asks for, by the names of calls and imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {name.split(".")[0] for name in names} & FILE_MODULES
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value.id if isinstance(getattr(node.func, "value", None), ast.Name) else ""  # type: ignore[union-attr]
            if name in FILE_CALLS and (owner != "self" or name != "open") and "_host" not in ast.dump(node.func):
                found.add(name)
            if name in DEVICE_CALLS and owner == "jax":
                found.add(name)
    return found


@pytest.mark.parametrize("module", [module for module in FILES if room(module) not in WORLD | FRONT])
def test_below_the_runs_there_are_arrays_only(module):
    extra = asked(TREES[module]) - ALLOWED.get(module, set())
    assert not extra, f"{module} uses {sorted(extra)}: files, processes and devices belong to run/"


def test_what_is_allowed_is_used():
    for module, names in ALLOWED.items():
        assert names <= asked(TREES[module]), f"{module} no longer uses {names - asked(TREES[module])}: strike it out"


# --- Sizes --------------------------------------------------------------------------------------------------------

LONGEST_FUNCTION, LONGEST_CLASS = 60, 250
LONG: set[str] = set()
"""What is still longer: nothing, and it should stay so."""


def too_long() -> set[str]:
    found = set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                most = LONGEST_CLASS + 1 if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
                if lines >= most:
                    found.add(f"{module}:{node.name}")
    return found


def test_functions_and_classes_are_short():
    assert too_long() <= LONG, sorted(too_long() - LONG)


def test_what_was_long_is_struck_out():
    assert LONG <= too_long(), f"short by now, strike it out of LONG: {sorted(LONG - too_long())}"
