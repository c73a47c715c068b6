"""Threads in virtual time: their accesses, their clocks, and a quantum of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from epcgroup.sim.kernel import columns as c
from epcgroup.sim.traces.generate import pattern

if TYPE_CHECKING:
    from epcgroup.sim.kernel.machine import CompiledMachine
    from epcgroup.sim.scenario import Scenario, Tenant
    from epcgroup.sim.traces.streams import Stream
    from epcgroup.sim.virtual import Running

ENDLESS = -2
_PART = 1 << 15  # accesses generated at once


class Thread:
    """One thread of a tenant: its accesses, its clock (ns)."""

    def __init__(
        self, crew: Crew, tenant: Running, number: int, scenario: Scenario, stream: Stream | None
    ) -> None:
        spec = tenant.spec
        self.stream = stream
        self.tenant = tenant
        self.left = spec.accesses  # that are not yet handed out
        self._crew = crew
        self._given = 0
        rng = np.random.default_rng([scenario.seed, tenant.number, number])
        self._parts: Iterator[npt.NDArray[np.int32]] = stream or _pattern_parts(spec, rng)
        self._buffer = np.zeros(0, np.int32)
        self.number = crew.add(self, scenario.profile.times(spec.access_ns, steals=scenario.steals))

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """Its row of times."""
        row: npt.NDArray[np.float64] = self._crew.times[self.number]
        return row

    @property
    def clock(self) -> float:
        """Its time."""
        return float(self.times[c.CLOCK])

    @property
    def stall(self) -> float:
        """Of it, time lost to paging."""
        return float(self.times[c.STALL_NS])

    @property
    def done(self) -> int:
        """Accesses made."""
        row = self._crew.rows[self.number]
        return self._given - int(row[c.TH_STOP] - row[c.TH_AT])

    @property
    def over(self) -> bool:
        """Whether it has no accesses left."""
        return bool(self._crew.rows[self.number, c.TH_GONE])

    def end(self) -> None:
        """It makes no more accesses."""
        self._crew.rows[self.number, c.TH_GONE] = 1
        if self.stream is not None:
            self.stream.close()

    def refill(self) -> bool:
        """Its next accesses; False if there are none."""
        part = next(self._parts, None) if self.left else None
        if part is None:
            return False
        self._buffer = np.ascontiguousarray(part[: self.left], np.int32)
        self.left -= len(self._buffer)
        self._given += len(self._buffer)
        row = self._crew.rows[self.number]
        row[c.TH_PAGES], row[c.TH_AT], row[c.TH_STOP] = self._buffer.ctypes.data, 0, len(self._buffer)
        return True

    def failed(self, k: int) -> None:
        """The last access did not happen; one that never would waits for the next quantum."""
        self._crew.rows[self.number, c.TH_AT] -= 1
        times = self.times
        if k == ENDLESS and times[c.CLOCK] < times[c.DEADLINE]:
            times[c.STALL_NS] += times[c.DEADLINE] - times[c.CLOCK]
            times[c.CLOCK] = times[c.DEADLINE]


class Crew:
    """All threads, as the kernel's rows."""

    def __init__(self, machine: CompiledMachine) -> None:
        self.rows = np.zeros((0, c.THREAD_COLUMNS), np.int64)
        self.times = np.zeros((0, c.TIMES))
        self._machine = machine
        self._threads: list[Thread] = []

    def add(self, thread: Thread, times: npt.NDArray[np.float64]) -> int:
        """A new thread; its number."""
        number = len(self._threads)
        if number == len(self.rows):
            more = max(64, number)
            self.rows = np.concatenate([self.rows, np.zeros((more, c.THREAD_COLUMNS), np.int64)])
            self.times = np.concatenate([self.times, np.zeros((more, c.TIMES))])
            self.rows[:, c.TH_TIMES] = (
                self.times.ctypes.data + np.arange(len(self.times)) * self.times.strides[0]
            )
            self._machine.g[c.AT_THREADS] = self.rows.ctypes.data
        self._threads.append(thread)
        self.rows[number, c.TH_BASE] = self._machine.base(thread.tenant.enclave)
        self.times[number] = times
        return number

    def active(self) -> npt.NDArray[np.int64]:
        """Numbers of those that have not ended."""
        return np.flatnonzero(self.rows[: len(self._threads), c.TH_GONE] == 0)

    def quantum(
        self, active: npt.NDArray[np.int64], deadline: float, ended: Callable[[Thread, int], None]
    ) -> None:
        """Run all until the deadline, the one furthest behind first.

        ``ended`` is told of a thread with no more accesses (0) and of one whose access is a SIGBUS (-1).
        """
        clocks = self.times[active, c.CLOCK]
        order = active[np.argsort(clocks, kind="stable")].astype(np.int32)
        self.times[active, c.DEADLINE] = deadline
        place = 0
        while (place := self._machine.run_threads(order, place)) < len(order):
            thread = self._threads[order[place]]
            if self._machine.g[c.RESULT]:
                k = int(self._machine.g[c.LAST_K])
                thread.failed(k)
                if k != ENDLESS:
                    ended(thread, k)
                place += 1
            elif not thread.refill():
                ended(thread, 0)
                place += 1


def _pattern_parts(spec: Tenant, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int32]]:
    made = pattern(spec.workload, spec.size, rng)
    while True:
        yield made.take(min(_PART, max(spec.accesses, 1)))
