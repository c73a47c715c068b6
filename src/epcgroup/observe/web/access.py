"""Who may see the page: anybody on loopback, elsewhere who has the token.

On loopback the Host header must name loopback: a page of some web site, whose name its owner
lets resolve to 127.0.0.1 (DNS rebinding), gets nothing. Elsewhere a token is needed: in the address
once (``?token=…``, which becomes a cookie and leaves the address bar), or as a bearer token.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "epcgroup_token"
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def is_loopback(host: str) -> bool:
    """Whether an address, as it is listened at or named by a browser, is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("localhost"), is_loopback("10.0.0.1")
    (True, True, True, False)
    """
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Access:
    """ASGI middleware. ``token`` None: loopback only."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        answer = self._answer(request)
        await (self._app if answer is None else answer)(scope, receive, guarded)

    def _answer(self, request: HTTPConnection) -> Response | None:
        """What to answer in place of the page; None: come in."""
        if self._token is None:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            if is_loopback(host):
                return None
            return PlainTextResponse(f"this page is at a loopback address, not at {host!r}\n", 421)
        offered = parse_qs(str(request.url.query)).get("token", [""])[0]
        if offered and self._right(offered):
            answer = RedirectResponse(str(request.url.path), 303)
            answer.set_cookie(COOKIE, offered, httponly=True, samesite="strict")
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._right(request.cookies.get(COOKIE, "")) or self._right(bearer):
            return None
        return PlainTextResponse("a token is needed: open the address that `epcgroup web` printed\n", 401)

    def _right(self, offered: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(offered.encode(), self._token.encode())
