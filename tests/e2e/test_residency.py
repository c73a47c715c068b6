"""The EPC is real: what is resident never exceeds it, and every kind of end gives everything back.

Resident enclave pages are blocks of memory files, so the kernel itself can be asked how many there are.
(Pages that are hidden from the program for a moment are kept elsewhere; that only makes the count smaller.)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.machine import NEEDS, PAGE, command, run, started
from tests.e2e.processes import programs_below, tree

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.usefixtures("enclu"), pytest.mark.timeout(240)]

NAME = "/memfd:/dev/sgx_enclave"
BLOCK = 512  # bytes in a block of st_blocks, whatever the file system


def resident(pid: int) -> int:
    """Pages in the memory files of all enclaves held by the process and its descendants."""
    files: dict[tuple[int, int], int] = {}
    for process in tree(pid):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith(NAME):
                        status = descriptor.stat()
                        files[status.st_dev, status.st_ino] = status.st_blocks * BLOCK // PAGE
    return sum(files.values())


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """The supervisor is stopped, all its threads, so no page moves from file to file between two looks."""
    os.kill(pid, signal.SIGSTOP)
    try:
        with contextlib.suppress(OSError):  # a thread, or the supervisor itself, just ended
            for task in Path(f"/proc/{pid}/task").iterdir():
                while (task / "stat").read_text().rpartition(")")[2].split()[0] not in "TZX":
                    time.sleep(0.0002)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def watch(process: subprocess.Popen[str], bound: int) -> int:
    """The most resident pages of a few hundred samples with more than half of ``bound``.

    Fewer would prove nothing; so this waits for them.
    """
    samples = []
    end = time.monotonic() + 90
    while sum(sample > bound // 2 for sample in samples) < 300:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"too little was resident in most of {len(samples)} samples"
        with standing_still(process.pid):
            samples.append(resident(process.pid))
        time.sleep(0.002)
    return max(samples)


@pytest.mark.parametrize(("epc", "limit"), [(64, None), (512, None), (1024, 100)])
def test_resident_pages_never_exceed_the_epc_nor_the_limit(epc: int, limit: int | None) -> None:
    bound = min(epc, limit or epc)
    with started(command("load", "hold", 1500, epc=epc, limit=limit)) as process:
        assert watch(process, bound) <= bound


def test_several_enclaves_share_one_epc() -> None:
    script = "{0} hold 300 & {0} hold 300 & {0} hold 300 & wait".format("$LOAD")
    load = command("load", epc=1)[-1]
    with started(command("env", f"LOAD={load}", "bash", "-c", script, epc=200)) as process:
        assert watch(process, 200) <= 200


def final_report(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def expect_all_given_back(report: dict[str, Any] | None) -> None:
    assert report is not None
    assert [group["current"] for group in report["groups"]] == [0] * len(report["groups"])
    assert report["free_pages"] == report["epc_pages"]
    assert any(group["peak"] > 0 for group in report["groups"]), "no enclave was ever charged"


@pytest.mark.parametrize("mode", ["once", "fork"])
@pytest.mark.parametrize("policy", ["standard", "v5", "v17"])
def test_usage_is_zero_after_an_exit(mode: str, policy: str) -> None:
    ended = run("load", mode, 300, epc=200, policy=policy)
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"
    expect_all_given_back(ended.report)


def test_usage_is_zero_after_a_process_with_many_enclaves() -> None:
    ended = run("processes", epc=100)
    assert ended.status == 0, ended.output
    expect_all_given_back(ended.report)


def test_usage_is_zero_after_kill_9_of_the_target(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options = ("--report", "json", "--report-file", str(file))
    with started(command("load", "hold", 300, epc=200, options=options)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (target,) = programs_below(process.pid)
        os.kill(target, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        expect_all_given_back(final_report(file))


def test_close_and_munmap_give_the_pages_back_at_once(tmp_path: Path) -> None:
    """The process lives on; its enclave does not."""
    file = tmp_path / "report.json"
    options = ("--report", "json", "--report-file", str(file))
    with started(command("load", "close", 300, epc=200, options=options), stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "closed\n"
        deadline = time.monotonic() + 60
        while resident(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert resident(process.pid) == 0
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
        expect_all_given_back(final_report(file))
