"""Who may ask: loopback without a token, others with one, and no page of another site ever."""

import hmac
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

COOKIE = "jaxwm-studio"
LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""On every answer: nothing is loaded from elsewhere, and nothing may frame the page."""

ASGI = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """An ASGI application in front of another one. With a token, whoever opens the link gets a cookie; without one,
    only names of this machine are answered, so that a foreign name that points here (DNS rebinding) is not."""

    def __init__(self, app: ASGI, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or hand on."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        problem = self._problem(scope["type"], headers, given)
        if problem:
            return await self._refuse(scope, send, *problem)
        if scope["type"] == "http" and self.token and given:
            return await _answer(send, 303, "", {"location": scope["path"], "set-cookie": self._cookie()})
        await self.app(scope, receive, _with_headers(send))

    def _problem(self, kind: str, headers: dict[str, str], given: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self.token and (urlsplit(f"//{host}").hostname or "") not in LOCAL:
            return 421, "this studio answers on this machine only: open it as http://127.0.0.1"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "another site may not use this studio"
        if self.token and not any(
            hmac.compare_digest(self.token.encode(), x.encode()) for x in (given, _kept(headers))
        ):
            return 403, "the token is missing or wrong: open the link that jaxwm studio printed"
        return None

    def _cookie(self) -> str:
        return f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"

    async def _refuse(self, scope: Any, send: Any, status: int, text: str) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403, "reason": text})
        else:
            await _answer(send, status, text)


def _kept(headers: dict[str, str]) -> str:
    try:
        cookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookie[COOKIE].value if COOKIE in cookie else ""


def _with_headers(send: Any) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            extra = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return sending


async def _answer(send: Any, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    found = {"content-type": "text/plain; charset=utf-8", **HEADERS, **(headers or {})}
    pairs = [(key.encode(), value.encode()) for key, value in found.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text.encode()})
