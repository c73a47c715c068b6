"""The page service: one thread per address space that answers its page faults.

A blocking read of the userfaultfd is the shortest way from a touch to us; poll
before read costs a third more. What a fault means is the driver's business
(`driver.fault`); this file turns its answer into the one ioctl that lets the
thread go on, or into a kick: a stop by the tracer, which then performs the AEX
or delivers the signal. SIGSEGV by tgkill was rejected: a thread that blocks it
would sleep for ever.

An error of ours never hangs the program: the page is poisoned (its next touch
is a SIGBUS) and the error is logged.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING

from epcgroup.driver import Fault
from epcgroup.epc import headroom
from epcgroup.live import guests
from epcgroup.live.paging import uffd
from epcgroup.live.paging.binding import Binder
from epcgroup.live.tracing.task import Kick
from epcgroup.sgx.faults import PF_W
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver import EnclaveFile
    from epcgroup.epc import Caller
    from epcgroup.epc.group import Group
    from epcgroup.live.paging.express import Lane
    from epcgroup.live.paging.lock import Beside, MachineLock
    from epcgroup.live.paging.mm import AddressSpace, EnclaveVma
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.world import World

_PAGE_MASK = ~(PAGE_SIZE - 1)
_WRITE, _WP = 1, 2  # UFFD_PAGEFAULT_FLAG_*
_WRITES = _WRITE | _WP
_RESIDENT = Fault.RESIDENT
_LOOK = 256  # faults between two looks for an express lane
_SLICES = 4
_SURE = 3  # pages, the most that a fault takes: SECS, VA page and the page itself
_RECENT = 8  # faults after which work was done, which tell whether several threads page
_IDLE_PAUSE = 0.0002
END_SIGNAL = signal.SIGURG  # interrupts a blocked read; its handler does nothing


class PageService(threading.Thread):
    """Serves the faults of one mm until that mm is gone."""

    def __init__(self, world: World, mm: AddressSpace, caller: Caller) -> None:
        """``caller`` pays for faults whose thread is not known (yet)."""
        super().__init__(name=f"pages-{mm.pid}", daemon=True)
        self._world = world
        self._mm = mm
        self.caller = caller
        self._group = caller.group
        self._stall = world.stalls.join(self._group, time.perf_counter())
        self._vma: EnclaveVma | None = None  # where the last fault was
        self._closing = threading.Lock()
        self._closed = False
        self._binder = Binder(world.bindings)

    def run(self) -> None:
        """Serve. Without us the program would wait for ever: it ends with us."""
        try:
            self._run()
        except Exception:
            if self._mm.alive:
                self._kill(f"nobody serves its pages any more\n{traceback.format_exc()}")

    def _run(self) -> None:
        """Read events and answer them, one by one."""
        mm, world = self._mm, self._world
        fd, tasks, stalls = mm.uffd, world.tasks, world.stalls
        lane: Lane | None = None
        faults = 0
        recent: deque[int] = deque(maxlen=_RECENT)
        while mm.alive:
            message: bytes | memoryview
            if lane is not None:
                if not lane.serve():
                    if lane.used_up:
                        tid = lane.settle()
                        task = tasks.get(tid)
                        self._work(lane, recent, tid, task.caller if task is not None else self.caller)
                    continue
                message = lane.message
            else:
                if world.express is not None and not faults % _LOOK:
                    lane = world.express.lane(mm, faults)
                message = os.read(fd, uffd.MSG_SIZE)
                if not message:
                    continue  # see `end`
            faults += 1
            _event, flags, addr, tid = uffd.parse(message)
            started = time.perf_counter()
            task = tasks.get(tid)
            caller = task.caller if task is not None else self.caller
            if caller.group is not self._group:
                self._move(caller.group, started)
            stall = self._stall
            stalls.begin(stall, started)
            try:
                self._serve(flags, addr, task, caller)
            except Exception:
                if mm.alive:
                    world.log(f"internal error while serving {addr:#x} of task {tid}, page poisoned:")
                    world.log(traceback.format_exc())
                    self._poison(addr & _PAGE_MASK)
            now = time.perf_counter()
            stalls.end(stall, now)
            if task is not None:
                task.faults += 1
                task.stall_s += now - started
            if not mm.alive:
                break
            self._work(lane, recent, tid, caller)
        self._binder.leave()
        with self._closing:
            self._closed = True
            os.close(fd)
        if lane is not None:
            lane.discard()
        stalls.leave(self._stall, time.perf_counter())

    def _work(self, lane: Lane | None, recent: deque[int], tid: int, caller: Caller) -> None:
        """What there is to do when a fault of thread ``tid`` was served.

        A program that faults all the time must not keep the workers from working.
        What this slice leaves over, the next fault or the tracer goes on with.
        """
        world = self._world
        if tid in self._mm.users:  # (the kernel tells its number in its own namespace)
            self._binder.served(tid)
        more = not world.lock.sealing and world.slice()  # (two rounds at once there are not)
        if lane is not None and self._vma is not None and caller.group is self._group:
            # The more is done at once, the longer the lane stays open, and one thread gets on best like
            # that. Several shall not all wait for all of it: the lane opens for what there is room now.
            recent.append(tid)
            for _ in range(_SLICES if recent.count(tid) == len(recent) else 0):
                if not more:
                    break
                more = world.slice()
            lane.open(self._vma, caller, self._stall)

    def _move(self, group: Group, now: float) -> None:
        """The process is in another cgroup since its last fault."""
        stalls = self._world.stalls
        stalls.leave(self._stall, now)
        self._group, self._stall = group, stalls.join(group, now)

    def end(self) -> None:
        """Make the thread see that its mm is gone, and that nobody uses its descriptor any more.

        A sleeping read ends at a signal only, and os.read then tries again: now on a
        file that has nothing to say.
        """
        with self._closing:
            if self._closed or self.ident is None:
                return
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(nothing, self._mm.uffd, inheritable=False)
            os.close(nothing)
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self.ident, END_SIGNAL)

    def _serve(self, flags: int, addr: int, task: Task | None, caller: Caller) -> None:
        world, mm = self._world, self._mm
        lock: MachineLock | Beside = world.lock.beside
        while True:
            with lock:
                vma = mm.find(addr)
                if vma is None:
                    uffd.wake(mm.uffd, addr & _PAGE_MASK, PAGE_SIZE)  # unmapped meanwhile
                    return
                file, sealing = vma.device.file, world.lock.sealing
                if sealing and (file is None or headroom(world.machine, caller.group) < _SURE):
                    fault: Fault | None = Fault.RETRY
                elif file is not None:
                    self._vma = vma
                    fault = self._resolve(file, vma.prot, flags, addr, caller)
                elif vma.device.guest is not None:
                    fault = guests.resolve(world, mm, vma, addr, caller)
                else:
                    uffd.wake(mm.uffd, addr & _PAGE_MASK, PAGE_SIZE)
                    return
            if fault is None:
                return
            if fault is not Fault.RETRY:
                break
            # A round may hold just this page, or those that there is hope for: so wait until it is done.
            # Over the limit: what the kernel's fault would spin on, we work off.
            lock = world.lock
            if not sealing and not world.slice():
                time.sleep(_IDLE_PAUSE)
            if not mm.alive:
                return
        if task is not None and task.kick is None:
            sigbus = fault is Fault.SIGBUS
            if sigbus:
                world.tell_failed(task, vma.device)
            task.kick = Kick(addr, fault.code | (PF_W if sigbus and flags & _WRITE else 0), sigbus)
            world.kick(task.tid, task.kick)

    def _resolve(self, file: EnclaveFile, prot: int, flags: int, addr: int, caller: Caller) -> Fault | None:
        """Have the driver resolve the fault; None when the thread goes on."""
        world, mm = self._world, self._mm
        page = addr & _PAGE_MASK
        frames = world.frames
        frames.expect(mm, page)
        try:
            fault = world.driver.fault(file, addr, "w" if flags & _WRITES else "r", caller, prot)
        finally:
            woken = frames.expected()
        if fault is not _RESIDENT:
            return fault
        if not woken:
            if flags & _WP:
                uffd.writeprotect(mm.uffd, page, PAGE_SIZE, False)
            elif frames.lost(file.enclave.id, index := (page - file.base) >> PAGE_SHIFT):
                file.refusal = f"page {index:#x} was taken out through the program's descriptor"
                return Fault.SIGBUS
            else:
                uffd.wake(mm.uffd, page, PAGE_SIZE)
        return None

    def _poison(self, page: int) -> None:
        try:
            if uffd.poison(self._mm.uffd, page):
                return
        except OSError:
            pass
        self._kill(f"page {page:#x} cannot be poisoned")

    def _kill(self, why: str) -> None:
        self._world.log(f"process {self._mm.pid} is ended: {why}")
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._mm.open_pidfd(), signal.SIGKILL)
