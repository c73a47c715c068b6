"""A page's life: states, lists, owners (spec 2.1 to 2.7)."""

from __future__ import annotations

import pytest

from epcgroup.epc import SECS_INDEX, STANDARD, V5, V17, EpcPage, Group, Kind, Policy, State
from epcgroup.epc.invariants import check
from epcgroup.epc.lru import PageList
from epcgroup.epc.pool import Pool
from epcgroup.epc.reclaim import reclaim
from epcgroup.errors import Busy, InternalError, NoEpc, OutOfRange, PageExists
from epcgroup.testing import TablePager, World

GROUP = Group(0, None, "", 1)
EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)


class Meddler(TablePager):
    """A pager that does something while a round holds pages."""

    def __init__(self) -> None:
        super().__init__([])
        self.during: list[object] = []

    def block(self, pages: object) -> None:
        super().block(pages)  # type: ignore[arg-type]
        for action in self.during:
            action()  # type: ignore[operator]
        self.during.clear()


def meddled(policy: Policy) -> tuple[World, Meddler]:
    world = World(policy, 512)
    pager = Meddler()
    world.pager, world.machine.pager, world.log = pager, pager, pager.log or []
    return world, pager


# -- the pool and the lists ----------------------------------------------------


def test_free_pages_are_handed_out_in_the_order_in_which_they_were_freed() -> None:
    """EPC-05."""
    pool = Pool(3)
    pages = [pool.take(GROUP) for _ in range(3)]
    assert [page.number for page in pages] == [0, 1, 2]
    for page in (pages[2], pages[0], pages[1]):
        pool.give(page)
    assert [pool.take(GROUP).number for _ in range(3)] == [2, 0, 1]


def test_a_poisoned_page_is_never_handed_out() -> None:
    """EPC-07, EPC-08; poisoned pages are not counted as free."""
    pool = Pool(3)
    used, idle = pool.take(GROUP), pool.take(GROUP)
    pool.give(idle)
    pool.poison(idle)
    pool.poison(idle)
    pool.poison(used)
    pool.give(used)
    assert pool.free == 1
    assert pool.take(GROUP).number == 2
    assert pool.poisoned == [idle, used]


def test_a_list_takes_from_the_head_and_unlinks_anywhere() -> None:
    pages = [EpcPage(number) for number in range(5)]
    which = PageList()
    for page in pages:
        which.append(page)
    which.unlink(pages[2])
    assert which.take(2) == pages[:2]
    assert list(which) == pages[3:]
    assert which.take(9) == pages[3:]
    assert (which.head, which.tail, len(which)) == (None, None, 0)


# -- transitions -----------------------------------------------------------------


@EVERY
def test_t1_t2_t3_an_added_page_is_reclaimable_and_secs_and_va_never(policy: Policy) -> None:
    world = World(policy)
    group = world.group("/a")
    enclave = world.enclave("/a", 3)
    tracked = State.UNRECLAIMABLE if policy.track_unreclaimable else State.NOT_TRACKED
    assert [page.state for page in enclave.pages.values() if page] == [State.RECLAIMABLE] * 3
    assert enclave.secs is not None
    assert (enclave.secs.state, enclave.va_pages[0].state) == (tracked, tracked)
    assert [page.kind for page in group.unreclaimable] == [Kind.VA, Kind.SECS] * policy.track_unreclaimable


@EVERY
def test_t4_t9_b48_a_page_that_a_round_holds_cannot_be_dropped(policy: Policy) -> None:
    """Even while other pages of the round are on its list."""
    world, pager = meddled(policy)
    world.group("/a", limit=10)
    enclave = world.enclave("/a", 8)
    held = enclave.pages[0]
    assert held is not None
    refused = []

    def meddle() -> None:
        assert held.state is State.RECLAIM_IN_PROGRESS
        for action in (
            lambda: world.machine.remove_page(enclave, 0),
            lambda: world.machine.drop_from_lru(held),
            lambda: world.machine.fault(world.caller("/a"), enclave, 0),
        ):
            with pytest.raises(Busy):
                action()
            refused.append(1)

    pager.during.append(meddle)
    other = world.machine.create_enclave(world.caller("/a"), 1)
    assert len(refused) == 3
    assert enclave.pages[0] is None
    world.close(other)
    check(world.machine)


@EVERY
def test_faults_come_in_while_a_round_blocks_its_pages(policy: Policy) -> None:
    """Even if the round holds all that its enclave has: the SECS then stays, for those that came."""
    world, pager = meddled(policy)
    group = world.group("/a")
    enclave, caller = world.enclave("/a", 16), world.caller("/a")
    while enclave.child_count:
        reclaim(world.machine, group, 16, ignore_age=True)
    world.touch(enclave, [3, 4])
    seen: list[int] = []

    def meddle() -> None:
        for index in (7, 8):
            assert world.machine.fault(caller, enclave, index).state is State.RECLAIMABLE
            seen.append(index)
        world.machine.arrived(caller, enclave, [9, 10])
        with pytest.raises(Busy):
            world.machine.fault(caller, enclave, 3)

    pager.during.append(meddle)
    assert reclaim(world.machine, group, 2, ignore_age=True) == (2, 2)
    assert seen == [7, 8]
    assert enclave.pages[3] is enclave.pages[4] is None
    assert [page.index for page in group.reclaimable] == [7, 8, 9, 10]
    assert enclave.secs is not None
    check(world.machine)


@EVERY
def test_t5_t7_b47_b60_an_enclave_released_during_a_round_dies_after_it(policy: Policy) -> None:
    """The round still finds SECS and VA; nothing leaks."""
    world, pager = meddled(policy)
    world.group("/a", limit=20)
    enclave = world.enclave("/a", 18)

    def meddle() -> None:
        world.machine.release(enclave)
        assert enclave.secs is not None
        assert enclave.va_pages

    pager.during.append(meddle)
    world.machine.create_enclave(world.caller("/a"), 1)
    assert not pager.during
    assert enclave.va_pages == []
    assert enclave.id not in world.machine.enclaves
    assert world.pages("/a") == 2
    check(world.machine)


@EVERY
def test_t6_b52_a_young_page_goes_to_the_tail_of_its_own_groups_list(policy: Policy) -> None:
    world = World(policy)
    top = world.group("/a")
    world.group("/a/b")
    enclave = world.enclave("/a/b", 8)
    world.young(enclave, [0, 1])
    left = [0, 1] if policy is V17 else [4, 5, 6, 7, 0, 1]  # v17 looks at 16 of a list
    reclaim(world.machine, top, 4)
    assert world.lru("/a/b") == [(enclave.id, index) for index in left]
    assert {page.state for page in enclave.pages.values() if page} == {State.RECLAIMABLE}
    assert world.lru("/a") == []
    assert enclave.isolated == 0
    check(world.machine)


@EVERY
def test_t8_t10_a_removed_page_is_free_and_uncharged_and_va_pages_stay(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 3)
    free = world.machine.free
    world.machine.remove_page(enclave, 1)
    assert world.machine.free == free + 1
    assert world.pages("/a") == 4
    assert (enclave.page_cnt, len(enclave.va_pages), sorted(enclave.pages)) == (3, 1, [0, 2])
    with pytest.raises(OutOfRange):
        world.machine.remove_page(enclave, 1)


@EVERY
def test_b49_dropping_a_page_twice_is_harmless(policy: Policy) -> None:
    """EPC-20: memory failure, then the enclave's exit."""
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 5)
    page = enclave.pages[2]
    assert page is not None
    world.machine.poison(page)
    world.machine.drop_from_lru(page)
    assert (1, 2) not in world.lru("/a")
    check(world.machine)
    world.close(enclave)
    assert world.machine.free == world.machine.epc_pages - 1
    check(world.machine)


@EVERY
def test_a_page_dropped_from_the_list_is_not_reclaimed_until_it_is_back(policy: Policy) -> None:
    """MODIFY_TYPES (T8, then T2)."""
    world = World(policy)
    world.group("/a", limit=10)
    enclave = world.enclave("/a", 8)
    page = enclave.pages[0]
    assert page is not None
    world.machine.drop_from_lru(page)
    world.limit("/a", 4)
    world.touch(enclave, [1, 2, 3])
    assert enclave.pages[0] is page
    world.machine.restore_to_lru(page)
    assert world.lru("/a")[-1] == (enclave.id, 0)
    check(world.machine)


# -- version arrays ----------------------------------------------------------------


@EVERY
def test_va_pages_are_one_for_512_pages_the_secs_counted(policy: Policy) -> None:
    """EPC-41."""
    world = World(policy, 2048)
    world.group("/a")
    enclave = world.enclave("/a", 511, size=1024)
    assert len(enclave.va_pages) == 1
    world.machine.release(enclave)
    enclave = world.machine.create_enclave(world.caller("/a"), 1024)
    world.add("/a", enclave, range(512))
    assert len(enclave.va_pages) == 2
    assert enclave.page_cnt == 513


@EVERY
def test_a_page_that_exists_is_refused_and_nothing_is_counted(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 3, init=False)
    before = world.pages("/a"), enclave.page_cnt, world.lru("/a")
    with pytest.raises(PageExists):
        world.machine.add_page(world.caller("/a"), enclave, 2)
    with pytest.raises(OutOfRange):
        world.machine.add_page(world.caller("/a"), enclave, 3)
    assert (world.pages("/a"), enclave.page_cnt, world.lru("/a")) == before


@EVERY
def test_a_cancelled_page_takes_its_va_page_with_it(policy: Policy) -> None:
    """EPC-43: EADD failed after the page and a VA page were had."""
    world = World(policy, 2048)
    world.group("/a")
    enclave = world.enclave("/a", 511, init=False, size=600)
    before = world.pages("/a")
    world.add("/a", enclave, [511])
    assert world.pages("/a") == before + 2
    world.machine.cancel_page(enclave, 511)
    assert world.pages("/a") == before
    assert enclave.page_cnt == 512
    check(world.machine)


@EVERY
def test_ex6_b34_when_a_va_page_is_due_one_page_needs_two_charges_or_none(policy: Policy) -> None:
    world = World(policy, 2048)
    world.group("/a")
    enclave = world.enclave("/a", 511, init=False, size=600)
    for page in list(enclave.pages.values()):
        assert page is not None
        world.machine.drop_from_lru(page)  # nothing can be evicted
    # VA, SECS, 511 pages, and room for exactly one; v5's worker must not act on the write.
    world.machine.set_max(world.machine.groups.lookup("/a"), 514 * 4096)
    with pytest.raises(NoEpc):
        world.machine.add_page(world.caller("/a"), enclave, 511)
    assert world.pages("/a") == 513
    assert enclave.page_cnt == 512
    check(world.machine)
    world.machine.set_max(world.machine.groups.lookup("/a"), 515 * 4096)
    world.machine.add_page(world.caller("/a"), enclave, 511)
    assert len(enclave.va_pages) == 2


@EVERY
@pytest.mark.parametrize("limit", [0, 1])
def test_b30_a_create_that_fails_returns_everything_and_can_be_retried(policy: Policy, limit: int) -> None:
    world = World(policy)
    world.group("/a", limit=limit)
    with pytest.raises(NoEpc):
        world.machine.create_enclave(world.caller("/a"), 8)
    assert world.pages() == 0
    assert world.machine.free == world.machine.epc_pages
    check(world.machine)
    world.limit("/a", 2)
    enclave = world.machine.create_enclave(world.caller("/a"), 8)
    assert enclave.secs is not None
    assert enclave.secs.index == SECS_INDEX


def test_the_invariants_notice_what_is_wrong() -> None:
    """The checker must not be blind: each broken count is named."""
    world = World(V5)
    group = world.group("/a")
    enclave = world.enclave("/a", 3)
    check(world.machine)

    def broken(name: str) -> None:
        with pytest.raises(InternalError, match=name):
            check(world.machine)

    group.usage[world.machine.resource] += 4096
    broken("INV-1")
    group.usage[world.machine.resource] -= 4096
    world.machine.pool.free += 1
    broken("INV-3")
    world.machine.pool.free -= 1
    page = enclave.pages[0]
    assert page is not None
    page.state = State.NOT_TRACKED
    broken("INV-4")
    page.state = State.RECLAIMABLE
    enclave.child_count += 1
    broken("INV-5")
    enclave.child_count -= 1
    enclave.page_cnt = 513
    broken("INV-6")
    enclave.page_cnt = 4
    group.events[world.machine.resource] += 1
    broken("INV-7")
    group.events[world.machine.resource] -= 1
    group.peak[world.machine.resource] = 0
    broken("INV-10")
