"""Waiting for changes of event files: poll(2) with POLLPRI, as kernfs and our mount do it.

A file answers POLLPRI from when it changed until it is read again. There is no
time-out loop here: between changes nothing runs.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """What a file says now; ``removed``: its cgroup is gone."""

    file: Path
    text: str
    removed: bool = False


def changes(files: list[Path], timeout_s: float | None = None) -> Iterator[Change]:
    """Each change of any of the files, until all are gone or ``timeout_s`` is over.

    Raises OSError when a file cannot be opened.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    poll = select.poll()
    watched: dict[int, Path] = {}
    try:
        for file in files:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            watched[fd] = file
            os.pread(fd, 4096, 0)  # changes count from now
            poll.register(fd, select.POLLPRI)
        while watched:
            left = None if end is None else max(0.0, (end - time.monotonic()) * 1000)
            ready = poll.poll(left)
            if not ready:
                return
            for fd, _ in ready:
                yield _read(poll, watched, fd)
    finally:
        for fd in watched:
            os.close(fd)


def _read(poll: select.poll, watched: dict[int, Path], fd: int) -> Change:
    file = watched[fd]
    try:
        return Change(file, os.pread(fd, 4096, 0).decode(errors="replace"))
    except OSError:
        poll.unregister(fd)
        os.close(fd)
        del watched[fd]
        return Change(file, "", removed=True)
