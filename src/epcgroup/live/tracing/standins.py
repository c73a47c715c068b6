"""Files of ours that a program opens in the place of one that it names.

The open is led to a file in memory, through our /proc/PID/fd. Where that fails (the
program has no right to look into us, or sees another /proc) it is made once more, as
it was meant.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, handover, procfs

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

#: What such files are called.
MEMFD = "epcgroup-proc"
#: Flags of an open that is for more than reading.
NOT_TO_READ = os.O_ACCMODE | os.O_PATH | os.O_DIRECTORY | os.O_CREAT
_SYS_CLOSE = 3


def possible(task: Task, flags: int) -> bool:
    """Whether this open (O_* flags) can be led to a file of ours; once it failed, the next one is not."""
    again, task.as_meant = task.as_meant, False
    return not again and not flags & NOT_TO_READ and handover.same_pids(task.tid)


def open_instead(tracer: Tracer, task: Task, regs: UserRegs, flags: int, text: bytes) -> None:
    """Answer the open with a file that has this text."""
    ours = with_text(text)
    inode = os.fstat(ours).st_ino

    def opened(task: Task, fd: int) -> int | None:
        os.close(ours)
        if fd >= 0:
            if procfs.fd_inode(task.tid, fd) == inode:
                return fd
            tracer.inject(task, _SYS_CLOSE, fd)
        task.as_meant = True
        return None

    answers.open_instead(tracer, task, regs, ours, flags, opened)


def with_text(text: bytes) -> int:
    """A file in memory with this text, to be read from its beginning."""
    made = os.memfd_create(MEMFD, os.MFD_CLOEXEC)
    os.pwrite(made, text, 0)
    return made
