"""mmap, mprotect and munmap of enclave memory (spec 6.2).

The driver decides whether a mapping is allowed; here the memfd is made to look
like the device: any offset is accepted and the *address* decides which page is
seen, so the offset is rewritten to ``address - base``. The protection given to
the kernel lacks PROT_EXEC unless every page of the range may be executed (see
`mm`). Mappings made before ECREATE know no base yet; they are put right when
the enclave gets one (`adopt_early`).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.live import guests
from epcgroup.live.devices import Kind
from epcgroup.live.enclave import traps
from epcgroup.live.fastpath import programs as fastpath
from epcgroup.live.paging import locked
from epcgroup.live.paging.mm import PROT_EXEC, EnclaveVma
from epcgroup.live.tracing import answers, memory, procfs, room
from epcgroup.live.tracing.task import Trap
from epcgroup.units import PAGE_SHIFT, page_ceil

if TYPE_CHECKING:
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

SYS_MMAP, SYS_MPROTECT, SYS_MADVISE = 9, 10, 28
MAP_SHARED, MAP_TYPE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x0F, 0x10, 0x20
MAP_FIXED_NOREPLACE = 0x100000
_MAP_PRIVATE = 0x02
_READ_IMPLIES_EXEC = 0x0400000  # personality(2)
_MADV_DONTFORK, _MADV_HUGEPAGE, MADV_DONTDUMP = 10, 14, 16
# What the kernel refuses for a mapping of device memory (VM_IO, VM_PFNMAP); most of it would reach through
# the mapping into the memfd. DONTNEED, FREE, REMOVE, DOFORK, DODUMP, COLD, PAGEOUT, POPULATE_READ and _WRITE,
# DONTNEED_LOCKED, COLLAPSE, GUARD_INSTALL and _REMOVE:
_MADV_INVALID = {4, 8, 9, 11, 17, 20, 21, 22, 23, 24, 25, 102, 103}
_MADV_POISON = {100, 101}  # HWPOISON, SOFT_OFFLINE: there is no page to be had
_MS_SYNC = 4
_IOV_MAX = 1024
_IOVEC = struct.Struct("<QQ")


def whole_pages(length: int) -> int:
    """``length`` rounded up to whole pages, in bytes."""
    return page_ceil(length) << PAGE_SHIFT


def real_protection(device: Device, start: int, end: int, prot: int) -> int:
    """``prot`` without PROT_EXEC, unless every page of the range may be executed."""
    if not prot & PROT_EXEC or device.file is None:
        return prot
    first, last = (start - device.base) >> PAGE_SHIFT, (end - device.base) >> PAGE_SHIFT
    return prot if device.file.all_executable(first, last) else prot & ~PROT_EXEC


def mmap(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """A shared file mapping, or any mapping that may cover enclave memory."""
    addr, length, prot, flags = regs.rdi, whole_pages(regs.rsi), regs.rdx & 7, regs.r10
    fd = regs.r8 & 0xFFFFFFFF
    device = None if flags & MAP_ANONYMOUS else tracer.world.devices.of_fd(task.tid, fd)
    if device is None and flags & (MAP_ANONYMOUS | MAP_TYPE) == _MAP_PRIVATE and prot & PROT_EXEC:
        _library(tracer, task, regs, fd, regs.r9)
    elif device is None:
        _replace(tracer, task, regs, addr, length, flags)
    elif device.guest is not None:
        guests.mmap(tracer, task, regs, device, length)
    elif device.kind is not Kind.ENCLAVE or device.file is None:
        answers.emulate(tracer, task, regs, -errno.ENODEV)
    elif flags & MAP_TYPE == _MAP_PRIVATE:
        answers.emulate(tracer, task, regs, -errno.EINVAL)
    elif not device.file.created:
        tracer.resume(task)  # adopted at ECREATE
    elif task.mm.uffd < 0 and not room.left_in(task.tid):
        answers.emulate(tracer, task, regs, -errno.ENFILE)
    else:
        _map_enclave(tracer, task, regs, device, addr, length, prot, flags)


def _map_enclave(
    tracer: Tracer, task: Task, regs: UserRegs, device: Device, addr: int, length: int, prot: int, flags: int
) -> None:
    assert device.file is not None
    fixed = bool(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
    inside = device.base <= addr and addr + length <= device.base + device.size
    try:
        at = addr if fixed or inside else device.base
        device.file.may_map(at, length, prot, read_implies_exec=_read_implies_exec(task))
    except OSError as refused:
        answers.emulate(tracer, task, regs, -(refused.errno or errno.EACCES))
        return
    if not fixed and not inside and device.file.initialised:
        answers.emulate(tracer, task, regs, -errno.EACCES)
        return
    real = real_protection(device, addr, addr + length, prot) if inside else prot
    # Outside the enclave's range nothing is ever there: beyond the end of the
    # memfd, a touch is a SIGBUS.
    offset = addr - device.base if inside else whole_pages(device.size)
    first = locked.first_protection(task, real) if inside else real

    def mapped(stopped: Task, result: int) -> int:
        if result < 0:
            return result
        if inside and result == addr:
            _attach(tracer, stopped, device, addr, addr + length, prot, real, first)
        return result

    changes = {"r9": offset, "rdx": first, "r10": flags & ~locked.MAP_AT_ONCE}
    answers.rewrite(tracer, task, regs, changes, mapped)


def _read_implies_exec(task: Task) -> bool:
    return bool(procfs.personality(task.tid) & _READ_IMPLIES_EXEC)


def _attach(
    tracer: Tracer, task: Task, device: Device, start: int, end: int, prot: int, real: int, first: int
) -> None:
    """``[start, end)`` of the stopped task now maps the enclave, with ``first``: serve its faults."""
    tracer.life.serve(task)
    # As the driver's are. A core dump would have every page of a terabyte.
    tracer.inject(task, SYS_MADVISE, start, end - start, MADV_DONTDUMP)
    try:
        task.mm.register(start, end)
    except ProcessLookupError:
        raise
    except OSError as error:  # EBUSY: another thread was faster
        raise Refused("it serves the faults of its enclave's memory itself (userfaultfd)") from error
    with tracer.world.lock:
        task.mm.map(EnclaveVma(start, end, device, prot, real))
        tracer.world.frames.join(task.mm, device, start, end)
    locked.ready(tracer, task, start, end - start, first, real)
    fastpath.mapped(tracer, task, device)


def _library(tracer: Tracer, task: Task, regs: UserRegs, fd: int, offset: int) -> None:
    """Code is mapped from a file: its CPUID and ENCLU shall come to us."""
    length, flags = whole_pages(regs.rsi), regs.r10

    def mapped(stopped: Task, result: int) -> int:
        if result >= 0:
            if flags & MAP_FIXED and stopped.mm.overlapping(result, result + length):
                _forget(tracer, stopped.mm, result, result + length)
            trap = traps.UD2 if stopped.watched else traps.INT80
            found = traps.patch_library(stopped.tid, fd, result, length, offset, trap)
            stopped.mm.traps.update(found)
            fastpath.replace(tracer, stopped, [at for at, kind in found.items() if kind is Trap.ENCLU])
            if stopped.watched:
                tracer.guard.keep(stopped.mm)
        return result

    answers.rewrite(tracer, task, regs, {}, mapped)


def _replace(tracer: Tracer, task: Task, regs: UserRegs, addr: int, length: int, flags: int) -> None:
    """A mapping of something else: enclave mappings under it are gone."""
    if not (flags & MAP_FIXED and task.mm.overlapping(addr, addr + length)):
        tracer.resume(task)
        return

    def replaced(stopped: Task, result: int) -> int:
        if result >= 0:
            _forget(tracer, stopped.mm, addr, addr + length)
        return result

    answers.rewrite(tracer, task, regs, {}, replaced)


def _forget(tracer: Tracer, space: AddressSpace, start: int, end: int) -> None:
    with tracer.world.lock:
        space.unmap(start, end)
    tracer.release_closed()


def munmap(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """munmap of a range that may hold enclave memory."""
    start, end = regs.rdi, regs.rdi + whole_pages(regs.rsi)
    if not task.mm.overlapping(start, end):
        tracer.resume(task)
        return

    def unmapped(stopped: Task, result: int) -> int:
        if result == 0:
            _forget(tracer, stopped.mm, start, end)
        return result

    answers.rewrite(tracer, task, regs, {}, unmapped)


def mprotect(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """mprotect: the driver's rule first, then the kernel without forbidden X.

    Mapping by mapping, as the kernel goes: what lies before the one that is refused has changed.
    """
    start, end, prot = regs.rdi, regs.rdi + whole_pages(regs.rsi), regs.rdx & 7
    vmas = task.mm.overlapping(start, end)
    if not vmas:
        tracer.resume(task)
        return
    real, error = prot, 0
    for vma in vmas:
        low, high = max(start, vma.start), min(end, vma.end)
        if vma.device.file is None:
            continue  # a virtual EPC: any protection
        try:
            vma.device.file.may_protect(low, high - low, prot, _read_implies_exec(task))
        except OSError as refused:
            end, error = low, refused.errno or errno.EACCES
            break
        real &= real_protection(vma.device, low, high, prot)
    if end <= start:
        answers.emulate(tracer, task, regs, -error)
        return

    def changed(stopped: Task, result: int) -> int:
        if result == -errno.EINVAL:  # of the arguments: nothing has changed
            return result
        reached = end if result == 0 else _changed_up_to(stopped, start, end, real)
        with tracer.world.lock:
            stopped.mm.protect(start, reached, prot=prot, real=real)
        return result or -error

    changes = {"rdx": real, "rsi": end - start} if error else {"rdx": real}
    answers.rewrite(tracer, task, regs, changes, changed)


def _changed_up_to(task: Task, start: int, end: int, real: int) -> int:
    """How far an mprotect came that failed; a hole or a mapping that may not have ``real`` ended it."""
    reached = start
    for mapping in procfs.maps(task.tid):
        if mapping.end > reached:
            if mapping.start > reached or mapping.prot != real or reached >= end:
                break
            reached = mapping.end
    return min(reached, end)


def mremap(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Enclave mappings do not move or grow (VM_DONTEXPAND): EFAULT."""
    if task.mm.overlapping(regs.rdi, regs.rdi + whole_pages(regs.rsi)):
        answers.emulate(tracer, task, regs, -errno.EFAULT)
    else:
        tracer.resume(task)


def madvise(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Advice that cannot hold for device memory is refused as the kernel does."""
    _advise(tracer, task, regs, regs.rdx, [(regs.rdi, regs.rdi + whole_pages(regs.rsi))])


def process_madvise(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """The same by a list of ranges, which a process may use for its own memory."""
    count = min(regs.rdx, _IOV_MAX)
    try:
        pieces = _IOVEC.iter_unpack(memory.read(task.tid, regs.rsi, count * _IOVEC.size))
    except OSError:
        pieces = iter(())
    ranges = [(start, start + whole_pages(length)) for start, length in pieces]
    _advise(tracer, task, regs, regs.r10, ranges)


def _advise(tracer: Tracer, task: Task, regs: UserRegs, advice: int, ranges: list[tuple[int, int]]) -> None:
    advice &= 0xFFFFFFFF
    if not any(task.mm.overlapping(start, end) for start, end in ranges):
        tracer.resume(task)
    elif advice in _MADV_INVALID:
        answers.emulate(tracer, task, regs, -errno.EINVAL)
    elif advice in _MADV_POISON:
        answers.emulate(tracer, task, regs, -errno.EFAULT)
    elif advice == _MADV_HUGEPAGE:
        answers.emulate(tracer, task, regs, 0)  # heard, and without effect
    elif advice == _MADV_DONTFORK:

        def kept(stopped: Task, result: int) -> int:
            if result >= 0:
                with tracer.world.lock:
                    for start, end in ranges:
                        stopped.mm.keep_from_children(start, end)
            return result

        answers.rewrite(tracer, task, regs, {}, kept)
    else:
        tracer.resume(task)


def msync(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """There is no file to write to, and no fsync: MS_SYNC is EINVAL."""
    if regs.rdx & _MS_SYNC and task.mm.overlapping(regs.rdi, regs.rdi + whole_pages(regs.rsi)):
        answers.emulate(tracer, task, regs, -errno.EINVAL)
    else:
        tracer.resume(task)


def remap_file_pages(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """The address decides which page is seen, whatever offset is asked for: nothing changes."""
    start, end = regs.rdi, regs.rdi + whole_pages(regs.rsi)
    known = task.mm.overlapping(start, end)
    if not known:
        tracer.resume(task)
    else:
        inside = known[0].start <= start and end <= known[-1].end and not regs.rdx
        answers.emulate(tracer, task, regs, 0 if inside else -errno.EINVAL)


def mseal(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Enclave memory cannot be sealed here, because we change its mappings: as a kernel without the call."""
    if task.mm.overlapping(regs.rdi, regs.rdi + whole_pages(regs.rsi)):
        answers.emulate(tracer, task, regs, -errno.ENOSYS)
    else:
        tracer.resume(task)


def adopt_early(tracer: Tracer, task: Task, device: Device, fd: int) -> None:
    """ECREATE has happened: put mappings made before it where they belong.

    ``task`` is at a stop where system calls can be run in it.
    """
    for mapping in procfs.mappings_of_inode(task.tid, device.inode):
        start = max(mapping.start, device.base)
        end = min(mapping.end, device.base + device.size)
        if start >= end:
            continue
        real = real_protection(device, start, end, mapping.prot)
        flags = MAP_SHARED | MAP_FIXED
        first = locked.first_protection(task, real)
        try:
            tracer.inject(task, SYS_MMAP, start, end - start, first, flags, fd, start - device.base)
        except PermissionError as error:
            raise Refused("it sealed the memory of an enclave (mseal) before it was one") from error
        _attach(tracer, task, device, start, end, mapping.prot, real, first)


def change_execute(
    tracer: Tracer, task: Task, vma: EnclaveVma, start: int, pages: int, *, allow: bool
) -> None:
    """Give or take PROT_EXEC of ``pages`` pages from ``start`` of the stopped task's mapping."""
    real = vma.prot if allow else vma.prot & ~PROT_EXEC
    length = pages << PAGE_SHIFT
    tracer.inject(task, SYS_MPROTECT, start, length, real)
    with tracer.world.lock:
        task.mm.protect(start, start + length, real=real)


__all__ = [
    "adopt_early",
    "change_execute",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munmap",
    "process_madvise",
    "remap_file_pages",
]
