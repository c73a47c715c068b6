"""Memory that would come before we are asked: mlock(2), MAP_POPULATE, a thread that is quick.

The kernel's driver maps device memory (VM_PFNMAP): it is never locked, and nothing
of it is brought in before it is touched, whatever a program asks for. Our mappings
are of a memfd. There the kernel would do as asked, before a userfaultfd is
registered: an evicted page came back as zeros. Or after: it waits, for every page and
not to be interrupted, for faults that nobody may answer (a TCS, a hole).

So enclave memory is left out of what these calls do to other memory. After
mlockall(MCL_FUTURE) every new mapping is filled at once; and another thread may touch
one before its faults are ours, above all where it replaces another (MAP_FIXED). A
mapping that nobody may touch is not filled, so enclave memory gets its protection
last. A thread that met it before simply tries again (`faults.too_early`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, procfs
from epcgroup.units import PAGE_SIZE, page_ceil

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

#: Flags of mmap that mean nothing for device memory: MAP_LOCKED, MAP_POPULATE.
MAP_AT_ONCE = 0x2000 | 0x8000
_SYS_MPROTECT, _SYS_MUNLOCK, _SYS_MLOCKALL = 10, 150, 151
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PAGE_MASK = ~(PAGE_SIZE - 1)


def first_protection(task: Task, prot: int) -> int:
    """What to map device memory with; `ready` follows when its faults are served."""
    return 0 if task.mm.locking or len(task.mm.users) > 1 else prot


def ready(tracer: Tracer, task: Task, start: int, length: int, first: int, prot: int) -> None:
    """The faults of a mapping made with protection ``first`` are served now: it gets ``prot``."""
    if task.mm.locking:
        tracer.inject(task, _SYS_MUNLOCK, start, length)
    if first != prot:
        tracer.inject(task, _SYS_MPROTECT, start, length, prot)


def joined(task: Task) -> None:
    """A process that ran before us: has it perhaps said that it locks what will come?"""
    task.mm.locking = int(procfs.status(task.tid)["VmLck"].split()[0]) > 0


def mlock(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """mlock and mlock2 of a range that may hold enclave memory: of the rest."""
    start = regs.rdi & _PAGE_MASK
    end = page_ceil(regs.rdi + regs.rsi) * PAGE_SIZE
    if not task.mm.overlapping(start, end):
        tracer.resume(task)
        return
    rest = _without_enclaves(task, start, end)
    if not rest:
        answers.emulate(tracer, task, regs, 0)
        return
    (first, length), *others = rest
    number, flags = regs.orig_rax, regs.rdx

    def locked(stopped: Task, result: int) -> int:
        for at, size in others if result == 0 else ():
            try:
                tracer.inject(stopped, number, at, size, flags)
            except OSError as refused:
                return -(refused.errno or 0)
        return result

    answers.rewrite(tracer, task, regs, {"rdi": first, "rsi": length}, locked)


def _without_enclaves(task: Task, start: int, end: int) -> list[tuple[int, int]]:
    """(address, length) of the pieces of ``[start, end)`` that are no enclave's."""
    pieces = []
    for vma in task.mm.overlapping(start, end):
        if start < vma.start:
            pieces.append((start, vma.start - start))
        start = vma.end
    if start < end:
        pieces.append((start, end - start))
    return pieces


def mlockall(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """mlockall: remembered for mappings to come; beside enclaves, what is there is locked as it is touched.

    (It would be filled in one go, enclaves and all.)
    """
    asked = regs.rdi
    beside = asked & _MCL_CURRENT and any(True for _ in task.mm)

    def locked(stopped: Task, result: int) -> int:
        if result < 0:
            return result
        if beside:
            for vma in list(stopped.mm):
                tracer.inject(stopped, _SYS_MUNLOCK, vma.start, vma.end - vma.start)
            if asked & _MCL_FUTURE:
                tracer.inject(stopped, _SYS_MLOCKALL, asked & ~_MCL_CURRENT)
        stopped.mm.locking = bool(asked & _MCL_FUTURE)
        return result

    changes = {"rdi": asked & ~_MCL_FUTURE | _MCL_ONFAULT} if beside else {}
    answers.rewrite(tracer, task, regs, changes, locked)


__all__ = ["MAP_AT_ONCE", "first_protection", "joined", "mlock", "mlockall", "ready"]
