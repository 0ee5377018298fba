"""Recordings as a source of records: all episodes in an order of the seed's, cut into streams side by side.

What is read depends on nothing but the row that is asked for, so a run that goes on from a checkpoint reads what it
would have read. Two blocks of rows are in memory: the one that is used, and the next, which a thread reads."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwm.data.recording import Recording, blank_actions
from jaxwm.envs import border
from jaxwm.types import Box, Data, Record, Spec

HELD_OUT = 20
"""One of so many episodes is kept apart for scores, where there are as many."""

BLOCK = 64  # most rows of a block


class _Run(NamedTuple):
    """Records that are neighbours on disk, and where they go: row and stream of a block."""

    episode: int
    first: int
    count: int
    row: int
    stream: int


class _Layout:
    """Which record of a recording is where in the streams of the numbers `own`, of so many streams in all."""

    def __init__(self, recording: Recording, order: np.ndarray, streams: int, own: range):
        self.recording, self.order, self.own = recording, order, own
        self.length = recording.length[order]
        self.ends = np.cumsum(self.length)
        self.rows = int(self.ends[-1]) // streams
        if self.rows < 1:
            have = f"{recording.path} holds {self.ends[-1]} records"
            raise ValueError(f"{have}, fewer than {streams} streams: lower --envs")

    def runs(self, first: int, count: int) -> Iterator[_Run]:
        """The runs of rows `first` to `first + count`; a stream begins again after its last row."""
        for place, stream in enumerate(self.own):
            done = 0
            while done < count:
                row = (first + done) % self.rows
                at = stream * self.rows + row
                k = int(np.searchsorted(self.ends, at, "right"))
                take = min(count - done, self.rows - row, int(self.ends[k]) - at)
                yield _Run(int(self.order[k]), at - int(self.ends[k] - self.length[k]), take, done, place)
                done += take

    def load(self, first: int, count: int) -> tuple[Any, np.ndarray]:
        """Observations, rewards and actions of rows `[count, streams, ...]`, and which are first, last, true ends."""
        block = _blank(self.recording.spec, count, len(self.own))
        marks = np.zeros((count, len(self.own), 3), bool)
        for run in self.runs(first, count):
            piece = self.recording.load(run.episode, run.first, run.count)
            here = slice(run.row, run.row + run.count), run.stream
            for into, x in zip(jax.tree.leaves(block), jax.tree.leaves(tuple(piece[:3])), strict=True):
                into[here] = x
            last = run.row + run.count - 1
            marks[run.row, run.stream, 0] |= run.first == 0
            marks[last, run.stream, 1] |= run.first + run.count == self.recording.length[run.episode]
            marks[last, run.stream, 2] = piece.terminal
        row = (first + np.arange(count)) % self.rows  # a stream is cut where the next begins
        marks[row == 0, :, 0], marks[row == self.rows - 1, :, 1] = True, True
        return block, marks


def streams_of(
    recording: Recording, streams: int = 1, seed: int = 0, held_out: bool = False, part: tuple[int, int] = (0, 1)
) -> Data:
    """`Data` of a recording; see `data.open_data`."""
    which, parts = part
    if streams % parts or not 0 <= which < parts:
        raise ValueError(f"part {which} of {parts} of {streams} streams is no whole number of them")
    own = range(which * streams // parts, (which + 1) * streams // parts)
    layout = _Layout(recording, _order(len(recording.length), seed, held_out), streams, own)
    size = min(BLOCK, layout.rows, recording.fit(len(own)))
    blocks = _Ahead(lambda number: layout.load(number * size, size))
    told: set[str] = set()

    def read(first: int, count: int) -> Record:
        found, done = [], 0
        while done < count:
            number, begin = divmod(first + done, size)
            take = min(count - done, size - begin)
            found.append(jax.tree.map(lambda x, a=begin, n=take: x[a : a + n], blocks.get(number)))
            done += take
        block, marks = found[0] if len(found) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *found)
        return _checked(recording, block, marks, told)

    return Data(recording.spec, read, layout.rows, len(own), recording.env)


class _Ahead:
    """Blocks by number; while one is used a thread reads the next."""

    def __init__(self, read: Callable[[int], Any]):
        self._read, self._thread = read, ThreadPoolExecutor(1)
        self._blocks: dict[int, Future] = {}

    def get(self, number: int) -> Any:
        """A block. Raises what reading it raised."""
        before, wanted = self._blocks, (number, number + 1)
        for other in before.keys() - set(wanted):
            before[other].cancel()
        self._blocks = {n: before.get(n) or self._thread.submit(self._read, n) for n in wanted}
        return self._blocks[number].result()


def _order(episodes: int, seed: int, held_out: bool) -> np.ndarray:
    """Episodes, shuffled: those that are learned from, or those that are kept apart."""
    order = np.random.default_rng(seed).permutation(episodes)
    apart = episodes // HELD_OUT
    chosen = order[:apart] if held_out else order[apart:]
    return chosen if len(chosen) else order


def _blank(spec: Spec, count: int, streams: int) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """Room for observations, rewards and actions `[count, streams, ...]`."""
    obs = jax.tree.map(lambda s: np.empty((count, streams, *s.shape), s.dtype), spec.obs)
    action = blank_actions(spec, count * streams)
    action = None if action is None else action.reshape(count, streams, *action.shape[1:])
    return obs, np.empty((count, streams), np.float32), action


def _checked(recording: Recording, block: tuple[Any, Any, Any], marks: np.ndarray, told: set[str]) -> Record:
    """Records `[count, streams, ...]` that are what the spec says, as those of an environment."""
    spec, shape = recording.spec, marks.shape[:2]
    obs, reward, action = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), block)
    first, last, terminal = marks.reshape(-1, 3).T
    (obs, reward), bad = border.finite((border.checked(spec, obs, last), reward))
    if spec.action is not None:
        if isinstance(spec.action, Box) and (np.abs(action) > 1.001).any():
            _tell(told, "clipped", f"{recording.path} holds actions outside of [-1, 1]: they are clipped")
        action, wrong = border.native_action(spec, action, (len(last),))
        bad = bad | wrong
    if bad is not False:
        text = f"{recording.path} holds numbers that are not finite, in {np.sum(bad):,} of the {len(last):,} records"
        _tell(told, "finite", f"{text} read by now: each is taken as 0")
    flat: Any = Record(obs, np.where(first, np.float32(0), reward), first, last, terminal, action, None)  # type: ignore[arg-type]
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)


def _tell(told: set[str], what: str, text: str) -> None:
    """Warn, once."""
    if what not in told:
        told.add(what)
        warnings.warn(text, stacklevel=4)
