"""Version-array pages: where the version of each evicted page is kept.

A VA page is an EPC page of 512 eight-byte slots that never leaves the EPC
(spec 2.7). The version in the slot is what makes a replayed page fail. Choice
of slots is the kernel's (EPC-44): the first page of the list, its lowest free
slot; a page that became full goes to the tail, a page that got a slot back to
the head. Slots are numbered through all VA pages: 512 times the number of the EPC page,
and the place in it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

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

    __slots__ = ("_pages", "in_use")

    def __init__(self) -> None:
        self._pages: OrderedDict[int, VaPage] = OrderedDict()  # by number; the first one is used next
        self.in_use = 0

    def follow(self, pages: Iterable[EpcPage]) -> None:
        """Take note of VA pages the engine has allocated since; new ones go to the head."""
        for page in pages:
            if page.number not in self._pages:
                self._pages[page.number] = VaPage(page.number)
                self._pages.move_to_end(page.number, last=False)

    def forget(self, number: int) -> None:
        """The engine frees a VA page. Raises InternalError while a slot is in use."""
        page = self._pages.get(number)
        if page is None:
            return
        if page.free != _ALL_FREE:
            raise InternalError(f"VA page {number} is freed with versions in it")
        del self._pages[number]

    def __len__(self) -> int:
        return len(self._pages)

    def take(self, versions: Sequence[int]) -> list[int]:
        """Store versions in free slots, in order; the numbers of the slots."""
        taken: list[int] = []
        pages = self._pages
        page: VaPage | None = None
        for version in versions:
            if page is None:
                page = next(iter(pages.values()), None)
                if page is None or not page.free:
                    raise InternalError("no free VA slot: the engine allocated too few VA pages")
                first, free, kept = page.number * VA_SLOTS, page.free, page.versions
            lowest = free & -free
            free ^= lowest
            slot = lowest.bit_length() - 1
            kept[slot] = version
            taken.append(first + slot)
            if not free:
                page.free = 0
                pages.move_to_end(page.number)
                page = None
        if page is not None:
            page.free = free
        self.in_use += len(taken)
        return taken

    def version(self, slot: int) -> int:
        """What is stored in a slot."""
        number, slot = divmod(slot, VA_SLOTS)
        return self._pages[number].versions[slot]

    def give(self, slots: Sequence[int]) -> None:
        """Free slots, in order."""
        pages, head = self._pages, -1
        for slot in slots:
            number = slot // VA_SLOTS
            page = pages[number]
            page.free |= 1 << slot % VA_SLOTS
            page.versions[slot % VA_SLOTS] = 0
            if number != head:
                pages.move_to_end(number, last=False)
                head = number
        self.in_use -= len(slots)

    def clear(self) -> None:
        """The enclave is gone: every version is forgotten."""
        self._pages.clear()
        self.in_use = 0
