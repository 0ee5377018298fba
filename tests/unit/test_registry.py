"""What is said of systems as data: the registry, its table, old names of settings, what may differ between members."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from jaxwm import Plan, agents
from jaxwm.agents import registry
from jaxwm.agents.system import ANY_ACTION, ANY_OBSERVATION, hyper_of

STRUCTURE = {("dyna_q", "bonus")}
"""Settings that also decide which program is built: (module, setting)."""


def test_the_table_is_that_of_every_system():
    rows = {name: registry.row(agents.find(name)) for name in registry.MODULES}
    assert rows == registry.table(), "run python -m docs.lineage"


def test_a_system_is_imported_when_it_is_asked_for():
    script = (
        "import sys, jaxwm; from jaxwm.agents import registry; registry.table(); "
        "found = [m for m in registry.MODULES.values() if f'jaxwm.agents.{m}' in sys.modules]; "
        "assert 'dreamer-v3' in jaxwm.agents.AGENTS and not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("name", registry.MODULES)
def test_a_record_is_whole(name):
    system = agents.find(name)
    assert system.default in system.presets and system.year and "/" in system.env
    assert all((system.summary, system.paper, system.sees, system.predicts, system.acts))
    assert set(system.observations) <= {*ANY_OBSERVATION, "one-hot", "board"} and set(system.actions) <= {*ANY_ACTION}
    fields = system.config.__dataclass_fields__
    assert set(system.renamed.values()) <= set(fields) and not set(system.renamed) & set(fields)


@pytest.mark.parametrize("name", registry.MODULES)
def test_no_setting_has_the_name_of_a_flag_of_the_run(name):
    """Both are words of one command line."""
    others = "from", "import", "preset", "run", "pictures", "hosts"
    flags = {f.name for f in dataclasses.fields(Plan)} | set(others)
    assert not flags & set(agents.find(name).config.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "old", "new", "value"),
    [
        ("dreamer-v3", "horizon", "discount_horizon", 20.0),
        ("muzero", "decay", "lr_decay_updates", 7),
        ("pets", "horizon", "plan_horizon", 7),
        ("world-models", "horizon", "dream_length", 7),
    ],
)
def test_old_names_of_settings(name, old, new, value):
    assert getattr(agents.settings(name, **{old: value}), new) == value
    with pytest.raises(ValueError, match=f"'{old}' is the old name of the setting '{new}'"):
        agents.settings(name, **{old: value, new: value})


@pytest.mark.parametrize("name", registry.MODULES)
def test_what_members_may_differ_in_is_read_from_their_state(name):
    """No code outside of the settings reads a marked field from `config`: `--vary` would not reach it."""
    module = registry.MODULES[name]
    source = "muzero" if name == "efficientzero" else module
    tree = ast.parse((Path(agents.__file__).parent / f"{source}.py").read_text())
    marked = hyper_of(agents.find(name).config())
    assert marked
    reads = {
        node.attr
        for part in tree.body
        if not (isinstance(part, ast.ClassDef) and part.name == "Config")
        for node in ast.walk(part)
        if isinstance(node, ast.Attribute)
        and node.attr in marked
        and ast.unparse(node.value).split(".")[-1] == "config"
    }
    assert {(module, read) for read in reads} <= STRUCTURE
