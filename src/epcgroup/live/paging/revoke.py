"""Taking pages of a device out of reach, in every address space that maps it.

In three steps: write-protect them in every mm (a writer now faults and waits for us),
read them from the memfd, punch them out, which drops the pages and every PTE of them.
Without the first step a store between the read and the punch is lost.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from epcgroup.live.paging import uffd
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epcgroup.live.devices import Device
    from epcgroup.live.paging.mm import AddressSpace

_PUNCH = 0x1 | 0x2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_FS_IOC_SETFLAGS = 0x40086602
_TRIES = 100
_libc = ctypes.PyDLL(None, use_errno=True)  # a punch never sleeps: keep the interpreter lock
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def writeprotect(space: AddressSpace, addr: int, length: int, on: bool) -> None:
    """Make writes fault in one address space, or let them through, where it maps the range at all."""
    if space.uffd < 0:
        return  # a child of fork that has not run yet
    try:  # (contextlib.suppress costs as much as the request)
        uffd.writeprotect(space.uffd, addr, length, on)
    except FileNotFoundError:
        # This mm does not map the page (any more); of several, the request ended at the first such one.
        if length > PAGE_SIZE:
            for page in range(addr, addr + length, PAGE_SIZE):
                writeprotect(space, page, PAGE_SIZE, on)
    except ProcessLookupError:
        pass  # the mm is just going away


def hide(device: Device, indices: Sequence[int]) -> list[bytes]:
    """Take shown pages out of the memfd; no store after the read is lost."""
    runs = _runs(indices)
    for first, count in runs:
        for space in list(device.mms):
            writeprotect(space, device.base + (first << PAGE_SHIFT), count << PAGE_SHIFT, True)
    contents = [os.pread(device.memfd, PAGE_SIZE, index << PAGE_SHIFT) for index in indices]
    for first, count in runs:
        punch(device, first, count)
    return contents


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of neighbours that follow each other."""
    runs: list[tuple[int, int]] = []
    first, count = -1, 0
    for index in indices:
        if index == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = index, 1
    if count:
        runs.append((first, count))
    return runs


def punch(device: Device, index: int, count: int = 1) -> None:
    """Drop pages and all their PTEs; their contents are gone.

    A privileged program can make the file immutable (chattr), by which it would hold on to its pages.
    """
    for _ in range(_TRIES):
        if _fallocate(device.memfd, _PUNCH, index << PAGE_SHIFT, count << PAGE_SHIFT) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EPERM:
            break
        fcntl.ioctl(device.memfd, _FS_IOC_SETFLAGS, bytes(8))
    raise OSError(number, f"punching out an enclave page: {os.strerror(number)}")


def is_there(device: Device, index: int) -> bool:
    """Whether the memfd has this page."""
    try:
        return os.lseek(device.memfd, index << PAGE_SHIFT, os.SEEK_DATA) == index << PAGE_SHIFT
    except OSError:  # ENXIO: nothing from there on
        return False
