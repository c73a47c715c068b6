"""The lives of tracees and debuggers: born, given a new image, dying, gone.

A tracee's event is left in ``pending`` until its real stop is answered (`stops`). A task
that a followed tracee makes is a tracee from its first stop on. The end of a tracee is
told by us where the debugger is not its parent; its own child it finds as any parent does,
when we have reaped it. Its last stop is that of the kernel (PTRACE_EVENT_EXIT): a debugger
may hold it there, and a thread held there cannot be killed, here as anywhere, until its
debugger goes on or ends; so a debugger's tracees are released at its own last stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from epcgroup.live.tracing import ptrace
from epcgroup.live.tracing.debugger import stops
from epcgroup.live.tracing.debugger.state import ASKS, SI_USER, Exit, Mode, Stop, Tracee, event_stop, siginfo

if TYPE_CHECKING:
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer


def event(tracee: Tracee, number: int, message: int) -> None:
    """``number``: the PTRACE_EVENT_* that the tracee is stopped for."""
    if not tracee.orphaned and tracee.options & ASKS[number]:
        tracee.pending = event_stop(number, message)


def born(parent: Task, task: Task, number: int) -> None:
    """The tracee ``parent`` tells of ``task`` by event ``number``; the debugger may follow it."""
    tracee = parent.tracee
    if tracee is None or tracee.orphaned:
        return
    known_as = tracee.debugger.number_of(task.tid)
    if number == ptrace.EVENT_VFORK:
        tracee.vforked = known_as
    event(tracee, number, known_as)
    if tracee.pending is not None:
        debugger = tracee.debugger
        child = Tracee(task, debugger, tracee.tracer, seized=tracee.seized, options=tracee.options)
        child.pending = event_stop(ptrace.EVENT_STOP) if tracee.seized else stops.attach_stop()
        task.tracee = debugger.tracees[task.tid] = child


def execed(tracer: Tracer, task: Task, former: int) -> None:
    """``task`` has a new image, and was thread ``former`` of its process before."""
    tracee = task.tracee
    if tracee is not None:
        debugger = tracee.debugger
        debugger.tracees.pop(former, None)
        debugger.tracees[task.tid] = tracee
        before, tracee.number = tracee.number, debugger.number_of(task.tid)
        event(tracee, ptrace.EVENT_EXEC, before)
        if tracee.pending is None and not tracee.seized and not tracee.orphaned:
            info = siginfo(signal.SIGTRAP, SI_USER, tracee.number)
            tracee.pending = Stop(signal.SIGTRAP, info=info, signal=True, moved=True)
    debugger_itself = tracer.debuggers.get(task.pid)
    if debugger_itself is not None and former != task.tid:
        for mine in debugger_itself.tracees.values():
            if mine.tracer == former:
                mine.tracer = task.tid


def dying(tracee: Tracee, status: int) -> None:
    """The tracee is at its last stop."""
    tracee.dying, tracee.wanted = True, None
    event(tracee, ptrace.EVENT_EXIT, status)


def gone(tracer: Tracer, task: Task, status: int) -> None:
    """``task`` has ended with this wait status."""
    tracee, task.tracee = task.tracee, None
    if tracee is None or tracee.orphaned:
        return
    debugger = tracee.debugger
    debugger.tracees.pop(task.tid, None)
    if not (tracee.child and task.tid == task.pid):  # else it is found as any child is
        debugger.exits.append(Exit(tracee.number, task.pid, status, tracee.tracer))
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else status & 0x7F
        kind = 1 if os.WIFEXITED(status) else 3 if status & 0x80 else 2
        stops.notify(tracer, tracee, siginfo(signal.SIGCHLD, kind, tracee.number, code))


def replaced(leader: Task) -> None:
    """Another thread of the process execs, and goes on under the number of ``leader``, which is no more."""
    if leader.tracee is not None:
        leader.tracee.debugger.tracees.pop(leader.tid, None)
        leader.tracee = None


def end(tracer: Tracer, task: Task) -> None:
    """A thread ends: whom it debugged goes on without it, or ends too."""
    debugger = tracer.debuggers.get(task.pid)
    if debugger is None:
        return
    debugger.waits.pop(task.tid, None)
    for tracee in [mine for mine in debugger.tracees.values() if mine.tracer == task.tid]:
        if tracee.options & ptrace.O_EXITKILL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(tracee.task.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # killed; its end is yet to be reported
            release(tracer, tracee, _left(tracee))
    if task.tid == task.pid and task.tid not in tracer.tasks:
        del tracer.debuggers[task.pid]


def _left(tracee: Tracee) -> int:
    """The signal that a tracee was stopped for and still gets; not what its debugger brought about."""
    stop = tracee.stop
    if stop is None or not stop.signal or stop.moved:
        return 0
    return 0 if stop.sig == signal.SIGTRAP and stops.is_trap_of_debugger(tracee.task) else stop.sig


def release(tracer: Tracer, tracee: Tracee, sig: int) -> None:
    """The tracee has no debugger any more, and goes on with ``sig`` if it was stopped."""
    task, stop = tracee.task, tracee.stop
    tracee.debugger.tracees.pop(task.tid, None)
    stepping = tracee.mode is Mode.STEP and not tracee.dying
    if stop is None:
        if stepping:  # the trap flag is set until its next stop
            tracee.orphaned = True
            with contextlib.suppress(OSError):
                ptrace.interrupt(task.tid)
        else:
            task.tracee = None
        return
    if stepping and not stop.signal and stops.trap_waits(task):
        stops.leave_behind(tracee)  # a requested stop came before the trap of a step that is done
        return
    task.tracee = None
    if stop.group and not sig:
        with contextlib.suppress(OSError):
            tracer.stay(task)  # in its group stop, as without us
            return
    if stop.event:
        sig = 0
    elif sig and stop.moved:
        sig = stops.send(task, sig)
    if task.on_exit is not None:
        tracer.resume_to_exit(task, task.on_exit)
    else:
        tracer.resume(task, sig)
