"""Which pages of another process were touched, and how to forget it.

The accessed bit of a page table entry cannot be read from user space. Whether
there *is* an entry can. The page of a shared file mapping stays in the page
cache when its entry is dropped, and the next touch brings the entry back
without our help, in 3 µs. So "entry present" serves as the accessed bit, and
dropping the entry as clearing it.

This is exact only where the range is registered with userfaultfd for
write-protect faults, because that turns fault-around off: otherwise one touch
maps up to 16 neighbours.

Rejected: clear_refs with smaps (per mapping, not per page), soft-dirty and the
"written" category of PAGEMAP_SCAN (writes only), userfaultfd minor faults (a
round trip to us per touch), idle page tracking (rarely configured, by PFN).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from fcntl import ioctl
from typing import TYPE_CHECKING

from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_PRESENT = 8
_PRESENT = 0x80  # bit 63 of an entry of the pagemap file, in its last byte
_SYS_PROCESS_MADVISE, _MADV_PAGEOUT = 440, 21
_ARG = struct.Struct("<12Q")  # struct pm_scan_arg
_REGION = struct.Struct("<QQQ")  # struct page_region
_REGIONS = 64
_FEW = 64 * PAGE_SIZE  # bytes of address range
_GAP = 16  # pages: reading over them costs less than a second read
_IOV_MAX = 1024
_libc = ctypes.PyDLL(None, use_errno=True)  # nothing here sleeps: keep the interpreter lock

_sysinfo = (ctypes.c_ulong * 14)()  # struct sysinfo: uptime, 3 loads, 4 of RAM, totalswap …
_TOTALSWAP = 8

_scan_works = True
_may_drop = True


def open_pagemap(pid: int) -> int:
    """Descriptor of /proc/PID/pagemap; stays valid for that address space."""
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def present(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """Ranges within ``[start, end)`` whose pages have a page table entry.

    ``fd`` is from open_pagemap. For a few pages their entries are read (1 µs),
    for many the kernel is asked to scan (5 µs, plus 25 ns per page).
    """
    global _scan_works
    if _scan_works and end - start > _FEW:
        try:
            return _scan(fd, start, end)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            _scan_works = False  # PAGEMAP_SCAN is Linux 6.7
    return _read_entries(fd, start, end)


def _scan(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    regions = ctypes.create_string_buffer(_REGIONS * _REGION.size)
    found: list[tuple[int, int]] = []
    while start < end:
        arg = _ARG.pack(
            _ARG.size, 0, start, end, 0, ctypes.addressof(regions), _REGIONS, 0,
            0, _PAGE_IS_PRESENT, 0, _PAGE_IS_PRESENT,
        )  # fmt: skip
        # bytearray, because the return value (the number of regions) is wanted too.
        buffer = bytearray(arg)
        count = ioctl(fd, _PAGEMAP_SCAN, buffer)
        if count:
            found += [(a, b) for a, b, _ in _REGION.iter_unpack(regions.raw[: count * _REGION.size])]
        start = _ARG.unpack(buffer)[4]
    return found


def _read_entries(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    data = os.pread(fd, (end - start) >> PAGE_SHIFT << 3, start >> PAGE_SHIFT << 3)
    if len(data) == 8:
        return [(start, end)] if data[7] & _PRESENT else []
    tops = data[7::8]  # the byte with bits 56 to 63 of each entry
    return coalesce(start + (n << PAGE_SHIFT) for n, top in enumerate(tops) if top & _PRESENT)


def young(fd: int, addresses: Iterable[int]) -> set[int]:
    """Those of the page addresses whose pages were touched since the last drop.

    Close ones are looked at in one request.
    """
    touched: set[int] = set()
    for start, end in coalesce(sorted(addresses), gap=_GAP):
        if end - start == PAGE_SIZE:  # as `present`, without its steps: the usual case
            entry = os.pread(fd, 8, start >> PAGE_SHIFT << 3)
            if entry and entry[7] & _PRESENT:  # empty: the mm is just going away
                touched.add(start)
            continue
        for low, high in present(fd, start, end):
            touched.update(range(low, high, PAGE_SIZE))
    return touched.intersection(addresses)


def coalesce(addresses: Iterable[int], gap: int = 0) -> list[tuple[int, int]]:
    """Page addresses in ascending order as ranges; holes up to ``gap`` pages are filled.

    >>> coalesce([0x1000, 0x2000, 0x9000])
    [(4096, 12288), (36864, 40960)]
    """
    ranges: list[tuple[int, int]] = []
    low = high = -1
    reach = gap * PAGE_SIZE
    for address in addresses:
        if high >= 0 and address <= high + reach:
            high = max(high, address + PAGE_SIZE)
            continue
        if high >= 0:
            ranges.append((low, high))
        low, high = address, address + PAGE_SIZE
    if high >= 0:
        ranges.append((low, high))
    return ranges


def drop(pidfd: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Drop the page table entries of ``ranges`` in the process of ``pidfd``.

    Nothing stops and no page is lost. False where that cannot be done: there is
    swap (the kernel would write plain text to it), or we may not (it takes
    CAP_SYS_NICE). Entries stay for pages that a second
    address space maps too, and for pages that another processor put into the
    page cache a moment ago and has not yet added to the kernel's lists (up to 31
    per processor).
    """
    if not _may_drop or swap_in_use():
        return False
    for at in range(0, len(ranges), _IOV_MAX):
        if not _may_drop:
            break
        _pageout(pidfd, ranges[at : at + _IOV_MAX])
    return _may_drop


def _pageout(pidfd: int, ranges: Sequence[tuple[int, int]]) -> None:
    iov = (ctypes.c_uint64 * (2 * len(ranges)))()
    for n, (start, end) in enumerate(ranges):
        iov[2 * n], iov[2 * n + 1] = start, end - start
    if _libc.syscall(_SYS_PROCESS_MADVISE, pidfd, iov, len(ranges), _MADV_PAGEOUT, 0) < 0:
        cannot_drop(ctypes.get_errno())


def may_drop() -> bool:
    """Whether the kernel has let us drop entries so far."""
    return _may_drop


def cannot_drop(error: int) -> None:
    """The kernel said this errno instead of dropping. Raises OSError when that is not to be expected."""
    global _may_drop
    if error == errno.EPERM:
        _may_drop = False
    # A process that is gone, or a range that is: the caller finds out by looking.
    elif error not in (errno.ESRCH, errno.ENOMEM):
        raise OSError(error, f"process_madvise(MADV_PAGEOUT): {os.strerror(error)}")


def swap_in_use() -> bool:
    """Whether any swap area is active."""
    _libc.sysinfo(_sysinfo)
    return bool(_sysinfo[_TOTALSWAP])
