"""Who is bound to which processor, when, and that everybody gets back what was theirs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from epcgroup.live.paging import binding
from epcgroup.live.paging.binding import Binder, Bindings

pytestmark = pytest.mark.needs("two processors")


@pytest.fixture
def everywhere() -> Iterator[set[int]]:
    """The processors of this thread, which is the page service here."""
    allowed = os.sched_getaffinity(0)
    yield allowed
    os.sched_setaffinity(0, allowed)


@pytest.fixture
def threads(everywhere: set[int]) -> Iterator[list[int]]:
    """Three threads of programs, which may run wherever we may."""
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    for sleeper in sleepers:
        os.sched_setaffinity(sleeper.pid, everywhere)
    yield [sleeper.pid for sleeper in sleepers]
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(binding.time, "perf_counter", lambda: now[0])
    return now


mask = os.sched_getaffinity


def serve(binder: Binder, clock: list[float], tid: int, times: int, every: float = 0.001) -> None:
    for _ in range(times):
        clock[0] += every
        binder.served(tid)


def test_both_are_bound_where_the_thread_is_and_both_get_their_masks_back(
    threads: list[int], everywhere: set[int]
) -> None:
    bindings = Bindings()
    bound = bindings.bind(threads[0], 0.0)
    assert bound is not None
    assert mask(threads[0]) == mask(0) == {bound.processor}
    assert bindings.bound(threads[0])
    bindings.end(bound)
    assert mask(threads[0]) == mask(0) == everywhere
    assert not bindings.bound(threads[0])


def test_a_mask_that_somebody_else_has_set_meanwhile_is_left_alone(
    threads: list[int], everywhere: set[int]
) -> None:
    bindings = Bindings()
    bound = bindings.bind(threads[0], 0.0)
    assert bound is not None
    other = {min(everywhere - {bound.processor})}
    os.sched_setaffinity(threads[0], other)
    bindings.end(bound)
    assert mask(threads[0]) == other
    assert mask(0) == everywhere


def test_a_thread_with_one_processor_is_followed_and_stays_there(
    threads: list[int], everywhere: set[int]
) -> None:
    only = {max(everywhere)}
    os.sched_setaffinity(threads[0], only)
    bindings = Bindings()
    bound = bindings.bind(threads[0], 0.0)
    assert bound is not None
    assert mask(0) == only
    assert not bindings.bound(threads[0])
    bindings.end(bound)
    assert mask(threads[0]) == only
    assert mask(0) == everywhere


def test_one_pair_on_a_processor(
    threads: list[int], everywhere: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "_processor_of", lambda _: min(everywhere))
    bindings = Bindings()
    first = bindings.bind(threads[0], 0.0)
    assert first is not None
    os.sched_setaffinity(0, everywhere)  # another service
    assert bindings.bind(threads[1], 0.0) is None
    assert mask(threads[1]) == mask(0) == everywhere
    bindings.end(first)
    assert bindings.bind(threads[1], 0.0) is not None


def test_who_asks_for_affinities_has_its_own_and_is_left_alone_for_a_while(
    threads: list[int], everywhere: set[int], clock: list[float]
) -> None:
    bindings = Bindings()
    assert bindings.bind(threads[0], clock[0]) is not None
    bindings.asked({threads[0], threads[1]})
    assert mask(threads[0]) == mask(0) == everywhere
    assert bindings.bind(threads[0], clock[0] + 0.9) is None
    assert bindings.bind(threads[1], clock[0] + 0.9) is None
    assert bindings.bind(threads[1], clock[0] + 1.1) is not None


def test_what_a_bound_thread_bore_gets_the_real_mask_also_when_that_is_over(
    threads: list[int], everywhere: set[int]
) -> None:
    bindings = Bindings()
    parent, child, late = threads
    bound = bindings.bind(parent, 0.0)
    assert bound is not None
    for tid in (child, late):
        os.sched_setaffinity(tid, {bound.processor})  # as a clone inherits it
    bindings.born(parent, child)
    assert mask(child) == everywhere
    bindings.end(bound)
    bindings.born(parent, late)
    assert mask(late) == everywhere


def test_the_child_of_one_that_has_bound_itself_stays_bound(threads: list[int]) -> None:
    bindings = Bindings()
    parent, child, _ = threads
    bound = bindings.bind(parent, 0.0)
    assert bound is not None
    bindings.end(bound)
    for tid in (parent, child):
        os.sched_setaffinity(tid, {bound.processor})
    bindings.born(parent, child)
    assert mask(child) == {bound.processor}


def test_a_new_image_is_not_bound_whatever_its_number_is_now(
    threads: list[int], everywhere: set[int]
) -> None:
    bindings = Bindings()
    leader, thread, _ = threads
    bound = bindings.bind(thread, 0.0)
    assert bound is not None
    os.sched_setaffinity(leader, {bound.processor})  # the number that the thread takes over
    bindings.execed(thread, leader)
    assert mask(leader) == mask(0) == everywhere


def test_the_service_is_free_when_its_thread_has_ended(threads: list[int], everywhere: set[int]) -> None:
    """The number may be somebody else's by then: nothing is done to it."""
    bindings = Bindings()
    bound = bindings.bind(threads[0], 0.0)
    assert bound is not None
    bindings.gone(threads[0])
    assert mask(0) == everywhere
    assert mask(threads[0]) == {bound.processor}


def test_a_thread_is_bound_when_it_alone_pages_and_faults_follow_one_another(
    threads: list[int], everywhere: set[int], clock: list[float]
) -> None:
    binder = Binder(Bindings())
    serve(binder, clock, threads[0], 20, every=0.5)  # too seldom
    for _ in range(20):
        serve(binder, clock, threads[0], 2)
        serve(binder, clock, threads[1], 2)
    assert mask(threads[0]) == mask(threads[1]) == everywhere
    serve(binder, clock, threads[0], 10)
    assert len(mask(threads[0])) == 1
    serve(binder, clock, threads[1], 1)
    assert mask(threads[0]) == mask(0) == everywhere
    serve(binder, clock, threads[1], 10)
    assert mask(threads[0]) == everywhere
    assert len(mask(threads[1])) == 1
    serve(binder, clock, threads[1], 1, every=0.5)  # it has had other things to do
    assert mask(threads[1]) == mask(0) == everywhere


def test_it_is_free_every_now_and_then_for_the_scheduler_to_move_it(
    threads: list[int], everywhere: set[int], clock: list[float]
) -> None:
    binder = Binder(Bindings())
    free = []
    for _ in range(500):
        serve(binder, clock, threads[0], 1)
        free.append(mask(threads[0]) == everywhere)
    assert 4 <= sum(free[20:]) <= 8
    binder.leave()
    binder.leave()
    assert mask(threads[0]) == mask(0) == everywhere


def test_who_pages_no_more_is_let_go(threads: list[int], everywhere: set[int], clock: list[float]) -> None:
    bindings = Bindings()
    binder = Binder(bindings)
    serve(binder, clock, threads[0], 10)
    bindings.look(clock[0] + 0.01)
    assert len(mask(threads[0])) == 1
    bindings.look(clock[0] + 0.05)
    assert mask(threads[0]) == mask(0) == everywhere
    serve(binder, clock, threads[0], 10)
    assert len(mask(threads[0])) == 1


def test_a_thread_that_may_not_be_bound_costs_nothing_but_the_attempt(
    threads: list[int], everywhere: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_it = os.sched_setaffinity

    def refuse(tid: int, processors: set[int]) -> None:
        if tid == threads[0]:
            raise PermissionError
        set_it(tid, processors)

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert Bindings().bind(threads[0], 0.0) is None
    assert mask(0) == mask(threads[0]) == everywhere
