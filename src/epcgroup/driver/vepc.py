"""An open /dev/sgx_vepc: the EPC of one virtual machine (spec 6.6).

A monitor maps it and gives the mapping to its guest. Pages come when they are
touched, are charged to whoever touched them, are never reclaimed, and go when
the file is closed. The limit therefore shows as a SIGBUS of the monitor and not
as paging (spec 8.1, promise 6).

What a guest does with the pages (ECREATE, EADD …) happens in the guest, on a
processor that virtualises SGX. There is none here: guests cannot execute these
leaves, so no page of theirs ever is an SECS. REMOVE_ALL hence never finds an
SECS with children, and no close leaves a zombie (VEPC-04, VEPC-05); the engine
knows such leftovers, because its pages are freed one by one.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from epcgroup.driver.fault import Fault
from epcgroup.driver.numbers import MAP_PRIVATE, MAP_TYPE, VepcIoctl
from epcgroup.driver.refuse import require
from epcgroup.errors import Busy, Refused
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from epcgroup.driver.driver import Driver
    from epcgroup.epc import Caller, Vepc

#: Bytes of the file: no capacity is reserved, any offset can be mapped (VEPC-01).
FILE_SIZE = 1 << 62


class VepcFile:
    """One open file description of /dev/sgx_vepc: one instance."""

    __slots__ = ("driver", "guest")

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
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
        """REMOVE_ALL: how many SECS pages had children and stay, 0 here.

        Pages lose their contents (the caller's part) and stay allocated and
        charged. Raises Refused: ENOTTY, EINVAL.
        """
        require(cmd == VepcIoctl.REMOVE_ALL, errno.ENOTTY, f"ioctl {cmd:#x} is unknown to /dev/sgx_vepc")
        require(arg == 0, errno.EINVAL, f"the argument of REMOVE_ALL is {arg:#x}; it must be 0")
        return 0

    def release(self) -> None:
        """The last descriptor and mapping are gone: every page is freed."""
        self.driver.machine.release_vepc(self.guest)
