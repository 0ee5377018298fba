"""A studio that answers on a port, in a thread of the tests, and a browser to visit it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CHROMIUM = "/usr/bin/chromium"


class House(NamedTuple):
    """An open studio: its state, and the address of its pages."""

    studio: Any
    address: str

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1].strip("/"))

    def get(self, path: str, **headers: str) -> tuple[int, bytes, Any]:
        """Status, body and headers of an answer; redirections are not followed."""
        request = urllib.request.Request(f"{self.address}{path}", headers=headers)
        opener = urllib.request.build_opener(_Still)
        try:
            with opener.open(request, timeout=120) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers


class _Still(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextlib.contextmanager
def opened(studio: Any, token: str = "") -> Iterator[House]:
    """Serve a studio for as long as the body runs."""
    import uvicorn

    from jaxwm.web import server

    listening = server._listening("127.0.0.1", 0)
    port = listening.getsockname()[1]
    serving = uvicorn.Server(server.config(server.build(studio, token)))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: serving.started)
        yield House(studio, f"http://127.0.0.1:{port}/")
    finally:
        serving.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive(), "the server does not stop"


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def browser() -> tuple[str, str]:
    """The path of a browser, and why there is none ("")."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "", "playwright is not installed (pip install playwright)"
    found = shutil.which("chromium") or (CHROMIUM if Path(CHROMIUM).exists() else "")
    return found, "" if found else "there is no chromium here (apt-get install chromium)"
