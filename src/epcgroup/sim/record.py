"""Writing down a run: samples of every cgroup, and each tenant's account."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from epcgroup.sim.kernel import columns as c
from epcgroup.sim.result import Result
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.sim.kernel.machine import CompiledMachine
    from epcgroup.sim.scenario import Scenario
    from epcgroup.sim.virtual import Running

SAMPLES = 2001  # odd, so that the last one stays; kept of a run whose scenario names no interval
_SAMPLED = (c.USAGE, c.PEAK, c.EVENTS, c.EVENTS_LOCAL, c.EVICTED, c.LOADED, c.FAULTS)
_NAMES = ("usage", "peak", "events", "events_local", "evicted", "loaded", "faults")

# A moment: when, _SAMPLED of each cgroup, what its tenants stalled (both by number), its limit.
Sample = tuple[float, npt.NDArray[np.int64], npt.NDArray[np.int64], list[int | None]]


class Recorder:
    """Keeps samples as arrays until the end."""

    def __init__(self, machine: CompiledMachine) -> None:
        self._machine = machine
        self._samples: list[Sample] = []
        self._kept: dict[str, dict[str, int]] = {}

    def sample(self, now: float, tenants: Iterable[Running]) -> None:
        """Keep every cgroup as it is now."""
        if self._samples and self._samples[-1][0] == now:
            self._samples.pop()
        self._samples.append(self._taken(now, tenants))

    def moment(self, now: float, tenants: Iterable[Running]) -> pl.DataFrame:
        """Every cgroup as it is now, as a result's ``groups`` has it; nothing is kept."""
        return self._frame([self._taken(now, tenants)])

    def thin(self) -> bool:
        """Drop every other sample if there are too many; whether it did."""
        if len(self._samples) < SAMPLES:
            return False
        del self._samples[1::2]
        return True

    def keep(self, tenant: Running) -> None:
        """A tenant's counts, before its enclave goes."""
        self._kept[tenant.spec.name] = self._counts(tenant)

    def result(
        self, scenario: Scenario, running: dict[str, Running], now: float, interrupted: bool
    ) -> Result:
        """All that was seen."""
        tenants = [self._tenant(running[t.name], now) for t in scenario.tenants if t.name in running]
        tenants += [_not_begun(t.name, t.cgroup, t.kind) for t in scenario.tenants if t.name not in running]
        frame = pl.DataFrame(tenants, infer_schema_length=None)
        machine = self._machine
        slow = [t["slowdown"] for t in tenants if t["slowdown"] is not None]
        summary = {
            "title": scenario.title,
            "profile": scenario.profile.name,
            "policy": scenario.policy.name,
            "epc_pages": scenario.epc_pages,
            "seed": scenario.seed,
            "virtual_s": now / 1e9,
            "accesses": sum(t["accesses"] for t in tenants),
            "evictions": int(machine.g[c.EVICTED_TOTAL]),
            "loads": int(machine.g[c.LOADED_TOTAL]),
            "worker_runs": int(machine.g[c.WORKS_RUN]),
            "ksgxd_runs": int(machine.g[c.KSGXD_RUNS]),
            "worst_slowdown": max(slow, default=None),
            "failed": [t["tenant"] for t in tenants if t["status"] in ("refused", "sigbus", "disabled")],
            "interrupted": interrupted,
        }
        return Result(frame, self._frame(self._samples), summary)

    def _taken(self, now: float, tenants: Iterable[Running]) -> Sample:
        machine = self._machine
        groups = len(machine.paths)
        stall = np.zeros(groups, np.int64)
        for tenant in tenants:
            stall[tenant.group] += int(tenant.stall_ns)
        return now, machine.cg[:groups, _SAMPLED].copy(), stall, list(machine.max_bytes)

    def _frame(self, samples: list[Sample]) -> pl.DataFrame:
        # One frame, not one a sample: a frame costs more than what is in it.
        counts = [len(numbers) for _, numbers, _, _ in samples]
        numbers = np.concatenate([sampled for _, sampled, _, _ in samples])
        limits = [limit for _, _, _, limits in samples for limit in limits]
        which = np.concatenate([np.arange(count) for count in counts])
        columns: dict[str, Any] = {
            "time_s": np.repeat([now / 1e9 for now, _, _, _ in samples], counts),
            "cgroup": pl.Series(self._machine.paths).gather(which),
            "limit": pl.Series(limits, dtype=pl.UInt64),
        }
        columns |= {name: numbers[:, at] for at, name in enumerate(_NAMES)}
        columns["usage"] = numbers[:, 0] * PAGE_SIZE
        columns["peak"] = numbers[:, 1] * PAGE_SIZE
        columns["stall_s"] = np.concatenate([stall for _, _, stall, _ in samples]) / 1e9
        return pl.DataFrame(columns)

    def _counts(self, tenant: Running) -> dict[str, int]:
        if tenant.enclave < 0:
            return {"faults": 0, "retried": 0, "loads": 0, "evictions": 0}
        row = self._machine.en[tenant.enclave]
        return {
            "faults": int(row[c.E_FAULTS]),
            "retried": int(row[c.E_RETRIED]),
            "loads": int(row[c.E_LOADED]),
            "evictions": int(row[c.E_EVICTED]),
        }

    def _tenant(self, tenant: Running, now: float) -> dict[str, Any]:
        spec = tenant.spec
        built = tenant.begun + tenant.build_ns
        latest = max((thread.clock for thread in tenant.threads), default=built)
        ended = tenant.ended if tenant.ended is not None else max(now, latest)
        took = max(ended - built, 0.0)
        done = sum(thread.done for thread in tenant.threads)
        ideal = max((thread.clock - built - thread.stall for thread in tenant.threads), default=0.0)
        return {
            "tenant": spec.name,
            "cgroup": spec.cgroup,
            "kind": spec.kind,
            "status": tenant.status,
            "start_s": tenant.begun / 1e9,
            "build_s": tenant.build_ns / 1e9,
            "time_s": took / 1e9,
            "ideal_s": ideal / 1e9,
            "slowdown": took / ideal if ideal > 0 else None,
            "throughput": done / took * 1e9 if took else None,
            "pressure": tenant.stall_ns / (took * len(tenant.threads)) if took and tenant.threads else 0.0,
            "stall_s": tenant.stall_ns / 1e9,
            "accesses": done,
            **self._kept.get(spec.name, self._counts(tenant)),
        }


def _not_begun(name: str, cgroup: str, kind: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("start_s", "slowdown", "throughput"))
    zero = dict.fromkeys(("build_s", "time_s", "ideal_s", "pressure", "stall_s"), 0.0)
    counts = dict.fromkeys(("accesses", "faults", "retried", "loads", "evictions"), 0)
    who = {"tenant": name, "cgroup": cgroup, "kind": kind, "status": "not begun"}
    return {**who, **nothing, **zero, **counts}
