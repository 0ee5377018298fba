"""Markdown of a report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(entry) for entry in line) + " |" for line in lines)


def cell(value: Any) -> str:
    return str(value).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`"


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


def save(figure: Figure, out: Path, name: str, text: str) -> str:
    """Save a figure, and the markdown that shows it."""
    file = re.sub(r"[^\w.-]+", "-", name) + ".png"
    figure.savefig(out / file, bbox_inches="tight")  # long names make wide legends
    return f"![{text}]({file})"
