"""Runs the page's server: an address, a token where one is needed, an end at a signal."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import uvicorn

from epcgroup.errors import BadInput
from epcgroup.observe.web.access import is_loopback
from epcgroup.observe.web.app import make

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.observe.store import Store
    from epcgroup.observe.web.hub import Hub

_GRACE_S = 1  # for streams, which have no end of their own


class WebServer:
    """The page of one hub at an address: bound when made, served by `run`."""

    def __init__(
        self,
        hub: Hub,
        store: Callable[[], Store | None],
        address: tuple[str, int],
        token: str | None = None,
    ) -> None:
        """``token``: the one to ask for; by default none on loopback, a fresh one elsewhere.

        Raises BadInput when the address cannot be had.
        """
        self._hub = hub
        host, port = address
        self.token = token if token is not None or is_loopback(host) else secrets.token_urlsafe(24)
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(address)
        except OSError as error:
            self._socket.close()
            raise BadInput(f"{host}:{port}: {error.strerror}; choose another address") from None
        config = uvicorn.Config(
            make(hub, store, self.token), log_level="warning", access_log=False, lifespan="off", ws="none",
            timeout_graceful_shutdown=_GRACE_S, server_header=False,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """Where the page is, the token included."""
        host, port = self._socket.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{port}/" + (f"?token={self.token}" if self.token else "")

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM (in the main thread), or until `close`."""
        self._hub.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._hub.close()
            self._socket.close()

    def close(self) -> None:
        """Have `run` return, from any thread; give the address back where it never ran."""
        self._server.should_exit = True
        if not self._server.started:
            self._socket.close()
