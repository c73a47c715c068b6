"""Out of EPC: who is disabled, when, and what then (spec 5, 10.4)."""

from __future__ import annotations

import pytest

from epcgroup.epc import STANDARD, V5, V17, Caller, Enclave, Policy, State
from epcgroup.epc.invariants import check
from epcgroup.errors import EnclaveDisabled, NoEpc
from epcgroup.testing import World

BOTH = pytest.mark.parametrize("policy", [STANDARD, V5], ids=lambda policy: policy.name)


def tenants(policy: Policy, count: int = 4, pages: int = 3) -> tuple[World, list[Enclave]]:
    world = World(policy)
    world.group("/a")
    return world, [world.enclave("/a", pages) for _ in range(count)]


def disabled(enclaves: list[Enclave]) -> list[bool]:
    return [enclave.disabled for enclave in enclaves]


@BOTH
def test_nothing_is_disabled_while_pages_can_be_taken(policy: Policy) -> None:
    world, enclaves = tenants(policy, pages=40)
    world.limit("/a", 60)
    assert not any(disabled(enclaves))
    assert world.pages("/a") <= 60


def test_b63_v5_takes_down_everybody_and_standard_one_and_waits() -> None:
    """OOM-11: 4 VA pages and a limit of 3; one enclave's end would suffice."""
    world, enclaves = tenants(V5)
    world.limit("/a", 3)
    assert disabled(enclaves) == [True] * 4
    world, enclaves = tenants(STANDARD)
    world.limit("/a", 3)
    assert disabled(enclaves) == [True, False, False, False]
    world.close(enclaves[0])
    assert world.pages("/a") == 3
    assert not any(disabled(enclaves[1:]))


def test_in_standard_the_next_one_goes_only_after_the_first_was_closed_and_did_not_suffice() -> None:
    world, enclaves = tenants(STANDARD)
    world.limit("/a", 2)
    for _ in range(3):
        world.limit("/a", 2)  # asking again does not hurry
    assert disabled(enclaves) == [True, False, False, False]
    world.close(enclaves[0])
    assert disabled(enclaves) == [True, True, False, False]
    world.close(enclaves[1])
    assert disabled(enclaves) == [True, True, False, False]
    assert not world.machine.waiting_for
    check(world.machine)


def test_a_raised_limit_ends_the_waiting() -> None:
    world, enclaves = tenants(STANDARD)
    world.limit("/a", 2)
    world.limit("/a", None)
    world.close(enclaves[0])
    assert disabled(enclaves) == [True, False, False, False]


def test_two_groups_wait_for_one_victim() -> None:
    """Parent and child are both above their limits: one enclave is disabled, not two."""
    world = World(STANDARD)
    world.group("/p")
    world.group("/p/c")
    first, second = world.enclave("/p/c", 0), world.enclave("/p/c", 0)
    world.limit("/p", 3)
    world.limit("/p/c", 3)
    assert (first.disabled, second.disabled) == (True, False)
    world.close(first)
    assert not second.disabled
    assert not world.machine.waiting_for


@BOTH
def test_a_disabled_enclave_refuses_everything_and_keeps_its_pages_until_it_is_closed(policy: Policy) -> None:
    """Spec 5.4, B-62, B-69."""
    world, enclaves = tenants(policy, count=1)
    building = world.enclave("/a", 0, init=False, size=8)
    world.limit("/a", 0)
    if policy is STANDARD:
        world.close(enclaves[0])
    victim = building
    usage = world.pages("/a")
    assert victim.disabled
    caller = world.caller("/a")
    for refused in (
        lambda: world.machine.add_page(caller, victim, 0),
        lambda: world.machine.initialise(victim),
        lambda: world.machine.fault(caller, victim, 0),
        lambda: world.machine.augment(caller, victim, 5),
    ):
        with pytest.raises(EnclaveDisabled):
            refused()
    assert world.pages("/a") == usage > 0
    with pytest.raises(NoEpc):
        world.machine.create_enclave(caller, 1)
    assert not world.machine.pending
    world.close(victim)
    check(world.machine)


@BOTH
def test_b67_a_guest_is_never_a_victim_and_the_worker_ends(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    guest, _ = world.guest("/a", 20)
    world.limit("/a", 5)
    assert len(guest.pages) == 20
    assert not world.machine.pending
    with pytest.raises(NoEpc):
        world.machine.fault_vepc(world.caller("/a"), guest, 30)


@BOTH
def test_b68_an_enclave_is_found_through_its_page_in_the_group_in_trouble(policy: Policy) -> None:
    """OOM-03: it lives in /a, its SECS was loaded by a process in /b."""
    world = World(policy)
    world.group("/a")
    world.group("/b")
    enclave = world.enclave("/a", 3)
    world.evict("/a")
    world.touch(enclave, [0], "/b")
    page = enclave.pages[0]
    assert page is not None
    world.machine.drop_from_lru(page)
    world.limit("/b", 0)
    assert enclave.disabled
    check(world.machine)


@BOTH
def test_b65_an_enclave_under_construction_is_not_disabled(policy: Policy) -> None:
    """It has its first VA page and not yet its SECS; the page stays accounted."""
    world = World(policy)
    world.group("/a")
    half = world.enclave("/a", 0)
    half.created = False
    done = world.enclave("/a", 0)
    world.limit("/a", 3)
    half.created = True
    assert not half.disabled
    # v5 looks at one entry a group and call, and then gives up for this time (OOM-05).
    assert done.disabled is (policy is STANDARD)
    assert world.pages("/a") == 4
    if policy is V5:
        world.limit("/a", 3)
        assert done.disabled or half.disabled
    world.close(half)
    world.close(done)
    assert world.pages("/a") == 0
    check(world.machine)


def test_t11_b70_in_v5_an_entry_that_was_looked_at_is_unlinked_and_still_freed() -> None:
    """OOM-12: the state stays, later drops tolerate that it is on no list."""
    world, enclaves = tenants(V5, count=1)
    va = enclaves[0].va_pages[0]
    world.limit("/a", 0)
    group = world.machine.groups.lookup("/a")
    assert list(group.unreclaimable) == []
    assert va.state is State.UNRECLAIMABLE
    check(world.machine)
    world.close(enclaves[0])
    assert world.pages("/a") == 0
    check(world.machine)


def test_in_standard_entries_stay_listed_and_accounted() -> None:
    world, enclaves = tenants(STANDARD)
    listed = list(world.machine.groups.lookup("/a").unreclaimable)
    world.limit("/a", 3)
    world.limit("/a", 2)
    assert len(world.machine.groups.lookup("/a").unreclaimable) == len(listed) - 4  # the SECSs, evicted
    check(world.machine)
    assert any(disabled(enclaves))


def test_victims_come_in_pre_order_and_list_order() -> None:
    """OOM-01."""
    world = World(STANDARD)
    for path in ("/p", "/p/a", "/p/b"):
        world.group(path)
    late, early = world.enclave("/p/b", 0), world.enclave("/p/a", 0)
    world.limit("/p", 3)
    assert (early.disabled, late.disabled) == (True, False)


@BOTH
def test_b66_an_evicted_secs_leaves_nothing_behind_in_the_list(policy: Policy) -> None:
    world, enclaves = tenants(policy)
    world.evict("/a")
    kinds = [page.enclave for page in world.machine.groups.lookup("/a").unreclaimable]
    assert kinds == enclaves  # the VA pages
    check(world.machine)


def test_without_a_last_resort_usage_stays_above_a_lowered_limit() -> None:
    """Spec 5.7."""
    world, enclaves = tenants(V17)
    world.limit("/a", 2)
    assert not any(disabled(enclaves))
    assert world.pages("/a") == 4 * 5
    with pytest.raises(NoEpc):
        world.machine.create_enclave(world.caller("/a"), 1)
    assert world.pages("/a") == 4


def test_a_fault_in_a_group_that_waits_for_a_victim_fails_or_waits_as_ever() -> None:
    world, enclaves = tenants(STANDARD, count=3)
    world.limit("/a", 2)
    assert disabled(enclaves) == [True, False, False]
    with pytest.raises(NoEpc):
        world.machine.fault(Caller(world.machine.groups.lookup("/a")), enclaves[1], 0)
    world.close(enclaves[0])
    world.limit("/a", 6)
    assert min(world.touch(enclaves[1], [0, 1, 2])) >= 1
    assert world.pages("/a") <= 6
