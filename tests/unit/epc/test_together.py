"""Loads and evictions of several pages at once leave what one after the other would leave."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from epcgroup.epc import STANDARD, V5, V17, Enclave, EpcPage, Policy, headroom
from epcgroup.epc import reclaim as reclaiming
from epcgroup.epc.invariants import check
from epcgroup.epc.state import Epc
from epcgroup.errors import EnclaveDisabled, OutOfRange, Refused
from epcgroup.testing.world import World

EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)
PAGES = 60


def evicted(policy: Policy) -> tuple[World, Enclave]:
    """An enclave of two groups' machine, whose pages are all evicted."""
    world = World(policy, 512)
    world.group("/a", limit=55)
    world.group("/a/b")
    enclave = world.enclave("/a/b", PAGES)
    world.enclave("/a", 20)
    while enclave.child_count:
        reclaiming.reclaim(world.machine, world.machine.groups.root, 16, ignore_age=True)
    world.touch(enclave, [PAGES - 1])  # and with it the SECS
    return world, enclave


def books(world: World, enclave: Enclave) -> dict[str, object]:
    """All that an operation can have changed."""
    machine = world.machine
    groups = list(machine.groups.walk(machine.groups.root))
    return {
        "lists": [world.lru(group.path) for group in groups],
        "counters": [group.counters.as_dict() for group in groups],
        "usage": [(group.usage, group.peak, group.events, group.pins, group.below) for group in groups],
        "active": [group.active_ids for group in groups],
        "of the enclave": (enclave.counters.as_dict(), enclave.child_count, enclave.isolated),
        "places": {index: page and page.number for index, page in enclave.pages.items()},
        "free": [machine.pool.take(groups[0]).number for _ in range(machine.free)],
        "contents": world.log,
        "work": (list(machine.works), machine.ksgxd_woken),
    }


def one_by_one(world: World, enclave: Enclave, indices: list[int]) -> None:
    for index in indices:
        world.machine.fault(world.caller("/a/b"), enclave, index)


def evict_one_by_one(epc: Epc, pages: list[EpcPage]) -> None:
    for page in pages:
        reclaiming._evict(epc, page)


def together(world: World, enclave: Enclave, indices: list[int]) -> None:
    world.machine.arrived(world.caller("/a/b"), enclave, indices)


def outcome(policy: Policy, how: Callable[[World, Enclave, list[int]], None], indices: list[int]) -> object:
    with pytest.MonkeyPatch.context() as patch:
        if how is one_by_one:
            patch.setattr(reclaiming, "_evict_some", evict_one_by_one)
        world, enclave = evicted(policy)
        refused = None
        for at in range(0, len(indices), 7):
            try:
                how(world, enclave, indices[at : at + 7])
            except Refused as error:
                refused = type(error)
            world.machine.settle()
            check(world.machine)
        return refused, books(world, enclave)


@EVERY
def test_loads_and_evictions_at_once_keep_the_books_of_one_after_the_other(policy: Policy) -> None:
    """Room for all, room for some, a page that is there already."""
    order = random.Random(3).sample(range(PAGES), 40)
    for indices in (order, [*order, *order[:5]], [1, 2, 1, 3]):
        assert outcome(policy, together, indices) == outcome(policy, one_by_one, indices)


def test_loads_at_once_are_refused_as_one_is() -> None:
    world, enclave = evicted(STANDARD)
    with pytest.raises(OutOfRange):
        together(world, enclave, [1, PAGES])
    assert enclave.pages[1] is not None
    enclave.disabled = True
    with pytest.raises(EnclaveDisabled):
        together(world, enclave, [2, 3])
    assert enclave.pages[2] is None


@EVERY
def test_headroom_ends_with_the_load_that_wakes_ksgxd(policy: Policy) -> None:
    """Who has that many at once leaves what one after the other leaves, and ksgxd has its work."""

    def machine() -> tuple[World, Enclave]:
        world = World(policy, 512)
        world.group("/a")
        enclave = world.enclave("/a", 500)
        while enclave.child_count > 100:
            reclaiming.reclaim(world.machine, world.machine.groups.root, 16, ignore_age=True)
        return world, enclave

    found = []
    for at_once in (False, True):
        world, enclave = machine()
        room = headroom(world.machine, world.caller("/a").group)
        assert room == world.machine.free - world.machine.low + 1
        indices = [index for index, page in enclave.pages.items() if page is None][:room]
        if at_once:
            world.machine.arrived(world.caller("/a"), enclave, indices)
        else:
            for index in indices:
                assert not world.machine.ksgxd_woken
                world.machine.fault(world.caller("/a"), enclave, index)
        assert world.machine.ksgxd_woken
        check(world.machine)
        assert headroom(world.machine, world.caller("/a").group) == 1, "and each one wakes it again"
        found.append(books(world, enclave))
    assert found[0] == found[1]
