"""Room for descriptors, files and threads: in a program whose table is full, and in ourselves."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

_A_FEW = 8
_AT_ONCE = 1  # descriptors that a program holds for us at the same time
_SPARE = 24  # what one more program with an enclave may need of us


@contextlib.contextmanager
def in_program(pid: int) -> Iterator[int]:
    """System calls injected into ``pid`` may open a few descriptors that it does not keep.

    Gives the program's own limit: numbers from there on are ours to close. Where its hard
    limit is reached and not ours to raise, its calls fail with EMFILE as ever.
    """
    soft, hard = limits = limits_of(pid)
    more = soft + _A_FEW, max(hard, soft + _A_FEW)
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, more)
    except (OSError, ValueError):
        yield soft
        return
    try:
        yield soft
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def limits_of(pid: int) -> tuple[int, int]:
    """Soft and hard limit of descriptors; by /proc, which asks for no capability."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return int(soft), int(hard)
    raise OSError(errno.ESRCH, f"process {pid} has no limits")


def left_in(pid: int) -> bool:
    """Whether `in_program` will find room, by what is free or what can be added."""
    soft, hard = limits_of(pid)
    held = sum(int(fd.name) < soft for fd in Path(f"/proc/{pid}/fd").iterdir())
    if soft + _A_FEW <= hard or held + _AT_ONCE <= soft:
        return True
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard + _A_FEW))
    except (OSError, ValueError):
        return False
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    return True


#: The limits this process had before the supervisor raised its own.
inherited = {what: resource.getrlimit(what) for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)}


def all_of_ours() -> None:
    """Raise our own limits as far as they go; programs that we start get them as they were (`loader`).

    The limit of a file's size holds for the memfds of enclaves too.
    """
    for what in inherited:
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (hard, hard))


def begin(thread: threading.Thread) -> None:
    """Start a thread of ours. Refused (EAGAIN), in words, where there is no room for one."""
    try:
        thread.start()
    except RuntimeError as error:
        raise Refused(
            "the supervisor cannot start a thread: raise its `ulimit -v`, `-d` or `-u`", errno.EAGAIN
        ) from error


def require() -> None:
    """OSError(ENFILE) unless a program can be given one more device, and all that follows from it."""
    spare: list[int] = []
    try:
        while len(spare) < _SPARE:
            spare.append(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as error:
        raise OSError(
            errno.ENFILE, "the supervisor has no descriptors left: raise its `ulimit -n`"
        ) from error
    finally:
        for fd in spare:
            os.close(fd)


__all__ = ["all_of_ours", "begin", "in_program", "inherited", "left_in", "limits_of", "require"]
