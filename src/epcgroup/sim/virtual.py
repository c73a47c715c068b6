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

Pressure is as PSI's: the share of a tenant's running time lost to paging. The first
touch of a page faults on any machine, however large; it takes its time, and is no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import NoEpc
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.machine import CompiledMachine
from epcgroup.sim.record import Recorder
from epcgroup.sim.result import Result
from epcgroup.sim.scenario import Event, Scenario, Tenant, parse, read
from epcgroup.sim.threads import Crew, Thread
from epcgroup.sim.traces.streams import Streams
from epcgroup.sim.traces.trace import Trace

if TYPE_CHECKING:
    import polars as pl

Progress = Callable[[float, int], None]
"""Called now and then with the share that is done and the accesses so far."""

Watch = Callable[["Simulation"], None]
"""Called after every quantum with the simulation, to look at it: `Simulation.now`, `Simulation.moment`."""


def run(
    scenario: Scenario | Path | str, progress: Progress | None = None, watch: Watch | None = None
) -> Result:
    """Run a scenario (or the file at a path, or TOML text) to its end.

    Ctrl-C ends it early: the result so far comes back, ``summary["interrupted"]`` is true.
    """
    if isinstance(scenario, Path):
        scenario = read(scenario)
    elif isinstance(scenario, str):
        scenario = parse(scenario)
    return Simulation(scenario, progress, watch).run()


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
        self._stalled: float | None = None  # once it has ended

    def end(self, when: float, status: str) -> None:
        """It has ended, for this reason."""
        self._stalled = self.stall_ns
        self.ended, self.status = when, status
        for thread in self.threads:
            thread.end()

    @property
    def stall_ns(self) -> float:
        """Time lost to paging, all threads."""
        if self._stalled is not None:
            return self._stalled
        return sum(thread.stall for thread in self.threads)


class Simulation:
    """One run."""

    def __init__(
        self, scenario: Scenario, progress: Progress | None = None, watch: Watch | None = None
    ) -> None:
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
        self._watch = watch
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
        self._crew = Crew(self.machine)

    def run(self) -> Result:
        """Until all tenants have ended, or the scenario's duration, or Ctrl-C."""
        interrupted = False
        try:
            while self.now < self.scenario.duration and self._quantum():
                if self._watch is not None:
                    self._watch(self)
        except KeyboardInterrupt:
            interrupted = True
        self._recorder.sample(self.now, self.running.values())
        try:
            return self._recorder.result(self.scenario, self.running, self.now, interrupted)
        except KeyboardInterrupt:  # when all is done: nothing of it is lost
            return self._recorder.result(self.scenario, self.running, self.now, interrupted)

    def moment(self) -> pl.DataFrame:
        """Every cgroup as it is now, as `Result.groups` has it."""
        return self._recorder.moment(self.now, self.running.values())

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
        active = self._crew.active()
        coming = [entry[1].start for entry in self._waiting[:1]] + [e.at for e in self._events[:1]]
        last = self.scenario.duration
        if not len(active):
            if not coming:
                return False
            self.now = min(max(self.now, min(coming)), last)
            return True
        quantum = self.scenario.quantum
        first = float(self._crew.times[active, c.CLOCK].min())
        idle = (min([first, self._next_sample, last, *coming]) - self.now) // quantum
        if idle > 1:  # all are busy building
            self.now += idle * quantum
            return True
        end = min(self.now + quantum, last)
        self._crew.quantum(active, end, self._ended)
        self.now = end
        return True

    def _ended(self, thread: Thread, k: int) -> None:
        tenant = thread.tenant
        if k < 0:
            disabled = self.machine.en[tenant.enclave, c.FLAGS] & c.DISABLED
            self._end(tenant, thread.clock, "disabled" if disabled else "sigbus")
            return
        thread.end()
        if all(other.over for other in tenant.threads):
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
            Thread(self._crew, tenant, n, self.scenario, self._streams.get((number, n)))
            for n in range(spec.threads)
        ]
        for thread in tenant.threads:
            thread.times[c.CLOCK] = tenant.begun + tenant.build_ns

    def _end(self, tenant: Running, when: float, status: str) -> None:
        tenant.end(when, status)
        self._recorder.keep(tenant)
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
