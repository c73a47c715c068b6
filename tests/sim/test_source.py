"""A simulation's result as a source of views."""

from __future__ import annotations

import pytest

from epcgroup.errors import Refused
from epcgroup.serve.sources.simulated import SimSource, snapshots
from epcgroup.sim.result import Result
from epcgroup.sim.virtual import run

SCENARIO = """
title = "two tenants"

[machine]
profile = "azure-dc4s-v2"
epc = "16M"

[[cgroup]]
path = "/pods"
max = "4M"

[[cgroup]]
path = "/pods/a"

[[tenant]]
name = "a"
cgroup = "/pods/a"
size = "8M"
accesses = 40000
workload = { pattern = "uniform" }
"""


@pytest.fixture(scope="module")
def result() -> Result:
    return run(SCENARIO)


def test_every_sample_is_a_snapshot_in_virtual_time_with_sums_over_subtrees(result: Result) -> None:
    shown = list(snapshots(result))
    assert len(shown) == result.groups["time_s"].n_unique()
    last = shown[-1]
    assert last.at == last.time_s == result.summary["virtual_s"]
    root, pods, leaf = (last.group(path) for path in ("/", "/pods", "/pods/a"))
    assert root is not None
    assert pods is not None
    assert leaf is not None
    assert pods.limit == 4 << 20
    assert pods.pages_in == leaf.pages_in == result.summary["loads"] > 0
    assert root.pages_out == result.summary["evictions"] > 0
    assert root.stall_s == pytest.approx(leaf.stall_s)
    assert last.knows == {"paging", "stall"}, "how the waits of tenants overlap is not in a result"


def test_it_stands_at_its_end_or_plays_from_its_beginning(result: Result) -> None:
    end = SimSource(result, "run")
    assert end.snapshot().time_s == result.summary["virtual_s"]
    assert {event.kind for event in end.events()} >= {"limit", "burst"}
    assert SimSource(result, "run", speed=1e-9).snapshot().time_s == result.groups["time_s"].min()
    with pytest.raises(Refused, match="scenario"):
        end.set_max("/pods", 1)
