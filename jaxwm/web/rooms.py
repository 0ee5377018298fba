"""What the visitors of a studio share and own: desks, compiled once, and their own sessions, freed when they leave."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxwm.data import Episode, open_recording
from jaxwm.studio.episodes import Player, open_player
from jaxwm.web import quality
from jaxwm.web.desk import Desk
from jaxwm.web.runs import Shelf
from jaxwm.web.session import Session

MOST_DESKS, MOST_SESSIONS = 6, 32
Say = Callable[[str], None]


class Full(ValueError):
    """Too many visitors."""


class Studio:
    """The state of a server. Its methods block, and may be called by several threads."""

    def __init__(self, shelf: Shelf, recording: Path | None = None, seed: int = 1):
        self.shelf, self.recording, self.seed = shelf, recording, seed
        self.sessions: dict[str, Session] = {}
        self.mazes = 0
        self._desks: OrderedDict[tuple[str, int], Desk] = OrderedDict()
        self._played: OrderedDict[tuple[str, int], tuple[Player, quality.Played]] = OrderedDict()
        self._locks: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def _one_at_a_time(self, what: Any) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(what, threading.Lock())

    def player(self, label: str, member: int) -> Player:
        """A member of a run. Raises as `open_player`, FileNotFoundError for an unknown run."""
        return open_player(self.shelf.path(label), member, self.seed)

    def desk(self, label: str, member: int, say: Say) -> Desk:
        """The desk of a member, compiled by whoever asks first; the others wait for it."""
        self.shelf.path(label)
        with self._one_at_a_time(("desk", label, member)):
            if (label, member) not in self._desks:
                say("loading the run")
                desk = Desk(self.player(label, member))
                desk.warm(say)
                self._desks[label, member] = desk
                self._forget()
            self._desks.move_to_end((label, member))
            return self._desks[label, member]

    def _forget(self) -> None:
        """Drop desks that nobody sits at, the oldest first."""
        used = {id(session.desk) for session in list(self.sessions.values())}
        idle = [key for key, desk in self._desks.items() if id(desk) not in used]
        for key in idle[:-1]:  # somebody is about to sit down at the newest
            if len(self._desks) > MOST_DESKS:
                del self._desks[key]

    def join(self, label: str, member: int, say: Say, seed: int | None = None) -> Session:
        """A session of one's own. `Full` where there are too many."""
        desk = self.desk(label, member, say)
        with self._lock:
            if len(self.sessions) >= MOST_SESSIONS:
                raise Full(f"{MOST_SESSIONS} visitors are playing: close a page that plays, or come back later")
            session = Session(desk, seed)
            self.sessions[session.id] = session
        return session

    def leave(self, session: Session) -> None:
        """Free a session; a second call does nothing."""
        with self._lock:
            self.sessions.pop(session.id, None)
        session.close()

    # --- Recordings -------------------------------------------------------------------------------------------------
    def recorded(self) -> dict[str, Any] | None:
        """What the recording of the studio holds, as JSON; None without one."""
        if self.recording is None:
            return None
        found = open_recording(self.recording)
        return {"name": self.recording.name, "env": found.env, "lengths": found.length[:500].tolist()}

    def episode(self, number: int) -> Episode:
        """An episode of the recording. ValueError where there is none."""
        if self.recording is None:
            raise ValueError("this studio has no recording: start it with --recording DIR")
        found = open_recording(self.recording)
        if not 0 <= number < len(found.length):
            raise ValueError(f"the recording has the episodes 0 to {len(found.length) - 1}")
        return found.load(number, 0, int(found.length[number]))

    # --- Quality ----------------------------------------------------------------------------------------------------
    def played(self, label: str, member: int) -> tuple[Player, quality.Played]:
        """A member and windows of its play, kept for the next question."""
        self.shelf.path(label)
        with self._one_at_a_time(("quality", label, member)):
            if (label, member) not in self._played:
                player = self.player(label, member)
                self._played[label, member] = player, quality.play(player)
                while len(self._played) > MOST_DESKS:
                    self._played.popitem(last=False)
            return self._played[label, member]

    def close(self) -> None:
        """Free everything."""
        for session in list(self.sessions.values()):
            self.leave(session)
