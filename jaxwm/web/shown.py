"""Ticks of a session as a visitor sees them: JSON with pictures, and branches as an animation."""

import base64
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxwm.studio import names, paper, pictures, video
from jaxwm.studio.paper import GREY, ORANGE
from jaxwm.training.program import kept
from jaxwm.web import boards
from jaxwm.web.desk import Desk

GIF_FPS = 5


def tick(desk: Desk, t: int, tick: Any) -> dict[str, Any]:
    """Tick `t` of a branch, a `session.Tick`, as JSON; pictures are PNG files in base64."""
    spec, painter = desk.spec, desk.painter
    real = kept(jax.tree.map(lambda x: np.asarray(x[0]), tick.step.obs)) if tick.step else None
    dream = tick.dream.obs if tick.dream is not None else None
    out: dict[str, Any] = {
        "t": t,
        "anchor": tick.anchor,
        "by": tick.by,
        "error": _short(tick.error),
        "doubt": _short(tick.doubt),
    }
    out["action"] = names.action(spec, tick.action[0]) if tick.action is not None else None
    out |= {"odds": tick.thought.odds, "value": _short(tick.thought.value)}
    out["advice"] = names.action(spec, tick.thought.action[0]) if desk.quick and tick.thought.odds else None
    if tick.step is not None:
        out |= {"reward": _short(tick.step.reward[0]), "cont": float(not tick.step.is_terminal[0])}
        out |= {"first": bool(tick.step.is_first[0]), "last": bool(tick.step.is_last[0])}
        if desk.board:
            out |= {"legal": {} if out["last"] else boards.legal(desk.board, tick.step)}
            out |= {"result": boards.result(tick.step)} if out["last"] else {}
    if tick.dream is not None:
        out |= {"dreward": _short(tick.dream.reward), "dcont": _short(tick.dream.cont)}
    for name, obs in (("", real), ("d", dream)):
        if obs is not None:
            out[f"{name}image"] = png(painter.paint(obs)) if painter else None
            most = len(desk.numbers)
            out[f"{name}numbers"] = [_short(x) for x in pictures.numbers(obs, spec)[1][:most]] if most else []
    return out


def gif(desk: Desk, branches: Mapping[str, Sequence[Any]]) -> bytes:
    """Branches, name -> ticks, as an animation, one row for each. ValueError where there is nothing to see."""
    if desk.painter is None:
        raise ValueError("these observations are numbers: there is nothing to animate")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dream.gif"
        video.write(file, list(_film(desk, branches)), GIF_FPS, 4_000_000)
        return file.read_bytes()


def _film(desk: Desk, branches: Mapping[str, Sequence[Any]]) -> Iterator[np.ndarray]:
    painter = desk.painter
    assert painter is not None
    blank = painter.paint(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), kept(desk.spec.obs)))
    head = paper.lines([desk.player.title()], paper.TITLE, bold=True)
    for t in range(max(map(len, branches.values()))):
        rows = []
        for name, ticks in branches.items():
            tick = ticks[min(t, len(ticks) - 1)]
            real = painter.paint(jax.tree.map(lambda x: np.asarray(x[0]), kept(tick.step.obs))) if tick.step else None
            dream = painter.paint(tick.dream.obs) if tick.dream is not None and tick.dream.obs is not None else real
            shown = [paper.note(blank.shape, "not recorded") if x is None else x for x in (real, dream)]
            colour = ORANGE if tick.dream is not None else GREY
            panels = [paper.framed(shown[0], GREY, 3), paper.framed(shown[1], colour, 3)]
            done = names.action(desk.spec, tick.action[0]) if tick.action is not None else "start"
            words = [f"{name}   real            dream", f"step {t}: {done} ({tick.by})"]
            rows.append(paper.stack([paper.lines(words[:1]), paper.row(panels), paper.lines(words[1:], width=330)], 3))
        yield paper.page([head, *rows])


def png(picture: np.ndarray) -> str:
    """A picture as a PNG file in base64."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


def _short(x: Any) -> float | None:
    """A number with six digits; None for none, and where it is not finite."""
    return None if x is None or not np.isfinite(x) else float(f"{float(x):.6g}")
