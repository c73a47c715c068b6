"""System calls that concern SGX, answered at their seccomp stop.

The filter (`seccomp`) stops a thread only for calls that may be ours: opens and
stats (the path decides here), SGX ioctls, shared file mappings, and, once a
process owns an enclave, calls about its address range. How a call is answered
is in `answers`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live import ioctls
from epcgroup.live.devices import PATHS, Device, Kind
from epcgroup.live.enclave import cpuinfo, debugmem, enclu, exits, faults
from epcgroup.live.fastpath import make_way
from epcgroup.live.fastpath import threads as fastpath
from epcgroup.live.paging import locked, mappings
from epcgroup.live.tracing import answers, handover, memory, ptrace, room, sandbox
from epcgroup.live.tracing.answers import emulate
from epcgroup.live.tracing.debugger import requests, waits

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

    Handler = Callable[[Tracer, Task, UserRegs], None]

_SYS_CLOSE = 3
_CREAT = os.O_CREAT | os.O_WRONLY | os.O_TRUNC  # creat(2)
# What an open of our /proc/PID/fd gives to whom it is not visible.
_NOT_TO_BE_SEEN = {-errno.ENOENT, -errno.EACCES, -errno.EPERM, -errno.ELOOP}
_LONGEST = 48  # bytes; the longest path of ours is /proc/PID/task/TID/mem
_STAT = struct.Struct("<QQQIIIIQqqqQQQQQQ24x")
_STATX = struct.Struct("<IIQIIIHHQQQQ")
_SIG_IGN = (1).to_bytes(8, "little")
_MISC = 10  # major number of the devices, and their usual minors
_MINORS = {Kind.VEPC: 124, Kind.ENCLAVE: 125, Kind.PROVISION: 126}
_CS_64 = 0x33  # code segment of 64-bit programs; the numbers of 32-bit ones mean other calls


def answer(tracer: Tracer, task: Task) -> None:
    """Answer the seccomp stop of ``task``."""
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    if not fastpath.half_way(task, regs):
        fastpath.notice(tracer.world, task)
    kind = task.mm.traps.get(regs.rip - 2)
    if kind is not None:
        enclu.trapped(tracer, task, regs, kind)
    elif task.inside is not None and exits.in_enclave(task, regs.rip - 2):
        faults.syscall_inside(tracer, task, regs)
    else:
        if sandbox.is_foreign(tracer, task):
            emulate(tracer, task, regs, -errno.ENOSYS)
            return
        handler = _HANDLERS.get(regs.orig_rax)
        if handler is None and task.view is not None:
            handler = task.view.calls.get(regs.orig_rax)
        if handler is None or regs.cs != _CS_64:
            tracer.resume(task)
        else:
            handler(tracer, task, regs)


def _path(task: Task, addr: int) -> str:
    """The path at ``addr``; "" if it is none of ours, being too long or not there."""
    try:
        return memory.read_cstring(task.tid, addr, _LONGEST).decode("ascii", "replace")
    except OSError:
        return ""


def _kind_of(task: Task, path: int) -> Kind | None:
    return PATHS.get(_path(task, path))


def _open(tracer: Tracer, task: Task, regs: UserRegs, path: int, flags: int) -> None:
    name = _path(task, path)
    kind = PATHS.get(name)
    if kind is None:
        if debugmem.wanted(tracer, task, name):
            answers.rewrite(tracer, task, regs, {}, functools.partial(_opened_memory, tracer))
        elif not (
            cpuinfo.opens(tracer, task, regs, name, flags)
            or (task.view is not None and task.view.opens(tracer, task, regs, name, flags))
        ):
            tracer.resume(task)
        return
    if (error := _odd_open(flags)) is not None:
        emulate(tracer, task, regs, -error)
        return
    try:
        device = new_device(tracer, task, kind)
    except OSError as refused:
        emulate(tracer, task, regs, -(refused.errno or errno.ENFILE))
        return

    def opened(stopped: Task, result: int) -> int:
        if result >= 0 and tracer.world.devices.of_fd(stopped.tid, result) is not device:
            tracer.inject(stopped, _SYS_CLOSE, result)  # another /proc than ours
            result = -errno.ENOENT
        if result in _NOT_TO_BE_SEEN:
            try:
                result = handover.give(tracer, stopped, device, flags)
            except OSError as refused:
                result = -(refused.errno or errno.EMFILE)
        if result < 0:
            tracer.world.devices.forget(device)
            tracer.world.release(device)
        return result

    if not handover.same_pids(task.tid):
        emulate(tracer, task, regs, opened(task, -errno.ENOENT))
        return
    answers.open_instead(tracer, task, regs, device.memfd, flags, opened)


def _odd_open(flags: int) -> int | None:
    """The errno for an open of a character device that cannot be; None if it can."""
    if flags & os.O_PATH:
        return None
    if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
        return errno.EEXIST
    if flags & os.O_DIRECTORY:  # O_TMPFILE too
        return errno.ENOTDIR
    return errno.EINVAL if flags & os.O_DIRECT else None


def new_device(tracer: Tracer, task: Task, kind: Kind) -> Device:
    """What an open of a device file gives ``task``; OSError when *we* have no descriptors left."""
    room.require()
    with tracer.world.lock:
        file = tracer.world.driver.open() if kind is Kind.ENCLAVE else None
    device = Device(kind, file, task.pid, task.command, task.caller.group.path)
    if kind is Kind.VEPC:
        device.hold_guest(tracer.world.driver.open_vepc())
    tracer.world.devices.add(device)
    return device


def opens_device(task: Task, regs: UserRegs) -> bool:
    """Whether the call that ``task`` is about to make opens a device of ours."""
    path = {2: regs.rdi, 257: regs.rsi, 437: regs.rsi}.get(regs.orig_rax)
    return path is not None and _kind_of(task, path) is not None


def _opened_memory(tracer: Tracer, task: Task, fd: int) -> int:
    if fd >= 0:
        debugmem.opened(tracer, task, fd)
    return fd


def _open2(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    try:
        flags = struct.unpack("<Q", memory.read(task.tid, regs.rdx, 8))[0]
    except OSError:
        tracer.resume(task)
        return
    _open(tracer, task, regs, regs.rsi, flags)


def _stat(tracer: Tracer, task: Task, regs: UserRegs, path: int, buffer: int) -> None:
    kind = _kind_of(task, path)
    if kind is None:
        tracer.resume(task)
        return
    now = Path("/dev/null").stat()
    mode, minor = stat.S_IFCHR | 0o666, _MINORS[kind]
    times = (int(now.st_mtime), 0) * 3
    image = _STAT.pack(now.st_dev, minor, 1, mode, 0, 0, 0, os.makedev(_MISC, minor), 0, 4096, 0, *times)
    _emulate_with(tracer, task, regs, buffer, image)


def _statx(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    kind = _kind_of(task, regs.rsi)
    if kind is None:
        tracer.resume(task)
        return
    mode, minor = stat.S_IFCHR | 0o666, _MINORS[kind]
    head = _STATX.pack(0x7FF, 4096, 0, 1, 0, 0, mode, 0, minor, 0, 0, 0)
    image = bytearray(256)
    image[: len(head)] = head
    struct.pack_into("<IIII", image, 128, _MISC, minor, 0, 5)
    _emulate_with(tracer, task, regs, regs.r8, bytes(image))


def _emulate_with(tracer: Tracer, task: Task, regs: UserRegs, buffer: int, image: bytes) -> None:
    try:
        memory.write(task.tid, buffer, image)
    except OSError:
        emulate(tracer, task, regs, -errno.EFAULT)
        return
    emulate(tracer, task, regs, 0)


def _access(tracer: Tracer, task: Task, regs: UserRegs, path: int, mode: int) -> None:
    if _kind_of(task, path) is None:
        tracer.resume(task)
    else:
        emulate(tracer, task, regs, -errno.EACCES if mode & os.X_OK else 0)


def _mmap(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    if not make_way.asked(tracer, task, regs):
        mappings.mmap(tracer, task, regs)


def _sigaction(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Note which signals an enclave's owner ignores (the kernel forgets when it forces one)."""
    with contextlib.suppress(OSError):
        if regs.rsi:
            bit = 1 << (regs.rdi - 1 & 63)
            ignored = memory.read(task.tid, regs.rsi, 8) == _SIG_IGN
            task.mm.ignored = task.mm.ignored & ~bit | (bit if ignored else 0)
    tracer.resume(task)


def _affinity(tracer: Tracer, task: Task, _: UserRegs) -> None:
    """It sees and changes its own processors, not those that we have bound it to."""
    tracer.world.bindings.asked(task.mm.users)
    tracer.resume(task)


_HANDLERS: dict[int, Handler] = {
    2: lambda tracer, task, regs: _open(tracer, task, regs, regs.rdi, regs.rsi),
    257: lambda tracer, task, regs: _open(tracer, task, regs, regs.rsi, regs.rdx),
    437: _open2,
    85: lambda tracer, task, regs: _open(tracer, task, regs, regs.rdi, _CREAT),
    61: waits.answer,
    101: requests.answer,
    247: waits.answer,
    4: lambda tracer, task, regs: _stat(tracer, task, regs, regs.rdi, regs.rsi),
    6: lambda tracer, task, regs: _stat(tracer, task, regs, regs.rdi, regs.rsi),
    262: lambda tracer, task, regs: _stat(tracer, task, regs, regs.rsi, regs.rdx),
    332: _statx,
    21: lambda tracer, task, regs: _access(tracer, task, regs, regs.rdi, regs.rsi),
    269: lambda tracer, task, regs: _access(tracer, task, regs, regs.rsi, regs.rdx),
    439: lambda tracer, task, regs: _access(tracer, task, regs, regs.rsi, regs.rdx),
    0: debugmem.access,
    1: debugmem.access,
    17: debugmem.access,
    18: debugmem.access,
    16: ioctls.ioctl,
    9: _mmap,
    13: _sigaction,
    10: mappings.mprotect,
    329: mappings.mprotect,
    11: mappings.munmap,
    25: mappings.mremap,
    26: mappings.msync,
    28: mappings.madvise,
    216: mappings.remap_file_pages,
    440: mappings.process_madvise,
    462: mappings.mseal,
    149: locked.mlock,
    325: locked.mlock,
    151: locked.mlockall,
    157: sandbox.install,
    203: _affinity,
    204: _affinity,
    314: _affinity,
    317: sandbox.install,
}
