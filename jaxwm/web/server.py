"""`jaxwm studio`: pages, answers in JSON, and a socket for each visitor who plays.

Model calls block, so they run in threads, as many at once as there are cores; the loop of the server stays free."""

import asyncio
import contextlib
import json
import os
import secrets
import socket as sockets
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from jaxwm.data import open_recording
from jaxwm.envs import wire
from jaxwm.web import plans, quality
from jaxwm.web.guard import Guard
from jaxwm.web.maze import Maze
from jaxwm.web.rooms import Full, Studio
from jaxwm.web.runs import Shelf
from jaxwm.web.session import Session

try:
    import anyio
    import uvicorn
    from fastapi import FastAPI, HTTPException, Query, Response, WebSocket, WebSocketDisconnect
    from fastapi.responses import FileResponse, JSONResponse
    from starlette.websockets import WebSocketState
except ImportError as error:
    raise ImportError(f"the studio needs {error.name}: pip install 'jaxwm[studio]'") from None

Labels = Annotated[list[str], Query()]
BAD = (ValueError, OSError, ImportError)
"""Errors whose text is meant for the visitor."""

STATIC = {"/": "index.html", "/studio.css": "studio.css", "/studio.js": "studio.js", "/icon.svg": "icon.svg"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
MOST_MESSAGE = 1 << 14  # bytes of a visitor's message


def build(studio: Studio, token: str = "") -> Any:
    """The application of a studio, behind its guard."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.threads = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))
        ready = asyncio.create_task(aside(lambda: Maze(0).advance(1, 1, 0.1)))  # compiles, so that no visitor waits
        yield
        await ready
        studio.close()

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ValueError)
    @app.exception_handler(OSError)
    @app.exception_handler(ImportError)
    async def said(request: Any, error: Exception) -> JSONResponse:
        status = 404 if isinstance(error, FileNotFoundError) else 400
        return JSONResponse({"error": in_words(error)}, status)

    async def aside(call: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(call, *args, limiter=app.state.threads)

    _static(app)
    _looking(app, studio, aside)
    _measuring(app, studio, aside)
    _playing(app, studio, aside)
    _maze(app, studio, aside)
    return Guard(app, token)


def in_words(error: Exception) -> str:
    """An error in one line, without the number of the system's."""
    text = error.strerror if isinstance(error, OSError) and not error.filename and error.strerror else error
    return " ".join(str(text).split())[:500]


def _static(app: FastAPI) -> None:
    home = files("jaxwm.web").joinpath("static")
    for address, name in STATIC.items():
        body, kind = home.joinpath(name).read_bytes(), KINDS[name.rpartition(".")[2]]
        app.get(address)(lambda body=body, kind=kind: Response(body, media_type=kind))


def _looking(app: FastAPI, studio: Studio, aside: Any) -> None:
    """Runs, their curves and pictures."""

    @app.get("/api/runs")
    async def runs() -> Any:
        return {"runs": await aside(studio.shelf.summary, time.time()), "roots": [str(x) for x in studio.shelf.roots],
                "recording": await aside(studio.recorded), "sessions": len(studio.sessions)}  # fmt: skip

    @app.get("/api/metrics")
    async def metrics(run: Labels) -> Any:
        return {"metrics": await aside(studio.shelf.metrics, run), "differ": await aside(studio.shelf.differences, run)}

    @app.get("/api/curves")
    async def curves(run: Labels, metric: str = "return") -> Any:
        return await aside(studio.shelf.curves, run, metric)

    @app.get("/api/pictures")
    async def listed(run: str) -> Any:
        return await aside(studio.shelf.pictures, run)

    @app.get("/api/picture")
    async def picture(run: str, name: str) -> Any:
        return FileResponse(await aside(studio.shelf.picture, run, name))


def _measuring(app: FastAPI, studio: Studio, aside: Any) -> None:
    """Dream quality and search trees."""

    def errors(run: str, member: int, temperature: float | None) -> Any:
        player, played = studio.played(run, member)
        hyper = getattr(player.state, "hyper", {})
        own = float(hyper["temperature"]) if "temperature" in hyper else None
        return {"temperature": own, "members": player.plan.members, **quality.errors(player, played, temperature)}

    def spread(run: str, member: int, moment: int, temperature: float | None) -> Any:
        return quality.spread(*studio.played(run, member), moment, temperature)

    @app.get("/api/quality")
    async def measured(run: str, member: int = 0, temperature: float | None = None) -> Any:
        return await aside(errors, run, member, temperature)

    @app.get("/api/spread")
    async def apart(run: str, member: int = 0, moment: int = 0, temperature: float | None = None) -> Any:
        return await aside(spread, run, member, moment, temperature)


def _playing(app: FastAPI, studio: Studio, aside: Any) -> None:
    @app.get("/api/gif")
    async def gif(session: str, branch: Annotated[list[str], Query()]) -> Any:
        if (found := studio.sessions.get(session)) is None:
            raise HTTPException(404, "there is no such session")
        headers = {"content-disposition": 'attachment; filename="dream.gif"'}
        return Response(await aside(found.gif, branch[:2]), media_type="image/gif", headers=headers)

    @app.websocket("/ws/play")
    async def play(socket: WebSocket, run: str = "", member: int = 0, seed: int | None = None) -> None:
        await socket.accept()
        loop, session = asyncio.get_running_loop(), None

        def say(text: str) -> None:
            asyncio.run_coroutine_threadsafe(_send(socket, {"kind": "progress", "text": text}), loop)

        try:
            session = await aside(studio.join, run, member, say, seed)
            about = await aside(session.desk.about)
            await _send(
                socket, {"kind": "ready", "session": session.id, "about": about, "plans": plans.kind_of(session.desk)}
            )
            await _converse(socket, lambda message: aside(answer, studio, session, message))
        except WebSocketDisconnect:
            pass
        except BAD as error:
            await _send(
                socket, {"kind": "error", "fatal": True, "full": isinstance(error, Full), "text": in_words(error)}
            )
        finally:
            if session is not None:
                studio.leave(session)
            await _close(socket)


def answer(studio: Studio, session: Session, message: dict[str, Any]) -> dict[str, Any]:
    """What a player asked, done. ValueError for what cannot be."""
    do = message.get("do")
    if do == "step":
        branch, tick = session.step(str(message.get("branch")), message.get("t"), message.get("action"))  # type: ignore[arg-type]
        return {"kind": "tick", "branch": branch.name, "parent": branch.parent, "tick": tick}
    if do == "begin":
        return {"kind": "begin", "branch": "A", "ticks": session.begin(message.get("ahead", 0))}
    if do == "recall":
        episode = studio.episode(_whole(message.get("episode")))
        return {"kind": "begin", "branch": "A", "ticks": session.recall(episode, _whole(message.get("at")))}
    if do == "dream":
        branch, ticks = session.dream_here(str(message.get("branch")), message.get("t"))  # type: ignore[arg-type]
        return {"kind": "anchor", "branch": branch.name, "parent": branch.parent, "ticks": ticks}
    if do == "set":
        session.set(**{key: message[key] for key in ("mode", "sight", "temperature", "doubt") if key in message})
        return {"kind": "set"}
    if do == "plan":
        return {"kind": "plan", **plans.look(session, str(message.get("branch")), message.get("t"))}  # type: ignore[arg-type]
    raise ValueError(f"a player may begin, recall, step, dream, set or plan, not {str(do)[:20]!r}")


def _whole(x: Any) -> int:
    if not isinstance(x, int) or isinstance(x, bool):
        raise ValueError("expected a whole number")
    return x


def _maze(app: FastAPI, studio: Studio, aside: Any) -> None:
    @app.websocket("/ws/maze")
    async def maze(socket: WebSocket, seed: int | None = None) -> None:
        await socket.accept()
        try:
            mine = await aside(Maze, secrets.randbelow(2**31) if seed is None else seed % 2**31)
            await _send(socket, {"kind": "ready"})
            await _converse(socket, lambda message: aside(_turn, mine, message))
        except WebSocketDisconnect:
            pass
        finally:
            await _close(socket)


def _turn(maze: Maze, message: dict[str, Any]) -> dict[str, Any]:
    if message.get("do") == "reset":
        maze.reset(str(message.get("task", "DynaMaze")))
        return {"kind": "reset"}
    if message.get("do") == "way":
        return {"kind": "way", "cells": maze.plan()}
    if message.get("do") != "turn":
        raise ValueError("a maze is asked for a turn, a way or a reset")
    ask = {name: message.get(name, default) for name, default in (("turns", 1), ("planning", 5), ("epsilon", 0.1))}
    return {"kind": "turn", **maze.advance(**ask, given=message.get("action"))}


async def _converse(socket: WebSocket, reply: Callable[[dict[str, Any]], Any]) -> None:
    """Answer messages one after the other until the visitor leaves; a wrong one costs an answer in words."""
    while True:
        heard = await socket.receive() if socket.application_state == WebSocketState.CONNECTED else {"type": "gone"}
        if heard["type"] != "websocket.receive":
            raise WebSocketDisconnect
        text = heard.get("text") or ""
        try:
            message = json.loads(text) if len(text) <= MOST_MESSAGE else None
            if not isinstance(message, dict):
                raise ValueError("a message is one JSON object, and a short one")
            found = await reply(message)
            if "id" in message:
                found["id"] = message["id"]
        except BAD as error:
            found = {"kind": "error", "text": in_words(error)}
        await _send(socket, found)


async def _send(socket: WebSocket, message: dict[str, Any]) -> None:
    """Send, unless the visitor has left."""
    if socket.application_state == WebSocketState.CONNECTED:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_text(json.dumps(message, allow_nan=False))


async def _close(socket: WebSocket) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.close()


def open_studio(paths: tuple[Path, ...], recording: Path | None, host: str, port: int, seed: int = 1) -> None:
    """Print the link and answer until an interrupt. FileNotFoundError for paths that are not there, OSError for a port
    that is taken, and whatever `data.open_recording` raises."""
    if recording is not None:
        open_recording(recording)
    token, _ = wire.secret(host)
    app = build(Studio(Shelf(roots_of(paths)), recording, seed), token)
    with _listening(host, port) as listening:
        print(f"jaxwm studio\n\n  {link(host, listening.getsockname()[1], token)}\n\nCtrl-C ends it.", flush=True)
        uvicorn.Server(config(app)).run(sockets=[listening])


def config(app: Any) -> uvicorn.Config:
    """How uvicorn serves an application."""
    return uvicorn.Config(
        app, log_level="warning", ws="websockets-sansio", ws_max_size=MOST_MESSAGE, ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
    )  # fmt: skip


def link(host: str, port: int, token: str) -> str:
    """The address of the pages, as one opens it here."""
    name = {"0.0.0.0": sockets.gethostname(), "::": sockets.gethostname()}.get(
        host, f"[{host}]" if ":" in host else host
    )
    return f"http://{name}:{port}/{f'?token={token}' if token else ''}"


def _listening(host: str, port: int) -> sockets.socket:
    """A socket that is bound. OSError where it cannot be."""
    found = sockets.socket(sockets.AF_INET6 if ":" in host else sockets.AF_INET, sockets.SOCK_STREAM)
    found.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        reason = error.strerror or error
        raise OSError(
            error.errno, f"cannot listen on {host}:{port} ({reason}): take another --port or --host"
        ) from None
    return found


def roots_of(paths: tuple[Path, ...]) -> list[Path]:
    """Where to look for runs: as given, else runs/ where it is there, and the model that comes along.
    FileNotFoundError for a path that is not there."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there: give run directories, folders with runs, or exported weights"
            )
    own = Path(str(files("jaxwm.web").joinpath("demo")))
    return list(paths) or [path for path in (Path("runs"), own) if path.is_dir()]
