"""ioctl on SGX devices: the driver answers, here is what a real process adds.

An ioctl is a job: the driver's generator is advanced slice by slice, so that a
gigabyte of ADD_PAGES neither holds the lock nor starves other programs' stops.
ECREATE gives the enclave its addresses, and with them come the size of the
memfd, mappings that were made too early, and the second seccomp filter that
reports system calls made from inside.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from epcgroup.driver import Ioctl
from epcgroup.errors import ERESTARTSYS, Interrupted
from epcgroup.live import guests
from epcgroup.live.devices import Kind
from epcgroup.live.enclave import cpuid, debugmem, threads
from epcgroup.live.enclave.user_memory import ProcessMemory
from epcgroup.live.fastpath import programs as fastpath
from epcgroup.live.fastpath import unpatched
from epcgroup.live.paging import mappings
from epcgroup.live.paging.mm import PROT_EXEC
from epcgroup.live.tracing import answers, filters, procfs, room
from epcgroup.observe.model import REFUSED
from epcgroup.sgx.layouts import X
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from epcgroup.driver import EnclaveFile
    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer
    from epcgroup.live.world import World

_CREATE, _RESTRICT, _MODIFY = 0x00, 0x05, 0x06
_RANGE = struct.Struct("<QQ")  # offset, length: how the arguments of the SGX2 ioctls begin


def ioctl(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """An ioctl of SGX's type, on whatever file."""
    device = tracer.world.devices.of_fd(task.tid, regs.rdi & 0xFFFFFFFF)
    if device is None:
        tracer.resume(task)
    elif device.guest is not None:
        guests.ioctl(tracer, task, regs, device)
    elif device.kind is not Kind.ENCLAVE:
        answers.emulate(tracer, task, regs, -errno.ENOTTY)
    else:
        tracer.start(task, _answer(tracer, task, regs, device))


def _answer(tracer: Tracer, task: Task, regs: UserRegs, device: Device) -> Job:
    world, file = tracer.world, device.file
    assert file is not None
    command, arg, fd = regs.rsi & 0xFFFFFFFF, regs.rdx, regs.rdi & 0xFFFFFFFF
    if command & 0xFF == _CREATE and not room.left_in(task.tid):
        answers.emulate(tracer, task, regs, -errno.EMFILE)
        return
    if command & 0xFF == _CREATE:
        tracer.release_closed()  # an enclave just closed frees its pages first
    user = ProcessMemory(task.tid, task.mm, world.devices)
    steps = file.ioctl_steps(command, arg, user, task.caller)
    was_created = file.created
    result = 0
    while True:
        try:
            with world.lock:
                next(steps)
        except StopIteration as done:
            result = done.value
            break
        except Interrupted as signal:
            answers.interrupt(tracer, task, regs, signal.errno or ERESTARTSYS)
            return
        except OSError as refused:
            result = -(refused.errno or errno.EIO)
            _tell(tracer, task, device, command, refused)
            break
        world.slice()
        yield not user.waits
    if file.created and not was_created:
        _created(tracer, task, device, fd)
    if command == Ioctl.INIT and not result:
        yield from unpatched.initialised(world, task, device)
    if command & 0xFF in (_RESTRICT, _MODIFY):
        _take_execute(tracer, task, device, user, arg)
    answers.emulate(tracer, task, regs, result)


def _tell(tracer: Tracer, task: Task, device: Device, command: int, refused: OSError) -> None:
    """Say in the log what was refused, and why."""
    file = device.file
    name = Ioctl(command).name if command in Ioctl.__members__.values() else f"ioctl {command:#x}"
    tracer.world.tell(
        REFUSED,
        group=task.caller.group.path,
        enclave=file.enclave.id if file is not None and file.created else None,
        pid=task.pid,
        command=task.command,
        errno=errno.errorcode.get(refused.errno or errno.EIO, str(refused.errno)),
        reason=f"{name}: {refused.strerror}",
    )


def _created(tracer: Tracer, task: Task, device: Device, fd: int) -> None:
    """ECREATE succeeded: the enclave has a place."""
    device.fix_size(device.size)
    assert device.file is not None
    with tracer.world.lock:  # page services look through all that is bound
        tracer.world.frames.bind(device.file.enclave.id, device)
    mappings.adopt_early(tracer, task, device, fd)
    task.mm.ignored = int(procfs.status(task.tid)["SigIgn"], 16) & threads.FORCED
    if not task.mm.trap_ranges:
        debugmem.opened_before(tracer, task)
    filters.watch_range(tracer, task, device.base, device.size)
    with room.in_program(task.tid):
        fastpath.created(tracer, task, device)
    _look_at_xfrm(tracer.world, device)


def _look_at_xfrm(world: World, device: Device) -> None:
    """Code inside runs with the XCR0 of the host, which on hardware would be XFRM: of use only to
    whoever looks for a cause, as hardly any enclave saves more than it declared."""
    assert device.state is not None
    missing = cpuid.xcr0() & ~device.state.secs.xfrm
    if missing:
        world.debug(
            f"an enclave of {device.command} has XFRM {device.state.secs.xfrm:#x}, but this machine has "
            f"{missing:#x} more: an XSAVE inside that asks for all components writes more than it expects"
        )


def _take_execute(tracer: Tracer, task: Task, device: Device, user: ProcessMemory, arg: int) -> None:
    """Pages of the ioctl's range may have lost X: take it from their mappings too.

    All mappings of this process; another one that shares the enclave keeps what it has.
    """
    assert device.file is not None
    try:
        offset, length = _RANGE.unpack(user.read(arg, _RANGE.size))
    except OSError:
        return
    low, high = device.base + offset, device.base + offset + length
    for vma in task.mm.overlapping(low, high):
        if vma.device is device and vma.real & PROT_EXEC:
            first, last = vma.index(max(low, vma.start)), vma.index(min(high, vma.end))
            for start, end in _without_execute(device.file, first, last):
                at = device.base + (start << PAGE_SHIFT)
                mappings.change_execute(tracer, task, vma, at, end - start, allow=False)


def _without_execute(file: EnclaveFile, first: int, last: int) -> list[tuple[int, int]]:
    """Runs of pages in ``[first, last)`` without EPCM.X, resident or evicted."""
    runs: list[tuple[int, int]] = []
    for index in range(first, last):
        if not file.word(index) & X:
            start = runs.pop()[0] if runs and runs[-1][1] == index else index
            runs.append((start, index + 1))
    return runs
