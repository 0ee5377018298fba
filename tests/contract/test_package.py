"""The package as others see it: one version, typed."""

import re
from pathlib import Path

import jaxwm

HOME = Path(jaxwm.__file__).parents[1]


def test_the_version_is_written_once():
    """pyproject.toml takes it from `jaxwm.__version__`; what people cite says the same."""
    project = (HOME / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and not re.search(r"^version = ", project, re.M)
    for name, pattern in (("CITATION.cff", r"^version: (\S+)$"), ("README.md", r"version = \{(\S+)\}")):
        found = re.findall(pattern, (HOME / name).read_text(), re.M)
        assert set(found) <= {jaxwm.__version__}, name


def test_types_are_for_users_too():
    assert (HOME / "jaxwm" / "py.typed").exists()
