"""Seccomp filters for a process that already runs: the first one, where we joined it, and more."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.live.tracing import memory, procfs, scratch, seccomp

if TYPE_CHECKING:
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_EXACT = 8  # filters for single enclaves
_END = 1 << 47  # of user addresses


def add(tracer: Tracer, task: Task, program: bytes) -> None:
    """Put all threads of the process under ``program`` as well.

    ``task`` is at a stop where system calls can be run in it. Raises Refused where a
    thread has filters that the others lack.
    """
    with scratch.page(tracer, task) as page:
        memory.write(task.tid, page, seccomp.image(program, page))
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
    """Have calls about ``[start, start + size)``, and calls made from there, reported; once.

    Filters only ever get more, and a process may have some 500 like these. So one that makes
    enclaves at ever new places gets filters for whole gaps between its host code.
    """
    ranges = task.mm.trap_ranges
    if any(low <= start and start + size <= low + length for low, length in ranges):
        return
    if len(ranges) >= _EXACT:
        start, size = _gap(task, start, size)
    add(tracer, task, seccomp.enclave_filter(start, size))
    ranges.add((start, size))


def _gap(task: Task, start: int, size: int) -> tuple[int, int]:
    """The largest range around this one with no code in it that may make system calls of its own."""
    low, high = 0, _END
    for mapping in procfs.maps(task.tid):
        if mapping.executable and task.mm.find(mapping.start) is None:
            if mapping.end <= start:
                low = max(low, mapping.end)
            elif mapping.start >= start + size:
                high = min(high, mapping.start)
    return low, high - low


__all__ = ["add", "watch_range"]
