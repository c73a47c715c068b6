"""An EPC on two nodes with real programs: where their pages come from, and what CPUID says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.e2e.machine import NEEDS, programs, run

from epcgroup.live.numa import Numa

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.usefixtures("enclu"), pytest.mark.timeout(240)]

# Runs `load hold PAGES` on one processor and shows the nodes while its heap is there.
WATCH = """
import json, os, signal, sys
from epcgroup.epc import Section
from epcgroup.live import Supervisor
program, cpu, pages = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.sched_setaffinity(0, {cpu})
with Supervisor(0, sections=[Section(400, 0), Section(200, 1)], paranoid=True) as machine:
    pid = machine.spawn([program, "hold", pages])
    shown = []
    def tick(snapshot):
        if not shown and any(enclave.resident > int(pages) for enclave in snapshot.enclaves):
            shown.extend((node.node, node.pages, node.free) for node in snapshot.nodes)
            os.kill(pid, signal.SIGKILL)
    machine.run(tick, 0.05)
    after = [(node.node, node.free) for node in machine.snapshot().nodes]
    print(json.dumps({"shown": shown, "after": after}))
"""


def watch(cpu: int, pages: int) -> dict[str, list[list[int]]]:
    words = [sys.executable, "-c", WATCH, str(programs() / "load"), str(cpu), str(pages)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("which", [min, max], ids=["first processor", "last processor"])
def test_pages_come_from_the_node_where_the_program_runs(which) -> None:
    """All of them while it has some; then from the other node. Everything goes back to where it was."""
    cpu = which(os.sched_getaffinity(0))
    home, other = (0, 1) if Numa([0, 1]).of_cpu(cpu) == 0 else (1, 0)
    size = {0: 400, 1: 200}
    near, far = watch(cpu, 120), watch(cpu, size[home] + 50)
    free = {node: free for node, _, free in near["shown"]}
    assert free[other] == size[other]
    assert free[home] < size[home] - 120
    free = {node: free for node, _, free in far["shown"]}
    assert free[home] == 0
    assert free[other] < size[other] - 50
    assert near["after"] == far["after"] == [[0, 400], [1, 200]]


def test_cpuid_and_the_report_show_each_section() -> None:
    ended = run("basics", "cpuid", epc=1, options=("--epc", "3M@0,2M@1"))
    assert ended.cases == {"cpuid": "ok"}, ended.errors
    assert ended.report is not None
    assert [(node["node"], node["pages"]) for node in ended.report["nodes"]] == [(0, 768), (1, 512)]
    small = run("load", "once", 300, epc=1, options=("--epc", "100 pages@0,60 pages@1"))
    assert small.status == 0
    assert small.report is not None
    assert small.report["groups"][-1]["pages_out"] > 0
