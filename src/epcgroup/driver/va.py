"""Version-array pages: where the version of each evicted page is kept.

A VA page is an EPC page of 512 eight-byte slots that never leaves the EPC
(spec 2.7). The version in the slot is what makes a replayed page fail. Choice
of slots is the kernel's (EPC-44): the first page of the list, its lowest free
slot; a page that became full goes to the tail, a page that got a slot back to
the head.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from epcgroup.epc import VA_INDEX, EpcPage
from epcgroup.epc.pages import VA_SLOTS
from epcgroup.errors import InternalError

assert VA_INDEX < 0
_ALL_FREE = (1 << VA_SLOTS) - 1


class VaPage:
    """One VA page: ``versions`` by slot, zero where free; ``free`` is a bit map."""

    __slots__ = ("free", "number", "versions")

    def __init__(self, number: int) -> None:
        self.number = number  # of the EPC page
        self.free = _ALL_FREE
        self.versions = array("Q", bytes(8 * VA_SLOTS))


class VaSlots:
    """The VA pages of one enclave."""

    __slots__ = ("_by_number", "_pages", "in_use")

    def __init__(self) -> None:
        self._pages: list[VaPage] = []
        self._by_number: dict[int, VaPage] = {}
        self.in_use = 0

    def follow(self, pages: Iterable[EpcPage]) -> None:
        """Take note of VA pages the engine has allocated since; new ones go to the head."""
        for page in pages:
            if page.number not in self._by_number:
                self._by_number[page.number] = made = VaPage(page.number)
                self._pages.insert(0, made)

    def forget(self, number: int) -> None:
        """The engine frees a VA page. Raises InternalError while a slot is in use."""
        page = self._by_number.get(number)
        if page is None:
            return
        if page.free != _ALL_FREE:
            raise InternalError(f"VA page {number} is freed with versions in it")
        self._pages.remove(page)
        del self._by_number[number]

    def __len__(self) -> int:
        return len(self._pages)

    def take(self, version: int) -> tuple[int, int]:
        """Store ``version`` in a free slot; the numbers of the page and of the slot."""
        if not self._pages or not self._pages[0].free:
            raise InternalError("no free VA slot: the engine allocated too few VA pages")
        page = self._pages[0]
        lowest = page.free & -page.free
        page.free ^= lowest
        slot = lowest.bit_length() - 1
        page.versions[slot] = version
        if not page.free:
            self._pages.append(self._pages.pop(0))
        self.in_use += 1
        return page.number, slot

    def version(self, number: int, slot: int) -> int:
        """What is stored in a slot of page ``number``."""
        return self._by_number[number].versions[slot]

    def give(self, number: int, slot: int) -> None:
        """Free a slot."""
        page = self._by_number[number]
        page.free |= 1 << slot
        page.versions[slot] = 0
        self.in_use -= 1
        if self._pages[0] is not page:
            self._pages.remove(page)
            self._pages.insert(0, page)

    def clear(self) -> None:
        """The enclave is gone: every version is forgotten."""
        self._pages.clear()
        self._by_number.clear()
        self.in_use = 0
