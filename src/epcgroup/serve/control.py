"""The control socket: commands from the machine's owner, and nobody else.

Mode 0600 in a directory of the owner's, and the peer's user is checked again.
Each connection has a thread, which only reads: what touches ptrace is done by
the tracer's thread, to which an `exec` is handed over as a :class:`Job`.

    client → exec (arguments, directory, environment, group; its three descriptors)
    server → pid, or error
    client → signal, as often as it likes
    server → status (of wait(2)); the end

A client that asks gets an answer to each question; see `conversation`.

A client that goes away sends its command SIGHUP, as a terminal would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epcgroup.errors import BadInput, words_of
from epcgroup.serve import wire

if TYPE_CHECKING:
    from epcgroup.serve.conversation import Conversation

_UCRED = struct.Struct("3i")
#: Signals that a terminal sends to everybody in front of it.
TO_GROUP = {signal.SIGINT, signal.SIGQUIT, signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH}


@dataclass(slots=True, eq=False)
class Job:
    """A command of a client."""

    request: dict[str, Any]
    fds: list[int]
    sock: socket.socket
    pid: int = 0
    pidfd: int = -1
    early: list[int] = field(default_factory=list)  # signals from before it ran
    lock: threading.Lock = field(default_factory=threading.Lock)

    def started(self, pid: int) -> None:
        """The command runs."""
        with self.lock:
            self.pid, self.pidfd = pid, os.pidfd_open(pid)
        self.say(pid=pid)
        for number in self.early:  # no more come: it runs
            self.signal(number)

    def ended(self, status: int) -> None:
        """The command is gone; so is its client's business."""
        with self.lock:
            os.close(self.pidfd)
            self.pidfd = -1
        self.answered(status=status)

    def refused(self, error: Exception) -> None:
        """The command was not started."""
        text = words_of(error)
        self.answered(error=text)

    def answered(self, **message: Any) -> None:
        """All is said."""
        self.say(**message)
        self.hang_up()

    @property
    def client(self) -> int:
        """The process at the other end."""
        return int(_UCRED.unpack(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])

    def say(self, **message: Any) -> None:
        """One message to the client, if it is still there."""
        with contextlib.suppress(OSError):
            wire.send(self.sock, message)

    def hang_up(self) -> None:
        """End the conversation."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def signal(self, number: int) -> None:
        """Pass a signal on, to the whole process group where a terminal would."""
        with self.lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self.pidfd < 0:
                if not self.pid:
                    self.early.append(number)
                return
            if number in TO_GROUP:
                os.killpg(self.pid, number)  # the leader is not reaped yet: the number is still its own
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def close_fds(self) -> None:
        """Close our copies of the client's descriptors."""
        while self.fds:
            os.close(self.fds.pop())


class Control(threading.Thread):
    """Listens; ``submit(job)`` is called for each command.

    All else is questions, as many as the client likes on one connection:
    ``converse()`` gives what answers those of one client.
    """

    def __init__(
        self,
        path: Path,
        submit: Callable[[Job], None],
        converse: Callable[[], Conversation],
    ) -> None:
        """Binds the socket; the caller holds the directory's lock, so a socket left over is dead."""
        super().__init__(name="control", daemon=True)
        self._submit = submit
        self._converse = converse
        self._path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}; a shorter --dir may help") from error
        finally:
            os.umask(mask)
        self._socket.listen(64)

    def run(self) -> None:
        """Take connections until `close`."""
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="client").start()

    def close(self) -> None:
        """No more connections; the path is free."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, BadInput):
            _, uid, _ = _UCRED.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            if uid not in (0, os.geteuid()):
                return
            asked = self._questions(connection)
            if asked is None:
                return
            request, fds = asked
            job = Job(request, fds, connection)
            self._submit(job)
            try:
                while (message := wire.receive(connection)) is not None:
                    for fd in message[1]:
                        os.close(fd)
                    job.signal(int(message[0].get("signal", 0)))
            finally:
                job.signal(signal.SIGHUP)

    def _questions(self, connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
        """Answer until the client is gone: None. What it wants run or joined is handed back."""
        with contextlib.closing(self._converse()) as conversation:
            while (received := wire.receive(connection)) is not None:
                request, fds = received
                if request.get("do") in ("exec", "attach"):
                    return request, fds
                for fd in fds:
                    os.close(fd)
                wire.send(connection, conversation.answer(request))
        return None
