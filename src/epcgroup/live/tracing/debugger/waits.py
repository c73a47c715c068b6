"""wait4(2) and waitid(2) of a process that debugs others.

Three kinds of news: stops of its tracees and ends of tracees that are nobody's child here,
which only we know, and its real children, which only the kernel knows. Ours come first.
If there are none, the program's own call is made:

* it finds a child, or fails: that is the answer;
* it finds nothing (WNOHANG), or sleeps: news of ours interrupts it (PTRACE_INTERRUPT; the
  call returns -ERESTARTSYS to the kernel's own restart), and we put the answer in its place.
  Signals interrupt it as ever;
* it fails with ECHILD though there are tracees to wait for: it has no such children, and
  sleeps in pause(2) instead, made to look like the wait that it stands for. A new child of
  the process ends that.

A signal or a stop in between makes the kernel restart the call, and all begins anew here:
between two calls nothing is kept but which selections had no child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live.enclave.user_memory import ProcessMemory
from epcgroup.live.tracing import answers, ptrace
from epcgroup.live.tracing.debugger.state import CLD_TRAPPED, Debugger, Exit, Tracee, siginfo
from epcgroup.live.tracing.seccomp import SYS

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_WNOHANG, _WUNTRACED, _WEXITED, _WCONTINUED, _WNOWAIT = 1, 2, 4, 8, 0x1000000
_WNOTHREAD, _WALL, _WCLONE = 0x20000000, 0x40000000, 0x80000000
_WAIT4 = _WNOHANG | _WUNTRACED | _WCONTINUED | _WNOTHREAD | _WALL | _WCLONE
_WAITID = _WAIT4 | _WEXITED | _WNOWAIT
_P_ALL, _P_PID, _P_PGID, _P_PIDFD = range(4)
_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3
_SYS_PAUSE = 34
_RUSAGE_SIZE, _SIGINFO_SIZE = 144, 28  # bytes; of a siginfo_t what wait fills
_ERESTARTSYS, _ERESTARTNOHAND = 512, 514
_PIDFD = re.compile(r"^Pid:\s*(\d+)$", re.MULTILINE)

#: Kind, id and what else decides which real children a wait is about.
Selection = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a thread waits for."""

    number: int  # of the system call
    kind: int
    id: int
    options: int
    thread: int
    status: int  # where the program wants the answer; 0 nowhere
    usage: int

    @property
    def selection(self) -> Selection:
        """Which children it is about."""
        return self.kind, self.id, self.options & (_WALL | _WCLONE | _WNOTHREAD)

    def takes(self, number: int, pid: int, tracer: int, group: int | None = None) -> bool:
        """Whether it is about this tracee, whose real pid is ``pid``."""
        if self.options & _WNOTHREAD and tracer != self.thread:
            return False
        if self.kind == _P_ALL:
            return True
        if self.kind == _P_PGID:
            return (_group(pid) if group is None else group) == self.id
        return self.id == number


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def answer(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """wait4 or waitid of ``task``, at the entry of the call."""
    debugger = tracer.debuggers.get(task.pid)
    wait = _parse(task, regs) if debugger is not None else None
    if debugger is None or wait is None or not _concerned(debugger, wait):
        tracer.resume(task)
    elif (found := _find(debugger, wait)) is not None:
        answers.emulate(tracer, task, regs, _tell(_memory(tracer, task), debugger, wait, found))
    else:
        paused = not wait.options & _WNOHANG and wait.selection in debugger.childless
        if paused:
            regs.orig_rax = _SYS_PAUSE
            ptrace.setregs(task.tid, regs)
        debugger.waits[task.tid] = wait
        tracer.resume_to_exit(task, lambda stopped: _over(tracer, stopped, debugger, wait))


def _parse(task: Task, regs: UserRegs) -> Wait | None:
    """The call's arguments; None if the kernel is to refuse them."""
    number = regs.orig_rax
    if number == SYS["wait4"]:
        options, usage = regs.rdx & 0xFFFFFFFF, regs.r10
        pid = _signed(regs.rdi)
        if options & ~_WAIT4 or pid == -(1 << 31):
            return None
        options |= _WEXITED
        kind, ident = _P_PID, pid
        if pid == -1:
            kind, ident = _P_ALL, 0
        elif pid <= 0:
            kind, ident = _P_PGID, -pid
    else:
        options, usage = regs.r10 & 0xFFFFFFFF, regs.r8
        kind, ident = regs.rdi & 0xFFFFFFFF, _signed(regs.rsi)
        if options & ~_WAITID or not options & (_WEXITED | _WUNTRACED | _WCONTINUED) or kind > _P_PIDFD:
            return None
        if kind == _P_PIDFD:
            kind, ident = _P_PID, _behind_pidfd(task, ident)
    if kind == _P_PGID and not ident:
        ident = _group(task.pid)
    return Wait(
        number, kind, ident, options, task.tid, regs.rsi if number == SYS["wait4"] else regs.rdx, usage
    )


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _behind_pidfd(task: Task, fd: int) -> int:
    try:
        found = _PIDFD.search(Path(f"/proc/{task.tid}/fdinfo/{fd}").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _concerned(debugger: Debugger, wait: Wait) -> bool:
    """Whether any tracee, or the end of one, is among what is waited for."""
    return any(
        wait.takes(tracee.number, tracee.task.pid, tracee.tracer) for tracee in debugger.tracees.values()
    ) or any(_takes_exit(wait, end) for end in debugger.exits)


def _takes_exit(wait: Wait, end: Exit) -> bool:
    return bool(wait.options & _WEXITED) and wait.takes(end.number, 0, end.tracer, end.group)


def _find(debugger: Debugger, wait: Wait) -> Tracee | Exit | None:
    for tracee in debugger.tracees.values():
        if tracee.shows and wait.takes(tracee.number, tracee.task.pid, tracee.tracer):
            return tracee
    return next((end for end in debugger.exits if _takes_exit(wait, end)), None)


def _tell(memory: ProcessMemory, debugger: Debugger, wait: Wait, found: Tracee | Exit) -> int:
    """Hand the news over; what the call returns."""
    if isinstance(found, Tracee):
        assert found.stop is not None
        status, code, value = found.stop.status, CLD_TRAPPED, found.stop.code
    else:
        status = found.status
        ended = os.WIFEXITED(status)
        code = _CLD_EXITED if ended else _CLD_DUMPED if status & 0x80 else _CLD_KILLED
        value = os.WEXITSTATUS(status) if ended else status & 0x7F
    is_wait4 = wait.number == SYS["wait4"]
    result = found.number if is_wait4 else 0
    try:
        if wait.status and is_wait4:
            memory.write(wait.status, struct.pack("<I", status))
        elif wait.status:
            memory.write(wait.status, siginfo(signal.SIGCHLD, code, found.number, value)[:_SIGINFO_SIZE])
        if wait.usage:
            memory.write(wait.usage, bytes(_RUSAGE_SIZE))
    except OSError:
        result = -errno.EFAULT
    if not wait.options & _WNOWAIT:
        if isinstance(found, Tracee):
            found.reported = True
        else:
            debugger.exits.remove(found)
    return result


def _memory(tracer: Tracer, task: Task) -> ProcessMemory:
    return ProcessMemory(task.tid, task.mm, tracer.world.devices)


def _over(tracer: Tracer, task: Task, debugger: Debugger, wait: Wait) -> None:
    """The call that was made is over, or was interrupted."""
    debugger.waits.pop(task.tid, None)
    memory = _memory(tracer, task)
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    result = regs.rax - (1 << 64) if regs.rax >> 63 else regs.rax
    regs.orig_rax = wait.number
    if result == -_ERESTARTNOHAND:
        result = -_ERESTARTSYS
    again = False
    nothing = result in (-_ERESTARTSYS, -errno.ECHILD) or _found_nobody(memory, wait, result)
    if nothing and (found := _find(debugger, wait)) is not None:
        result = _tell(memory, debugger, wait, found)
    elif result == -errno.ECHILD and _concerned(debugger, wait):
        if wait.options & _WNOHANG:
            result = _nobody(memory, wait)
        else:
            debugger.childless.add(wait.selection)
            again = True
    elif wait.number == SYS["wait4"] and result > 0 and _is_stop_of_tracee(memory, debugger, wait, result):
        again = True  # its group stop, seen as its parent would see it
    regs.rax = result & 0xFFFFFFFFFFFFFFFF
    if again:
        regs.rip -= 2
        regs.rax, regs.orig_rax = wait.number, ptrace.NO_SYSCALL
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def _found_nobody(memory: ProcessMemory, wait: Wait, result: int) -> bool:
    if result or not wait.options & _WNOHANG:
        return False
    if wait.number == SYS["wait4"]:
        return True
    try:
        return not wait.status or not any(memory.read(wait.status, 4))
    except OSError:
        return False


def _nobody(memory: ProcessMemory, wait: Wait) -> int:
    """What WNOHANG answers where nobody has news."""
    if wait.number != SYS["wait4"] and wait.status:
        with contextlib.suppress(OSError):
            memory.write(wait.status, bytes(_SIGINFO_SIZE))
    return 0


def _is_stop_of_tracee(memory: ProcessMemory, debugger: Debugger, wait: Wait, number: int) -> bool:
    if not wait.status or all(tracee.number != number for tracee in debugger.tracees.values()):
        return False
    try:
        status = memory.read(wait.status, 4)
    except OSError:
        return False
    return status[0] == 0x7F


def has_child(tracer: Tracer, pid: int) -> None:
    """Process ``pid`` has a new child: waits that sleep for want of any begin anew."""
    debugger = tracer.debuggers.get(pid)
    if debugger is not None and debugger.childless:
        debugger.childless.clear()
        for tid in debugger.waits:
            with contextlib.suppress(OSError):
                ptrace.interrupt(tid)
