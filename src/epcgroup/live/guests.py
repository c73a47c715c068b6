"""/dev/sgx_vepc for real processes: mappings, faults, REMOVE_ALL (spec 6.6).

As with an enclave, the program holds a memfd of ours and userfaultfd reports the
first touch of each page. What differs: the offset in the file names the page and
not the address, nothing is ever taken back, and a child of fork does not inherit
the mapping (VM_DONTCOPY, here MADV_DONTFORK), nor does a core dump.

On hardware, an access to these pages by anybody but the guest's processor reads
ones and stores nothing. Here a page is full of ones when it comes, but what is
stored stays: to drop stores silently there is no means. No monitor depends on it.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.driver import Fault
from epcgroup.live.paging import locked, uffd
from epcgroup.live.paging.mm import EnclaveVma
from epcgroup.live.tracing import answers, filters
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver import VepcFile
    from epcgroup.epc import Caller
    from epcgroup.epc.group import Group
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer
    from epcgroup.live.world import World

_SYS_MADVISE, _MADV_DONTFORK, _MADV_DONTDUMP = 28, 10, 16
_PAGE_MASK = ~(PAGE_SIZE - 1)
_ABORT_PAGE = b"\xff" * PAGE_SIZE
_abort_page = uffd.PageBuffer()
_abort_page.view[:] = _ABORT_PAGE


@dataclass(slots=True)
class GuestPages:
    """Pages of virtual EPC charged to one group and the groups below it."""

    now: int = 0
    peak: int = 0


class GuestCounts:
    """GuestPages of every group that ever had any, by path."""

    def __init__(self) -> None:
        self._groups: defaultdict[str, GuestPages] = defaultdict(GuestPages)

    def of(self, path: str) -> GuestPages:
        """The counts of the group at ``path``; zeros if it never had a page."""
        return self._groups.get(path) or GuestPages()

    def add(self, group: Group | None, pages: int) -> None:
        """``group`` got ``pages`` more (or fewer, if negative)."""
        while group is not None:
            count = self._groups[group.path]
            count.now += pages
            count.peak = max(count.peak, count.now)
            group = group.parent


def mmap(tracer: Tracer, task: Task, regs: UserRegs, device: Device, length: int) -> None:
    """mmap of /dev/sgx_vepc: any size, any offset, shared only."""
    assert device.guest is not None
    try:
        device.guest.may_map(regs.r10)
    except OSError as refused:
        answers.emulate(tracer, task, regs, -(refused.errno or errno.EINVAL))
        return
    prot, offset = regs.rdx & 7, regs.r9
    first = locked.first_protection(task, prot)

    def mapped(stopped: Task, start: int) -> int:
        if start >= 0:
            tracer.life.serve(stopped)
            for advice in (_MADV_DONTFORK, _MADV_DONTDUMP):
                tracer.inject(stopped, _SYS_MADVISE, start, length, advice)
            uffd.register(stopped.mm.uffd, start, length, uffd.MODE_MISSING)
            filters.watch_range(tracer, stopped, start, length)
            with tracer.world.lock:
                stopped.mm.map(EnclaveVma(start, start + length, device, prot, prot, offset - start))
            locked.ready(tracer, stopped, start, length, first, prot)
        return start

    changes = {"rdx": first, "r10": regs.r10 & ~locked.MAP_AT_ONCE}
    answers.rewrite(tracer, task, regs, changes, mapped)


def resolve(world: World, mm: AddressSpace, vma: EnclaveVma, addr: int, caller: Caller) -> Fault | None:
    """A thread of ``mm`` touched a page that is not there; None when it goes on. Hold the lock."""
    file = vma.device.guest
    assert file is not None
    before = len(file.guest.pages)
    fault = file.fault(vma.index(addr), caller)
    if fault is not Fault.RESIDENT:
        return fault
    if len(file.guest.pages) > before:
        world.guests.add(caller.group, 1)
    page = addr & _PAGE_MASK
    try:
        uffd.copy(mm.uffd, page, _abort_page.address)
    except FileExistsError:  # another thread or process was faster
        uffd.wake(mm.uffd, page)
    except (FileNotFoundError, ProcessLookupError):
        pass  # just unmapped, or the process has ended: the page stays the instance's
    return None


def ioctl(tracer: Tracer, task: Task, regs: UserRegs, device: Device) -> None:
    """REMOVE_ALL or nothing."""
    assert device.guest is not None
    try:
        with tracer.world.lock:
            result = device.guest.ioctl(regs.rsi & 0xFFFFFFFF, regs.rdx)
            for index in device.guest.guest.pages:
                os.pwrite(device.memfd, _ABORT_PAGE, index << PAGE_SHIFT)
    except OSError as refused:
        result = -(refused.errno or errno.EINVAL)
    answers.emulate(tracer, task, regs, result)


def release(world: World, file: VepcFile) -> None:
    """The file was closed for the last time. Hold the lock."""
    for page in file.guest.pages.values():
        world.guests.add(page.group, -1)
    file.release()


__all__ = ["GuestCounts", "GuestPages", "ioctl", "mmap", "release", "resolve"]
