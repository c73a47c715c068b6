"""ptrace(2) as plain functions: one call, one request.

Every function takes the id of one *thread* (tid). A request that fails raises
OSError; ESRCH, which ptrace gives for a thread that is gone **or not stopped**,
comes as ProcessLookupError.

The library is loaded with PyDLL: the interpreter lock stays held during a
request. A request takes 1 µs and never sleeps (but SEIZE), so handing the lock over
would cost more than it gives, and it would let the page service in at the wrong
moment. Scratch structures can be shared for the same reason. (Reading tracee
*memory* may sleep in a page fault that we serve ourselves: see memory.py.)
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import signal
import struct
import time

from epcgroup.live.tracing import procfs

# Requests (linux/ptrace.h, asm/ptrace-abi.h).
_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH, _SYSCALL = 7, 9, 12, 13, 17, 24
_SETOPTIONS, _GETEVENTMSG, _GETSIGINFO, _SETSIGINFO = 0x4200, 0x4201, 0x4202, 0x4203
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _LISTEN = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208
_PEEKSIGINFO, _GETSIGMASK, _SETSIGMASK, _GET_SYSCALL_INFO = 0x4209, 0x420A, 0x420B, 0x420E
_NT_X86_XSTATE = 0x202

O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE = 0x1, 0x2, 0x4, 0x8
O_TRACEEXEC, O_TRACEVFORKDONE, O_TRACEEXIT, O_TRACESECCOMP = 0x10, 0x20, 0x40, 0x80
O_EXITKILL, O_SUSPEND_SECCOMP = 0x100000, 0x200000

#: What the supervisor traces with; a process that it has only joined lives on without it (`attach`).
OPTIONS = (
    O_TRACESYSGOOD | O_TRACEFORK | O_TRACEVFORK | O_TRACECLONE
    | O_TRACEEXEC | O_TRACEEXIT | O_TRACESECCOMP | O_EXITKILL
)  # fmt: skip
OPTIONS_UNBOUND = OPTIONS & ~O_EXITKILL

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC = 1, 2, 3, 4
EVENT_VFORK_DONE, EVENT_EXIT, EVENT_SECCOMP, EVENT_STOP = 5, 6, 7, 128

#: Stop signal of a system call stop under O_TRACESYSGOOD.
SYSCALL_STOP = 5 | 0x80

#: What `syscall_op` answers.
OP_NONE, OP_ENTRY, OP_EXIT, OP_SECCOMP = 0, 1, 2, 3

WALL = 0x40000000
_STOPPED = {signal.SIGCHLD}
_LOOK = 0.005  # s
_ENDED = ("Z", "X")

#: -1 as a register holds it: no system call is in progress.
NO_SYSCALL = 2**64 - 1

# Order of struct user_regs_struct (asm/user_64.h).
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_ENTRY = struct.Struct("<B3xI16xQ")  # struct ptrace_syscall_info: op, arch, entry.nr
_SI_CODE = struct.Struct("<8xi")  # siginfo_t
_PEEK = struct.Struct("<QIi")  # struct ptrace_peeksiginfo_args: off, flags, nr
_AUDIT_ARCH_X86_64 = 0xC000003E
#: Bytes of the largest register set; AMX tiles included.
XSTATE_MAX = 1 << 14
_SIGINFO_SIZE, _SIGINFOS = 128, 32


class UserRegs(ctypes.Structure):
    """General registers of a stopped thread, named as the kernel names them."""

    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTERS]

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def copy(self) -> UserRegs:
        """A second structure with the same values."""
        return UserRegs.from_buffer_copy(self)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long

# The same for the one request that may sleep.
_slow_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_slow_ptrace.argtypes, _slow_ptrace.restype = _ptrace.argtypes, _ptrace.restype

_SYS_PTRACE = 101
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_size_t, ctypes.c_size_t)
_syscall.restype = ctypes.c_long

_word = ctypes.c_uint64()
_word_at = ctypes.addressof(_word)
_scratch = ctypes.create_string_buffer(XSTATE_MAX)
_scratch_at = ctypes.addressof(_scratch)
_iovec = _Iovec(_scratch_at, XSTATE_MAX)
_iovec_at = ctypes.addressof(_iovec)


def _fail(tid: int) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"ptrace of thread {tid}: {os.strerror(number)}")


def seize(tid: int, options: int) -> None:
    """Trace ``tid`` without stopping it; ``options`` are O_* bits. Sleeps while the process execs."""
    if _slow_ptrace(_SEIZE, tid, None, options) < 0:
        raise _fail(tid)


def setoptions(tid: int, options: int) -> None:
    """Change the O_* bits of a stopped thread."""
    if _ptrace(_SETOPTIONS, tid, None, options) < 0:
        raise _fail(tid)


def interrupt(tid: int) -> None:
    """Ask a running thread to stop (EVENT_STOP), whatever signals it blocks.

    Any other stop that comes first answers the request as well: the kernel then
    forgets it.
    """
    if _ptrace(_INTERRUPT, tid, None, None) < 0:
        raise _fail(tid)


def listen(tid: int) -> None:
    """Leave a thread in its group stop, but hear of its end (SIGCONT)."""
    if _ptrace(_LISTEN, tid, None, None) < 0:
        raise _fail(tid)


def cont(tid: int, sig: int = 0) -> None:
    """Let a stopped thread run, delivering ``sig``."""
    if _ptrace(_CONT, tid, None, sig) < 0:
        raise _fail(tid)


def singlestep(tid: int, sig: int = 0) -> None:
    """Let a thread execute one instruction; then it has a SIGTRAP, which must not be blocked."""
    if _ptrace(_SINGLESTEP, tid, None, sig) < 0:
        raise _fail(tid)


def syscall(tid: int, sig: int = 0) -> None:
    """Let a thread run to the next entry into or exit from a system call."""
    if _ptrace(_SYSCALL, tid, None, sig) < 0:
        raise _fail(tid)


def detach(tid: int, sig: int = 0) -> None:
    """Stop tracing a stopped thread and let it run."""
    if _ptrace(_DETACH, tid, None, sig) < 0:
        raise _fail(tid)


def getregs(tid: int, regs: UserRegs | None = None) -> UserRegs:
    """The registers of a stopped thread, in ``regs`` if given."""
    if regs is None:
        regs = UserRegs()
    if _ptrace(_GETREGS, tid, None, ctypes.addressof(regs)) < 0:
        raise _fail(tid)
    return regs


def setregs(tid: int, regs: UserRegs) -> None:
    """Set the registers of a stopped thread, fs_base and gs_base included."""
    if _ptrace(_SETREGS, tid, None, ctypes.addressof(regs)) < 0:
        raise _fail(tid)


def get_xstate(tid: int) -> bytes:
    """The XSAVE area (standard form) of a stopped thread."""
    _iovec.base, _iovec.len = _scratch_at, XSTATE_MAX
    if _ptrace(_GETREGSET, tid, _NT_X86_XSTATE, _iovec_at) < 0:
        raise _fail(tid)
    return ctypes.string_at(_scratch_at, _iovec.len)


def set_xstate(tid: int, xstate: bytes | bytearray) -> None:
    """Set the XSAVE area; must have the full length that get_xstate gave.

    OSError(EINVAL) if the header or MXCSR is not acceptable to XRSTOR.
    """
    size = len(xstate)
    if size > XSTATE_MAX:
        raise OSError(errno.EINVAL, f"XSAVE area of {size} bytes, at most {XSTATE_MAX}")
    ctypes.memmove(_scratch, bytes(xstate), size)
    _iovec.base, _iovec.len = _scratch_at, size
    if _ptrace(_SETREGSET, tid, _NT_X86_XSTATE, _iovec_at) < 0:
        raise _fail(tid)


def getsiginfo(tid: int) -> bytes:
    """The 128 bytes of siginfo_t that belong to the present stop."""
    if _ptrace(_GETSIGINFO, tid, None, _scratch_at) < 0:
        raise _fail(tid)
    return ctypes.string_at(_scratch_at, _SIGINFO_SIZE)


def setsiginfo(tid: int, info: bytes) -> None:
    """Replace the siginfo_t that the program will see with this signal."""
    ctypes.memmove(_scratch, info.ljust(_SIGINFO_SIZE, b"\0"), _SIGINFO_SIZE)
    if _ptrace(_SETSIGINFO, tid, None, _scratch_at) < 0:
        raise _fail(tid)


def waiting_siginfo(tid: int) -> list[bytes]:
    """siginfo_t of the signals that wait for this very stopped thread, at most 32."""
    asked = ctypes.create_string_buffer(_PEEK.pack(0, 0, _SIGINFOS))
    buffer = bytearray(_SIGINFOS * _SIGINFO_SIZE)
    found = pass_on(tid, _PEEKSIGINFO, ctypes.addressof(asked), buffer)
    return [bytes(buffer[at : at + _SIGINFO_SIZE]) for at in range(0, found * _SIGINFO_SIZE, _SIGINFO_SIZE)]


def fault_siginfo(sig: int, code: int, addr: int) -> bytes:
    """siginfo_t of a processor fault: signal, si_code (SEGV_MAPERR …), address."""
    return struct.pack("<iii4xQ", sig, 0, code, addr).ljust(_SIGINFO_SIZE, b"\0")


def getsigmask(tid: int) -> int:
    """Blocked signals of a stopped thread: bit n-1 stands for signal n."""
    if _ptrace(_GETSIGMASK, tid, 8, _word_at) < 0:
        raise _fail(tid)
    return _word.value


def setsigmask(tid: int, mask: int) -> None:
    """Set the blocked signals of a stopped thread."""
    _word.value = mask
    if _ptrace(_SETSIGMASK, tid, 8, _word_at) < 0:
        raise _fail(tid)


def geteventmsg(tid: int) -> int:
    """The new tid at a FORK, VFORK or CLONE event, the status at EXIT …"""
    if _ptrace(_GETEVENTMSG, tid, None, _word_at) < 0:
        raise _fail(tid)
    return _word.value


def reported(tid: int, event: int) -> int | None:
    """The tid that a thread reports at ``event`` (FORK, VFORK, CLONE, EXEC); None: it has left that stop.

    Only a kill makes it leave. The message is then that of its last stop, an exit status.
    """
    message = geteventmsg(tid)
    return message if event_at(tid) == event else None


def pass_on(tid: int, request: int, addr: int, buffer: bytearray) -> int:
    """Make any request whose data pointer is to be ``buffer``, which it reads or fills; its result.

    At most XSTATE_MAX bytes.
    """
    ctypes.memmove(_scratch, bytes(buffer), len(buffer))
    result = _syscall(_SYS_PTRACE, request, tid, addr, _scratch_at)
    if result < 0:
        raise _fail(tid)
    buffer[:] = ctypes.string_at(_scratch_at, len(buffer))
    return int(result)


def pass_value(tid: int, request: int, addr: int, value: int) -> None:
    """Make any request whose data is a number."""
    if _syscall(_SYS_PTRACE, request, tid, addr, value) < 0:
        raise _fail(tid)


def pass_set(tid: int, request: int, kind: int, buffer: bytearray) -> None:
    """GETREGSET or SETREGSET of the set ``kind`` (NT_*); shortens ``buffer`` to what was there."""
    size = len(buffer)
    ctypes.memmove(_scratch, bytes(buffer), size)
    _iovec.base, _iovec.len = _scratch_at, size
    if _ptrace(request, tid, kind, _iovec_at) < 0:
        raise _fail(tid)
    buffer[:] = ctypes.string_at(_scratch_at, _iovec.len)


def event_at(tid: int) -> int:
    """The EVENT_* that a thread is stopped at; 0 or less at a stop of another kind."""
    return int(_SI_CODE.unpack_from(getsiginfo(tid))[0] >> 8)


def signal_at(tid: int) -> int:
    """The signal that a thread is about to be given; 0 at a stop of another kind."""
    info = getsiginfo(tid)
    sig, (code,) = info[0], _SI_CODE.unpack_from(info)
    return 0 if code >> 8 > 0 or (sig == signal.SIGTRAP and code == SYSCALL_STOP) else sig


def syscall_op(tid: int) -> int:
    """At what point of a system call a thread is stopped: one of OP_*."""
    if _ptrace(_GET_SYSCALL_INFO, tid, 88, _scratch_at) < 0:
        raise _fail(tid)
    return _scratch[0][0]


def syscall_entry(tid: int) -> int | None:
    """Number of the 64-bit system call that a thread is stopped at the entry of; None elsewhere."""
    if _ptrace(_GET_SYSCALL_INFO, tid, 88, _scratch_at) < 0:
        raise _fail(tid)
    op, arch, nr = _ENTRY.unpack_from(_scratch)
    return nr if op == OP_ENTRY and arch == _AUDIT_ARCH_X86_64 else None


def syscall_arch(tid: int) -> int:
    """AUDIT_ARCH_* of the system call that a thread is stopped in."""
    if _ptrace(_GET_SYSCALL_INFO, tid, 88, _scratch_at) < 0:
        raise _fail(tid)
    return int(struct.unpack_from("<I", _scratch, 4)[0])


def wait_any(*, block: bool = False) -> tuple[int, int] | None:
    """The next (tid, wait status) of any child or tracee.

    None if there is none (yet). With ``block``, sleeps until there is one; None
    then means that no child is left.
    """
    try:
        tid, status = os.waitpid(-1, WALL if block else WALL | os.WNOHANG)
    except ChildProcessError:
        return None
    return (tid, status) if tid else None


def wait_for(tid: int, seconds: float = math.inf) -> int:
    """Sleep until ``tid`` changes state; its wait status.

    ProcessLookupError if it is no child or tracee of ours (any more), or the first
    thread of a process and has ended before the others, whose own stops are to be
    answered first; TimeoutError after ``seconds``. SIGCHLD had better be blocked: who
    does not hear of it looks every few milliseconds.
    """
    end, ended = 0.0, False
    while True:
        try:
            changed, status = os.waitpid(tid, WALL | os.WNOHANG)
        except ChildProcessError:
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} is gone") from None
        if changed:
            return status
        if ended:
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended before others of its process")
        if end and procfs.state(tid) in _ENDED:
            ended = True  # unless its end is to be had just now
            continue
        now = time.monotonic()
        end = end or now + seconds
        if now >= end:
            raise TimeoutError(errno.ETIMEDOUT, f"thread {tid} did not stop within {seconds:g} s")
        signal.sigtimedwait(_STOPPED, min(end - now, _LOOK))


def stop_of(status: int) -> tuple[int, int]:
    """(signal, event) of the wait status of a stop; event 0 if none.

    ``(SYSCALL_STOP, 0)`` is a system call stop, ``(SIGTRAP, EVENT_EXEC)`` an exec.
    """
    return (status >> 8) & 0xFF, status >> 16
