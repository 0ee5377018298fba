"""`jaxwm dream`: what a run's world model dreams, beside what really happened.

Real windows of L context records and H more are cut out of fresh episodes. The model sees the context and dreams H
steps open loop under the actions that were really taken. Two baselines tell what its error means: keeping the last
observation (a world that stands still), and the same dream under the actions of another window (a model whose error is
the same then does not look at its actions).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxwm.nets.sensors import kind, sensors
from jaxwm.studio import episodes, figures, pictures
from jaxwm.studio.episodes import Player
from jaxwm.types import Agent, Dream, Key, Record, Spec

CHUNK = 16
"""Windows dreamed in one program: decoding many images at once takes gigabytes."""

MOST_LINES = 12
"""Numbers of an observation that are plotted."""

UNITS = {"image": "mean pixel error (0 to 1)", "binary": "share of wrong entries", "vector": "mean error (in std)"}


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


class Study(NamedTuple):
    """Windows and the dreams that belong to them, as NumPy arrays.

    window      real records `[B, L + H, ...]`
    valid       bool `[B, H]`: the episode is not over before this step
    dream       from the first L records of each window, under its own actions
    shuffled    the same under the actions of another window
    """

    window: Record
    valid: np.ndarray
    dream: Dream
    shuffled: Dream

    @property
    def context(self) -> int:
        return self.window.reward.shape[1] - self.valid.shape[1]


def dream(
    folder: Path,
    out: Path,
    member: int,
    seed: int,
    settings: Settings,
    video: str,
    console: Console,
    checkpoint: str = "newest",
) -> None:
    """Write pictures and numbers of a run's dreams into `out`, and print a table of the errors.

    FileNotFoundError without run or checkpoint; ValueError for a wrong member or format, or an agent that cannot dream;
    ImportError for mp4 without ffmpeg.
    """
    pictures.check_format(video)
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
        console.print("too few episodes hold a whole context: some contexts begin in the episode before")
    with console.status("dreaming (compiles first)"):
        study = imagine(player.agent, player.state, window, valid, jax.random.fold_in(player.key, 1))
    out.mkdir(parents=True, exist_ok=True)
    with console.status("drawing"):
        found = errors(spec, study)
        files = draw(out, player.title(), spec, study, found, settings.episodes, video)
        files.append(_write_numbers(out / "dreams.json", player, seed, study, found))
    console.print(table(found, study))
    for file in files:
        console.print(f"  {file}", soft_wrap=True, highlight=False)


def check(agent: Agent, name: str) -> None:
    """ValueError where an agent has no generative model."""
    if agent.imagine is None:
        raise ValueError(f"{name} has no model that dreams (Agent.imagine is None); see its policy with jaxwm watch")


def _play(player: Player, settings: Settings, console: Console) -> tuple[Record, Spec]:
    """Records `[T, N, ...]` of the exploring policy, long enough for windows from everywhere in an episode."""
    pure = player.envs(1).pure
    env = player.envs(CHUNK if pure else 4)
    rows = max(256, 2 * (settings.context + settings.horizon), min(env.spec.max_steps or 1000, 1000))
    with closing(episodes.play(player.agent, env, player.state, player.key)) as plays:
        steps = track(range(rows), f"playing {env.spec.name}", console=console, transient=True)
        return episodes.record((next(plays) for _ in steps), rows), env.spec


# --- Dreaming -----------------------------------------------------------------------------------------------------


def imagine(agent: Agent, state: Any, window: Record, valid: np.ndarray, key: Key) -> Study:
    """Dream every window twice, under its own actions and under those of the next window.

    With L records of context, `actions[:, i]` is the action of record L - 1 + i: the first one is what was done after
    the last observation that the model sees. The i-th dreamed step is therefore record L + i. Drops what does not fill
    the last chunk of windows.
    """
    horizon = valid.shape[1]
    context = window.reward.shape[1] - horizon
    chunk = min(CHUNK, len(valid))
    window, valid = jax.tree.map(lambda x: x[: len(x) // chunk * chunk], (window, valid))
    start = jax.tree.map(lambda x: x[:, :context], window)
    actions = window.action[:, context - 1 : -1]
    run = jax.jit(lambda state, start, actions, key: agent.imagine(state, start, actions, key, horizon))  # type: ignore[misc]

    def all_chunks(actions: Any) -> Dream:
        parts = []
        for i in range(0, len(valid), chunk):
            part = jax.tree.map(lambda x, i=i: x[i : i + chunk], (start, actions))
            done = run(state, *part, jax.random.fold_in(key, i))
            parts.append(jax.device_get(done._replace(latent=None)))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    return Study(window, valid, all_chunks(actions), all_chunks(np.roll(actions, 1, 0)))


def errors(spec: Spec, study: Study) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """`{quantity: (unit, {curve: error [B, H]})}` of every sensor and the reward; NaN where the episode is over.

    The curves are "dream", "shuffled" (another window's actions) and "copy" (the last observation of the context).
    Images count their mean absolute pixel difference over 255, flags and planes the share that is wrong, vectors the
    mean absolute difference in standard deviations of the real entries, rewards the absolute difference.
    """
    out = {}
    truth, guesses = study.window.obs, (study.dream.obs, study.shuffled.obs)
    if study.dream.obs is not None:
        for name, shape in sensors(spec.obs).items():
            what = kind(shape)
            real, *dreamed = (np.asarray(sensors(obs)[name]) for obs in (truth, *guesses))
            out["observation" if name == "obs" else name] = (
                UNITS[what],
                _curves(study, real, dreamed, _scale(what, real)),
            )
    out["reward"] = "mean error", _curves(study, study.window.reward, [study.dream.reward, study.shuffled.reward], 1.0)
    return out


def _scale(what: str, real: np.ndarray) -> Any:
    """What differences of a sensor are divided by; a number that never changes keeps its own unit."""
    if what != "vector":
        return 255.0 if what == "image" else 1.0
    std = real.std((0, 1))
    return np.where(std > 1e-6, std, 1.0)


def _curves(study: Study, real: Any, dreamed: list[Any], scale: Any) -> dict[str, np.ndarray]:
    past, future = real[:, study.context - 1, None], real[:, study.context :]

    def error(guess: np.ndarray) -> np.ndarray:
        pairs = zip(future, np.broadcast_to(guess, future.shape), strict=True)  # one by one: images are large
        each = [np.abs(a.astype(np.float32) - b.astype(np.float32)) / scale for a, b in pairs]
        means = np.stack([x.reshape(len(x), -1).mean(1) for x in each])
        return np.where(study.valid, means, np.nan)

    return {name: error(guess) for name, guess in zip(figures.STYLES, (*dreamed, past), strict=True)}


# --- Showing ------------------------------------------------------------------------------------------------------


def draw(out: Path, title: str, spec: Spec, study: Study, found: dict[str, Any], count: int, video: str) -> list[Path]:
    """Write all pictures of a study into the folder `out`, with `count` sequences each; their paths."""
    shown: Study = jax.tree.map(lambda x: x[:count], study)
    files = [out / "error.png", out / "reward.png"]
    figures.horizon_plot(files[0], f"{title}\nerror by horizon, {len(study.valid)} start points", found)
    _draw_rewards(files[1], title, shown)
    if study.dream.obs is None:
        return files
    names, truth = pictures.numbers(shown.window.obs, spec.obs)
    if names:
        files.append(out / "vector.png")
        dreamed = pictures.numbers(shown.dream.obs, spec.obs)[1]
        more = f", {MOST_LINES} of {len(names)} numbers" if len(names) > MOST_LINES else ""
        parts = names[:MOST_LINES], truth[..., :MOST_LINES], dreamed[..., :MOST_LINES]
        figures.traces(files[-1], f"{title}\nobservations{more}", *parts, shown.valid)
    paint = pictures.painter(spec)
    if paint:
        files += [out / f"dream.{video}", out / "dream.png"]
        frames = list(film(title, paint, shown))
        pictures.write_video(files[-2], frames, min(10, max(2, len(frames) / 6)))
        pictures.imageio.imwrite(files[-1], strip(title, paint, shown))
    return files


def _draw_rewards(path: Path, title: str, study: Study) -> None:
    real = np.stack([study.window.reward, 1.0 - study.window.is_terminal], -1)
    dreamed = np.stack([study.dream.reward, study.dream.cont], -1)
    figures.traces(path, f"{title}\nreward and continue flag", ("reward", "continue"), real, dreamed, study.valid)


def film(title: str, paint: pictures.Painter, study: Study) -> Iterator[np.ndarray]:
    """Frames of all sequences side by side; the rows are truth, dream and error.

    During the context both rows show the real observation in a grey frame; the dream is framed in orange.
    """
    panels = [list(_panels(paint, study, b)) for b in range(len(study.valid))]
    length, total = study.context, study.window.reward.shape[1]
    for t in range(total):
        dreaming = t >= length
        word = f"dreamed step {t - length + 1} of {total - length}" if dreaming else f"context {t + 1} of {length}"
        columns = [f"sequence {b + 1}" for b in range(len(panels))]
        below = [_rewards(study, b, t - length) for b in range(len(panels))] if dreaming else []
        frames = [pictures.ORANGE if dreaming else pictures.GREY] * len(panels)
        yield sheet([row[t] for row in panels], columns, below, [title, word], frames)


def strip(title: str, paint: pictures.Painter, study: Study, most: int = 9) -> np.ndarray:
    """One sequence as a still picture: time from left to right, truth, dream and error below each other."""
    length, horizon = study.context, study.valid.shape[1]
    b = int(study.valid.sum(1).argmax())
    times = np.unique(np.linspace(0, study.valid[b].sum(), min(most, horizon + 1)).round().astype(int)) + length - 1
    panels = list(_panels(paint, study, b))
    columns = [f"step {t - length + 1}" if t >= length else "last seen" for t in times]
    below = [_rewards(study, b, t - length) if t >= length else "" for t in times]
    frames = [pictures.ORANGE if t >= length else pictures.GREY for t in times]
    return sheet([panels[t] for t in times], columns, below, [title, f"sequence {b + 1}"], frames)


def _rewards(study: Study, b: int, i: int) -> str:
    if not study.valid[b, i]:
        return "episode over"
    real, dreamed = study.window.reward[b, study.context + i], study.dream.reward[b, i]
    return f"{real:.2f}, dream {dreamed:.2f}".replace("-0.00", "0.00")


def _panels(paint: pictures.Painter, study: Study, b: int) -> Iterator[list[np.ndarray]]:
    """`[truth, dream, error]` of one sequence, time step by time step; white where the episode is over."""
    for t in range(study.window.reward.shape[1]):
        i = t - study.context
        truth = paint(jax.tree.map(lambda x, t=t: x[b, t], study.window.obs))
        if i < 0:
            yield [truth, truth, np.zeros_like(truth)]
        elif not study.valid[b, i]:
            yield [np.full_like(truth, 255)] * 3
        else:
            dreamed = paint(jax.tree.map(lambda x, i=i: x[b, i], study.dream.obs))
            yield [truth, dreamed, pictures.difference(truth, dreamed)]


def sheet(
    panels: list[list[np.ndarray]], columns: list[str], below: list[str], heading: list[str], frames: list[str]
) -> np.ndarray:
    """Columns of `[truth, dream, error]` panels of one size on a white sheet, with words around them."""
    height, width = panels[0][0].shape[:2]
    left, top, gap, step = 52, 52, 8, max(width, 96) + 10
    size = left + len(panels) * step, top + 3 * (height + gap) + 16
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), pictures.font(11)
    pen.text((4, 4), heading[0], "black", pictures.font(12))
    pen.text((4, 19), heading[1], "black", pictures.font(12))
    for x, column in enumerate(panels):
        pen.text((left + x * step, top - 18), columns[x], "black", font)
        for y, panel in enumerate(column):
            place = left + x * step, top + y * (height + gap)
            canvas.paste(Image.fromarray(panel), place)
            box = (place[0] - 3, place[1] - 3, place[0] + width + 2, place[1] + height + 2)
            pen.rectangle(box, outline=frames[x] if y == 1 else "#DDDDDD", width=3 if y == 1 else 1)
        if below:
            pen.text((left + x * step, size[1] - 16), below[x], "black", font)
    if below:
        pen.text((4, size[1] - 16), "reward", "black", font)
    for y, name in enumerate(("truth", "dream", "error")):
        pen.text((4, top + y * (height + gap) + height / 2 - 6), name, "black", font)
    return np.asarray(canvas)


# --- Numbers ------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any], study: Study) -> Table:
    """Mean errors at the first, a middle and the last step of the dream."""
    horizon = study.valid.shape[1]
    steps = sorted({1, (horizon + 1) // 2, horizon})
    out = Table(title=f"error after 1 to {horizon} dreamed steps, {len(study.valid)} start points")
    for name in ("", "step", *figures.STYLES):
        out.add_column(name, justify="right" if name else "left")
    for name, (unit, curves) in found.items():
        means = [figures.mean_and_band(error)[0] for error in curves.values()]
        for step in steps:
            label = f"{name}, {unit}" if step == 1 else ""
            out.add_row(label, str(step), *(f"{mean[step - 1]:.4f}" for mean in means))
        out.add_section()
    return out


def _write_numbers(path: Path, player: Player, seed: int, study: Study, found: dict[str, Any]) -> Path:
    """All curves as JSON; None where no sequence reaches a step."""
    plain = lambda mean: [None if np.isnan(x) else float(x) for x in mean]  # noqa: E731
    curves = {
        name: {"unit": unit} | {key: plain(figures.mean_and_band(error)[0]) for key, error in errors.items()}
        for name, (unit, errors) in found.items()
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
    )
    path.write_text(json.dumps(about, indent=2) + "\n")
    return path
