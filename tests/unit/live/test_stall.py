"""Time spent waiting for pages, per cgroup."""

from __future__ import annotations

import pytest

from epcgroup.epc.group import Group
from epcgroup.live.paging.stall import Stalls

ROOT = Group(0, None, "", 1)
A = Group(1, ROOT, "a", 1)
B = Group(2, ROOT, "b", 1)


def test_waits_of_two_processes_overlap_in_some_and_full_but_add_up_in_sum() -> None:
    stalls = Stalls()
    first, second = stalls.join(A, 0.0), stalls.join(A, 0.0)
    stalls.begin(first, 1.0)
    stalls.begin(second, 2.0)
    stalls.end(first, 4.0)
    stalls.end(second, 5.0)
    faults, seconds, some, full = stalls.read(A)
    assert (faults, seconds, some, full) == (2, pytest.approx(6), pytest.approx(4), pytest.approx(2))


def test_a_parent_is_stalled_in_full_only_when_all_below_wait() -> None:
    stalls = Stalls()
    one, other = stalls.join(A, 0.0), stalls.join(B, 0.0)
    stalls.begin(one, 1.0)
    stalls.end(one, 2.0)
    assert stalls.read(A)[2:] == (pytest.approx(1), pytest.approx(1))
    assert stalls.read(ROOT)[2:] == (pytest.approx(1), 0)
    stalls.leave(other, 3.0)
    stalls.begin(one, 4.0)
    stalls.end(one, 6.0)
    assert stalls.read(ROOT) == (2, pytest.approx(3), pytest.approx(3), pytest.approx(2))


def test_waits_that_are_told_later_count_as_those_told_at_once() -> None:
    late, live = Stalls(), Stalls()
    told, seen = late.join(A, 0.0), live.join(A, 0.0)
    second = 10**9
    turns: list[tuple[float, bool]] = []
    late.passed(told, [second, 3 * second // 2], [2 * second, 3 * second])
    late.passed(told, [5 * second], [6 * second])
    late.passed(told, [7 * second, 9 * second], [8 * second, 10 * second])
    for moments, end in (((1.0, 1.5, 5.0, 7.0, 9.0), False), ((2.0, 3.0, 6.0, 8.0, 10.0), True)):
        turns += [(moment, end) for moment in moments]
    for moment, end in sorted(turns):
        (live.end if end else live.begin)(seen, moment)
    assert late.read(A) == live.read(A)
    assert late.read(ROOT) == live.read(ROOT)


def test_a_wait_that_goes_on_is_in_what_is_read() -> None:
    import time

    stalls = Stalls()
    stall = stalls.join(A, 0.0)
    stalls.begin(stall, time.perf_counter() - 100)
    _, seconds, some, _ = stalls.read(A)
    assert seconds == some >= 100
    assert stalls.read(A)[0] == 0


def test_a_removed_groups_time_stays_above_it() -> None:
    stalls = Stalls()
    stall = stalls.join(A, 0.0)
    stalls.begin(stall, 1.0)
    stalls.end(stall, 2.0)
    stalls.forget(A)
    assert stalls.read(A) == (0, 0.0, 0.0, 0.0)
    assert stalls.read(ROOT)[1] == pytest.approx(1)
