"""VA slots are chosen as the kernel chooses them (spec EPC-44)."""

from __future__ import annotations

import pytest

from epcgroup.driver.va import VaSlots
from epcgroup.epc import EpcPage
from epcgroup.errors import InternalError


def slots(*numbers: int) -> VaSlots:
    made = VaSlots()
    for number in numbers:
        made.follow([EpcPage(n) for n in numbers[: numbers.index(number) + 1]])
    return made


def test_the_lowest_free_slot_of_the_first_page_is_taken():
    va = slots(7)
    taken = va.take(range(100, 103))
    assert taken == [0, 1, 2]
    va.give([taken[1]])
    assert va.take([200]) == [1]
    assert va.in_use == 3


def test_a_new_page_is_used_first_and_a_full_one_goes_to_the_tail():
    va = slots(7, 8)
    order = [slot // 512 for slot in va.take(range(1, 1025))]
    assert order == [1] * 512 + [0] * 512
    with pytest.raises(InternalError, match="no free VA slot"):
        va.take([9999])


def test_a_page_that_got_a_slot_back_comes_to_the_head():
    va = slots(7, 8)
    first = va.take(range(1, 601))
    va.give([first[5]])
    assert va.take([9999]) == [512 + 5]


def test_a_slot_keeps_its_version_until_it_is_freed():
    va = slots(7)
    (taken,) = va.take([42])
    assert va.version(taken) == 42
    va.give([taken])
    assert va.version(taken) == 0


def test_a_va_page_with_versions_in_it_is_never_freed():
    va = slots(7)
    (taken,) = va.take([1])
    with pytest.raises(InternalError, match="with versions in it"):
        va.forget(7)
    va.give([taken])
    va.forget(7)
    assert len(va) == 0


def test_a_va_page_takes_the_place_of_one_that_was_freed():
    va = slots(7, 8, 9)
    va.forget(8)
    va.follow([EpcPage(11)])
    assert va.take(range(1, 514)) == [*range(512, 1024), 1024]
