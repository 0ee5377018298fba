"""Checkpoints with orbax: the whole `Life` and the cursor, in two items, so that weights load without the replay.

`agent` holds the agent's state `[M, ...]`, `rest` everything else of `Life`, `about` the cursor and what the caller
adds. Nothing is unpickled. A list of checksums is added to each checkpoint once it is complete: orbax itself notices a
truncated file, but not a flipped bit."""

import contextlib
import itertools
import json
import math
import shutil
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from jaxwm.run import machine
from jaxwm.run.json_files import write_json
from jaxwm.training import processes
from jaxwm.training.life import Cursor, Life

ITEMS = ("agent", "rest", "about")
DIGEST = "checksums.json"
FORMAT = 2  # how a whole run is laid out: 1 had one unnamed replay. Weights are the same in both
DAMAGED = "damaged"  # where damaged checkpoints are moved to, beside the good ones' folder


class Restored(NamedTuple):
    """A whole run, the environment step of its checkpoint, and what was saved about it."""

    life: Life
    cursor: Cursor
    about: dict[str, Any]
    step: int


class _Best:
    """An orbax preservation policy: keep the checkpoint with the highest score, the newest of them if there are more.
    Orbax has such a policy, but its scores lie in files whose damage keeps the whole folder from being opened."""

    def __init__(self, scores: dict[int, float]):
        self.scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = max((self.scores.get(c.step, -math.inf), c.step) for c in checkpoints)
        return [best[0] > -math.inf and c.step == best[1] for c in checkpoints]


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a run, saved in the background: the newest `keep` and the one with the highest score. One that
    cannot be written costs itself and one warning: the run goes on. `writing=False` opens them for looking only."""

    def __init__(self, folder: Path, keep: int = 2, writing: bool = True):
        self.folder, self.keep, self.writing = Path(folder).absolute(), keep, writing
        if not writing and not self.folder.is_dir():
            raise FileNotFoundError(_nothing(self.folder))
        self.failed = 0
        self.scores = {int(path.parent.name): _score(path) for path in self.folder.glob(f"*/{DIGEST}")}
        self.saved: Cursor | None = None  # of the newest checkpoint
        self._job: threading.Thread | None = None
        self._error: Exception | None = None
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        """A manager, after what an interrupted save left is removed, as it may be what fills the disk."""
        for path in self.folder.glob("*.orbax-checkpoint-tmp*") if self.writing and processes.first() else ():
            shutil.rmtree(path, ignore_errors=True)
        processes.barrier("checkpoints")
        policy = AnyPreservationPolicy([LatestN(self.keep), _Best(self.scores)])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=self.writing)
        return ocp.CheckpointManager(self.folder, item_names=ITEMS, options=options)

    def save(self, step: int, life: Life, cursor: Cursor, about: dict[str, Any], score: float = -math.inf) -> None:
        """Save under the environment step, or the next free number where learning went on without new steps; what was
        saved last is not saved again. `life` is copied to the host before this returns, so it may be donated next."""
        self.wait()
        if self.steps() and step <= (newest := self.steps()[-1]):
            if cursor == self.saved:
                return
            step = newest + 1
        self.saved, self.scores[step] = cursor, score
        arguments = ocp.args.Composite(
            agent=ocp.args.StandardSave(life.agent),
            rest=ocp.args.StandardSave(life._replace(agent=None)._asdict()),
            about=ocp.args.JsonSave({"format": FORMAT, "cursor": list(cursor), **about}),
        )
        try:
            self._manager.save(step, args=arguments, force=True)
        except Exception as error:  # orbax raises OSError, ValueError and its own
            self._error = error
        self._job = threading.Thread(target=self._complete, args=(step,), name="checkpoint")
        self._job.start()

    def _complete(self, step: int) -> None:
        """In the background: wait for the files, then add the score, and `{file: [bytes, crc32]}` of all of them."""
        try:
            self._manager.wait_until_finished()
            if self._error is None and processes.first():
                folder, score = self.folder / str(step), self.scores[step]
                paths = filter(Path.is_file, sorted(folder.rglob("*")))
                files = {str(path.relative_to(folder)): _crc(path) for path in paths}
                write_json(folder / DIGEST, {"score": score if math.isfinite(score) else None, "files": files})
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Wait for the newest save, and say so if it failed."""
        if self._job is None:
            return
        self._job.join()
        error, self._job, self._error = self._error, None, None
        if not processes.agree(error is not None)[0]:  # a fresh manager is opened by all processes or by none
            return
        self.failed, self.saved = self.failed + 1, None
        with contextlib.suppress(Exception):  # a manager whose save failed does not get over it
            self._manager.close()
        self._manager = self._open()
        if self.failed == 1:
            good = f"the last good one is at step {self.steps()[-1]:,}" if self.steps() else "there is none yet"
            cause = _cause(error) if error else "in another process"
            text = f"a checkpoint could not be written ({cause}); training goes on, {good}"
            warnings.warn(f"{text}. Make room: the next one is tried at its time", stacklevel=3)

    def close(self) -> None:
        """Wait and close. A second call does nothing."""
        self.wait()
        self._manager.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Environment steps of all checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, like: Life) -> Restored:
        """The newest good checkpoint as a whole run; `like` gives structure, shapes, dtypes and places. Damaged ones
        are skipped, and moved away where this was opened for writing. FileNotFoundError without any checkpoint,
        ValueError if none can be read or one was made with another config."""
        parts = {"agent": like.agent, "rest": like._replace(agent=None)._asdict()}
        step, item = self._newest_good(parts, {"agent": like.agent, "rest/rings/real/data": like.ring.data})
        about = {name: value for name, value in item["about"].items() if name != "format"}
        self.saved = Cursor(*about.pop("cursor"))
        return Restored(Life(**{**item["rest"], "agent": item["agent"]}), self.saved, about, step)

    def restore_agent(self, like: Any, which: str = "newest") -> tuple[Any, int]:
        """The agent's state `[M, ...]` and its environment step; errors as in `restore`. `which` is "newest", "best"
        (highest training return) or a step."""
        step, item = self._newest_good({"agent": like}, {"agent": like}, which)
        return item["agent"], step

    def _candidates(self, which: str) -> list[int]:
        """Steps to try, in this order."""
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(_nothing(self.folder))
        if which == "newest":
            return steps[::-1]
        if which == "best":
            return [max(steps, key=lambda step: (self.scores.get(step, -math.inf), step))]
        if not which.isdigit() or int(which) not in steps:
            known = ", ".join(map(str, steps))
            raise ValueError(f"no checkpoint {which!r} in {self.folder}; there are newest, best and {known}")
        return [int(which)]

    def check(self, like: dict[str, Any]) -> None:
        """ValueError where the newest checkpoint has other arrays than `like`, `{"rest/rings/real/data": pytree}`. For
        those who want to know before they compile. A damaged checkpoint is left for `restore` to pass over."""
        if self.steps() and check_digest(place := self.folder / str(self.steps()[-1])) is None:
            _check_arrays(place, like)

    def _check_format(self, step: int) -> None:
        """ValueError for a run that was laid out otherwise; one that cannot be read is left for others to judge."""
        try:
            about: Any = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        except Exception:
            return
        if (found := about.get("format", 1)) != FORMAT:
            place = self.folder / str(step)
            text = f"the checkpoint {place} has format {found}, and this jaxwm resumes format {FORMAT}"
            ways = f"eval, dream, watch, export, or train --from {self.folder.parent}"
            raise ValueError(f"{text}: its weights can be used ({ways})")

    def _newest_good(self, parts: dict[str, Any], like: dict[str, Any], which: str = "newest") -> tuple[int, Any]:
        items: dict[str, Any] = {name: ocp.args.StandardRestore(_shapes(tree)) for name, tree in parts.items()}
        items |= {"about": ocp.args.JsonRestore()} if "rest" in parts else {}
        damaged = []
        for step in self._candidates(which):
            folder = self.folder / str(step)
            if (problem := check_digest(folder)) is None:
                if "about" in items:
                    self._check_format(step)
                _check_arrays(folder, like)
                try:
                    return step, self._manager.restore(step, args=ocp.args.Composite(**items))
                except Exception as error:
                    problem = _cause(error)
                    if (folder / DIGEST).exists():  # else it was killed before the checksums were added
                        text = f"checkpoint {folder} does not fit the run's config.json, or was made by another version"
                        text = f"{text} of jaxwm: restore config.json, or start a new run ({problem})"
                        raise ValueError(text) from error
            damaged.append(str(step))
            warnings.warn(f"checkpoint {folder} is damaged ({problem}){self._put_away(step)}", stacklevel=3)
        raise ValueError(f"no checkpoint in {self.folder} can be read: {', '.join(damaged)} damaged")

    def _put_away(self, step: int) -> str:
        """Move a damaged checkpoint out of the way of the one that will be written in its place."""
        older = [other for other in self.steps() if other < step]
        text = f"; going back to the one at step {older[-1]:,}" if older else ""
        if not self.writing or not processes.first():
            return text
        target = self.folder.parent / DAMAGED
        target.mkdir(exist_ok=True)
        names = (f"{step}" if i == 1 else f"{step}-{i}" for i in itertools.count(1))
        place = next(target / name for name in names if not (target / name).exists())
        shutil.move(self.folder / str(step), place)
        self._manager.reload()
        return f"{text}. It was moved to {place}"


def _nothing(folder: Path) -> str:
    command = machine.resume_command(folder.parent)
    return f"no checkpoint in {folder}: the run stopped before its first one. Start it again with `{command}`"


def _cause(error: BaseException) -> str:
    """The first line of an error, short."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text if len(text) < 200 else text[:200] + " ..."


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their place in it: `pol/params/out/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def misfit(found: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    """Where two pytrees have other shapes: the path and both of its shapes, "absent" for none; None where they agree.
    Of several places one of parameters is named, not of an optimiser, as it says more."""
    a, b = ({path: tuple(leaf.shape) for path, leaf in by_path(tree).items()} for tree in (found, wanted))
    wrong = [path for path in a.keys() | b.keys() if a.get(path) != b.get(path)]
    path = min(wrong, key=lambda path: ("opt" in path.split("/"), len(path), path), default=None)
    return None if path is None else (path, a.get(path, "absent"), b.get(path, "absent"))


def _check_arrays(place: Path, like: dict[str, Any]) -> None:
    """ValueError for other arrays; a checkpoint whose description cannot be read is left for `restore` to judge."""
    for name, tree in like.items():
        item, *inner = name.split("/")
        try:
            stored: Any = ocp.PyTreeCheckpointHandler().metadata(epath.Path(place / item)).tree
            for key in inner:
                stored = stored[key]
        except Exception:
            continue
        if wrong := misfit(stored, tree):
            path, found, wanted = wrong
            text = f"{name}/{path} is {found} in the checkpoint, {wanted} by config.json"
            way = "put back the config.json that the run was started with, or train a new run"
            raise ValueError(f"the checkpoint {place} does not fit its config.json ({text}): {way}")


def _shapes(tree: Any) -> Any:
    """What orbax restores into: on the devices of `tree`, or on the first one; never where the run was saved."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: getattr(x, "sharding", None) or first  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)


def _score(path: Path) -> float:
    """The score in a list of checksums; minus infinity if there is none."""
    try:
        return float(json.loads(path.read_bytes())["score"])
    except (OSError, ValueError, KeyError, TypeError):  # a TypeError for null
        return -math.inf


def check_digest(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is, or if there are no checksums."""
    if not (folder / DIGEST).exists():
        return None
    try:
        for name, expected in json.loads((folder / DIGEST).read_bytes())["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _crc(folder / name) != expected:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{DIGEST}: {_cause(error)}"
    return None


def _crc(path: Path) -> list[int]:
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
