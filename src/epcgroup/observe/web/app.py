"""The page's server: the page itself, a stream of what changes, and history.

=================  =================================================================
``/``, ``/assets``  the page
``/stream``        server-sent events: ``state`` (a message of `codec.Differ`, the first
                   one whole) each second, ``gone`` with the reason when there is no machine
``/points``        history of one cgroup: ``path``, ``begin``, ``end`` (seconds since 1970)
``/snapshot``      the newest snapshot, whole
=================  =================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from epcgroup.errors import BadInput
from epcgroup.observe.codec import Differ, snapshot_to_json
from epcgroup.observe.store import Point
from epcgroup.observe.web.access import Access

if TYPE_CHECKING:
    from starlette.requests import Request

    from epcgroup.observe.store import Store
    from epcgroup.observe.web.hub import Hub

ASSETS = Path(__file__).with_name("assets")
_MOST_POINTS = 1200  # what a screen can show
_POINT = tuple(field.name for field in fields(Point))


def make(hub: Hub, store: Callable[[], Store | None], token: str | None) -> Starlette:
    """The application. ``store``: history to read, as it is now; None where none is kept."""

    async def page(_: Request) -> Response:
        return FileResponse(ASSETS / "index.html")

    async def stream(_: Request) -> Response:
        return StreamingResponse(_messages(hub), media_type="text/event-stream")

    async def snapshot(_: Request) -> Response:
        seen = hub.last
        if seen.snapshot is None:
            return JSONResponse({"gone": seen.gone}, 503)
        return JSONResponse(snapshot_to_json(seen.snapshot))

    def points(request: Request) -> Response:  # no coroutine: SQLite blocks, so it runs in a thread
        query = request.query_params
        try:
            begin, end = (_seconds(query.get(name), name) for name in ("begin", "end"))
            history = store()
            kept = []
            if history is not None:
                kept = history.points(query.get("path", "/"), begin or 0.0, end or math.inf, _MOST_POINTS)
        except BadInput as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"columns": _POINT, "rows": [astuple(point) for point in kept]})

    routes = [
        Route("/", page),
        Route("/stream", stream),
        Route("/snapshot", snapshot),
        Route("/points", points),
        Mount("/assets", StaticFiles(directory=ASSETS)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Access, token=token)])


async def _messages(hub: Hub) -> AsyncIterator[str]:
    """What one browser is sent."""
    differ, told = Differ(), 0
    async for look in hub.watch():
        if look.snapshot is None:
            differ = Differ()  # what comes after is another machine
            yield _message("gone", {"name": hub.name, "why": look.gone})
            continue
        told, events = hub.events_after(told)
        yield _message(
            "state", {"name": hub.name, "at": look.snapshot.at, **differ.delta(look.snapshot, events)}
        )


def _message(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _seconds(text: str | None, name: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{name}={text!r} is no time in seconds since 1970")
    return value
