"""EACCEPT and EMODPE without a stop: asked by a seccomp notification, answered by a thread of its own.

An enclave that grows executes EACCEPT and EMODPE tens of thousands of times, each a #UD
that stops the thread for the tracer: 100 µs. They need us (pages appear, permissions
change), but not the thread's registers. So where the code is known (`fastpath.sites`), a
stub makes a system call with a number that none has, and a seccomp filter turns that
into a notification: the kernel puts the thread to sleep, hands us number, address and
operands, and returns our answer in RAX. No stop, no SIGILL, and a signal that comes
meanwhile waits (WAIT_KILLABLE_RECV), so a leaf is executed once or not at all.

Only success is answered here. For everything else (a fault, an error code, a limit that
is full for long) the stub is told to execute the ENCLU, and the reference decides.

A filter with a listener can be installed once in the life of a process and its
descendants, so they share one (`Task.leaves`). Where it cannot be had (an old kernel,
a program with such a filter of its own) those ENCLUs stay as they are.

Rejected: a futex on shared memory (needs registers, hence the enclave's stack);
`int $0x80` that stops (still two task switches and the tracer: 60 µs).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import threading
import time
import traceback
from typing import TYPE_CHECKING

from epcgroup.driver import BusError
from epcgroup.errors import Busy, EpcgroupError
from epcgroup.live.paging import affinity
from epcgroup.live.paging.service import END_SIGNAL
from epcgroup.live.tracing import memory, procfs, room, scratch, seccomp
from epcgroup.sgx import enclu
from epcgroup.sgx.epcm import allows
from epcgroup.sgx.faults import LeafFault
from epcgroup.sgx.layouts import (
    MODIFIED,
    PENDING,
    PROT_MASK,
    TYPE_MASK,
    TYPE_SHIFT,
    Enclu,
    PageType,
    R,
    W,
)
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.driver import EnclaveFile
    from epcgroup.epc import Enclave
    from epcgroup.live.devices import Device
    from epcgroup.live.enclave.processor import Processor
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer
    from epcgroup.live.world import World
    from epcgroup.sgx.enclave import EnclaveState
    from epcgroup.sgx.faults import Result

#: The leaves that are asked for in this way.
LEAVES: dict[int, Callable[[EnclaveState, Processor, int, int], Result | None]] = {
    Enclu.EACCEPT: enclu.eaccept,
    Enclu.EMODPE: enclu.emodpe,
}

_EACCEPT = int(Enclu.EACCEPT)  # (to look a member up in its class costs more than the rest of the line)
_RECV, _SEND, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082104  # SECCOMP_IOCTL_NOTIF_*
_SYNC_WAKE_UP = 1
_NOTIF = struct.Struct("<QIIiIQ6Q")  # id, pid, flags; nr, arch, ip, args
_REPLY = struct.Struct("<QqiI")  # id, val, error, flags
_DONE, _EXECUTE_IT = 0, 1
_PAUSE = 0.001  # s
_TRIES = 256  # while the limit is full
_SYS_CLOSE = 3
_SECINFO = struct.Struct("<Q56s")
_RESERVED = bytes(56)
_IN_PAGE = PAGE_SIZE - 1
_REGULAR = PageType.REG << TYPE_SHIFT
_ACCEPTED = _REGULAR | R | W
_NEW = _ACCEPTED | PENDING  # what EAUG makes
_KIND = TYPE_MASK | PENDING | MODIFIED
_SECINFO_FLAGS = TYPE_MASK | PROT_MASK


class LeafService(threading.Thread):
    """Answers the leaves of one family of processes."""

    def __init__(self, world: World, listener: int) -> None:
        super().__init__(name=f"leaves-{listener}", daemon=True)
        self._world = world
        self._listener = listener
        self._affinity = affinity.Follower(world.bindings)
        self._ended = self._closed = False
        self._closing = threading.Lock()

    def run(self) -> None:
        """Take requests and answer them, one by one."""
        request, reply = bytearray(_NOTIF.size), bytearray(_REPLY.size)
        zeros = bytes(_NOTIF.size)
        # Who waits for the other is woken on the other's processor; since Linux 6.6.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._listener, _SET_FLAGS, _SYNC_WAKE_UP)
        while not self._ended:
            request[:] = zeros
            try:
                fcntl.ioctl(self._listener, _RECV, request)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                # The thread was killed while we were about to take its request; or all have ended,
                # of which the tracer has to hear before we do.
                if error.errno == errno.ENOENT and self._used():
                    time.sleep(_PAUSE)
                    continue
                break
            number, tid, _, nr, _, ip, first, second, *_ = _NOTIF.unpack(request)
            try:
                answer = self._execute(tid, nr & 0xFF, ip, first, second)
            except Exception:
                self._world.log(f"internal error in an ENCLU of task {tid}:\n{traceback.format_exc()}")
                answer = _EXECUTE_IT
            _REPLY.pack_into(reply, 0, number, answer, 0, 0)
            try:  # (contextlib.suppress costs as much as the request)
                fcntl.ioctl(self._listener, _SEND, reply)
            except OSError:
                continue  # it was killed
            self._affinity.follow(tid)
            self._world.slice()
        with self._closing:
            self._closed = True
            os.close(self._listener)

    def _used(self) -> bool:
        return any(task.leaves is self for task in list(self._world.tasks.values()))

    def end(self) -> None:
        """Nobody can ask any more: wake the thread, and let it find a file that has no requests."""
        self._ended = True
        with self._closing:
            if self._closed or self.ident is None:
                return
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(nothing, self._listener, inheritable=False)
            os.close(nothing)
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self.ident, END_SIGNAL)

    def _execute(self, tid: int, leaf: int, ip: int, secinfo: int, page: int) -> int:
        """Execute one leaf for thread ``tid``; what the stub finds in RAX."""
        world = self._world
        task = world.tasks.get(tid)
        act = LEAVES.get(leaf)
        if task is None or act is None:
            return _EXECUTE_IT
        mm = task.mm
        if mm.fast is None or mm.fast.leaving(ip) is None:
            return _EXECUTE_IT
        for _ in range(_TRIES):
            with world.lock:
                vma = mm.find(page)
                if vma is None or not vma.prot or vma.too_much(page):
                    return _EXECUTE_IT
                device = vma.device
                if device.file is None or device.file.held is None:
                    return _EXECUTE_IT
                try:
                    if self._shortly(task, device, device.file, device.file.held, leaf, secinfo, page):
                        return _DONE
                    access = world.processor(device, task.caller)
                    result = act(access.state, access, secinfo, page)
                    return _DONE if result is None or not result.rax else _EXECUTE_IT
                except Busy:
                    pass
                except (LeafFault, BusError, EpcgroupError):
                    return _EXECUTE_IT
            if not world.slice():
                break
        return _EXECUTE_IT

    def _shortly(
        self,
        task: Task,
        device: Device,
        file: EnclaveFile,
        enclave: Enclave,
        leaf: int,
        secinfo: int,
        page: int,
    ) -> bool:
        """The two most frequent cases, in half the time; False, and nothing done, if it is neither.

        They are EACCEPT of a page that does not exist yet (EAUG comes with it, and the page
        never hides) and EMODPE of a resident page. What they do is what `sgx.enclu` does.
        """
        world, base, epcm, number = self._world, file.base, file.state.epcm, enclave.id
        index, at = (page - base) >> PAGE_SHIFT, (secinfo - base) >> PAGE_SHIFT
        shown, word = epcm.get(at), epcm.get(index)
        if page & _IN_PAGE or secinfo & 63 or shown is None or not allows(shown, "r"):
            return False
        flags, reserved = _SECINFO.unpack(world.frames.read(number, at, secinfo & _IN_PAGE, _SECINFO.size))
        if reserved != _RESERVED:
            return False
        if leaf == _EACCEPT:
            if word is not None or flags != _NEW or index in file.maximum or not world.driver.platform.sgx2:
                return False
            world.machine.augment(task.caller, enclave, index)
            epcm[index] = _ACCEPTED
            file.set_maximum(index, PROT_MASK)
            try:
                world.frames.zero(number, index, task.mm)
            except OSError:  # no memory for it: it is not there, and the reference says so
                world.frames.drop(number, index)
                del epcm[index]
                file.forget_page(index)
                world.machine.cancel_page(enclave, index)
                return False
        else:
            if word is None or word & _KIND != _REGULAR or flags & ~_SECINFO_FLAGS:
                return False
            new = word | flags & PROT_MASK
            if new & (R | W) == W:
                return False
            if new != word:
                epcm[index] = new
                if (new ^ word) & (R | W):
                    world.frames.protect(number, index, new)
                else:  # X is looked at when a fetch faults
                    device.enterable.changes(index)
        device.touched.add(index)
        device.touched.add(at)
        return True


def listen(tracer: Tracer, task: Task) -> bool:
    """Have the leaves of the process of ``task`` asked for in this way; whether they are.

    ``task`` is at a stop where system calls can be run in it.
    """
    if task.leaves is None:
        try:
            listener = _install(tracer, task)
        except ProcessLookupError:
            raise
        except OSError:
            return False
        service = LeafService(tracer.world, listener)
        for other in tracer.tasks.values():
            if other.pid == task.pid:
                other.leaves = service
        room.begin(service)
    return True


def _install(tracer: Tracer, task: Task) -> int:
    with scratch.page(tracer, task) as page:
        memory.write(task.tid, page, seccomp.image(seccomp.leaf_filter(), page))
        call = seccomp.SYS["seccomp"], seccomp.SET_MODE_FILTER, seccomp.LISTENER_FLAGS, page
        remote = tracer.inject(task, *call)
    ours = procfs.take_fd(task.tid, remote)
    tracer.inject(task, _SYS_CLOSE, remote)
    return ours


__all__ = ["LEAVES", "LeafService", "listen"]
