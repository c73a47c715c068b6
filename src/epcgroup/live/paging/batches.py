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
import os
import struct
from array import array
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING

from epcgroup.driver.mover import PlainMover
from epcgroup.errors import InternalError
from epcgroup.live.paging import pagemap, revoke, uffd
from epcgroup.live.paging.age import PlainAge
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from epcgroup.driver import BackingStore
    from epcgroup.driver.va import VaSlots
    from epcgroup.epc import EpcPage
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.frames import MemfdFrames
    from epcgroup.live.paging.lock import MachineLock
    from epcgroup.live.paging.mm import AddressSpace
    from epcgroup.sgx.seal import PageSealer

# As `compiled` numbers the words of a job of eviction, of a batch of rows and of a look.
_JOB, _ROWS, _LOOK = struct.Struct("<7q"), struct.Struct("<3q"), struct.Struct("<6q")
_ENCLAVE, _INDEX = attrgetter("enclave"), attrgetter("index")


class _Block:
    """A block of words for machine code. Columns are named by their offsets in bytes, as `compiled` does."""

    __slots__ = ("_owner", "address", "words")

    def __init__(self, code: ModuleType, size: int) -> None:
        self._owner = code.new_block(size)
        self.address = ctypes.addressof(self._owner)
        self.words = memoryview(self._owner).cast("B").cast("q")

    def put(self, column: int, values: Iterable[int], count: int) -> None:
        """The first words of a column."""
        column >>= 3
        self.words[column : column + count] = array("q", values)

    def get(self, column: int, count: int) -> list[int]:
        """The same."""
        column >>= 3
        return self.words[column : column + count].tolist()


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
        self._job = _Block(code, code.evict.SIZE)
        self._job.words[code.evict.SEALING >> 3] = code.ciphers.new_cipher(sealer.key, sealing=True)
        self._job.words[code.evict.PLAIN >> 3] = self._page.address
        self._job.words[code.evict.BASES >> 3] = self._arena.bases
        self._done: tuple[int, Sequence[int]] = -1, ()  # the pages of the last job, until they are kept
        self._rows = _Block(code, code.rows.SIZE)  # not the same block: rows are changed while others seal

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
            versions = super().out(enclave, base, indices, flags)
            self._store.pages(enclave).allow(indices, self._mosts(enclave, indices))
            return versions
        return self._evict(device, space, enclave, base, indices, flags)

    def _mosts(self, enclave: int, indices: Sequence[int]) -> Iterator[int]:
        """The most that a mapping of each page may allow."""
        return map(self._memfds.file(enclave).maximum.get, indices, repeat(0))

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
        places = free[: -count - 1 : -1]
        del free[-count:]
        head = count, version, device.memfd, space.uffd, base, enclave, self._directories[enclave]
        _JOB.pack_into(job.words, 0, *head)
        job.put(code.PAGES, indices, count)
        job.put(code.WORDS, flags, count)
        job.put(code.MOSTS, self._mosts(enclave, indices), count)
        job.put(code.PLACES, places, count)
        parted = self._lock.part()
        try:
            error = code.evict(job.address)
            if error == code.NO_ROWS:
                self._store.pages(enclave).make_rows(indices)
                error = code.evict(job.address)
        finally:
            if parted:
                self._lock.rejoin()
        if error == errno.EPERM:  # sealed they are; to be punched out is all that a program can forbid
            for index in indices:
                revoke.punch(device, index)
        elif error:
            free += reversed(places)
            raise OSError(error, f"taking out pages of enclave {enclave}: {os.strerror(error)}")
        if job.words[code.ZEROS >> 3]:
            left = zip(reversed(places), reversed(job.get(code.PLACES, count)), strict=True)
            free += [place for place, used in left if used < 0]
        self._done = enclave, indices
        return range(version, version + count)

    def kept(self, enclave: int, indices: Sequence[int], versions: Sequence[int], slots: VaSlots) -> None:
        done, self._done = self._done, (-1, ())
        if done != (enclave, indices):  # not those of the last job, or not together
            super().kept(enclave, indices, versions, slots)
            return
        code, job, count = self._code.evict, self._job, len(indices)
        job.words[code.VA >> 3] = slots.address
        stored = code.keep(job.address)
        if stored < 0:
            raise InternalError("no free VA slot: the engine allocated too few VA pages")
        self._store.pages(enclave).count(count)
        self._store.added(count, stored)

    def arrived(self, enclave: int, indices: Sequence[int], slots: VaSlots) -> Sequence[int]:
        if not self._short_enough(enclave, indices):
            return super().arrived(enclave, indices, slots)
        code, rows, count = self._code.rows, self._rows, len(indices)
        _ROWS.pack_into(rows.words, 0, count, self._directories[enclave], slots.address)
        rows.put(code.INDICES, indices, count)
        if code.withdraw(rows.address):
            raise KeyError(f"one of {indices} of enclave {enclave} is not in the store")
        self._store.pages(enclave).count(-count)
        self._store.dropped(rows.get(code.PLACES, count))
        return rows.get(code.FLAGS, count)


class LaneAge(PlainAge):
    """The plain look at ages, a batch in one call."""

    def __init__(self, devices: Mapping[int, Device], code: ModuleType) -> None:
        super().__init__(devices)
        self._code = code.look
        self._most = code.LENGTH
        self._job = _Block(code, code.look.SIZE)

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        enclave, count = pages[0].enclave, len(pages)
        device, indices = self._devices[enclave.id], [*map(_INDEX, pages)]
        space = device.only_space()
        hidden = device.hidden and not device.hidden.keys().isdisjoint(indices)
        if space is None or hidden or count > self._most or {*map(_ENCLAVE, pages)} != {enclave}:
            return super().young(pages)
        try:
            files = space.open_pagemap(), space.open_pidfd()
        except OSError:  # the mm is just going away
            return super().young(pages)
        code, job = self._code, self._job
        _LOOK.pack_into(job.words, 0, count, *files, pagemap.may_drop(), device.base, space.pid)
        job.put(code.LOOKS, indices, count)
        told = code.look(job.address)
        found = [*map(bool, job.get(code.PRESENT, count))]
        if device.filled:
            device.filled.difference_update(indices)
        if told < 0:
            pagemap.cannot_drop(-told)
        if told == code.KEPT or told == -errno.EPERM:
            self.set_aside(device, [index for index, young in zip(indices, found, strict=True) if young])
        touched = self._touched(device, indices)
        if touched:
            return [young or index in touched for index, young in zip(indices, found, strict=True)]
        return found


__all__ = ["LaneAge", "LaneMover"]
