"""No update of an enclave's memory is ever lost, however hard its pages are evicted and loaded.

The dangerous moment is a write between the copy that is sealed and the removal of the page. The window is
small: the runs are long enough for thousands of evictions of pages that are being written.
"""

from __future__ import annotations

import pytest
from tests.e2e.machine import NEEDS, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

PAGES = 2048
MACHINES = {  # EPC, limit of the cgroup, policy; updates per worker, in a row on one page
    "half": (1024, None, "standard", 20_000, 4),
    "small": (64, None, "standard", 15_000, 8),
    "limited": (4096, 700, "standard", 20_000, 4),
    "tight-limit": (4096, 64, "standard", 15_000, 8),
    "v5": (1024, 700, "v5", 15_000, 6),
    "v17": (1024, 700, "v17", 15_000, 6),
}


@pytest.mark.parametrize(
    ("machine", "enclu"), [*((name, "fast") for name in MACHINES), ("half", "trap"), ("tight-limit", "trap")]
)
def test_every_count_is_exact(machine: str, enclu: str) -> None:
    """Two processes with four threads each, half of the updates atomic, half plain in slots of their own."""
    epc, limit, policy, updates, burst = MACHINES[machine]
    ended = run(
        "lost_update", PAGES, updates, burst, 4, 2,
        epc=epc, limit=limit, policy=policy, options=("--enclu", enclu), seconds=150,
    )  # fmt: skip
    assert ended.cases == {"lost_update": "ok"}, f"status {ended.status}\n{ended.errors[-3000:]}"
    assert ended.report is not None
    group = ended.report["groups"][-1]
    assert group["pages_out"] > 2000, "hardly anything was evicted: the test proves nothing"
    assert group["current"] == 0


@pytest.mark.parametrize("machine", ["half", "tight-limit"])
def test_every_count_is_exact_where_machine_code_loads_the_pages(machine: str) -> None:
    """One process: an enclave that two have mapped gets no express lane."""
    epc, limit, policy, updates, burst = MACHINES[machine]
    ended = run(
        "lost_update", PAGES, updates, burst, 4, 1,
        epc=epc, limit=limit, policy=policy, options=("--page-service", "compiled"), seconds=150,
    )  # fmt: skip
    assert ended.cases == {"lost_update": "ok"}, f"status {ended.status}\n{ended.errors[-3000:]}"
    assert ended.report is not None
    group = ended.report["groups"][-1]
    assert group["pages_out"] > 1000, "hardly anything was evicted: the test proves nothing"
    assert group["current"] == 0
