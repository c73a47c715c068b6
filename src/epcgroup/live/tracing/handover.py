"""Give a traced program a descriptor of ours, whatever its namespaces and its user.

The short way is that the program opens /proc/OUR-PID/fd/N itself (`syscalls`). It
needs our process to be visible and ours to be looked into: not from a container,
not for a program of another user. There the program makes a pair of sockets, we
take one end (pidfd_getfd) and send the descriptor through it. Both ways end in a
file that was *opened*, so that its last close is reported (see `devices`).

Rejected: memfd_create by the program and pidfd_getfd by us (no close is ever
reported), SECCOMP_ADDFD (it needs a listener, of which a chain of filters can have
only one, and containers may want their own).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live.tracing import memory, procfs, room, scratch

if TYPE_CHECKING:
    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_SYS_CLOSE, _SYS_RECVMSG, _SYS_SOCKETPAIR, _SYS_DUP3 = 3, 47, 53, 292
_AF_UNIX, _SOCK_DGRAM_CLOEXEC = 1, 2 | 0o2000000
_MSG_CMSG_CLOEXEC = 0x40000000
_DONTWAIT = socket.MSG_DONTWAIT
# In the borrowed page: two descriptors, struct msghdr, struct iovec, one byte, one control message.
_MSGHDR_AT, _IOVEC_AT, _BYTE_AT, _CONTROL_AT, _CONTROL_SIZE = 16, 80, 96, 112, 24
_MSGHDR = struct.Struct("<QI4xQQQQi4x")
_CMSG = struct.Struct("<QiiI")


def same_pids(pid: int) -> bool:
    """Whether ``pid`` sees processes under the numbers under which we see them."""
    try:
        theirs = os.stat(f"/proc/{pid}/ns/pid_for_children")
    except OSError:
        return False
    ours = Path("/proc/self/ns/pid_for_children").stat()
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def give(tracer: Tracer, task: Task, device: Device, flags: int) -> int:
    """Open ``device`` for ``task``, which is at a stop where system calls can be run in it.

    ``flags``: access mode and O_CLOEXEC. Returns its descriptor, the lowest that was
    free; OSError where the program's own calls fail (EMFILE).
    """
    opened = os.open(f"/proc/self/fd/{device.memfd}", flags & os.O_ACCMODE | os.O_CLOEXEC)
    try:
        with room.in_program(task.tid) as limit:
            fd = hand(tracer, task, opened, bool(flags & os.O_CLOEXEC))
            if fd >= limit:
                tracer.inject(task, _SYS_CLOSE, fd)
                raise OSError(errno.EMFILE, f"process {task.pid} has no room for another descriptor")
        return fd
    finally:
        os.close(opened)


def hand(tracer: Tracer, task: Task, fd: int, cloexec: bool = True) -> int:
    """Our ``fd``'s file for ``task``, at its lowest free descriptor; OSError as `give`."""
    with scratch.page(tracer, task) as page:
        return _send(tracer, task, page, fd, cloexec)


def replace(tracer: Tracer, task: Task, at: int, fd: int) -> None:
    """Put our ``fd``'s file in the place of descriptor ``at`` of ``task``; OSError as `give`."""
    cloexec = procfs.fd_flags(task.tid, at) & os.O_CLOEXEC
    with room.in_program(task.tid):
        received = hand(tracer, task, fd)
        try:
            tracer.inject(task, _SYS_DUP3, received, at, cloexec)
        finally:
            tracer.inject(task, _SYS_CLOSE, received)


def _send(tracer: Tracer, task: Task, page: int, fd: int, cloexec: bool) -> int:
    """The descriptors are the program's, and other threads of it may change what they are: nothing here
    waits, and what comes is looked at."""
    tracer.inject(task, _SYS_SOCKETPAIR, _AF_UNIX, _SOCK_DGRAM_CLOEXEC, 0, page)
    theirs, receiver = struct.unpack("<ii", memory.read(task.tid, page, 8))
    try:
        try:
            with _socket_of(task.tid, theirs) as ours:
                socket.send_fds(ours, [b"\0"], [fd], _DONTWAIT)
        finally:
            tracer.inject(task, _SYS_CLOSE, theirs)  # its number is the lowest free one again
        header = _MSGHDR.pack(0, 0, page + _IOVEC_AT, 1, page + _CONTROL_AT, _CONTROL_SIZE, 0)
        memory.write(task.tid, page + _MSGHDR_AT, header)
        memory.write(task.tid, page + _IOVEC_AT, struct.pack("<QQ", page + _BYTE_AT, 1))
        how = _DONTWAIT | (_MSG_CMSG_CLOEXEC if cloexec else 0)
        tracer.inject(task, _SYS_RECVMSG, receiver, page + _MSGHDR_AT, how)
        control = memory.read(task.tid, page + _CONTROL_AT, _CMSG.size)
    finally:
        tracer.inject(task, _SYS_CLOSE, receiver)
    length, level, kind, received = _CMSG.unpack(control)
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS) or length < _CMSG.size:
        raise OSError(errno.EMFILE, f"process {task.pid} has no room for another descriptor")
    return int(received)


def _socket_of(tid: int, fd: int) -> socket.socket:
    """Our own descriptor of a program's socket; OSError if it is none."""
    taken = procfs.take_fd(tid, fd)
    try:
        return socket.socket(fileno=taken)
    except OSError:
        os.close(taken)
        raise


__all__ = ["give", "hand", "replace", "same_pids"]
