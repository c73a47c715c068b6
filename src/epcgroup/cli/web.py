"""`epcgroup web`: a machine in a browser; and what `serve --web` starts."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from epcgroup.cli import sources
from epcgroup.errors import BadInput, MissingCapability, Refused, to_install

if TYPE_CHECKING:
    from epcgroup.observe.source import Source
    from epcgroup.observe.store import Store

DEFAULT = "127.0.0.1:9799"
_PR_SET_PDEATHSIG = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "web",
        help="a machine in a browser: the tree as a map of EPC, time lines, events",
        description="Serve one page that shows a machine live, until a signal ends it.",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default=DEFAULT,
        help=f"address and port, or a port (default {DEFAULT})",
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="ask for the token in FILE, on loopback too"
    )
    sources.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from epcgroup.observe import scrape

    require()
    from epcgroup.observe.web import Hub, WebServer

    address = scrape.parse_address(args.listen)
    source = sources.find(args, play=True)
    with _history(args, source) as (read, own):
        server = WebServer(Hub(source, store=own), read, address, token_of(args.token_file))
        print(f"epcgroup: {source.name} at {server.url}", file=sys.stderr, flush=True)
        server.run()
    return 0


def require() -> None:
    """Raises MissingCapability without the extra."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingCapability(f"the web page needs: {to_install('observe')}") from error


def token_of(file: Path | None) -> str | None:
    """The token in a file that nobody else may read. Raises BadInput."""
    if file is None:
        return None
    try:
        mode, token = file.stat().st_mode, file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise BadInput(f"{file}: {why}") from error
    if mode & 0o077:
        raise BadInput(f"{file} may be read by others; a token is secret: chmod 600 {file}")
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput(f"{file}: a token is at least 16 printable characters without blanks")
    return token


@contextlib.contextmanager
def _history(
    args: argparse.Namespace, source: Source
) -> Iterator[tuple[Callable[[], Store | None], Store | None]]:
    """History to read, and a store for the hub to fill: one that is kept, else one for as long as we run."""
    from epcgroup.observe.store import Store

    file = sources.history_of(source, args)
    if file is not None:
        opened: list[Store] = []

        def kept() -> Store | None:
            if not opened and file.exists():
                opened.append(Store(file, read_only=True))
            return opened[0] if opened else None

        try:
            yield kept, None
        finally:
            for store in opened:
                store.close()
        return
    with tempfile.TemporaryDirectory(prefix="epcgroup-web-") as directory:
        store = Store(Path(directory) / "history")
        try:
            yield lambda: store, store
        finally:
            store.close()


class WebPage:
    """`epcgroup web` in a process of its own beside the server: a browser costs programs no turns."""

    def __init__(self, directory: Path, listen: str, token_file: Path | None) -> None:
        """Checks what can be checked. Raises BadInput, MissingCapability."""
        from epcgroup.observe import scrape

        require()
        scrape.parse_address(listen)
        token_of(token_file)
        words = ["web", "--dir", str(directory), "--listen", listen]
        words += ["--token-file", str(token_file)] if token_file is not None else []
        self._words = [sys.executable, "-m", "epcgroup.cli.main", *words]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait for its address. Raises Refused when it cannot have it."""
        libc = ctypes.CDLL(None)
        ours = os.getpid()

        def prepare() -> None:  # in the child: end with the server, however that ends
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            if os.getppid() != ours:
                os._exit(1)

        self._process = subprocess.Popen(
            self._words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
            process_group=0,
        )  # fmt: skip
        assert self._process.stderr is not None
        said = self._process.stderr.readline().strip()
        if " at http" not in said:
            raise Refused(said.removeprefix("epcgroup: ") or "the web page did not start")
        self.url = said.rpartition(" at ")[2]
        # Nobody would read it else, and a full pipe would hold the page up.
        threading.Thread(target=_pass_on, args=(self._process.stderr,), daemon=True, name="web").start()

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _pass_on(said: IO[str]) -> None:
    """What the page says of itself later is our server's to say."""
    with said:
        for line in said:
            sys.stderr.write(line)
