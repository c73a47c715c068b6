"""VA slots in machine code: taken and given in the words of `epcgroup.driver.va`, as that file does."""

from __future__ import annotations

from typing import Final

from epcgroup.driver.va import AFTER, BEFORE, DIRECTORY, FREE, HEAD, IN_USE, NOBODY, TAIL, UNUSED
from epcgroup.epc.pages import VA_SLOTS
from epcgroup.live.paging.compiled.calls import peek, poke, trailing_zeros
from epcgroup.sim.compiler.jit import part

NO_SLOT: Final = -1

_SLOT: Final = VA_SLOTS - 1
_SHIFT: Final = VA_SLOTS.bit_length() - 1
_HEAD: Final = HEAD << 3
_TAIL: Final = TAIL << 3
_IN_USE: Final = IN_USE << 3
_DIRECTORY: Final = DIRECTORY << 3
_FREE: Final = FREE << 3
_UNUSED: Final = UNUSED << 3
_BEFORE: Final = BEFORE << 3
_AFTER: Final = AFTER << 3


@part
def _page_at(slots: int, place: int) -> int:
    """Address of a VA page."""
    return peek(peek(slots + _DIRECTORY) + (place << 3))  # type: ignore[no-any-return]


@part
def _unlink(slots: int, page: int) -> int:
    before, after = peek(page + _BEFORE), peek(page + _AFTER)
    poke(slots + _HEAD if before == NOBODY else _page_at(slots, before) + _AFTER, after)
    poke(slots + _TAIL if after == NOBODY else _page_at(slots, after) + _BEFORE, before)
    return 0


@part
def _link(slots: int, place: int, page: int, end: int, other_end: int, there: int, back: int) -> int:
    """Put a page to one ``end`` of the list; ``there`` and ``back`` are how it is linked from that end."""
    other = peek(slots + end)
    poke(page + there, other)
    poke(page + back, NOBODY)
    poke(slots + end, place)
    poke(slots + other_end if other == NOBODY else _page_at(slots, other) + back, place)
    return 0


@part
def take(slots: int, version: int) -> int:
    """Store a version: the number of its slot, NO_SLOT if none is free."""
    place = peek(slots + _HEAD)
    if place == NOBODY:
        return NO_SLOT
    page = _page_at(slots, place)
    unused = peek(page + _UNUSED)
    if not unused:
        return NO_SLOT
    word = 0
    while not peek(page + _FREE + (word << 3)):
        word += 1
    free = peek(page + _FREE + (word << 3))
    slot = (word << 6) + trailing_zeros(free)
    poke(page + _FREE + (word << 3), free & (free - 1))
    poke(page + (slot << 3), version)
    poke(page + _UNUSED, unused - 1)
    poke(slots + _IN_USE, peek(slots + _IN_USE) + 1)
    if unused == 1:
        _unlink(slots, page)
        _link(slots, place, page, _TAIL, _HEAD, _BEFORE, _AFTER)
    return (place << _SHIFT) + slot  # type: ignore[no-any-return]


@part
def give(slots: int, number: int) -> int:
    """Free a slot."""
    place, slot = number >> _SHIFT, number & _SLOT
    page = _page_at(slots, place)
    word = page + _FREE + (slot >> 6 << 3)
    poke(word, peek(word) | 1 << (slot & 63))
    poke(page + (slot << 3), 0)
    poke(page + _UNUSED, peek(page + _UNUSED) + 1)
    poke(slots + _IN_USE, peek(slots + _IN_USE) - 1)
    if peek(slots + _HEAD) != place:
        _unlink(slots, page)
        _link(slots, place, page, _HEAD, _TAIL, _AFTER, _BEFORE)
    return 0
