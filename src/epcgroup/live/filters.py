"""Seccomp filters for a process that already runs: the first one, where we joined it, and more."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.live import memory, scratch, seccomp

if TYPE_CHECKING:
    from epcgroup.live.task import Task
    from epcgroup.live.tracer import Tracer


def add(tracer: Tracer, task: Task, program: bytes) -> None:
    """Put all threads of the process under ``program`` as well.

    ``task`` is at a stop where system calls can be run in it. Raises Refused where a
    thread has filters that the others lack.
    """
    with scratch.page(tracer, task) as page:
        memory.write(task.pid, page, seccomp.image(program, page))
        odd = _install(tracer, task, page)
        if odd:
            raise Refused(f"thread {odd} of process {task.pid} has a seccomp filter of its own", errno.EBUSY)


def _install(tracer: Tracer, task: Task, page: int) -> int:
    call = seccomp.SYS["seccomp"], seccomp.SET_MODE_FILTER, seccomp.FILTER_FLAG_TSYNC, page
    try:
        return tracer.inject(task, *call)
    except (
        PermissionError
    ):  # it has no CAP_SYS_ADMIN (any more), and gives up what set-user-ID programs could give it
        tracer.inject(task, seccomp.SYS["prctl"], seccomp.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return tracer.inject(task, *call)


def watch_range(tracer: Tracer, task: Task, start: int, size: int) -> None:
    """Have calls about ``[start, start + size)``, and calls made from there, reported; once."""
    if (start, size) not in task.mm.trap_ranges:
        add(tracer, task, seccomp.enclave_filter(start, size))
        task.mm.trap_ranges.add((start, size))


__all__ = ["add", "watch_range"]
