"""The load: threads that touch their parts of the heap, and what they found.

Every thread owns a part of the heap and a TCS. It first fills its part (checking
that the pages came in zeroed), waits until all have, touches pages by pattern
until time or passes are used up, and at the end checks every page once more.
It comes out of the enclave after every batch of pages, so that counting, pacing
and stopping need nothing from the enclave.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from epcgroup.stress import patterns
from epcgroup.stress.code import Call
from epcgroup.stress.device import Enclave
from epcgroup.stress.enter import Door, EnclaveLost
from epcgroup.stress.image import Image

SAMPLE_S = 0.25
MAX_DESCRIBED = 10  # mismatches told in full; all are counted

_FIRST_BATCH, _MAX_BATCH = 64, 1 << 14  # pages per ecall
_BATCH_S = 0.02  # an ecall should take about this long
_PACE_S = 0.05  # with a rate: at least so many batches a second are spread over it


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. ``seconds`` or ``passes`` ends it, whichever comes first.

    A pass is as many touches as there are pages to touch: the first ``pages`` of
    the heap, None for all; of a ``trace``, all of its touches. ``rate`` is touches
    per second over all threads, None for as fast as possible.
    """

    pattern: str
    seed: int = 1
    seconds: float | None = None
    passes: int | None = None
    rate: float | None = None
    pages: int | None = None
    trace: array[int] | None = None  # heap pages in the order of their touches, instead of a pattern

    def touched(self, image: Image) -> int:
        """How many heap pages the load is about."""
        return image.heap_pages if self.pages is None else self.pages


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A page that did not hold what was last written there."""

    page: int
    word: int
    wanted: int
    found: int
    holds_page: int
    holds_version: int
    version: int  # what it should have held

    @classmethod
    def of(cls, call: Call) -> Mismatch:
        """The first mismatch that ``call`` met."""
        return cls(
            *(call.bad_page, call.bad_word, call.wanted, call.found),
            *(call.bad_number, call.bad_version, call.version),
        )

    def __str__(self) -> str:
        text = f"heap page {self.page}, word {self.word}: {self.found:#x} instead of {self.wanted:#x}"
        if (self.holds_page, self.holds_version) == (self.page, self.version):
            return f"{text} (the page is damaged)"
        if self.version and self.holds_page == self.holds_version == 0:
            return f"{text} (the page is empty; version {self.version} was written)"
        held = f"page {self.holds_page} version {self.holds_version}"
        return f"{text} (it holds {held} instead of version {self.version})"


@dataclass(slots=True)
class Outcome:
    """What came of it. Times in seconds; samples are (monotonic clock, touches)."""

    started: float = 0.0
    touches: int = 0
    seconds: float = 0.0
    fill_seconds: float = 0.0
    checked: int = 0
    mismatches: int = 0
    described: list[Mismatch] = field(default_factory=list)
    samples: list[tuple[float, int]] = field(default_factory=list)
    interrupted: bool = False
    error: Exception | None = None

    @property
    def good(self) -> bool:
        """Whether every page held what it should and the enclave survived."""
        return self.error is None and self.mismatches == 0


def run(
    enclave: Enclave,
    plan: Plan,
    on_sample: Callable[[float, int], None] | None = None,
    finish: threading.Event | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Put the load of ``plan`` on ``enclave``.

    ``on_sample`` is told seconds and touches since the load proper began, about
    four times a second. Setting ``finish`` ends the load proper; the final check
    follows. Setting ``stop`` ends everything: an event, and no exception, since that
    of a second Ctrl-C would come while the first one's threads are still inside.
    """
    stop = stop or threading.Event()
    crew = _Crew(enclave, plan, finish or threading.Event())
    outcome = Outcome()
    began = time.monotonic()
    crew.start()
    while crew.working(SAMPLE_S):
        if stop.is_set():
            outcome.interrupted = True
            crew.end()
        elif crew.started is not None and not crew.ended:
            now = time.monotonic()
            outcome.samples.append((now, crew.touches))
            if on_sample is not None:
                on_sample(now - crew.started, crew.touches)
    outcome.started = started = crew.started if crew.started is not None else time.monotonic()
    outcome.fill_seconds = started - began
    outcome.touches = crew.touches
    outcome.seconds = crew.ended - started if crew.ended else time.monotonic() - started
    outcome.checked = sum(worker.checked for worker in crew.workers)
    outcome.mismatches = sum(worker.mismatches for worker in crew.workers)
    outcome.described = [bad for worker in crew.workers for bad in worker.described][:MAX_DESCRIBED]
    outcome.error = next((worker.error for worker in crew.workers if worker.error is not None), None)
    return outcome


class _Crew:
    """All threads of one load."""

    def __init__(self, enclave: Enclave, plan: Plan, finish: threading.Event) -> None:
        threads, pages = enclave.image.threads, plan.touched(enclave.image)
        self.plan = plan
        self.finish = finish  # of the load proper
        self.stop = threading.Event()  # of everything
        self.versions = array("Q", bytes(8 * pages))
        self.started: float | None = None
        self.filled = threading.Barrier(threads, action=self._start_clock)
        bounds = [pages * thread // threads for thread in range(threads + 1)]
        self.workers = [
            _Worker(self, Door(enclave, thread), thread, bounds[thread], bounds[thread + 1] - bounds[thread])
            for thread in range(threads)
        ]

    def _start_clock(self) -> None:
        self.started = time.monotonic()

    @property
    def touches(self) -> int:
        """Pages touched by pattern so far."""
        return sum(worker.touches for worker in self.workers)

    @property
    def ended(self) -> float:
        """When the last thread was done with the load proper; 0 before that."""
        ends = [worker.ended for worker in self.workers]
        return max(ends) if all(ends) else 0.0

    def block(self, *, write: bool) -> Call:
        """A fresh call block."""
        return Call(versions=self.versions.buffer_info()[0], seed=self.plan.seed, write=write)

    def end(self) -> None:
        """Let every thread come to its end at once."""
        self.stop.set()
        self.finish.set()
        self.filled.abort()

    def start(self) -> None:
        for worker in self.workers:
            worker.thread.start()

    def working(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end; False when all are done."""
        until = time.monotonic() + timeout
        return not all(worker.gone.wait(max(0.0, until - time.monotonic())) for worker in self.workers)


class _Worker:
    """One thread with its TCS and its part of the heap."""

    def __init__(self, crew: _Crew, door: Door, number: int, first: int, length: int) -> None:
        self._crew, self._door = crew, door
        self._number, self._first, self._length = number, first, length
        self._load, self._sweep = crew.block(write=True), crew.block(write=False)
        self.thread = threading.Thread(target=self._run, name=f"enclave-{number}", daemon=True)
        self.gone = threading.Event()  # out of the enclave for good
        self.ended = 0.0  # when the load proper was done
        self.mismatches = 0
        self.described: list[Mismatch] = []
        self.error: Exception | None = None

    @property
    def touches(self) -> int:
        """Pages touched by pattern so far, the ecall under way included."""
        return self._load.done

    @property
    def checked(self) -> int:
        """Pages checked at the end so far."""
        return self._sweep.done

    def _run(self) -> None:
        try:
            self._go(self._crew.block(write=True), self._pattern("seq"), self._crew.stop, self._length)
            self._crew.filled.wait()
            self._load_by_plan()
            self.ended = time.monotonic()
            self._go(self._sweep, self._pattern("seq"), self._crew.stop, self._length)
        except threading.BrokenBarrierError:
            pass  # another thread failed and says why, or there was an interrupt
        except Exception as error:  # whatever it is, the other threads must not wait for this one
            self.error = error
            self._crew.end()
        finally:
            self.gone.set()

    def _load_by_plan(self) -> None:
        plan, crew = self._crew.plan, self._crew
        a_pass = self._length if plan.trace is None else len(plan.trace)
        limit = None if plan.passes is None else plan.passes * a_pass
        until = None if plan.seconds is None else (crew.started or time.monotonic()) + plan.seconds
        pace = None if plan.rate is None else plan.rate / len(crew.workers)
        order = (
            self._pattern(plan.pattern) if plan.trace is None else patterns.Listed(self._length, plan.trace)
        )
        self._go(self._load, order, crew.finish, limit, until, pace)

    def _pattern(self, name: str) -> patterns.Pattern:
        return patterns.make(name, self._first, self._length, self._crew.plan.seed + self._number)

    def _go(
        self,
        call: Call,
        pattern: patterns.Pattern,
        end: threading.Event,
        limit: int | None,
        until: float | None = None,
        pace: float | None = None,
    ) -> None:
        """Touch pages until ``limit`` touches, the time ``until``, or ``end`` is set.

        ``pace`` is touches per second. call.done counts on over all ecalls, as
        a pattern may prepare fewer touches than it is asked for.
        """
        begun, size = time.monotonic(), _FIRST_BATCH
        while not end.is_set() and (until is None or time.monotonic() < until):
            count = size if limit is None else min(size, limit - call.done)
            if count <= 0:
                return
            if pace is not None:
                count = min(count, max(1, int(pace * _PACE_S)))
                due = begun + call.done / pace
                wake = due if until is None else min(due, until)
                if end.wait(max(0.0, wake - time.monotonic())) or wake < due:
                    return
            entered = time.monotonic()
            pattern.prepare(call, count)
            self._touch(call)
            spent = time.monotonic() - entered
            if spent > 2 * _BATCH_S:
                size = max(1, size // 2)
            elif spent < _BATCH_S / 2:
                size = min(_MAX_BATCH, size * 2)

    def _touch(self, call: Call) -> None:
        """Do the prepared call and see what it found."""
        call.mismatches = 0
        try:
            self._door.call(call)
        finally:
            self.mismatches += call.mismatches
            if call.mismatches and len(self.described) < MAX_DESCRIBED:
                self.described.append(Mismatch.of(call))
        if call.refused:
            raise EnclaveLost("the enclave refused a page number outside its heap")
