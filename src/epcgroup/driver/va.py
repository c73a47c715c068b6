"""Version-array pages: where the version of each evicted page is kept.

A VA page is an EPC page of 512 eight-byte slots that never leaves the EPC
(spec 2.7). The version in the slot is what makes a replayed page fail. Choice
of slots is the kernel's (EPC-44): the first page of the list, its lowest free
slot; a page that became full goes to the tail, a page that got a slot back to
the head.

All of it lies in words at addresses that stay, so that compiled code
(`live.paging.compiled.slots`) takes and gives slots as this file does, in the very same words.
Slots are numbered through all VA pages of an enclave: 512 times the place of the page in the
directory, and the place in it. Rejected: an OrderedDict of bit maps (half a microsecond for each slot).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from epcgroup.epc import VA_INDEX, EpcPage
from epcgroup.epc.pages import VA_SLOTS
from epcgroup.errors import InternalError

assert VA_INDEX < 0

# Words of a VA page: its versions, zero where free, and
FREE: Final = VA_SLOTS  # a bit map of the free slots,
_MAP_WORDS = VA_SLOTS // 64
UNUSED: Final = FREE + _MAP_WORDS  # how many these are,
BEFORE: Final = UNUSED + 1  # its neighbours in the list, by their places in the directory; NOBODY for none
AFTER: Final = BEFORE + 1
_PAGE_WORDS = AFTER + 1
# Words of an enclave: the ends of the list,
HEAD: Final = 0
TAIL: Final = 1
IN_USE: Final = 2  # slots that hold a version,
DIRECTORY: Final = 3  # the address of the directory, a list of the addresses of VA pages
NOBODY: Final = -1

_SHIFT = VA_SLOTS.bit_length() - 1
_MASK = VA_SLOTS - 1
_WORD = (1 << 64) - 1
_SIGN = 1 << 63


class VaSlots:
    """The VA pages of one enclave."""

    __slots__ = ("_directory", "_numbers", "_pages", "_words")

    def __init__(self) -> None:
        self._pages: list[array[int] | None] = []
        self._numbers: dict[int, int] = {}  # number of the EPC page -> place in the directory
        self._directory = array("q")
        self._words = array("q", (NOBODY, NOBODY, 0, 0))

    @property
    def address(self) -> int:
        """Where the words of the enclave are."""
        return self._words.buffer_info()[0]

    @property
    def in_use(self) -> int:
        """Slots that hold a version."""
        return self._words[IN_USE]

    def follow(self, pages: Iterable[EpcPage]) -> None:
        """Take note of VA pages the engine has allocated since; new ones go to the head."""
        for page in pages:
            if page.number not in self._numbers:
                self._add(page.number)

    def _add(self, number: int) -> None:
        words = array("q", bytes(8 * _PAGE_WORDS))
        words[FREE:UNUSED] = array("q", (-1,) * _MAP_WORDS)
        words[UNUSED] = VA_SLOTS
        if None in self._pages:
            place = self._pages.index(None)
        else:
            place = len(self._pages)
            self._pages.append(None)
            self._directory.append(0)
            self._words[DIRECTORY] = self._directory.buffer_info()[0]
        self._pages[place] = words
        self._directory[place] = words.buffer_info()[0]
        self._numbers[number] = place
        self._link(place, words, first=True)

    def forget(self, number: int) -> None:
        """The engine frees a VA page. Raises InternalError while a slot is in use."""
        place = self._numbers.get(number)
        if place is None:
            return
        page = self._page(place)
        if page[UNUSED] < VA_SLOTS:
            raise InternalError(f"VA page {number} is freed with versions in it")
        self._unlink(page)
        del self._numbers[number]
        self._pages[place] = None

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, versions: Sequence[int]) -> list[int]:
        """Store versions in free slots, in order; the numbers of the slots."""
        taken: list[int] = []
        for version in versions:
            place = self._words[HEAD]
            page = self._page(place) if place >= 0 else None
            if page is None or not page[UNUSED]:
                raise InternalError("no free VA slot: the engine allocated too few VA pages")
            at = FREE
            while not page[at]:
                at += 1
            free = page[at] & _WORD
            slot = (at - FREE << 6) + (free & -free).bit_length() - 1
            page[at] = _signed(free & (free - 1))
            page[slot] = version
            page[UNUSED] -= 1
            taken.append((place << _SHIFT) + slot)
            if not page[UNUSED]:
                self._unlink(page)
                self._link(place, page, first=False)
        self._words[IN_USE] += len(taken)
        return taken

    def version(self, slot: int) -> int:
        """What is stored in a slot."""
        return self._page(slot >> _SHIFT)[slot & _MASK]

    def give(self, slots: Sequence[int]) -> None:
        """Free slots, in order."""
        for number in slots:
            place, slot = number >> _SHIFT, number & _MASK
            page = self._page(place)
            at = FREE + (slot >> 6)
            page[at] = _signed((page[at] & _WORD) | 1 << (slot & 63))
            page[slot] = 0
            page[UNUSED] += 1
            if self._words[HEAD] != place:
                self._unlink(page)
                self._link(place, page, first=True)
        self._words[IN_USE] -= len(slots)

    def clear(self) -> None:
        """The enclave is gone: every version is forgotten."""
        self.__init__()  # type: ignore[misc]

    def _page(self, place: int) -> array[int]:
        page = self._pages[place]
        assert page is not None
        return page

    def _unlink(self, page: array[int]) -> None:
        before, after = page[BEFORE], page[AFTER]
        if before == NOBODY:
            self._words[HEAD] = after
        else:
            self._page(before)[AFTER] = after
        if after == NOBODY:
            self._words[TAIL] = before
        else:
            self._page(after)[BEFORE] = before

    def _link(self, place: int, page: array[int], *, first: bool) -> None:
        end, there, back = (HEAD, AFTER, BEFORE) if first else (TAIL, BEFORE, AFTER)
        other = self._words[end]
        page[there], page[back] = other, NOBODY
        self._words[end] = place
        if other == NOBODY:
            self._words[TAIL if first else HEAD] = place
        else:
            self._page(other)[back] = place


def _signed(word: int) -> int:
    return (word ^ _SIGN) - _SIGN
