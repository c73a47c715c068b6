"""Scenarios in virtual time: every thread has a clock, the engine has none.

Time goes in quanta. In each, every thread that is not ahead runs its accesses
until its clock reaches the quantum's end; an access costs ``access_ns``, a fault
what the cost profile says: each handler call (exit, handler, resume), the load,
and the evictions that the thread had to wait for, with their tracking. What the
worker does after the fault is done goes on another core, or, with ``worker =
"steals"``, is taken from the thread. Events, births and deaths happen at the
beginning of a quantum, so their times are exact to one quantum.

A thread that faults for ever (the kernel's livelock, result -2) makes no progress:
it tries again in each quantum until something else changes.

Pressure is as PSI's: the share of a tenant's running time lost to paging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from epcgroup.errors import NoEpc
from epcgroup.sim import columns as c
from epcgroup.sim.generate import pattern
from epcgroup.sim.machine import CompiledMachine
from epcgroup.sim.record import Recorder
from epcgroup.sim.result import Result
from epcgroup.sim.scenario import Event, Scenario, Tenant, parse, read
from epcgroup.sim.streams import Stream, Streams
from epcgroup.sim.trace import Trace

Progress = Callable[[float, int], None]
"""Called now and then with the share that is done and the accesses so far."""

_PART = 1 << 15  # accesses generated at once


def run(scenario: Scenario | Path | str, progress: Progress | None = None) -> Result:
    """Run a scenario (or the file at a path, or TOML text) to its end.

    Ctrl-C ends it early: the result so far comes back, ``summary["interrupted"]`` is true.
    """
    if isinstance(scenario, Path):
        scenario = read(scenario)
    elif isinstance(scenario, str):
        scenario = parse(scenario)
    return Simulation(scenario, progress).run()


class Thread:
    """One thread of a tenant: its accesses, its clock (ns)."""

    def __init__(self, tenant: Running, number: int, scenario: Scenario, stream: Stream | None) -> None:
        spec = tenant.spec
        self.stream = stream
        self.tenant = tenant
        self.times = scenario.profile.times(spec.access_ns, steals=scenario.steals)
        self.left = spec.accesses
        self.done = 0
        rng = np.random.default_rng([scenario.seed, tenant.number, number])
        self._parts: Iterator[npt.NDArray[np.int32]] = stream or _pattern_parts(spec, rng)
        self._buffer: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._at = 0

    @property
    def clock(self) -> float:
        """Its time."""
        return float(self.times[c.CLOCK])

    def run(self, machine: CompiledMachine, deadline: float) -> int:
        """Run until the deadline or the end; 0, or the result of the access that failed."""
        self.times[c.DEADLINE] = deadline
        while self.left > 0 and self.times[c.CLOCK] < deadline:
            if self._at == len(self._buffer):
                part = next(self._parts, None)
                if part is None:
                    self.left = 0
                    break
                self._buffer, self._at = part[: self.left], 0
            failed = machine.g[c.FAILED]
            stop = machine.access(
                self.tenant.enclave,
                self._buffer,
                until_failure=True,
                start=self._at,
                times=self.times,
                checked=True,
            )
            ran, self._at = stop - self._at, stop
            self.done += ran
            self.left -= ran
            if machine.g[c.FAILED] != failed:
                return self._failed(int(machine.g[c.LAST_K]), deadline)
        return 0

    def _failed(self, k: int, deadline: float) -> int:
        self.done -= 1
        self.left += 1
        self._at -= 1
        if k == -2 and self.times[c.CLOCK] < deadline:
            self.times[c.STALL_NS] += deadline - self.times[c.CLOCK]
            self.times[c.CLOCK] = deadline
        return k


class Running:
    """A tenant that has begun."""

    def __init__(self, number: int, spec: Tenant, group: int, now: float) -> None:
        self.number = number
        self.spec = spec
        self.group = group
        self.begun = now
        self.build_ns = 0.0
        self.ended: float | None = None
        self.status = "running"
        self.enclave = -1
        self.guest_pages = 0
        self.threads: list[Thread] = []
        self.held: dict[int, int] = {}  # a guest's pages by group

    @property
    def stall_ns(self) -> float:
        """Time lost to paging, all threads."""
        return float(sum(thread.times[c.STALL_NS] for thread in self.threads))


class Simulation:
    """One run."""

    def __init__(self, scenario: Scenario, progress: Progress | None = None) -> None:
        self.scenario = scenario
        self.machine = CompiledMachine(
            scenario.epc_pages, scenario.policy, sgx2=any(tenant.dynamic for tenant in scenario.tenants)
        )
        for path, limit in scenario.cgroups:
            group = self.machine.mkdir(path)
            if limit is not None:
                self.machine.set_max(group, limit)
        self.machine.settle()
        self.now = 0.0
        self.running: dict[str, Running] = {}
        self._waiting = sorted(enumerate(scenario.tenants), key=lambda entry: entry[1].start)
        self._events = list(scenario.events)
        self._progress = progress
        self._total = sum(tenant.accesses * tenant.threads for tenant in scenario.tenants)
        traces = {tenant.trace: Streams(Trace(tenant.trace)) for tenant in scenario.tenants if tenant.trace}
        self._streams = {
            (number, thread): traces[tenant.trace].open(tenant.traced)
            for number, tenant in enumerate(scenario.tenants)
            for thread in range(tenant.threads)
            if tenant.trace
        }
        ideal = [t.start + t.accesses * t.access_ns for t in scenario.tenants]
        self._every = scenario.sample or max(scenario.quantum, max([*ideal, 1e9]) / 500)
        self._next_sample = 0.0
        self._recorder = Recorder(self.machine)

    def run(self) -> Result:
        """Until all tenants have ended, or the scenario's duration, or Ctrl-C."""
        interrupted = False
        try:
            while self.now < self.scenario.duration and self._quantum():
                pass
        except KeyboardInterrupt:
            interrupted = True
        self._recorder.sample(self.now, self.running.values())
        return self._recorder.result(self.scenario, self.running, self.now, interrupted)

    def _quantum(self) -> bool:
        while self._events and self._events[0].at <= self.now:
            self._happen(self._events.pop(0))
        while self._waiting and self._waiting[0][1].start <= self.now:
            self._start(*self._waiting.pop(0))
        if self.now >= self._next_sample:
            self._recorder.sample(self.now, self.running.values())
            if not self.scenario.sample and self._recorder.thin():
                self._every *= 2
            self._next_sample = self.now + self._every
            self._report()
        active = [t for r in self.running.values() if r.ended is None for t in r.threads if t.left > 0]
        if not active:
            coming = [entry[1].start for entry in self._waiting[:1]] + [e.at for e in self._events[:1]]
            if not coming:
                return False
            self.now = max(self.now, min(coming))
            return True
        deadline = self.now + self.scenario.quantum
        for thread in sorted(active, key=lambda one: one.clock):
            if thread.clock < deadline and thread.tenant.ended is None:
                self._advance(thread, deadline)
        self.now = deadline
        return True

    def _advance(self, thread: Thread, deadline: float) -> None:
        tenant = thread.tenant
        k = thread.run(self.machine, deadline)
        if k == -1:
            disabled = self.machine.en[tenant.enclave, c.FLAGS] & c.DISABLED
            self._end(tenant, thread.clock, "disabled" if disabled else "sigbus")
        elif all(other.left <= 0 for other in tenant.threads):
            self._end(tenant, max(other.clock for other in tenant.threads), "done")

    def _start(self, number: int, spec: Tenant) -> None:
        machine = self.machine
        group = machine.group(spec.cgroup)
        tenant = Running(number, spec, group, max(self.now, spec.start))
        self.running[spec.name] = tenant
        machine.attach(group)
        if spec.kind == "guest":
            got = machine.fill_vepc(group, spec.size)
            tenant.held[group] = got
            if got < spec.size:
                self._end(tenant, self.now, "refused")
            return
        before = int(machine.g[c.EVICTED_TOTAL])
        added = 0 if spec.dynamic else spec.size
        try:
            tenant.enclave = machine.create_enclave(group, spec.size)
            result = machine.add_pages(tenant.enclave, 0, added)[1]
        except NoEpc:
            result = -12
        evicted = int(machine.g[c.EVICTED_TOTAL]) - before
        tenant.build_ns = self.scenario.profile.build_ns(added, evicted, first=not before)
        if result:
            self._end(tenant, self.now + tenant.build_ns, "refused")
            return
        machine.initialise(tenant.enclave)
        tenant.threads = [
            Thread(tenant, n, self.scenario, self._streams.get((number, n))) for n in range(spec.threads)
        ]
        for thread in tenant.threads:
            thread.times[c.CLOCK] = tenant.begun + tenant.build_ns

    def _end(self, tenant: Running, when: float, status: str) -> None:
        tenant.ended, tenant.status = when, status
        self._recorder.keep(tenant)
        for thread in tenant.threads:
            if thread.stream is not None:
                thread.stream.close()
        if tenant.enclave >= 0:
            self.machine.release(tenant.enclave)
        for group, held in tenant.held.items():
            self.machine.free_vepc(group, held)
        self.machine.detach(tenant.group)
        self.machine.settle()

    def _happen(self, event: Event) -> None:
        machine = self.machine
        if event.cgroup is not None:
            machine.set_max(machine.group(event.cgroup), event.limit)
        else:
            tenant = self.running.get(event.tenant or "")
            if tenant is None or tenant.ended is not None:
                return
            if event.exit:
                self._end(tenant, self.now, "exited")
            elif event.remove and tenant.enclave >= 0:
                pages = min(event.remove, tenant.spec.size)
                machine.remove_pages(tenant.enclave, tenant.spec.size - pages, pages)
            elif event.move is not None:
                group = machine.group(event.move)
                machine.attach(group)
                machine.detach(tenant.group)
                tenant.group = group
                if tenant.enclave >= 0:
                    machine.move([tenant.enclave], group)
        machine.settle()

    def _report(self) -> None:
        if self._progress is not None:
            done = sum(thread.done for tenant in self.running.values() for thread in tenant.threads)
            self._progress(done / max(self._total, 1), done)


def _pattern_parts(spec: Tenant, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int32]]:
    made = pattern(spec.workload, spec.size, rng)
    while True:
        yield made.take(min(_PART, max(spec.accesses, 1)))
