"""What the tracer and the page services share: one machine behind one lock.

The tracer thread answers ptrace stops; one page-service thread per address
space answers page faults. Both change the machine, never at the same time: they
hold `World.lock` for one operation and give it back before anything that may
block. Nothing that can itself fault on an enclave page (reading a program's
memory) is done with the lock held: the service that would have to resolve that
fault waits for the lock.

Background work (reclaim workers, ksgxd) has no thread of its own. It is done in
slices, by whoever has just finished a step of the program's: as a kernel thread
would get its share, and in an order that the engine decides.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from epcgroup.live import guests, snapshot
from epcgroup.live.enclave.processor import Processor
from epcgroup.live.guests import GuestCounts
from epcgroup.live.members import Members, TreeMembers, as_thread
from epcgroup.live.paging.binding import Bindings
from epcgroup.live.paging.lock import MachineLock
from epcgroup.live.paging.stall import Stalls
from epcgroup.observe.model import FAILED
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.driver import Driver
    from epcgroup.epc import Caller, Machine
    from epcgroup.errors import InternalError
    from epcgroup.live.devices import Device, DeviceTable
    from epcgroup.live.numa import Numa
    from epcgroup.live.paging.express import Express
    from epcgroup.live.paging.frames import MemfdFrames
    from epcgroup.live.tracing.task import Kick, Task
    from epcgroup.observe.model import EnclaveView

WAKE_SIGNAL = signal.SIGUSR2
_DEBUG = bool(os.environ.get("EPCGROUP_DEBUG"))


def _ignore(_kind: str, **_what: object) -> None:
    """Nobody keeps a journal."""


@dataclass(slots=True)
class World:
    """The shared state of one running machine."""

    machine: Machine
    driver: Driver
    frames: MemfdFrames
    devices: DeviceTable
    log: Callable[[str], None]
    #: Takes an event that no snapshot shows: its kind, and fields of `observe.model.Event`.
    tell: Callable[..., None] = _ignore
    lock: MachineLock = field(default_factory=MachineLock)
    express: Express | None = None
    tasks: dict[int, Task] = field(default_factory=dict)
    stalls: Stalls = field(default_factory=Stalls)
    bindings: Bindings = field(default_factory=Bindings)
    kicks: deque[tuple[int, Kick]] = field(default_factory=deque)
    tracer_thread: int = 0
    #: Programs may enter and leave enclaves without a trap (`fastpath`).
    fast: bool = False
    #: MRENCLAVEs and MRSIGNERs of the enclaves whose code stays as it is all the same.
    unpatched: frozenset[bytes] = frozenset()
    #: Enclaves that are gone; a machine that stays keeps the last of them only.
    ended: deque[EnclaveView] = field(default_factory=deque)
    guests: GuestCounts = field(default_factory=GuestCounts)
    started: float = field(default_factory=time.monotonic)
    #: The first invariant that was found broken; see `paranoid`.
    broken: InternalError | None = None
    members: Members = field(init=False)
    #: Bytes of the EPC's sections, and its nodes, where there are several.
    sections: list[int] = field(default_factory=list)
    numa: Numa | None = None
    _said: set[str] = field(default_factory=set)
    observer: snapshot.Observer = field(init=False)

    def __post_init__(self) -> None:
        self.observer = snapshot.Observer(self)
        self.members = TreeMembers(self.machine.groups)

    def broke(self, error: InternalError) -> None:
        """An invariant does not hold: the machine is to end."""
        self.broken = error
        self.log(f"internal error: {error}")
        signal.pthread_kill(self.tracer_thread, WAKE_SIGNAL)

    def say_once(self, message: str) -> None:
        """A line for the user, once however often there is reason to say it."""
        if message not in self._said:
            self._said.add(message)
            self.log(message)

    def tell_failed(self, task: Task, device: Device) -> None:
        """Tell why the thread gets a SIGBUS."""
        file = device.file
        self.tell(
            FAILED,
            group=task.caller.group.path,
            enclave=file.enclave.id if file is not None and file.created else None,
            pid=task.pid,
            command=task.command,
            reason=file.refusal if file is not None else "no EPC page for the guest",
        )

    def debug(self, message: str) -> None:
        """One line for whoever looks for the cause of a surprise (EPCGROUP_DEBUG=1)."""
        if _DEBUG:
            self.log(message)

    @property
    def epc_sections(self) -> list[int]:
        """Bytes of each section of the EPC, which CPUID reports."""
        return self.sections or [self.machine.epc_pages * PAGE_SIZE]

    def caller_at(self, caller: Caller, tid: int) -> Caller:
        """``caller`` as thread ``tid``: its signals, and its processor where the EPC is on several nodes."""
        thread = as_thread(caller, tid)
        return thread if self.numa is None else self.numa.at(thread, tid)

    def processor(self, device: Device, caller: Caller) -> Processor:
        """What the processor does to ``device``'s enclave on behalf of ``caller``."""
        assert device.file is not None
        return Processor(device.file, caller, self.frames)

    def slice(self) -> bool:
        """Do one slice of background work; False when there is none."""
        if not self.machine.pending:
            return False
        with self.lock as lock:
            lock.background = True
            try:
                return self.machine.step()
            finally:
                lock.background = False

    def kick(self, tid: int, kick: Kick) -> None:
        """Ask the tracer to stop ``tid`` and give it the fault in ``kick``."""
        self.kicks.append((tid, kick))
        signal.pthread_kill(self.tracer_thread, WAKE_SIGNAL)

    def release(self, device: Device) -> None:
        """Nobody holds ``device`` any more: its enclave, if any, is gone."""
        if device.file is not None:
            with self.lock:
                if device.file.created:
                    self.ended.append(snapshot.view_of(self, device, ended=True))
                    self.driver.release(device.file)
                    self.frames.unbind(device.file.enclave.id)
        if device.guest is not None:
            with self.lock:
                guests.release(self, device.guest)
        if device.exits is not None:
            device.exits.give_back()
        device.close()
