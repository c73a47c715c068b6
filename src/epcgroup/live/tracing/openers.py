"""Processes that open an SGX device of a system that has none: found, and made ours.

Placeholders stand where the device files would be. A fanotify permission mark on
their inodes holds every open until we have answered, in whatever mount namespace,
container or language it is made, and says which thread it is. We trace that
thread's process, have the thread stopped on its way back from the call, and answer
"allow". It stops with the placeholder's descriptor; that number becomes a device of
ours before the program sees it. The rest is as for a joined process that opens a
device (`attach`), except that no other thread is stopped.

If we die while a thread waits, the kernel answers "allow" for us: it gets the
placeholder, a file whose ioctls fail with ENOTTY. It never hangs.

A CPUID that was executed before the open was the processor's own; nothing can be
done about that here (`epcgroup attach` and `exec` come earlier).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import EpcgroupError, MissingCapability, Refused
from epcgroup.live.tracing import attach, handover, procfs, ptrace, syscalls

if TYPE_CHECKING:
    from epcgroup.live.devices import Kind
    from epcgroup.live.tracing.attach import Adopt
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_FAN_CLOEXEC, _FAN_CLASS_CONTENT, _FAN_REPORT_TID = 0x1, 0x4, 0x100
_FAN_MARK_ADD, _FAN_OPEN_PERM = 0x1, 0x10000
_FAN_ALLOW, _FAN_DENY = 1, 2
_AT_FDCWD = -100
_EVENT = struct.Struct("<IBBHQii")  # length, version, -, metadata length, mask, fd, tid
_RESPONSE = struct.Struct("<iI")
_SYS_CLOSE = 3
_OPENS = {2, 257, 437}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Opening:
    """A thread that waits in its open of a placeholder."""

    tid: int
    kind: Kind
    inode: int


class Openers(threading.Thread):
    """Reads the events; each is handled by the tracer's thread."""

    def __init__(self, tracer: Tracer, adopt: Adopt) -> None:
        """Raises MissingCapability where opens cannot be held."""
        super().__init__(name="openers", daemon=True)
        self._tracer = tracer
        self._adopt = adopt
        self._kinds: dict[int, Kind] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        flags = _FAN_CLASS_CONTENT | _FAN_CLOEXEC | _FAN_REPORT_TID
        self._fanotify: int = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
        if self._fanotify < 0:
            raise _missing("fanotify_init")

    def watch(self, path: Path, kind: Kind) -> None:
        """Hold the opens of this file, by whatever name. Raises MissingCapability."""
        mask = ctypes.c_uint64(_FAN_OPEN_PERM)
        if _libc.fanotify_mark(self._fanotify, _FAN_MARK_ADD, mask, _AT_FDCWD, os.fsencode(path)) < 0:
            raise _missing(f"fanotify_mark of {path}")
        self._kinds[path.stat().st_ino] = kind

    def end(self) -> None:
        """Hold no more opens; those that are held go on."""
        os.eventfd_write(self._wake, 1)
        if self.is_alive():
            self.join(5)
        os.close(self._fanotify)

    def run(self) -> None:
        """Hand every event to the tracer."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._fanotify, select.POLLIN)
        while all(fd != self._wake for fd, _ in poll.poll()):
            events = os.read(self._fanotify, 8192)
            at = 0
            while at < len(events):
                length, _, _, _, _, fd, tid = _EVENT.unpack_from(events, at)
                at += length
                if fd >= 0:
                    self._tracer.post(lambda fd=fd, tid=tid: self._opened(fd, tid))  # type: ignore[misc]

    def _opened(self, fd: int, tid: int) -> None:
        inode = os.fstat(fd).st_ino
        verdict = _FAN_ALLOW
        try:
            self._take(_Opening(tid, self._kinds[inode], inode))
        except (EpcgroupError, OSError, KeyError) as error:
            verdict = _FAN_DENY
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._tracer.world.log(f"thread {tid} may not open an SGX device: {why}")
        with contextlib.suppress(OSError):
            os.write(self._fanotify, _RESPONSE.pack(fd, verdict))
        os.close(fd)

    def _take(self, opening: _Opening) -> None:
        """Have the thread stopped when its open returns."""
        tracer, tid = self._tracer, opening.tid
        if tid not in tracer.tasks:
            pid = procfs.tgid(tid)
            if pid == os.getpid():
                return
            attach.seize(tracer, pid, self._adopt, ptrace.OPTIONS)
        task = tracer.tasks.get(tid)
        if task is None:
            raise Refused(f"thread {tid} cannot be traced", errno.EPERM)
        task.on_stop = lambda stopped: exchange(tracer, stopped, opening)
        ptrace.interrupt(tid)


def _missing(what: str) -> MissingCapability:
    reason = os.strerror(ctypes.get_errno())
    return MissingCapability(
        f"{what}: {reason}; holding opens needs root (CAP_SYS_ADMIN) and a kernel with "
        "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
    )


def exchange(tracer: Tracer, task: Task, opening: _Opening) -> None:
    """``task`` has opened the placeholder and is on its way back: give it a device instead."""
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    fd = regs.rax
    if regs.orig_rax not in _OPENS or not _is_placeholder(task, fd, opening):
        tracer.resume(task)  # it failed, or was interrupted
        return
    try:
        attach.equip(tracer, task)
        if task.watched:
            attach.bind(tracer, task, siblings=False)
        device = syscalls.new_device(tracer, task, opening.kind)
        mode = procfs.fd_flags(task.tid, fd) & os.O_ACCMODE
        try:
            opened = os.open(f"/proc/self/fd/{device.memfd}", mode | os.O_CLOEXEC)
            try:
                handover.replace(tracer, task, fd, opened)
            finally:
                os.close(opened)
        except OSError:
            tracer.world.devices.forget(device)
            tracer.world.release(device)
            raise
    except ProcessLookupError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        tracer.world.log(f"process {task.pid} ({task.command}) gets no SGX device: {why}")
        tracer.inject(task, _SYS_CLOSE, fd)
        regs = ptrace.getregs(task.tid, regs)
        regs.rax = -(error.errno or errno.EMFILE) & 0xFFFFFFFFFFFFFFFF
        ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def _is_placeholder(task: Task, fd: int, opening: _Opening) -> bool:
    try:
        return procfs.fd_inode(task.tid, fd) == opening.inode
    except OSError:
        return False
