"""More seccomp filters for a process that already runs under the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.live import memory, scratch, seccomp

if TYPE_CHECKING:
    from epcgroup.live.task import Task
    from epcgroup.live.tracer import Tracer


def add(tracer: Tracer, task: Task, program: bytes) -> None:
    """Put all threads of the process under ``program`` as well.

    ``task`` is at a stop where system calls can be run in it.
    """
    with scratch.page(tracer, task) as page:
        memory.write(task.pid, page, seccomp.image(program, page))
        tracer.inject(task, seccomp.SYS["seccomp"], seccomp.SET_MODE_FILTER, seccomp.FILTER_FLAG_TSYNC, page)


def watch_range(tracer: Tracer, task: Task, start: int, size: int) -> None:
    """Have calls about ``[start, start + size)``, and calls made from there, reported; once."""
    if (start, size) not in task.mm.trap_ranges:
        add(tracer, task, seccomp.enclave_filter(start, size))
        task.mm.trap_ranges.add((start, size))


__all__ = ["add", "watch_range"]
