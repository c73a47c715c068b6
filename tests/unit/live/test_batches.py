"""What leaves a page that takes the plain way out of the machine for lanes to find."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from epcgroup.driver import BackingStore
from epcgroup.driver.evicted import FLAGS_MASK, MOST_SHIFT, REST, SLOT_SHIFT
from epcgroup.driver.va import VaSlots
from epcgroup.epc import EpcPage
from epcgroup.live.paging import compiled
from epcgroup.live.paging.batches import LaneMover
from epcgroup.live.paging.lock import MachineLock
from epcgroup.sgx.seal import PageSealer


def test_a_page_evicted_before_anybody_maps_it_is_one_that_lanes_may_load() -> None:
    """An enclave larger than the EPC is mapped when most of it has been evicted already."""

    def nothing(*_: object) -> SimpleNamespace:
        return SimpleNamespace(only_space=lambda: None, hidden={})

    file = SimpleNamespace(size=64 << 12, maximum={5: 3, 9: 7})
    frames: Any = SimpleNamespace(
        leaving=nothing, file=lambda _: file, take=lambda _, pages: [bytes([1]) * 4096 for _ in pages]
    )
    store, slots = BackingStore(), VaSlots()
    assert store.reserve(1, 5)
    assert store.reserve(1, 9)
    slots.follow([EpcPage(0)])
    mover = LaneMover(frames, PageSealer(bytes(16)), store, compiled, MachineLock())
    versions = mover.out(1, 0x100000, [5, 9], [0x203, 0x207])
    mover.kept(1, [5, 9], versions, slots)
    for place, (index, flags, most) in enumerate([(5, 0x203, 3), (9, 0x207, 7)]):
        rows, at = store.pages(1)._row(index)
        assert rows is not None
        rest = rows[at + REST]
        assert (rest & FLAGS_MASK, rest >> MOST_SHIFT & 7, rest >> SLOT_SHIFT) == (flags, most, place)
    assert mover.arrived(1, [9, 5], slots) == [0x207, 0x203]
    assert slots.in_use == len(store.pages(1)) == 0
