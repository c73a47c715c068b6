"""Three ways to answer a system call: let it go, emulate it, rewrite it.

* let go untouched: `Tracer.resume`;
* `emulate`: number -1, result in rax, one stop in all;
* `rewrite`: arguments changed, and at the exit stop every argument register put
  back, because libc relies on them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from epcgroup.live.tracing import inject, ptrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer


_AT_FDCWD = -100
_SYS_OPENAT = 257


def emulate(tracer: Tracer, task: Task, regs: UserRegs, result: int) -> None:
    """Skip the system call; the program sees ``result`` (or -errno)."""
    regs.orig_rax = 0xFFFFFFFFFFFFFFFF
    regs.rax = result & 0xFFFFFFFFFFFFFFFF
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def interrupt(tracer: Tracer, task: Task, regs: UserRegs, code: int) -> None:
    """Skip the system call because a signal waits: then it is made again, or fails with EINTR.

    ``code``: ERESTARTSYS or its like. The kernel decides when it has looked at the handler,
    and only for a system call, so the number must be back by then.
    """
    number = regs.orig_rax
    regs.orig_rax = 0xFFFFFFFFFFFFFFFF
    ptrace.setregs(task.tid, regs)

    def at_exit(stopped: Task) -> None:
        now = ptrace.getregs(stopped.tid, ptrace.UserRegs())
        now.orig_rax, now.rax = number, -code & 0xFFFFFFFFFFFFFFFF
        ptrace.setregs(stopped.tid, now)
        tracer.resume(stopped)

    tracer.resume_to_exit(task, at_exit)


def rewrite(
    tracer: Tracer,
    task: Task,
    regs: UserRegs,
    changes: dict[str, int],
    then: Callable[[Task, int], int | None],
) -> None:
    """Run the call with ``changes`` to its registers.

    ``then(task, result)`` is called at the exit stop, with the registers put
    back; what it returns is what the program sees. None has the program make the call
    again, as it was: nobody waits for that, and it comes here anew.
    """
    number = regs.orig_rax
    before = {name: getattr(regs, name) for name in changes if name != "orig_rax"}
    for name, value in changes.items():
        setattr(regs, name, value & 0xFFFFFFFFFFFFFFFF)
    ptrace.setregs(task.tid, regs)

    def at_exit(stopped: Task) -> None:
        now = ptrace.getregs(stopped.tid, ptrace.UserRegs())
        result = now.rax - (1 << 64) if now.rax >> 63 else now.rax
        for name, value in before.items():
            setattr(now, name, value)
        ptrace.setregs(stopped.tid, now)
        final = then(stopped, result)
        if final is None:
            now.rip -= len(inject.SYSCALL_INSN)
            now.rax, now.orig_rax = number, ptrace.NO_SYSCALL
            ptrace.setregs(stopped.tid, now)
        elif final != result:
            now.rax = final & 0xFFFFFFFFFFFFFFFF
            ptrace.setregs(stopped.tid, now)
        tracer.resume(stopped)

    tracer.resume_to_exit(task, at_exit)


def open_instead(
    tracer: Tracer, task: Task, regs: UserRegs, fd: int, flags: int, then: Callable[[Task, int], int | None]
) -> None:
    """Let an open of whatever name open the file behind our ``fd``, by our /proc/PID/fd.

    For a task that sees our /proc (`handover.same_pids`). ``flags``: those of the open;
    ``then`` as for `rewrite`.
    """
    changes = {
        "orig_rax": _SYS_OPENAT,
        "rdi": _AT_FDCWD,
        "rsi": tracer.scratch(task, b"/proc/%d/fd/%d\0" % (os.getpid(), fd)),
        "rdx": flags & (os.O_ACCMODE | os.O_CLOEXEC),
        "r10": 0,
    }
    rewrite(tracer, task, regs, changes, then)
