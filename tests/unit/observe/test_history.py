"""Snapshots over time."""

from __future__ import annotations

from epcgroup.observe import GroupView, History, Snapshot


def at(time_s: float, *groups: GroupView) -> Snapshot:
    return Snapshot(time_s, "standard", 100, 50, groups)


def group(path: str, current: int, loaded: int = 0, evicted: int = 0, limit: int | None = None) -> GroupView:
    return GroupView(path, limit, current, current, pages_in=loaded, pages_out=evicted)


def test_rates_are_per_second_since_the_snapshot_before() -> None:
    history = History()
    history.add(at(1.0, group("/a", 10)))
    history.add(at(1.5, group("/a", 20, loaded=5, evicted=10)))
    history.add(at(3.5, group("/a", 30, loaded=9, evicted=10, limit=40)))
    series = history.series("/a")
    assert series.time_s == [1.0, 1.5, 3.5]
    assert series.current == [10, 20, 30]
    assert series.limit == [None, None, 40]
    assert series.in_per_s == [0, 10, 2]
    assert series.out_per_s == [0, 20, 0]


def test_group_that_comes_late_and_goes_early_has_a_short_series() -> None:
    history = History()
    history.add(at(0, group("/a", 1)))
    history.add(at(1, group("/a", 1), group("/b", 2)))
    history.add(at(2, group("/a", 1)))
    assert history.paths() == ["/a", "/b"]
    assert history.series("/b").time_s == [1]
    assert history.series("/none").time_s == []


def test_second_snapshot_of_a_moment_replaces_the_first() -> None:
    history = History()
    history.add(at(1, group("/a", 1)))
    history.add(at(1, group("/a", 2)))
    assert history.series("/a").current == [2]
    assert len(history) == 1
    assert history.last is history.snapshots[0]
