"""`jaxwm watch`: the policy of a run in the real environment, as a video."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jaxwm.studio import episodes, names, paper, pictures, video
from jaxwm.studio.episodes import Player
from jaxwm.types import Record, Spec

SIZE, WIDTH = 256, 330  # pixels: the height of a picture, about; what the words below it may need
MOST_LINES = 12  # numbers of an observation that are shown
FPS, MOST_FRAMES, MOST_BYTES = 15, 450, 2_000_000
"""Most frames per second, most frames (30 seconds), and most bytes of a GIF; beyond them frames are left out."""


@dataclass(frozen=True)
class Settings:
    """What to record."""

    episodes: int = 2  # played at once and shown one after the other
    max_steps: int = 500  # after which the recording stops
    mode: str = "greedy"  # policy: greedy or explore

    def __post_init__(self):
        for name in ("episodes", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.mode not in ("greedy", "explore"):
            raise ValueError(f"--mode is greedy or explore, not {self.mode!r}")


def watch(player: Player, out: Path, settings: Settings, console: Console) -> list[float]:
    """Record episodes of a run's policy, write them as the video `out` and print the returns."""
    spec = player.envs(1).spec
    played = _play(player, settings, console)
    with console.status("drawing"):
        every = -(-sum(len(episode.reward) for episode in played) // MOST_FRAMES)
        title = [*player.title().split(", ", 1), f"{settings.mode} policy"]
        frames = [frame for i, episode in enumerate(played) for frame in film(title, spec, episode, i, every)]
        out.parent.mkdir(parents=True, exist_ok=True)
        every *= video.write(out, frames, min(FPS, max(3, len(frames) / 10)), MOST_BYTES)
    returns = [float(episode.reward.sum()) for episode in played]
    for i, (episode, total) in enumerate(zip(played, returns, strict=True)):
        cut = "" if episode.is_last[-1] else f", without an end (--max-steps {settings.max_steps})"
        console.print(f"episode {i + 1}: return {total:.2f} in {len(episode.reward) - 1} steps{cut}", highlight=False)
    if every > 1:
        console.print(f"one frame for every {every} steps: the video would be too long or too large otherwise")
    console.print(f"  {out}", soft_wrap=True, highlight=False)
    return returns


def _play(player: Player, settings: Settings, console: Console) -> list[Record]:
    """One episode of every environment, `[T, ...]` each; stops when all have ended."""
    rows, ended = [], np.zeros(settings.episodes, bool)
    steps = track(range(settings.max_steps + 1), f"playing {player.plan.env}", console=console, transient=True)
    play: Any = (player.agent, player.envs(settings.episodes), player.state, player.key, settings.mode)
    with closing(episodes.play(*play)) as plays:
        for _ in steps:
            rows.append(next(plays))
            ended |= rows[-1].is_last
            if ended.all():
                break
    return episodes.episodes(episodes.record(rows))


def film(title: list[str], spec: Spec, episode: Record, number: int, every: int = 1) -> Iterator[np.ndarray]:
    """Frames of an episode `[T, ...]`, one for every so many records and the last: title, picture, numbers, words.
    All frames have one size, whatever the episode."""
    painter = pictures.painter(spec, SIZE)
    labels, values = pictures.numbers(episode.obs, spec)
    labels, values = labels[:MOST_LINES], values[..., :MOST_LINES]
    total, count = np.cumsum(episode.reward), len(episode.reward)
    head = paper.stack([paper.lines(title[:1], paper.TITLE, bold=True), paper.lines([", ".join(title[1:])])], 0)
    foot = [paper.legend(painter.colours, WIDTH)] if painter and painter.colours else []
    for t in [*range(0, count - 1, every), count - 1]:
        obs = {name: x[t] for name, x in episode.obs.items()} if isinstance(episode.obs, dict) else episode.obs[t]
        parts = [paper.framed(painter.paint(obs))] if painter else []
        parts += [paper.framed(paper.strips(labels, values, t, len(parts[0]) - 2 if parts else 0))] if labels else []
        words = [
            f"episode {number + 1}, step {t}",
            "end of the episode" if episode.is_last[t] else f"next: {names.action(spec, episode.action[t])}",
            f"reward {names.plain(episode.reward[t])}   return {names.plain(total[t])}",
        ]
        yield paper.page([head, paper.row(parts), *foot, paper.lines(words, width=WIDTH)])
