"""The process that outlives a killed supervisor for a moment (see `guard`).

* A process that we joined and that owns no enclave goes on without us (`attach`). Where its
  CPUID instructions stood there are UD2s then, which nobody would answer. If we end in good
  order we put them back; if we are killed, this does, a few milliseconds later.
* A process that owns an enclave is killed by the kernel when we die. But a dying process
  first loses its descriptors (exit_files) and only then what it traces (exit_notify). With
  the last descriptor of a userfaultfd the kernel forgets that pages of the range are evicted,
  and a thread that touches one in between reads zeros. So each userfaultfd is open here too,
  until our pidfd says that all of that is over: the thread waits, and dies waiting.

It reads lines from its standard input, a socket whose end is the supervisor's end: ``keep
PID START SITE…``, ``drop PID``, ``hold FD`` with a descriptor, ``free FD``. It
imports nothing of ours: a script as small and independent as can be.

Rejected: a copy of the descriptor in the program (it sees and may close it); in the queue
of a socket that nobody reads (the kernel collects those that only we could reach).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # (to import typing takes as long as all the rest)
if TYPE_CHECKING:
    from collections.abc import Iterator

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
_MOMENT = 0.2  # s; a SIGKILL that was sent needs microseconds
_MOST = 64  # descriptors of one message


def started(pid: int) -> str:
    """When the process began, in ticks since boot: tells it from a later one of the same number."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:  # noqa: PTH123 (pathlib takes as long as all else here)
        return file.read().rpartition(")")[2].split()[19]


def restore(pid: int, sites: list[int]) -> None:
    """Put CPUID back where a UD2 of ours stands. The second byte differs: no half-written one is ever run."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
        for site in sites:
            with contextlib.suppress(OSError):
                memory.seek(site)
                if memory.read(2) == UD2:
                    memory.seek(site + 1)
                    memory.write(CPUID[1:])


def _heard(line: socket.socket, came: list[int]) -> Iterator[list[str]]:
    """The words of each line until the supervisor's end; their descriptors go to ``came``, in order."""
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while True:
            more, fds, _, _ = socket.recv_fds(line, 1 << 16, _MOST)
            if not more:
                return
            came += fds
            *lines, text = (text + more).split(b"\n")
            yield from (words.decode().split() for words in lines)


def main() -> None:
    """Listen until the supervisor is gone, then mend what it left, and wait for its programs' end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept: dict[str, list[str]] = {}
    held: dict[str, int] = {}
    came: list[int] = []
    for word, *rest in _heard(socket.socket(fileno=0), came):
        if word == "keep":
            kept[rest[0]] = rest[1:]
        elif word == "drop":
            kept.pop(rest[0], None)
        elif word == "hold":
            held[rest[0]] = came.pop(0)
        elif word == "free":
            os.close(held.pop(rest[0]))
    for pid, (start, *sites) in kept.items():
        with contextlib.suppress(OSError):
            if started(int(pid)) == start:
                restore(int(pid), [int(site) for site in sites])
    if held:
        select.select([int(sys.argv[1])], [], [])
        time.sleep(_MOMENT)


if __name__ == "__main__":
    main()
