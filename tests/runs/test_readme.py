"""The Python of README and docs runs as printed: the blocks marked ```python; ```py is not meant to run by itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("environments", "quickstart", "scaling"))]
BLOCKS = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [name for name in BLOCKS if name not in ("README.md", "quickstart.md")])
def test_blocks_run(page):
    assert BLOCKS[page], f"{page} has no example"
    for block in BLOCKS[page]:
        exec(block, {})


@pytest.mark.slow
def test_the_blocks_that_need_a_run_do_too(tmp_path, monkeypatch):
    """README loads runs/breakout and acts; the quick start trains a little."""
    from jaxwm.__main__ import main

    monkeypatch.chdir(tmp_path)
    begin = "train dreamer-v3 --env minatar/Breakout --members 1 --steps 400 --episodes 2 --run runs/breakout"
    assert main(begin.split()) == 0
    for page in ("README.md", "quickstart.md"):
        for block in BLOCKS[page]:
            exec(block, {})
