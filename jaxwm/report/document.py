"""A page as a list of blocks, each written as Markdown and as HTML; the HTML file needs nothing else.

Text may hold `code`, **bold** and [links](to.somewhere), in both."""

import base64
import re
from collections.abc import Sequence
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


class Block(NamedTuple):
    """A part of a page in both languages; `section` is the title of a heading of level 2."""

    markdown: str
    html: str
    section: str = ""


def heading(level: int, text: str) -> Block:
    """A title of level 1 to 3."""
    mark, section = (f' id="{_anchor(text)}"', text) if level == 2 else ("", "")
    return Block(f"{'#' * level} {text}", f"<h{level}{mark}>{_inline(text)}</h{level}>", section)


def paragraph(text: str) -> Block:
    """Running text."""
    return Block(text, f"<p>{_inline(text)}</p>")


def bullets(lines: Sequence[str]) -> list[Block]:
    """A list; no block where there are no lines."""
    items = "".join(f"<li>{_inline(line)}</li>" for line in lines)
    return [Block("\n".join(f"- {line}" for line in lines), f"<ul>{items}</ul>")] if lines else []


def listing(text: str) -> Block:
    """Lines to copy."""
    return Block(f"```\n{text}\n```", f"<pre><code>{escape(text)}</code></pre>")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """A header and rows of the same length; in HTML, columns that hold numbers only are aligned at the right."""
    texts = [[str(entry) for entry in row] for row in rows]
    lines = [header, ["---"] * len(header), *texts]
    markdown = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    number = [bool(rows) and all(re.fullmatch(r"[-+\d.,]+", row[i]) for row in texts) for i in range(len(header))]

    def line(tag: str, entries: Sequence[str]) -> str:
        marks = (' class="number"' if right else "" for right in number)
        return "".join(f"<{tag}{mark}>{_inline(e)}</{tag}>" for mark, e in zip(marks, entries, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in texts)
    top = f"<thead><tr>{line('th', header)}</tr></thead>"
    return Block(markdown, f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>')


def fold(title: str, inner: Block) -> Block:
    """A block that is closed at first."""
    markdown = f"<details>\n<summary>{title}</summary>\n\n{inner.markdown}\n\n</details>"
    return Block(markdown, f"<details><summary>{_inline(title)}</summary>{inner.html}</details>")


def picture(out: Path, file: str, text: str) -> Block:
    """A PNG or GIF file, relative to the folder `out` of the page, and what it shows. It is embedded in the HTML."""
    pixels = base64.b64encode((out / file).read_bytes()).decode()
    source = f"data:{MIME[Path(file).suffix.lower()]};base64,{pixels}"
    return Block(f"![{text}]({quote(file)})", f'<figure><img src="{source}" alt="{escape(text)}"></figure>')


def save(figure: Figure, out: Path, name: str, text: str) -> Block:
    """Save a figure as a PNG file in `out`, and show it."""
    file = re.sub(r"[^\w.-]+", "-", name) + ".png"
    figure.savefig(out / file, bbox_inches="tight")  # long names make wide legends
    return picture(out, file, text)


def markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown."""
    return "\n\n".join(block.markdown for block in blocks) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file."""
    sections = [block.section for block in blocks if block.section]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    body = "\n".join(block.html for block in blocks)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    style = f"<style>\n{data.text('report.css')}</style>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}\n{style}</head>\n'
        f"<body><nav>{links}</nav><main>\n{body}\n</main></body></html>\n"
    )


def code(text: str) -> str:
    """Inline code."""
    return f"`{text}`"


def number(value: float) -> str:
    """Two digits; a dash for what is not finite."""
    return f"{value:.2f}" if np.isfinite(value) else "-"


def _inline(text: str) -> str:
    text = escape(text)
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return text


def _anchor(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")
