"""Machine code takes and gives VA slots in the words that Python takes and gives them in."""

from __future__ import annotations

import ctypes
import random
from array import array

from epcgroup.driver import BackingStore
from epcgroup.driver.evicted import SLOT_SHIFT
from epcgroup.driver.va import VaSlots
from epcgroup.epc import EpcPage
from epcgroup.live.paging import compiled
from epcgroup.live.paging.compiled import evict, rows, slots

ENCLAVE = 1
PAGES = 2048


def machine_code(store: BackingStore, va: VaSlots, indices: list[int], *, taking: bool) -> int:
    code = evict if taking else rows
    block = compiled.new_block(code.SIZE)
    words = memoryview(block).cast("B").cast("q")
    first = (evict.PAGES if taking else rows.INDICES) >> 3
    words[code.COUNT >> 3] = len(indices)
    words[code.DIRECTORY >> 3] = store.pages(ENCLAVE).directory(PAGES)
    words[code.VA >> 3] = va.address
    words[first : first + len(indices)] = array("q", indices)
    return (evict.keep if taking else rows.withdraw)(ctypes.addressof(block))


def test_slots_taken_and_given_by_machine_code_are_those_of_python() -> None:
    """In any order, with both at work on one list and Python alone on the other; pages come and go too."""
    chance = random.Random(44)
    mixed, plain, store = VaSlots(), VaSlots(), BackingStore()
    by_index: dict[int, int] = {}
    epc_pages = [EpcPage(number) for number in chance.sample(range(1000), 4)]
    for turn in range(400):
        if not turn % 100:
            for va in (mixed, plain):
                va.follow(epc_pages[: 1 + turn // 100])
        out = [index for index in chance.sample(range(PAGES), 40) if index not in by_index][:32]
        room = len(mixed) * 512 - len(by_index)
        if out and len(out) <= room and chance.random() < 0.6:
            versions = range(turn * 64 + 1, turn * 64 + 1 + len(out))
            for index, version in zip(out, versions, strict=True):
                store.pages(ENCLAVE).prepare(index, 0x203, 5, b"", version)
            expected = plain.take(versions)
            assert machine_code(store, mixed, out, taking=True) == len(out)
            for index, slot in zip(out, expected, strict=True):
                entry = store.pages(ENCLAVE).find(index)
                assert entry is not None
                assert (entry.slot, mixed.version(slot)) == (slot, entry.version)
                by_index[index] = slot
        elif by_index:
            back = chance.sample(sorted(by_index), min(len(by_index), chance.randrange(1, 64)))
            plain.give([by_index.pop(index) for index in back])
            if chance.random() < 0.5:
                assert machine_code(store, mixed, back, taking=False) == 0
            else:
                mixed.give([rest >> SLOT_SHIFT for rest in store.pages(ENCLAVE).take(back)[1]])
        assert mixed.in_use == plain.in_use == len(by_index)
    assert any(mixed.version(slot) == 0 for slot in range(512))


def test_machine_code_says_when_there_is_no_slot() -> None:
    va, store = VaSlots(), BackingStore()
    store.pages(ENCLAVE).prepare(3, 0x203, 5, b"", 7)
    assert machine_code(store, va, [3], taking=True) == slots.NO_SLOT
    va.follow([EpcPage(0)])
    va.take(range(1, 513))
    assert machine_code(store, va, [3], taking=True) == slots.NO_SLOT
