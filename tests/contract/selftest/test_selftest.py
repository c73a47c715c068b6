"""The kernel's own SGX selftest, unmodified, passes inside `epcgroup run`.

16 cases: building, signing and entering an enclave by the vDSO, more heap than
the EPC holds, page permissions of both kinds, SGX2's growing, changing and
removing of pages. With an EPC smaller than the enclave every case also pages.

``v5`` and ``v17`` keep the series' fixed watermarks, which drain an EPC of 64
pages at every wake-up of ksgxd; so the smallest machines are for ``standard``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.contract.selftest.build import CannotBuild, selftest
from tests.e2e.machine import ahead, once

CASES = [
    "unclobbered_vdso",
    "unclobbered_vdso_oversubscribed",
    "unclobbered_vdso_oversubscribed_remove",
    "clobbered_vdso",
    "clobbered_vdso_and_user_function",
    "tcs_entry",
    "pte_permissions",
    "tcs_permissions",
    "epcm_permissions",
    "augment",
    "augment_via_eaccept",
    "tcs_create",
    "remove_added_page_no_eaccept",
    "remove_added_page_invalid_access",
    "remove_added_page_invalid_access_after_eaccept",
    "remove_untouched_page",
]
LIMIT = 240  # seconds for one run of the program; the longest takes about ten

pytestmark = [
    pytest.mark.needs("x86-64", "gcc", "make", "ptrace", "userfaultfd"),
    pytest.mark.timeout(LIMIT + 60),
]


@pytest.fixture(scope="session")
def program() -> Path:
    """The directory with the built selftest."""
    try:
        return selftest()
    except CannotBuild as reason:
        pytest.fail(f"the kernel's SGX selftest cannot be built: {reason}", pytrace=False)


@dataclass(frozen=True)
class Machine:
    """What runs the selftest: so many EPC pages, a policy, and further options of ``epcgroup run``."""

    pages: int
    policy: str = "standard"
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """What the program wrote, and the machine as it was when it had ended."""

    output: str
    snapshot: dict[str, Any]


def run(machine: Machine, directory: Path, command: tuple[str, ...] = ("./test_sgx",)) -> Ended:
    """Run the selftest on ``machine``, the status being 0."""
    epcgroup = Path(sys.executable).parent / "epcgroup"
    with tempfile.TemporaryDirectory(prefix="epcgroup-test-") as scratch:
        report = Path(scratch, "report.json")
        options = ["--epc", f"{machine.pages} pages", "--policy", machine.policy, *machine.extra]
        options += ["--report", "json", "--report-file", str(report)]
        process = subprocess.Popen(
            [str(epcgroup), "run", *options, "--", *command], cwd=directory, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"still running after {LIMIT} s; so far:\n{output[-4000:]}", pytrace=False)
        assert process.returncode == 0, output[-4000:]
        return Ended(output, json.loads(report.read_text()))


def results(output: str) -> dict[str, str]:
    """Case to result (``ok``, ``not ok``, ``skip``) of the program's TAP lines.

    A skipped case has no name on its line; it is known by its number.
    """
    found = {}
    for verdict, number, rest in re.findall(r"^(ok|not ok) (\d+) ?(.*)$", output, re.MULTILINE):
        skipped = "# SKIP" in rest
        name = rest.partition("#")[0].strip().rpartition(".")[2] or CASES[int(number) - 1]
        found[name] = "skip" if skipped else verdict
    return found


def expect_all(output: str) -> None:
    """All 16 cases ran and passed, and the program counted so itself."""
    assert results(output) == dict.fromkeys(CASES, "ok"), output[-4000:]
    assert "# PASSED: 16 / 16 tests passed." in output


def expect_paging(machine: Machine, snapshot: dict[str, Any]) -> None:
    """Pages went out and came back, the EPC never held more than it has, and nothing is left in it.

    The "oversubscribed" cases make an enclave as large as the EPC that CPUID tells of.
    """
    root = next(group for group in snapshot["groups"] if group["path"] == "/")
    mine = snapshot["groups"][-1]
    assert mine["pages_out"] >= mine["pages_in"] > 0
    assert root["peak"] <= machine.pages * 4096
    assert root["current"] == 0
    assert snapshot["free_pages"] == machine.pages
    assert len(snapshot["enclaves"]) == len(CASES), "every case builds one enclave"


def large(pages: int, enclu: str, policy: str) -> Machine:
    return Machine(pages, policy, ("--enclu", enclu))


def small(pages: int, enclu: str) -> Machine:
    return Machine(pages, "standard", ("--enclu", enclu))


@pytest.fixture(scope="module")
def _two_at_a_time(request: pytest.FixtureRequest, program: Path) -> Iterator[None]:
    runs = {
        "test_all_cases_pass": lambda **of: once(run, large(**of), program),
        "test_all_cases_pass_on_the_smallest_machines": lambda **of: once(run, small(**of), program),
    }
    with ahead(request, runs):
        yield


@pytest.mark.usefixtures("_two_at_a_time")
@pytest.mark.parametrize("policy", ["standard", "v5", "v17"])
@pytest.mark.parametrize(("pages", "enclu"), [(128, "fast"), (700, "trap"), (700, "fast"), (8192, "fast")])
def test_all_cases_pass(program: Path, pages: int, enclu: str, policy: str) -> None:
    machine = large(pages, enclu, policy)
    ended = once(run, machine, program).result()
    expect_all(ended.output)
    expect_paging(machine, ended.snapshot)


@pytest.mark.usefixtures("_two_at_a_time")
@pytest.mark.parametrize(("pages", "enclu"), [(16, "fast"), (64, "fast"), (64, "trap")])
def test_all_cases_pass_on_the_smallest_machines(program: Path, pages: int, enclu: str) -> None:
    machine = small(pages, enclu)
    ended = once(run, machine, program).result()
    expect_all(ended.output)
    expect_paging(machine, ended.snapshot)


def test_all_cases_pass_while_every_step_is_checked(program: Path) -> None:
    """--paranoid finds nothing: no invariant breaks between any two operations."""
    machine = Machine(128, extra=("--paranoid",))
    ended = run(machine, program)
    expect_all(ended.output)
    expect_paging(machine, ended.snapshot)


def test_all_cases_pass_with_the_trap_signals_blocked(program: Path) -> None:
    """A runtime may block SIGILL and SIGSEGV; the processor's faults reach an enclave all the same."""
    blocked = ("env", "--block-signal=ILL,SEGV", "./test_sgx")
    expect_all(run(Machine(128), program, blocked).output)


def test_a_program_that_fails_is_seen_to_fail(program: Path) -> None:
    """Without the machine around it the same program passes nothing: our passes mean something."""
    if Path("/dev/sgx_enclave").exists():
        pytest.xfail("this machine has real SGX")
    done = subprocess.run(
        ["./test_sgx", "-t", "unclobbered_vdso"], cwd=program, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "ok" not in results(done.stdout).values()
