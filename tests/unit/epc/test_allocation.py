"""Charging and allocating EPC pages: who waits, who fails, who pays (spec 3, 10.2)."""

from __future__ import annotations

import pytest

from epcgroup.epc import SECS_INDEX, STANDARD, V5, V17, Caller, Enclave, Policy
from epcgroup.epc.invariants import check
from epcgroup.errors import Busy, Interrupted, LoadFailed, NoEpc, OutOfRange
from epcgroup.testing import World
from epcgroup.testing.table import NOT_MAPPED, SIGBUS

EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)
FAITHFUL = pytest.mark.parametrize("policy", [V5, V17], ids=lambda policy: policy.name)


def signalled(world: World, path: str) -> Caller:
    return Caller(world.machine.groups.lookup(path), lambda: True)


def full(policy: Policy, limit: int = 10, pages: int = 20) -> tuple[World, Enclave]:
    """A group at its limit, with an enclave that has more pages than fit."""
    world = World(policy)
    world.group("/a", limit=limit)
    return world, world.enclave("/a", pages)


# -- the table of spec 3.8, the engine's part ---------------------------------------


@EVERY
def test_adding_over_the_limit_evicts_from_the_own_group_and_succeeds(policy: Policy) -> None:
    world, enclave = full(policy)
    assert world.pages("/a") <= 10
    assert len(enclave.pages) == 20
    assert world.events("/a") > 0


@EVERY
def test_a_fault_over_the_limit_is_retried_and_the_worker_makes_room(policy: Policy) -> None:
    """EX-2: event, worker queued, retry; nothing is reclaimed inside the fault."""
    world = World(policy)
    world.group("/a", limit=1000)
    enclave = world.enclave("/a", 1100)
    world.touch(enclave, [i for i in enclave.pages if enclave.pages[i] is not None])
    loaded = [i for i in enclave.pages if enclave.pages[i] is None]
    while world.pages("/a") < 1000:
        world.machine.fault(world.caller("/a"), enclave, loaded.pop())
    events, usage = world.events("/a"), world.pages("/a")
    world.evictions()
    with pytest.raises(Busy):
        world.machine.fault(world.caller("/a"), enclave, loaded[-1])
    assert (world.events("/a"), world.pages("/a")) == (events + 1, usage)
    assert world.evictions() == []
    world.machine.settle()
    assert world.pages("/a") <= {"v5": 991, "v17": 967, "standard": 984}[policy.name]
    assert world.machine.fault(world.caller("/a"), enclave, loaded[-1]).group is not None


@EVERY
def test_with_nothing_to_take_every_way_fails_at_once(policy: Policy) -> None:
    """ALLOC-14, and spec 3.8: over the limit with an empty LRU is ENOMEM, and a SIGBUS for a fault."""
    world = World(policy)
    world.group("/a", limit=4)
    enclave = world.enclave("/a", 2)
    world.machine.set_max(world.machine.groups.lookup("/a"), 0)
    for page in list(enclave.pages.values()):
        if page is not None:
            world.machine.drop_from_lru(page)
    with pytest.raises(NoEpc):
        world.machine.create_enclave(world.caller("/a"), 1)
    with pytest.raises(NoEpc):
        world.machine.augment(world.caller("/a"), world_enclave_with_room(world), 5)
    with pytest.raises(NoEpc):
        world.machine.fault_vepc(world.caller("/a"), world.machine.create_vepc(1), 0)
    check(world.machine)


def world_enclave_with_room(world: World) -> Enclave:
    world.group("/b")
    return world.enclave("/b", 1, size=8)


@EVERY
def test_a_direct_reclaimer_with_a_signal_is_interrupted_and_holds_nothing(policy: Policy) -> None:
    world, _ = full(policy, pages=8)
    world.machine.set_max(world.machine.groups.lookup("/a"), 5 * 4096)
    before = world.pages("/a")
    with pytest.raises(Interrupted):
        world.machine.create_enclave(signalled(world, "/a"), 1)
    assert world.pages("/a") == before
    check(world.machine)


def test_b23_a_pending_signal_is_a_sigbus_in_the_series_and_a_retry_in_standard() -> None:
    """ALLOC-12: the series looks for the signal before it says "busy"."""
    for policy, outcome in ((V5, Interrupted), (V17, Interrupted), (STANDARD, Busy)):
        world, enclave = full(policy)
        evicted = [i for i, page in enclave.pages.items() if page is None]
        world.machine.set_max(world.machine.groups.lookup("/a"), 0)
        with pytest.raises(outcome):
            world.machine.fault(signalled(world, "/a"), enclave, evicted[0])


@EVERY
def test_a_signal_does_not_matter_below_the_limit(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    assert world.machine.create_enclave(signalled(world, "/a"), 1).created


# -- whose pages go --------------------------------------------------------------------


def siblings(policy: Policy) -> tuple[World, Enclave]:
    """/a is full, mostly by /a/c; a process of /a/b, which has some pages, wants one more."""
    world = World(policy)
    world.group("/a", limit=100)
    world.group("/a/b")
    world.group("/a/c")
    mine = world.enclave("/a/b", 30)
    theirs = world.enclave("/a/c", 90, init=False)
    world.evict("/a")
    world.touch(mine, range(10))
    world.machine.initialise(theirs)
    for index in range(90):
        if world.pages("/a") < 100:
            world.machine.fault(world.caller("/a/c"), theirs, index)
    world.evictions()
    return world, mine


@FAITHFUL
def test_b24_in_the_series_a_fault_spins_when_a_sibling_holds_the_parents_limit(policy: Policy) -> None:
    """ALLOC-10: the worker compares the child's own usage with the parent's limit."""
    world, mine = siblings(policy)
    assert world.touch(mine, [20], "/a/b") == [NOT_MAPPED]
    assert world.evictions() == []
    assert world.events("/a") >= 8


def test_b24_in_standard_the_group_whose_limit_was_hit_gives_pages() -> None:
    world, mine = siblings(STANDARD)
    assert world.touch(mine, [20], "/a/b") == [2]
    assert world.evictions()
    assert world.pages("/a") <= 100
    assert world.events("/a/b") == 0


@EVERY
def test_b20_a_child_whose_limit_is_larger_than_its_parents_reclaims_at_the_parents(policy: Policy) -> None:
    world = World(policy)
    world.group("/p", limit=20)
    world.group("/p/c", limit=1000)
    enclave = world.enclave("/p/c", 100)
    assert len(enclave.pages) == 100
    assert world.pages("/p") <= 20
    assert world.events("/p") > 0
    assert world.machine.groups.lookup("/p/c").events[world.machine.resource] == 0


@EVERY
def test_b21_at_capacity_without_any_limit_pages_are_found_or_it_fails(policy: Policy) -> None:
    world = World(policy, epc_pages=200)
    world.group("/a")
    enclave = world.enclave("/a", 400)
    assert len(enclave.pages) == 400
    for page in list(enclave.pages.values()):
        if page is not None:
            world.machine.drop_from_lru(page)
    world.machine.settle()
    missing = [index for index, page in enclave.pages.items() if page is None]
    while world.machine.free:
        world.machine.drop_from_lru(world.machine.fault(world.caller("/a"), enclave, missing.pop()))
    with pytest.raises(NoEpc):
        world.machine.fault(world.caller("/a"), enclave, missing[0])
    check(world.machine)


@EVERY
def test_b22_a_failed_allocation_leaves_no_charge_however_often(policy: Policy) -> None:
    """ALLOC-02. A poisoned page makes the EPC smaller than its capacity, so the charge passes."""
    world = World(policy, epc_pages=64)
    world.group("/a")
    world.group("/b")
    world.guest("/a", 60)
    for _ in range(3):
        page = world.machine.pool.take(world.machine.groups.root)
        world.machine.pool.give(page)
        world.machine.poison(page)
    usage = world.pages()
    for _ in range(10):
        with pytest.raises(NoEpc):
            world.machine.create_enclave(world.caller("/b"), 1)
    assert world.pages() == usage
    assert world.machine.groups.lookup("/b").pins == 0
    check(world.machine)


def test_b26_standard_ends_when_no_page_can_be_written() -> None:
    """The owner's memory is full: direct reclaim fails, and so does the fault after the worker gave up."""
    world, enclave = full(STANDARD)
    evicted = next(i for i, page in enclave.pages.items() if page is None)
    world.machine.set_max(world.machine.groups.lookup("/a"), world.pages("/a") * 4096)
    world.pager.refuse = lambda _page: True
    with pytest.raises(NoEpc, match="written out"):
        world.machine.create_enclave(world.caller("/a"), 1)
    assert world.touch(enclave, [evicted]) == [SIGBUS]
    world.pager.refuse = None
    assert world.touch(enclave, [evicted]) == [2]


def test_b26_the_same_for_the_whole_machine() -> None:
    world = World(STANDARD, epc_pages=32)
    world.group("/a")
    enclave = world.enclave("/a", 60)
    evicted = [i for i, page in enclave.pages.items() if page is None]
    world.pager.refuse = lambda _page: True
    answers = world.touch(enclave, evicted[:20])
    assert answers[-1] == SIGBUS
    assert NOT_MAPPED not in answers
    assert world.machine.free == 0
    check(world.machine)


@FAITHFUL
def test_b26_the_series_goes_on_until_a_signal(policy: Policy) -> None:
    world, _ = full(policy)
    world.machine.set_max(world.machine.groups.lookup("/a"), 0)
    world.pager.refuse = lambda _page: True
    asked = []
    caller = Caller(world.machine.groups.lookup("/a"), lambda: asked.append(1) or len(asked) > 50)
    with pytest.raises(Interrupted):
        world.machine.create_enclave(caller, 1)


@EVERY
def test_b82_a_moved_process_charges_where_it_is_and_old_pages_stay_where_they_were(policy: Policy) -> None:
    """EPC-31, spec 8.3: an evicted page comes back charged to who touches it."""
    world = World(policy)
    world.group("/a", limit=12)
    world.group("/b")
    enclave = world.enclave("/a", 30)
    before = world.pages("/a")
    evicted = [i for i, page in enclave.pages.items() if page is None]
    assert world.touch(enclave, evicted[:5], "/b") == [1] * 5
    assert world.pages("/a") == before
    assert world.pages("/b") == 5
    page = enclave.pages[evicted[0]]
    assert page is not None
    assert page.group is world.machine.groups.lookup("/b")
    world.close(enclave)
    assert (world.pages("/a"), world.pages("/b")) == (0, 0)


@EVERY
def test_a_page_that_does_not_verify_is_an_error_and_leaves_nothing(policy: Policy) -> None:
    world, enclave = full(policy)
    evicted = next(i for i, page in enclave.pages.items() if page is None)
    world.pager.broken.add((enclave.id, evicted))
    world.limit("/a", None)
    usage = world.pages("/a")
    with pytest.raises(LoadFailed):
        world.machine.fault(world.caller("/a"), enclave, evicted)
    assert world.pages("/a") == usage
    check(world.machine)


@EVERY
def test_b41_a_fault_reloads_the_secs_first(policy: Policy) -> None:
    """Also when the page is new (EAUG): mainline fix c6c2adcba50c, v6.6."""
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 6, size=16)
    world.evict("/a")
    assert enclave.secs is None
    world.log.clear()
    world.machine.augment(world.caller("/a"), enclave, 9)
    assert world.log == [("+", enclave.id, SECS_INDEX)]
    world.evict("/a")
    assert enclave.secs is None
    world.log.clear()
    assert world.touch(enclave, [0]) == [1]
    assert world.log == [("+", enclave.id, SECS_INDEX), ("+", enclave.id, 0)]


def test_standard_takes_secs_and_page_together_or_not_at_all() -> None:
    """FAULT-02: one by one, the SECS may come alone, and then nothing can evict it."""
    for policy, secs_alone in ((V5, True), (V17, True), (STANDARD, False)):
        world = World(policy)
        group = world.group("/a")
        enclave = world.enclave("/a", 6)
        world.enclave("/a", 6)
        world.evict("/a")
        world.touch(world.machine.enclaves[2], range(6))
        world.machine.set_max(group, (world.pages("/a") + 1) * 4096)
        with pytest.raises(Busy):
            world.machine.fault(world.caller("/a"), enclave, 0)
        assert (enclave.secs is not None) is secs_alone
        world.machine.settle()
        assert world.touch(enclave, [0]) == [1]


@EVERY
def test_ex7_an_enclave_of_the_capacity_in_a_512th_of_it_fails_at_the_seventh_va_page(policy: Policy) -> None:
    """Capacity 4096 pages, limit 8: 3071 pages are added, then two charges are needed at once."""
    world = World(policy, epc_pages=4096)
    world.group("/small", limit=8)
    enclave = world.machine.create_enclave(world.caller("/small"), 4096)
    added = 0
    try:
        for index in range(4096):
            world.machine.add_page(world.caller("/small"), enclave, index)
            added += 1
    except NoEpc:
        pass
    assert added == 3071
    assert len(enclave.va_pages) == 6
    check(world.machine)


@EVERY
def test_outside_the_enclave_there_is_nothing(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 2, size=8)
    for index in (-1, 5, 8):
        with pytest.raises(OutOfRange):
            world.machine.fault(world.caller("/a"), enclave, index)
    for index in (-1, 8):
        with pytest.raises(OutOfRange):
            world.machine.augment(world.caller("/a"), enclave, index)


@pytest.mark.parametrize("epc_pages", [6, 8, 16, 64])
def test_standard_makes_progress_on_a_tiny_epc(epc_pages: int) -> None:
    """Every touch succeeds within a few turns; the series' fixed watermarks would drain it each time."""
    world = World(STANDARD, epc_pages=epc_pages)
    world.group("/a")
    enclave = world.enclave("/a", 40)
    for _ in range(3):
        answers = world.touch(enclave, range(40))
        assert max(answers) <= 3
        assert min(answers) >= 0
        check(world.machine)
    # A loop that fits is not paged: code, data, stack stay while they are used.
    small = range(max(1, epc_pages // 3))
    world.touch(enclave, small)
    world.touch(enclave, small)
    assert world.touch(enclave, small) == [0] * len(small)


@pytest.mark.parametrize("limit", [3, 4, 5, 7])
def test_standard_makes_progress_under_a_tiny_limit(limit: int) -> None:
    world = World(STANDARD)
    world.group("/a", limit=limit)
    enclave = world.enclave("/a", 20)
    for _ in range(2):
        answers = world.touch(enclave, range(20))
        assert min(answers) >= 0
        assert max(answers) <= 3
    assert world.pages("/a") <= limit
    assert len(enclave.pages) == 20
