"""What is known of evicted pages: a row of words for each, which compiled code reads and writes too.

A page that lanes (live.paging.express) may load, and what a round of eviction has sealed, is
found and changed there without Python, page by page, in the very rows that Python uses.
Rejected: a table for compiled code beside the rows, which Python had to fill and to empty.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Final

from epcgroup.driver.arena import reserved
from epcgroup.sgx.seal import MAC_SIZE, SEALED_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.arena import Arena

GROUP_SHIFT: Final = 6
_GROUP_MASK = (1 << GROUP_SHIFT) - 1
_LARGEST = 1 << 26  # groups of an enclave that has a directory of them: 16 TiB of enclave

# Words of a row.
PLACE: Final = 0  # 0: no row, 1: no place (a page of zeros), else the place + 2; negative: see EvictedPages
REST: Final = 1  # what is fixed: flags, the most that a mapping may allow (for lanes), VA slot
VERSION: Final = 2  # that of the VA slot once more, for lanes
MAC: Final = 3  # two words, of a page of zeros
ROW: Final = 5
NO_PLACE: Final = 1
FLAGS_MASK: Final = 0xFFFF
MOST_SHIFT: Final = 16
SLOT_SHIFT: Final = 20
_NO_ROWS = bytes(8 * ROW << GROUP_SHIFT)


class Evicted:
    """One evicted page: where its sealed bytes are, its PCMD flags, its VA slot.

    ``place`` numbers the slot of the arena that holds them, negative for none; then
    ``short`` holds them: the MAC of a page of zeros (or what an attacker put there).
    ``slot`` is as `VaSlots` numbers them, ``version`` what lanes believe to be in it. What is
    kept of all this is a row of `EvictedPages`; assign ``flags`` or ``sealed`` to tamper with that.
    """

    __slots__ = ("_arena", "_flags", "_kept", "place", "short", "slot", "version")

    def __init__(
        self, arena: Arena, flags: int, place: int, short: bytes, slot: int = 0, version: int = 0
    ) -> None:
        self._arena = arena
        self._flags = flags
        self._kept: tuple[EvictedPages, int] | None = None
        self.place = place
        self.short = short
        self.slot, self.version = slot, version

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

    A page costs five words in an array and no object: an enclave may have millions. Rows lie
    in groups of neighbours, so that an enclave with pages far apart does not pay for the
    addresses between. A row with a negative place is that of a page between two places: sealed
    and not kept yet, or loaded by a lane and not withdrawn yet. It counts as none.
    """

    __slots__ = ("_arena", "_count", "_directory", "_groups", "_odd")

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._groups: dict[int, array[int]] = {}
        self._directory: memoryview | None = None
        self._odd: dict[int, bytes] = {}  # what an attacker put in the place of sealed bytes, of another size
        self._count = 0

    def directory(self, pages: int) -> int:
        """Address of a list of the addresses of all groups (0: none yet) of an enclave of so many pages.

        0 where there is no memory for one.
        """
        if self._directory is None:
            groups = (pages >> GROUP_SHIFT) + 1
            if groups > _LARGEST:
                return 0
            try:
                self._directory = memoryview(reserved(8 * groups)).cast("Q")
            except OSError:
                return 0
            for number in self._groups:
                self._tell(number)
        return ctypes.addressof(ctypes.c_char.from_buffer(self._directory))

    def make_rows(self, indices: Iterable[int]) -> None:
        """Have rows for these pages."""
        for number in {index >> GROUP_SHIFT for index in indices}:
            if number not in self._groups:
                self._groups[number] = array("q", _NO_ROWS)
                self._tell(number)

    def _tell(self, number: int) -> None:
        if self._directory is not None and 0 <= number < len(self._directory):
            self._directory[number] = self._groups[number].buffer_info()[0]

    def _row(self, index: int) -> tuple[array[int] | None, int]:
        return self._groups.get(index >> GROUP_SHIFT), (index & _GROUP_MASK) * ROW

    def prepare(self, index: int, flags: int, place: int, short: bytes, version: int) -> None:
        """Page ``index``, which is not here, is sealed, and on its way (`keep`)."""
        rows, at = self._row(index)
        if rows is None:
            self.make_rows((index,))
            rows = self._groups[index >> GROUP_SHIFT]
        rows[at + PLACE] = -2 - place
        rows[at + REST] = flags
        rows[at + VERSION] = version
        if not short:
            return
        if len(short) == MAC_SIZE and place < 0:
            rows[at + MAC : at + ROW] = array("q", short)
        else:
            self._odd[index] = short
            rows[at + VERSION] = 0  # lanes shall not take what lies in the place

    def allow(self, indices: Iterable[int], mosts: Iterable[int]) -> None:
        """Of pages that are ready: the most that a mapping of each may allow. No lane loads others."""
        for index, most in zip(indices, mosts, strict=True):
            rows, at = self._row(index)
            assert rows is not None
            rows[at + REST] |= most << MOST_SHIFT

    def keep(self, indices: Iterable[int], slots: Iterable[int]) -> int:
        """Pages that are ready have arrived, with their VA slots; how many of them have a place."""
        groups, count, stored = self._groups, 0, 0
        for index, slot in zip(indices, slots, strict=True):
            rows = groups[index >> GROUP_SHIFT]
            at = (index & _GROUP_MASK) * ROW
            rows[at] = place = -rows[at]
            rows[at + REST] |= slot << SLOT_SHIFT
            count += 1
            stored += place > NO_PLACE
        self._count += count
        return stored

    def count(self, pages: int) -> None:
        """So many came (or went) by other hands."""
        self._count += pages

    def __setitem__(self, index: int, entry: Evicted) -> None:
        if index in self:
            self.take((index,))
        self.prepare(index, entry._flags, entry.place, entry.short, entry.version)
        self.keep((index,), (entry.slot,))

    def find(self, index: int, *, ready: bool = False) -> Evicted | None:
        """What is known of page ``index``; None if it is not evicted. ``ready``: one on its way here."""
        rows, at = self._row(index)
        place = 0 if rows is None else -rows[at] if ready else rows[at]
        if rows is None or place <= 0:
            return None
        short = self._odd.get(index) if self._odd else None
        if short is None:
            short = rows[at + MAC : at + ROW].tobytes() if place == NO_PLACE else b""
        rest = rows[at + REST]
        slot, version = rest >> SLOT_SHIFT, rows[at + VERSION]
        entry = Evicted(self._arena, rest & FLAGS_MASK, place - 2, short, slot, version)
        entry._kept = None if ready else (self, index)
        return entry

    def __getitem__(self, index: int) -> Evicted:
        entry = self.find(index)
        if entry is None:
            raise KeyError(index)
        return entry

    def __delitem__(self, index: int) -> None:
        self.take((index,))

    def take(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Forget pages, also those on their way from here: places (negative for none), flags with VA slots.

        KeyError if one is not evicted.
        """
        groups, odd = self._groups, self._odd
        places, rest = [], []
        try:
            for index in indices:
                rows = groups.get(index >> GROUP_SHIFT)
                at = (index & _GROUP_MASK) * ROW
                if rows is None or not (place := abs(rows[at])):
                    raise KeyError(index)
                rows[at] = 0
                places.append(place - 2)
                rest.append(rows[at + REST])
                if odd:
                    odd.pop(index, None)
        finally:
            self._count -= len(places)
        return places, rest

    def __iter__(self) -> Iterator[int]:
        for number, rows in self._groups.items():
            first = number << GROUP_SHIFT
            yield from (first + row for row, place in enumerate(rows[::ROW]) if place > 0)

    def __len__(self) -> int:
        return self._count
