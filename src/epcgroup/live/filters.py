"""More seccomp filters for a process that already runs under the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.live import memory, seccomp

if TYPE_CHECKING:
    from epcgroup.live.task import Task
    from epcgroup.live.tracer import Tracer

_SYS_MMAP, _SYS_MUNMAP = 9, 11
_PRIVATE_ANON = 0x22
_READ_WRITE = 3
_NO_FD = -1 & 0xFFFFFFFFFFFFFFFF


def add(tracer: Tracer, task: Task, program: bytes) -> None:
    """Put all threads of the process under ``program`` as well.

    ``task`` is at a stop where system calls can be run in it.
    """
    scratch = tracer.inject(task, _SYS_MMAP, 0, 4096, _READ_WRITE, _PRIVATE_ANON, _NO_FD, 0)
    memory.write(task.pid, scratch, seccomp.image(program, scratch))
    tracer.inject(task, seccomp.SYS["seccomp"], seccomp.SET_MODE_FILTER, seccomp.FILTER_FLAG_TSYNC, scratch)
    tracer.inject(task, _SYS_MUNMAP, scratch, 4096)


def watch_range(tracer: Tracer, task: Task, start: int, size: int) -> None:
    """Have calls about ``[start, start + size)``, and calls made from there, reported; once."""
    if (start, size) not in task.mm.trap_ranges:
        add(tracer, task, seccomp.enclave_filter(start, size))
        task.mm.trap_ranges.add((start, size))


__all__ = ["add", "watch_range"]
