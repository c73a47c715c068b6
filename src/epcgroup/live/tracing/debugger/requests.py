"""ptrace(2) as a debugger calls it: requests about a tracee that is stopped for it.

Most are passed on to the kernel, whose tracee it is as well: registers, signal masks,
what a system call is about. Ours are the answers about the shown stop (siginfo, event
message), memory, options, and going on. Requests that are not known end with EIO, as
the kernel's own do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from typing import TYPE_CHECKING

from epcgroup.live.enclave import debugmem, threads
from epcgroup.live.enclave.user_memory import ProcessMemory
from epcgroup.live.tracing import answers, attach, ptrace
from epcgroup.live.tracing.debugger import joining, lives, state, stops
from epcgroup.live.tracing.debugger.state import Mode
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from epcgroup.live.tracing.debugger.state import Stop, Tracee
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer

_TRACEME, _PEEKTEXT, _PEEKDATA, _PEEKUSER, _POKETEXT, _POKEDATA, _POKEUSER = range(7)
_CONT, _KILL, _SINGLESTEP = 7, 8, 9
_GETREGS, _SETREGS, _GETFPREGS, _SETFPREGS = 12, 13, 14, 15
_ATTACH, _DETACH, _OLDSETOPTIONS, _SYSCALL, _ARCH_PRCTL = 16, 17, 21, 24, 30
_SETOPTIONS, _GETEVENTMSG, _GETSIGINFO, _SETSIGINFO = 0x4200, 0x4201, 0x4202, 0x4203
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _LISTEN = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208
_GETSIGMASK, _SETSIGMASK, _GET_SYSCALL_INFO, _GET_RSEQ = 0x420A, 0x420B, 0x420E, 0x420F
_ARCH_SET, _ARCH_GET_FS, _ARCH_GET_GS = {0x1001, 0x1002}, 0x1003, 0x1004
_RESTARTS = {_CONT: Mode.RUN, _SYSCALL: Mode.CALLS, _SINGLESTEP: Mode.STEP}
_WORD, _SIGINFO_SIZE, _NSIG = 8, 128, 64
#: Bytes that the kernel fills in at the data pointer, and that it takes from there.
_FILLED = {_PEEKUSER: _WORD, _GETREGS: 216, _GETFPREGS: 512, _GETSIGMASK: _WORD}
_TAKEN = {_SETREGS: 216, _SETFPREGS: 512, _SETSIGMASK: _WORD}
_BY_SIZE = {_GET_SYSCALL_INFO: 88, _GET_RSEQ: 24}  # as many bytes as the address argument says, at most


def answer(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """A call of ptrace(2) by ``task``."""
    request = regs.rdi
    if request == _TRACEME:
        joining.traceme(tracer, task, regs)
        return
    target = state.known_as(tracer, task.pid, regs.rsi & 0xFFFFFFFF)
    joins = request in (_ATTACH, _SEIZE)
    tracee = target.tracee if target is not None else None
    mine = tracee is not None and tracee.tracer == task.tid and not tracee.orphaned
    if target is None and joins and joining.is_supervisor(task, regs.rsi & 0xFFFFFFFF):
        answers.emulate(tracer, task, regs, -errno.EPERM)
    elif target is None or task.watched or not (joins or mine):
        if target is None and joins and (debugger := tracer.debuggers.get(task.pid)):
            debugger.childless.clear()  # it gets a tracee of its own, outside the machine
        if target is not None and joins:
            joining.refuse(tracer, task, target)
        tracer.resume(task)  # a tracee outside, or the kernel says that it is none of the caller's
    else:
        tracer.start(task, _answered(tracer, task, regs, target))


def _answered(tracer: Tracer, task: Task, regs: UserRegs, target: Task) -> Job:
    try:
        result = yield from _result(tracer, task, regs, target)
    except threads.Restart:
        attach.restart_call(tracer, task, regs)  # signals first
        return
    except ProcessLookupError:
        if task.tid not in tracer.tasks:
            raise
        result = -errno.ESRCH
    except OSError as error:
        result = -(error.errno or errno.EIO)
    answers.emulate(tracer, task, regs, result)


def _result(tracer: Tracer, task: Task, regs: UserRegs, target: Task) -> Generator[bool, None, int]:
    request, addr, data = regs.rdi, regs.rdx, regs.r10
    if request in (_ATTACH, _SEIZE):
        return joining.attach(tracer, task, regs, target, seize=request == _SEIZE)
    tracee = target.tracee
    assert tracee is not None
    if request == _KILL:
        os.kill(target.pid, signal.SIGKILL)
        return 0
    if request == _INTERRUPT:
        return _interrupt(tracee)
    if tracee.stop is None:
        return -errno.ESRCH
    caller = ProcessMemory(task.tid, task.mm, tracer.world.devices)
    if request in (_PEEKTEXT, _PEEKDATA):
        word = yield from _peek(tracer, task, target, addr)
        caller.write(data, word)
        return 0
    if request in (_POKETEXT, _POKEDATA):
        yield from _poke(tracer, task, target, addr, data.to_bytes(_WORD, "little"))
        return 0
    if request in _RESTARTS or request == _DETACH:
        return _go_on(tracer, tracee, request, data)
    if request in _OURS:
        return _OURS[request](tracee, tracee.stop, caller, addr, data)
    return _passed_on(request, target.tid, caller, addr, data)


def _interrupt(tracee: Tracee) -> int:
    if not tracee.seized:
        return -errno.EIO
    if not tracee.dying:
        tracee.wanted = state.event_stop(ptrace.EVENT_STOP)
        with contextlib.suppress(OSError):
            ptrace.interrupt(tracee.task.tid)
    return 0


def _go_on(tracer: Tracer, tracee: Tracee, request: int, sig: int) -> int:
    if sig > _NSIG:
        return -errno.EIO
    if request == _DETACH:
        lives.release(tracer, tracee, sig)
    else:
        stops.go(tracer, tracee, _RESTARTS[request], sig)
    return 0


# ---- memory ----------------------------------------------------------------


def _pieces(addr: int) -> list[tuple[int, int]]:
    """The word at ``addr`` by pages: (address, length)."""
    first = min(_WORD, PAGE_SIZE - addr % PAGE_SIZE)
    return [(addr, first)] + ([(addr + first, _WORD - first)] if first < _WORD else [])


def _peek(tracer: Tracer, task: Task, target: Task, addr: int) -> Generator[bool, None, bytes]:
    word = b""
    for at, length in _pieces(addr):
        try:
            word += yield from debugmem.fetch(tracer, task, target, at, length)
        except (debugmem.Unreachable, OverflowError):
            raise OSError(errno.EIO, f"nothing to read at {at:#x}") from None
    return word


def _poke(tracer: Tracer, task: Task, target: Task, addr: int, word: bytes) -> Job:
    for at, length in _pieces(addr):
        try:
            yield from debugmem.store(tracer, task, target, at, word[at - addr : at - addr + length])
        except (debugmem.Unreachable, OverflowError):
            raise OSError(errno.EIO, f"nothing to change at {at:#x}") from None


# ---- the shown stop ----------------------------------------------------------


def _setoptions(tracee: Tracee, _stop: Stop, _caller: ProcessMemory, _addr: int, data: int) -> int:
    if data & ~joining.OPTIONS:
        return -errno.EINVAL
    tracee.options = data
    return 0


def _geteventmsg(tracee: Tracee, _stop: Stop, caller: ProcessMemory, _addr: int, data: int) -> int:
    caller.write(data, struct.pack("<Q", tracee.message))
    return 0


def _getsiginfo(tracee: Tracee, stop: Stop, caller: ProcessMemory, _addr: int, data: int) -> int:
    info = ptrace.getsiginfo(tracee.task.tid) if stop.info is None else stop.info
    if info == state.NO_SIGINFO:
        return -errno.EINVAL
    caller.write(data, info)
    return 0


def _setsiginfo(tracee: Tracee, stop: Stop, caller: ProcessMemory, _addr: int, data: int) -> int:
    info = caller.read(data, _SIGINFO_SIZE)
    if stop.info is None:
        ptrace.setsiginfo(tracee.task.tid, info)
    elif stop.info == state.NO_SIGINFO:
        return -errno.EINVAL
    else:
        stop.info = info
    return 0


def _listen(tracee: Tracee, stop: Stop, _caller: ProcessMemory, _addr: int, _data: int) -> int:
    if not tracee.seized or stop.event != ptrace.EVENT_STOP:
        return -errno.EIO
    ptrace.listen(tracee.task.tid)
    tracee.stop, tracee.listening = None, True
    return 0


_OURS: dict[int, Callable[[Tracee, Stop, ProcessMemory, int, int], int]] = {
    _OLDSETOPTIONS: _setoptions,
    _SETOPTIONS: _setoptions,
    _GETEVENTMSG: _geteventmsg,
    _GETSIGINFO: _getsiginfo,
    _SETSIGINFO: _setsiginfo,
    _LISTEN: _listen,
}


# ---- passed on ---------------------------------------------------------------


def _passed_on(request: int, tid: int, caller: ProcessMemory, addr: int, data: int) -> int:
    if request in _FILLED:
        buffer = bytearray(_FILLED[request])
        result = ptrace.pass_on(tid, request, addr, buffer)
        caller.write(data, bytes(buffer))
        return result
    if request in _TAKEN:
        return ptrace.pass_on(tid, request, addr, bytearray(caller.read(data, _TAKEN[request])))
    if request in _BY_SIZE:
        buffer = bytearray(min(addr, _BY_SIZE[request]))
        result = ptrace.pass_on(tid, request, addr, buffer)
        if buffer := buffer[: result or len(buffer)]:
            caller.write(data, bytes(buffer))
        return result
    if request == _ARCH_PRCTL and data in (_ARCH_GET_FS, _ARCH_GET_GS):
        regs = ptrace.getregs(tid)
        caller.write(addr, struct.pack("<Q", regs.fs_base if data == _ARCH_GET_FS else regs.gs_base))
        return 0
    if request == _POKEUSER or (request == _ARCH_PRCTL and data in _ARCH_SET):
        ptrace.pass_value(tid, request, addr, data)
        return 0
    if request in (_GETREGSET, _SETREGSET):
        return _register_set(request, tid, caller, addr, data)
    return -errno.EIO


def _register_set(request: int, tid: int, caller: ProcessMemory, kind: int, data: int) -> int:
    base, size = struct.unpack("<QQ", caller.read(data, 16))
    size = min(size, ptrace.XSTATE_MAX)
    buffer = bytearray(size) if request == _GETREGSET else bytearray(caller.read(base, size))
    ptrace.pass_set(tid, request, kind & 0xFFFFFFFF, buffer)
    if request == _GETREGSET:
        caller.write(base, bytes(buffer))
    caller.write(data + 8, struct.pack("<Q", len(buffer)))
    return 0
