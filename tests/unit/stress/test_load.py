"""The load, on an enclave in ordinary memory."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import threading
from collections.abc import Callable

import pytest

from epcgroup.stress import load, report
from epcgroup.stress.code import Call
from epcgroup.stress.enter import EnclaveLost, Run, explain
from epcgroup.stress.image import Image
from epcgroup.stress.load import Outcome, Plan

from .plain import PlainDoor, PlainEnclave


@pytest.fixture(autouse=True)
def plain_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "Door", PlainDoor)


def run(plan: Plan, threads: int = 1, pages: int = 64, stop: threading.Event | None = None) -> Outcome:
    return load.run(PlainEnclave(Image(threads, pages)), plan, stop=stop)  # type: ignore[arg-type]


def undisturbed(wanted: Callable[[Outcome], bool], plan: Plan, threads: int = 1) -> Outcome:
    """A run with the machine to itself: others spoil what is counted by the clock, but not ten times."""
    for _ in range(10):
        if wanted(outcome := run(plan, threads)):
            return outcome
    pytest.fail(f"the last of ten runs: {outcome}")


@pytest.mark.parametrize("pattern", ["seq", "random", "zipf", "scan-loop"])
@pytest.mark.parametrize("threads", [1, 3])
def test_passes_are_done_and_verified(pattern: str, threads: int) -> None:
    outcome = run(Plan(pattern, passes=5), threads)
    assert outcome.good
    assert (outcome.touches, outcome.checked) == (5 * 64, 64)


def test_a_part_of_the_heap_can_be_left_alone() -> None:
    plan = Plan("random", passes=3, pages=16)
    outcome = run(plan, threads=2)
    assert outcome.good
    assert (outcome.touches, outcome.checked) == (3 * 16, 16)
    assert "all 16 pages at the end" in report.to_text(Image(2, 64), plan, outcome, 0.0)


def test_time_ends_a_load() -> None:
    outcome = undisturbed(
        lambda outcome: outcome.touches > 64 and outcome.seconds < 2, Plan("seq", seconds=0.1)
    )
    assert outcome.seconds >= 0.1
    assert outcome.good


def test_rate_holds_the_load_back() -> None:
    outcome = undisturbed(
        lambda outcome: outcome.touches >= 300, Plan("seq", seconds=0.5, rate=1000), threads=2
    )
    assert outcome.touches <= 600


def test_samples_rise_to_the_total() -> None:
    outcome = undisturbed(
        lambda outcome: bool(outcome.samples and outcome.samples[-1][1]), Plan("seq", seconds=0.6, rate=2000)
    )
    times, touches = zip(*outcome.samples, strict=True)
    assert list(times) == sorted(times)
    assert list(touches) == sorted(touches)
    assert 0 < touches[-1] <= outcome.touches


class DamagingDoor(PlainDoor):
    """Swaps a page for zeros before the third call."""

    calls = 0

    def call(self, block: Call) -> None:
        DamagingDoor.calls += 1
        if DamagingDoor.calls == 3:
            self._enclave.put(9, bytes(4096))
        super().call(block)


def test_damage_is_counted_and_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "Door", DamagingDoor)
    monkeypatch.setattr(DamagingDoor, "calls", 0)
    outcome = run(Plan("seq", passes=4))
    assert outcome.mismatches == 1
    assert not outcome.good
    assert [bad.page for bad in outcome.described] == [9]
    image = Image(1, 64)
    text = report.to_text(image, Plan("seq", passes=4), outcome, 0.1)
    assert "FAILED: 1 page did not hold what was written" in text
    assert "heap page 9, word 0" in text
    assert "the page is empty" in text
    facts = json.loads(report.to_json(image, Plan("seq", passes=4), outcome, 0.1))
    assert facts["mismatches"] == 1
    assert facts["first_mismatches"][0]["page"] == 9


class FaultingDoor(PlainDoor):
    """The second thread's second entry faults."""

    def __init__(self, enclave: PlainEnclave, thread: int) -> None:
        super().__init__(enclave, thread)
        self.thread, self.calls = thread, 0

    def call(self, block: Call) -> None:
        self.calls += 1
        if self.thread == 1 and self.calls == 2:
            raise EnclaveLost("gone")
        super().call(block)


def test_lost_enclave_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "Door", FaultingDoor)
    outcome = run(Plan("seq", seconds=60), threads=3)
    assert isinstance(outcome.error, EnclaveLost)
    assert not outcome.good


class FaultingFillDoor(PlainDoor):
    def call(self, block: Call) -> None:
        raise EnclaveLost(f"gone before {block.count}")


def test_lost_enclave_while_filling_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread waits for ever for one that will not come."""
    monkeypatch.setattr(load, "Door", FaultingFillDoor)
    outcome = run(Plan("seq", seconds=60), threads=3)
    assert "gone" in str(outcome.error)
    assert outcome.touches == 0


def test_stopping_ends_with_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, calls = threading.Event(), itertools.count(1)

    class StoppingDoor(PlainDoor):
        """Stopped once the load proper is under way."""

        def call(self, block: Call) -> None:
            super().call(block)
            if next(calls) == 5:
                stop.set()

    monkeypatch.setattr(load, "Door", StoppingDoor)
    outcome = run(Plan("seq", seconds=60), stop=stop)
    assert outcome.interrupted
    assert outcome.good
    assert outcome.touches > 0


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            Run(function=3, vector=14, error_code=0x8007, address=0x13000),
            "heap page 2 .*forbids the write",
        ),
        (Run(function=3, vector=14, error_code=0x4, address=0x10000 + 0x1000 + 5), "SIGBUS"),
        (
            Run(function=2, vector=14, error_code=0x5, address=0x10000),
            "#PF in EENTER at page 0 of the",
        ),
        (Run(function=3, vector=6, address=0x10010), "#UD in the enclave's code"),
        (Run(function=3, vector=77, address=0x10), "vector 77"),
    ],
)
def test_faults_are_explained(run: Run, said: str) -> None:
    assert re.search(said, explain(run, 0x10000, 0x1000))


def test_run_structure_has_the_size_the_kernel_wants() -> None:
    assert ctypes.sizeof(Run) == 256
