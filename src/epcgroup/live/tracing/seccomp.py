"""Which system calls stop for the supervisor, said in classic BPF.

A stop costs some 12 µs and two task switches, a filtered call 50 ns. So the
filter lets everything pass that cannot concern SGX. It cannot follow pointers:
every path-taking call stops, and the supervisor looks at the path. It cannot
know mappings: address ranges are compiled into a second filter when an enclave
is created. Filters stack and cannot be removed, and RET_TRACE outranks
RET_ALLOW; a filter of an enclave that is gone stays, its stops are to be ignored.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

RET_TRACE, RET_ALLOW, RET_USER_NOTIF = 0x7FF00000, 0x7FFF0000, 0x7FC00000
#: Number of a call, 64-bit or 32-bit, that asks for an ENCLU leaf, which is added to it (`leaves`).
LEAF_CALL = 0x53470000
FILTER_FLAG_TSYNC = 1
#: TSYNC | NEW_LISTENER | TSYNC_ESRCH | WAIT_KILLABLE_RECV
LISTENER_FLAGS = FILTER_FLAG_TSYNC | 1 << 3 | 1 << 4 | 1 << 5
SET_MODE_FILTER = 1
PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_AUDIT_ARCH_X86_64, _AUDIT_ARCH_I386 = 0xC000003E, 0x40000003

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6].
_NR, _ARCH, _IP = 0, 4, 8

SYS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "lstat": 6, "mmap": 9, "mprotect": 10,
    "munmap": 11, "rt_sigaction": 13, "ioctl": 16, "pread64": 17, "pwrite64": 18, "access": 21,
    "mremap": 25, "msync": 26, "madvise": 28, "wait4": 61, "creat": 85, "ptrace": 101, "statfs": 137,
    "fstatfs": 138, "mlock": 149, "mlockall": 151, "prctl": 157, "setrlimit": 160, "mount": 165,
    "sched_setaffinity": 203, "sched_getaffinity": 204, "remap_file_pages": 216, "waitid": 247,
    "openat": 257, "newfstatat": 262, "faccessat": 269, "unshare": 272, "prlimit64": 302,
    "sched_setattr": 314, "seccomp": 317, "bpf": 321, "mlock2": 325, "pkey_mprotect": 329, "statx": 332,
    "fsopen": 430, "clone3": 435, "close_range": 436, "openat2": 437, "faccessat2": 439,
    "process_madvise": 440, "mseal": 462,
}  # fmt: skip
_PATH_CALLS = (
    "open", "openat", "openat2", "creat", "stat", "lstat", "access", "faccessat", "faccessat2",
)  # fmt: skip
_AT_EMPTY_PATH = 0x1000
PTRACE_BEGINS = (0, 16, 0x4206)  # TRACEME, ATTACH, SEIZE
_RAISED = (4, 5, 7, 8, 11)  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV
_AFFINITY_CALLS = ("sched_setaffinity", "sched_getaffinity", "sched_setattr")
_RANGE_CALLS = (
    "mmap", "mprotect", "munmap", "mremap", "madvise", "pkey_mprotect", "mlock", "mlock2",
    "msync", "remap_file_pages", "mseal",
)  # fmt: skip

# Opcodes (linux/bpf_common.h).
_LD, _LD_MEM, _ST, _TAX, _RET = 0x20, 0x60, 0x02, 0x07, 0x06
_ADD_X, _ADD_K, _AND_K = 0x0C, 0x04, 0x54
_JEQ, _JGT, _JGE, _JSET, _JGE_X = 0x15, 0x25, 0x35, 0x45, 0x3D
_INSN = struct.Struct("<HBBI")


def _args(n: int) -> int:
    return 16 + 8 * n


class _Program:
    """Instructions with named places to jump to (always forward, at most 255)."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, str | None, int]] = []
        self._labels: dict[str, int] = {}

    def op(self, code: int, k: int = 0) -> None:
        self._code.append((code, None, None, k & 0xFFFFFFFF))

    def jump(self, code: int, k: int, yes: str | None = None, no: str | None = None) -> None:
        """Go to ``yes`` or ``no``; None is the next instruction."""
        self._code.append((code, yes, no, k & 0xFFFFFFFF))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        def offset(name: str | None, at: int) -> int:
            return 0 if name is None else self._labels[name] - at - 1

        return b"".join(
            _INSN.pack(code, offset(yes, at), offset(no, at), k)
            for at, (code, yes, no, k) in enumerate(self._code)
        )

    def only_x86_64(self, others: str = "allow") -> None:
        """Send the calls of other architectures (``int $0x80``) to ``others``."""
        self.op(_LD, _ARCH)
        self.jump(_JEQ, _AUDIT_ARCH_X86_64, no=others)

    def close(self) -> None:
        self.label("allow")
        self.op(_RET, RET_ALLOW)
        self.label("trace")
        self.op(_RET, RET_TRACE)

    def if_at_least(self, low: int, high: int, bound: int, yes: str, no: str) -> None:
        """64-bit unsigned ``value >= bound``; the loads say where its halves are."""
        self._load(high)
        self.jump(_JGT, bound >> 32, yes=yes)
        self.jump(_JEQ, bound >> 32, no=no)
        self._load(low)
        self.jump(_JGE, bound & 0xFFFFFFFF, yes=yes, no=no)

    def _load(self, place: int) -> None:
        # Places below 0 are scratch words: -1 is M[0], -2 is M[1].
        if place < 0:
            self.op(_LD_MEM, -place - 1)
        else:
            self.op(_LD, place)


def base_filter(
    *, private: bool = False, closes: bool = False, int80: bool = False, view: Iterable[int] = ()
) -> bytes:
    """The filter that every traced program runs under.

    Stops: calls that name a file, SGX ioctls (type 0xA4), shared file mappings, mlockall, new filters.
    ``private``: private file mappings too (libraries, and mistaken mappings of an
    enclave, which must be refused).
    ``closes``: close and close_range too.
    ``int80``: every ``int $0x80``, to use that instruction as a trap that is no
    signal (then all calls of 32-bit programs stop as well).
    ``view``: numbers of further calls, which somebody else answers (see live.view).
    """
    program = _Program()
    program.only_x86_64("trace" if int80 else "allow")
    program.op(_LD, _NR)
    for name in _PATH_CALLS + (("close", "close_range") if closes else ()):
        program.jump(_JEQ, SYS[name], yes="trace")
    for number in view:
        program.jump(_JEQ, number, yes="trace")
    program.jump(_JEQ, SYS["mlockall"], yes="trace")
    program.jump(_JEQ, SYS["seccomp"], yes="seccomp")
    program.jump(_JEQ, SYS["prctl"], yes="prctl")
    program.jump(_JEQ, SYS["ptrace"], yes="ptrace")
    program.jump(_JEQ, SYS["newfstatat"], yes="newfstatat")
    program.jump(_JEQ, SYS["statx"], yes="statx")
    program.jump(_JEQ, SYS["ioctl"], yes="ioctl")
    program.jump(_JEQ, SYS["mmap"], yes="mmap", no="allow")
    # With AT_EMPTY_PATH these are libc's fstat: no path, and far too many.
    program.label("newfstatat")
    program.op(_LD, _args(3))
    program.jump(_JSET, _AT_EMPTY_PATH, yes="allow", no="trace")
    program.label("statx")
    program.op(_LD, _args(2))
    program.jump(_JSET, _AT_EMPTY_PATH, yes="allow", no="trace")
    program.label("ioctl")
    program.op(_LD, _args(1))
    program.op(_AND_K, 0xFF00)
    program.jump(_JEQ, 0xA400, yes="trace", no="allow")
    # A filter of the program's own (see sandbox).
    program.label("seccomp")
    program.op(_LD, _args(0))
    program.jump(_JEQ, SET_MODE_FILTER, yes="trace", no="allow")
    program.label("ptrace")
    program.op(_LD, _args(0))
    for request in PTRACE_BEGINS:
        program.jump(_JEQ, request, yes="trace")
    program.jump(_JEQ, 0, yes="allow", no="allow")
    program.label("prctl")
    program.op(_LD, _args(0))
    program.jump(_JEQ, _PR_SET_SECCOMP, no="allow")
    program.op(_LD, _args(1))
    program.jump(_JEQ, _SECCOMP_MODE_FILTER, yes="trace", no="allow")
    # MAP_SHARED is 1, MAP_PRIVATE 2, MAP_SHARED_VALIDATE 3; MAP_ANONYMOUS is 0x20.
    program.label("mmap")
    program.op(_LD, _args(3))
    program.jump(_JSET, 0x20, yes="allow")
    program.jump(_JSET, 0x3 if private else 0x1, yes="trace")
    program.close()
    return program.assemble()


def leaf_filter() -> bytes:
    """The filter by which enclaves ask for ENCLU leaves: calls with LEAF_CALL."""
    program = _Program()
    program.op(_LD, _NR)
    program.op(_AND_K, 0xFFFFFF00)
    program.jump(_JEQ, LEAF_CALL, no="allow")
    program.op(_RET, RET_USER_NOTIF)
    program.label("allow")
    program.op(_RET, RET_ALLOW)
    return program.assemble()


def descriptor_filter(fd: int) -> bytes:
    """The filter to add when descriptor ``fd`` shows a process's memory.

    Stops: read, write, pread64 and pwrite64 on it.
    """
    program = _Program()
    program.only_x86_64()
    program.op(_LD, _NR)
    for name in ("read", "write", "pread64", "pwrite64"):
        program.jump(_JEQ, SYS[name], yes="descriptor")
    program.jump(_JEQ, 0, yes="allow", no="allow")
    program.label("descriptor")
    program.op(_LD, _args(0))
    program.jump(_JEQ, fd, yes="trace", no="allow")
    program.close()
    return program.assemble()


def debugger_filter() -> bytes:
    """The filter to add when a process begins to debug others.

    Stops: ptrace, wait4 and waitid.
    """
    program = _Program()
    program.only_x86_64()
    program.op(_LD, _NR)
    for name in ("ptrace", "wait4", "waitid"):
        program.jump(_JEQ, SYS[name], yes="trace")
    program.jump(_JEQ, 0, yes="allow", no="allow")
    program.close()
    return program.assemble()


def enclave_filter(base: int, size: int) -> bytes:
    """The filter to add when an enclave at ``[base, base + size)`` is created.

    Stops: any system call made from inside (it must fault with #UD there), and
    mmap, mprotect, munmap, mremap, madvise, pkey_mprotect, mlock, msync, remap_file_pages, mseal of
    a range that shares an address with the enclave, rt_sigaction of signals that instructions
    raise, process_madvise, and calls about processors that threads may run on. The enclave's end
    is at most 2**47.
    """
    end = base + size
    program = _Program()
    program.only_x86_64()
    # instruction_pointer is behind the two bytes of SYSCALL.
    program.if_at_least(_IP, _IP + 4, base + 2, "not below", "arguments")
    program.label("not below")
    program.if_at_least(_IP, _IP + 4, end + 2, "arguments", "trace")
    program.label("arguments")
    program.op(_LD, _NR)
    for name in _RANGE_CALLS:
        program.jump(_JEQ, SYS[name], yes="old address")
    for name in (*_AFFINITY_CALLS, "process_madvise"):
        program.jump(_JEQ, SYS[name], yes="trace")
    program.jump(_JEQ, SYS["rt_sigaction"], no="allow")
    program.op(_LD, _args(0))
    for number in _RAISED:
        program.jump(_JEQ, number, yes="trace")
    program.jump(_JEQ, 0, yes="allow", no="allow")
    program.label("old address")
    _overlaps(program, "old", _args(0), _args(1), base, end)
    program.label("not old")
    program.op(_LD, _NR)
    program.jump(_JEQ, SYS["mremap"], no="allow")
    _overlaps(program, "new", _args(4), _args(2), base, end)
    program.label("not new")
    program.close()
    return program.assemble()


def place_filter(start: int, size: int) -> bytes:
    """The filter to add for something of ours in a program that gives way: stops mmap of its addresses."""
    program = _Program()
    program.only_x86_64()
    program.op(_LD, _NR)
    program.jump(_JEQ, SYS["mmap"], no="allow")
    _overlaps(program, "it", _args(0), _args(1), start, start + size)
    program.label("not it")
    program.close()
    return program.assemble()


def _overlaps(program: _Program, name: str, addr: int, length: int, base: int, end: int) -> None:
    """Go to "trace" if [addr, addr + length) meets [base, end), else on to "not NAME"."""
    program.if_at_least(addr, addr + 4, end, f"not {name}", f"{name} starts")
    program.label(f"{name} starts")
    # M[0], M[1] = low and high half of addr + length; the carry is "sum < addend".
    program.op(_LD, addr)
    program.op(_TAX)
    program.op(_LD, length)
    program.op(_ADD_X)
    program.op(_ST, 0)
    program.jump(_JGE_X, 0, yes=f"{name} no carry")
    program.op(_LD, addr + 4)
    program.op(_ADD_K, 1)
    program.jump(_JGE, 0, yes=f"{name} add high")
    program.label(f"{name} no carry")
    program.op(_LD, addr + 4)
    program.label(f"{name} add high")
    program.op(_TAX)
    program.op(_LD, length + 4)
    program.op(_ADD_X)
    program.op(_ST, 1)
    program.if_at_least(-1, -2, base + 1, "trace", f"not {name}")


def _pass_ours() -> bytes:
    program = _Program()
    program.op(_LD, _ARCH)
    program.jump(_JEQ, _AUDIT_ARCH_I386, yes="ours")
    program.op(_LD, _NR)
    program.op(_AND_K, 0xFFFFFF00)
    program.jump(_JEQ, LEAF_CALL, no="the filter")
    program.label("ours")
    program.op(_RET, RET_ALLOW)
    program.label("the filter")
    return program.assemble()


#: What to put in front of a filter that shall see neither 32-bit calls nor questions for leaves.
PASS_OURS = _pass_ours()


def fprog(program: bytes, address: int) -> bytes:
    """struct sock_fprog for a filter that lies at ``address`` in the target."""
    return struct.pack("<H6xQ", len(program) // _INSN.size, address)


def image(program: bytes, address: int) -> bytes:
    """struct sock_fprog with its filter behind it, to be written at ``address``.

    The target then calls ``seccomp(SET_MODE_FILTER, flags, address)``; it needs
    NO_NEW_PRIVS or CAP_SYS_ADMIN.
    """
    return fprog(program, address + 16) + program


_libc = ctypes.CDLL(None, use_errno=True)


def install(program: bytes, flags: int = 0) -> None:
    """Put the calling thread under ``program``; for a child before its exec.

    Without CAP_SYS_ADMIN it loses what set-user-ID programs could give it (no_new_privs).
    """
    code = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(fprog(program, ctypes.addressof(code)))
    place = ctypes.c_void_p(ctypes.addressof(head))
    done = _libc.syscall(SYS["seccomp"], SET_MODE_FILTER, flags, place)
    if done < 0 and ctypes.get_errno() == errno.EACCES:
        _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
        done = _libc.syscall(SYS["seccomp"], SET_MODE_FILTER, flags, place)
    _check(done, "seccomp(SET_MODE_FILTER)")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def run(
    program: bytes, nr: int, args: Iterable[int] = (), ip: int = 0, arch: int = _AUDIT_ARCH_X86_64
) -> int:
    """What ``program`` returns for one call: RET_TRACE or RET_ALLOW.

    An interpreter of the opcodes used here, so that filters can be examined
    without a process.
    """
    padded = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", nr, arch, ip, *padded)
    a = x = at = 0
    words = [0] * 16
    while True:
        code, yes, no, k = _INSN.unpack_from(program, at * _INSN.size)
        at += 1
        if code == _RET:
            return int(k)
        if code == _LD:
            a = struct.unpack_from("<I", data, k)[0]
        elif code == _LD_MEM:
            a = words[k]
        elif code == _ST:
            words[k] = a
        elif code == _TAX:
            x = a
        elif code == _AND_K:
            a &= k
        elif code in (_ADD_X, _ADD_K):
            a = (a + (x if code == _ADD_X else k)) & 0xFFFFFFFF
        else:
            truth = {
                _JEQ: a == k, _JGT: a > k, _JGE: a >= k, _JSET: bool(a & k), _JGE_X: a >= x,
            }[code]  # fmt: skip
            at += yes if truth else no
