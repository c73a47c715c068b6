"""Which stays in an enclave are told of, with a clock and threads of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from epcgroup.live.enclave import spin
from epcgroup.sgx.faults import VECTOR_GP, VECTOR_PF, VECTOR_UD


class Case:
    """One thread, its user time, and what the user is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.used = 100.0, 0.0
        self.told: list[str] = []
        monkeypatch.setattr(spin, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(spin, "user_time", lambda tid: self.used)  # noqa: ARG005 - one thread
        self.watch = spin.Watch(self.told.append)
        self.task: Any = SimpleNamespace(tid=7, pid=7, command="p", inside=None, surprise=None)
        self.task.mm, self.task.inner_tid = SimpleNamespace(fast=None), 7
        self.enter()

    def enter(self) -> None:
        """A new stay begins."""
        file = SimpleNamespace(created=True, enclave=SimpleNamespace(id=3))
        self.task.inside = SimpleNamespace(device=SimpleNamespace(file=file))

    def enter_by_itself(self, number: int) -> None:
        """A new stay begins, and needs no trap; ``number`` of those that the thread has had."""
        outside = SimpleNamespace(entry=SimpleNamespace(device=self.task.inside.device), stay=number)
        self.task.inside = None
        self.task.mm.fast = SimpleNamespace(table=SimpleNamespace(outside=lambda _: outside))

    def compute(self, seconds: float, share: float = 1.0) -> None:
        """Time passes; ``share`` of it the thread runs."""
        for _ in range(int(seconds * 10)):
            self.now += 0.1
            self.used += 0.1 * share
            self.watch.look([self.task], self.now)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(monkeypatch)


@pytest.mark.parametrize("vector", [VECTOR_GP, VECTOR_UD])
def test_a_thread_that_spins_is_told_of_once(case: Case, vector: int) -> None:
    spin.by_vector(case.task, vector, 0x1234, None)
    case.compute(2.9)
    assert case.told == []
    case.compute(20)
    assert len(case.told) == 1
    assert "thread 7" in case.told[0]
    assert "enclave 3" in case.told[0]
    assert "0x1234" in case.told[0]


def test_page_faults_are_no_surprise(case: Case) -> None:
    spin.by_vector(case.task, VECTOR_PF, 0x1234, None)
    case.compute(10)
    assert case.told == []


def test_a_thread_that_sleeps_does_not_spin(case: Case) -> None:
    """User time counts, not the clock."""
    spin.by_leaf(case.task, 5, 19, 0x1234)
    case.compute(20, share=0.1)
    assert case.told == []


def test_leaving_starts_the_count_again(case: Case) -> None:
    spin.by_leaf(case.task, 5, 19, 0x1234)
    for _ in range(5):
        case.compute(2)
        case.enter()
    assert case.told == []


def test_an_old_surprise_is_forgiven(case: Case) -> None:
    """It was handled; what is computed long afterwards has another cause."""
    spin.by_leaf(case.task, 5, 19, 0x1234)
    case.task.inside = None
    case.compute(5)
    case.enter()
    case.compute(10)
    assert case.told == []


def test_a_thread_number_that_is_used_again_is_told_of_again(case: Case) -> None:
    for _ in range(2):
        spin.by_leaf(case.task, 5, 19, 0x1234)
        case.compute(5)
        case.watch.forget(7)
    assert len(case.told) == 2


def test_a_handler_that_entered_without_a_trap_and_spins_is_told_of(case: Case) -> None:
    """Nobody has seen it enter."""
    spin.by_vector(case.task, VECTOR_UD, 0x1234, None)
    case.enter_by_itself(1)
    case.compute(4)
    assert len(case.told) == 1
    assert "enclave 3" in case.told[0]


def test_short_stays_without_traps_are_not_taken_for_one_long(case: Case) -> None:
    spin.by_vector(case.task, VECTOR_UD, 0x1234, None)
    device = case.task.inside.device
    for number in range(20):
        case.task.inside = SimpleNamespace(device=device)
        case.enter_by_itself(number)
        case.compute(1)
    assert case.told == []
