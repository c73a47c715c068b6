"""What the supervisor knows of one traced thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from epcgroup.live.tracing import inject

if TYPE_CHECKING:
    from epcgroup.epc import Caller
    from epcgroup.live.devices import Device
    from epcgroup.live.enclave.leaves import LeafService
    from epcgroup.live.enclave.spin import Surprise
    from epcgroup.live.enclave.vdso import VdsoInfo
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.live.tracing.debugger.state import Tracee
    from epcgroup.live.tracing.view import View
    from epcgroup.sgx import thread


class Phase(Enum):
    """Where a thread is in its traced life."""

    BORN = auto()  # known by its first stop or by its parent's event, not yet both
    RUNNING = auto()  # the kernel may run it
    STOPPED = auto()  # in a ptrace stop that we have not answered


class Trap(Enum):
    """What an ``int $0x80`` that we put into a program stands for."""

    ENCLU = auto()
    EEXIT = auto()  # the way out without a trap could not be taken (fast_exit.S)
    CPUID = auto()


@dataclass(frozen=True, slots=True)
class Kick:
    """Why the page service wants a thread stopped: the fault it shall get."""

    addr: int
    code: int  # page-fault error code; bit 15 is SGX (SDM: PFEC.SGX)
    sigbus: bool


@dataclass(slots=True)
class Inside:
    """A thread that executes in an enclave."""

    device: Device
    entry: thread.Inside
    resumed: bool = False  # by ERESUME, and nothing of it has been seen since


class Task:
    """One thread. ``mm`` and ``caller`` are shared with its siblings."""

    __slots__ = (
        "as_meant",
        "caller",
        "command",
        "faults",
        "forced",
        "held",
        "inner_tid",
        "inside",
        "kick",
        "leaves",
        "leaving",
        "mm",
        "on_exit",
        "on_stop",
        "phase",
        "pid",
        "saved_mask",
        "stall_s",
        "surprise",
        "tid",
        "tracee",
        "vdso",
        "view",
        "watched",
    )

    def __init__(self, tid: int, pid: int, mm: AddressSpace, caller: Caller) -> None:
        self.tid = tid
        # What gettid(2) tells the thread; another number in another pid namespace.
        self.inner_tid = tid
        self.pid = pid
        self.mm = mm
        self.caller = caller
        self.command = ""
        self.faults = 0  # touches that had to wait for a page, and for how long
        self.stall_s = 0.0
        self.phase = Phase.BORN
        self.vdso: VdsoInfo | None = None
        self.view: View | None = None  # what it is shown of its cgroups; its children too
        self.leaves: LeafService | None = None  # who executes EACCEPT and EMODPE; its descendants too
        self.inside: Inside | None = None
        # Called at the next syscall-exit stop (a rewritten or skipped call).
        self.on_exit: Callable[[Task], None] | None = None
        # Called at the stop that was asked for by PTRACE_INTERRUPT.
        self.on_stop: Callable[[Task], None] | None = None
        # Joined while it ran, and owner of nothing yet: it is to survive us (`attach`).
        self.watched = False
        self.leaving = False  # to be detached at its next stop
        self.as_meant = False  # its next open is not led to a file of ours (`standins`)
        self.kick: Kick | None = None
        # Signal mask of the program while we run it with another one.
        self.saved_mask: int | None = None
        # Blocked signals (siginfo) that came while only we had unblocked them.
        self.held: list[bytes] = []
        # What it was last given inside an enclave that it may not have expected.
        self.surprise: Surprise | None = None
        self.tracee: Tracee | None = None  # its debugger's view of it, if it has a debugger
        # A signal that we sent in the kernel's stead, and what it shall say.
        self.forced: tuple[int, bytes] | None = None

    def syscall_insn(self) -> int:
        """Address of a `syscall` instruction that may be run in this thread."""
        if self.vdso is None:
            return inject.find_syscall_insn(self.pid)
        return self.vdso.syscall_insn

    def __repr__(self) -> str:
        return f"<task {self.tid} of {self.pid} {self.phase.name.lower()}>"
