"""`epcgroup stress`: our own SGX client, on an emulated machine that makes it page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.machine import EPCGROUP, NEEDS, Ended, ahead, command, once, run, started
from tests.e2e.processes import cpu_ticks
from tests.e2e.served import eventually

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

EPC = 2048
LIMIT = 256  # pages
HEAP = "512 pages"
LONG = (EPCGROUP, "stress", "--report", "json", "--heap", HEAP, "--seconds", "100")


def stress(*words: str, limit: int | None = LIMIT, **machine: Any) -> Ended:
    return run(EPCGROUP, "stress", "--report", "json", *words, epc=EPC, limit=limit, **machine)


def facts(ended: Ended) -> dict[str, Any]:
    """The client's own report."""
    assert ended.output, ended.errors[-3000:]
    result: dict[str, Any] = json.loads(ended.output)
    return result


def group(ended: Ended) -> dict[str, Any]:
    """The last cgroup in the machine's report."""
    assert ended.report is not None
    result: dict[str, Any] = ended.report["groups"][-1]
    return result


def wait_for_load(session: int) -> None:
    """Wait until the client in ``session`` has loaded its enclave and some load was put on it.

    From then on it catches SIGTERM, which the kernel shows; the supervisor always does.
    """
    caught = 1 << (signal.SIGTERM - 1)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        listed = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True, check=False)
        clients = [pid for pid in listed.stdout.split() if pid != str(session)]
        for pid in clients:
            status = Path(f"/proc/{pid}/status").read_text()
            if int(status.split("SigCgt:")[1].split()[0], 16) & caught:
                ticks = cpu_ticks(int(pid))
                eventually(lambda pid=int(pid), ticks=ticks: cpu_ticks(pid) > ticks + 2)
                return
        time.sleep(0.1)
    pytest.fail("the client did not get its enclave loaded within a minute")


def four_passes(pattern: str, policy: str) -> Future[Ended]:
    return once(stress, "--heap", HEAP, "--pattern", pattern, "--passes", "4", policy=policy)


@pytest.fixture(scope="module", autouse=True)
def _two_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    with ahead(request, {"test_every_page_survives_being_evicted": four_passes}):
        yield


@pytest.mark.parametrize("policy", ["standard", "v5", "v17"])
@pytest.mark.parametrize("pattern", ["seq", "random", "zipf", "scan-loop"])
def test_every_page_survives_being_evicted(pattern: str, policy: str) -> None:
    ended = four_passes(pattern, policy).result()
    assert ended.status == 0, ended.errors[-3000:]
    found = facts(ended)
    assert (found["touches"], found["checked"], found["mismatches"]) == (4 * 512, 512, 0)
    # Whatever the order, filling 512 pages and checking 512 pages under a limit of 256 must page.
    assert group(ended)["pages_out"] > 256
    assert group(ended)["pages_in"] > 256
    assert group(ended)["peak"] <= LIMIT * 4096
    assert group(ended)["current"] == 0


def test_threads_page_at_the_same_time() -> None:
    ended = stress("--heap", HEAP, "--threads", "4", "--pattern", "random", "--passes", "6")
    assert ended.status == 0, ended.errors[-3000:]
    assert facts(ended)["touches"] == 6 * 512
    assert facts(ended)["mismatches"] == 0
    assert group(ended)["pages_in"] > 500


def test_within_its_limit_nothing_is_evicted() -> None:
    ended = stress("--heap", "128 pages", "--passes", "50")
    assert ended.status == 0, ended.errors[-3000:]
    assert (group(ended)["pages_in"], group(ended)["pages_out"], group(ended)["events"]) == (0, 0, 0)


def test_scan_resistant_order_pages_less_than_a_scan() -> None:
    """Second chance keeps what is hot: zipf must fault less than a loop over everything."""
    loads = {}
    for pattern in ("seq", "zipf"):
        ended = stress("--heap", HEAP, "--pattern", pattern, "--passes", "10")
        assert ended.status == 0, ended.errors[-3000:]
        loads[pattern] = group(ended)["pages_in"]
    assert loads["zipf"] < 0.7 * loads["seq"]


def test_limit_below_the_first_page_is_told() -> None:
    ended = stress("--heap", HEAP, limit=2)
    assert ended.status == 1
    assert "ENCLAVE_ADD_PAGES: out of EPC at page 0" in ended.errors
    assert "misc.max" in ended.errors
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize("attack", ["tamper", "replay"])
def test_attacked_page_is_lost_and_never_wrong(attack: str) -> None:
    ended = stress("--heap", HEAP, "--passes", "3", options=("--inject", f"{attack}@50"))
    assert ended.status == 1
    found = facts(ended)
    assert found["mismatches"] == 0
    assert "heap page 47" in found["error"]  # page 50 of the enclave: code, TCS and SSA come first
    assert "SIGBUS" in found["error"]


def test_sigterm_ends_the_load_with_its_final_check() -> None:
    with started(command(*LONG, epc=EPC, limit=LIMIT)) as process:
        wait_for_load(process.pid)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert found["touches"] > 0
    assert (found["checked"], found["mismatches"], found["interrupted"]) == (512, 0, False)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_interrupt_ends_at_once_with_a_report(times: int) -> None:
    """However impatient: further ones come while its threads leave the enclave."""
    with started(command(*LONG, epc=EPC, limit=LIMIT)) as process:
        wait_for_load(process.pid)
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.03)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert json.loads(output)["interrupted"] is True
    assert "Traceback" not in errors


def test_held_enclave_stays_until_stdin_closes(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options = ("--report", "json", "--report-file", str(file))
    argv = command(EPCGROUP, "stress", "--heap", HEAP, "--passes", "1", "--hold", epc=EPC, options=options)
    with started(argv, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[-1].startswith("verified  every touch, and all 512 pages")
        time.sleep(0.5)
        assert process.poll() is None
        assert not file.exists()
        process.communicate(timeout=60)  # closes stdin
    assert process.returncode == 0
    assert json.loads(file.read_text())["groups"][-1]["current"] == 0
