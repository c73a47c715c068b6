"""A program wants memory at a fixed place, and a way out of an enclave lies there.

Library OSes have an enclave at the bottom of their addresses, and put what they share
with it at places of their own choice behind it, by MAP_FIXED_NOREPLACE or MAP_FIXED. There
the page of `space.ExitPage` is in nobody's way but theirs. So it goes: the jumps are taken
out of the enclave's code, and it is left by traps from then on.

Not while a thread is inside, or where processes share the page; then the call has the answer
that it would have if the page were the program's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.live.fastpath import unpatched
from epcgroup.live.fastpath.space import WAY_OUT
from epcgroup.live.tracing import answers

if TYPE_CHECKING:
    from epcgroup.live.devices import Device
    from epcgroup.live.fastpath.space import ExitPage
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer

_FIXED = 0x10 | 0x100000  # MAP_FIXED, MAP_FIXED_NOREPLACE
_SYS_MUNMAP = 11


def asked(tracer: Tracer, task: Task, regs: UserRegs) -> bool:
    """Whether the mmap of ``task`` finds a page of ours, which goes now; the call is made again then."""
    fast = task.mm.fast
    if fast is None or fast.table is None or not regs.r10 & _FIXED:
        return False
    page = next((page for page in fast.exits if page.overlaps(regs.rdi, regs.rdi + regs.rsi)), None)
    if page is None:
        return False
    owners = [space for space in fast.table.spaces if space.fast is not None and page in space.fast.exits]
    device = next((d for d in task.mm.devices() if d.exits is not None and page in d.exits.pages), None)
    if len(owners) > 1 or (device is not None and not _left(tracer, device)):
        tracer.world.debug(f"task {task.tid}: a mapping meets the way out of an enclave at {page.start:#x}")
        return False
    tracer.start(task, _go(tracer, task, regs, page, device))
    return True


def _left(tracer: Tracer, device: Device) -> bool:
    """Whether nobody is inside, and nobody can enter without telling us."""
    with tracer.world.lock:
        device.enterable.take_out_all()
        return not device.occupied


def _go(tracer: Tracer, task: Task, regs: UserRegs, page: ExitPage, device: Device | None) -> Job:
    if device is not None and device.exits is not None:
        yield from unpatched.put_back(tracer.world, task, device, device.exits)
        device.exits.give_back()
        device.exits = None

    def gone(stopped: Task, result: int) -> int | None:
        fast = stopped.mm.fast
        if result == 0 and fast is not None and page in fast.exits:
            fast.exits.remove(page)
            stopped.mm.traps.pop(page.trap, None)
        return None if result == 0 else result

    changes = {"orig_rax": _SYS_MUNMAP, "rdi": page.start, "rsi": WAY_OUT}
    answers.rewrite(tracer, task, regs, changes, gone)


__all__ = ["asked"]
