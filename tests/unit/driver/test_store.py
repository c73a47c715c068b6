"""Sealed pages: nothing outside the EPC can be changed, exchanged or replayed unnoticed."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from epcgroup.driver import BackingStore, Evicted, Fault
from epcgroup.epc import SECS_INDEX

PAGE = 4096


@pytest.fixture
def evicted(world):
    """A world whose enclave is out altogether, the enclave, and its store."""
    w = world()
    data = os.urandom(8 * PAGE)
    file = w.build(data=data)
    w.evict(file)
    return w, file, w.driver.pager.store.pages(file.enclave.id), data


def test_no_plaintext_of_an_evicted_page_is_left_anywhere(evicted):
    w, _, store, data = evicted
    assert w.frames.contents == {}
    outside = b"".join(entry.sealed for entry in store.values())
    assert not any(data[at : at + 16] in outside for at in range(0, len(data), PAGE))


@pytest.mark.parametrize("at", [0, 4095, 4096, 4111])
def test_a_changed_byte_is_a_sigbus_a_log_line_and_never_contents(evicted, at):
    w, file, store, _ = evicted
    bad = bytearray(store[1].sealed)
    bad[at] ^= 1
    store[1].sealed = bytes(bad)
    assert w.touch(file, 1) is Fault.SIGBUS
    assert w.touch(file, 1) is Fault.SIGBUS
    assert any("page 0x1" in line and "MAC" in line for line in w.log)
    assert 1 not in file.words
    assert w.touch(file, 2) is Fault.RESIDENT


def test_a_failed_load_costs_no_page_and_keeps_its_slot(evicted):
    w, file, store, _ = evicted
    w.touch(file, 2)
    before = w.usage
    store[1].sealed = bytes(4112)
    w.touch(file, 1)
    assert w.usage == before
    assert w.driver.pager.slots_in_use(file.enclave) == file.enclave.evicted


def test_an_old_copy_of_the_same_page_is_refused(evicted):
    """Replay: the copy was perfectly good when it was made."""
    w, file, store, data = evicted
    old = store[1]
    sealed, flags = old.sealed, old.flags
    assert w.touch(file, 1, "w") is Fault.RESIDENT
    w.frames.write(file.enclave.id, 1, 0, b"newer contents")
    w.evict(file)
    new = store[1].sealed
    store[1].sealed, store[1].flags = sealed, flags
    assert w.touch(file, 1) is Fault.SIGBUS
    store[1].sealed = new
    assert w.touch(file, 1) is Fault.RESIDENT
    assert w.frames.read(file.enclave.id, 1, 0, PAGE) == b"newer contents" + data[14:PAGE]


def test_permissions_in_the_pcmd_cannot_be_raised(evicted):
    w, file, store, _ = evicted
    store[1].flags |= 4
    assert w.touch(file, 1, "x") is Fault.SIGBUS


def test_two_pages_cannot_be_exchanged_not_even_with_their_versions(evicted):
    w, file, store, _ = evicted
    store[1], store[2] = store[2], store[1]
    assert w.touch(file, 1) is Fault.SIGBUS
    assert w.touch(file, 2) is Fault.SIGBUS


def test_a_page_of_a_twin_enclave_is_refused(world):
    w = world()
    one, two = w.build(), w.build()
    w.limit(3)
    w.machine.settle()
    w.limit(None)
    pages = w.driver.pager.store.pages
    pages(one.enclave.id)[1].sealed = pages(two.enclave.id)[1].sealed
    assert w.touch(one, 1) is Fault.SIGBUS


def test_a_tampered_secs_stops_the_whole_enclave(evicted):
    w, file, store, _ = evicted
    store[SECS_INDEX].sealed = bytes(4112)
    assert all(w.touch(file, index) is Fault.SIGBUS for index in range(9))
    assert any("SECS" in line for line in w.log)


def test_contents_that_are_lost_are_a_sigbus(evicted):
    w, file, store, _ = evicted
    del store[1]
    assert w.touch(file, 1) is Fault.SIGBUS
    assert any("lost" in line for line in w.log)


def test_a_full_backing_store_keeps_pages_in_the_epc(world):
    w = world(store=BackingStore(limit=3 * 4112))
    file = w.build(data=os.urandom(8 * PAGE))
    w.limit(4)
    w.machine.settle()
    assert file.enclave.evicted <= 3
    assert w.driver.pager.store.used <= 3 * 4112
    assert w.usage > 4
    file.release()
    assert w.driver.pager.store.used == 0


def test_a_store_without_memory_keeps_pages_in_the_epc(world, monkeypatch):
    """ENOMEM of the host: nothing is lost, and the next try may have better luck."""
    w = world()
    file = w.build(data=os.urandom(8 * PAGE))

    def no_memory(*_args, **_options):
        raise OSError(12, "no memory")

    with monkeypatch.context() as patch:
        patch.setattr("epcgroup.driver.arena.mmap.mmap", no_memory)
        w.limit(4)
        w.machine.settle()
        assert file.enclave.evicted == 0
    w.evict(file)
    assert file.enclave.evicted > 0


def test_pages_of_zeros_are_not_stored(world):
    w = world(epc_pages=64)
    file = w.create(size_bytes=1 << 24)
    w.add(file, bytes(3000 * PAGE), measure=False)
    evicted = file.enclave.evicted
    assert evicted > 2900
    assert w.driver.pager.store.used == evicted * 16
    assert w.driver.pager.store.arena.taken == 0


def test_memory_of_a_released_enclave_goes_back(world):
    w = world(epc_pages=64)
    small, large = (w.create(size_bytes=1 << 24) for _ in range(2))
    w.add(small, os.urandom(PAGE) * 100, measure=False)
    w.add(large, os.urandom(PAGE) * 3000, measure=False)
    arena = w.driver.pager.store.arena
    assert len(arena) == 3
    large.release()
    assert len(arena) == 1
    w.add(small, os.urandom(PAGE) * 2500, measure=False, offset=100 * PAGE)
    assert len(arena) == 3


def test_the_store_is_empty_again_when_everything_was_loaded(evicted):
    w, file, store, _ = evicted
    for index in range(9):
        w.touch(file, index)
    assert store == {}
    assert w.driver.pager.store.used == 0
    assert w.driver.pager.slots_in_use(file.enclave) == 0


@pytest.mark.parametrize("policy", ["v5", "v17", "standard"])
def test_versions_fill_more_than_one_va_page(world, policy):
    w = world(policy, epc_pages=64)
    file = w.create(size_bytes=1 << 23)
    data = os.urandom(4) * (1024 * 1300)
    w.add(file, data, measure=False)
    assert len(file.enclave.va_pages) == 3
    assert w.driver.pager.slots_in_use(file.enclave) == file.enclave.evicted > 1200
    for index in (0, 600, 1299):
        while w.touch(file, index) is Fault.RETRY:
            w.machine.step()
        assert w.frames.read(file.enclave.id, index, 0, PAGE) == data[:PAGE]


def entry(store: BackingStore, number: int) -> Evicted:
    return Evicted(store.arena, 0x200 | number % 8, number, b"", number, version=1)


def test_an_evicted_page_keeps_no_object_beside_its_sealed_bytes():
    """With one for each, the supervisor grew by a tenth of the page more than it has to."""
    store, count = BackingStore(), 1 << 14
    tracemalloc.start()
    try:
        for index in range(count):
            store.add(1, index, entry(store, index))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held / count < 48
    assert len(store.pages(1)) == count


def test_pages_far_apart_are_found_again():
    """In an address range of 1 TiB, with the SECS before it."""
    store = BackingStore()
    indices = [SECS_INDEX, 0, 63, 64, 1 << 20, (1 << 28) - 1]
    for number, index in enumerate(indices):
        store.add(1, index, entry(store, number))
    found = store.pages(1)
    assert sorted(found) == indices
    assert [(e.place, e.slot, e.flags) for e in map(found.__getitem__, indices)] == [
        (number, number, 0x200 | number) for number in range(6)
    ]
    assert store.get(1, 1) is None
    with pytest.raises(KeyError):
        store.remove(1, 1)


def test_pages_kept_together_are_withdrawn_with_what_was_kept_of_each():
    """Some are zeros: a MAC, and no place in the arena."""
    store = BackingStore()
    assert store.reserve(1, 0)
    assert store.reserve_all(5)
    places = [store.arena.free.pop() for _ in range(4)]
    pages, indices = store.pages(1), [5, 64, 1 << 27, 6, 7]
    sealed = [(0x203, places[0], b""), (0x201, -1, bytes(16)), *[(0x205, place, b"") for place in places[1:]]]
    for index, (flags, place, short) in zip(indices, sealed, strict=True):
        pages.prepare(index, flags, place, short, 1)
    assert not pages
    assert store.get(1, 5) is None, "on its way"
    slots = [9 * 512 + 511, 9 * 512 + 510, 1 << 29, 9 * 512, 9 * 512 + 1]
    store.add_all(1, indices, slots)
    assert store.used == 4 * 4112 + 16
    assert pages[64].sealed == bytes(16)
    assert store.withdraw(1, [1 << 27, 64, 5]) == ([0x205, 0x201, 0x203], [slots[2], slots[1], slots[0]])
    assert sorted(pages) == [6, 7]
    assert store.used == 2 * 4112
    assert store.arena.free[-2:] == [places[1], places[0]]
    with pytest.raises(KeyError):
        store.withdraw(1, [6, 5])
    assert list(pages) == [7]


def test_room_for_several_pages_is_had_altogether_or_not_at_all():
    store = BackingStore()
    assert not store.reserve_all(1), "the first chunk comes with the first page alone"
    assert store.reserve(1, 0)
    assert store.reserve_all(1023)
    assert not store.reserve_all(1)
    assert not BackingStore(limit=1 << 20).reserve_all(1), "who has a limit is asked page by page"
