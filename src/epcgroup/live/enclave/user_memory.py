"""A program's memory as the driver reads its ioctl arguments."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.live.devices import Kind
from epcgroup.live.paging.mm import PROT_READ, PROT_WRITE
from epcgroup.live.tracing import memory, procfs, room
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.seams import Source
    from epcgroup.live.devices import DeviceTable
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.live.tracing.procfs import Mapping


class ProcessMemory:
    """The driver's `UserMemory` over one process, for one ioctl. Pointers are untrusted.

    Copies are made with the lock held and by the one thread that answers everybody, so they must
    not wait for the program: it may have a userfaultfd on its buffers and never serve it. Hence
    /proc/PID/mem, which fails instead; since it also looks past the permissions of mappings,
    these are asked first. Who serves such faults is waited for by a thread of its own (`pending`).

    Arguments inside enclave memory are refused with EFAULT: to read them is to
    fault on them, and who resolves that fault waits for the lock that we hold.
    """

    def __init__(self, pid: int, mm: AddressSpace, devices: DeviceTable) -> None:
        self._pid = pid
        self._mm = mm
        self._devices = devices
        self._known: list[Mapping] = []
        self._noexecs: dict[str, bool] = {}  # by path of a mapped file
        self._bringing: threading.Thread | None = None

    @property
    def waits(self) -> bool:
        """Whether `pending` is the reason that nothing goes on."""
        return self._bringing is not None and self._bringing.is_alive()

    def read(self, addr: int, length: int) -> bytes:
        """``length`` bytes; OSError(EFAULT) where they cannot be read."""
        self._check(addr, length, PROT_READ)
        try:
            return memory.peek_text(self._pid, addr, length)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, f"cannot read {length} bytes at {addr:#x}") from error

    def write(self, addr: int, data: bytes) -> None:
        """Store ``data``; OSError(EFAULT) where that cannot be done."""
        self._check(addr, len(data), PROT_WRITE)
        try:
            memory.poke_text(self._pid, addr, data)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, f"cannot write {len(data)} bytes at {addr:#x}") from error

    def pending(self, addr: int, length: int) -> bool:
        """Whether a fault on this memory waits for a userfaultfd of the program's."""
        if self._bringing is not None:
            if self._bringing.is_alive():
                return True
            self._bringing = None
            return False
        try:
            self._check(addr, length, PROT_READ)
        except OSError:
            return False
        try:
            memory.peek_text(self._pid, addr, length)
        except OSError:
            bringing = threading.Thread(
                target=_touch, args=(self._pid, addr, length), name=f"touch-{self._pid}", daemon=True
            )
            with contextlib.suppress(Refused):
                room.begin(bringing)
                self._bringing = bringing
                return True
        return False

    def _check(self, addr: int, length: int, prot: int) -> None:
        self._refuse_enclave(addr, length)
        for at in (addr, addr + length - 1):
            mapping = self._mapping(at)
            if mapping is None or not mapping.prot & prot:
                raise OSError(errno.EFAULT, f"{at:#x} is not mapped for that")

    def _refuse_enclave(self, addr: int, length: int) -> None:
        if self._mm.overlapping(addr, addr + length):
            raise OSError(errno.EFAULT, f"{length} bytes at {addr:#x} overlap enclave memory")

    def source_ok(self, addr: int, length: int) -> tuple[Source, int]:
        """What ADD_PAGES asks of its source mapping (spec 6.5)."""
        mapping = self._mapping(addr)
        if mapping is None or not mapping.prot & PROT_READ:
            return "fault", min(length, PAGE_SIZE)
        usable = min(length, mapping.end - addr)
        return ("noexec" if self._noexec(mapping) else "ok"), usable

    def is_provision(self, fd: int) -> bool:
        """Whether ``fd`` is an open /dev/sgx_provision."""
        device = self._devices.of_fd(self._pid, fd)
        return device is not None and device.kind is Kind.PROVISION

    def _mapping(self, addr: int) -> Mapping | None:
        """The mapping at ``addr`` as this ioctl found it first."""
        for mapping in self._known:
            if mapping.start <= addr < mapping.end:
                return mapping
        found = procfs.mapping_at(self._pid, addr)
        if found is not None:
            self._known.append(found)
        return found

    def _noexec(self, mapping: Mapping) -> bool:
        """A file on a noexec mount can never be mapped executable (VM_MAYEXEC)."""
        if not mapping.inode or not mapping.path.startswith("/") or mapping.executable:
            return False
        if mapping.path not in self._noexecs:
            try:
                self._noexecs[mapping.path] = procfs.is_noexec(self._pid, mapping.path)
            except OSError:
                return False
        return self._noexecs[mapping.path]


def _touch(pid: int, addr: int, length: int) -> None:
    """Wait until the memory is there, or can never be."""
    with contextlib.suppress(OSError):
        memory.read(pid, addr, length)
