"""The worked examples of spec 11, to the page. (EX-2: test_allocation; EX-6: test_pages.)"""

from __future__ import annotations

import pytest

from epcgroup.epc import STANDARD, V5, V17, Enclave, Policy
from epcgroup.epc.invariants import check
from epcgroup.errors import NoEpc
from epcgroup.testing import World


@pytest.mark.parametrize("init", [False, True])
def test_ex1_a_charge_refused_by_the_parent_evicts_all_six_pages(init: bool) -> None:
    """Not initialised, the SECS stays; initialised, it follows its last page."""
    world = World(V5)
    world.group("/p", limit=8)
    world.group("/p/c")
    enclave = world.enclave("/p/c", 6, init=init, size=8)
    if init:
        world.machine.create_enclave(world.caller("/p/c"), 1)  # VA refused and retried, then SECS
        assert world.pages("/p") == 1 + 2
        assert enclave.secs is None
    else:
        world.machine.add_page(world.caller("/p/c"), enclave, 6)
        assert world.pages("/p") == 2 + 1
    root = world.machine.groups.root.events[world.machine.resource]
    assert (root, world.events("/p"), world.events("/p/c")) == (1, 1, 0)


def test_ex3_v17s_worker_keeps_a_margin_but_is_not_queued_before_a_refusal() -> None:
    """So it was recorded; the mails speak of queueing it at 968 already."""
    world = World(V17)
    world.group("/a", limit=1000)
    enclave = world.enclave("/a", 997)  # and two VA pages, and the SECS
    assert (world.pages("/a"), world.machine.works_run) == (1000, 0)
    world.machine.remove_page(enclave, 0)
    world.machine.augment(world.caller("/a"), enclave, 0)
    assert world.machine.works_run == 0
    world.guest("/a", 1)
    assert world.machine.works_run == 1
    assert world.pages("/a") <= 968


def sixty_and_940(policy: Policy, init: bool) -> tuple[World, list[Enclave]]:
    """30 VA, 30 SECS and 940 pages."""
    world = World(policy)
    world.group("/a")
    enclaves = [world.enclave("/a", 32 if number < 10 else 31, init=init) for number in range(30)]
    assert world.pages("/a") == 1000
    return world, enclaves


def test_ex4_lowering_the_limit_to_100_leaves_88_in_v5() -> None:
    """Target 91: 28 rounds of 32, then 13 clamped up to 16."""
    world, _ = sixty_and_940(V5, init=False)
    world.limit("/a", 100)
    assert world.pages("/a") == 88


def test_ex4_in_v17_nothing_happens_until_the_next_charge() -> None:
    world, _ = sixty_and_940(V17, init=False)
    world.limit("/a", 100)
    assert world.pages("/a") == 1000
    world.machine.create_enclave(world.caller("/a"), 1)
    assert 84 <= world.pages("/a") <= 100


def test_ex4_in_standard_the_group_ends_at_its_limit() -> None:
    world, enclaves = sixty_and_940(STANDARD, init=False)
    world.limit("/a", 100)
    assert world.pages("/a") == 100
    assert not any(enclave.disabled for enclave in enclaves)


def fifty_five_va(policy: Policy) -> tuple[World, list[Enclave]]:
    """55 VA, 5 SECS and 940 pages: five large enclaves, mostly evicted."""
    world = World(policy)
    world.group("/a")
    enclaves = [world.machine.create_enclave(world.caller("/a"), 8192) for _ in range(5)]
    for enclave in enclaves:
        for index in range(5120):
            world.machine.add_page(world.caller("/a"), enclave, index)
        world.machine.settle()
        world.machine.initialise(enclave)
    world.evict("/a")
    for enclave in enclaves:
        world.touch(enclave, range(188))
    assert world.pages("/a") == 1000
    return world, enclaves


def test_ex5_with_55_va_pages_a_limit_of_50_ends_in_disabling() -> None:
    for policy, victims in ((V5, 5), (STANDARD, 1)):
        world, enclaves = fifty_five_va(policy)
        world.limit("/a", 50)
        assert world.pages("/a") == 55
        assert [enclave.disabled for enclave in enclaves] == [True] * victims + [False] * (5 - victims)
        world.close(enclaves[0])
        assert world.pages("/a") == 44
        check(world.machine)


def test_ex5_in_v17_the_next_charge_evicts_everything_and_fails() -> None:
    world, enclaves = fifty_five_va(V17)
    world.limit("/a", 50)
    assert world.pages("/a") == 1000
    with pytest.raises(NoEpc):
        world.machine.create_enclave(world.caller("/a"), 1)
    assert world.pages("/a") == 55
    assert not any(enclave.disabled for enclave in enclaves)


def test_ex5_with_30_va_pages_nobody_is_disabled() -> None:
    world, enclaves = sixty_and_940(V5, init=True)
    world.limit("/a", 50)
    assert world.pages("/a") <= 41
    assert not any(enclave.disabled for enclave in enclaves)
    world, _ = sixty_and_940(V17, init=True)
    world.limit("/a", 50)
    assert world.machine.create_enclave(world.caller("/a"), 1)
