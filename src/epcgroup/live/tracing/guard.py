"""Our end of the line to a small process that outlives us (`survivor`).

It does the two things that only somebody else can do when we are killed: it takes our
traps out of the programs that go on without us, and it keeps the userfaultfds open until
the others have ended. It is started when there is first something to guard. One that was
killed or stopped is replaced, and told everything anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from epcgroup.live.tracing import survivor

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.paging.mm import AddressSpace

_PATIENCE = 10.0  # s; who has not read a full buffer by then is stopped


class Guard:
    """What is to be done after us; all calls come from the tracer's thread."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """``say`` is told if there can be no such process."""
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._kept: dict[int, str] = {}  # by process: what was said of it
        self._held: set[int] = set()  # descriptors

    def keep(self, space: AddressSpace) -> None:
        """Take the traps of ``space``, as they are now, out of it if we are killed."""
        if not space.traps and space.pid not in self._kept:
            return
        with contextlib.suppress(OSError):  # it is gone already
            start = survivor.started(space.pid)
            self._kept[space.pid] = f"keep {space.pid} {start} {' '.join(map(str, space.traps))}"
            self._tell(self._kept[space.pid])

    def drop(self, space: AddressSpace) -> None:
        """The address space is gone, or bound to us for its life."""
        if self._kept.pop(space.pid, None) is not None:
            self._tell(f"drop {space.pid}")

    def hold(self, fd: int) -> None:
        """Keep a duplicate of ``fd`` open until the kernel has killed what we trace."""
        self._held.add(fd)
        self._tell(f"hold {fd}", fd)

    def release(self, fd: int) -> None:
        """``fd`` is about to be closed, and means nothing any more."""
        if fd in self._held:
            self._held.discard(fd)
            self._tell(f"free {fd}")

    def end(self) -> None:
        """Nothing is left to guard, or somebody else shall do it."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()  # as it would end by itself, in a hundredth of a second less
            self._process.wait()
            self._process = self._line = None

    def _tell(self, words: str, *fds: int) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                _send(self._line, words, *fds)
                return
        try:
            self._start()
        except OSError as error:
            self._say(
                f"no process can be started that outlives this one ({error}): if it is killed, programs may "
                "see zeros in their last moment, or CPUIDs that raise SIGILL afterwards"
            )

    def _start(self) -> None:
        """A process that knows all that is to be known."""
        self.end()
        line, theirs = socket.socketpair()
        line.settimeout(_PATIENCE)
        ours = os.pidfd_open(os.getpid())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", survivor.__file__, str(ours)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(ours,),
                start_new_session=True,
            )
        except OSError:
            line.close()
            raise
        finally:
            os.close(ours)
            theirs.close()
        self._line = line
        for words in self._kept.values():
            _send(line, words)
        for fd in self._held:
            _send(line, f"hold {fd}", fd)


def _send(line: socket.socket, words: str, *fds: int) -> None:
    rest = memoryview(words.encode() + b"\n")
    rest = rest[socket.send_fds(line, [rest], fds) :] if fds else rest
    line.sendall(rest)
