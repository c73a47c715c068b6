"""The gate: which stops of a tracee its debugger is shown, and how it goes on.

Whoever has answered a real stop calls `Tracer.resume`, and for a tracee that leads to
`resume` here. What is to be shown follows from what the kernel says of the real stop at
that moment, so the answers to it need not know that there is a debugger:

* a signal that is about to be delivered: always;
* an event (fork, exec, exit …): if the debugger asked for it; it is left in ``pending``
  by whoever saw the event, since the answer to it may take further real stops;
* entry into and exit from a system call: in mode CALLS, except for calls that are traps
  of ours; an exit may be the end of several injected calls;
* a step whose instruction was a system call that we ran to its exit.

A stop that a debugger asks for (ATTACH, INTERRUPT) is a PTRACE_INTERRUPT of ours. The
kernel forgets one that meets another stop first, so it is asked for again each time the
thread goes on, until it is there (``wanted``). A thread that is just on its way into or
out of an enclave is first stepped to one side; one inside leaves by an asynchronous exit.
"""

from __future__ import annotations

import contextlib
import signal
import struct
from typing import TYPE_CHECKING

from epcgroup.errors import EpcgroupError
from epcgroup.live.enclave import exits, threads
from epcgroup.live.fastpath import threads as fastpath
from epcgroup.live.tracing import procfs, ptrace, seccomp
from epcgroup.live.tracing.debugger.state import (
    CLD_TRAPPED,
    NO_SIGINFO,
    SI_KERNEL,
    TRAP_BRKPT,
    TRAP_HWBKPT,
    TRAP_TRACE,
    Mode,
    Stop,
    Tracee,
    event_stop,
    siginfo,
)
from epcgroup.live.tracing.task import Phase
from epcgroup.sgx.layouts import TCS_DBGOPTIN
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer

_IN_A_CALL = {
    ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE, ptrace.EVENT_VFORK_DONE, ptrace.EVENT_EXEC,
}  # fmt: skip
_TCS_FLAGS_AT = 8
_TRAPS = (TRAP_TRACE, TRAP_BRKPT, TRAP_HWBKPT)  # BRKPT: a step over a system call
_SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)
_SIGCHLD_BIT = 1 << (signal.SIGCHLD - 1)
_CODE = struct.Struct("<8xi")  # si_code of a siginfo_t


# ---- the gate --------------------------------------------------------------


def resume(tracer: Tracer, task: Task, tracee: Tracee, sig: int) -> None:
    """The real stop of ``task`` is answered: show it, or let the task go on with ``sig``."""
    if tracee.orphaned:
        _run_orphaned(task, tracee, sig)
        return
    stop = _due(task, tracee, sig)
    if stop is None:
        _run(task, tracee, sig)
    else:
        hold(tracer, tracee, stop)


def _run_orphaned(task: Task, tracee: Tracee, sig: int) -> None:
    """The debugger is gone; a trap that it brought about may still come."""
    tracee.mode = Mode.RUN
    if sig == signal.SIGTRAP and is_trap_of_debugger(task):
        sig = 0
    if not trap_waits(task):
        task.tracee = None
    _run(task, tracee, sig)


def trap_waits(task: Task) -> bool:
    """Whether a SIGTRAP is pending: a stop that was asked for comes before the trap of a step."""
    try:
        return bool(int(procfs.status(task.tid)["SigPnd"], 16) & _SIGTRAP_BIT)
    except (OSError, KeyError):
        return False


def _due(task: Task, tracee: Tracee, sig: int) -> Stop | None:
    if tracee.pending is not None:
        stop, tracee.pending = tracee.pending, None
        return stop
    if tracee.dying:
        return None
    if sig:
        if tracee.quiet == sig:
            tracee.quiet = 0
            return None
        return Stop(sig, signal=True)
    if tracee.mode is Mode.CALLS:
        return _call_stop(task, tracee)
    if tracee.mode is Mode.STEP and ptrace.syscall_op(task.tid) == ptrace.OP_EXIT:
        info = siginfo(signal.SIGTRAP, TRAP_BRKPT)
        return Stop(signal.SIGTRAP, info=info, signal=True, moved=True)
    return None


def _call_stop(task: Task, tracee: Tracee) -> Stop | None:
    op = ptrace.syscall_op(task.tid)
    if op == ptrace.OP_ENTRY and not tracee.entered:
        if _is_ours(task, ptrace.getregs(task.tid)):
            return None
    elif op != ptrace.OP_EXIT or not tracee.entered:
        return None
    tracee.entered = not tracee.entered
    sig = signal.SIGTRAP | (0x80 if tracee.options & ptrace.O_TRACESYSGOOD else 0)
    return Stop(sig, info=siginfo(signal.SIGTRAP, sig, tracee.number))


def _is_ours(task: Task, regs: UserRegs) -> bool:
    """Whether a system call is none of the program's own."""
    site = regs.rip - 2
    return (
        site in task.mm.traps
        or regs.orig_rax & 0xFFFFFF00 == seccomp.LEAF_CALL
        or exits.in_enclave(task, site)
        or fastpath.half_way(task, regs)
    )


def hold(tracer: Tracer, tracee: Tracee, stop: Stop) -> None:
    """The tracee stays where it is, and its debugger is told of ``stop``."""
    task = tracee.task
    task.phase = Phase.STOPPED
    tracee.stop, tracee.reported = stop, False
    tracee.listening = False
    if stop.event:
        tracee.message = stop.message
    if tracee.wanted is not None and tracee.wanted.event and not tracee.wanted.group:
        tracee.wanted = None  # any stop is an answer to PTRACE_INTERRUPT
    status = stop.sig & 0x7F
    notify(tracer, tracee, siginfo(signal.SIGCHLD, CLD_TRAPPED, tracee.number, status))


def notify(tracer: Tracer, tracee: Tracee, info: bytes) -> None:
    """Wake who waits for the tracee, and send SIGCHLD to who would notice it."""
    debugger = tracee.debugger
    for tid, wait in debugger.waits.items():
        if wait.takes(tracee.number, tracee.task.pid, tracee.tracer):
            with contextlib.suppress(OSError):
                ptrace.interrupt(tid)
    with contextlib.suppress(OSError, KeyError):
        status = procfs.status(tracee.tracer)
        if (int(status["SigCgt"], 16) | int(status["SigBlk"], 16)) & _SIGCHLD_BIT:
            tracer.injector.send_as(tracee.tracer, info)


# ---- going on --------------------------------------------------------------


def go(tracer: Tracer, tracee: Tracee, mode: Mode, sig: int) -> None:
    """The debugger lets its stopped tracee go on."""
    task, stop = tracee.task, tracee.stop
    assert stop is not None
    tracee.stop, tracee.mode = None, mode
    if mode is not Mode.CALLS:
        tracee.entered = False
    elif stop.event in _IN_A_CALL:
        tracee.entered = True
        if (exit_stop := _call_stop(task, tracee)) is not None:  # of the execve that was shown at its exit
            hold(tracer, tracee, exit_stop)
            return
    if stop.event:
        sig = 0
    if sig and stop.moved:
        tracee.quiet, sig = sig, send(task, sig)
    _run(task, tracee, sig)


def leave_behind(tracee: Tracee) -> None:
    """The debugger is gone; the next stop of the tracee is a trap that it brought about."""
    tracee.orphaned, tracee.stop, tracee.mode = True, None, Mode.RUN
    _run(tracee.task, tracee, 0)


def send(task: Task, sig: int) -> int:
    threads.send(task, sig)
    return 0


def _run(task: Task, tracee: Tracee, sig: int) -> None:
    task.phase = Phase.RUNNING
    options = tracee.options & ptrace.O_TRACEVFORKDONE
    if options != tracee.told:
        ptrace.setoptions(task.tid, ptrace.OPTIONS | options)
        tracee.told = options
    if tracee.wanted is not None and not tracee.dying:
        ptrace.interrupt(task.tid)
    if task.on_exit is not None or tracee.mode is Mode.CALLS:
        ptrace.syscall(task.tid, sig)
    elif tracee.mode is Mode.STEP and not is_one_step(task):
        ptrace.singlestep(task.tid, sig)
    else:
        ptrace.cont(task.tid, sig)


def is_one_step(task: Task) -> bool:
    """Whether the thread is in an enclave that opted out of debugging: its stay is like one instruction."""
    if task.inside is None:
        return False
    device, tcs = task.inside.device, task.inside.entry.tcs
    if device.file is None or not device.file.debug:
        return True
    try:
        index = (tcs - device.base) >> PAGE_SHIFT
        content = device.file.driver.frames.read(device.file.enclave.id, index, _TCS_FLAGS_AT, 8)
    except (OSError, KeyError, EpcgroupError):
        return True
    return not int.from_bytes(content, "little") & TCS_DBGOPTIN


def is_trap_of_debugger(task: Task) -> bool:
    """Whether a SIGTRAP comes of a step or a debug register, not of an instruction."""
    return _CODE.unpack_from(ptrace.getsiginfo(task.tid))[0] in _TRAPS


def stepped(tracer: Tracer, task: Task, regs: UserRegs, code: int) -> bool:
    """SIGTRAP of a step in a place that is none of the program's: the step goes on. Whether it was one."""
    tracee = task.tracee
    if tracee is None or tracee.mode is not Mode.STEP or code not in _TRAPS:
        return False
    if fastpath.half_way(task, regs):
        if not fastpath.step_aside(tracer, task, regs):
            tracer.resume(task, signal.SIGTRAP)  # outside again: the step is over
        return True
    fastpath.notice(tracer.world, task)
    if is_one_step(task) or (code == TRAP_BRKPT and _just_resumed(task)):
        tracer.resume(task)
        return True
    return False


def _just_resumed(task: Task) -> bool:
    """Whether this is the trap after an ERESUME: a step from there is the enclave's next instruction.

    (ERESUME clears what is pending of debug exceptions, where EENTER pends one.)
    """
    if task.inside is None or not task.inside.resumed:
        return False
    task.inside.resumed = False
    return True


# ---- stops that were asked for -----------------------------------------------


def arrived(tracer: Tracer, task: Task, tracee: Tracee) -> None:
    """``task`` is at a PTRACE_EVENT_STOP: what its debugger wanted it for."""
    if tracee.wanted is None and tracee.listening:  # it has left its group stop
        hold(tracer, tracee, event_stop(ptrace.EVENT_STOP))
        return
    if tracee.wanted is None:
        tracer.resume(task)
        return
    if threads.raised_waits(task):
        threads.to_raised(task)  # and is asked again when it goes on
        return
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    if fastpath.half_way(task, regs) and fastpath.step_aside(tracer, task, regs):
        return  # it met a trap of ours, and is asked again when it goes on
    fastpath.notice(tracer.world, task)
    stop, tracee.wanted = tracee.wanted, None
    if task.inside is None:
        hold(tracer, tracee, stop)
    else:
        tracer.start(task, _leave_and_show(tracer, task, tracee, stop))


def _leave_and_show(tracer: Tracer, task: Task, tracee: Tracee, stop: Stop) -> Job:
    """As at any interrupt: AEX first."""
    yield from exits.asynchronous_exit(tracer, task, ptrace.getregs(task.tid, ptrace.UserRegs()), None, 0, 0)
    if task.tracee is tracee:
        hold(tracer, tracee, stop)
    else:
        tracer.resume(task)


def group_stop(tracer: Tracer, tracee: Tracee, sig: int) -> None:
    """The tracee's process is stopped by ``sig``, which all its threads tell."""
    wanted, tracee.wanted = tracee.wanted, None
    if tracee.seized:
        stop = event_stop(ptrace.EVENT_STOP, sig=sig)
    elif wanted is not None:
        stop = wanted
    else:
        stop = Stop(sig, info=NO_SIGINFO)
    stop.group = True
    task = tracee.task
    if threads.raised_waits(task):
        tracee.wanted = stop
        threads.to_raised(task)
        return
    if not fastpath.half_way(task, ptrace.getregs(task.tid)):
        fastpath.notice(tracer.world, task)
    if task.inside is None:
        hold(tracer, tracee, stop)
    else:
        tracer.start(task, _leave_and_show(tracer, task, tracee, stop))


def attach_stop() -> Stop:
    """The SIGSTOP that PTRACE_ATTACH sends, and that a followed child begins with."""
    return Stop(signal.SIGSTOP, info=siginfo(signal.SIGSTOP, SI_KERNEL), signal=True, moved=True)
