"""Reclaim rounds: how much, whose, in what order (spec 4, 10.3)."""

from __future__ import annotations

import pytest

from epcgroup.epc import SECS_INDEX, STANDARD, V5, V17, Caller, Enclave, Policy
from epcgroup.epc.invariants import check
from epcgroup.epc.queue import usage_pages
from epcgroup.epc.reclaim import Effort, reclaim
from epcgroup.epc.walk import nothing_reclaimable
from epcgroup.errors import Busy, NoEpc
from epcgroup.testing import World

EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)


def numbers(evictions: list[tuple[int, int]]) -> list[int]:
    return [index for _, index in evictions]


def tenant(policy: Policy, pages: int, young: bool) -> tuple[World, Enclave]:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", pages)
    if young:
        world.touch(enclave, range(pages))
    world.machine.set_max(world.machine.groups.lookup("/a"), world.pages("/a") * 4096)
    world.machine.works.clear()
    world.machine.groups.lookup("/a").queued = False
    return world, enclave


# -- work of one round (spec 4.8) ---------------------------------------------------------


@pytest.mark.parametrize("policy", [V5, V17], ids=lambda policy: policy.name)
def test_a_direct_charge_over_by_one_evicts_sixteen_old_pages(policy: Policy) -> None:
    world, _ = tenant(policy, 100, young=False)
    world.machine.add_page(world.caller("/a"), world.machine.create_enclave(world.caller("/a"), 1), 0)
    assert numbers(world.evictions())[:16] == list(range(16))
    assert world.pages("/a") == 102 + 3 - 16


def test_standard_evicts_what_is_needed_and_a_sixteenth_of_the_limit() -> None:
    world, _ = tenant(STANDARD, 100, young=False)
    world.machine.create_enclave(world.caller("/a"), 1)
    assert numbers(world.evictions()) == [0, 1, 2, 3, 4, 5]  # limit 102: a sixteenth is 6


def test_v5_cycles_six_fruitless_rounds_and_then_ignores_age() -> None:
    world, _ = tenant(V5, 100, young=True)
    world.machine.create_enclave(world.caller("/a"), 1)
    group = world.machine.groups.lookup("/a")
    # 6 rounds of 16 went to the tail; the 7th begins with the pages never cleared.
    assert numbers(world.evictions()) == [96, 97, 98, 99, *range(12)]
    assert group.counters.scanned == 7 * 16
    assert group.counters.young == 6 * 16


def test_v17_cycles_until_the_cleared_pages_come_round() -> None:
    world, _ = tenant(V17, 100, young=True)
    world.machine.create_enclave(world.caller("/a"), 1)
    # The 7th round meets the last 4 young pages, and 12 that were cleared.
    assert numbers(world.evictions()) == list(range(12))
    assert world.machine.groups.lookup("/a").counters.young == 100


def family(policy: Policy) -> tuple[World, Enclave, Enclave]:
    """/p without pages, its children /p/a with 10 and /p/b with 100, in that order."""
    world = World(policy)
    for path in ("/p", "/p/a", "/p/b"):
        world.group(path)
    first, second = world.enclave("/p/a", 10, init=False), world.enclave("/p/b", 100, init=False)
    return world, first, second


def test_v5_drains_the_first_child_first_in_one_batch() -> None:
    world, first, second = family(V5)
    parent = world.machine.groups.lookup("/p")
    assert reclaim(world.machine, parent, 16) == (16, 16)
    assert world.evictions() == [(first.id, n) for n in range(10)] + [(second.id, n) for n in range(6)]
    world.machine.fault(world.caller("/p/a"), first, 0)
    reclaim(world.machine, parent, 16)
    assert world.evictions()[0] == (first.id, 0)


def test_v17_takes_the_groups_in_turns() -> None:
    world, first, second = family(V17)
    parent = world.machine.groups.lookup("/p")
    assert reclaim(world.machine, parent, 16) == (26, 26)
    assert world.evictions() == [(first.id, n) for n in range(10)] + [(second.id, n) for n in range(16)]
    assert parent.cursor is parent
    for index in range(10):
        world.machine.fault(world.caller("/p/a"), first, index)
    assert reclaim(world.machine, parent, 1) == (10, 10)
    assert parent.cursor.path == "/p/b"
    world.machine.fault(world.caller("/p/a"), first, 0)
    assert reclaim(world.machine, parent, 1) == (16, 16)
    assert {owner for owner, _ in world.evictions()[-16:]} == {second.id}


def test_standard_takes_turns_and_no_more_than_asked() -> None:
    world, first, second = family(STANDARD)
    parent = world.machine.groups.lookup("/p")
    assert reclaim(world.machine, parent, 3) == (3, 3)
    assert reclaim(world.machine, parent, 3) == (3, 3)
    assert world.evictions() == [(first.id, n) for n in range(3)] + [(second.id, n) for n in range(3)]


def test_b40_a_request_of_64_pages_is_bounded_to_32() -> None:
    world = World(V5)
    world.group("/a")
    world.enclave("/a", 200, init=False)
    world.evictions()
    world.machine.set_max(world.machine.groups.lookup("/a"), 120 * 4096)
    world.machine.step()
    assert len(world.evictions()) == 32


# -- SECS -----------------------------------------------------------------------------------


@EVERY
def test_the_secs_follows_the_last_page_out_if_the_enclave_is_initialised(policy: Policy) -> None:
    """RECL-20, RECL-21."""
    world = World(policy)
    world.group("/a")
    done, building = world.enclave("/a", 3), world.enclave("/a", 3, init=False)
    world.evict("/a")
    assert world.evictions() == [
        *((done.id, index) for index in (0, 1, 2, SECS_INDEX)),
        *((building.id, index) for index in (0, 1, 2)),
    ]
    assert done.secs is None
    assert building.secs is not None
    assert world.pages("/a") == 3  # two VA pages and a SECS
    check(world.machine)


@EVERY
def test_without_backing_for_the_secs_it_stays(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 3)
    world.pager.refuse = lambda page: page.index == SECS_INDEX
    world.evict("/a")
    assert (enclave.child_count, enclave.evicted) == (0, 3)
    assert enclave.secs is not None
    check(world.machine)


@EVERY
def test_a_page_whose_backing_is_refused_goes_back_to_the_tail(policy: Policy) -> None:
    world = World(policy)
    group = world.group("/a")
    world.enclave("/a", 4)
    world.pager.refuse = lambda page: page.index == 0
    reclaim(world.machine, group, 2)
    assert numbers(world.lru("/a"))[-1] == 0
    assert 0 not in numbers(world.evictions())
    check(world.machine)


# -- fairness and dying groups -------------------------------------------------------------------


def test_b43_old_pages_below_a_busy_group_are_evicted_in_bounded_time() -> None:
    """ALLOC-32: in v5 more than sixteen young pages at the top hide everything below."""
    for policy, reached in ((V5, False), (V17, True), (STANDARD, True)):
        world = World(policy)
        world.group("/top")
        world.group("/top/below")
        busy, idle = world.enclave("/top", 40), world.enclave("/top/below", 40)
        world.evictions()
        effort = Effort(world.machine)
        for _ in range(6):
            world.young(busy, [i for i, page in busy.pages.items() if page is not None])
            effort.round(world.machine.groups.lookup("/top"), 16)
        assert bool(idle.counters.evicted) is reached, policy.name


def dying_in_the_middle(policy: Policy) -> tuple[World, Enclave]:
    """Three siblings; the middle one is removed and has lost its last page, and nobody has released it."""
    world = World(policy)
    for path in ("/p", "/p/a", "/p/b", "/p/c"):
        world.group(path)
    enclave = world.enclave("/p/c", 20, init=False)
    world.machine.groups.rmdir("/p/b")
    assert world.machine.groups.dying
    return world, enclave


def test_b42_a_walk_skips_a_dying_group_but_v5_stops_there() -> None:
    for policy, hidden in ((V5, True), (V17, False), (STANDARD, False)):
        world, _ = dying_in_the_middle(policy)
        parent = world.machine.groups.lookup("/p")
        assert nothing_reclaimable(world.machine, parent) is hidden
        assert reclaim(world.machine, parent, 16)[1] == (0 if hidden else 16)
        world.machine.set_max(parent, world.pages("/p") * 4096)
        world.machine.works.clear()
        parent.queued = False
        caller = Caller(parent)
        if hidden:
            with pytest.raises(NoEpc):  # the false "empty"
                world.machine.create_enclave(caller, 1)
            world.machine.settle()
        assert world.machine.create_enclave(caller, 1)
        check(world.machine)


@pytest.mark.parametrize("policy", [V17, STANDARD], ids=lambda policy: policy.name)
def test_b44_the_first_turn_of_a_fresh_tree_visits_each_group_once(policy: Policy) -> None:
    world = World(policy)
    paths = ["/p", "/p/a", "/p/a/x", "/p/b", "/p/c"]
    owners = {}
    for path in paths:
        world.group(path)
        owners[world.enclave(path, 40, init=False).id] = path
    world.evictions()
    for _ in paths:
        reclaim(world.machine, world.machine.groups.lookup("/p"), 16)
    visited = [owners[owner] for owner, _ in world.evictions()]
    assert visited[::16] == paths
    assert world.machine.groups.lookup("/p").cursor.path == "/p"


@pytest.mark.parametrize("policy", [V17, STANDARD], ids=lambda policy: policy.name)
def test_b45_a_cursor_moves_on_when_its_group_is_removed(policy: Policy) -> None:
    world = World(policy)
    for path in ("/p", "/p/a", "/p/b", "/p/c"):
        world.group(path)
    first, last = world.enclave("/p/a", 40, init=False), world.enclave("/p/c", 40, init=False)
    world.evictions()
    parent = world.machine.groups.lookup("/p")
    reclaim(world.machine, parent, 16)
    assert parent.cursor.path == "/p/b"
    world.machine.groups.rmdir("/p/b")
    check(world.machine)
    world.machine.settle()
    assert parent.cursor.path == "/p/c"
    reclaim(world.machine, parent, 16)
    assert [owner for owner, _ in world.evictions()][::16] == [first.id, last.id]
    world.close(last)
    world.machine.groups.rmdir("/p/c")
    world.machine.settle()
    assert parent.cursor is parent


@EVERY
def test_charges_of_a_removed_group_are_reclaimed_through_its_ancestors(policy: Policy) -> None:
    """MISC-65, spec 8.3."""
    world = World(policy)
    world.group("/p")
    world.group("/p/a")
    gone = world.machine.groups.lookup("/p/a")
    world.enclave("/p/a", 20)
    world.machine.groups.rmdir("/p/a")
    world.machine.settle()
    assert world.pages("/p") == 22
    world.evict("/p")
    assert world.pages("/p") == 1  # the VA page keeps the group
    assert not gone.released
    check(world.machine)


# -- ksgxd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [V5, V17], ids=lambda policy: policy.name)
def test_ksgxd_is_woken_below_32_free_pages_and_works_until_64(policy: Policy) -> None:
    """ALLOC-30."""
    world = World(policy, epc_pages=200)
    world.group("/a")
    enclave = world.machine.create_enclave(world.caller("/a"), 300)
    for index in range(166):
        world.machine.add_page(world.caller("/a"), enclave, index)
    assert world.machine.free == 32
    assert not world.machine.pending
    world.machine.add_page(world.caller("/a"), enclave, 166)
    world.machine.settle()
    assert (world.machine.free, world.machine.ksgxd_runs) == (31 + 48, 1)


@EVERY
def test_a_full_machine_is_ksgxds_business_for_a_fault(policy: Policy) -> None:
    world = World(policy, epc_pages=100)
    world.group("/a")
    enclave = world.enclave("/a", 150)
    missing = [index for index, page in enclave.pages.items() if page is None]
    while world.machine.free:
        world.machine.fault(world.caller("/a"), enclave, missing.pop())
    usage = usage_pages(world.machine, world.machine.groups.root)
    with pytest.raises(Busy):
        world.machine.fault(world.caller("/a"), enclave, missing[0])
    assert usage_pages(world.machine, world.machine.groups.root) == usage
    if policy is STANDARD:  # the root itself refuses: it is full
        assert world.touch(enclave, missing[:1]) == [2]


@EVERY
def test_the_sgx2_ioctls_help_when_few_pages_are_free(policy: Policy) -> None:
    """ALLOC-33."""
    world = World(policy, epc_pages=128)
    world.group("/a")
    enclave = world.machine.create_enclave(world.caller("/a"), 200)
    for index in range(124):
        world.machine.add_page(world.caller("/a"), enclave, index)
    free = world.machine.free
    world.machine.edmm_reclaim(world.caller("/a"))
    assert world.machine.free > free
    world.machine.settle()
    free = world.machine.free
    world.machine.edmm_reclaim(world.caller("/a"))
    assert world.machine.free == free


def test_v17_also_helps_the_callers_group() -> None:
    for policy, helped in ((V17, 16), (V5, 0), (STANDARD, 0)):
        world = World(policy)
        world.group("/a", limit=202)
        world.enclave("/a", 200, init=False)
        free = world.machine.free
        world.machine.edmm_reclaim(world.caller("/a"))
        assert world.machine.free - free == helped


# -- counters ----------------------------------------------------------------------------------------


@EVERY
def test_operations_are_counted_for_the_enclave_and_for_the_group_that_pays(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 5, size=16)
    world.evict("/a")
    world.touch(enclave, [0, 1], "/a")
    world.machine.augment(world.caller("/a"), enclave, 9)
    world.machine.remove_page(enclave, 9)
    group = world.machine.groups.lookup("/a").counters
    for counters in (enclave.counters, group):
        seen = counters.as_dict()
        assert (seen["added"], seen["augmented"], seen["removed"]) == (5, 1, 1)
        assert (seen["evicted"], seen["loaded"]) == (6, 3)  # the SECS too
        assert (seen["faults"], seen["retried"], seen["scanned"]) == (3, 0, 5)
