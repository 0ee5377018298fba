"""How good a member's dreams are, as JSON: error by horizon next to two baselines, and the spread of 16 dreams."""

from contextlib import closing
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.errors import check_number
from jaxwm.nets.sensors import kind, sensors
from jaxwm.run.json_files import finite
from jaxwm.studio import episodes, paper, pictures, study
from jaxwm.studio.episodes import Player
from jaxwm.types import Record, Spec
from jaxwm.web.session import heated
from jaxwm.web.shown import png

CONTEXT, HORIZON, WINDOWS, DREAMS = 8, 32, 32, 16
CELL, WORST = 64, 6  # pixels of a dream among others; windows that are shown as the worst
GAP, GROUND = 4, (26, 26, 30)  # between dreams, and the colour there


class Played(NamedTuple):
    """Windows of real play `[B, L + H, ...]`, and which dreamed steps count, `[B, H]`."""

    spec: Spec
    window: Record
    valid: np.ndarray


def play(player: Player) -> Played:
    """Let the exploring policy play, and cut windows out of it. ValueError for a member that does not dream."""
    if player.agent.imagine is None:
        raise ValueError(f"{player.plan.agent} has no model that dreams")
    env = player.envs(8 if player.envs(1).pure else 2)
    rows = max(160, 3 * (CONTEXT + HORIZON))
    with closing(episodes.play(player.agent, env, player.state, player.key)) as plays:
        records = episodes.record(next(plays) for _ in range(rows))
    context, horizon = episodes.fit(records, CONTEXT, HORIZON)
    found: Any = episodes.windows(records, context, horizon, WINDOWS, np.random.default_rng(player.seed))
    return Played(env.spec, *found)


def errors(player: Player, played: Played, temperature: float | None = None) -> dict[str, Any]:
    """Curves `{quantity: {unit, curves: {name: {mean, half}}}}` by horizon, in words, and the worst windows."""
    state = player.state if temperature is None else heated(player.state, temperature)
    done = study.imagine(player.agent, state, played.window, played.valid, jax.random.fold_in(player.key, 1))
    found = study.errors(played.spec, done)
    quantities = {}
    for name, (unit, curves) in found.items():
        pairs = {curve: study.mean_and_band(error) for curve, error in curves.items()}
        quantities[name] = {
            "unit": unit,
            "curves": {curve: {"mean": mean.tolist(), "half": half.tolist()} for curve, (mean, half) in pairs.items()},
        }
    out = {
        "context": done.context,
        "horizon": done.valid.shape[1],
        "windows": len(done.valid),
        "quantities": quantities,
    }
    worst = _worst(played.spec, done, next(iter(found.values()))[1]["dream"])
    return finite(out | {"labels": study.LABELS, "verdict": study.verdict(found), "worst": worst})


def _worst(spec: Spec, done: study.Study, error: np.ndarray) -> list[dict[str, Any]]:
    """The windows in which the dream is most wrong, each at its worst step: truth, dream and error as pictures."""
    painter = pictures.painter(spec, 96)
    if painter is None or done.dream.obs is None:
        return []
    filled = np.where(np.isnan(error), -1, error)
    out = []
    for b in np.argsort(-filled.max(1))[:WORST].tolist():
        i = int(filled[b].argmax())
        real = jax.tree.map(lambda x, b=b, i=i: x[b, done.context + i], done.window.obs)
        guess = jax.tree.map(lambda x, b=b, i=i: x[b, i], done.dream.obs)
        shown = [png(x) for x in (painter.paint(real), painter.paint(guess), painter.compare(real, guess))]
        out.append({"step": i + 1, "error": float(error[b, i]), "pictures": shown})
    return out


def spread(player: Player, played: Played, moment: int, temperature: float | None = None) -> dict[str, Any]:
    """Sixteen dreams of one moment under the same actions: how far they are apart by horizon, and a sheet of pictures
    for each step, the truth in its corner."""
    check_number("moment", moment, least=0, most=len(played.valid) - 1, whole=True)
    state = player.state if temperature is None else heated(player.state, temperature)
    horizon = played.valid.shape[1]
    context = played.window.reward.shape[1] - horizon
    one = jax.tree.map(lambda x: np.repeat(x[moment : moment + 1], DREAMS, 0), played.window)
    start, actions = jax.tree.map(lambda x: x[:, :context], one), one.action[:, context - 1 : -1]
    imagine: Any = player.agent.imagine
    run = jax.jit(lambda state, start, actions, key: imagine(state, start, actions, key, horizon)._replace(latent=()))
    dream = jax.device_get(run(state, start, actions, jax.random.fold_in(player.key, 2)))
    apart = {"reward": dream.reward.std(0).tolist(), "continue": dream.cont.std(0).tolist()}
    for name, shape in sensors(played.spec.obs).items() if dream.obs is not None else ():
        x = np.asarray(sensors(dream.obs)[name], np.float32) / (255 if kind(shape) == "image" else 1)
        apart["observation" if name == "obs" else name] = x.std(0).reshape(horizon, -1).mean(1).tolist()
    sheets = _sheets(played, dream, moment, context)
    return finite({"horizon": horizon, "moments": len(played.valid), "apart": apart, "sheets": sheets,
                   "valid": int(played.valid[moment].sum())})  # fmt: skip


def _sheets(played: Played, dream: Any, moment: int, context: int) -> list[str]:
    """For each dreamed step the truth, and the sixteen dreams in two rows."""
    painter = pictures.painter(played.spec, CELL)
    if painter is None or dream.obs is None:
        return []
    sheets = []
    for t in range(played.valid.shape[1]):
        real = painter.paint(jax.tree.map(lambda x, t=t: x[moment, context + t], played.window.obs))
        real = real if played.valid[moment, t] else paper.note(real.shape, "over")
        dreams = [painter.paint(jax.tree.map(lambda x, b=b, t=t: x[b, t], dream.obs)) for b in range(DREAMS)]
        sheets.append(png(_mosaic(real, dreams)))
    return sheets


def _mosaic(real: np.ndarray, dreams: list[np.ndarray]) -> np.ndarray:
    """The truth, and the dreams in two rows to the right of it, on the ground of the pictures."""
    framed = [paper.framed(real, paper.GREY, 2), *(paper.framed(x, paper.ORANGE, 2) for x in dreams)]
    height, width = framed[0].shape[:2]
    half = len(dreams) // 2
    out = np.full((2 * height + 3 * GAP, (half + 1) * (width + GAP) + 3 * GAP, 3), GROUND, np.uint8)
    for i, picture in enumerate(framed):
        row, column = divmod(i - 1, half) if i else (0, -1)
        y, x = GAP + row * (height + GAP), GAP + (column + 1) * (width + GAP) + (2 * GAP if i else 0)
        out[y : y + height, x : x + width] = picture
    return out
