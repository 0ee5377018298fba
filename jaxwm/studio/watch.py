"""`jaxwm watch`: the policy of a run in the real environment, as a video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jaxwm.studio import episodes, pictures
from jaxwm.studio.episodes import Player
from jaxwm.types import Record, Spec

WIDTH = 250
"""Pixels that a caption needs."""


@dataclass(frozen=True)
class Settings:
    """What to record."""

    episodes: int = 2
    """Episodes, played at once and shown one after the other."""
    max_steps: int = 500
    """Steps after which an episode is cut off."""
    mode: str = "greedy"
    """Policy: greedy or explore."""

    def __post_init__(self):
        for name in ("episodes", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.mode not in ("greedy", "explore"):
            raise ValueError(f"--mode is greedy or explore, not {self.mode!r}")


def watch(
    folder: Path,
    out: Path | None,
    member: int,
    seed: int,
    settings: Settings,
    video: str,
    console: Console,
    checkpoint: str = "newest",
) -> list[float]:
    """Record episodes of a run's policy, write the video (default: `folder`/watch.gif) and print the returns.

    The suffix of `out`, where it has one, decides the format. FileNotFoundError without run or checkpoint, ValueError
    for a wrong member or format, ImportError for mp4 without ffmpeg.
    """
    path = out or (folder.parent if folder.is_file() else folder) / f"watch.{video}"
    path = path if path.suffix else path.with_suffix(f".{video}")
    pictures.check_format(path.suffix[1:])
    player = episodes.open_player(folder, member, seed, checkpoint)
    spec = player.envs(1).spec
    played = _play(player, settings, console)
    with console.status("drawing"):
        frames = [frame for i, episode in enumerate(played) for frame in film(spec, episode, i)]
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.write_video(path, frames, min(15, max(3, len(frames) / 10)))
    returns = [float(episode.reward.sum()) for episode in played]
    for i, (episode, total) in enumerate(zip(played, returns, strict=True)):
        cut = "" if episode.is_last[-1] else f", cut off by --max-steps {settings.max_steps}"
        console.print(f"episode {i + 1}: return {total:.2f} in {len(episode.reward) - 1} steps{cut}", highlight=False)
    console.print(f"  {path}", soft_wrap=True, highlight=False)
    return returns


def _play(player: Player, settings: Settings, console: Console) -> list[Record]:
    """The first episode of every environment, `[T, ...]` each; stops when all have ended."""
    mode: Any = settings.mode
    rows, ended = [], np.zeros(settings.episodes, bool)
    steps = track(range(settings.max_steps + 1), f"playing {player.plan.env}", console=console, transient=True)
    env = player.envs(settings.episodes)
    with closing(episodes.play(player.agent, env, player.state, player.key, mode)) as plays:
        for _ in steps:
            rows.append(next(plays))
            ended |= rows[-1].is_last
            if ended.all():
                break
    return episodes.episodes(episodes.record(iter(rows), len(rows)))


def film(spec: Spec, episode: Record, number: int) -> Iterator[np.ndarray]:
    """A frame for each record of an episode `[T, ...]`, with step, action, reward and return below."""
    paint = pictures.painter(spec, 256)
    names, values = pictures.numbers(episode.obs, spec.obs)
    names, values = names[:12], values[..., :12]
    total = np.cumsum(episode.reward)
    for t in range(len(episode.reward)):
        obs = {name: x[t] for name, x in episode.obs.items()} if isinstance(episode.obs, dict) else episode.obs[t]
        parts = [paint(obs)] if paint else []
        parts += [pictures.strips(names, values, t, len(parts[0]) if parts else 0)] if names else []
        lines = [
            f"episode {number + 1}   step {t}",
            "end" if episode.is_last[t] else f"action {_word(episode.action[t])}",
            f"reward {episode.reward[t]:.2f}   return {total[t]:.2f}",
        ]
        yield pictures.caption(pictures.beside(parts), lines, WIDTH)


def _word(action: Any) -> str:
    """An action in few letters."""
    if np.issubdtype(action.dtype, np.integer):
        return " ".join(map(str, np.ravel(action)))
    return " ".join(f"{x:+.2f}" for x in np.ravel(action)[:6])
