"""Background work: queued once, sliced, cancelled (spec 3.4 to 3.6, 5.6, 10.5)."""

from __future__ import annotations

import pytest

from epcgroup.epc import STANDARD, V5, V17, Policy
from epcgroup.epc.invariants import check
from epcgroup.errors import Busy
from epcgroup.testing import World

EVERY = pytest.mark.parametrize("policy", [STANDARD, V5, V17], ids=lambda policy: policy.name)


def waiting(policy: Policy, *paths: str) -> World:
    """Groups at their limit whose workers were queued by a refused fault."""
    world = World(policy)
    enclaves = {}
    for path in paths or ("/a",):
        world.group(path, limit=100)
        enclaves[path] = world.enclave(path, 150)
    for path, enclave in enclaves.items():
        missing = [index for index, page in enclave.pages.items() if page is None]
        while world.pages(path) < 100:
            world.machine.fault(world.caller(path), enclave, missing.pop())
        with pytest.raises(Busy):
            world.machine.fault(world.caller(path), enclave, missing[0])
    world.evictions()
    return world


@EVERY
def test_a_group_is_queued_at_most_once_and_again_once_it_runs(policy: Policy) -> None:
    world = waiting(policy)
    enclave = world.machine.enclaves[1]
    missing = [index for index, page in enclave.pages.items() if page is None]
    for index in missing[:5]:
        with pytest.raises(Busy):
            world.machine.fault(world.caller("/a"), enclave, index)
    assert len(world.machine.works) == 1
    before = world.machine.works_run
    world.machine.settle()
    assert world.machine.works_run == before + 1
    assert not world.machine.pending


def test_every_written_limit_queues_v5s_worker_and_only_a_lower_one_standards() -> None:
    """Spec 5.6, 5.7, MISC-20."""
    for policy, runs in ((V5, 3), (V17, 0), (STANDARD, 1)):
        world = World(policy)
        world.group("/a")
        world.enclave("/a", 98, init=False)
        world.limit("/a", 100)
        world.limit("/a", None)
        world.limit("/a", 50)
        assert world.machine.works_run == runs, policy.name


def test_b64_a_group_within_its_limit_loses_nothing_in_standard() -> None:
    """ALLOC-23: v5's margin makes any write reclaim, and disable enclaves, below the limit."""
    for policy, evicted, disabled in ((V5, 9, True), (V17, 0, False), (STANDARD, 0, False)):
        world = World(policy)
        world.group("/a")
        world.enclave("/a", 98)
        world.evictions()
        world.limit("/a", 100)
        assert (len(world.evictions()) >= evicted) if evicted else not world.evictions(), policy.name
        world = World(policy)
        world.group("/a")
        enclaves = [world.enclave("/a", 0) for _ in range(50)]
        world.limit("/a", 100)
        assert any(enclave.disabled for enclave in enclaves) is disabled, policy.name


@EVERY
def test_work_can_run_in_slices_and_everything_adds_up_between_them(policy: Policy) -> None:
    world = World(policy)
    world.group("/a")
    enclave = world.enclave("/a", 300, init=False)
    missing = enclave.pages
    world.machine.set_max(world.machine.groups.lookup("/a"), 100 * 4096)
    if policy is V17:
        evicted = next(iter(missing))
        world.machine.remove_page(enclave, evicted)
        world.machine.groups.lookup("/a").queued = True
        world.machine.works.append(world.machine.groups.lookup("/a"))
    slices = 0
    while world.machine.step():
        slices += 1
        check(world.machine)
        assert slices < 1000
    assert slices >= 6
    assert world.pages("/a") <= 100
    assert not world.machine.pending


def test_b53_b55_a_worker_that_cannot_end_does_not_starve_others() -> None:
    """v17 tries for ever to write pages whose owner has no memory left; jobs take turns."""
    world = waiting(V17, "/a", "/b")
    stuck = world.machine.enclaves[1]
    world.pager.refuse = lambda page: page.enclave is stuck
    for _ in range(10):
        world.machine.step()
    assert world.pages("/b") < 100
    assert world.pages("/a") == 100
    assert world.machine.pending
    world.machine.release(stuck)
    while world.machine.step():
        pass
    assert world.pages("/a") == 0
    check(world.machine)


@EVERY
def test_b80_b81_removal_cancels_queued_work_and_work_that_has_begun(policy: Policy) -> None:
    for slices in (0, 1):
        world = waiting(policy)
        group = world.machine.groups.lookup("/a")
        world.machine.groups.rmdir("/a")
        for _ in range(slices):
            world.machine.step()
        enclave = world.machine.enclaves[1]
        world.machine.release(enclave)
        world.machine.step()
        assert group.released or not group.waiting
        world.machine.settle()
        assert group.released
        assert not group.queued
        assert not world.machine.jobs
        check(world.machine)


@EVERY
def test_a_worker_queued_while_it_runs_runs_again_after_its_end(policy: Policy) -> None:
    world = waiting(policy)
    enclave = world.machine.enclaves[1]
    world.machine.step()
    begun = world.machine.works_run
    group = world.machine.groups.lookup("/a")
    world.machine.set_max(group, world.pages("/a") * 4096)
    missing = [index for index, page in enclave.pages.items() if page is None]
    with pytest.raises(Busy):
        world.machine.fault(world.caller("/a"), enclave, missing[0])
    assert group.queued
    assert len([job for job in world.machine.jobs if job.group is group]) <= 1
    world.machine.settle()
    assert world.machine.works_run > begun


@EVERY
def test_b54_usage_without_anything_reclaimable_ends_every_loop(policy: Policy) -> None:
    world = World(policy)
    world.group("/a", limit=200)
    world.guest("/a", 100)
    world.limit("/a", 10)
    assert not world.machine.pending
    assert world.pages("/a") == 100


@EVERY
def test_settle_releases_groups_before_it_runs_work(policy: Policy) -> None:
    world = waiting(policy)
    world.group("/b")
    world.machine.groups.rmdir("/b")
    order: list[str] = []
    freed, write_out = world.machine.groups.group_freed, world.pager.write_out
    world.machine.groups.group_freed = lambda group: (order.append("free"), freed(group))  # type: ignore
    world.pager.write_out = lambda page: (order.append("write"), write_out(page))  # type: ignore
    world.machine.settle()
    assert order[0] == "free"
    assert "write" in order


@EVERY
def test_b83_after_everybody_died_nothing_is_charged(policy: Policy) -> None:
    world = World(policy, epc_pages=400)
    world.group("/t", limit=300)
    enclaves = [world.enclave("/t", 60) for _ in range(8)]
    for enclave in enclaves:
        world.touch(enclave, range(60))
    for enclave in enclaves:
        world.close(enclave)
        check(world.machine)
    assert world.pages() == 0
    assert world.machine.free == 400


@EVERY
def test_ten_thousand_idle_groups_are_not_visited(policy: Policy) -> None:
    """A fault and its eviction touch the same few objects as with one group."""
    world = World(policy)
    for number in range(3000):
        world.machine.groups.mkdir(f"/idle{number}")
    world.group("/a", limit=50)
    enclave = world.enclave("/a", 100)
    root = world.machine.groups.root
    assert len(root.active) == 1
    visited = []
    successor = world.machine.groups.successor
    world.machine.groups.successor = lambda *args: (visited.append(1), successor(*args))[1]  # type: ignore
    world.touch(enclave, range(100))
    assert len(visited) <= 100
