"""The backing store: ordinary memory that holds evicted pages, sealed.

Nothing in it is trusted. Each entry is what EWB leaves outside the EPC (the
sealed bytes and the SECINFO flags of the PCMD) and the driver's note of which
VA slot holds the version. Exchange the bytes, the flags, or whole entries: the
next load finds out (spec 6.9, ELDU). Tests do just that.

Sealed bytes lie side by side in chunks of anonymous memory, at addresses that
stay: a page costs its 4112 bytes, a row of 16 bytes that says where, and no object of its
own, and compiled code can seal into place. A page of zeros has no bytes, only a MAC in its entry. Rejected:
one ``bytes`` per page (5 µs of page faults in malloc for each eviction), a file
(slower, and /dev/shm is smaller than memory).

Capacity can be limited, as a memory cgroup would: ``reserve`` then refuses and
the page stays in the EPC. So it does when there is no memory left.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import TypeAlias

from epcgroup.sgx.seal import MAC_SIZE, SEALED_SIZE

_CHUNK_SHIFT = 10
_CHUNK_SLOTS = 1 << _CHUNK_SHIFT
_CHUNK_MASK = _CHUNK_SLOTS - 1
_GROUP_SHIFT = 6
_GROUP_MASK = (1 << _GROUP_SHIFT) - 1
_NO_ROWS = bytes(16 << _GROUP_SHIFT)
# The second word of a row: flags, number of the VA slot, number of the VA page.
_SLOT_SHIFT, _VA_SHIFT = 20, 32
_FLAGS_MASK, _SLOT_MASK = (1 << _SLOT_SHIFT) - 1, 511


#: A page that was just sealed: SECINFO flags, and place and short as an `Evicted` has them.
Sealed: TypeAlias = tuple[int, int, bytes]


class Evicted:
    """One evicted page: where its sealed bytes are, its PCMD flags, its VA slot.

    ``place`` numbers the slot of the arena that holds them, negative for none; then
    ``short`` holds them: the MAC of a page of zeros (or what an attacker put there).
    ``va`` is the number of the EPC page with the VA slot. What is kept of it is a row of
    `EvictedPages`; assign ``flags`` or ``sealed`` to tamper with that.
    """

    __slots__ = ("_arena", "_flags", "_kept", "place", "short", "slot", "va")

    def __init__(
        self, arena: Arena, flags: int, place: int, short: bytes, va: int = 0, slot: int = 0
    ) -> None:
        self._arena = arena
        self._flags = flags
        self._kept: tuple[EvictedPages, int] | None = None
        self.place = place
        self.short = short
        self.va, self.slot = va, slot

    @property
    def flags(self) -> int:
        """SECINFO flags of the PCMD."""
        return self._flags

    @flags.setter
    def flags(self, value: int) -> None:
        self._flags = value
        self._keep()

    @property
    def sealed(self) -> bytes:
        """Ciphertext and MAC."""
        return self.short or bytes(self._arena.view(self.place))

    @sealed.setter
    def sealed(self, value: bytes) -> None:
        if self.place >= 0 and len(value) == SEALED_SIZE:
            self._arena.view(self.place)[:] = value
            self.short = b""
        else:
            self.short = value
        self._keep()

    def _keep(self) -> None:
        if self._kept is not None:
            pages, index = self._kept
            pages[index] = self


class EvictedPages(MutableMapping[int, Evicted]):
    """The evicted pages of one enclave by index; the SECS is -1.

    A page costs two words in an array and no object: an enclave may have millions. Rows lie
    in groups of neighbours, so that an enclave with pages far apart does not pay for the
    addresses between. A row: 0 for none, else 2 + place; flags, slot and VA page.
    """

    __slots__ = ("_arena", "_count", "_groups", "_short")

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._groups: dict[int, array[int]] = {}
        self._short: dict[int, bytes] = {}
        self._count = 0

    def __setitem__(self, index: int, entry: Evicted) -> None:
        if index in self:
            self.take((index,))
        self.put((index,), ((entry._flags, entry.place, entry.short),), ((entry.va, entry.slot),))

    def put(self, indices: Iterable[int], sealed: Iterable[Sealed], slots: Iterable[tuple[int, int]]) -> int:
        """Keep pages that are not there yet; how many of them have a place."""
        groups, short_ones = self._groups, self._short
        before, stored = self._count, 0
        for index, (flags, place, short), (va, slot) in zip(indices, sealed, slots, strict=True):
            rows = groups.get(index >> _GROUP_SHIFT)
            if rows is None:
                rows = groups[index >> _GROUP_SHIFT] = array("Q", _NO_ROWS)
            at = (index & _GROUP_MASK) * 2
            rows[at] = place + 2
            rows[at + 1] = flags | slot << _SLOT_SHIFT | va << _VA_SHIFT
            if short:
                short_ones[index] = short
            else:
                stored += 1
            before += 1
        self._count = before
        return stored

    def find(self, index: int) -> Evicted | None:
        """What is known of page ``index``; None if it is not evicted."""
        rows = self._groups.get(index >> _GROUP_SHIFT)
        if rows is None:
            return None
        at = (index & _GROUP_MASK) * 2
        place, rest = rows[at], rows[at + 1]
        if not place:
            return None
        entry = Evicted(
            self._arena,
            rest & _FLAGS_MASK,
            place - 2,
            self._short.get(index, b""),
            rest >> _VA_SHIFT,
            rest >> _SLOT_SHIFT & _SLOT_MASK,
        )
        entry._kept = self, index
        return entry

    def __getitem__(self, index: int) -> Evicted:
        entry = self.find(index)
        if entry is None:
            raise KeyError(index)
        return entry

    def __delitem__(self, index: int) -> None:
        self.take((index,))

    def take(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Forget pages; their places, negative for none, and what else is in the rows.

        KeyError if one is not evicted.
        """
        groups, short = self._groups, self._short
        places, rest = [], []
        try:
            for index in indices:
                rows = groups.get(index >> _GROUP_SHIFT)
                at = (index & _GROUP_MASK) * 2
                if rows is None or not (place := rows[at]):
                    raise KeyError(index)
                rows[at] = 0
                places.append(place - 2)
                rest.append(rows[at + 1])
                if short:
                    short.pop(index, None)
        finally:
            self._count -= len(places)
        return places, rest

    def __iter__(self) -> Iterator[int]:
        for number, rows in self._groups.items():
            first = number << _GROUP_SHIFT
            yield from (first + row for row, place in enumerate(rows[::2]) if place)

    def __len__(self) -> int:
        return self._count


class Arena:
    """Memory for sealed pages in slots of SEALED_SIZE bytes, which never move."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap | None] = []
        self._views: list[memoryview] = []
        self._bases: list[int] = []
        self.free: list[int] = []  # the last one is used next

    def __len__(self) -> int:
        """Chunks held."""
        return len(self._chunks) - self._chunks.count(None)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return (len(self) << _CHUNK_SHIFT) - len(self.free)

    def grow(self) -> bool:
        """A chunk more; False if there is no memory."""
        try:
            chunk = mmap.mmap(-1, _CHUNK_SLOTS * SEALED_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            return False
        number = self._chunks.index(None) if None in self._chunks else len(self._chunks)
        if number == len(self._chunks):
            self._chunks.append(None)
            self._views.append(memoryview(b""))
            self._bases.append(0)
        self._chunks[number] = chunk
        self._views[number] = memoryview(chunk)
        self._bases[number] = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
        first = number << _CHUNK_SHIFT
        self.free += range(first + _CHUNK_SLOTS - 1, first - 1, -1)
        return True

    def view(self, place: int) -> memoryview:
        """The bytes of a slot."""
        at = (place & _CHUNK_MASK) * SEALED_SIZE
        return self._views[place >> _CHUNK_SHIFT][at : at + SEALED_SIZE]

    def address(self, place: int) -> int:
        """Where a slot begins in our memory."""
        return self._bases[place >> _CHUNK_SHIFT] + (place & _CHUNK_MASK) * SEALED_SIZE

    def addresses(self, places: Iterable[int]) -> list[int]:
        """As address, of each."""
        bases = self._bases
        return [bases[p >> _CHUNK_SHIFT] + (p & _CHUNK_MASK) * SEALED_SIZE for p in places]

    def trim(self) -> None:
        """Give back the chunks that hold nothing."""
        if len(self.free) < _CHUNK_SLOTS:
            return  # not one chunk of them
        unused = [0] * len(self._chunks)
        for place in self.free:
            unused[place >> _CHUNK_SHIFT] += 1
        empty = {number for number, count in enumerate(unused) if count == _CHUNK_SLOTS}
        if not empty:
            return
        self.free = [place for place in self.free if place >> _CHUNK_SHIFT not in empty]
        for number in empty:
            self._views[number].release()
            self._bases[number] = 0
            self._chunks[number] = None  # unmapped with the last reference to it


class BackingStore:
    """Evicted pages of all enclaves. ``limit`` in bytes, None for no limit."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0  # bytes of sealed pages
        self.arena = Arena()
        self._entries: dict[int, EvictedPages] = {}
        self._promised = 0

    def reserve_all(self, pages: int) -> bool:
        """As reserve for so many, if that is sure to succeed; False: one by one may get further."""
        if self.limit is not None or len(self.arena.free) < self._promised + pages:
            return False
        self._promised += pages
        return True

    def reserve(self, enclave: int, index: int) -> bool:  # noqa: ARG002 - for stores that choose
        """Have room for this page too; False when the limit is reached or memory is short.

        Pages are added in the order in which room was reserved for them.
        """
        promised = self._promised + 1
        if self.limit is not None and self.used + promised * SEALED_SIZE > self.limit:
            return False
        if len(self.arena.free) < promised and not self.arena.grow():
            return False
        self._promised = promised
        return True

    def pages(self, enclave: int) -> EvictedPages:
        """Evicted pages of one enclave by index; the SECS is -1."""
        pages = self._entries.get(enclave)
        if pages is None:
            pages = self._entries[enclave] = EvictedPages(self.arena)
        return pages

    def add(self, enclave: int, index: int, entry: Evicted) -> None:
        """Keep an entry that was made on a reservation."""
        self._promised -= 1
        self.pages(enclave)[index] = entry
        self.used += SEALED_SIZE if entry.place >= 0 else MAC_SIZE

    def add_all(
        self,
        enclave: int,
        indices: Sequence[int],
        sealed: Sequence[Sealed],
        slots: Iterable[tuple[int, int]],
    ) -> None:
        """As add, for each of these pages with its VA page and slot."""
        count = len(indices)
        self._promised -= count
        stored = self.pages(enclave).put(indices, sealed, slots)
        self.used += stored * SEALED_SIZE + (count - stored) * MAC_SIZE

    def get(self, enclave: int, index: int) -> Evicted | None:
        """What is known of an evicted page."""
        pages = self._entries.get(enclave)
        return pages.find(index) if pages is not None else None

    def remove(self, enclave: int, index: int) -> None:
        """The page was loaded: its copy is truncated (ALLOC-40)."""
        self._drop(self._entries[enclave].take((index,))[0])

    def withdraw(self, enclave: int, indices: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """As get and remove, for pages whose contents are back: their flags, numbers of VA page and slot.

        KeyError if nothing is known of one.
        """
        places, rest = self._entries[enclave].take(indices)
        self._drop(places)
        slots = [(row >> _VA_SHIFT, row >> _SLOT_SHIFT & _SLOT_MASK) for row in rest]
        return [row & _FLAGS_MASK for row in rest], slots

    def forget(self, enclave: int) -> None:
        """Drop everything of an enclave."""
        pages = self._entries.pop(enclave, None)
        if pages is not None:
            self._drop(pages.take(list(pages))[0])
        self.arena.trim()

    def _drop(self, places: list[int]) -> None:
        stored = places if min(places, default=0) >= 0 else [place for place in places if place >= 0]
        self.arena.free += stored
        self.used -= len(stored) * SEALED_SIZE + (len(places) - len(stored)) * MAC_SIZE
