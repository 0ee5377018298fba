"""`jaxwm dream`: what a run's world model dreams, next to what really happened.

Real windows of L + H records are cut out of fresh episodes; of held-out recordings where nothing acts in the system.
The model sees the first L, the context, and dreams H steps open loop under the actions that were really taken."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as imageio
import jax
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from jaxwm.run.load import recordings
from jaxwm.studio import episodes, figures, paper, pictures, video
from jaxwm.studio.episodes import Player
from jaxwm.studio.names import plain
from jaxwm.studio.paper import GREY, LINE, ORANGE
from jaxwm.studio.study import Study, errors, imagine, mean_and_band, table, verdict
from jaxwm.types import Record, Spec

MOST_LINES, MOST_TRACES = 12, 4  # numbers of an observation, and sequences, that are plotted
RECORDED = 2000  # most held-out records that windows are cut out of
ROWS = ("truth", "dream", "error", "tokens")  # the last one where a frame has tokens
# Pixels of a sheet: the column of labels, the least width of a panel, the frame of a dream, a line of words.
LABELS, COLUMN, FRAME, CAPTION = 62, 88, 3, 18


@dataclass(frozen=True)
class Settings:
    """What to dream. ValueError for a number out of range, and as `video.check_format`."""

    context: int = 8  # real records that the model sees first (at least 2)
    horizon: int = 45  # steps that it dreams
    episodes: int = 6  # sequences in the video and the plots
    sequences: int = 64  # start points of the error curves
    format: str = "gif"  # of the video, one of `video.FORMATS`

    def __post_init__(self):
        for name, least in (("context", 2), ("horizon", 1), ("episodes", 1), ("sequences", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        video.check_format(self.format)


def dream(player: Player, out: Path, settings: Settings, console: Console) -> list[Path]:
    """Write pictures and numbers of a run's dreams into `out`; print a table of the errors and what it means; the
    pictures. ValueError for an agent that cannot dream."""
    if player.agent.imagine is None:
        name = player.plan.agent
        raise ValueError(f"{name} has no model that dreams (Agent.imagine is None); see its policy with jaxwm watch")
    records, spec = _play(player, settings, console)
    context, horizon = episodes.fit(records, settings.context, settings.horizon)
    if (context, horizon) != (settings.context, settings.horizon):
        console.print(f"episodes are short: --context {context} --horizon {horizon} fit into the longest")
    count, rng = max(settings.sequences, settings.episodes), np.random.default_rng(player.seed)
    window: Any
    window, valid = episodes.windows(records, context, horizon, count, rng)
    if window.is_first[:, 1:context].any():
        console.print("too few episodes contain a whole context: some contexts begin in the episode before")
    with console.status("dreaming (compiles first)"):
        study = imagine(player.agent, player.state, window, valid, jax.random.fold_in(player.key, 1))
    out.mkdir(parents=True, exist_ok=True)
    with console.status("drawing"):
        found = errors(spec, study)
        files = draw(out, player.title(), spec, study, found, settings)
        numbers = _write_numbers(out / "dreams.json", player, study, found)
    console.print(table(found, study))
    for sentence in verdict(found):
        console.print(sentence, highlight=False)
    for file in (*files, numbers):
        console.print(f"  {file}", soft_wrap=True, highlight=False)
    return files


def _play(player: Player, settings: Settings, console: Console) -> tuple[Record, Spec]:
    """Records `[T, N, ...]` of the exploring policy, long enough for windows from everywhere in an episode."""
    if player.agent.act is None:
        return _recorded(player)
    env = player.envs(16 if player.envs(1).pure else 4)
    rows = max(256, 2 * (settings.context + settings.horizon), min(env.spec.max_steps or 1000, 1000))
    with closing(episodes.play(player.agent, env, player.state, player.key)) as plays:
        steps = track(range(rows), f"playing {env.spec.name}", console=console, transient=True)
        return episodes.record(next(plays) for _ in steps), env.spec


def _recorded(player: Player) -> tuple[Record, Spec]:
    """Records `[T, 1, ...]` that a run on recordings did not learn from. ValueError where they hold no actions."""
    found = recordings(player.plan, 1, held_out=True)
    if found.spec.action is None:
        raise ValueError(f"{player.plan.data} holds no actions to dream under: train on recordings that hold some")
    return found.read(0, min(found.rows, RECORDED))._replace(extras={}), found.spec


def draw(out: Path, title: str, spec: Spec, study: Study, found: dict[str, Any], settings: Settings) -> list[Path]:
    """Write all pictures of a study into the folder `out`; their paths."""
    shown: Study = jax.tree.map(lambda x: x[: settings.episodes], study)
    plotted: Study = jax.tree.map(lambda x: x[:MOST_TRACES], shown)
    files = [out / "error.png", out / "reward.png"]
    figures.horizon_plot(files[0], f"{title}\nerror over {len(study.valid)} start points (lower is better)", found)
    real = np.stack([plotted.window.reward, 1.0 - plotted.window.is_terminal], -1)
    dreamed = np.stack([plotted.dream.reward, plotted.dream.cont], -1)
    words = f"{title}\nreward and continue flag"
    figures.traces(files[1], words, ("reward", "continue"), real, dreamed, plotted.valid)
    if "attention" in plotted.dream.latent:
        files.append(out / "attention.png")
        looks = plotted.dream.latent["attention"]
        figures.attention(files[-1], f"{title}\nattention, mean of the heads", looks, plotted.valid)
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
        files += [out / f"dream.{settings.format}", out / "dream.png"]
        frames = list(film(title, painter, shown))
        video.write(files[-2], frames, min(10, max(2, len(frames) / 6)))
        imageio.imwrite(files[-1], strip(title, painter, shown))
    return files


def film(title: str, painter: pictures.Painter, study: Study) -> Iterator[np.ndarray]:
    """Frames of all sequences side by side; the rows are truth, dream, error and tokens, as far as there are any.
    During the context both rows show the real observation in a grey frame; the dream is framed in orange."""
    length, horizon = study.context, study.valid.shape[1]
    for t in range(length + horizon):
        word = f"dreamed step {t - length + 1} of {horizon}" if t >= length else f"context {t + 1} of {length}"
        columns = [column(painter, study, b, t, f"sequence {b + 1}") for b in range(len(study.valid))]
        yield _titled([title, word], sheet(columns), painter)


def strip(title: str, painter: pictures.Painter, study: Study, most: int = 9) -> np.ndarray:
    """One sequence as a still picture: time from left to right, the rows of `film` below each other."""
    b, horizon = int(study.valid.sum(1).argmax()), study.valid.shape[1]
    steps = np.unique(np.linspace(0, study.valid[b].sum(), min(most, horizon + 1)).round().astype(int))
    names = [f"step {step}" if step else "last seen" for step in steps]
    times = zip(steps + study.context - 1, names, strict=True)
    body = sheet([column(painter, study, b, t, name) for t, name in times])
    return _titled([title, "one sequence, time from left to right"], body, painter)


def _titled(heading: list[str], body: np.ndarray, painter: pictures.Painter) -> np.ndarray:
    """A sheet with its title above and its legend below, wide enough for both."""
    seen = (paper.ring(GREY), "seen by the model"), (paper.ring(ORANGE), "dreamed")
    head = paper.stack([paper.lines(heading[:1], paper.TITLE, bold=True), paper.lines(heading[1:], paper.TITLE)], 0)
    foot = [paper.legend([*seen, *painter.errors], body.shape[1])]
    foot += [paper.legend(painter.colours, body.shape[1])] if painter.colours else []
    return paper.page([head, body, *foot])


class Column(NamedTuple):
    """A time step of a sequence: the pictures of `ROWS`, the real and the dreamed reward, and the dream's frame."""

    name: str
    panels: list[np.ndarray]
    rewards: tuple[str, str]
    frame: str


def column(painter: pictures.Painter, study: Study, b: int, t: int, name: str) -> Column:
    """Time step `t` of sequence `b`; nothing is shown after the end of its episode."""
    i = t - study.context
    real = jax.tree.map(lambda x: x[b, t], study.window.obs)
    truth, reward = painter.paint(real), plain(study.window.reward[b, t])
    blank = paper.note(truth.shape, "")
    extra = [blank] if "tokens" in study.dream.latent else []
    if i < 0:
        return Column(name, [truth, truth, blank, *extra], (reward, ""), GREY)
    if not study.valid[b, i]:
        over = paper.note(truth.shape, "episode over")
        return Column(name, [over] * 3 + extra, ("", ""), ORANGE)
    guess = jax.tree.map(lambda x: x[b, i], study.dream.obs)
    dreamed, error = painter.paint(guess), painter.compare(real, guess)
    error = paper.note(truth.shape, "no error") if np.array_equal(truth, dreamed) else error
    if extra:
        extra = [pictures.token_map(study.dream.latent["tokens"][b, i], truth.shape)]
    return Column(name, [truth, dreamed, error, *extra], (reward, plain(study.dream.reward[b, i])), ORANGE)


def sheet(columns: list[Column]) -> np.ndarray:
    """Columns side by side, with their names above and their rewards below."""
    height, width = columns[0].panels[0].shape[:2]
    step, drop = max(width, COLUMN) + 2 * FRAME + paper.GAP, height + 2 * FRAME + paper.GAP
    shown = ROWS[: len(columns[0].panels)]
    below = CAPTION + len(shown) * drop
    canvas = Image.new("RGB", (LABELS + len(columns) * step, below + 2 * CAPTION), "white")
    pen = ImageDraw.Draw(canvas)
    write = lambda x, y, text, **place: pen.text((x, y), text, "black", paper.font(paper.TEXT), **place)  # noqa: E731
    for x, each in enumerate(columns):
        left = LABELS + x * step
        write(left, 0, each.name)
        for y, panel in enumerate(each.panels):
            frame, shift = (each.frame, 0) if ROWS[y] == "dream" else (LINE, FRAME - 1)
            framed = paper.framed(panel, frame, FRAME - shift)
            canvas.paste(Image.fromarray(framed), (left + shift, CAPTION + y * drop + shift))
        for y, reward in enumerate(each.rewards):
            write(left, below + y * CAPTION, reward)
    for y, name in enumerate(shown):
        write(0, CAPTION + y * drop + drop / 2, name, anchor="lm")
    for y, name in enumerate(("reward", "dreamed")):
        write(0, below + y * CAPTION, name)
    return np.asarray(canvas)


def _write_numbers(path: Path, player: Player, study: Study, found: dict[str, Any]) -> Path:
    """All curves as JSON; None where no sequence reaches a step."""
    means = lambda error: [None if np.isnan(x) else float(x) for x in mean_and_band(error)[0]]  # noqa: E731
    actions = study.window.action[:, study.context - 1 : -1]
    changed = float(np.mean(actions != np.roll(actions, 1, 0)))
    numbers = {
        name: {"unit": unit} | {curve: means(error) for curve, error in curves.items()}
        for name, (unit, curves) in found.items()
    }
    about = dict(agent=player.plan.agent, env=player.plan.env, member=player.member, env_steps=player.env_steps)
    about |= dict(seed=player.seed, context=study.context, horizon=study.valid.shape[1])
    about |= dict(sequences=study.valid.sum(0).tolist(), changed_actions=changed)
    about |= dict(errors=numbers, verdict=verdict(found))
    path.write_text(json.dumps(about, indent=2) + "\n")
    return path
