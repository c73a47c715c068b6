"""A program's memory as the driver reads its ioctl arguments."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from epcgroup.live import memory, procfs
from epcgroup.live.devices import Kind
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.seams import Source
    from epcgroup.live.devices import DeviceTable
    from epcgroup.live.mm import AddressSpace
    from epcgroup.live.procfs import Mapping


class ProcessMemory:
    """The driver's `UserMemory` over one process. Pointers are untrusted.

    Arguments inside enclave memory are refused with EFAULT: to read them is to
    fault on them, and who resolves that fault waits for the lock that we hold.
    """

    def __init__(self, pid: int, mm: AddressSpace, devices: DeviceTable) -> None:
        self._pid = pid
        self._mm = mm
        self._devices = devices
        self._source: Mapping | None = None

    def read(self, addr: int, length: int) -> bytes:
        """``length`` bytes; OSError(EFAULT) where they cannot be read."""
        self._refuse_enclave(addr, length)
        try:
            return memory.read(self._pid, addr, length)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, f"cannot read {length} bytes at {addr:#x}") from error

    def write(self, addr: int, data: bytes) -> None:
        """Store ``data``; OSError(EFAULT) where that cannot be done."""
        self._refuse_enclave(addr, len(data))
        try:
            memory.write(self._pid, addr, data)
        except (OSError, OverflowError) as error:
            raise OSError(errno.EFAULT, f"cannot write {len(data)} bytes at {addr:#x}") from error

    def _refuse_enclave(self, addr: int, length: int) -> None:
        if self._mm.overlapping(addr, addr + length):
            raise OSError(errno.EFAULT, f"{length} bytes at {addr:#x} overlap enclave memory")

    def source_ok(self, addr: int, length: int) -> tuple[Source, int]:
        """What ADD_PAGES asks of its source mapping (spec 6.5)."""
        mapping = self._source
        if mapping is None or not mapping.start <= addr < mapping.end:
            mapping = self._source = self._mapping(addr)
        if mapping is None or not mapping.prot & 1:
            return "fault", min(length, PAGE_SIZE)
        usable = min(length, mapping.end - addr)
        return ("noexec" if self._noexec(mapping) else "ok"), usable

    def is_provision(self, fd: int) -> bool:
        """Whether ``fd`` is an open /dev/sgx_provision."""
        device = self._devices.of_fd(self._pid, fd)
        return device is not None and device.kind is Kind.PROVISION

    def _mapping(self, addr: int) -> Mapping | None:
        for mapping in procfs.maps(self._pid):
            if mapping.start <= addr < mapping.end:
                return mapping
        return None

    def _noexec(self, mapping: Mapping) -> bool:
        """A file on a noexec mount can never be mapped executable (VM_MAYEXEC)."""
        if not mapping.inode or not mapping.path.startswith("/") or mapping.executable:
            return False
        try:
            found = os.statvfs(f"/proc/{self._pid}/root{mapping.path}")
        except OSError:
            return False
        return bool(found.f_flag & os.ST_NOEXEC)
