"""The formats of recordings: which one a path holds, and who reads and writes it.

A format is a row of `READERS`: a function that recognises a path by what lies there, and one that opens it. Modules
that need an extra are imported when they are used."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jaxwm.data import files, images, lerobot, minari, video
from jaxwm.data.recording import Episode, Recording, describe, read_about
from jaxwm.errors import check_choice, check_options
from jaxwm.types import Spec


class Reader(NamedTuple):
    """How a format is recognised, cheaply and by names of files, and opened; packages that this needs, by extra."""

    recognises: Callable[[Path], bool]
    open: Callable[[Path], Recording]
    needs: tuple[str, ...] = ()


class Writer(NamedTuple):
    """`write(folder, spec, episodes, env)` adds episodes to a folder that is empty, or holds such a recording."""

    write: Callable[[Path, Spec, Iterable[Episode], str | None], None]
    needs: tuple[str, ...] = ()
    grows: bool = True


READERS: dict[str, Reader] = {
    "lerobot": Reader(lerobot.is_lerobot, lerobot.open_lerobot, ("pyarrow",)),
    "minari": Reader(minari.is_minari, minari.open_minari, ("minari", "h5py")),
    "npz": Reader(files.is_npz, files.open_npz),
    "npy": Reader(files.is_npy, files.open_npy),
    "video": Reader(video.is_video, video.open_video),
}
"""Tried in this order."""

WRITERS: dict[str, Writer] = {
    "npy": Writer(files.write_npy),
    "npz": Writer(files.write_npz),
    "minari": Writer(minari.write_minari, ("minari", "h5py")),
    "lerobot": Writer(lerobot.write_lerobot, ("pyarrow", "av"), grows=False),
    "mp4": Writer(video.write_mp4, ("av",)),
}

EXTRAS = {"minari": "minari", "h5py": "minari", "pyarrow": "data", "av": "data"}
"""Package -> the extra of jaxwm that installs it."""

OPTIONS = {"image_size", "sensors"}


def open_recording(path: str | Path, **options: Any) -> Recording:
    """What a path holds, in whatever format. `image_size=64` resizes every image to 64 x 64, `sensors="top,state"`
    keeps some sensors only.

    Raises:
        FileNotFoundError: there is nothing, or nothing that is a recording.
        ImportError: its format needs a package that is not installed.
        ValueError: it is damaged, or holds what cannot be read; an unknown option."""
    path = Path(path)
    check_options("a recording", options, OPTIONS)
    name = next((name for name, reader in READERS.items() if reader.recognises(path)), None)
    if name is None:
        read_about(path)  # says that there is none
        raise ValueError(f"{path} holds no recording of a known format ({', '.join(READERS)})")
    need(f"{path} is a {name} recording, which", READERS[name].needs)
    return images.viewed(READERS[name].open(path), **options)


def need(what: str, packages: Iterable[str]) -> None:
    """ImportError, which begins with `what`, where a package is missing."""
    for package in packages:
        if package not in EXTRAS or _is_installed(package):
            continue
        raise ImportError(f"{what} needs {package}: pip install 'jaxwm[{EXTRAS[package]}]'")


def _is_installed(package: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return find_spec(package) is not None
    return False


def append(
    folder: str | Path, spec: Spec, episodes: Iterable[Episode], env: str | None = None, format: str = "npy"
) -> int:
    """Add episodes to a recording, or begin one where there is none; how many records it has now. Episodes are taken
    one by one, and nothing is left of them where that, or writing, fails.

    Raises:
        ValueError: an unknown format; the folder holds a recording of something else, or files of another kind.
        ImportError: the format needs a package that is not installed.
        OSError: it cannot be written.
    """
    check_choice("the format", format, WRITERS)
    folder, writer = Path(folder), WRITERS[format]
    need(f"writing {format}", writer.needs)
    _check_place(folder, spec, env, format)
    with _at_once(folder) as new:
        writer.write(new, spec, _not_none(folder, episodes), env)
    return int(open_recording(folder).length.sum())


def _check_place(folder: Path, spec: Spec, env: str | None, format: str) -> None:
    """ValueError unless a folder is new, empty, or a recording of the same to which episodes can be added."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not any(reader.recognises(folder) for reader in READERS.values()):
        raise ValueError(f"{folder} holds other files: choose a new folder for a recording")
    there = open_recording(folder)
    if there.format != {"mp4": "video"}.get(format, format) or not WRITERS[format].grows:
        raise ValueError(f"{folder} holds a {there.format} recording, to which no {format} is added: choose another")
    old, new = describe(there.spec, there.env), describe(spec, env)
    if format == "mp4":  # which knows no more
        old, new = ({"obs": x["obs"]} for x in (old, new))
    if wrong := [name for name in new if old[name] != new[name]]:
        raise ValueError(
            f"{folder} holds a recording with another {wrong[0]} ({old[wrong[0]]}, now {new[wrong[0]]}): choose "
            "another folder"
        )


def _not_none(folder: Path, episodes: Iterable[Episode]) -> Iterator[Episode]:
    count = 0
    for count, episode in enumerate(episodes, 1):  # noqa: B007
        yield episode
    if not count:
        raise ValueError(f"there are no episodes to write to {folder}")


@contextlib.contextmanager
def _at_once(folder: Path) -> Iterator[Path]:
    """A folder with what `folder` holds, which takes its place at the end, or is gone where something failed."""
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    try:
        if folder.exists():
            shutil.copytree(folder, new, copy_function=_copy)
        else:
            new.mkdir()
        yield new
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
        shutil.rmtree(old, ignore_errors=True)  # only now: whatever happens, one of the two is there
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _copy(source: str, target: str) -> None:
    """A copy of a file; of one that is never written again a second name will do."""
    with contextlib.suppress(OSError):
        if Path(source).suffix in (".npy", ".npz", ".mp4"):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def recorded_env(path: str | Path, **options: Any) -> str | None:
    """The name of the environment that a recording comes from; None where it has none. As `open_recording`."""
    return open_recording(path, **options).env
