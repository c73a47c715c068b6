"""Who debugs whom, and what each debugger is still to be told."""

from __future__ import annotations

import signal
import struct
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from epcgroup.live.tracing import handover, procfs, ptrace

if TYPE_CHECKING:
    from epcgroup.live.tracing.debugger.waits import Selection, Wait
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_STOPPED = 0x7F
_SIGINFO = struct.Struct("<iii4xiIi")  # si_signo, si_errno, si_code, si_pid, si_uid, si_status
SI_USER, SI_KERNEL, CLD_TRAPPED = 0, 0x80, 4
TRAP_BRKPT, TRAP_TRACE, TRAP_HWBKPT = 1, 2, 4
#: What PTRACE_GETSIGINFO has to show at a group stop of a thread that was not seized: EINVAL.
NO_SIGINFO = b""


def siginfo(sig: int, code: int, pid: int = 0, status: int = 0) -> bytes:
    """siginfo_t of a signal that a process caused, or a child's change."""
    return _SIGINFO.pack(sig, 0, code, pid, 0, status).ljust(128, b"\0")


class Mode(Enum):
    """How a debugger has let its tracee go on."""

    RUN = auto()
    CALLS = auto()  # to the next entry into or exit from a system call
    STEP = auto()  # for one instruction


@dataclass(slots=True)
class Stop:
    """A stop that a debugger is shown.

    ``info``: its siginfo_t where that is not the real stop's. ``signal``: that of a signal
    about to be delivered. ``moved``: the real stop is another one, at which the kernel
    would not deliver a signal.
    """

    sig: int
    event: int = 0
    message: int = 0
    info: bytes | None = None
    signal: bool = False
    moved: bool = False
    group: bool = False

    @property
    def code(self) -> int:
        """si_status of waitid(2)."""
        return self.event << 8 | self.sig

    @property
    def status(self) -> int:
        """The status of wait4(2)."""
        return self.code << 8 | _STOPPED


def event_stop(event: int, message: int = 0, sig: int = signal.SIGTRAP) -> Stop:
    """A stop for PTRACE_EVENT_*."""
    return Stop(sig, event, message, siginfo(sig, event << 8 | sig))


class Tracee:
    """A thread that has a debugger."""

    __slots__ = (
        "child",
        "debugger",
        "dying",
        "entered",
        "listening",
        "message",
        "mode",
        "number",
        "options",
        "orphaned",
        "pending",
        "quiet",
        "reported",
        "seized",
        "stop",
        "task",
        "told",
        "tracer",
        "vforked",
        "wanted",
    )

    def __init__(self, task: Task, debugger: Debugger, tracer: int, *, seized: bool, options: int) -> None:
        self.task = task
        self.debugger = debugger
        self.tracer = tracer  # the thread that may make requests
        self.number = debugger.number_of(task.tid)  # its tid as the debugger knows it
        self.child = False  # its own parent debugs it, and will find its zombie
        self.seized = seized
        self.options = options  # PTRACE_O_* that the debugger has set
        self.told = 0  # those of them that the kernel was told
        self.mode = Mode.RUN
        self.message = 0  # PTRACE_GETEVENTMSG
        self.vforked = 0  # the child of its last vfork, as the debugger knows it
        self.stop: Stop | None = None  # where it is stopped, as far as its debugger knows
        self.reported = False  # by a wait
        self.pending: Stop | None = None  # to be shown when the present real stop is answered
        self.wanted: Stop | None = None  # to be shown at the next PTRACE_EVENT_STOP
        self.listening = False
        self.entered = False  # the entry into the present system call was shown
        self.quiet = 0  # a signal that is to be delivered without asking once more
        self.dying = False
        self.orphaned = False  # its debugger is gone while it was stepping

    @property
    def shows(self) -> bool:
        """Whether a wait has something to report."""
        return self.stop is not None and not self.reported


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a tracee that is no child of its debugger."""

    number: int
    group: int
    status: int  # of wait4(2)
    tracer: int


@dataclass(slots=True)
class Debugger:
    """A process that debugs others."""

    pid: int
    same_pids: bool  # it knows tasks under the numbers that we know
    equipped: bool = False  # its calls of ptrace and wait are reported
    tracees: dict[int, Tracee] = field(default_factory=dict)
    exits: list[Exit] = field(default_factory=list)
    waits: dict[int, Wait] = field(default_factory=dict)  # threads that are in one
    #: What it has waited for without having such a child of its own; true until it has a new one.
    childless: set[Selection] = field(default_factory=set)

    def number_of(self, tid: int) -> int:
        """The number under which the debugger knows a task; 0 of one that is gone."""
        if self.same_pids:
            return tid
        try:
            return procfs.inner_tid(tid)
        except OSError:
            return 0


def debugger_of(tracer: Tracer, pid: int) -> Debugger:
    """The debugger that process ``pid`` is from now on."""
    found = tracer.debuggers.get(pid)
    if found is None:
        found = tracer.debuggers[pid] = Debugger(pid, handover.same_pids(pid))
    return found


def known_as(tracer: Tracer, pid: int, number: int) -> Task | None:
    """The traced task that process ``pid`` knows as ``number``."""
    if handover.same_pids(pid):
        return tracer.tasks.get(number)
    try:
        space = procfs.pid_namespace(pid)
    except OSError:
        return None
    for task in tracer.tasks.values():
        try:
            if procfs.inner_tid(task.tid) == number and procfs.pid_namespace(task.pid) == space:
                return task
        except OSError:
            continue
    return None


#: PTRACE_O_* by the event that they ask for.
ASKS = {
    ptrace.EVENT_FORK: ptrace.O_TRACEFORK,
    ptrace.EVENT_VFORK: ptrace.O_TRACEVFORK,
    ptrace.EVENT_CLONE: ptrace.O_TRACECLONE,
    ptrace.EVENT_EXEC: ptrace.O_TRACEEXEC,
    ptrace.EVENT_VFORK_DONE: ptrace.O_TRACEVFORKDONE,
    ptrace.EVENT_EXIT: ptrace.O_TRACEEXIT,
}
