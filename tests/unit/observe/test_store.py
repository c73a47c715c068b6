"""History in a file: what is kept, for how long, and how much of it."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from epcgroup.errors import BadInput
from epcgroup.observe import GroupView, Snapshot
from epcgroup.observe.model import Event
from epcgroup.observe.store import Keep, Store

HOSTILE = "/\udcff\x1b<b>" + "x" * 4096
T0 = 1_800_000_000.0


def at(moment: float, *groups: GroupView) -> Snapshot:
    return Snapshot(moment, "v5", 100, 50, groups, started=T0)


def group(path: str, current: int, pages_in: int = 0, limit: int | None = None) -> GroupView:
    return GroupView(path, limit, current, current, pages_in=pages_in)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "history", Keep(fine_s=600, coarse_s=6000, step_s=60))
    yield store
    store.close()


def test_a_cgroup_is_read_back_with_any_name_and_any_limit(store: Store) -> None:
    for moment in (1, 2, 3):
        store.add(
            at(moment, group(HOSTILE, moment * 10, limit=5 + moment), group("/max", 1, limit=2**64 - 1))
        )
    assert set(store.paths()) == {HOSTILE, "/max"}
    points = store.points(HOSTILE)
    assert [(point.at - T0, point.current, point.limit) for point in points] == [
        (1, 10, 6),
        (2, 20, 7),
        (3, 30, 8),
    ]
    assert store.points("/max")[0].limit is None
    assert store.points("/none") == []


def test_an_idle_cgroup_costs_no_rows_and_its_step_stays_a_step(store: Store) -> None:
    for moment in range(1, 101):
        store.add(at(moment, group("/a", 10 if moment < 90 else 20)))
    points = store.points("/a")
    assert [(point.at - T0, point.current) for point in points] == [(1, 10), (89, 10), (90, 20), (100, 20)]


def test_a_removed_cgroup_ends(store: Store) -> None:
    for moment in (1, 2):
        store.add(at(moment, group("/a", 10)))
    store.add(at(3))
    assert [(point.at - T0, point.current) for point in store.points("/a")][-1] == (3, None)


def test_what_is_old_is_kept_in_steps_and_what_is_older_not_at_all(store: Store) -> None:
    for moment in range(1, 9000, 5):
        store.add(
            at(moment, group("/a", 1000 if moment % 300 == 1 else 10, pages_in=moment), group("/idle", 7))
        )
    points = store.points("/a", most=100_000)
    first = points[0].at - T0
    assert 9000 - 6000 - 120 <= first <= 9000 - 6000 + 120
    gaps = [b.at - a.at for a, b in itertools.pairwise(points)]
    assert gaps[0] == 60
    assert gaps[-1] == 5
    coarse = [point for point in points if point.at - T0 < 8000]
    assert any(point.high == 1000 for point in coarse), "the peak between two steps is not lost"
    assert all(b.pages_in >= a.pages_in for a, b in itertools.pairwise(points))
    assert store.points("/idle")[-1].current == 7, "idle for longer than anything is kept"


def test_the_file_has_a_size_that_it_does_not_exceed(tmp_path: Path) -> None:
    most = 1 << 20
    store = Store(tmp_path / "history", Keep(step_s=10, most_bytes=most))
    for moment in range(1, 200):
        store.add(at(moment, *(group(f"/g{n}", moment * 7919 + n, pages_in=moment) for n in range(200))))
    store.close()
    assert (tmp_path / "history").stat().st_size < 1.5 * most
    with sqlite3.connect(tmp_path / "history") as db:
        kept = db.execute("SELECT count(*) FROM fine").fetchone()[0]
    db.close()
    assert 200 * 10 < kept < 200 * 200


def test_many_points_are_merged_and_the_highest_use_is_kept(store: Store) -> None:
    for moment in range(1, 501):
        store.add(at(moment, group("/a", 9999 if moment == 250 else moment)))
    points = store.points("/a", most=20)
    assert len(points) == 20
    assert max(point.high for point in points) == 9999
    assert points[-1].current == 500
    begin, end = T0 + 100, T0 + 120
    assert [point.at for point in store.points("/a", begin, end)] == [T0 + n for n in range(99, 121)]


def test_events_are_found_by_time_by_cgroup_and_all_below_and_by_enclave(store: Store) -> None:
    events = [
        Event(1, T0 + 1, "limit", group="/a", until=T0 + 5, count=7),
        Event(2, T0 + 3, "began", group="/a/b", enclave=4),
        Event(3, T0 + 3, "began", group="/ab", enclave=5),
        Event(4, T0 + 9, "refused", group="/a", reason="because", errno="EINVAL"),
    ]
    store.add(at(10), events)
    assert store.events() == events
    assert [e.number for e in store.events(group="/a")] == [1, 2, 4]
    assert [e.number for e in store.events(group="/")] == [1, 2, 3, 4]
    assert [e.number for e in store.events(begin=T0 + 4)] == [1, 4]
    assert [e.number for e in store.events(end=T0 + 2)] == [1]
    assert [e.number for e in store.events(enclave=5)] == [3]
    assert [e.number for e in store.events(most=2)] == [3, 4]


def test_another_program_reads_while_one_writes(store: Store) -> None:
    store.add(at(1, group("/a", 1)))
    reader = Store(store.path, read_only=True)
    assert len(reader.points("/a")) == 1
    store.add(at(2, group("/a", 2)))
    assert len(reader.points("/a")) == 2
    assert reader.span() == (T0 + 1, T0 + 2)
    with pytest.raises(BadInput, match="cannot be written"):
        reader.add(at(3, group("/a", 3)))
    reader.close()


def test_a_killed_writer_leaves_a_file_that_goes_on_with_a_gap(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from epcgroup.observe import GroupView, Snapshot
from epcgroup.observe.store import Store
store = Store(Path(sys.argv[1]))
for moment in (1, 2, 3):
    store.add(Snapshot(moment, "v5", 1, 1, (GroupView("/a", None, moment, 1),), started=float(sys.argv[2])))
os.kill(os.getpid(), signal.SIGKILL)
"""
    file = tmp_path / "history"
    done = subprocess.run([sys.executable, "-c", script, str(file), str(T0)], check=False)
    assert done.returncode == -9
    store = Store(file)
    store.add(at(100, group("/a", 7)))
    shown = [(round(point.at - T0, 3), point.current) for point in store.points("/a")]
    store.close()
    assert shown == [(1, 1), (2, 2), (3, 3), (3.001, None), (100, 7)]


def test_a_file_that_is_no_history_is_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.write_bytes(b"not a database, not at all" * 100)
    store = Store(file)
    store.add(at(1, group("/a", 1)))
    store.close()
    assert (tmp_path / "history.broken").exists()


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none/history: history cannot be opened"):
        Store(tmp_path / "none" / "history")
    with pytest.raises(BadInput, match=r"history: no history is kept there"):
        Store(tmp_path / "history", read_only=True)
