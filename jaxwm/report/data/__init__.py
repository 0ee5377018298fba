"""Files of reports: published scores, names of metrics, captions, sentences, style."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


def text(name: str) -> str:
    """The text of a file of this folder."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def read(name: str) -> dict[str, Any]:
    """The contents of a TOML file of this folder."""
    return tomllib.loads(text(name))


def say(name: str, /, **values: Any) -> str:
    """What sentences.toml has under this name, with its values filled in."""
    return read("sentences.toml")[name].format(**values)
