"""Batches of pages in machine code: look at their ages, revoke and seal them.

A round of reclaim does to 16 pages what Python would do to one after the other, and
the interpreter costs more than the kernel does. So what is the same for each page is
one call of `compiled`: both ways to the contents (`driver.mover`) and to the ages
(`age`) of pages have a twin here. *Which* pages, and in what order, is the
engine's business before and after. What has a form of its own (several address spaces,
hidden pages, several enclaves in one batch) takes the plain way.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from array import array
from itertools import compress
from typing import TYPE_CHECKING

from epcgroup.driver.mover import PlainMover
from epcgroup.live.paging import pagemap, uffd
from epcgroup.live.paging.age import PlainAge
from epcgroup.sgx.layouts import MODIFIED, PENDING, TYPE_MASK, TYPE_SHIFT, PageType, R
from epcgroup.sgx.seal import MAC_SIZE
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from epcgroup.driver import BackingStore, Evicted
    from epcgroup.driver.store import Sealed
    from epcgroup.epc import EpcPage
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.frames import MemfdFrames
    from epcgroup.live.paging.lock import MachineLock
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.sgx.seal import PageSealer

_MAP_NORESERVE = 0x4000
_LARGEST = 1 << 36  # bytes of enclave that get a table: 400 MiB of addresses, hardly any memory
_THREE = struct.Struct("<QQQ")
_JOB = struct.Struct("<6Q")  # as `compiled` numbers the words of a job,
_LOOK = struct.Struct("<5Q")  # and of a look


# Of an EPCM word: what decides whether its page can be read at all (as `epcm.hidden`), and how that must be.
_SHOWN = TYPE_MASK | PENDING | MODIFIED | R
_READABLE = PageType.REG << TYPE_SHIFT | R


class LaneMover(PlainMover):
    """The plain mover, a batch in one call; it also keeps the tables that lanes read."""

    def __init__(
        self,
        frames: MemfdFrames,
        sealer: PageSealer,
        store: BackingStore,
        code: ModuleType,
        lock: MachineLock,
    ) -> None:
        super().__init__(frames, sealer, store)
        self._memfds = frames
        self._entry = code.ENTRY
        self._maximum_shift = code.MAXIMUM_SHIFT
        self._tables: dict[int, tuple[mmap.mmap, int, memoryview]] = {}  # and where they are
        self._code = code
        self._lock = lock
        self._versions = sealer.versions
        self._job = code.new_block(code.JOB_SIZE)
        self._job_at = ctypes.addressof(self._job)
        self._words = memoryview(self._job).cast("B").cast("Q")
        self._page = uffd.PageBuffer()
        self._words[code.SEALING >> 3] = code.ciphers.new_cipher(sealer.key, sealing=True)
        self._words[code.PLAIN >> 3] = self._page.address

    def table(self, enclave: int) -> int:
        """Address of an enclave's table; 0 if it has none (yet)."""
        table = self._tables.get(enclave)
        return 0 if table is None else table[1]

    def forget(self, enclave: int) -> None:
        super().forget(enclave)
        self._tables.pop(enclave, None)

    def out(
        self, enclave: int, base: int, indices: Sequence[int], flags: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[Sealed]]:
        device = self._memfds.leaving(enclave, indices)
        space = device.only_space()
        hidden = device.hidden and not device.hidden.keys().isdisjoint(indices)
        if space is not None and not hidden and len(indices) <= self._code.JOB_LENGTH:
            return self._evict(device, space, enclave, base, indices, flags)
        return super().out(enclave, base, indices, flags)

    def _evict(
        self,
        device: Device,
        space: AddressSpace,
        enclave: int,
        base: int,
        indices: Sequence[int],
        flags: Sequence[int],
    ) -> tuple[Sequence[int], Sequence[Sealed]]:
        code, job, arena = self._code, self._words, self._arena
        count, free = len(indices), arena.free
        version = self._versions(count)
        _JOB.pack_into(job, 0, count, version, device.memfd, space.uffd, base, enclave)
        places = free[: -count - 1 : -1]
        del free[-count:]
        for column, values in (
            (code.PAGES, indices),
            (code.WORDS, flags),
            (code.PLACES, arena.addresses(places)),
        ):
            job[column >> 3 : (column >> 3) + count] = array("Q", values)
        parted = self._lock.part()
        try:
            error = code.evict(self._job_at)
        finally:
            if parted:
                self._lock.rejoin()
        if error:
            free += places[::-1]
            raise OSError(error, f"taking out pages of enclave {enclave}: {os.strerror(error)}")
        sealed = [(word, place, b"") for word, place in zip(flags, places, strict=True)]
        zero = job[code.ZEROS >> 3 : (code.ZEROS >> 3) + count].tolist()
        if any(zero):
            for at in compress(range(count), zero):
                place = places[at]
                sealed[at] = flags[at], -1, bytes(arena.view(place)[:MAC_SIZE])
                free.append(place)
        return range(version, version + count), sealed

    def kept(
        self, enclave: int, indices: Sequence[int], versions: Sequence[int], sealed: Sequence[Sealed]
    ) -> None:
        table = self._tables.get(enclave) or self._make_table(enclave)
        if table is None:
            return
        rows, width = table[2], self._entry >> 3
        most, shift = self._memfds.file(enclave).maximum.get, self._maximum_shift
        addresses = self._arena.addresses([place for _, place, _ in sealed])
        for index, version, addr, (flags, place, _) in zip(indices, versions, addresses, sealed, strict=True):
            if place >= 0 and flags & _SHOWN == _READABLE:
                at = index * width
                rows[at] = addr
                rows[at + 1] = version
                rows[at + 2] = flags | most(index, 0) << shift

    def back(self, enclave: int, base: int, index: int, entry: Evicted, version: int) -> None:
        super().back(enclave, base, index, entry, version)
        table = self._tables.get(enclave)
        if table is not None:
            _THREE.pack_into(table[0], index * self._entry, 0, 0, 0)

    def _make_table(self, enclave: int) -> tuple[mmap.mmap, int, memoryview] | None:
        size = self._memfds.file(enclave).size
        if not 0 < size <= _LARGEST:
            return None
        length = (size >> PAGE_SHIFT) * self._entry
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            table = mmap.mmap(-1, length, flags=flags)
        except OSError:
            return None
        at = ctypes.addressof(ctypes.c_char.from_buffer(table))
        found = self._tables[enclave] = table, at, memoryview(table).cast("Q")
        return found


class LaneAge(PlainAge):
    """The plain look at ages, a batch in one call."""

    def __init__(self, devices: Mapping[int, Device], code: ModuleType) -> None:
        super().__init__(devices)
        self._code = code
        self._job = code.new_block(code.LOOK_SIZE)
        self._job_at = ctypes.addressof(self._job)
        self._words = memoryview(self._job).cast("B").cast("Q")

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        enclave = pages[0].enclave
        indices = [page.index for page in pages if page.enclave is enclave]
        device = self._devices[enclave.id]
        space = device.only_space()
        hidden = device.hidden and not device.hidden.keys().isdisjoint(indices)
        if space is None or hidden or not len(indices) == len(pages) <= self._code.JOB_LENGTH:
            return super().young(pages)
        try:
            files = space.open_pagemap(), space.open_pidfd()
        except OSError:  # the mm is just going away
            return super().young(pages)
        code, job, filled = self._code, self._words, device.filled
        _LOOK.pack_into(job, 0, len(indices), *files, pagemap.may_drop(), device.base)
        looks, present, count = code.LOOKS >> 3, code.PRESENT >> 3, len(indices)
        job[looks : looks + count] = array("Q", indices)
        job[present : present + count] = array("Q", map(filled.__contains__, indices))
        told = code.look(self._job_at)
        found = list(map(bool, job[present : present + count]))
        filled.difference_update(indices)
        if told < 0:
            pagemap.cannot_drop(-told)
        if told == code.KEPT or told == -errno.EPERM:
            self.set_aside(device, [index for index, young in zip(indices, found, strict=True) if young])
        touched = self._touched(device, indices)
        if touched:
            return [young or index in touched for index, young in zip(indices, found, strict=True)]
        return found


__all__ = ["LaneAge", "LaneMover"]
