"""Batches of pages in machine code: look at their ages, revoke and seal them.

A round of reclaim does to 16 or 32 pages what Python would do to one after the other, and
the interpreter costs more than the kernel does. So what is the same for each page is
one call of `compiled`: both ways to the contents (`driver.mover`) and to the ages
(`age`) of pages have a twin here. *Which* pages, and in what order, is the
engine's business before and after. What has a form of its own (several address spaces,
hidden pages, several enclaves in one batch) takes the plain way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from array import array
from typing import TYPE_CHECKING

from epcgroup.driver.evicted import FLAGS_MASK, MOST_SHIFT, SLOT_SHIFT
from epcgroup.driver.mover import PlainMover
from epcgroup.live.paging import pagemap, revoke, uffd
from epcgroup.live.paging.age import PlainAge
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from epcgroup.driver import BackingStore
    from epcgroup.epc import EpcPage
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.frames import MemfdFrames
    from epcgroup.live.paging.lock import MachineLock
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.sgx.seal import PageSealer

# As `compiled` numbers the words of a job of eviction, of a batch of rows and of a look.
_JOB, _ROWS, _LOOK = struct.Struct("<7Q"), struct.Struct("<2Q"), struct.Struct("<6Q")
_UNUSED = (1 << 64) - 1  # -1, as a word


def _column(offset: int, count: int) -> slice:
    """The first words of a column of a block, of which `compiled` knows the offset in bytes."""
    return slice(offset >> 3, (offset >> 3) + count)


class LaneMover(PlainMover):
    """The plain mover, a batch in one call."""

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
        self._directories: dict[int, int] = {}  # of the rows of each enclave, by address
        self._code = code
        self._lock = lock
        self._versions = sealer.versions
        self._page = uffd.PageBuffer()
        self._job_block = code.new_block(code.evict.SIZE)
        self._job_at = ctypes.addressof(self._job_block)
        self._job = memoryview(self._job_block).cast("B").cast("Q")
        self._job[code.evict.SEALING >> 3] = code.ciphers.new_cipher(sealer.key, sealing=True)
        self._job[code.evict.PLAIN >> 3] = self._page.address
        self._job[code.evict.BASES >> 3] = self._arena.bases
        # Not the same block: rows are changed while others seal.
        self._rows_block = code.new_block(code.rows.SIZE)
        self._rows_at = ctypes.addressof(self._rows_block)
        self._rows = memoryview(self._rows_block).cast("B").cast("Q")

    def directory(self, enclave: int) -> int:
        """Address of the directory of an enclave's rows; 0 if it cannot have one."""
        found = self._directories.get(enclave)
        if found is None:
            pages = self._memfds.file(enclave).size >> PAGE_SHIFT
            found = self._directories[enclave] = self._store.pages(enclave).directory(pages)
        return found

    def forget(self, enclave: int) -> None:
        super().forget(enclave)
        self._directories.pop(enclave, None)

    def out(self, enclave: int, base: int, indices: Sequence[int], flags: Sequence[int]) -> Sequence[int]:
        device = self._memfds.leaving(enclave, indices)
        space = device.only_space()
        hidden = device.hidden and not device.hidden.keys().isdisjoint(indices)
        if space is None or hidden or not self._short_enough(enclave, indices):
            return super().out(enclave, base, indices, flags)
        return self._evict(device, space, enclave, base, indices, flags)

    def _short_enough(self, enclave: int, indices: Sequence[int]) -> bool:
        return len(indices) <= self._code.LENGTH and self.directory(enclave) > 0

    def _evict(
        self,
        device: Device,
        space: AddressSpace,
        enclave: int,
        base: int,
        indices: Sequence[int],
        flags: Sequence[int],
    ) -> Sequence[int]:
        code, job, free = self._code.evict, self._job, self._arena.free
        count = len(indices)
        version = self._versions(count)
        directory = self._directories[enclave]
        _JOB.pack_into(job, 0, count, version, device.memfd, space.uffd, base, enclave, directory)
        job[_column(code.PAGES, count)] = array("Q", indices)
        job[_column(code.WORDS, count)] = array("Q", flags)
        job[_column(code.PLACES, count)] = array("Q", free[: -count - 1 : -1])
        places = free[-count:]
        del free[-count:]
        parted = self._lock.part()
        try:
            error = code.evict(self._job_at)
            if error == code.NO_ROWS:
                self._store.pages(enclave).make_rows(indices)
                error = code.evict(self._job_at)
        finally:
            if parted:
                self._lock.rejoin()
        if error == errno.EPERM:  # sealed they are; to be punched out is all that a program can forbid
            for index in indices:
                revoke.punch(device, index)
        elif error:
            free += places
            raise OSError(error, f"taking out pages of enclave {enclave}: {os.strerror(error)}")
        if job[code.ZEROS >> 3]:
            unused = job[_column(code.PLACES, count)].tolist()
            free += [place for place, at in zip(reversed(places), unused, strict=True) if at == _UNUSED]
        return range(version, version + count)

    def kept(self, enclave: int, indices: Sequence[int], slots: Sequence[int]) -> None:
        if not self._short_enough(enclave, indices):
            super().kept(enclave, indices, slots)
            return
        code, rows, count = self._code.rows, self._rows, len(indices)
        _ROWS.pack_into(rows, 0, count, self._directories[enclave])
        most = self._memfds.file(enclave).maximum.get
        rests = [
            slot << SLOT_SHIFT | most(index, 0) << MOST_SHIFT
            for slot, index in zip(slots, indices, strict=True)
        ]
        rows[_column(code.INDICES, count)] = array("Q", indices)
        rows[_column(code.RESTS, count)] = array("Q", rests)
        stored = code.keep(self._rows_at)
        self._store.pages(enclave).count(count)
        self._store.added(count, stored)

    def arrived(self, enclave: int, indices: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        if not self._short_enough(enclave, indices):
            return super().arrived(enclave, indices)
        code, rows, count = self._code.rows, self._rows, len(indices)
        _ROWS.pack_into(rows, 0, count, self._directories[enclave])
        rows[_column(code.INDICES, count)] = array("Q", indices)
        if code.withdraw(self._rows_at):
            raise KeyError(f"one of {indices} of enclave {enclave} is not in the store")
        self._store.pages(enclave).count(-count)
        self._store.dropped([place - 2 for place in rows[_column(code.PLACES, count)]])
        rests = rows[_column(code.RESTS, count)].tolist()
        return [rest & FLAGS_MASK for rest in rests], [rest >> SLOT_SHIFT for rest in rests]


class LaneAge(PlainAge):
    """The plain look at ages, a batch in one call."""

    def __init__(self, devices: Mapping[int, Device], code: ModuleType) -> None:
        super().__init__(devices)
        self._code = code.look
        self._most = code.LENGTH
        self._block = code.new_block(code.look.SIZE)
        self._block_at = ctypes.addressof(self._block)
        self._words = memoryview(self._block).cast("B").cast("Q")

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        enclave = pages[0].enclave
        indices = [page.index for page in pages if page.enclave is enclave]
        device, count = self._devices[enclave.id], len(pages)
        space = device.only_space()
        hidden = device.hidden and not device.hidden.keys().isdisjoint(indices)
        if space is None or hidden or not len(indices) == count <= self._most:
            return super().young(pages)
        try:
            files = space.open_pagemap(), space.open_pidfd()
        except OSError:  # the mm is just going away
            return super().young(pages)
        code, job, filled = self._code, self._words, device.filled
        _LOOK.pack_into(job, 0, count, *files, pagemap.may_drop(), device.base, space.pid)
        present = _column(code.PRESENT, count)
        job[_column(code.LOOKS, count)] = array("Q", indices)
        job[present] = array("Q", map(filled.__contains__, indices))
        told = code.look(self._block_at)
        found = [*map(bool, job[present])]
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
