"""`jaxwm data`: what a recording holds, in words and as a contact sheet, and the same in another format."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxwm import data
from jaxwm.data import Episode, Recording
from jaxwm.errors import check_number
from jaxwm.nets.sensors import sensors
from jaxwm.run import cost, flags
from jaxwm.run.flags import optional
from jaxwm.studio import paper, pictures
from jaxwm.types import Box, Spec

FILM = 128  # pixels: about the height of a film of what is no image
FRAME, WIDTH = 96, 800  # pixels: height of a frame of a contact sheet, and what its words may need
LONGEST = 2000  # records of an episode that are drawn as curves
MOST_LINES = 8  # numbers of an observation that are drawn


# --- Films --------------------------------------------------------------------------------------------------------


def filmed(spec: Spec, episodes: Iterable[Episode]) -> tuple[Spec, Iterator[Episode]]:
    """What can be seen of episodes, as images `[T, H, W, 3]` and nothing else: their one image as it is, and else as
    `studio.pictures` paints it. ValueError where there is nothing to see."""
    images = [name for name, struct in sensors(spec.obs).items() if _is_film(struct)]
    painter = None if len(images) == 1 else pictures.painter(spec, FILM)
    if len(images) != 1 and painter is None:
        raise ValueError(f"{spec.name} is seen as numbers only, of which there is no film: take another --format")

    def film(episode: Episode) -> Episode:
        if painter is None:
            return episode._replace(obs=sensors(episode.obs)[images[0]], action=None)
        frames = [painter.paint(_at(episode.obs, t)) for t in range(len(episode.reward))]
        return episode._replace(obs=np.stack(frames), action=None)

    zeros = jax.tree.map(lambda x: np.zeros((1, *x.shape), x.dtype), spec.obs)
    shape = film(Episode(zeros, np.zeros(1, np.float32), None, False)).obs.shape[1:]
    new = replace(spec, obs=jax.ShapeDtypeStruct(shape, np.uint8), action=None, one_hot=False)
    return new, map(film, episodes)


def _is_film(struct: Any) -> bool:
    return struct.dtype == np.uint8 and struct.shape[2:] in ((1,), (3,))


def _at(obs: Any, t: int) -> Any:
    return jax.tree.map(lambda x: x[t], obs)


# --- In words -----------------------------------------------------------------------------------------------------


@dataclass
class _Range:
    """The least and the greatest number seen so far, by column."""

    low: Any = None
    high: Any = None

    def see(self, x: np.ndarray, axis: int | None = None) -> None:
        """Take more into account; `axis=0` keeps columns apart."""
        low, high = x.min(axis), x.max(axis)
        self.low = low if self.low is None else np.minimum(low, self.low)
        self.high = high if self.high is None else np.maximum(high, self.high)


def describe(recording: Recording, console: Console, records: int) -> None:
    """Print episodes, lengths, returns, sensors, actions and their ranges, the latter of the first `records`."""
    spec, length = recording.spec, recording.length
    ranges: dict[str, _Range] = {}
    returns = np.zeros(len(length))
    options = np.zeros(int(np.sum(getattr(spec.action, "n", 0))), np.int64)
    seen = last = 0
    for episode, piece in recording.pieces(records):
        for name, x in _columns(spec, piece).items():
            ranges.setdefault(name, _Range()).see(x, 0 if name == "action" else None)
        if len(options) and spec.action is not None:
            options += _count(spec, piece.action)
        returns[episode] += piece.reward.sum(dtype=np.float64)
        seen, last = seen + len(piece.reward), episode + 1
    total = int(length.sum())
    where = f" of {recording.env}" if recording.env else ""
    console.print(f"{recording.path}: {recording.format}, {total:,} records in {len(length):,} episodes{where}, "
                  f"{cost.human(_size(recording.path), 'B')}", highlight=False, soft_wrap=True)  # fmt: skip
    spread = lambda x: f"{_plain(x.min())} to {_plain(x.max())}, mean {_plain(x.mean())}"  # noqa: E731
    console.print(f"length: {spread(length)} records", highlight=False)
    console.print(f"return: {spread(returns[:last])}", highlight=False)
    console.print(_table(spec, ranges, options))
    if seen < total:
        console.print(f"returns and ranges are those of the first {seen:,} records (--records)", highlight=False)


def _columns(spec: Spec, piece: Episode) -> dict[str, np.ndarray]:
    """All numbers of a piece, by name."""
    obs = piece.obs if isinstance(piece.obs, dict) else {"observation": piece.obs}
    action = {"action": piece.action} if isinstance(spec.action, Box) and piece.action is not None else {}
    return {name: np.asarray(x) for name, x in obs.items()} | {"reward": piece.reward} | action


def _count(spec: Spec, action: Any) -> np.ndarray:
    """How often each option of each choice was taken."""
    sizes = np.atleast_1d(getattr(spec.action, "n", 0))
    action = action.reshape(len(action), -1)
    return np.concatenate([np.bincount(action[:, i], minlength=n)[:n] for i, n in enumerate(sizes)])


def _table(spec: Spec, ranges: dict[str, _Range], options: np.ndarray) -> Table:
    table = Table("", "type", "shape", "least", "greatest")
    structs: dict[str, Any] = dict(spec.obs) if isinstance(spec.obs, dict) else {"observation": spec.obs}
    structs["reward"] = jax.ShapeDtypeStruct((), np.float32)
    for name, struct in structs.items():
        low, high = (_plain(x) for x in (ranges[name].low, ranges[name].high))
        table.add_row(name, np.dtype(struct.dtype).name, " x ".join(map(str, struct.shape)) or "1", low, high)
    if isinstance(spec.action, Box):
        ends = ranges["action"].low, ranges["action"].high
        low, high = (" ".join(_plain(x) for x in end[:6]) for end in ends)
        table.add_row("action", "float32", str(spec.action.size), low, high)
    elif spec.action is not None:
        share = " ".join(f"{n / max(1, options.sum()):.0%}" for n in options[:12])
        table.add_row("action", "choice", " x ".join(map(str, np.atleast_1d(spec.action.n))), "", f"taken: {share}")
    else:
        table.add_row("action", "none", "", "", "")
    return table


def _plain(x: Any) -> str:
    """A number with up to four digits."""
    return f"{float(x):.4g}"


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


# --- As a picture -------------------------------------------------------------------------------------------------


def sheet(recording: Recording, episodes: int, frames: int) -> np.ndarray:
    """A contact sheet: some episodes from the first to the last, each as so many frames from its begin to its end, or,
    where there is nothing to see, as curves."""
    spec, count = recording.spec, len(recording.length)
    painter = pictures.painter(spec, FRAME)
    labels = [] if painter else pictures.numbers(jax.tree.map(lambda s: np.zeros(s.shape), spec.obs), spec)[0]
    title = [f"{recording.path.name}: {recording.format}, {recording.length.sum():,} records, {count:,} episodes"]
    parts = [paper.lines(title, paper.TITLE, bold=True)]
    for episode in np.unique(np.linspace(0, count - 1, episodes).round().astype(int)).tolist():
        length = int(recording.length[episode])
        parts.append(paper.lines([f"episode {episode}, {length:,} records"]))
        if painter:
            shown = np.unique(np.linspace(0, length - 1, frames).round().astype(int)).tolist()
            one = [_at(recording.load(episode, t, 1).obs, 0) for t in shown]
            parts.append(paper.row([_captioned(painter.paint(x), t) for x, t in zip(one, shown, strict=True)]))
        else:
            _, values = pictures.numbers(recording.load(episode, 0, min(length, LONGEST)).obs, spec)
            parts.append(paper.framed(paper.strips(labels[:MOST_LINES], values[:, :MOST_LINES], len(values) - 1)))
    if painter and painter.colours:
        parts.append(paper.legend(painter.colours, WIDTH))
    return paper.page(parts)


def _captioned(picture: np.ndarray, t: int) -> np.ndarray:
    return paper.stack([paper.framed(picture), paper.lines([f"{t:,}"])], 2)


# --- Commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What commands that read a recording have in common."""

    path: tyro.conf.Positional[Path]
    """Recording: a folder of jaxwm, Minari or LeRobot (v3), a film, or a folder of films or of PNG frames."""
    data_option: Annotated[dict[str, Any], flags.OPTIONS, optional("NAME=VALUE")] = field(
        default_factory=dict, kw_only=True
    )
    """How it is seen (image_size=64 sensors=camera,state)."""

    def open(self) -> Recording:
        """The recording."""
        return data.open_recording(self.path, **self.data_option)


@dataclass(frozen=True)
class Info(Options):
    """Print what a recording holds: format, episodes, lengths, returns, sensors, actions, ranges."""

    records: int = 100_000
    """Records from which returns and ranges are taken."""

    def __call__(self) -> None:
        check_number("--records", self.records, least=1, whole=True)
        describe(self.open(), Console(), self.records)


@dataclass(frozen=True)
class Convert(Options):
    """Write a recording in another format, or with images of another size. Episodes of more than 64 MB are cut."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write; one with a recording of the same grows."""
    format: str = "npy"
    """Format: npy (arrays, our own and the fastest), npz (a file per episode), minari, lerobot or mp4."""

    def __call__(self) -> None:
        recording, console = self.open(), Console()
        spec, total = recording.spec, int(recording.length.sum())
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("converting", total=total)

            def passing() -> Iterator[Episode]:
                for _, piece in recording.pieces():
                    yield piece
                    progress.advance(task, len(piece.reward))

            episodes: Iterator[Episode] = passing()
            if self.format == "mp4":
                spec, episodes = filmed(spec, episodes)
            records = data.append(self.out, spec, episodes, recording.env, self.format)
        print(f"{self.out}: {records:,} records, {cost.human(_size(self.out), 'B')}")


@dataclass(frozen=True)
class Show(Options):
    """Draw a contact sheet of a recording: frames of some of its episodes, or curves of their numbers."""

    episodes: int = 6
    """Episodes, from the first to the last."""
    frames: int = 8
    """Frames of each."""
    out: Annotated[Path | None, optional("FILE.png")] = None
    """File to write (default: PATH.png, next to the recording)."""

    def __call__(self) -> None:
        for name in ("episodes", "frames"):
            check_number(f"--{name}", getattr(self, name), least=1, whole=True)
        out = self.out or self.path.resolve().with_suffix(".png")
        if out.suffix != ".png" or not out.parent.is_dir():
            raise ValueError(f"--out must be FOLDER/NAME.png in a folder that exists, got {out}")
        Image.fromarray(sheet(self.open(), self.episodes, self.frames)).save(out)
        print(out)


COMMANDS: dict[str, type] = dict(info=Info, convert=Convert, show=Show)
