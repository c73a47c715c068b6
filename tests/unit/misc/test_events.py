"""Who is told of an event, and how often (spec 1.6)."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from epcgroup.misc import V5, V17, Group, RateLimiter, Rules, Subscriptions, Tree, try_charge


def refused(rules: Rules) -> list[tuple[str, str]]:
    tree = Tree(rules, Group)
    tree.set_capacity("sgx_epc", 100)
    for path in ("/a", "/a/b"):
        tree.mkdir(path)
    epc = tree.resource("sgx_epc")
    tree.lookup("/a").max[epc] = 0
    told: list[tuple[str, str]] = []
    subscriptions = Subscriptions(tree)
    for group in tree.walk(tree.root):
        for file in ("events", "events.local"):
            subscriptions.subscribe(group, file, lambda group, file: told.append((group.path, file)))
    try_charge(tree, tree.lookup("/a/b"), epc, 1)
    return told


def test_every_counting_group_is_told() -> None:
    """MISC-50; the root counts in v5, and no file shows it."""
    assert refused(V5) == [("/a", "events"), ("/", "events")]
    assert refused(V17) == [("/a", "events.local"), ("/a", "events")]


def test_a_cancelled_subscription_hears_nothing() -> None:
    tree = Tree(V5, Group)
    tree.set_capacity("sgx_epc", 1)
    told: list[str] = []
    cancel = Subscriptions(tree).subscribe(tree.root, "events", lambda _group, file: told.append(file))
    try_charge(tree, tree.root, tree.resource("sgx_epc"), 2)
    cancel()
    try_charge(tree, tree.root, tree.resource("sgx_epc"), 2)
    assert told == ["events"]


def test_the_first_change_is_announced_at_once_and_the_next_in_the_window_deferred() -> None:
    limiter = RateLimiter(0.01)
    assert limiter.changed(0.0)
    assert not limiter.changed(0.001)
    assert limiter.due == 0.01
    assert not limiter.expire(0.009)
    assert limiter.expire(0.01)
    assert limiter.due is None
    assert not limiter.changed(0.011)  # the deferred announcement opened a window of its own


@given(st.lists(st.floats(0, 0.02), max_size=60))
def test_b08_the_last_change_is_always_announced_and_never_more_than_one_a_window(gaps: list[float]) -> None:
    """MISC-51: merged and delayed, never lost."""
    limiter, now, announced = RateLimiter(0.01), 0.0, []
    last_change = None
    for gap in gaps:
        now += gap
        while limiter.due is not None and limiter.due <= now:
            at = limiter.due
            assert limiter.expire(at)
            announced.append(at)
        last_change = now
        if limiter.changed(now):
            announced.append(now)
    if limiter.due is not None:
        at = limiter.due
        assert limiter.expire(at)
        announced.append(at)
    if last_change is not None:
        assert announced[-1] >= last_change
    assert all(later - earlier >= 0.01 - 1e-9 for earlier, later in itertools.pairwise(announced))
