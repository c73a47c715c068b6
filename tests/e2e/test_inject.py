"""`epcgroup run --inject`: each fault on a real program, which meets it as it would meet the real one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, Ended, programs, run
from tests.e2e.served import NEEDS as SERVED
from tests.e2e.served import served
from tests.e2e.test_negative import PAGE_INDEX, VICTIM

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

HEAP, EPC = 150, 64
ROOT = Path(__file__).resolve().parents[2]


def once(*specs: str, epc: int = EPC, program: tuple[str | int, ...] = ("load", "once", HEAP)) -> Ended:
    options = tuple(word for spec in specs for word in ("--inject", spec))
    return run(*map(str, program), epc=epc, options=options)


def command_group(ended: Ended) -> dict[str, int]:
    assert ended.report is not None
    return ended.report["groups"][-1]


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize(
    ("where", "status"), [((), 5), (("outside",), -signal.SIGBUS)], ids=["inside", "outside"]
)
def test_a_memory_error_needs_no_eviction(where: tuple[str, ...], status: int) -> None:
    """The machine has room for all: the page was never out, and is a SIGBUS all the same."""
    program = ("load", "touch", 200, VICTIM, 0, *where)
    ended = once(f"sigbus@{PAGE_INDEX}", epc=512, program=program)
    assert ended.status == status, f"{ended.output}\n{ended.errors[-3000:]}"
    assert f"touching page {PAGE_INDEX} of the enclave\n" in ended.output
    if not where:
        assert f"page {VICTIM}\n" in ended.output


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize(("kind", "count"), [("ewb-slow", "pages_out"), ("eldu-slow", "pages_in")])
def test_paging_is_slowed_down_by_what_was_asked(kind: str, count: str) -> None:
    began = time.monotonic()
    ended = once(f"{kind}=4ms")
    assert ended.status == 0, ended.errors[-3000:]
    pages = command_group(ended)[count]
    assert pages > 50
    assert time.monotonic() - began >= pages * 0.004


def test_a_refused_page_is_enomem_at_the_ioctl() -> None:
    ended = once("enomem=1")
    assert (ended.output, ended.status) == ("create: Cannot allocate memory\n", 4), ended.errors[-3000:]


def test_chances_fall_alike_with_the_same_seed() -> None:
    """Where it fails is the same in two runs of one seed; of ten seeds not all fail at the same place."""
    spec = "enomem=0.02,eintr=0.1"
    first, second = (once(f"{spec},seed=5") for _ in range(2))
    assert first.output == second.output
    assert first.status == second.status
    assert command_group(first)["peak"] == command_group(second)["peak"]
    assert "with --inject seed=5 they fall alike again" in first.errors


def test_without_room_in_the_backing_store_nothing_is_evicted() -> None:
    ended = once("enospc=1")
    assert (ended.output, ended.status) == ("add: Cannot allocate memory\n", 4), ended.errors[-3000:]
    assert command_group(ended)["pages_out"] == 0


@pytest.mark.usefixtures("enclu")
def test_now_and_then_without_room_paging_goes_on() -> None:
    ended = once("enospc=0.3")
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"
    assert command_group(ended)["pages_out"] > 0


@pytest.mark.usefixtures("enclu")
def test_a_backing_store_has_the_capacity_that_was_asked_for() -> None:
    """150 pages and more in an EPC of 64 do not fit into 64 and 100 KiB."""
    ended = once("backing=100K")
    assert ended.status != 0
    assert command_group(ended)["pages_out"] > 0
    assert once("backing=4M").status == 0


def test_an_interrupted_ioctl_is_eintr() -> None:
    ended = once("eintr=1")
    assert (ended.output, ended.status) == ("create: Interrupted system call\n", 4), ended.errors[-3000:]


@pytest.mark.needs(*SERVED)
def test_a_served_machine_has_them_too(tmp_path: Path) -> None:
    with served(tmp_path, "--inject", "enomem=1") as machine:
        machine.path("pods").mkdir()
        ended = machine.exec("pods", str(programs() / "load"), "once", "10")
        assert (ended.stdout, ended.returncode) == ("create: Cannot allocate memory\n", 4), ended.stderr
        assert machine.stop()[0] == 0


@pytest.mark.usefixtures("enclu")
def test_a_program_that_tries_again_passes_in_spite_of_eagain() -> None:
    """t4_exec's ioctls go on where EAGAIN left them, as an SGX2 runtime's must."""
    cases = ("no_x_faults", "again_and_again", "no_r_faults")
    ended = once("eagain=0.5,seed=1", epc=128, program=("t4_exec", *cases))
    assert ended.cases == dict.fromkeys(cases, "ok"), ended.errors[-3000:]
    assert re.search(r"faults are injected", ended.errors)


@pytest.mark.parametrize(
    ("plan", "says"), [("nothing", r"status 0 .* [1-9]\d* in"), ("enomem=1", "status 4 .* 0 in")]
)
def test_the_example_tells_how_a_program_took_each_fault(plan: str, says: str) -> None:
    program = "import runpy, sys; print(runpy.run_path(sys.argv[1])['run'](sys.argv[3:], sys.argv[2]))"
    words = [sys.executable, "-c", program, str(ROOT / "examples" / "inject_faults.py"), plan]
    words += [str(programs() / "load"), "once", "300"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert re.match(rf"{plan} +{says}\n", done.stdout), f"{done.stdout}\n{done.stderr}"
