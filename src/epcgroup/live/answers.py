"""Three ways to answer a system call: let it go, emulate it, rewrite it.

* let go untouched: `Tracer.resume`;
* `emulate`: number -1, result in rax, one stop in all;
* `rewrite`: arguments changed, and at the exit stop every argument register put
  back, because libc relies on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.live import ptrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.ptrace import UserRegs
    from epcgroup.live.task import Task
    from epcgroup.live.tracer import Tracer


def emulate(tracer: Tracer, task: Task, regs: UserRegs, result: int) -> None:
    """Skip the system call; the program sees ``result`` (or -errno)."""
    regs.orig_rax = 0xFFFFFFFFFFFFFFFF
    regs.rax = result & 0xFFFFFFFFFFFFFFFF
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def rewrite(
    tracer: Tracer, task: Task, regs: UserRegs, changes: dict[str, int], then: Callable[[Task, int], int]
) -> None:
    """Run the call with ``changes`` to its registers.

    ``then(task, result)`` is called at the exit stop, with the registers put
    back; what it returns is what the program sees.
    """
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
        if final != result:
            now.rax = final & 0xFFFFFFFFFFFFFFFF
            ptrace.setregs(stopped.tid, now)
        tracer.resume(stopped)

    tracer.resume_to_exit(task, at_exit)
