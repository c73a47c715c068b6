"""A small process that outlives the supervisor, to take our traps out of programs that outlive it too.

A process that we joined and that owns no enclave goes on without us (`attach`). Where
its CPUID instructions stood there are UD2s then, which nobody would answer. If we end
in good order we put them back; if we are killed, the guard does, a few milliseconds
later. It reads lines from a pipe: ``keep PID START SITE…``, ``drop PID``; the end of
the pipe is our end. It imports nothing of ours: it is a script of its own, as small
and independent as can be.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epcgroup.live.paging.mm import AddressSpace

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"


class Guard:
    """Our end of the pipe; the process is started when there is something to guard."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: set[int] = set()

    def keep(self, space: AddressSpace) -> None:
        """Take the traps of ``space``, as they are now, out of it if we are killed."""
        if not space.traps and space.pid not in self._kept:
            return
        if self._process is None:
            command = [sys.executable, "-I", "-S", __file__]
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True
            )
        with contextlib.suppress(OSError):  # it is gone already
            start = started(space.pid)
            self._kept.add(space.pid)
            self._tell(f"keep {space.pid} {start} {' '.join(map(str, space.traps))}")

    def drop(self, space: AddressSpace) -> None:
        """The address space is gone, or bound to us for its life."""
        if space.pid in self._kept:
            self._kept.discard(space.pid)
            self._tell(f"drop {space.pid}")

    def end(self) -> None:
        """Nothing is left to guard."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()


def started(pid: int) -> str:
    """When the process began, in ticks since boot: tells it from a later one of the same number."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def restore(pid: int, sites: list[int]) -> None:
    """Put CPUID back where a UD2 of ours stands. The second byte differs: no half-written one is ever run."""
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for site in sites:
            with contextlib.suppress(OSError):
                memory.seek(site)
                if memory.read(2) == UD2:
                    memory.seek(site + 1)
                    memory.write(CPUID[1:])


def main() -> None:
    """Listen until the supervisor is gone, then mend what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept: dict[int, tuple[str, list[int]]] = {}
    for line in sys.stdin:
        word, pid, *rest = line.split()
        if word == "keep":
            kept[int(pid)] = rest[0], [int(site) for site in rest[1:]]
        else:
            kept.pop(int(pid), None)
    for process, (start, sites) in kept.items():
        with contextlib.suppress(OSError):
            if started(process) == start:
                restore(process, sites)


if __name__ == "__main__":
    main()
