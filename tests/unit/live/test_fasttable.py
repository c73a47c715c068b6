from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from epcgroup.live.fastpath import table as fasttable
from epcgroup.live.fastpath.table import BusyTcs, Enterable, Entry, Table

DEVICE = cast(Any, object())
ADDRESS = 0x7F0000000000
TID = 4711


@pytest.fixture
def table() -> Iterator[Table]:
    fd = os.memfd_create("table")
    made = Table(fd)
    made.address = ADDRESS
    made.spaces.add(cast(Any, object()))
    yield made
    os.close(fd)


def put(table: Table, tcs: int, index: int = 5) -> Entry | None:
    return table.put(DEVICE, index, range(6, 7), tcs=tcs, target=1, ursp=2, bases=(3, 4))


def same_bucket(count: int) -> list[int]:
    """Addresses of TCSs that the code in programs looks for at one place."""
    first = fasttable.bucket_of(0x10000)
    found = []
    tcs = 0x10000
    while len(found) < count:
        if fasttable.bucket_of(tcs) == first:
            found.append(tcs)
        tcs += 0x1000
    return found


def enter(table: Table, entry: Entry, tid: int = TID) -> None:
    """What fast_enter.S does to the table."""
    slot = tid % fasttable.SLOTS * 8
    table.words[entry.word(1)] = tid
    table.words[slot + 5] += 1
    table.words[slot : slot + 5] = memoryview(
        b"".join(n.to_bytes(8, "little") for n in (tid, ADDRESS + entry.word(0) * 8, 0xAE0, 0xF5, 0x65))
    ).cast("Q")


def test_tcss_at_one_bucket_lie_beside_each_other(table: Table) -> None:
    entries = [put(table, tcs) for tcs in same_bucket(fasttable.PROBES + 1)]
    first = fasttable.bucket_of(0x10000)
    assert [entry.bucket if entry else None for entry in entries] == [
        first,
        first + 1,
        first + 2,
        first + 3,
        None,
    ]


def test_a_place_is_used_again_when_its_tcs_is_out_and_free(table: Table) -> None:
    *others, more = same_bucket(fasttable.PROBES + 1)
    entries = [cast(Entry, put(table, tcs)) for tcs in others]
    entries[2].take_out()
    enter(table, entries[2])
    assert put(table, more) is None, "a thread is inside still"
    entries[2].free()
    again = put(table, more)
    assert again is not None
    assert again.bucket == entries[2].bucket


def test_a_tcs_comes_back_to_its_own_place(table: Table) -> None:
    one, other = same_bucket(2)
    put(table, one)
    entry = cast(Entry, put(table, other))
    entry.take_out()
    assert cast(Entry, put(table, other)).bucket == entry.bucket


def test_taking_out_tells_who_is_inside(table: Table) -> None:
    entry = cast(Entry, put(table, 0x10000))
    assert table.words[entry.word(0)] == 0x10000
    enter(table, entry)
    assert entry.take_out() == TID
    assert table.words[entry.word(0)] == 0


def test_a_thread_inside_is_known_with_what_it_left_outside(table: Table) -> None:
    entry = cast(Entry, put(table, 0x10000))
    assert table.outside(TID) is None
    enter(table, entry)
    assert table.outside(TID) == fasttable.Outside(entry, 0xAE0, 0xF5, 0x65, 1, 0)
    assert table.outside(TID + fasttable.SLOTS) is None, "another thread with the same slot"
    table.forget(TID, ended=True)
    assert table.outside(TID) is None
    assert entry.take_out() == 0


@pytest.mark.parametrize("forged", [1, ADDRESS, ADDRESS + fasttable.SIZE, 2**64 - 1])
def test_a_program_that_forges_its_slot_is_not_believed(table: Table, forged: int) -> None:
    entry = cast(Entry, put(table, 0x10000))
    enter(table, entry)
    table.words[TID % fasttable.SLOTS * 8 + 1] = forged
    assert table.outside(TID) is None


def test_an_owner_that_is_somebody_else_is_not_believed(table: Table) -> None:
    entry = cast(Entry, put(table, 0x10000))
    enter(table, entry)
    table.words[entry.word(1)] = TID + 1
    assert table.outside(TID) is None
    table.forget(TID)
    assert table.words[entry.word(1)] == TID + 1, "the other one stays inside"


def test_busy_is_who_trapped_and_who_did_not(table: Table) -> None:
    enterable = Enterable()
    busy = BusyTcs(enterable)
    entry = cast(Entry, put(table, 0x10000))
    enterable.add(entry)
    assert 5 not in busy
    assert not entry.live, "whoever asks means to do something to it"
    entry = cast(Entry, put(table, 0x10000))
    enterable.add(entry)
    enter(table, entry)
    assert 5 in busy
    assert 5 in busy, "as long as the thread is inside"
    assert enterable.occupied()
    space = table.spaces.pop()
    assert not enterable.occupied(), "what a process wrote there that is no more counts for nothing"
    table.spaces.add(space)
    entry.free()
    assert 5 not in busy
    busy.add(5)
    assert 5 in busy


def test_a_change_of_the_tcs_or_of_its_frame_takes_it_out(table: Table) -> None:
    for page, stays in ((5, False), (6, False), (7, True)):
        enterable = Enterable()
        entry = cast(Entry, put(table, 0x10000))
        enterable.add(entry)
        enterable.changes(page)
        assert entry.live is stays
        entry.take_out()


def test_a_change_of_a_mapping_takes_out_what_lies_there(table: Table) -> None:
    low, high = cast(Entry, put(table, 0x10000)), cast(Entry, put(table, 0x20000))
    table.take_out(0x18000, 0x21000)
    assert (low.live, high.live) == (True, False)
    table.close()
    assert not low.live


def test_an_entered_tcs_is_young_once(table: Table) -> None:
    enterable = Enterable()
    entry = cast(Entry, put(table, 0x10000))
    enterable.add(entry)
    table.words[entry.word(6)] = 1
    assert enterable.used({4, 5, 6}) == {5}
    assert enterable.used({4, 5, 6}) == set()
