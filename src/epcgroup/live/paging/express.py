"""The express lane: loads that need no decision, answered in machine code, booked later.

A fault on an evicted page needs a decision only where a limit or the end of the EPC is
near. So the engine is asked once how many loads can do without one (`headroom`), and
that many are granted to a loop in machine code (`compiled`): it reads the fault, opens
the sealed page, fills it and notes it in a log. Whoever takes `World.lock` next closes
all lanes first: the grants end, and every noted load is put through the engine, in the
order in which they happened and by the rules for faults without a lane (`Machine.arrived`),
except that the contents are there already. So nobody who holds the lock can tell the
two apart: same charges, same order of the lists, same counters, same versions.

What a lane must be sure of while it is open (all of it changes under the lock alone):
one address space maps the enclave, all its threads are in one cgroup, the SECS is
resident, the backing store is honest. Background work may wait: it begins with the
lanes closed, as everything. What it finds
else (one that may not be written, a MAC that does not match) it
leaves to Python, with the event.

Without llvmlite or under attack (`--inject`) there is no lane, and the page service
does the same in Python; so it does on a machine that watches itself (`paranoid`),
unless it is told otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import traceback
from itertools import compress
from typing import TYPE_CHECKING

from epcgroup.driver import BackingStore
from epcgroup.epc import headroom
from epcgroup.errors import BadInput, MissingCapability, Refused
from epcgroup.live.paging import uffd
from epcgroup.live.paging.batches import LaneAge, LaneMover
from epcgroup.live.tracing import room

if TYPE_CHECKING:
    from types import ModuleType

    from epcgroup.epc import Caller, Enclave
    from epcgroup.live.paging.lock import MachineLock
    from epcgroup.live.paging.mm import AddressSpace, EnclaveVma
    from epcgroup.live.paging.stall import Stall
    from epcgroup.live.world import World

_MOST_THREADS = 64  # in an address space with a lane: all of them are looked at when it opens
_LEAST = 1  # loads; for none there is no lane to open
_ENOUGH = 4096  # faults of a process after which "auto" loads the compiled code
WHEN = ("auto", "python", "compiled")


class Lane:
    """The express lane of one address space, used by its page service."""

    def __init__(
        self, world: World, lock: MachineLock, space: AddressSpace, code: ModuleType, mover: LaneMover
    ) -> None:
        self._world = world
        self._lock = lock
        self._space = space
        self._code = code.lane
        self._mover = mover
        self._block = code.new_block(code.lane.SIZE)
        self._address = ctypes.addressof(self._block)
        self._bytes = memoryview(self._block).cast("B")
        self._words = self._bytes.cast("Q")
        self._page = uffd.PageBuffer()
        self._ciphers = code.ciphers
        self._cipher = code.ciphers.new_cipher(world.driver.pager.sealer.key)
        self._set(code.lane.UFFD, space.uffd)
        self._set(code.lane.CIPHER, self._cipher)
        self._set(code.lane.PAGE, self._page.address)
        self._set(code.lane.BASES, world.driver.pager.store.arena.bases)
        self.message = self._bytes[code.lane.MESSAGE : code.lane.MESSAGE + uffd.MSG_SIZE]
        self.granted = 0
        self.used_up = False
        self._last = 0
        # Whose faults it answers while it is open.
        self._enclave: Enclave
        self._caller: Caller
        self._stall: Stall

    def serve(self) -> bool:
        """Answer what can be answered here; True: the event in ``message`` could not be.

        False too when there is credit for no more: `used_up` then says so.
        """
        told = self._code.serve(self._address)
        self.used_up = told == self._code.USED_UP
        return bool(told == self._code.UNANSWERED)

    def settle(self) -> int:
        """Have all that was loaded booked; the thread of this lane's last load."""
        with self._lock.beside:
            return self._last

    def open(self, vma: EnclaveVma, caller: Caller, stall: Stall) -> None:
        """Have faults of ``caller``'s group in ``vma`` answered here, if that can be."""
        self._lock.open(self, vma, caller, stall)

    def discard(self) -> None:
        """The service ends; nobody opens the lane any more."""
        self._ciphers.free_cipher(self._cipher)

    def grant(self, vma: EnclaveVma, caller: Caller, stall: Stall, others: int) -> bool:
        """Begin, if there is room beside the ``others`` granted already. Hold the lock."""
        device, machine, space, tasks = vma.device, self._world.machine, self._space, self._world.tasks
        enclave = device.file.held if device.file is not None else None
        if enclave is None or enclave.disabled or enclave.secs is None:
            return False
        credit = min(headroom(machine, caller.group) - others, self._code.LOG_LENGTH)
        if credit < _LEAST or len(device.mms) != 1 or not space.alive or space.find(vma.start) is not vma:
            return False
        directory = self._mover.directory(enclave.id)
        users = tuple(space.users)
        if not directory or len(users) > _MOST_THREADS:
            return False
        for tid in users:
            task = tasks.get(tid)
            if task is None or task.caller.group is not caller.group:
                return False
        self._enclave, self._caller, self._stall, self.granted = enclave, caller, stall, credit
        code = self._code
        self._set(code.START, vma.start)
        self._set(code.END, vma.end)
        self._set(code.BASE, device.base)
        self._set(code.ENCLAVE, enclave.id)
        self._set(code.DIRECTORY, directory)
        self._set(code.PROT, vma.prot)
        self._set(code.CREDIT, credit)
        return True

    def close(self) -> list[list[int]]:
        """End the grant; what was loaded on it: indices, threads, starts and ends (ns of CLOCK_MONOTONIC)."""
        code = self._code
        code.acquire(self._address)
        count = self._words[code.NOTED >> 3]
        first, length = code.LOG >> 3, code.LOG_LENGTH
        notes = [self._words[at : at + count].tolist() for at in range(first, first + 4 * length, length)]
        self._set(code.CREDIT, 0)
        self._set(code.NOTED, 0)
        self._set(code.LOCK, 0)
        self.granted = 0
        return notes

    def book(self, indices: list[int], threads: list[int], starts: list[int], ends: list[int]) -> None:
        """Put loads that have happened, as `close` tells them, through the engine. Hold the lock."""
        if not indices:
            return
        self._last = threads[-1]
        self._world.machine.arrived(self._caller, self._enclave, indices)
        tasks = self._world.tasks
        for thread in {*threads}:
            task = tasks.get(thread)
            if task is not None:
                its = [other == thread for other in threads]
                task.faults += sum(its)
                task.stall_s += (sum(compress(ends, its)) - sum(compress(starts, its))) * 1e-9
        self._world.stalls.passed(self._stall, starts, ends)

    def _set(self, offset: int, value: int) -> None:
        self._words[offset >> 3] = value


class Express:
    """Gives the page services of one machine lanes: when, and with which code."""

    def __init__(self, world: World, when: str = "auto") -> None:
        """``when``: one of WHEN. Raises MissingCapability for "compiled" where that cannot be."""
        if when not in WHEN:
            raise BadInput(f"page service {when!r}: there are {', '.join(WHEN)}")
        self._world = world
        self._code: ModuleType | None = None
        self._mover: LaneMover | None = None
        self._waiting = when == "auto"
        if when == "compiled":
            self.begin()

    def begin(self) -> None:
        """Compile, or load what was compiled once, and give lanes from now on.

        Raises MissingCapability.
        """
        from epcgroup.live.paging import compiled  # takes half a second, and is optional

        world, pager = self._world, self._world.driver.pager
        if type(pager.store) is not BackingStore:
            return
        compiled.load()
        with world.lock:
            mover = LaneMover(world.frames, pager.sealer, pager.store, compiled, world.lock)
            self._mover = pager.mover = mover
            world.frames.age = LaneAge(world.frames.inhabited(), compiled)
            self._code = compiled

    def lane(self, space: AddressSpace, faults: int) -> Lane | None:
        """The lane for an address space that had so many faults; None: not yet, or never."""
        if self._code is not None and self._mover is not None:
            return Lane(self._world, self._world.lock, space, self._code, self._mover)
        if self._waiting and faults >= _ENOUGH:
            self._waiting = False
            with contextlib.suppress(Refused):  # no room for a thread: Python goes on
                room.begin(threading.Thread(target=self._begin_quietly, name="compiler", daemon=True))
        return None

    def _begin_quietly(self) -> None:
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))  # not that of the service that began us
        try:
            self.begin()
        except MissingCapability:
            pass
        except Exception:
            self._world.log(f"page faults go on being served by Python:\n{traceback.format_exc()}")


__all__ = ["WHEN", "Express", "Lane"]
