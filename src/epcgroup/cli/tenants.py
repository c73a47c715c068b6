"""The three tenants of the demo, and what their run proves.

Each has a cgroup with a quarter of the EPC as its limit, so the machine itself
is never full: whoever pages does so against its own limit. web and neighbour
stay below theirs and work at a steady pace, as a service does; a pace leaves
the processors idle enough that a change in their throughput means waiting for
pages, not for a processor. batch starts later, wants three times its limit and
works as fast as it can. The services are told to finish when batch has ended.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epcgroup.errors import BadInput
from epcgroup.observe.model import GroupView, Snapshot
from epcgroup.units import PAGE_SIZE, format_size

SERVICES = ("web", "neighbour")
SMALLEST_EPC = 4 << 20
SHORTEST_S = 4.0
BATCH_PART = 0.55  # of the time; the rest is the services alone, before batch starts
_SERVICE_RATE = 20_000  # touches per second: a hundred times what paging could serve, were it needed
_SETTLE_S = 0.5  # the first samples after the heap was filled do not count


@dataclass(frozen=True, slots=True)
class Tenant:
    """One `epcgroup stress` in a cgroup. Limit and heap in bytes; seconds of load at most."""

    name: str
    limit: int
    heap: int
    pattern: str
    seconds: float
    rate: int | None = None

    @property
    def path(self) -> str:
        return "/" + self.name

    def argv(self, python: str) -> list[str]:
        """The command that is this tenant."""
        words = [python, "-m", "epcgroup.cli.main", "stress", "--report", "json"]
        words += ["--heap", str(self.heap), "--pattern", self.pattern, "--seconds", f"{self.seconds:.2f}"]
        return words if self.rate is None else [*words, "--rate", str(self.rate)]


@dataclass(frozen=True, slots=True)
class Result:
    """How a tenant ended: wait status, its report, and what it wrote to stderr."""

    status: int
    report: Mapping[str, Any]
    errors: str


def cast(epc: int, seconds: float) -> tuple[Tenant, Tenant, Tenant]:
    """web, batch and neighbour for an EPC of ``epc`` bytes and about ``seconds`` of load.

    Raises BadInput when either is too small to show anything.
    """
    if epc < SMALLEST_EPC:
        raise BadInput(f"--epc {format_size(epc)}: the demo needs {format_size(SMALLEST_EPC)} or more")
    if not SHORTEST_S <= seconds < math.inf:
        raise BadInput(f"--seconds {seconds:g}: the demo needs {SHORTEST_S:g} or more")
    limit = _whole(epc / 4)
    longest = 60 + 10 * seconds  # a stop gap: they are told when to end
    return (
        Tenant("web", limit, _whole(limit * 0.6), "zipf", longest, _SERVICE_RATE),
        Tenant("batch", limit, 3 * limit, "random", seconds * BATCH_PART),
        Tenant("neighbour", limit, _whole(limit * 0.75), "random", longest, _SERVICE_RATE),
    )


def throughput(samples: Sequence[Sequence[float]], begin: float, end: float) -> float | None:
    """Touches per second between two moments; None with less than two samples there."""
    inside = [(at, touches) for at, touches in samples if begin <= at <= end]
    if len(inside) < 2 or inside[-1][0] == inside[0][0]:
        return None
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def change(report: Mapping[str, Any], moment: float) -> tuple[float, float] | None:
    """A tenant's throughput before and after ``moment`` (monotonic clock)."""
    samples = report["samples"]
    ends = report["started"] + report["seconds"]
    before = throughput(samples, report["started"] + _SETTLE_S, moment)
    after = throughput(samples, moment, ends)
    return None if before is None or after is None or before == 0 else (before, after)


def failures(results: Mapping[str, Result]) -> list[str]:
    """One line for each tenant that did not end well."""
    lines = [] if "batch" in results else ["batch never started: web and neighbour ended too early"]
    for name, result in results.items():
        if os.WIFSIGNALED(result.status):
            lines.append(f"{name} was ended by signal {os.WTERMSIG(result.status)}")
        elif result.report.get("mismatches"):
            lines.append(f"{name} found {result.report['mismatches']} pages that did not hold what it wrote")
        elif os.WEXITSTATUS(result.status):
            said = result.report.get("error") or (result.errors.strip().splitlines() or [""])[-1]
            lines.append(f"{name} failed with status {os.WEXITSTATUS(result.status)}: {said}")
        elif not result.report:
            lines.append(f"{name} gave no report")
    return lines


def note(tenant: Tenant, group: GroupView) -> str:
    """What the picture says under a tenant's name."""
    heap = f"heap {format_size(tenant.heap)}"
    if group.pages_out == group.pages_in == 0:
        return f"{heap}, within its limit: not one page evicted"
    return f"{heap}: {group.pages_in:,} pages loaded, {group.pages_out:,} evicted"


def verdict(end: Snapshot, cast: Sequence[Tenant], results: Mapping[str, Result], batch_start: float) -> str:
    """The last sentence: who paged, who did not, and what it cost the neighbour."""
    groups = {tenant.name: end.group(tenant.path) or GroupView(tenant.path, None, 0, 0) for tenant in cast}
    batch = next(tenant for tenant in cast if tenant.name == "batch")
    own = groups["batch"]
    first = (
        f"batch (heap {format_size(batch.heap)}, limit {format_size(batch.limit)}) paged against itself: "
        f"{own.pages_out:,} pages evicted and {own.pages_in:,} loaded under its own limit"
    )
    if own.pages_out == 0:
        first = f"batch (heap {format_size(batch.heap)}) did not page at all"
    second = f"neighbour had {_paged(groups['neighbour'])}"
    third = f"web had {_paged(groups['web'])}"
    return f"{first}; {second}{_throughput_change(results['neighbour'], batch_start)}; {third}."


def _paged(group: GroupView) -> str:
    if group.pages_in == group.pages_out == 0:
        return "0 page-ins"
    return f"{group.pages_in:,} page-ins and {group.pages_out:,} evictions"


def _throughput_change(result: Result, moment: float) -> str:
    speeds = change(result.report, moment) if result.report else None
    if speeds is None:
        return ""
    before, after = speeds
    percent = round(100 * (after / before - 1), 1) + 0.0  # no "-0.0"
    return (
        f" and its throughput changed by {percent:+.1f} % "
        f"({before:,.0f} → {after:,.0f} touches/s) when batch came"
    )


def _whole(size: float) -> int:
    """``size`` bytes rounded down to whole pages."""
    return int(size) // PAGE_SIZE * PAGE_SIZE
