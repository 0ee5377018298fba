"""A page as a list of blocks, written as Markdown and as one HTML file that needs nothing else.

Text may hold `code`, **bold** and [links](to.somewhere), in both.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from jaxwm.report import data

MIME = {".png": "image/png", ".gif": "image/gif"}
INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)"), r'<a href="\2">\1</a>'),
)


class Heading(NamedTuple):
    """A title of level 1 to 3."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list."""

    lines: Sequence[str]


class Code(NamedTuple):
    """Lines to copy."""

    text: str


class Table(NamedTuple):
    """A header and rows of the same length; entries become text."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """A PNG or GIF file, relative to the page, and what it shows."""

    file: str
    text: str


class Fold(NamedTuple):
    """A table that is closed at first."""

    title: str
    table: Table


Block = Heading | Text | Bullets | Code | Table | Picture | Fold


def code(text: str) -> str:
    """Inline code."""
    return f"`{text}`"


def number(value: float) -> str:
    """Two digits; a dash for what is not finite."""
    return f"{value:.2f}" if np.isfinite(value) else "-"


def save(figure: Figure, out: Path, name: str, text: str) -> Picture:
    """Save a figure as a PNG file in `out`."""
    file = re.sub(r"[^\w.-]+", "-", name) + ".png"
    figure.savefig(out / file, bbox_inches="tight")  # long names make wide legends
    return Picture(file, text)


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown(blocks: Iterable[Block]) -> str:
    """The page as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Bullets(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Code(text):
            return f"```\n{text}\n```"
        case Table(header, rows):
            return table(header, rows)
        case Picture(file, text):
            return f"![{text}]({quote(file)})"
        case Fold(title, inner):
            return f"<details>\n<summary>{title}</summary>\n\n{_markdown(inner)}\n\n</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    cell = lambda value: str(value).replace("|", "\\|")  # noqa: E731
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


# --- HTML ---------------------------------------------------------------------------------------------------------


def html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The page as one HTML file. Pictures are read from `folder` and embedded."""
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    body = "\n".join(map(partial(_html, folder), blocks))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    style = f"<style>\n{data.text('report.css')}</style>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}\n{style}</head>\n'
        f"<body><nav>{links}</nav><main>\n{body}\n</main></body></html>\n"
    )


def _html(folder: Path, block: Block) -> str:
    match block:
        case Heading(level, text):
            mark = f' id="{_anchor(text)}"' if level == 2 else ""
            return f"<h{level}{mark}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(lines):
            return f"<ul>{''.join(f'<li>{_inline(line)}</li>' for line in lines)}</ul>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(header, rows):
            return _html_table(header, rows)
        case Picture(file, text):
            pixels = base64.b64encode((folder / file).read_bytes()).decode()
            source = f"data:{MIME[Path(file).suffix.lower()]};base64,{pixels}"
            return f'<figure><img src="{source}" alt="{escape(text)}"></figure>'
        case Fold(title, inner):
            return f"<details><summary>{_inline(title)}</summary>{_html(folder, inner)}</details>"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns that hold numbers only are aligned at the right."""
    texts = [[str(entry) for entry in row] for row in rows]
    right = [bool(rows) and all(re.fullmatch(r"[-+\d.,]+", row[i]) for row in texts) for i in range(len(header))]

    def line(tag: str, entries: Sequence[str]) -> str:
        marks = (' class="number"' if number else "" for number in right)
        return "".join(f"<{tag}{mark}>{_inline(e)}</{tag}>" for mark, e in zip(marks, entries, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in texts)
    top = f"<thead><tr>{line('th', header)}</tr></thead>"
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _inline(text: str) -> str:
    text = escape(text)
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return text


def _anchor(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")
