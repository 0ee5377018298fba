"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("block", [0, pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_example_runs(block):
    names: dict = {}
    exec(BLOCKS[block], names)
    if "corridor" in names:
        assert names["step"].obs.shape == (4, 6) and names["step"].obs[:, 1].all()
    if "dream" in names:
        assert names["dream"].obs.shape == (16, 8, 10, 5, 1)
