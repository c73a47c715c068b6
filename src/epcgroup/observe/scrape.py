"""The HTTP end of the exporter: GET /metrics, on loopback unless told otherwise.

A machine that is gone is a 503 with the reason: Prometheus then says ``up == 0``,
which is what an alert for a dead machine should look at, and no old value lives on.
"""

from __future__ import annotations

import gzip
import ipaddress
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from epcgroup import __version__
from epcgroup.errors import BadInput, EpcgroupError, words_of
from epcgroup.observe import metrics

if TYPE_CHECKING:
    from epcgroup.observe.metrics import Metrics
    from epcgroup.observe.source import Source

DEFAULT = "127.0.0.1:9798"
_GZIP_LEVEL, _WORTH_IT = 1, 1 << 16  # bytes
_PAGE = b"<!doctype html><title>epcgroup exporter</title><p><a href=/metrics>metrics</a>\n"


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:9798``, ``[::1]:9798`` or a port alone (loopback). Raises BadInput.

    >>> parse_address("9798"), parse_address("[::1]:80")
    (('127.0.0.1', 9798), ('::1', 80))
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        raise BadInput(f"{text!r} is no address; write 127.0.0.1:9798, [::1]:9798 or a port") from None
    if not 0 <= number < 1 << 16:
        raise BadInput(f"{text!r}: a port is 0 to 65535")
    return host, number


class Exporter:
    """Serves a source's metrics from a thread of its own, between `start` and `close`."""

    def __init__(self, source: Source, writer: Metrics, address: tuple[str, int]) -> None:
        """Binds the address. Raises BadInput when that fails."""
        self._source = source
        self._writer = writer
        self._lock = threading.Lock()  # a source and a writer serve one at a time
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        kind = type("Server", (_Server,), {"address_family": family})
        try:
            self._server: _Server = kind(address, self)
        except OSError as error:
            raise BadInput(f"{address[0]}:{address[1]}: {error.strerror}; choose another address") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="exporter", daemon=True)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def close(self) -> None:
        """No more, also where it never began."""
        if self._thread.is_alive():
            self._server.shutdown()  # waits for who serves: for ever, where nobody does
            self._thread.join(10)
        self._server.server_close()

    def exposition(self, *, openmetrics: bool) -> bytes:
        """What a scrape gets. Raises EpcgroupError when the machine is gone."""
        with self._lock:
            return self._writer.text(self._source.snapshot(), openmetrics=openmetrics).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        super().__init__(address, _Handler)
        self.exporter = exporter


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"epcgroup/{__version__}"
    sys_version = ""
    timeout = 30  # s; a scraper that says nothing holds a thread no longer
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE)
        elif path == "/metrics":
            self._metrics()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"the metrics are at /metrics\n")

    def _metrics(self) -> None:
        openmetrics = metrics.negotiated(self.headers.get("Accept", ""))
        try:
            body = self.server.exporter.exposition(openmetrics=openmetrics)
        except EpcgroupError as error:
            words = words_of(error)
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"{words}\n".encode())
            return
        self._answer(HTTPStatus.OK, metrics.OPENMETRICS if openmetrics else metrics.TEXT, body)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if len(body) > _WORTH_IT and self._far() and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, _GZIP_LEVEL)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _far(self) -> bool:
        """Whether a network is between us; on loopback compressing costs more than it saves."""
        return not ipaddress.ip_address(str(self.client_address[0]).partition("%")[0]).is_loopback

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is nothing to tell."""
