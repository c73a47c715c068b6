"""userfaultfd(2) of another process's address space.

The descriptor is created *by* the target (a userfaultfd belongs to the mm of its
creator), then taken over with pidfd_getfd(2); every later request is issued by
us. Requests that fail raise OSError: EEXIST a page is already there, ENOENT the
range is not registered, ESRCH the address space is gone (ProcessLookupError),
EAGAIN the address space is changing, try again (BlockingIOError).

Requests take immutable bytes, so that any thread may issue them: fcntl copies
its argument, but not under a lock of ours.
"""

from __future__ import annotations

import ctypes
import os
import struct
from fcntl import ioctl
from typing import TYPE_CHECKING, Final

from epcgroup.errors import MissingCapability
from epcgroup.live.tracing import procfs
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.live.tracing.inject import Injector

SYS_USERFAULTFD: Final = 323
_SYS_CLOSE, _SYS_IOCTL = 3, 16
_DEVICE_NEW = 0xAA00  # USERFAULTFD_IOC_NEW
USER_MODE_ONLY: Final = 1

_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_WAKE, _COPY, _ZEROPAGE = 0x8010AA02, 0xC028AA03, 0xC020AA04
_WRITEPROTECT, _POISON = 0xC018AA06, 0xC020AA08

MODE_MISSING: Final = 1
MODE_WP: Final = 2
COPY_DONTWAKE: Final = 1
COPY_WP: Final = 2
_WP_ON, _WP_DONTWAKE = 1, 2
_DONTWAKE = 1

EVENT_PAGEFAULT: Final = 0x12
FLAG_WRITE: Final = 1
FLAG_WP: Final = 2

FEATURE_PAGEFAULT_FLAG_WP: Final = 1 << 0
FEATURE_MISSING_SHMEM: Final = 1 << 5
FEATURE_THREAD_ID: Final = 1 << 8
FEATURE_EXACT_ADDRESS: Final = 1 << 11
FEATURE_WP_HUGETLBFS_SHMEM: Final = 1 << 12
FEATURE_WP_UNPOPULATED: Final = 1 << 13
FEATURE_POISON: Final = 1 << 14
#: What paging cannot do without; Linux 5.19 has them.
REQUIRED: Final = (
    FEATURE_PAGEFAULT_FLAG_WP | FEATURE_MISSING_SHMEM | FEATURE_THREAD_ID | FEATURE_WP_HUGETLBFS_SHMEM
)
#: What is used where the kernel has it: 5.18, 6.4 and 6.6.
OPTIONAL: Final = FEATURE_EXACT_ADDRESS | FEATURE_WP_UNPOPULATED | FEATURE_POISON

_THREE = struct.Struct("<QQQ")
_RANGE = struct.Struct("<QQ")
_FOUR = struct.Struct("<QQQq")
_COPY_ARG = struct.Struct("<QQQQq")
_MSG = struct.Struct("<B7xQQI4x")  # struct uffd_msg: event, flags, address, ptid
MSG_SIZE: Final = _MSG.size

#: One event: (EVENT_*, FLAG_* bits, address, tid).
Event = tuple[int, int, int, int]

_supported: int | None = None


def supported() -> int:
    """FEATURE_* bits of this kernel; 0 if it has no userfaultfd for us at all."""
    global _supported
    if _supported is None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | USER_MODE_ONLY)
        if fd < 0:
            return 0
        try:
            _supported = _THREE.unpack(ioctl(fd, _API, _THREE.pack(0xAA, 0, 0)))[1]
        finally:
            os.close(fd)
    return _supported


def create_in(
    tid: int,
    injector: Injector,
    syscall_insn: int,
    hand: Callable[[int], int] | None = None,
    *,
    nonblock: bool = False,
) -> tuple[int, bool]:
    """A userfaultfd for the address space of stopped thread ``tid``.

    Returns our descriptor and whether faults by the kernel on the target's
    behalf (a system call that is given an evicted page) are served too. An
    unprivileged target gets them only with vm.unprivileged_userfaultfd = 1, or
    from /dev/userfaultfd if we may open that: ``hand`` gives the target our
    descriptor of it. Without either such calls fail with EFAULT there.

    MissingCapability if this kernel lacks a required feature.
    """
    have = supported()
    if have & REQUIRED != REQUIRED:
        raise MissingCapability(
            "this kernel's userfaultfd cannot write-protect shared memory: Linux 5.19 or newer is needed, "
            "built with CONFIG_USERFAULTFD"
        )
    flags = os.O_CLOEXEC | (os.O_NONBLOCK if nonblock else 0)
    kernel_faults = True
    try:
        remote = injector.inject(tid, SYS_USERFAULTFD, flags, syscall_insn=syscall_insn)
    except PermissionError:
        try:
            if hand is None:
                raise
            remote = _by_device(tid, injector, syscall_insn, hand, flags)
        except ProcessLookupError:
            raise
        except OSError:
            kernel_faults = False
            remote = injector.inject(tid, SYS_USERFAULTFD, flags | USER_MODE_ONLY, syscall_insn=syscall_insn)
    fd = procfs.take_fd(tid, remote)
    try:
        injector.inject(tid, _SYS_CLOSE, remote, syscall_insn=syscall_insn)
        enable(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, kernel_faults


def _by_device(
    tid: int, injector: Injector, syscall_insn: int, hand: Callable[[int], int], flags: int
) -> int:
    """A userfaultfd that the target gets because it may use the device; its own descriptor."""
    ours = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    try:
        device = hand(ours)
    finally:
        os.close(ours)
    try:
        return injector.inject(tid, _SYS_IOCTL, device, _DEVICE_NEW, flags, syscall_insn=syscall_insn)
    finally:
        injector.inject(tid, _SYS_CLOSE, device, syscall_insn=syscall_insn)


def enable(fd: int) -> None:
    """Agree with the kernel on the features; once per descriptor."""
    ioctl(fd, _API, _THREE.pack(0xAA, REQUIRED | OPTIONAL & supported(), 0))


def register(fd: int, start: int, length: int, mode: int = MODE_MISSING | MODE_WP) -> None:
    """Report faults in ``[start, start + length)``.

    MODE_WP also turns fault-around off, which the young test relies on.
    """
    ioctl(fd, _REGISTER, _FOUR.pack(start, length, mode, 0))


def copy(fd: int, dst: int, src: int, length: int = PAGE_SIZE, mode: int = 0) -> None:
    """Fill missing pages at ``dst`` from *our* address ``src`` and wake who waits.

    ``mode``: COPY_* bits. See PageBuffer for an address.
    """
    ioctl(fd, _COPY, _COPY_ARG.pack(dst, src, length, mode, 0))


def zeropage(fd: int, dst: int) -> None:
    """Fill the missing page at ``dst`` with zeros, writable, and wake who waits."""
    ioctl(fd, _ZEROPAGE, _FOUR.pack(dst, PAGE_SIZE, 0, 0))


def writeprotect(fd: int, start: int, length: int, on: bool, *, dontwake: bool = False) -> None:
    """Make writes to the range fault, or (``on`` false) let them through.

    Works on pages that are not there too. ``dontwake``: leave waiting threads
    asleep; only together with ``on`` false.
    """
    mode = _WP_ON if on else (_WP_DONTWAKE if dontwake else 0)
    ioctl(fd, _WRITEPROTECT, _THREE.pack(start, length, mode))


def wake(fd: int, start: int, length: int = PAGE_SIZE) -> None:
    """Wake threads that wait for a page of the range: they try again."""
    ioctl(fd, _WAKE, _RANGE.pack(start, length))


def poison(fd: int, start: int, length: int = PAGE_SIZE) -> bool:
    """Make touches of missing pages give SIGBUS; False if the kernel is too old.

    A write-protect marker left by an eviction would make this fail with EEXIST,
    so it is removed first.
    """
    if not supported() & FEATURE_POISON:
        return False
    writeprotect(fd, start, length, False, dontwake=True)
    ioctl(fd, _POISON, _FOUR.pack(start, length, 0, 0))
    return True


def parse(message: bytes | memoryview) -> Event:
    """One event, from MSG_SIZE bytes."""
    return _MSG.unpack(message)


def read_events(fd: int, limit: int = 16) -> list[Event]:
    """The next events of ``fd``, at most ``limit``; sleeps for the first one.

    Empty if there is nothing to report on a non-blocking descriptor.
    """
    try:
        return list(_MSG.iter_unpack(os.read(fd, limit * MSG_SIZE)))
    except BlockingIOError:
        return []


class PageBuffer:
    """``count`` pages of our memory with a known address, to copy from.

    >>> buffer = PageBuffer()
    >>> buffer.view[:5] = b"hello"
    """

    __slots__ = ("_owner", "address", "view")

    def __init__(self, count: int = 1) -> None:
        self._owner = ctypes.create_string_buffer(count * PAGE_SIZE)
        self.address: Final = ctypes.addressof(self._owner)
        self.view: Final = memoryview(self._owner).cast("B")
