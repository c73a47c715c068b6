"""Files of /proc that speak of mounts and cgroups, and the ones a program of the machine opens instead.

The short way: a program that sees our /proc and opens one by its usual name is
led to a file of ours at once. The long way, for containers (their /proc counts
processes otherwise) and for names relative to a directory: the open is let run,
the kernel says which file it was, and ours is put in its place.

A name, and a descriptor, may be something else by the time of the next look: a
FIFO that nobody writes, a file of a FUSE server that never answers. So the
program makes its opens itself, with nobody waiting for them, and what we look at is
our own copy of its descriptor, of which the file system is not asked anything
before it is known to be a /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, handover, procfs, standins
from epcgroup.serve.notifier import texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer
    from epcgroup.serve.notifier.where import CgroupNamespaces
    from epcgroup.serve.numbers import Numbers

_FILES = ("mountinfo", "mounts", "cgroup", "cgroups")
_USUAL = re.compile(r"/proc/(?:(?:(self|thread-self|\d+)/)(mountinfo|mounts|cgroup)|(mounts|cgroups))")
_FIGETBSZ = 2  # answered by the kernel itself, from the superblock
_PROC_BLOCK = 1024
_libc = ctypes.CDLL(None, use_errno=True)


class ProcFiles:
    """Answers opens."""

    def __init__(
        self,
        source: bytes,
        hidden: bytes,
        namespaces: CgroupNamespaces,
        numbers: Numbers,
        cgroups: Callable[[], int],
    ) -> None:
        """``cgroups()`` counts those of the machine; the rest as `texts` wants it."""
        self._source = source
        self._hidden = hidden
        self._namespaces = namespaces
        self._numbers = numbers
        self._cgroups = cgroups

    def opens(self, tracer: Tracer, task: Task, regs: UserRegs, name: str, flags: int) -> bool:
        """As View.opens; /proc/self/fd/N may be such a file, opened again."""
        if not name.endswith(_FILES) and "/fd/" not in name:
            return False
        usual = _USUAL.fullmatch(name)
        if usual is not None and standins.possible(task, flags):
            text = self._usual(task, usual)
            if text is not None:
                standins.open_instead(tracer, task, regs, flags, text)
                return True
        answers.rewrite(tracer, task, regs, {}, lambda task, fd: self._opened(tracer, task, fd))
        return True

    # -- the short way -------------------------------------------------------------

    def _usual(self, task: Task, usual: re.Match[str]) -> bytes | None:
        whose, file, above = usual.groups()
        owner = task.pid if whose is None or not whose.isdigit() else int(whose)
        with contextlib.suppress(OSError):
            os.stat(f"/proc/{owner}")
            return self._text(task, file or above, owner, Path(f"/proc/{owner}/{file or above}"))
        return None

    # -- the long way --------------------------------------------------------------

    def _opened(self, tracer: Tracer, task: Task, fd: int) -> int:
        if fd < 0:
            return fd
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{task.tid}/fd/{fd}").endswith(_FILES):  # noqa: PTH115 - a str
                theirs = procfs.take_fd(task.tid, fd)
                try:
                    self._replace(tracer, task, fd, theirs)
                finally:
                    os.close(theirs)
        return fd

    def _replace(self, tracer: Tracer, task: Task, fd: int, theirs: int) -> None:
        """Put our file in the place of ``fd`` if ``theirs``, a copy of it, is one of a /proc."""
        link = f"/proc/self/fd/{theirs}"
        above, _, file = os.readlink(link).rpartition("/")  # noqa: PTH115 - a str
        if file not in _FILES or not (above[-1:].isdigit() or file == "cgroups") or not _is_proc(theirs):
            return
        owner = None if file == "cgroups" else self._owner(task, theirs, above)
        text = self._text(task, file, owner, Path(link))
        if text is not None:
            ours = standins.with_text(text)
            try:
                handover.replace(tracer, task, fd, ours)
            finally:
                os.close(ours)

    def _owner(self, task: Task, file: int, directory: str) -> int | None:
        """The process, by our number, whose directory of a /proc this is; None if that cannot be told."""
        words = directory.split("/")  # …/PID or …/PID/task/TID
        number = words[-3] if words[-2:-1] == ["task"] else words[-1]
        if not number.isdigit():
            return None
        if os.fstat(file).st_dev == os.stat("/proc").st_dev:
            return int(number)
        return self._numbers.meant(task.pid, int(number))

    # -- both ------------------------------------------------------------------------

    def _text(self, reader: Task, file: str, owner: int | None, original: Path) -> bytes | None:
        """What is to be read; None to leave it as it is. OSError where the original cannot be read."""
        if file == "cgroups":
            return texts.controllers(self._cgroups())
        if file == "mounts":
            return texts.mounts(original.read_bytes(), self._source, self._hidden)
        root = self._namespaces.root_of(reader)
        if file == "mountinfo":
            return texts.mountinfo(original.read_bytes(), self._source, self._hidden, root)
        if owner is None:
            return None
        return texts.cgroup(texts.seen_from(self._namespaces.path_of(owner), root))


def _is_proc(file: int) -> bool:
    """Whether a file is one of a /proc. One opened by O_PATH is not: who reads it opens it again."""
    block, buffer = bytearray(4), ctypes.create_string_buffer(120)
    fcntl.ioctl(file, _FIGETBSZ, block)
    if int.from_bytes(block, "little") != _PROC_BLOCK:
        return False
    if _libc.fstatfs(file, buffer) < 0:
        return False
    return bool(struct.unpack_from("<q", buffer)[0] == texts.PROC_MAGIC)
