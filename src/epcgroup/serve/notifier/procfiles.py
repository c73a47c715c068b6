"""Files of /proc that speak of mounts and cgroups, and the ones a program of the machine opens instead.

The short way: a program that sees our /proc and opens one by its usual name is
led to a file of ours at once. The long way, for containers (their /proc counts
processes otherwise) and for names relative to a directory: the open is let run,
the kernel says which file it was, and ours is put in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, handover, procfs
from epcgroup.serve.notifier import texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer
    from epcgroup.serve.notifier.where import CgroupNamespaces
    from epcgroup.serve.numbers import Numbers

#: What the files in memory that stand in for them are called.
MEMFD = "epcgroup-proc"
_FILES = ("mountinfo", "mounts", "cgroup", "cgroups")
_USUAL = re.compile(r"/proc/(?:(?:(self|thread-self|\d+)/)(mountinfo|mounts|cgroup)|(mounts|cgroups))")
_ALL_FLAGS = os.O_ACCMODE | os.O_PATH | os.O_DIRECTORY | os.O_CREAT
_SYS_CLOSE = 3
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
        if usual is not None and not flags & _ALL_FLAGS and handover.same_pids(task.tid):
            text = self._usual(task, usual)
            if text is not None:
                self._open_instead(tracer, task, regs, flags, text)
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

    def _open_instead(self, tracer: Tracer, task: Task, regs: UserRegs, flags: int, text: bytes) -> None:
        """Where it fails (no right to look into us, another /proc), the call is made as it was meant."""
        ours = _file_of(text)
        inode = os.fstat(ours).st_ino
        call = (regs.orig_rax, regs.rdi, regs.rsi, regs.rdx, regs.r10)

        def opened(task: Task, fd: int) -> int:
            os.close(ours)
            if fd >= 0 and procfs.fd_inode(task.tid, fd) == inode:
                return fd
            try:
                if fd >= 0:
                    tracer.inject(task, _SYS_CLOSE, fd)
                return self._opened(tracer, task, tracer.inject(task, *call))
            except ProcessLookupError:
                raise
            except OSError as error:
                return -(error.errno or errno.EIO)

        answers.open_instead(tracer, task, regs, ours, flags, opened)

    # -- the long way --------------------------------------------------------------

    def _opened(self, tracer: Tracer, task: Task, fd: int) -> int:
        if fd < 0:
            return fd
        link = f"/proc/{task.tid}/fd/{fd}"
        with contextlib.suppress(OSError):
            above, _, file = os.readlink(link).rpartition("/")  # noqa: PTH115 - a str
            if file in _FILES and (above[-1:].isdigit() or file == "cgroups") and _is_proc(link):
                owner = None if file == "cgroups" else self._owner(task, link, above)
                text = self._text(task, file, owner, Path(link))
                if text is not None:
                    ours = _file_of(text)
                    try:
                        handover.replace(tracer, task, fd, ours)
                    finally:
                        os.close(ours)
        return fd

    def _owner(self, task: Task, link: str, directory: str) -> int | None:
        """The process, by our number, whose directory of a /proc this is; None if that cannot be told."""
        words = directory.split("/")  # …/PID or …/PID/task/TID
        number = words[-3] if words[-2:-1] == ["task"] else words[-1]
        if not number.isdigit():
            return None
        if os.stat(link).st_dev == os.stat("/proc").st_dev:
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


def _is_proc(path: str) -> bool:
    """Whether a file is one of a /proc."""
    buffer = ctypes.create_string_buffer(120)
    if _libc.statfs(path.encode(), buffer) < 0:
        return False
    return bool(struct.unpack_from("<q", buffer)[0] == texts.PROC_MAGIC)


def _file_of(text: bytes) -> int:
    """A file in memory with this text, to be read from its beginning."""
    made = os.memfd_create(MEMFD, os.MFD_CLOEXEC)
    os.pwrite(made, text, 0)
    return made
