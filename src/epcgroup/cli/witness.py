"""Tells whether a signal that has reached us was sent to our whole process group, or to us alone.

What the kernel says of a signal (siginfo) does not hold that: kill(2) of a process and of its group look
the same. Nor does what the command shows of itself: it stops for us before it gets a signal, but not before
it takes one (sigwait, signalfd), and one that it blocks may be of any time. What tells it is another
member of the group, which does nothing but note what it gets. The kernel gives a signal to the youngest
member of a group first, so when we have ours, a child that was forked after us has its own. It leaves
it pending, where /proc shows it at once, however busy the machine is, until we ask what it is.

Who sends to processes one by one, as a service manager that ends all of a cgroup, meets the child too,
and has met the command as well. Who picks processes by name must not, for then the command is perhaps
not picked: so the child has another name than we.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Collection

ASK = signal.SIGRTMAX
_NAME = b"group-witness"
_NOTE = struct.Struct("<iii")
_PR_SET_PDEATHSIG = 1
_PATIENCE = 2.0  # s for its answer
_APART = 0.2  # s; a note so much older than ours is of something else


class Kind(NamedTuple):
    """What two signals have in common that one kill(2) has sent: number, si_code and sender."""

    number: int
    code: int
    sender: int


def kind_of(came: signal.struct_siginfo) -> Kind:
    """Of a signal that was taken."""
    return Kind(came.si_signo, came.si_code, came.si_pid)


class Witness:
    """The child, until it is closed. Made while ``numbers`` and ASK are blocked, and no thread runs yet."""

    def __init__(self, numbers: Collection[int]) -> None:
        self._numbers = numbers
        self._lock = threading.Lock()
        self._notes: list[tuple[Kind, float]] = []  # what it has met, and when we heard of it
        ours, its = socket.socketpair()
        with its:
            parent = os.getpid()
            self._pid = os.fork()
            if self._pid == 0:
                _live(its.fileno(), numbers, parent)
        self._process = os.pidfd_open(self._pid)
        self._status = os.open(f"/proc/{self._pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        self._line: socket.socket | None = ours

    def shared(self, kind: Kind, at: float) -> bool:
        """Whether what we have just taken, at the time ``at`` (time.monotonic), was sent to the group."""
        has = kind.number in self._pending()
        again = kind.number in signal.sigpending()
        with self._lock:
            if has:
                self._ask()
            found = next((note for note in self._notes if note[0] == kind and note[1] > at - _APART), None)
            if found is not None and not again:  # else the two came at once, and mean one
                self._notes.remove(found)
            return found is not None

    def since(self, kind: Kind, at: float) -> bool:
        """Whether it has met one like that after ``at``."""
        with self._lock:
            self._hear()
            return any(note[0] == kind and note[1] >= at for note in self._notes)

    def look(self) -> None:
        """To be called now and then: what only the child has met must not be taken for ours later."""
        with self._lock:
            self._hear()
            since = time.monotonic() - _APART
            self._notes = [note for note in self._notes if note[1] > since]

    def close(self) -> None:
        """End the child."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # who waits for any child has waited for it
            os.waitpid(self._pid, 0)
        os.close(self._process)
        os.close(self._status)
        if self._line is not None:
            self._line.close()

    def _pending(self) -> set[int]:
        """What it has and has not told of."""
        if self._line is None:
            return set()
        try:
            status = os.pread(self._status, 4096, 0)
        except ProcessLookupError:
            return set()
        found = re.search(rb"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
        pending = int(found[1], 16) if found else 0
        return {number for number in self._numbers if pending >> (number - 1) & 1}

    def _hear(self) -> None:
        if self._pending():
            self._ask()

    def _ask(self) -> None:
        """Have it tell what it has, and forget it."""
        if self._line is None:
            return
        try:
            for number in (signal.SIGCONT, ASK):  # it may have been stopped, as one of a job
                signal.pidfd_send_signal(self._process, number)
            while (note := self._read()) is not None:
                self._notes.append((note, time.monotonic()))
        except OSError:  # killed, or stopped again: done without
            self._line.close()
            self._line = None

    def _read(self) -> Kind | None:
        assert self._line is not None
        if not select.select([self._line], [], [], _PATIENCE)[0]:
            raise TimeoutError
        said = self._line.recv(_NOTE.size, socket.MSG_WAITALL)
        if len(said) < _NOTE.size:
            raise BrokenPipeError
        kind = Kind(*_NOTE.unpack(said))
        return kind if kind.number else None


def _live(line: int, numbers: Collection[int], parent: int) -> NoReturn:
    """The child's life."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            _be_small(line)
            while True:
                signal.sigwaitinfo({ASK})
                while (came := signal.sigtimedwait(numbers, 0)) is not None:
                    os.write(line, _NOTE.pack(*kind_of(came)))
                os.write(line, _NOTE.pack(0, 0, 0))
    finally:
        os._exit(0)


def _be_small(line: int) -> None:
    """Hold nothing but ``line``: no file, no directory, not our name."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.closerange(3, line)
    os.closerange(line + 1, 1 << 20)
    os.chdir("/")
    Path("/proc/self/comm").write_bytes(_NAME)
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123 - the command line
        memory.seek(start)
        memory.write(_NAME[: end - start - 1].ljust(end - start, b"\0"))
