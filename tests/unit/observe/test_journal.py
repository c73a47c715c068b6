"""Events from what snapshots differ in."""

from __future__ import annotations

import itertools
from dataclasses import replace

from epcgroup.observe import EnclaveView, GroupView, Snapshot
from epcgroup.observe.journal import BURST_PAGES, Journal
from epcgroup.observe.model import Event

ROOT = GroupView("/", None, 0, 0)
A = GroupView("/a", 4096, 4096, 4096)


def at(time_s: float, *groups: GroupView, enclaves: tuple[EnclaveView, ...] = ()) -> Snapshot:
    return Snapshot(time_s, "v5", 100, 50, groups, enclaves, started=1000.0)


def told(journal: Journal, snapshot: Snapshot) -> list[Event]:
    """The events that a snapshot adds."""
    last = max((event.number for event in journal.since()), default=0)
    journal.see(snapshot)
    return journal.since(last)


def begun(*groups: GroupView) -> Journal:
    journal = Journal()
    journal.see(at(1, *groups))
    return journal


def test_refused_charges_between_two_snapshots_are_one_event_with_their_count() -> None:
    journal = begun(ROOT, A)
    (event,) = told(journal, at(2, ROOT, replace(A, events=7, events_local=7)))
    assert (event.kind, event.group, event.count, event.limit) == ("limit", "/a", 7, 4096)
    assert (event.at, event.until) == (1001, 1002)


def test_a_refusal_at_the_parents_limit_is_told_of_the_parent_alone() -> None:
    journal = begun(ROOT, A, GroupView("/a/b", None, 0, 0))
    events = told(
        journal, at(2, ROOT, replace(A, events=1, events_local=1), GroupView("/a/b", None, 0, 0, events=1))
    )
    assert [(event.kind, event.group) for event in events] == [("limit", "/a")]


def test_a_burst_of_evictions_is_told_where_it_happens_and_a_hum_is_not() -> None:
    journal = begun(ROOT, A)
    out = BURST_PAGES
    events = told(journal, at(2, replace(ROOT, pages_out=out), replace(A, pages_out=out)))
    assert [(event.kind, event.group, event.count) for event in events] == [("burst", "/a", out)]
    assert told(journal, at(3, replace(ROOT, pages_out=out + 9), replace(A, pages_out=out + 9))) == []


def test_what_goes_on_is_told_in_growing_spans_and_nothing_is_lost() -> None:
    journal = begun(ROOT, A)
    hits, moments = 0, [2 + n / 4 for n in range(400)]
    for moment in moments:
        hits += 3
        journal.see(at(moment, ROOT, replace(A, events_local=hits)))
    journal.flush()
    events = journal.since()
    assert sum(event.count for event in events) == hits
    assert 5 < len(events) < 12
    assert (events[0].at, events[0].until) == (1001, 1002)
    assert all(before.until <= after.at for before, after in itertools.pairwise(events))


def test_after_a_pause_the_next_refusal_is_told_at_once() -> None:
    journal = begun(ROOT, A)
    for moment, hits in ((2, 1), (3, 2), (10, 2), (30, 2), (50, 2)):
        journal.see(at(moment, ROOT, replace(A, events_local=hits)))
    (event,) = told(journal, at(51, ROOT, replace(A, events_local=3)))
    assert (event.at, event.until, event.count) == (1050, 1051, 1)


def test_limits_and_cgroups_that_come_change_and_go_are_told() -> None:
    journal = begun(ROOT)
    (made,) = told(journal, at(2, ROOT, A))
    assert (made.kind, made.limit) == ("made", 4096)
    (event,) = told(journal, at(3, ROOT, replace(A, limit=None)))
    assert (event.kind, event.limit) == ("set", None)
    assert [(e.kind, e.group) for e in told(journal, at(4, ROOT))] == [("removed", "/a")]


def test_what_was_there_at_the_beginning_did_not_just_come() -> None:
    journal = Journal()
    assert told(journal, at(1, ROOT, replace(A, events_local=5, limit=None))) == []


def test_an_enclaves_life_is_told_with_its_own_times() -> None:
    enclave = EnclaveView(1, 7, "prog", "/a", 1 << 20, 5, 6, 1, 2, began_s=0.25)
    journal = Journal()
    (began,) = told(journal, at(1, ROOT, A, enclaves=(enclave,)))
    assert (began.kind, began.at, began.pid, began.command) == ("began", 1000.25, 7, "prog")
    (lost,) = told(journal, at(2, ROOT, A, enclaves=(replace(enclave, disabled=True),)))
    assert (lost.kind, lost.enclave, lost.limit, lost.current) == ("disabled", 1, 4096, 4096)
    gone = replace(enclave, disabled=True, ended=True, ended_s=2.5)
    (ended,) = told(journal, at(3, ROOT, A, enclaves=(gone,)))
    assert (ended.kind, ended.at) == ("ended", 1002.5)
    assert told(journal, at(4, ROOT, A, enclaves=(gone,))) == []


def test_an_enclave_that_lived_between_two_snapshots_is_told_whole() -> None:
    short = EnclaveView(
        1, 7, "prog", "/a", 1, 0, 0, 0, 0, disabled=True, ended=True, began_s=1.1, ended_s=1.2
    )
    assert [e.kind for e in told(begun(ROOT, A), at(2, ROOT, A, enclaves=(short,)))] == [
        "began",
        "disabled",
        "ended",
    ]


def test_old_events_are_forgotten_and_numbers_go_on() -> None:
    journal = Journal(kept=3)
    heard: list[Event] = []
    journal.listen(heard.append)
    for number in range(5):
        journal.note("refused", float(number), reason=str(number))
    assert [event.number for event in journal.since()] == [3, 4, 5]
    assert [event.number for event in journal.since(4)] == [5]
    assert journal.since(5) == []
    assert len(heard) == 5
