"""Video as recordings without actions: a file, a folder of MP4, GIF and the like with an episode in each, a folder of
PNG or JPEG frames (one episode), or of such folders.

Frames are uint8 `[T, H, W, 3]`, the reward is 0, and no episode has a true end. MP4 and its kin are decoded by PyAV, by
frame number: a decoder stays where it is as long as frames are read in order, and else begins at the key frame
before."""

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from PIL import Image

from jaxwm.data.recording import Episode, Recording
from jaxwm.types import Spec

FILMS, FRAMES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"), (".png", ".jpg", ".jpeg")
MOVING = (*FILMS, ".gif")
OPEN = 16  # films that are open at once, each with some frames in its decoder
RATE = 15  # frames per second of what is written
QUALITY = {"crf": "12", "preset": "veryfast"}  # of H.264: small differences that no eye sees

T = TypeVar("T")


class Film(Protocol):
    """Something with frames that are read by number."""

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames `[count, H, W, 3]`."""
        ...

    def close(self) -> None:
        """Let the file go."""
        ...


# --- What is there ------------------------------------------------------------------------------------------------


def _naturally(path: Path) -> list[Any]:
    """The order in which people count: frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    return sorted(found, key=_naturally)


def _only_frames(folder: Path) -> bool:
    """Whether a folder holds frames and nothing else."""
    if not folder.is_dir():
        return False
    found = {p.suffix.lower() for p in folder.iterdir() if not p.name.startswith(".")}
    return bool(found) and found <= set(FRAMES)


def _sources(path: Path) -> list[Path | list[Path]]:
    """The episodes below a path: films, or lists of frames."""
    if path.is_file():
        return [path] if path.suffix.lower() in MOVING else []
    if not path.is_dir():
        return []
    if films := _files(path, MOVING):
        return list(films)
    if frames := _files(path, FRAMES):
        return [frames]
    inside = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=_naturally)
    return [_files(p, FRAMES) for p in inside] if all(map(_only_frames, inside)) else []


def is_video(path: Path) -> bool:
    """Whether there is a film, or frames, at a path."""
    return bool(_sources(path))


def open_video(path: Path) -> Recording:
    """Films and frames at a path. ValueError where one cannot be read, ImportError where it takes PyAV."""
    sources = _sources(path)
    measured = [_measure(source) for source in sources]
    sizes = {size: source for source, (_, size) in zip(sources, measured, strict=True)}
    height, width = measured[0][1]
    mixed = ""
    if len(sizes) > 1:
        some = " and ".join(f"{_name(source)} ({h} x {w})" for (h, w), source in list(sizes.items())[:2])
        mixed = f"{path} holds images of several sizes, such as {some}: resize them with image_size=64"
    opened: Callable[[int], Film] = lambda i: _open(sources[i])  # noqa: E731
    films = library(opened)
    length = np.array([frames for frames, _ in measured], np.int64)

    def load(episode: int, begin: int, count: int) -> Episode:
        end = min(begin + count, int(length[episode]))
        obs = films(episode).frames(begin, end - begin)
        return Episode(obs, np.zeros(len(obs), np.float32), None, False)

    spec = Spec(path.name, jax.ShapeDtypeStruct((height, width, 3), np.uint8), None)
    return Recording(path, "video", spec, length, load, mixed=mixed)


def _name(source: Path | list[Path]) -> str:
    return source.name if isinstance(source, Path) else source[0].parent.name


def _measure(source: Path | list[Path]) -> tuple[int, tuple[int, int]]:
    """Frames, and their height and width."""
    if isinstance(source, list):
        return len(source), _read_image(source[0]).shape[:2]
    with contextlib.closing(_open(source)) as film:
        return film.length, film.size


def _open(source: Path | list[Path]) -> Any:
    if isinstance(source, list):
        return _Frames(source)
    return _Gif(source) if source.suffix.lower() == ".gif" else Clip(source)


def library(open_one: Callable[[T], Film]) -> Callable[[T], Film]:
    """Films by name; the `OPEN` that were read last stay open."""
    kept: dict[T, Film] = {}

    def get(name: T) -> Film:
        film = kept.pop(name, None) or open_one(name)
        kept[name] = film  # the newest is the last
        while len(kept) > OPEN:
            kept.pop(next(iter(kept))).close()
        return film

    return get


# --- Reading ------------------------------------------------------------------------------------------------------


class Clip:
    """A film that PyAV decodes. ValueError where it cannot."""

    def __init__(self, file: Path):
        try:
            import av
            from av.error import FFmpegError
        except ImportError as error:
            raise ImportError(f"{file} needs av to be read: pip install 'jaxwm[data]'") from error
        self.file, self._errors = file, (FFmpegError, OSError, ValueError)
        try:
            self._container: Any = av.open(str(file))
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1  # each thread would hold frames of its own
            self.size = self._stream.codec_context.height, self._stream.codec_context.width
            self._check_end()
        except (*self._errors, IndexError) as error:
            raise self._damaged(error) from None
        self._times: list[int] | None = None
        self._timed = True
        self._decoder: Any = None
        self._next = -1

    def _damaged(self, error: Any) -> ValueError:
        return ValueError(f"{self.file} cannot be read as a video: {getattr(error, 'strerror', None) or error}")

    def _check_end(self) -> None:
        """ValueError where the container promises more than the file has."""
        entries: Any = getattr(self._stream, "index_entries", ())  # an older PyAV has none
        if len(entries) and entries[-1].pos + entries[-1].size > self.file.stat().st_size:
            raise ValueError("it is cut short")

    @property
    def length(self) -> int:
        """Frames, as the container says, or counted where it does not."""
        return self._stream.frames or len(self.times)

    @property
    def times(self) -> list[int]:
        """The time of each frame, in units of the stream, found without decoding."""
        if self._times is None:
            self._container.seek(self._stream.start_time or 0, stream=self._stream)
            packets = [packet for packet in self._container.demux(self._stream) if packet.size]
            times: list[Any] = [packet.pts for packet in packets]
            self._timed = None not in times
            self._times = sorted(times) if self._timed else list(range(len(times)))
        return self._times

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames `[count, H, W, 3]`. ValueError where one cannot be decoded."""
        try:
            if self._next != first:
                self._go_to(first)
            self._next = -1
            found = [next(self._decoder).to_ndarray(format="rgb24") for _ in range(count)]
        except (StopIteration, IndexError):
            raise ValueError(f"{self.file} has fewer frames than it says: encode it again") from None
        except self._errors as error:
            raise self._damaged(error) from None
        self._next = first + count
        return np.stack(found)

    def _go_to(self, number: int) -> None:
        """Begin to decode so that the next frame is this one."""
        times = self.times
        self._container.seek(times[number] if self._timed else 0, stream=self._stream)
        decoder = self._container.decode(self._stream)
        if self._timed:  # from the key frame before
            frame = next(frame for frame in decoder if (frame.pts or 0) >= times[number])
        else:
            frame = next(islice(decoder, number, None))
        self._decoder = chain([frame], decoder)

    def close(self) -> None:
        """Let the file go."""
        self._container.close()


class _Gif:
    """A GIF, decoded by Pillow."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self._image = Image.open(file, formats=("GIF",))
            weakref.finalize(self, self._image.close)
            self.length, self.size = getattr(self._image, "n_frames", 1), self._image.size[::-1]
        except (OSError, ValueError, SyntaxError) as error:
            raise _unreadable(file, error) from None

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames `[count, H, W, 3]`."""
        found = []
        for number in range(first, first + count):
            try:
                self._image.seek(number)
                found.append(np.asarray(self._image.convert("RGB")))
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise _unreadable(self.file, error) from None
        return np.stack(found)

    def close(self) -> None:
        """Let the file go."""
        self._image.close()


class _Frames:
    """A folder of frames."""

    def __init__(self, files: list[Path]):
        self.files = files

    def frames(self, first: int, count: int) -> np.ndarray:
        """Frames `[count, H, W, 3]`. ValueError where one is not as large as the first."""
        found = [_read_image(file) for file in self.files[first : first + count]]
        for file, image in zip(self.files[first:], found, strict=False):
            if image.shape != found[0].shape:
                a, b = (f"{x.shape[0]} x {x.shape[1]}" for x in (found[0], image))
                raise ValueError(f"{file} is {b}, and other frames of its episode are {a}")
        return np.stack(found)

    def close(self) -> None:
        """There is nothing to let go."""


def _read_image(file: Path) -> np.ndarray:
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read as an image: {error}")


# --- Writing ------------------------------------------------------------------------------------------------------


def encode(file: Path, frames: Iterable[np.ndarray], rate: int = RATE) -> None:
    """Write images uint8 `[T, H, W, C]`, given in pieces and with C = 1 or 3, as one film in H.264."""
    import av

    pace: Any = rate
    with av.open(str(file), "w", format="mp4") as container:
        stream: Any = None
        for image in (image for piece in frames for image in piece):
            if stream is None:
                height, width = image.shape[:2]
                whole = f"yuv4{20 if height % 2 == width % 2 == 0 else 44}p"  # players know the first, for even sizes
                stream = container.add_stream("libx264", rate=pace, options=QUALITY)
                stream.height, stream.width, stream.pix_fmt = height, width, whole
            picture = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_mp4(folder: Path, spec: Spec, episodes: Iterable[Episode], env: str | None) -> None:
    """Add one film per episode; rewards and actions are not kept. ValueError unless observations are one image of one
    or three channels."""
    shape = getattr(spec.obs, "shape", ())
    if not isinstance(spec.obs, jax.ShapeDtypeStruct) or spec.obs.dtype != np.uint8 or shape[2:] not in ((1,), (3,)):
        raise ValueError(f"a film holds one image sensor with 1 or 3 channels, and {spec.name} observes {spec.obs}")
    for number, episode in enumerate(episodes, len(_files(folder, FILMS))):
        encode(folder / f"{number:06d}.mp4", [episode.obs])
