"""Charging: hierarchical, exact, undone where refused; who counts the event (spec 1.4, 1.5)."""

from __future__ import annotations

import threading

import pytest

from epcgroup.errors import OutOfRange
from epcgroup.misc import V5, V17, Group, Rules, Tree, try_charge, uncharge
from epcgroup.units import U64_MAX

GIB = 1 << 30


def make(rules: Rules, capacity: int = 1 << 40) -> tuple[Tree[Group], int]:
    tree = Tree(rules, Group)
    tree.set_capacity("sgx_epc", capacity)
    for path in ("/a", "/a/b", "/a/b/c", "/a/d"):
        tree.mkdir(path)
    return tree, tree.resource("sgx_epc")


def usages(tree: Tree[Group], resource: int) -> dict[str, int]:
    return {group.path: group.usage[resource] for group in tree.walk(tree.root)}


def test_usage_may_become_equal_to_a_limit_and_no_more() -> None:
    tree, epc = make(V5)
    group = tree.lookup("/a/b")
    group.max[epc] = 100
    assert try_charge(tree, group, epc, 100) is None
    assert try_charge(tree, group, epc, 1) is group


def test_b01_usage_beyond_two_and_four_gib_is_exact() -> None:
    tree, epc = make(V5)
    group = tree.lookup("/a")
    group.max[epc] = 8 * GIB
    for _ in range(3 * 1024):
        assert try_charge(tree, group, epc, 1 << 20) is None
    assert group.usage[epc] == 3 * GIB
    assert try_charge(tree, group, epc, 5 * GIB) is None
    assert try_charge(tree, group, epc, 1) is group
    assert tree.underflows == 0


def test_b02_the_first_charge_of_a_fresh_system_succeeds() -> None:
    tree, epc = make(V17)
    assert try_charge(tree, tree.root, epc, 4096) is None


def test_b04_a_refused_charge_leaves_nothing_and_a_granted_one_is_charged_once() -> None:
    tree, epc = make(V5)
    tree.lookup("/a").max[epc] = 10
    assert try_charge(tree, tree.lookup("/a/b/c"), epc, 11) is tree.lookup("/a")
    assert set(usages(tree, epc).values()) == {0}
    assert try_charge(tree, tree.lookup("/a/b/c"), epc, 7) is None
    assert usages(tree, epc) == {"/": 7, "/a": 7, "/a/b": 7, "/a/b/c": 7, "/a/d": 0}


@pytest.mark.parametrize(
    ("rules", "events", "local"),
    [
        (V5, {"/": 1, "/a": 1, "/a/b": 0, "/a/b/c": 0, "/a/d": 0}, {}),
        (V17, {"/": 0, "/a": 1, "/a/b": 0, "/a/b/c": 0, "/a/d": 0}, {"/a": 1}),
    ],
)
def test_b06_an_ancestors_refusal_counts_there_and_above_and_unwinds_below(
    rules: Rules, events: dict[str, int], local: dict[str, int]
) -> None:
    tree, epc = make(rules)
    tree.lookup("/a").max[epc] = 10
    assert try_charge(tree, tree.lookup("/a/d"), epc, 4) is None
    before = usages(tree, epc)
    assert try_charge(tree, tree.lookup("/a/b/c"), epc, 7) is tree.lookup("/a")
    assert {group.path: group.events[epc] for group in tree.walk(tree.root)} == events
    assert {g.path: g.events_local[epc] for g in tree.walk(tree.root) if g.events_local[epc]} == local
    assert usages(tree, epc) == before


def test_events_are_counted_per_attempt() -> None:
    """MISC-40."""
    tree, epc = make(V5)
    group = tree.lookup("/a")
    group.max[epc] = 0
    for _ in range(5):
        try_charge(tree, group, epc, 1)
    assert group.events[epc] == 5


def test_capacity_refuses_at_the_root_and_at_every_level() -> None:
    tree, epc = make(V17, capacity=10)
    assert try_charge(tree, tree.lookup("/a/b"), epc, 11) is tree.lookup("/a/b")
    assert try_charge(tree, tree.lookup("/a/d"), epc, 6) is None
    assert try_charge(tree, tree.root, epc, 5) is tree.root


def test_a_lowered_limit_takes_nothing_but_lets_nothing_more_in() -> None:
    """MISC-34, MISC-20."""
    tree, epc = make(V17)
    group = tree.lookup("/a")
    try_charge(tree, group, epc, 100)
    group.max[epc] = 50
    assert group.usage[epc] == 100
    uncharge(tree, group, epc, 40)
    assert try_charge(tree, group, epc, 1) is group
    uncharge(tree, group, epc, 20)
    assert try_charge(tree, group, epc, 10) is None


def test_a_refused_attempt_may_raise_the_peak_below_the_refusing_level() -> None:
    """MISC-33: levels passed on the way up have seen the usage."""
    tree, epc = make(V17)
    tree.lookup("/a").max[epc] = 3
    try_charge(tree, tree.lookup("/a/b"), epc, 50)
    assert tree.lookup("/a/b").peak[epc] == 50
    assert tree.lookup("/a").peak[epc] == 0
    assert tree.lookup("/a/b").usage[epc] == 0


def test_an_absent_or_unknown_resource_cannot_be_charged() -> None:
    tree, epc = make(V5)
    for resource in (tree.resource("sev"), -1, 99):
        with pytest.raises(OutOfRange):
            try_charge(tree, tree.root, resource, 1)
    assert try_charge(tree, tree.root, epc, 0) is None


def test_taking_back_too_much_is_reported_not_refused() -> None:
    """MISC-35: the counter shows what a 64-bit counter shows."""
    tree, epc = make(V5)
    uncharge(tree, tree.lookup("/a"), epc, 1)
    assert tree.underflows == 2  # /a and the root
    assert tree.lookup("/a").usage[epc] == U64_MAX


def test_b05_one_lock_outside_suffices_for_exact_counts() -> None:
    """The controller itself takes no lock; callers of one machine are serialised."""
    tree, epc = make(V17)
    group, lock = tree.lookup("/a/b"), threading.Lock()
    group.max[epc] = 10
    wins = []

    def race() -> None:
        for _ in range(500):
            with lock:
                won = try_charge(tree, group, epc, 6) is None
                assert group.usage[epc] <= 10
            if won:
                wins.append(1)
                with lock:
                    uncharge(tree, group, epc, 6)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins
    assert usages(tree, epc) == {"/": 0, "/a": 0, "/a/b": 0, "/a/b/c": 0, "/a/d": 0}
