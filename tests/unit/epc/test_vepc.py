"""Guests: charged, never reclaimed, freed page by page (spec 6.6)."""

from __future__ import annotations

import pytest

from epcgroup.epc import STANDARD, V5, V17, Kind, Policy, State
from epcgroup.epc.invariants import check
from epcgroup.errors import NoEpc, OutOfRange
from epcgroup.testing import World
from epcgroup.testing.table import SIGBUS

EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)


@EVERY
def test_a_guests_page_is_charged_and_on_no_list(policy: Policy) -> None:
    world = World(policy)
    group = world.group("/vm", limit=20)
    guest, answers = world.guest("/vm", 20)
    assert answers == [1] * 20
    page = guest.pages[0]
    assert (page.kind, page.state, page.group) == (Kind.VEPC, State.NOT_TRACKED, group)
    assert world.lru("/vm") == []
    assert world.machine.fault_vepc(world.caller("/vm"), guest, 0) is page
    check(world.machine)


@EVERY
def test_a_guest_over_its_limit_gets_a_sigbus_and_keeps_what_it_has(policy: Policy) -> None:
    """VEPC-06, spec 8.1 (6)."""
    world = World(policy)
    world.group("/vm", limit=10)
    guest, answers = world.guest("/vm", 11)
    assert answers == [1] * 10 + [SIGBUS]
    world.limit("/vm", 3)
    assert len(guest.pages) == 10
    assert world.pages("/vm") == 10


@EVERY
def test_a_guest_makes_its_neighbours_in_the_group_page(policy: Policy) -> None:
    world = World(policy)
    world.group("/mixed", limit=40)
    enclave = world.enclave("/mixed", 30)
    guest, answers = world.guest("/mixed", 25)
    assert set(answers) == {1, 2}  # some had to wait for the worker
    assert enclave.counters.evicted > 0
    assert len(guest.pages) == 25
    check(world.machine)


@EVERY
def test_b84_pages_left_over_stay_charged_to_a_removed_group_until_they_can_go(policy: Policy) -> None:
    """VEPC-05: a SECS whose children are in another guest outlives its own."""
    world = World(policy)
    world.group("/p")
    world.group("/p/vm")
    guest, _ = world.guest("/p/vm", 5)
    for index in range(1, 5):
        world.machine.free_vepc_page(guest, index)
    world.machine.groups.rmdir("/p/vm")
    world.machine.settle()
    assert world.pages("/p") == 1
    check(world.machine)
    world.machine.free_vepc_page(guest, 0)
    world.machine.release_vepc(guest)
    world.machine.settle()
    assert world.pages("/p") == 0
    assert [group.path for group in world.machine.groups.walk(world.machine.groups.root)] == ["/", "/p"]


@EVERY
def test_outside_a_guests_epc_there_is_nothing(policy: Policy) -> None:
    world = World(policy)
    world.group("/vm")
    guest, _ = world.guest("/vm", 1, size=4)
    for index in (-1, 4):
        with pytest.raises(OutOfRange):
            world.machine.fault_vepc(world.caller("/vm"), guest, index)
    with pytest.raises(OutOfRange):
        world.machine.free_vepc_page(guest, 3)


@EVERY
def test_a_machine_full_of_guests_has_nothing_to_give(policy: Policy) -> None:
    world = World(policy, epc_pages=64)
    world.group("/vm")
    guest, answers = world.guest("/vm", 65)
    assert answers[-1] == SIGBUS
    assert len(guest.pages) == 64
    with pytest.raises(NoEpc):
        world.machine.create_enclave(world.caller("/vm"), 1)
    world.machine.release_vepc(guest)
    assert world.machine.free == 64
