"""An EPC on several NUMA nodes: who gets a page from where (spec EPC-02, EPC-05)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from epcgroup.epc import Caller, Machine, Section, by_name
from epcgroup.epc.invariants import check
from epcgroup.epc.nodes import NodePool
from epcgroup.errors import BadInput
from epcgroup.testing import TablePager

GROUP = cast("Any", object())


def at(node: int):
    return lambda: node


def test_a_page_comes_from_the_callers_node_oldest_first() -> None:
    pool = NodePool([Section(2, 0), Section(3, 1)])
    assert [pool.take(GROUP, at(1)).number for _ in range(2)] == [2, 3]
    page = pool.take(GROUP, at(0))
    assert (page.number, pool.node_of(page)) == (0, 0)
    pool.give(page)
    assert pool.take(GROUP, at(0)).number == 1, "freed pages go to the tail"
    assert pool.take(GROUP, at(0)) is page


def test_an_empty_node_is_helped_by_the_next_round_robin() -> None:
    pool = NodePool([Section(1, 0), Section(1, 3), Section(1, 5)])
    assert [pool.node_of(pool.take(GROUP, at(3))) for _ in range(3)] == [3, 5, 0]
    assert pool.free == 0


@pytest.mark.parametrize(("cpu_node", "first"), [(1, 3), (4, 5), (6, 0), (0, 0)])
def test_a_node_without_epc_is_helped_by_the_next_that_has_some(cpu_node: int, first: int) -> None:
    pool = NodePool([Section(1, 0), Section(1, 3), Section(1, 5)])
    assert pool.node_of(pool.take(GROUP, at(cpu_node))) == first


def test_two_sections_of_a_node_are_one_list() -> None:
    pool = NodePool([Section(1, 0), Section(2, 1), Section(2, 0)])
    assert [pool.take(GROUP, at(0)).number for _ in range(3)] == [0, 3, 4]
    assert pool.by_node() == {0: (3, 0), 1: (2, 2)}


def test_a_poisoned_page_is_lost_to_its_node() -> None:
    pool = NodePool([Section(2, 0), Section(2, 1)])
    page = pool.take(GROUP, at(1))
    pool.poison(page)
    pool.give(page)
    assert pool.by_node() == {0: (2, 2), 1: (2, 1)}
    assert pool.poisoned == [page]


@pytest.mark.parametrize("sections", [[Section(1, n) for n in range(9)], [Section(0, 0), Section(1, 1)]])
def test_what_no_driver_takes_note_of_is_refused(sections: list[Section]) -> None:
    with pytest.raises(BadInput):
        NodePool(sections)


def test_a_machine_on_two_nodes_counts_as_one() -> None:
    """Capacity, watermarks and limits know no nodes; only where a page lies does."""
    sections = [Section(100, 0), Section(60, 1)]
    machine = Machine(epc_pages=0, policy=by_name("standard"), pager=TablePager(), sections=sections)
    caller = Caller(machine.groups.mkdir("/a"), node=at(1))
    enclave = machine.create_enclave(caller, 256)
    for index in range(90):
        machine.add_page(caller, enclave, index)
    check(machine)
    assert machine.epc_pages == 160
    assert machine.free_by_node() == {0: (100, 68), 1: (60, 0)}
    machine.release(enclave)
    assert machine.free_by_node() == {0: (100, 100), 1: (60, 60)}
    check(machine)
