"""The page's server: who may see it, what a browser is sent, and that a lost machine is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from epcgroup.cli.web import token_of
from epcgroup.errors import BadInput, Refused
from epcgroup.observe.model import Event, GroupView, Snapshot
from epcgroup.observe.store import Store
from epcgroup.observe.web.access import COOKIE, is_loopback
from epcgroup.observe.web.app import _messages, make
from epcgroup.observe.web.hub import Hub
from epcgroup.observe.web.server import WebServer

TOKEN = "0123456789abcdef-token"
HOSTILE = "/a\x1b[2J<script>alert(1)</script>"


class FakeSource:
    """A machine that counts how often it was looked at; gone while ``why`` is set."""

    name = "fake"

    def __init__(self) -> None:
        self.looks = 0
        self.why = ""
        self.closed = False

    def snapshot(self) -> Snapshot:
        if self.why:
            raise Refused(self.why)
        self.looks += 1
        groups = (GroupView("/", None, 8192, 8192), GroupView(HOSTILE, 4096 * self.looks, 4096, 4096))
        return Snapshot(float(self.looks), "standard", 16, 14, groups, started=1e9)

    def events(self, after: int = 0) -> Sequence[Event]:
        return [Event(number, 1e9, "limit", HOSTILE) for number in range(after + 1, self.looks + 1)]

    def set_max(self, path: str, limit: int | None) -> None:  # noqa: ARG002
        raise AssertionError("a page must not set limits")

    def close(self) -> None:
        self.closed = True


def client(token: str | None = None, store: Store | None = None, **how: Any) -> TestClient:
    hub = Hub(FakeSource())
    return TestClient(make(hub, lambda: store, token), **{"base_url": "http://127.0.0.1:9799", **how})


# -- who may see it -----------------------------------------------------------------


def test_on_loopback_anybody_sees_the_page_and_its_assets() -> None:
    page = client().get("/")
    assert page.status_code == 200
    for name in ("main.js", "style.css", "uplot/uPlot.iife.min.js", "uplot/LICENSE"):
        assert client().get(f"/assets/{name}").status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_the_page_loads_nothing_from_anywhere_else() -> None:
    texts = [
        path.read_text()
        for path in (Path(client.__code__.co_filename).parents[3] / "src").rglob("assets/*.*")
    ]
    assert len(texts) >= 6
    assert not any("//cdn" in text or "https://" in text for text in texts)


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1:9799", "127.0.0.1.evil.example", ""])
def test_a_name_that_is_not_loopback_gets_nothing(host: str) -> None:
    """DNS rebinding: a site's own name that resolves to 127.0.0.1."""
    assert client().get("/snapshot", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:9799", "[::1]:9799", "127.0.0.1"])
def test_the_names_of_loopback_are_let_in(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/snapshot", "/points", "/stream", "/assets/main.js"])
def test_without_the_token_nothing_is_shown(path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"{COOKIE}=wrong"}):
        assert client(TOKEN).get(path, headers=headers).status_code == 401


def test_the_token_in_the_address_becomes_a_cookie_that_scripts_cannot_read() -> None:
    browser = client(TOKEN, follow_redirects=False)
    first = browser.get(f"/?token={TOKEN}")
    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "samesite=strict" in first.headers["set-cookie"].lower()
    assert browser.get("/").status_code == 200


def test_the_token_as_a_bearer_lets_a_program_in() -> None:
    assert client(TOKEN).get("/points", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_off_loopback_there_is_always_a_token() -> None:
    for host, asked in (("0.0.0.0", True), ("127.0.0.1", False), ("::1", False)):
        server = WebServer(Hub(FakeSource()), lambda: None, (host, 0))
        assert (server.token is not None) == asked
        assert ("?token=" in server.url) == asked
        server.close()
    assert not is_loopback("example.org")


def test_an_address_that_is_taken_is_told() -> None:
    first = WebServer(Hub(FakeSource()), lambda: None, ("127.0.0.1", 0))
    first._socket.listen()
    port = first._socket.getsockname()[1]
    with pytest.raises(BadInput, match=f"127.0.0.1:{port}"):
        WebServer(Hub(FakeSource()), lambda: None, ("127.0.0.1", port))
    first.close()


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [("short", 0o600, "at least 16"), (TOKEN, 0o644, "chmod 600"), ("a b" * 10, 0o600, "without blanks")],
)
def test_a_bad_token_file_is_told(tmp_path: Path, text: str, mode: int, why: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(BadInput, match=why):
        token_of(file)


# -- what it is sent -------------------------------------------------------------------


def test_a_browser_gets_everything_once_and_then_what_changed() -> None:
    source = FakeSource()
    hub = Hub(source, interval=0.05)

    async def listen() -> list[tuple[str, dict[str, Any]]]:
        heard = []
        async for text in _messages(hub):
            kind, data = text.removeprefix("event: ").split("\ndata: ")
            heard.append((kind, json.loads(data)))
            source.why = "switched off" if len(heard) == 3 else ""
            if len(heard) > 3 and kind == "gone":
                break
        return heard

    hub.start()
    try:
        heard = asyncio.run(asyncio.wait_for(listen(), 20))
    finally:
        hub.close()
    states = [data for kind, data in heard if kind == "state"]
    assert states[0]["order"] == ["/", HOSTILE]
    assert len(states[0]["rows"]) == 2
    assert [len(state["rows"]) for state in states[1:3]] == [1, 1]
    assert "order" not in states[1]
    numbers = [event["number"] for state in states for event in state["events"]]
    assert numbers == sorted(set(numbers))
    assert "switched off" in heard[-1][1]["why"]
    assert source.closed


def test_a_machine_that_comes_back_is_told_whole_again() -> None:
    source = FakeSource()
    hub = Hub(source, interval=0.02)
    hub.start()
    try:
        source.why = "away"
        _until(lambda: hub.last.gone == "away")
        source.why = ""
        _until(lambda: hub.last.snapshot is not None)
    finally:
        hub.close()


def test_history_is_what_the_store_keeps(tmp_path: Path) -> None:
    store = Store(tmp_path / "history")
    for number in range(3):
        store.add(Snapshot(float(number), "v5", 16, 16, (GroupView("/a", None, number, 9),), started=1e9))
    answer = client(store=store).get("/points", params={"path": "/a", "begin": 1e9}).json()
    at = answer["columns"].index("current")
    assert [row[at] for row in answer["rows"]] == [0, 1, 2]
    assert client(store=store).get("/points", params={"path": "/none"}).json()["rows"] == []
    assert client(store=store).get("/points", params={"begin": "x"}).status_code == 400
    assert client().get("/points").json()["rows"] == []
    store.close()


def test_a_hub_keeps_history_where_nobody_else_does(tmp_path: Path) -> None:
    store = Store(tmp_path / "history")
    hub = Hub(FakeSource(), interval=0.02, store=store)
    hub.start()
    _until(lambda: len(store.points("/")) > 1)
    hub.close()
    store.close()


def _until(what: Any) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)
