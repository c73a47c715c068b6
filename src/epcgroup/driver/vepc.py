"""An open /dev/sgx_vepc: the EPC of one virtual machine (spec 6.6).

A monitor maps it and gives the mapping to its guest. Pages come when they are
touched, are charged to whoever touched them, are never reclaimed, and go when
the file is closed. The limit therefore shows as a SIGBUS of the monitor and not
as paging (spec 8.1, promise 6).

What a guest does with the pages (ECREATE, EADD …) happens in the guest, on a
processor that virtualises SGX; ``epcm`` is what it has made of them. In live mode
there is no such processor: no page ever is an SECS there, REMOVE_ALL finds everything
removable and no close leaves a zombie (VEPC-04, VEPC-05).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from epcgroup.driver.fault import Fault
from epcgroup.driver.numbers import MAP_PRIVATE, MAP_TYPE, VepcIoctl
from epcgroup.driver.refuse import require
from epcgroup.errors import Busy, Refused
from epcgroup.sgx.guest import GuestEpcm
from epcgroup.sgx.layouts import SgxError
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from epcgroup.driver.driver import Driver
    from epcgroup.epc import Caller, Vepc

#: Bytes of the file: no capacity is reserved, any offset can be mapped (VEPC-01).
FILE_SIZE = 1 << 62
_REMOVED_OR_PARENT = (SgxError.SUCCESS, SgxError.CHILD_PRESENT)


class VepcFile:
    """One open file description of /dev/sgx_vepc: one instance."""

    __slots__ = ("driver", "epcm", "guest")

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.epcm = GuestEpcm()
        self.guest: Vepc = driver.machine.create_vepc(FILE_SIZE >> PAGE_SHIFT)

    def may_map(self, flags: int) -> None:
        """mmap. Raises Refused: EINVAL for a private mapping."""
        require(flags & MAP_TYPE != MAP_PRIVATE, errno.EINVAL, "a virtual EPC can be mapped shared only")

    def fault(self, index: int, caller: Caller) -> Fault:
        """A touch of page ``index`` of the file: RESIDENT, RETRY after background work, or SIGBUS."""
        try:
            self.driver.machine.fault_vepc(caller, self.guest, index)
        except Busy:
            return Fault.RETRY
        except Refused:
            return Fault.SIGBUS
        return Fault.RESIDENT

    def ioctl(self, cmd: int, arg: int) -> int:
        """REMOVE_ALL: how many SECS pages have children yet, and stay.

        Pages lose their contents (the caller's part) and stay allocated and
        charged. With several instances it takes two rounds: children first.
        Raises Refused: ENOTTY, EINVAL, EBUSY (a thread is inside).
        """
        require(cmd == VepcIoctl.REMOVE_ALL, errno.ENOTTY, f"ioctl {cmd:#x} is unknown to /dev/sgx_vepc")
        require(arg == 0, errno.EINVAL, f"the argument of REMOVE_ALL is {arg:#x}; it must be 0")
        left = 0
        for index in sorted(self.guest.pages):
            code = self.epcm.eremove(index)
            require(code in _REMOVED_OR_PARENT, errno.EBUSY, f"page {index} of the guest is in use")
            left += code == SgxError.CHILD_PRESENT
        return left

    def release(self) -> None:
        """The last descriptor and mapping are gone: every page is freed that can be.

        An SECS with children in another instance stays, charged, until a later
        close of whatever instance finds it without (a zombie).
        """
        for _ in range(2):  # children, then SECSs
            self.free(sorted(self.guest.pages))
        zombies = self.driver.zombies
        for file in zombies:
            file.free(sorted(file.guest.pages))
        zombies[:] = [file for file in (*zombies, self) if file.guest.pages]

    def free(self, indices: Iterable[int]) -> None:
        """Free those pages that EREMOVE succeeds for; with the last one the instance is gone."""
        machine = self.driver.machine
        for index in indices:
            if self.epcm.eremove(index) == SgxError.SUCCESS:
                machine.free_vepc_page(self.guest, index)
        if not self.guest.pages:
            machine.release_vepc(self.guest)
