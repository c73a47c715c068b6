"""misc.low, misc.high and reclaim on demand: extensions that no posting after the RFC has (spec 9.2)."""

from __future__ import annotations

import pytest

from epcgroup.epc import STANDARD, V5, V17, Policy, with_soft_limits
from epcgroup.epc.invariants import check
from epcgroup.errors import BadInput, Refused
from epcgroup.misc import files
from epcgroup.sim.kernel.store import Store
from epcgroup.testing import World
from epcgroup.units import PAGE_SIZE

EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)


def soft(world: World, path: str, name: str, pages: int) -> None:
    """Write misc.low or misc.high in pages."""
    group = world.machine.groups.lookup(path)
    files.write(world.machine.groups, group, name, f"sgx_epc {pages * PAGE_SIZE}".encode())
    world.machine.settle()


@EVERY
def test_without_the_knob_there_are_no_such_files(policy: Policy) -> None:
    world = World(policy)
    group = world.group("/a")
    for name in ("low", "high"):
        with pytest.raises(Refused, match="no file"):
            files.write(world.machine.groups, group, name, b"sgx_epc 4096")


def test_they_read_back_and_only_for_what_can_be_reclaimed() -> None:
    world = World(with_soft_limits(STANDARD))
    world.machine.groups.set_capacity("sev", 5)
    group = world.group("/a")
    tree = world.machine.groups
    assert files.read(tree, group, "low") == b"sgx_epc 0\n"
    assert files.read(tree, group, "high") == b"sgx_epc max\n"
    files.write(tree, group, "low", b"sgx_epc 8191")
    assert files.read(tree, group, "low") == b"sgx_epc 8191\n"
    with pytest.raises(Refused, match="nothing of 'sev' can be reclaimed"):
        files.write(tree, group, "high", b"sev 1")
    assert not {"low", "high"} & files.names(tree, tree.root)


@EVERY
def test_a_group_above_its_soft_limit_is_brought_below_and_nobody_waits(policy: Policy) -> None:
    world = World(with_soft_limits(policy))
    world.group("/a")
    soft(world, "/a", "high", 64)
    enclave = world.enclave("/a", 200)  # every add succeeds
    assert world.pages("/a") <= 64
    assert world.events("/a") == 0
    assert all(calls == 1 for calls in world.touch(enclave, range(100)))  # no fault had to be retried
    assert world.pages("/a") <= 64
    check(world.machine)


@EVERY
def test_lowering_the_soft_limit_reclaims(policy: Policy) -> None:
    world = World(with_soft_limits(policy))
    world.group("/a")
    world.enclave("/a", 100)
    soft(world, "/a", "high", 40)
    assert world.pages("/a") <= 40


@EVERY
def test_the_soft_limit_of_an_ancestor_is_everybodys(policy: Policy) -> None:
    world = World(with_soft_limits(policy))
    for path in ("/p", "/p/a", "/p/b"):
        world.group(path)
    soft(world, "/p", "high", 100)
    world.enclave("/p/a", 90)
    world.enclave("/p/b", 90)
    assert world.pages("/p") <= 100


@EVERY
def test_no_enclave_is_disabled_for_a_soft_limit(policy: Policy) -> None:
    """What stays are SECS and VA pages; the last resort is for hard limits."""
    world = World(with_soft_limits(policy))
    world.group("/a")
    enclaves = [world.enclave("/a", 1, init=False) for _ in range(4)]
    soft(world, "/a", "high", 2)
    assert world.pages("/a") > 2
    assert not any(enclave.disabled for enclave in enclaves)


@EVERY
def test_a_protected_group_keeps_its_pages_while_others_have_some(policy: Policy) -> None:
    world = World(with_soft_limits(policy), epc_pages=400)
    for path in ("/a", "/b"):
        world.group(path)
    soft(world, "/a", "low", 110)
    kept = world.enclave("/a", 100)
    world.enclave("/b", 500)
    assert {owner for owner, _ in world.evictions()} == {kept.id + 1}
    assert world.pages("/a") == 102


@EVERY
def test_protection_is_best_effort(policy: Policy) -> None:
    """With everybody protected, everybody loses."""
    world = World(with_soft_limits(policy), epc_pages=300)
    for path in ("/a", "/b"):
        world.group(path)
        soft(world, path, "low", 1000)
    world.enclave("/a", 200)
    world.enclave("/b", 200)
    assert world.pages() <= 300
    assert world.evictions()


@EVERY
def test_above_its_protection_a_group_is_like_any_other(policy: Policy) -> None:
    world = World(with_soft_limits(policy), epc_pages=300)
    world.group("/a")
    soft(world, "/a", "low", 50)
    enclave = world.enclave("/a", 250)
    world.group("/b")
    world.enclave("/b", 200)
    assert enclave.id in {owner for owner, _ in world.evictions()}
    assert world.pages("/a") >= 34  # a batch may go below the protection, not the next one


@EVERY
def test_an_unprotected_parent_leaves_its_child_protected_only_with_itself(policy: Policy) -> None:
    """Protection counts along the whole way below the top of the reclaim."""
    world = World(with_soft_limits(policy), epc_pages=400)
    for path in ("/p", "/p/a", "/b"):
        world.group(path)
    soft(world, "/p/a", "low", 1000)
    enclave = world.enclave("/p/a", 100)
    world.enclave("/b", 500)
    assert enclave.id in {owner for owner, _ in world.evictions()}


@EVERY
def test_a_machine_that_is_short_takes_first_from_who_is_above_its_soft_limit(policy: Policy) -> None:
    world = World(with_soft_limits(policy), epc_pages=400)
    for path in ("/a", "/b", "/c"):
        world.group(path)
    first = world.enclave("/a", 100)
    second = world.enclave("/b", 100)
    group = world.machine.groups.lookup("/b")
    group.high[world.machine.resource] = 60 * PAGE_SIZE  # not written: its worker sleeps
    world.evictions()
    reclaimed = world.machine.reclaim(world.machine.groups.root, 32)
    assert reclaimed >= 32
    assert {owner for owner, _ in world.evictions()} == {second.id}
    assert first.child_count == 100


@EVERY
@pytest.mark.parametrize("extended", [False, True])
def test_reclaim_on_demand_takes_what_it_was_told_old_pages_first(policy: Policy, extended: bool) -> None:
    world = World(with_soft_limits(policy) if extended else policy)
    group = world.group("/a")
    enclave = world.enclave("/a", 100)
    world.young(enclave, range(50))
    assert 20 <= world.machine.reclaim(group, 20) < 36
    assert all(index >= 50 for _, index in world.evictions())
    left = enclave.child_count
    assert world.machine.reclaim(group, 1000) == left
    assert (enclave.child_count, group.below) == (0, 0)
    assert world.machine.reclaim(group, 1) == 0
    check(world.machine)


@EVERY
def test_reclaim_on_demand_ends_where_nothing_can_be_written(policy: Policy) -> None:
    world = World(policy)
    group = world.group("/a")
    world.enclave("/a", 100)
    world.pager.refuse = lambda _: True
    assert world.machine.reclaim(group, 10) == 0


def test_stat_counts_the_subtree_and_keeps_what_released_groups_did() -> None:
    world = World(STANDARD)
    for path in ("/p", "/p/a"):
        world.group(path)
    enclave = world.enclave("/p/a", 600)
    world.guest("/p", 7)
    parent = world.machine.groups.lookup("/p")
    world.evict("/p/a")
    world.touch(enclave, range(10), "/p/a")
    seen = world.machine.stat(parent)
    assert (seen["secs"], seen["va"], seen["vepc"], seen["reclaimable"]) == (1, 2, 7, 10)
    assert (seen["pgadd"], seen["pgout"], seen["pgin"], seen["pgrefault"]) == (600, 601, 11, 10)
    world.close(enclave)
    world.machine.groups.rmdir("/p/a")
    world.machine.settle()
    after = world.machine.stat(parent)
    assert (after["secs"], after["va"], after["reclaimable"]) == (0, 0, 0)
    assert (after["pgadd"], after["pgout"], after["pgin"]) == (600, 601, 11)


def test_the_compiled_engine_says_that_it_knows_no_soft_limits() -> None:
    with pytest.raises(BadInput, match="does not know soft_limits"):
        Store(100, with_soft_limits(STANDARD))
