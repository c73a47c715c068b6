"""/proc/cpuinfo, with the flags of the processor that the answers to CPUID describe.

Start scripts look there, and lscpu.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, handover, standins

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

NAME = "/proc/cpuinfo"
_NAMES = (NAME, "cpuinfo")
_FLAGS = re.compile(rb"^flags\t*:.*$", re.MULTILINE)
_OURS = (b"sgx", b"sgx_lc")


def opens(tracer: Tracer, task: Task, regs: UserRegs, name: str, flags: int) -> bool:
    """Answer an open of that name (O_* flags); False leaves it to the kernel.

    By the name in /proc, as lscpu does it, from another pid namespace, or where the program may not look
    into us: the open is let run, and if it was that file, ours is put in its place.
    """
    if name not in _NAMES or flags & standins.NOT_TO_READ:
        return False
    if name == NAME and standins.possible(task, flags):
        standins.open_instead(tracer, task, regs, flags, _text())
    else:
        answers.rewrite(tracer, task, regs, {}, lambda task, fd: _opened(tracer, task, fd))
    return True


def _opened(tracer: Tracer, task: Task, fd: int) -> int:
    with contextlib.suppress(OSError):
        if fd >= 0 and os.readlink(f"/proc/{task.tid}/fd/{fd}") == NAME:  # noqa: PTH115 - a str
            ours = standins.with_text(_text())
            try:
                handover.replace(tracer, task, fd, ours)
            finally:
                os.close(ours)
    return fd


def _text() -> bytes:
    return with_flags(Path(NAME).read_bytes())


def with_flags(text: bytes) -> bytes:
    """
    >>> with_flags(b"processor\\t: 0\\nflags\\t\\t: fpu sgx\\nbugs\\t\\t:\\n")
    b'processor\\t: 0\\nflags\\t\\t: fpu sgx sgx_lc\\nbugs\\t\\t:\\n'
    """

    def more(line: re.Match[bytes]) -> bytes:
        known = line[0].split()
        return b" ".join([line[0], *(flag for flag in _OURS if flag not in known)])

    return _FLAGS.sub(more, text)
