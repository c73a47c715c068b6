"""What /proc says of a process, as typed values.

A process or thread that is gone shows as FileNotFoundError or
ProcessLookupError, both OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

AT_PHDR, AT_ENTRY, AT_HWCAP2, AT_SYSINFO_EHDR = 3, 9, 26, 33

_SYS_KCMP, _KCMP_VM = 312, 1
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 434, 438
_PIDFD_THREAD = os.O_EXCL
_PROT = {"r": 1, "w": 2, "x": 4}
_ESCAPED = re.compile(r"\\([0-7]{3})")
_SIGNALS = re.compile(rb"\nSigPnd:\t(.*)\nShdPnd:\t(.*)\nSigBlk:\t(.*)\n")

_AT_FDCWD, _AT_STATX_DONT_SYNC = -100, 0x4000
_Statx, _STATX_INO = ctypes.c_char * 256, struct.Struct("<32xQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_statx = _libc.statx
_statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps. ``prot`` has PROT_* bits, ``offset`` is bytes."""

    start: int
    end: int
    prot: int
    shared: bool
    offset: int
    dev: int
    inode: int
    path: str

    @property
    def executable(self) -> bool:
        """Whether code here can run."""
        return bool(self.prot & 4)


def parse_mapping(line: str) -> Mapping:
    """One line of /proc/PID/maps as a Mapping.

    >>> m = parse_mapping("7f00-7f80 r-xp 00001000 fe:01 42     /usr/lib/a b.so")
    >>> hex(m.start), m.prot, m.shared, m.offset, m.inode, m.path
    ('0x7f00', 5, False, 4096, 42, '/usr/lib/a b.so')
    """
    fields = line.split(None, 5)
    start, _, end = fields[0].partition("-")
    mode = fields[1]
    major, _, minor = fields[3].partition(":")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        prot=sum(bit for letter, bit in _PROT.items() if letter in mode),
        shared=mode[3] == "s",
        offset=int(fields[2], 16),
        dev=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(fields[4]),
        path=fields[5].rstrip("\n") if len(fields) > 5 else "",
    )


def maps(pid: int) -> list[Mapping]:
    """All mappings of ``pid``, lowest first; some 100 µs for a usual process."""
    with Path(f"/proc/{pid}/maps").open() as file:
        return [parse_mapping(line) for line in file]


def mapping_at(pid: int, addr: int) -> Mapping | None:
    """The mapping that holds ``addr``; cheaper than `maps`, only one line is parsed."""
    with Path(f"/proc/{pid}/maps").open() as file:
        for line in file:
            end = line[line.index("-") + 1 :].partition(" ")[0]
            if addr < int(end, 16):
                found = parse_mapping(line)
                return found if found.start <= addr else None
    return None


def mappings_of_inode(pid: int, inode: int) -> list[Mapping]:
    """The mappings of one file; cheaper than `maps`, lines are matched as text."""
    word = f" {inode} "
    with Path(f"/proc/{pid}/maps").open() as file:
        return [m for m in (parse_mapping(line) for line in file if word in line) if m.inode == inode]


def is_noexec(pid: int, path: str) -> bool:
    """Whether ``path`` lies on a noexec mount of ``pid``; the file system is not asked (see `fd_inode`)."""
    longest, options = -1, ""
    for line in os.fsdecode(Path(f"/proc/{pid}/mountinfo").read_bytes()).split("\n")[:-1]:
        fields = line.split(" ", 6)
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]).rstrip("/")
        if len(point) >= longest and path.startswith(f"{point}/"):  # of equals the last one is on top
            longest, options = len(point), fields[5]
    return "noexec" in options.split(",")


def auxv(pid: int) -> dict[int, int]:
    """The auxiliary vector: AT_* → value."""
    data = Path(f"/proc/{pid}/auxv").read_bytes()
    return {key: value for key, value in struct.iter_unpack("<QQ", data) if key}


def tasks(pid: int) -> list[int]:
    """Thread ids of a process."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 (faster)


def children(pid: int, tid: int) -> list[int]:
    """Processes whose parent is thread ``tid`` of ``pid``; none where the kernel does not tell."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{tid}/children").read_text().split()]
    except OSError:
        return []


def status(tid: int) -> dict[str, str]:
    """/proc/TID/status: field name → text."""
    with Path(f"/proc/{tid}/status").open() as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def inner_tid(tid: int) -> int:
    """The id of thread ``tid`` in its own pid namespace: what gettid(2) tells it."""
    return int(status(tid)["NSpid"].split()[-1])


def pid_namespace(pid: int | str = "self") -> str:
    """A name of the pid namespace of ``pid``; the same for all processes in it."""
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def environment(pid: int) -> dict[bytes, bytes]:
    """What ``pid`` was started with."""
    pairs = (item.partition(b"=") for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return {name: value for name, equals, value in pairs if equals}


def tgid(tid: int) -> int:
    """The process (thread group) that thread ``tid`` belongs to."""
    return int(status(tid)["Tgid"])


def state(tid: int) -> str:
    """R, S, D, T, t, Z … or "" when the thread is gone."""
    try:
        return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def flags(pid: int) -> int:
    """The kernel's flags of a task (PF_*); 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[6])


def tracer_of(tid: int) -> int:
    """The process that traces thread ``tid``; 0 if none does, or none that we can see."""
    try:
        return int(status(tid)["TracerPid"])
    except (OSError, KeyError):
        return 0


def is_ours(pid: int) -> bool:
    """Whether ``pid`` runs epcgroup."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.rpartition(b"/")[2] == b"epcgroup" or word.startswith(b"epcgroup.") for word in words[:4])


def pending_signals(tid: int) -> int:
    """Unblocked signals that wait for the thread: bit n-1 stands for signal n.

    Asked every few pages of an ioctl: a fifth of the time went here when it took `status` apart.
    """
    file = os.open(f"/proc/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while (found := _SIGNALS.search(text)) is None:
            piece = os.read(file, 1 << 16)
            if not piece:
                raise ProcessLookupError(errno.ESRCH, f"/proc/{tid}/status ends early")
            text += piece
    finally:
        os.close(file)
    own, process, blocked = (int(mask, 16) for mask in found.groups())
    return (own | process) & ~blocked


def personality(pid: int) -> int:
    """Execution domain and flags as personality(2) sets them."""
    return int(Path(f"/proc/{pid}/personality").read_text(), 16)


def command(pid: int) -> str:
    """The short name of a process (comm)."""
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


def fd_inode(pid: int, fd: int) -> int:
    """Inode of the file behind descriptor ``fd`` of ``pid``; some 5 µs.

    Its file system is not asked: stat(2) would wait for a FUSE server, which may be a program
    that waits for us.
    """
    found = _Statx()
    if _statx(_AT_FDCWD, b"/proc/%d/fd/%d" % (pid, fd), _AT_STATX_DONT_SYNC, 0, found) < 0:
        raise _fail(f"/proc/{pid}/fd/{fd}")
    return int(_STATX_INO.unpack_from(found)[0])


def fd_flags(pid: int, fd: int) -> int:
    """O_* flags of descriptor ``fd`` of ``pid``."""
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    raise OSError(f"descriptor {fd} of process {pid} has no flags")


def same_mm(pid: int, other: int) -> bool:
    """Whether two tasks share one address space (kcmp(2), KCMP_VM)."""
    result = _libc.syscall(_SYS_KCMP, pid, other, _KCMP_VM, 0, 0)
    if result < 0:
        raise _fail(f"kcmp({pid}, {other})")
    return bool(result == 0)


def pidfd_open(pid: int) -> int:
    """A descriptor (CLOEXEC) that stands for process ``pid``."""
    return _pidfd_open(pid, 0)


def _pidfd_open(pid: int, flags: int) -> int:
    fd = _libc.syscall(_SYS_PIDFD_OPEN, pid, flags)
    if fd < 0:
        raise _fail(f"pidfd_open({pid})")
    return int(fd)


def _pidfd_of_thread(tid: int) -> int:
    try:
        return _pidfd_open(tid, _PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return pidfd_open(tgid(tid))  # Linux before 6.9; its first thread must be there then


def take_fd(tid: int, fd: int) -> int:
    """Our own descriptor (CLOEXEC) of the file behind ``fd`` of thread ``tid``."""
    pidfd = _pidfd_of_thread(tid)
    try:
        copy = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            raise _fail(f"pidfd_getfd(thread {tid}, {fd})")
    finally:
        os.close(pidfd)
    return int(copy)


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
