"""Words of a command line as values, by tyro; what cannot be read is one line."""

import ast
import contextlib
import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

TITLE = re.compile(r"[A-Z][a-z ]{3,40}")  # of a box ("Value error"), in a line of its own where it is drawn in ASCII


def read(kind: Any, arguments: Sequence[str], prog: str, **options: Any) -> Any:
    """An instance of `kind` out of the words after `prog`; options as of `tyro.cli`. ValueError for words that do not
    fit, in one line; SystemExit where --help was asked for, and printed."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(arguments), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_plain(said.getvalue())} (see {prog} --help)") from None


def _plain(box: str) -> str:
    """What is wrong and what was meant, out of tyro's box of an error, in one line."""
    lines = [line.strip("│| ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    border = lambda line: bool(re.search(r"[─-]{3}", line)) or line in "╭╮╰╯+"  # noqa: E731
    parts = [" ".join(filter(None, part)) for drawn, part in itertools.groupby(lines, border) if not drawn]
    parts = [part for part in parts if part and not TITLE.fullmatch(part)] or [""]
    body = [parts[0].split("Got errors")[0].strip()]
    text = re.sub(r"^Error parsing (plan[.\w]*: )?", "", " ".join(filter(None, body)))
    hints = itertools.dropwhile(lambda line: "Perhaps" not in line, lines)
    near = [line.split()[0] for line in hints if line[:2] == "--"]
    return f"{text or 'these words cannot be read'}{f'; did you mean {near[0]}?' if near else ''}"


def optional(metavar: str, name: str | None = None) -> Any:
    """A flag that may be left out, and then is None or nothing."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")


def option(text: str) -> tuple[str, Any]:
    """`name=value` with Python's literals; any other value is text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"options are NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def literal(value: Any) -> str:
    """What `option` reads as `value`: text as it is where it cannot be taken for anything else."""
    plain = isinstance(value, str) and value.isidentifier() and value not in ("True", "False", "None")
    return value if plain else repr(value)


def values(text: str) -> tuple[str, list[float]]:
    """`name=1,2,3` as a name and numbers."""
    name, _, numbers = text.partition("=")
    try:
        return name, [float(number) for number in numbers.split(",")]
    except ValueError:
        raise ValueError(f"--vary takes NAME=NUMBER,NUMBER,... with one per member, got {text!r}") from None


def write_values(numbers: Sequence[float]) -> str:
    """What `values` reads after the `=`."""
    return ",".join(repr(float(number)) for number in numbers)


def _pairs(parse: Callable[[str], tuple[str, Any]], write: Callable[[Any], str]) -> PrimitiveConstructorSpec:
    """How tyro reads a dict from words NAME=VALUE, and writes it as such."""
    given, written = lambda words: dict(map(parse, words)), lambda d: [f"{k}={write(v)}" for k, v in d.items()]
    return PrimitiveConstructorSpec("*", "NAME=VALUE", given, lambda value: isinstance(value, dict), written)


OPTIONS = _pairs(option, literal)  # a dict of options: `a=1 b=text`
VALUES = _pairs(values, write_values)  # a dict of lists of numbers: `lr=1e-3,1e-4`
