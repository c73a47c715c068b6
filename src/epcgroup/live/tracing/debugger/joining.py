"""How a debugger comes to its tracees: TRACEME, ATTACH, SEIZE.

Whether a process may trace another is asked of the kernel, which knows capabilities,
namespaces and Yama: the debugger is made to call process_vm_readv(2) of one byte at
address 0, which is checked by the same rule (PTRACE_MODE_ATTACH) and fails with EPERM
or, allowed, with EFAULT.

A process that debugs needs a filter of its own, by which its calls of ptrace and wait
come to us (*equipped*). One that attaches is equipped then and there. For TRACEME it is
the parent that needs it: it may be in a wait already, which it must begin anew, or in a
vfork(2) that lasts until the child has its new image. So it is asked to stop, TRACEME
succeeds at once, and what the tracee has to tell is kept until the parent asks.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.live.tracing import answers, filters, handover, procfs, ptrace, seccomp
from epcgroup.live.tracing.debugger import lives, state, stops

if TYPE_CHECKING:
    from epcgroup.live.tracing.debugger.state import Debugger
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_SYS_PROCESS_VM_READV = 310
_NOTHING = struct.pack("<QQ", 0, 1)  # struct iovec
#: Options that we can show: not SECCOMP (a tracee's own RET_TRACE), not SUSPEND_SECCOMP.
OPTIONS = (
    ptrace.O_TRACESYSGOOD | ptrace.O_TRACEFORK | ptrace.O_TRACEVFORK | ptrace.O_TRACECLONE
    | ptrace.O_TRACEEXEC | ptrace.O_TRACEVFORKDONE | ptrace.O_TRACEEXIT | ptrace.O_EXITKILL
)  # fmt: skip


def traceme(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """PTRACE_TRACEME: the parent of ``task`` becomes its debugger."""
    try:
        parent = tracer.tasks.get(int(procfs.status(task.pid)["PPid"]))
    except (OSError, KeyError):
        parent = None
    if parent is None or parent.watched or task.watched or task.tracee is not None:
        refuse(tracer, task, task, joins=False)
        tracer.resume(task)
        return
    debugger = state.debugger_of(tracer, parent.pid)
    thread = next((t for t in _threads(parent.pid) if task.pid in procfs.children(parent.pid, t)), parent.pid)
    tracee = state.Tracee(task, debugger, thread, seized=False, options=0)
    tracee.child = True
    answers.emulate(tracer, task, regs, 0)  # not if it is killed just then: its parent would wait for ever
    task.tracee = debugger.tracees[task.tid] = tracee
    _begin_waits_anew(tracer, parent.pid)  # and equip it, if that is still to be done


def _threads(pid: int) -> list[int]:
    try:
        return procfs.tasks(pid)
    except OSError:
        return []


def attach(tracer: Tracer, task: Task, regs: UserRegs, target: Task, *, seize: bool) -> int:
    """PTRACE_ATTACH or PTRACE_SEIZE of ``target`` by ``task``; what the call returns."""
    options = regs.r10 if seize else 0
    if seize and (regs.rdx or options & ~OPTIONS):
        return -errno.EIO
    if target.watched or target.pid == task.pid or target.tracee is not None:
        refuse(tracer, task, target)
        return -errno.EPERM
    number = regs.rsi & 0x7FFFFFFF
    if (why := _forbidden(tracer, task, number)) is not None:
        return -why
    debugger = state.debugger_of(tracer, task.pid)
    equip(tracer, task, debugger)
    if target.tid not in tracer.tasks or target.tracee is not None:
        return -errno.ESRCH
    tracee = state.Tracee(target, debugger, task.tid, seized=seize, options=options)
    with contextlib.suppress(OSError, KeyError):
        tracee.child = int(procfs.status(target.pid)["PPid"]) == task.pid
    target.tracee = debugger.tracees[target.tid] = tracee
    _begin_waits_anew(tracer, task.pid, task.tid)
    if not seize:
        tracee.wanted = stops.attach_stop()
        with contextlib.suppress(OSError):
            ptrace.interrupt(target.tid)
    return 0


def _forbidden(tracer: Tracer, task: Task, number: int) -> int | None:
    """The errno with which the kernel refuses ``task`` to trace what it knows as ``number``."""
    place = tracer.scratch(task, _NOTHING)
    try:
        tracer.inject(task, _SYS_PROCESS_VM_READV, number, place, 1, place, 1, 0)
    except ProcessLookupError:
        if task.tid in tracer.tasks and ptrace.syscall_op(task.tid) == ptrace.OP_EXIT:
            return errno.ESRCH
        raise
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ESRCH, errno.EACCES):
            return error.errno
    return None


def is_supervisor(task: Task, number: int) -> bool:
    """Whether ``task`` knows us as ``number``: whoever stopped us would wait for us for ever."""
    return Path(f"/proc/self/task/{number}").exists() and handover.same_pids(task.pid)


def refuse(tracer: Tracer, task: Task, target: Task, *, joins: bool = True) -> None:
    """Say why the kernel's EPERM."""
    other = target.tracee
    if other is not None and not other.orphaned:
        by = tracer.tasks.get(other.tracer)
        why = f"{by.command if by is not None else 'another'} debugs it already"
    elif joins and target.pid == task.pid:
        why = "it is the same process"
    else:
        why = "a process has one tracer, and that is this machine: start or join both in it"
    tracer.world.say_once(f"{task.command} cannot trace {target.command} (EPERM): {why}")


def equip(tracer: Tracer, task: Task, debugger: Debugger) -> None:
    """Have the calls of ptrace and wait of the process reported; ``task`` is where calls can be run in it.

    Raises Refused.
    """
    if debugger.equipped:
        return
    filters.add(tracer, task, seccomp.debugger_filter())
    debugger.equipped = True


def _begin_waits_anew(tracer: Tracer, pid: int, but: int = 0) -> None:
    """Interrupt the threads of a process: one may be in a wait that knows nothing of a new tracee."""
    for tid in _threads(pid):
        if tid != but and tid in tracer.tasks:
            with contextlib.suppress(OSError):
                ptrace.interrupt(tid)


def ask_again(tracer: Tracer, task: Task) -> None:
    """``task`` has stopped: if it was asked to, that has answered the request."""
    debugger = tracer.debuggers.get(task.pid)
    if debugger is not None and not debugger.equipped:
        with contextlib.suppress(OSError):
            ptrace.interrupt(task.tid)


def equip_late(tracer: Tracer, task: Task) -> None:
    """``task``, at a PTRACE_EVENT_STOP, may be of a process that is to be equipped."""
    debugger = tracer.debuggers.get(task.pid)
    if debugger is None or debugger.equipped:
        return
    try:
        equip(tracer, task, debugger)
        _begin_waits_anew(tracer, task.pid, task.tid)
    except ProcessLookupError:
        raise
    except (OSError, Refused) as error:
        tracer.world.log(f"process {task.pid} ({task.command}) cannot debug: {error}")
        for tracee in list(debugger.tracees.values()):
            with contextlib.suppress(ProcessLookupError):
                lives.release(tracer, tracee, 0)
        del tracer.debuggers[debugger.pid]


__all__ = ["OPTIONS", "ask_again", "attach", "equip_late", "is_supervisor", "refuse", "traceme"]
