"""Open files of the emulated SGX devices.

A program's ``open("/dev/sgx_enclave")`` gives it a memfd of ours. The memfd's
page cache *is* the enclave's resident EPC: what the program maps shared is what
we fill, write-protect and punch out. Its inode names the enclave, so dup, fork
and passing the descriptor on need nothing from us.

When is the enclave released? In the kernel: when the last descriptor and the
last mapping of that open file are gone. Nothing reports that for a file that
memfd_create(2) returned to the program itself, so the program opens *our* memfd
through our /proc/PID/fd instead: an ordinary open, whose last close inotify
reports (IN_CLOSE), mappings included. A program may open it once more, by its own
/proc/self/fd; so when a close is told, the kernel is asked whether it was the last:
it grants a read lease only for a file that nobody has open to write. Rejected:
scanning every /proc/*/fd and maps (slow, racy), counting opens (inotify joins events
that are alike), tracing every close (12 µs each, and blind to mappings).

A memfd is a file, and the device is none: read, write, fallocate on the descriptor reach
what the program can reach by its mapping too, and io_uring or a process of another
machine by its own. The size is sealed, and so are the seals, or the program could
forbid us to take pages out. That pages came or went behind our back is dealt with where it would
be met (`frames`, `revoke`): it costs the program that did it its contents, and nobody else anything.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from enum import Enum
from typing import TYPE_CHECKING

from epcgroup.driver.vepc import FILE_SIZE as VEPC_SIZE
from epcgroup.errors import MissingCapability, Refused
from epcgroup.live.fastpath.table import Enterable
from epcgroup.live.tracing import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from epcgroup.driver import EnclaveFile, VepcFile
    from epcgroup.live.fastpath.space import Exits
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.sgx.enclave import EnclaveState

_libc = ctypes.CDLL(None, use_errno=True)
_IN_CLOSE = 0x8 | 0x10
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_MFD_ALLOW_SEALING = 2
_MFD_EXEC = 0x10
_IN_Q_OVERFLOW = -1  # as a watch: events were lost
_F_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Kind(Enum):
    """Which device file was opened."""

    ENCLAVE = "/dev/sgx_enclave"
    PROVISION = "/dev/sgx_provision"
    VEPC = "/dev/sgx_vepc"


PATHS = {kind.value: kind for kind in Kind} | {
    "/dev/sgx/enclave": Kind.ENCLAVE,
    "/dev/sgx/provision": Kind.PROVISION,
}


class Device:
    """One open of a device file, as the program sees it.

    ``file`` is the driver's side of it, ``guest`` that of a virtual EPC. ``hidden`` holds the contents of
    resident pages that no access may reach (TCS, PENDING, TRIM …): they are kept
    out of the memfd and count as resident all the same.
    """

    __slots__ = (
        "base",
        "command",
        "enterable",
        "exits",
        "file",
        "filled",
        "group",
        "guest",
        "hidden",
        "inode",
        "kind",
        "memfd",
        "mms",
        "opened",
        "opened_by",
        "threads",
        "touched",
        "watch",
    )

    def __init__(self, kind: Kind, file: EnclaveFile | None, pid: int, command: str, group: str) -> None:
        self.kind = kind
        self.file = file
        self.guest: VepcFile | None = None
        self.opened_by = pid
        self.opened = time.monotonic()
        self.command = command
        self.group = group
        self.memfd = _memfd(kind.value)
        self.inode = os.fstat(self.memfd).st_ino
        self.watch = -1
        self.mms: set[AddressSpace] = set()
        self.hidden: dict[int, bytearray] = {}
        self.threads = 0  # that are inside the enclave, as far as the tracer was told
        self.enterable = Enterable()  # TCSs that are entered and left without telling it, and
        self.exits: Exits | None = None  # the code by which they are left
        self.base = 0  # first address of the enclave, from ECREATE on
        # Pages that the processor itself accessed (TCS, SSA, operands of ENCLU), and pages
        # that were given to a waiting thread, whose PTE is there without looking.
        self.touched: set[int] = set()
        self.filled: set[int] = set()

    @property
    def created(self) -> bool:
        """Whether ECREATE succeeded on this file."""
        return self.file is not None and self.file.created

    @property
    def state(self) -> EnclaveState | None:
        """The processor's view of the enclave; None before ECREATE."""
        return self.file.state if self.file is not None and self.file.created else None

    @property
    def size(self) -> int:
        """Bytes of the enclave's address range; 0 before ECREATE."""
        return self.file.size if self.file is not None else 0

    @property
    def occupied(self) -> bool:
        """Whether a thread is inside the enclave."""
        return bool(self.threads) or self.enterable.occupied()

    def only_space(self) -> AddressSpace | None:
        """The address space that maps this, if there is one only; children of fork count once they ran."""
        found = None
        for space in self.mms:
            if space.uffd >= 0:
                if found is not None:
                    return None
                found = space
        return found

    def hold_guest(self, file: VepcFile) -> None:
        """This is a virtual EPC: it can be mapped at any offset."""
        self.guest = file
        self.fix_size(VEPC_SIZE)

    def fix_size(self, size: int) -> None:
        """Give the memfd its size in bytes, for good: the program cannot change it. It is empty then.

        Refused if that is more than we may have, or the program has tampered with the file.
        """
        try:
            os.ftruncate(self.memfd, 0)
            os.ftruncate(self.memfd, size)
            fcntl.fcntl(self.memfd, fcntl.F_ADD_SEALS, _F_SEALS)
        except PermissionError as error:
            raise Refused("its descriptor of the device was sealed or made immutable", error.errno) from error
        except OSError as error:
            raise Refused(
                f"an enclave's memory of {size} bytes is more than the supervisor's `ulimit -f` allows",
                error.errno,
            ) from error
        seals, there = fcntl.fcntl(self.memfd, fcntl.F_GET_SEALS), os.fstat(self.memfd).st_size
        if (seals, there) != (_F_SEALS, size):
            raise Refused("its descriptor of the device was sealed or resized meanwhile", errno.EPERM)

    def is_open(self) -> bool:
        """Whether anybody but us has this open to write, or mapped from such an open."""
        fcntl.fcntl(self.memfd, fcntl.F_SETSIG, signal.SIGURG)  # not SIGIO, which would end us, if it breaks
        try:
            fcntl.fcntl(self.memfd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:  # it was given to another user
            return False
        fcntl.fcntl(self.memfd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def path(self) -> bytes:
        """Path through which a traced process of ours opens this memfd."""
        return b"/proc/%d/fd/%d" % (os.getpid(), self.memfd)

    def close(self) -> None:
        """Give the memory back."""
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1
        self.hidden.clear()


class DeviceTable:
    """Every open device file, found by the inode of its memfd."""

    def __init__(self) -> None:
        self._by_inode: dict[int, Device] = {}
        self._by_watch: dict[int, Device] = {}
        self._closing: set[Device] = set()
        self._inotify: int = _libc.inotify_init1(_IN_NONBLOCK_CLOEXEC)
        if self._inotify < 0:
            raise MissingCapability("inotify_init1 failed: raise fs.inotify.max_user_instances")

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self._by_inode.values()))

    def add(self, device: Device) -> None:
        """Watch ``device`` until its last user is gone."""
        watch = _libc.inotify_add_watch(self._inotify, f"/proc/self/fd/{device.memfd}".encode(), _IN_CLOSE)
        if watch < 0:
            raise MissingCapability("inotify_add_watch failed: raise fs.inotify.max_user_watches")
        device.watch = watch
        self._by_watch[watch] = device
        self._by_inode[device.inode] = device

    def of_fd(self, pid: int, fd: int) -> Device | None:
        """The device behind descriptor ``fd`` of ``pid``."""
        try:
            inode = procfs.fd_inode(pid, fd)
        except OSError:
            return None
        return self._by_inode.get(inode)

    def of_inode(self, inode: int) -> Device | None:
        """The device whose memfd has this inode."""
        return self._by_inode.get(inode)

    def closed(self) -> list[Device]:
        """Devices whose last descriptor and mapping went since the last call.

        A device that is still mapped or open was opened a second time (through
        /proc/self/fd), or its process is just dying; one with a thread inside was
        unmapped under it, and the thread still has to leave. All are looked at again.
        """
        while True:
            try:
                events = os.read(self._inotify, 4096)
            except BlockingIOError:
                break
            for at in range(0, len(events), _EVENT.size):
                watch = _EVENT.unpack_from(events, at)[0]
                if watch == _IN_Q_OVERFLOW:
                    self._closing.update(self._by_inode.values())
                elif (device := self._by_watch.get(watch)) is not None:
                    self._closing.add(device)
        gone = [d for d in self._closing if not d.mms and not d.occupied and not d.is_open()]
        for device in gone:
            self.forget(device)
        return gone

    def forget(self, device: Device) -> None:
        """Stop watching; the caller releases the enclave and closes the device."""
        self._closing.discard(device)
        self._by_watch.pop(device.watch, None)
        self._by_inode.pop(device.inode, None)
        _libc.inotify_rm_watch(self._inotify, device.watch)

    def close(self) -> None:
        """Close the table's own descriptor."""
        os.close(self._inotify)


def _memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError:  # MFD_EXEC is Linux 6.3; executable by default before
        return os.memfd_create(name, flags)
