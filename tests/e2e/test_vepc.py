"""/dev/sgx_vepc with real processes (spec 6.6): charged, never reclaimed, SIGBUS at the limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, Ended, command, programs, run, started
from tests.e2e.test_residency import expect_all_given_back

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

CASES = [
    "device", "private_is_refused", "pages_come", "nothing_comes_before", "any_offset", "two_instances",
    "remove_all", "not_inherited", "touched_by_a_system_call", "protections",
]  # fmt: skip
POLICIES = pytest.mark.parametrize("policy", ["standard", "v5", "v17"])

# Lowers the limit of a guest that has its pages, then lets it look at them, close, and try again.
LOWERED = """
import sys, os
from epcgroup.live import Supervisor
read, write = os.pipe()
with Supervisor(epc_pages=128, policy=sys.argv[2], paranoid=True) as machine:
    machine.mkdir("/vm", limit=40 * 4096)
    os.dup2(read, 0)
    machine.spawn([sys.argv[1], "hold", "30", "wait"], group="/vm")
    awaited = [30, 0]
    def tick(snapshot):
        vm = snapshot.group("/vm")
        if awaited and vm.vepc == awaited[0]:
            if awaited.pop(0) == 30:
                machine.set_max("/vm", 0)
            os.write(write, b"\\n")
        assert vm.current == vm.vepc * 4096
    machine.run(tick, 0.05)
    vm = machine.snapshot().group("/vm")
    print(vm.vepc, vm.vepc_peak, vm.current, machine.snapshot().free_pages)
"""


def expect_guests(ended: Ended, peak: int) -> None:
    """The report counts the guest's pages in its group and above, and nothing is left of them."""
    assert ended.report is not None
    assert [group["vepc_peak"] for group in ended.report["groups"]] == [peak, peak]
    assert [group["vepc"] for group in ended.report["groups"]] == [0, 0]
    expect_all_given_back(ended.report)


def test_every_rule_holds() -> None:
    ended = run("vepc", epc=128, options=("--paranoid",))
    assert ended.cases == dict.fromkeys(CASES, "ok"), f"{ended.output}\n{ended.errors[-3000:]}"
    expect_guests(ended, 20)


@POLICIES
def test_a_guest_gets_a_sigbus_at_its_limit(policy: str) -> None:
    ended = run("vepc", "hold", 60, epc=128, limit=40, policy=policy)
    assert ended.output == "40 pages\nsignal 7 code 2 at page 40\n", ended.errors
    expect_guests(ended, 40)
    assert ended.report is not None
    assert ended.report["groups"][1]["events"] > 0


def test_a_guest_gets_a_sigbus_when_the_machine_is_full() -> None:
    ended = run("vepc", "hold", 100, epc=64)
    assert ended.output == "64 pages\nsignal 7 code 2 at page 64\n"
    expect_guests(ended, 64)


@pytest.mark.usefixtures("enclu")
@POLICIES
def test_an_enclave_pages_so_that_a_guest_of_its_group_gets_its_pages(policy: str) -> None:
    """The guest's own are never taken: the enclave is left with what the limit has beyond them."""
    script = f"exec 3< <(exec '{programs()}/load' hold 80); read -u 3; '{programs()}/vepc' hold 50; kill $!"
    ended = run("bash", "-c", script, epc=256, limit=100, policy=policy)
    assert "50 pages\n" in ended.output, ended.errors
    expect_guests(ended, 50)
    assert ended.report is not None
    assert ended.report["groups"][1]["pages_out"] > 0


@POLICIES
def test_a_lowered_limit_does_not_disturb_a_guest_that_has_its_pages(policy: str) -> None:
    """VEPC-06, B-67: its pages stay and keep their contents; only a new one is refused."""
    done = subprocess.run(
        [sys.executable, "-c", LOWERED, str(programs() / "vepc"), policy], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "30 pages\n30 kept\nclosed\nrefused\n0 30 0 128\n"


def test_a_killed_monitor_gives_everything_back(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    script = f"exec 3< <(exec '{programs()}/vepc' hold 30 wait); read -u 3; echo $REPLY; kill -9 $!"
    options = ("--report", "json", "--report-file", str(file))
    with started(command("bash", "-c", script, epc=64, options=options), stdin=subprocess.PIPE) as process:
        output, errors = process.communicate(timeout=60)
    assert "30 pages" in output, errors
    expect_all_given_back(json.loads(file.read_text()))
