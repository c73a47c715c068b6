"""The cast of the demo and its last sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from epcgroup.cli.tenants import SERVICES, Result, cast, change, failures, note, throughput, verdict
from epcgroup.errors import BadInput
from epcgroup.observe import GroupView, Snapshot

MIB = 1 << 20
STARTED = 100.0


def report(before: float, after: float, moment: float = 105.0, **more: Any) -> dict[str, Any]:
    """A stress report whose throughput goes from ``before`` to ``after`` at ``moment``."""
    samples, touches = [], 0.0
    for step in range(41):
        at = STARTED + step / 4
        samples.append([at, touches])
        touches += (before if at < moment else after) / 4
    return {"started": STARTED, "seconds": 10.0, "samples": samples, "mismatches": 0, **more}


def results(**reports: dict[str, Any]) -> dict[str, Result]:
    good = {name: Result(0, report(20000, 20000), "") for name in ("web", "neighbour", "batch")}
    return good | {name: Result(0, facts, "") for name, facts in reports.items()}


def end(**paged: int) -> Snapshot:
    groups = [
        GroupView(
            f"/{name}", 16 * MIB, 0, 16 * MIB, pages_in=paged.get(name, 0), pages_out=paged.get(name, 0)
        )
        for name in ("web", "batch", "neighbour")
    ]
    return Snapshot(20.0, "standard", 16384, 16384, tuple(groups))


def test_machine_is_never_full_so_whoever_pages_pages_against_itself() -> None:
    tenants = cast(64 * MIB, 16)
    assert sum(tenant.limit for tenant in tenants) < 64 * MIB
    for tenant in tenants:
        assert (tenant.heap < 0.8 * tenant.limit) == (tenant.name in SERVICES)
    assert next(t for t in tenants if t.name == "batch").heap == 48 * MIB


@pytest.mark.parametrize(("epc", "seconds"), [(MIB, 16), (64 * MIB, 1), (64 * MIB, float("nan"))])
def test_too_small_a_demo_is_refused(epc: int, seconds: float) -> None:
    with pytest.raises(BadInput, match="the demo needs"):
        cast(epc, seconds)


def test_throughput_counts_between_the_moments_only() -> None:
    samples = [(0.0, 0), (1.0, 100), (2.0, 300), (3.0, 300)]
    assert throughput(samples, 0.5, 2.5) == 200
    assert throughput(samples, 0.5, 1.5) is None


def test_change_is_seen_on_both_sides_of_the_moment() -> None:
    assert change(report(1000, 500), 105.0) == (1000, 500)
    assert change(report(1000, 500), 99.0) is None


def test_verdict_gives_the_figures() -> None:
    text = verdict(end(batch=5000), cast(64 * MIB, 16), results(), 105.0)
    assert text.startswith("batch (heap 48M, limit 16M) paged against itself: 5,000 pages evicted and 5,000")
    assert "neighbour had 0 page-ins and its throughput changed by +0.0 % (20,000 → 20,000" in text
    assert text.endswith("web had 0 page-ins.")


def test_verdict_does_not_hide_a_disturbed_neighbour() -> None:
    text = verdict(
        end(batch=5000, neighbour=77), cast(64 * MIB, 16), results(neighbour=report(20000, 15000)), 105.0
    )
    assert "neighbour had 77 page-ins and 77 evictions and its throughput changed by -25.0 %" in text


def test_verdict_of_a_batch_that_did_not_page() -> None:
    assert "batch (heap 48M) did not page at all" in verdict(end(), cast(64 * MIB, 16), results(), 105.0)


def test_notes_say_who_paged() -> None:
    web, batch, _ = cast(64 * MIB, 16)
    quiet = GroupView("/web", 16 * MIB, 0, 0)
    assert note(web, quiet) == "heap 9.6M, within its limit: not one page evicted"
    assert note(batch, replace(quiet, pages_in=7, pages_out=8)) == "heap 48M: 7 pages loaded, 8 evicted"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Result(9, {}, ""), "batch was ended by signal 9"),
        (Result(1 << 8, report(1, 1, mismatches=3), ""), "batch found 3 pages that did not hold"),
        (Result(1 << 8, report(1, 1, error="#PF"), ""), "batch failed with status 1: #PF"),
        (Result(2 << 8, {}, "one\nepcgroup: no SGX\n"), "batch failed with status 2: epcgroup: no SGX"),
        (Result(0, {}, ""), "batch gave no report"),
    ],
)
def test_failures_are_told(result: Result, said: str) -> None:
    lines = failures({**results(), "batch": result})
    assert len(lines) == 1
    assert lines[0].startswith(said)


def test_all_well_is_no_failure() -> None:
    assert failures(results()) == []


def test_batch_that_never_started_is_a_failure() -> None:
    only = {name: result for name, result in results().items() if name != "batch"}
    assert failures(only) == ["batch never started: web and neighbour ended too early"]
