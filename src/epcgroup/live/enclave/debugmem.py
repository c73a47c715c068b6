"""/proc/PID/mem on enclave memory, as a debugger uses it (SDM: EDBGRD, EDBGWR).

A runtime sets TCS.DBGOPTIN, and a profiler reads SSA frames, through a descriptor
of /proc/self/mem. The kernel asks the driver then (`driver.debug`): the true
bytes of a debug enclave whatever its permissions, EIO for any other. Without us
the program would meet the holes that eviction leaves in a memfd, and TCS pages
are never in there at all.

Followed are opens by a process that has had an enclave, what it had open when it made the
first (a profiler begins early), and the memory of another process in the machine (a
debugger or profiler beside the program). From then on a
filter reports read, write, pread64 and pwrite64 on that descriptor *number*; what is
behind it is looked up each time, so closing it or opening another file under the
same number is no matter. Not followed: copies of the descriptor under another
number, vectored calls, and memory of processes that are not traced.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.driver import BusError, debug
from epcgroup.live.enclave import threads, traps
from epcgroup.live.enclave.user_memory import ProcessMemory
from epcgroup.live.tracing import answers, filters, seccomp
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer

_MEMORY = re.compile(r"/proc/(self|thread-self|[0-9]+)(?:/task/[0-9]+)?/mem")
_LINK = re.compile(r"/proc/([0-9]+)(?:/task/[0-9]+)?/mem")
_WRITES = {seccomp.SYS["write"], seccomp.SYS["pwrite64"]}
_AT_POSITION = {seccomp.SYS["read"], seccomp.SYS["write"]}
_SYS_LSEEK, _SEEK_SET = 8, 0
_MOST = 0x7FFFF000  # bytes of one read or write, MAX_RW_COUNT of the kernel


def wanted(tracer: Tracer, task: Task, path: str) -> bool:
    """Whether ``path``, about to be opened, names memory that may be an enclave's."""
    match = _MEMORY.fullmatch(path)
    if match is None:
        return False
    other = match[1].isdigit() and int(match[1]) != task.pid and int(match[1]) in tracer.tasks
    return other or bool(task.mm.trap_ranges or task.mm.devices())


def opened_before(tracer: Tracer, task: Task) -> None:
    """``task``, at a stop where calls can be run in it, makes its first enclave: follow what it has open."""
    with os.scandir(f"/proc/{task.tid}/fd") as descriptors:
        for entry in descriptors:
            fd = int(entry.name)
            target = _behind(tracer, task, fd)
            if target is not None and target.mm is task.mm:
                opened(tracer, task, fd)


def opened(tracer: Tracer, task: Task, fd: int) -> None:
    """Such a path was opened as ``fd``; the task is stopped at the exit of that call."""
    if fd not in task.mm.followed:
        filters.add(tracer, task, seccomp.descriptor_filter(fd))
        task.mm.followed.add(fd)


def access(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """read, write, pread64 or pwrite64 on a descriptor that is followed."""
    fd, count = regs.rdi & 0xFFFFFFFF, min(regs.rdx, _MOST)
    target = _behind(tracer, task, fd)
    if target is None:
        tracer.resume(task)
        return
    position, mode = _state(task, fd)
    start = position if regs.orig_rax in _AT_POSITION else regs.r10
    denied = os.O_RDONLY if regs.orig_rax in _WRITES else os.O_WRONLY
    ours = target.mm.overlapping(start, start + count) or traps.has_any(target, start, count)
    if mode == denied or not ours:
        tracer.resume(task)
        return
    tracer.start(task, _answer(tracer, task, regs, target, start, count))


def _behind(tracer: Tracer, task: Task, fd: int) -> Task | None:
    """The traced task whose memory ``fd`` shows."""
    try:
        link = _LINK.fullmatch(str(Path(f"/proc/{task.tid}/fd/{fd}").readlink()))
    except OSError:
        return None
    return tracer.tasks.get(int(link[1])) if link else None


def _state(task: Task, fd: int) -> tuple[int, int]:
    """The file position of ``fd``, and its access mode (O_RDONLY …)."""
    lines = Path(f"/proc/{task.tid}/fdinfo/{fd}").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["pos"]), int(fields["flags"], 8) & os.O_ACCMODE


def _answer(tracer: Tracer, task: Task, regs: UserRegs, target: Task, start: int, count: int) -> Job:
    """Page by page; what was done before an error counts, as in the kernel."""
    user = ProcessMemory(task.tid, task.mm, tracer.world.devices)
    number, buffer, done = regs.orig_rax, regs.rsi, 0
    result = 0
    while done < count:
        addr = start + done
        length = min(count - done, PAGE_SIZE - addr % PAGE_SIZE)
        try:
            if number in _WRITES:
                piece = user.read(buffer + done, length)
                yield from store(tracer, task, target, addr, piece)
            else:
                piece = yield from fetch(tracer, task, target, addr, length)
                user.write(buffer + done, piece)
        except threads.Restart:
            result = -errno.EINTR
            break
        except Unreachable:
            result = -errno.EIO
            break
        except OSError:  # the program's buffer
            result = -errno.EFAULT
            break
        done += length
    if done and number in _AT_POSITION:
        tracer.inject(task, _SYS_LSEEK, regs.rdi, start + done, _SEEK_SET)
    answers.emulate(tracer, task, regs, done or result)


class Unreachable(Exception):
    """Nobody may see that memory, or it is not there."""


def fetch(tracer: Tracer, task: Task, target: Task, addr: int, length: int) -> Generator[bool, None, bytes]:
    """Bytes of one page of ``target``, as ``task`` may see them. Raises Unreachable, threads.Restart."""
    vma = target.mm.find(addr)
    if vma is None:
        return _reached(lambda: traps.as_it_was(target, addr, length))
    file = vma.device.file
    if file is None:
        raise Unreachable
    return (yield from _debugged(tracer, task, lambda: debug.read(file, addr, length, task.caller)))


def store(tracer: Tracer, task: Task, target: Task, addr: int, data: bytes) -> Job:
    """Change bytes of one page of ``target``. Raises as `fetch`."""
    vma = target.mm.find(addr)
    if vma is None:
        _reached(lambda: traps.change(target, addr, data))
        return
    file = vma.device.file
    if file is None:
        raise Unreachable
    yield from _debugged(tracer, task, lambda: debug.write(file, addr, data, task.caller))


def _debugged(
    tracer: Tracer, task: Task, action: Callable[[], threads.T]
) -> Generator[bool, None, threads.T]:
    try:
        return (yield from threads.attempt(tracer.world, task, action))
    except (OSError, BusError) as error:
        raise Unreachable from error


def _reached(action: Callable[[], threads.T]) -> threads.T:
    try:
        return action()
    except OSError as error:
        raise Unreachable from error


__all__ = ["Unreachable", "access", "fetch", "opened", "store", "wanted"]
