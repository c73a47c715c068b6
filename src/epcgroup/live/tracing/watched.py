"""System calls of a process that we joined and that owns no enclave yet.

It has no filter of ours: a filter cannot be taken back, and without its tracer the
calls that it reports fail with ENOSYS. So every call stops, twice, until the
process first takes a device: from then on it is bound to us (`attach`) and its calls
are filtered as those of programs that we started.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from epcgroup.live.tracing import answers, attach, ptrace, syscalls
from epcgroup.live.tracing.seccomp import SYS

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

# What may concern a device, and mmap for the libraries that bring CPUIDs along.
_CONCERN = {
    SYS[name]
    for name in (
        "open", "openat", "openat2", "stat", "lstat", "newfstatat", "statx", "access", "faccessat",
        "faccessat2", "mmap", "ioctl",
    )
}  # fmt: skip
_MAP_ANONYMOUS = 0x20


def syscall_stop(tracer: Tracer, task: Task) -> None:
    """``task`` is stopped at the entry into or the exit from a system call."""
    nr = ptrace.syscall_entry(task.tid)
    if nr not in _CONCERN:
        if attach.is_bound(tracer, task):
            attach.bind_thread(task)
        tracer.resume(task)
        return
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    if _takes_device(tracer, task, regs):
        try:
            attach.bind(tracer, task)
        except ProcessLookupError:
            raise
        except OSError as error:
            tracer.world.log(f"process {task.pid} ({task.command}) cannot use SGX: {error.strerror}")
            answers.emulate(tracer, task, regs, -(error.errno or errno.EPERM))
        else:
            attach.restart_call(tracer, task, regs)
    elif regs.orig_rax == SYS["ioctl"]:
        tracer.resume(task)
    else:
        syscalls.answer(tracer, task)


def _takes_device(tracer: Tracer, task: Task, regs: UserRegs) -> bool:
    """Whether the call opens a device, or uses one that somebody passed on."""
    if regs.orig_rax == SYS["mmap"]:
        fd = -1 if regs.r10 & _MAP_ANONYMOUS else regs.r8 & 0xFFFFFFFF
    elif regs.orig_rax == SYS["ioctl"]:
        fd = regs.rdi & 0xFFFFFFFF if regs.rsi & 0xFF00 == 0xA400 else -1
    else:
        return syscalls.opens_device(task, regs)
    return fd >= 0 and tracer.world.devices.of_fd(task.tid, fd) is not None
