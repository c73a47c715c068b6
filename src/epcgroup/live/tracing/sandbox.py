"""Programs under seccomp filters of their own, as every container is.

Of two filters' verdicts the stricter counts, and ERRNO and KILL are stricter
than our TRACE. What that would break, and what is done:

* Our traps are ``int $0x80``, a 32-bit call, which filters for 64-bit programs refuse
  or kill for. So a few instructions go in front of the program's filter: 32-bit
  calls are none of its business, nor is the number by which enclaves ask for leaves.
  They cannot be used to get around it: a task under a filter of its own makes
  no 32-bit call but our traps (ENOSYS), and no system call has that number.
* Calls that we have a thread make (userfaultfd above all, which no container's
  filter allows) are made with its filters suspended (PTRACE_O_SUSPEND_SECCOMP).
  The kernel lets only CAP_SYS_ADMIN do so; others' injected calls may be refused.

The program's filter is in force for everything that the program does itself.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, memory, ptrace, seccomp

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_SYS_MMAP, _SYS_MUNMAP = 9, 11
_PRIVATE_ANON, _READ_WRITE = 0x22, 3
_NO_FD = -1 & 0xFFFFFFFFFFFFFFFF
_FPROG = struct.Struct("<H6xQ")
_INSN_SIZE, _LONGEST = 8, 4096  # bytes, instructions (BPF_MAXINSNS)
_ARCH_X86_64 = 0xC000003E


def install(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """A new filter, by seccomp(2) or prctl(2): its third argument points to a longer one instead."""
    arguments = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8]
    try:
        count, code = _FPROG.unpack(memory.read(task.tid, arguments[2], _FPROG.size))
        program = memory.read(task.tid, code, count * _INSN_SIZE)
    except OSError:
        tracer.resume(task)  # the kernel finds what is wrong with it
        return
    longer = seccomp.PASS_OURS + program
    if not 0 < len(longer) // _INSN_SIZE <= _LONGEST:
        tracer.resume(task)
        return
    size = _FPROG.size + len(longer)
    place = tracer.inject(task, _SYS_MMAP, 0, size, _READ_WRITE, _PRIVATE_ANON, _NO_FD, 0)
    try:
        memory.write(task.tid, place, seccomp.image(longer, place))
        arguments[2] = place
        result = tracer.inject(task, regs.orig_rax, *arguments)
        for tid in [other.tid for other in tracer.tasks.values() if other.pid == task.pid]:
            tracer.injector.sandboxed.add(tid)
    except ProcessLookupError:
        raise
    except OSError as refused:
        result = -(refused.errno or errno.EINVAL)
    with contextlib.suppress(OSError):
        tracer.inject(task, _SYS_MUNMAP, place, size)
    answers.emulate(tracer, task, regs, result)


def is_foreign(tracer: Tracer, task: Task) -> bool:
    """Whether a stopped task under a filter of its own is making a 32-bit call."""
    return task.tid in tracer.injector.sandboxed and ptrace.syscall_arch(task.tid) != _ARCH_X86_64


__all__ = ["install", "is_foreign"]
