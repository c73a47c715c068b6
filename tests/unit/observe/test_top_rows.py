"""Which rows top shows, in which order, with which rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from epcgroup.errors import BadInput
from epcgroup.observe import EnclaveView, GroupView, ProcessView, Snapshot, ThreadView
from epcgroup.observe.store import Point, Store
from epcgroup.observe.top.rows import SAMPLES, Past, Selection, rows

SIZES = {"/": 9, "/a": 5, "/a/b": 5, "/z": 4}
ROOT, A, AB, Z = (GroupView(path, None, size, size) for path, size in SIZES.items())
ENCLAVES = (
    EnclaveView(4, 7, "old", "/a/b", 1, 0, 0, 0, 0, ended=True),
    EnclaveView(5, 7, "new", "/a/b", 1, 1, 1, 1, 1),
)
PROCESSES = (
    ProcessView(7, "one", "/a/b", (ThreadView(7, 5, 3, 0.5), ThreadView(8))),
    ProcessView(9, "two", "/z", (ThreadView(9),)),
)


def at(time_s: float, *groups: GroupView) -> Snapshot:
    return Snapshot(time_s, "v5", 10, 5, groups, ENCLAVES, PROCESSES)


def seen(*snapshots: Snapshot) -> Past:
    past = Past()
    for snapshot in snapshots:
        past.see(snapshot)
    return past


def names(past: Past, selection: Selection | None = None) -> list[str]:
    return [f"{'.' * row.depth}{row.name}" for row in rows(past, selection or Selection())]


def test_the_tree_has_siblings_by_name_and_children_below_their_parents() -> None:
    assert names(seen(at(1, ROOT, Z, A, AB))) == ["/", ".a", "..b", ".z"]
    assert names(seen(at(1, Z, A, AB))) == ["a", ".b", "z"], "a container's root may be hidden"
    assert names(Past()) == []


def test_a_closed_cgroup_hides_what_is_below_and_an_open_one_shows_what_is_in_it() -> None:
    past = seen(at(1, ROOT, A, AB, Z))
    assert names(past, Selection(closed={"/a"})) == ["/", ".a", ".z"]
    inside = names(past, Selection(opened={"/a/b"}))
    assert inside == ["/", ".a", "..b", "...enclave 5 new", "...enclave 4 old", "...7 one", ".z"]
    threads = names(past, Selection(opened={"/a/b", "/a/b\0p7"}))
    assert threads[5:8] == ["...7 one", "....thread 7", "....thread 8"]


def test_marks_say_what_can_be_opened() -> None:
    shown = {row.key: row.open for row in rows(seen(at(1, ROOT, A, AB, Z)), Selection(opened={"/z"}))}
    assert shown == {"/": None, "/a": True, "/a/b": False, "/z": True, "/z\0p9": None}


def test_a_filter_keeps_matches_and_those_above_them() -> None:
    past = seen(at(1, ROOT, A, AB, Z))
    assert names(past, Selection(filter="B")) == ["/", ".a", "..b"]
    assert names(past, Selection(filter="b", sort="current")) == ["/a/b"]
    assert names(past, Selection(filter="no")) == []


def test_any_other_order_is_flat_with_the_largest_first() -> None:
    past = seen(at(1, ROOT, A, AB, Z), at(2, ROOT, A, AB, replace(Z, pages_in=50, events_local=1)))
    assert names(past, Selection(sort="current")) == ["/", "/a", "/a/b", "/z"]
    assert names(past, Selection(sort="in"))[0] == "/z"
    assert names(past, Selection(sort="hits"))[0] == "/z"


def test_rates_are_per_second_and_shares_of_the_time() -> None:
    later = replace(A, pages_in=30, pages_out=10, some_s=1.0, full_s=0.5, events_local=4, stall_s=9)
    past = seen(at(1, A), at(3, later))
    rates = past.rates["/a"]
    assert (rates.pages_in, rates.pages_out, rates.hits, rates.some, rates.full) == (15, 5, 2, 0.5, 0.25)
    past.see(at(4, later))
    assert "/a" not in past.rates, "idle"


def test_a_counter_that_began_anew_gives_no_rate() -> None:
    past = seen(at(5, replace(A, pages_in=100)), at(6, replace(A, pages_in=1)))
    assert past.rates == {}


def test_history_is_bounded_and_goes_with_its_cgroup() -> None:
    past = Past()
    for moment in range(SAMPLES + 10):
        past.see(at(moment + 1, A, Z))
        past.see(at(moment + 1, A, Z))
    assert len(past.samples("/a")) == SAMPLES
    past.see(at(1000, Z))
    assert not past.samples("/a")
    assert past.samples("/z")


def test_what_somebody_else_kept_is_the_history_before_we_came(tmp_path: Path) -> None:
    store = Store(tmp_path / "history")
    for moment in range(1, 41):  # idle for twenty seconds, then ten pages in and out a second
        paged = max(0, 10 * (moment - 20))
        store.add(at(float(moment), replace(A, current=moment, pages_in=paged), Z))
    asked = list[str]()

    def kept(path: str, begin: float, end: float) -> list[Point]:
        asked.append(path)
        return store.points(path, begin, end)

    past = Past(kept)
    past.see(at(41.0, replace(A, current=41, pages_in=210), Z))
    past.see(at(42.0, replace(A, current=42, pages_in=220), Z))
    for _ in range(2):
        samples = list(past.samples("/a"))
    store.close()
    assert asked == ["/a"], "once, and only of what is looked at"
    assert [used for used, _ in samples[-30:]] == list(range(13, 43))
    assert [rate for _, rate in samples[-8:-2]] == [10.0] * 6
    assert samples[0][1] == samples[5][1] == 0.0
    assert len(samples) <= SAMPLES


def test_a_history_that_cannot_be_read_is_none() -> None:
    def broken(_path: str, _begin: float, _end: float) -> list[Point]:
        raise BadInput("the disk is gone")

    past = Past(broken)
    past.see(at(41.0, A))
    assert len(past.samples("/a")) == 1
