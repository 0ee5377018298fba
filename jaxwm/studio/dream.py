"""`jaxwm dream`: what a run's world model dreams, next to what really happened.

Real windows of L context records and H more are cut out of fresh episodes. The model sees the context and dreams H
steps open loop under the actions that were really taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import jax
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from jaxwm.studio import episodes, figures, paper, pictures, video
from jaxwm.studio.episodes import Player
from jaxwm.studio.names import plain
from jaxwm.studio.paper import GREY, LINE, ORANGE
from jaxwm.studio.study import Study, errors, imagine, mean_and_band, table, verdict
from jaxwm.types import Agent, Record, Spec

MOST_LINES = 12
"""Numbers of an observation that are plotted."""

MOST_TRACES = 4
"""Sequences that are plotted."""

ROWS = ("truth", "dream", "error")

LABELS, COLUMN, FRAME = 62, 88, 3
"""Pixels of a sheet: the column of labels, the least width of a panel, the frame of a dream."""

CAPTION = 18
"""Height of a line of words on a sheet."""


@dataclass(frozen=True)
class Settings:
    """What to dream."""

    context: int = 8
    """Real records that the model sees first (at least 2)."""
    horizon: int = 45
    """Steps that it dreams."""
    episodes: int = 6
    """Sequences in the video and the plots."""
    sequences: int = 64
    """Start points of the error curves."""

    def __post_init__(self):
        for name, least in (("context", 2), ("horizon", 1), ("episodes", 1), ("sequences", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


def dream(
    folder: Path,
    out: Path,
    member: int,
    seed: int,
    settings: Settings,
    format: str,
    console: Console,
    checkpoint: str = "newest",
) -> None:
    """Write pictures and numbers of a run's dreams into `out`; print a table of the errors and what it means.

    FileNotFoundError without run or checkpoint; ValueError for a wrong member or format, or an agent that cannot dream;
    ImportError for mp4 without ffmpeg.
    """
    video.check_format(format)
    player = episodes.open_player(folder, member, seed, checkpoint)
    check(player.agent, player.plan.agent)
    records, spec = _play(player, settings, console)
    context, horizon = episodes.fit(records, settings.context, settings.horizon)
    if (context, horizon) != (settings.context, settings.horizon):
        console.print(f"episodes are short: --context {context} --horizon {horizon} fit into the longest")
    rng = np.random.default_rng(seed)
    count = max(settings.sequences, settings.episodes)
    window: Any
    window, valid = episodes.windows(records, context, horizon, count, rng)
    if window.is_first[:, 1:context].any():
        console.print("too few episodes contain a whole context: some contexts begin in the episode before")
    with console.status("dreaming (compiles first)"):
        study = imagine(player.agent, player.state, window, valid, jax.random.fold_in(player.key, 1))
    out.mkdir(parents=True, exist_ok=True)
    with console.status("drawing"):
        found = errors(spec, study)
        files = draw(out, player.title(), spec, study, found, settings.episodes, format)
        files.append(_write_numbers(out / "dreams.json", player, seed, study, found))
    console.print(table(found, study))
    for sentence in verdict(found):
        console.print(sentence, highlight=False)
    for file in files:
        console.print(f"  {file}", soft_wrap=True, highlight=False)


def check(agent: Agent, name: str) -> None:
    """ValueError where an agent has no generative model."""
    if agent.imagine is None:
        raise ValueError(f"{name} has no model that dreams (Agent.imagine is None); see its policy with jaxwm watch")


def _play(player: Player, settings: Settings, console: Console) -> tuple[Record, Spec]:
    """Records `[T, N, ...]` of the exploring policy, long enough for windows from everywhere in an episode."""
    pure = player.envs(1).pure
    env = player.envs(16 if pure else 4)
    rows = max(256, 2 * (settings.context + settings.horizon), min(env.spec.max_steps or 1000, 1000))
    with closing(episodes.play(player.agent, env, player.state, player.key)) as plays:
        steps = track(range(rows), f"playing {env.spec.name}", console=console, transient=True)
        return episodes.record((next(plays) for _ in steps), rows), env.spec


# --- Showing ------------------------------------------------------------------------------------------------------


def draw(out: Path, title: str, spec: Spec, study: Study, found: dict[str, Any], count: int, format: str) -> list[Path]:
    """Write all pictures of a study into the folder `out`, with `count` sequences each; their paths."""
    shown: Study = jax.tree.map(lambda x: x[:count], study)
    plotted: Study = jax.tree.map(lambda x: x[:MOST_TRACES], shown)
    files = [out / "error.png", out / "reward.png"]
    figures.horizon_plot(files[0], f"{title}\nerror over {len(study.valid)} start points (lower is better)", found)
    _draw_rewards(files[1], title, plotted)
    if study.dream.obs is None:
        return files
    names, truth = pictures.numbers(plotted.window.obs, spec)
    if names:
        files.append(out / "vector.png")
        dreamed = pictures.numbers(plotted.dream.obs, spec)[1]
        more = f", {MOST_LINES} of {len(names)} numbers" if len(names) > MOST_LINES else ""
        parts = names[:MOST_LINES], truth[..., :MOST_LINES], dreamed[..., :MOST_LINES]
        figures.traces(files[-1], f"{title}\nobservations{more}", *parts, plotted.valid)
    if painter := pictures.painter(spec):
        files += [out / f"dream.{format}", out / "dream.png"]
        frames = list(film(title, painter, shown))
        video.write(files[-2], frames, min(10, max(2, len(frames) / 6)))
        imageio.imwrite(files[-1], strip(title, painter, shown))
    return files


def _draw_rewards(path: Path, title: str, study: Study) -> None:
    real = np.stack([study.window.reward, 1.0 - study.window.is_terminal], -1)
    dreamed = np.stack([study.dream.reward, study.dream.cont], -1)
    figures.traces(path, f"{title}\nreward and continue flag", ("reward", "continue"), real, dreamed, study.valid)


def film(title: str, painter: pictures.Painter, study: Study) -> Iterator[np.ndarray]:
    """Frames of all sequences side by side; the rows are truth, dream and error.

    During the context both rows show the real observation in a grey frame; the dream is framed in orange.
    """
    panels = [list(_panels(painter, study, b)) for b in range(len(study.valid))]
    length, total = study.context, study.window.reward.shape[1]
    columns = [f"sequence {b + 1}" for b in range(len(panels))]
    for t in range(total):
        dreaming = t >= length
        word = f"dreamed step {t - length + 1} of {total - length}" if dreaming else f"context {t + 1} of {length}"
        rewards = [_rewards(study, b, t) for b in range(len(panels))]
        frames = [ORANGE if dreaming else GREY] * len(panels)
        yield _titled([title, word], sheet([row[t] for row in panels], columns, rewards, frames), painter)


def strip(title: str, painter: pictures.Painter, study: Study, most: int = 9) -> np.ndarray:
    """One sequence as a still picture: time from left to right, truth, dream and error below each other."""
    length, horizon = study.context, study.valid.shape[1]
    b = int(study.valid.sum(1).argmax())
    times = np.unique(np.linspace(0, study.valid[b].sum(), min(most, horizon + 1)).round().astype(int)) + length - 1
    panels = list(_panels(painter, study, b))
    columns = [f"step {t - length + 1}" if t >= length else "last seen" for t in times]
    rewards = [_rewards(study, b, t) for t in times]
    frames = [ORANGE if t >= length else GREY for t in times]
    body = sheet([panels[t] for t in times], columns, rewards, frames)
    return _titled([title, "one sequence, time from left to right"], body, painter)


def _titled(heading: list[str], body: np.ndarray, painter: pictures.Painter) -> np.ndarray:
    """A sheet with its title above and its legend below, wide enough for both."""
    seen = (paper.ring(GREY), "seen by the model"), (paper.ring(ORANGE), "dreamed")
    head = paper.stack([paper.lines(heading[:1], paper.TITLE, bold=True), paper.lines(heading[1:], paper.TITLE)], 0)
    foot = [paper.legend([*seen, *painter.errors], body.shape[1])]
    foot += [paper.legend(painter.colours, body.shape[1])] if painter.colours else []
    return paper.page([head, body, *foot])


def _rewards(study: Study, b: int, t: int) -> list[str]:
    """The real and the dreamed reward of a time step, as far as there are such."""
    i = t - study.context
    if i < 0 or not study.valid[b, i]:
        return [plain(study.window.reward[b, t]), ""] if i < 0 else ["", ""]
    return [plain(study.window.reward[b, t]), plain(study.dream.reward[b, i])]


def _panels(painter: pictures.Painter, study: Study, b: int) -> Iterator[list[np.ndarray]]:
    """`[truth, dream, error]` of one sequence, time step by time step."""
    for t in range(study.window.reward.shape[1]):
        i = t - study.context
        real = jax.tree.map(lambda x, t=t: x[b, t], study.window.obs)
        truth = painter.paint(real)
        if i < 0:
            yield [truth, truth, paper.note(truth.shape, "")]
        elif not study.valid[b, i]:
            yield [paper.note(truth.shape, "episode over")] * 3
        else:
            guess = jax.tree.map(lambda x, i=i: x[b, i], study.dream.obs)
            dreamed, error = painter.paint(guess), painter.compare(real, guess)
            same = np.array_equal(truth, dreamed)
            yield [truth, dreamed, paper.note(truth.shape, "no error") if same else error]


def sheet(
    panels: list[list[np.ndarray]], columns: list[str], rewards: list[list[str]], frames: list[str]
) -> np.ndarray:
    """Columns of `[truth, dream, error]` panels of one size, with their names, and the two rewards below them."""
    height, width = panels[0][0].shape[:2]
    step, drop = max(width, COLUMN) + 2 * FRAME + paper.GAP, height + 2 * FRAME + paper.GAP
    below = CAPTION + len(ROWS) * drop
    canvas = Image.new("RGB", (LABELS + len(panels) * step, below + 2 * CAPTION), "white")
    pen, font = ImageDraw.Draw(canvas), paper.font(paper.TEXT)
    for x, column in enumerate(panels):
        left = LABELS + x * step
        pen.text((left, 0), columns[x], "black", font)
        for y, panel in enumerate(column):
            frame = paper.framed(panel, frames[x], FRAME) if ROWS[y] == "dream" else paper.framed(panel, LINE)
            shift = 0 if ROWS[y] == "dream" else FRAME - 1
            canvas.paste(Image.fromarray(frame), (left + shift, CAPTION + y * drop + shift))
        for y, reward in enumerate(rewards[x]):
            pen.text((left, below + y * CAPTION), reward, "black", font)
    for y, name in enumerate(ROWS):
        pen.text((0, CAPTION + y * drop + drop / 2), name, "black", font, anchor="lm")
    for y, name in enumerate(("reward", "dreamed")):
        pen.text((0, below + y * CAPTION), name, "black", font)
    return np.asarray(canvas)


# --- Numbers ------------------------------------------------------------------------------------------------------


def _write_numbers(path: Path, player: Player, seed: int, study: Study, found: dict[str, Any]) -> Path:
    """All curves as JSON; None where no sequence reaches a step."""
    plain = lambda mean: [None if np.isnan(x) else float(x) for x in mean]  # noqa: E731
    curves = {
        name: {"unit": unit} | {key: plain(mean_and_band(error)[0]) for key, error in each.items()}
        for name, (unit, each) in found.items()
    }
    actions = study.window.action[:, study.context - 1 : -1]
    about = dict(
        agent=player.plan.agent,
        env=player.plan.env,
        member=player.member,
        env_steps=player.env_steps,
        seed=seed,
        context=study.context,
        horizon=study.valid.shape[1],
        sequences=study.valid.sum(0).tolist(),
        changed_actions=float(np.mean(actions != np.roll(actions, 1, 0))),
        errors=curves,
        verdict=verdict(found),
    )
    path.write_text(json.dumps(about, indent=2) + "\n")
    return path
