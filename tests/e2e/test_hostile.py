"""A program that means harm gets errors and faults; nobody else gets anything from it."""

from __future__ import annotations

import json
import mmap
import os
import signal
import time
from pathlib import Path

import pytest
from tests.e2e.machine import ENCLU, NEEDS, Ended, command, expect_case, programs, run, started
from tests.e2e.processes import state_of, tree, wait_until_gone

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

#: A neighbour whose heap is checked all the time, and the program; the neighbour must be there at the end.
BESIDE = """
"$0" hold 100 > "$3" & neighbour=$!
"$1" $2; status=$?
kill $neighbour; wait $neighbour; echo "neighbour: $?"
exit $status
"""


def neighbour_is_unharmed(ended: Ended, said: Path) -> None:
    """It checked its contents to the end, found nothing to say, and nothing stays charged."""
    assert "neighbour: 143\n" in ended.output, f"{ended.output}\n{ended.errors[-3000:]}"
    assert said.read_text() == "ready\n"
    assert "internal error" not in ended.errors
    assert ended.report is not None
    assert {group["current"] for group in ended.report["groups"]} == {0}


@pytest.mark.parametrize("enclu", ENCLU)
def test_wild_calls_signals_and_changes_under_us_harm_nobody(enclu: str, tmp_path: Path) -> None:
    """Random ioctls and entries from several threads while others rewrite and unmap what they point to.

    The program's own other enclave is hit by a thousand signals a second and must keep its contents too.
    """
    said = tmp_path / "neighbour"
    beside = ("bash", "-c", BESIDE, programs() / "load", programs() / "hostile", "2 1", said)
    ended = run(*beside, epc=300, options=("--enclu", enclu))
    # Its writes reach nothing that it needs, and faults of its intruders are expected: 3 is wrong contents,
    # 9 a fault where none can come from, and any other end is ours as well.
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"
    neighbour_is_unharmed(ended, said)


@pytest.mark.parametrize("enclu", ENCLU)
def test_debuggers_that_mean_harm_hurt_only_whom_they_may_debug(enclu: str, tmp_path: Path) -> None:
    """Requests by chance, of each other too, while the debugged page, fork and die: all can be ended."""
    said = tmp_path / "neighbour"
    beside = ("bash", "-c", BESIDE, programs() / "load", programs() / "tracers", "1 1", said)
    ended = run(*beside, epc=150, options=("--enclu", enclu))
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"
    neighbour_is_unharmed(ended, said)
    assert "held up" not in ended.errors


PLAIN, COMPILED = ("--enclu", "trap", "--page-service", "python"), ("--page-service", "compiled")
BEHIND = (
    "no_seals", "immutable", "written", "holes_filled", "written_before", "punched_out",
    "written_all_the_time", "opened_again", "sealed_before", "mapping_sealed_before", "own_userfaultfd",
)  # fmt: skip


@pytest.fixture
def _unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that watches itself ends where a program adds pages to its own device, and says so."""
    monkeypatch.delenv("EPCGROUP_PARANOID", raising=False)


@pytest.mark.usefixtures("_unwatched")
@pytest.mark.parametrize("way", [PLAIN, COMPILED], ids=["plain", "compiled"])
def test_pages_changed_behind_our_back_harm_nobody_else(way: tuple[str, ...], tmp_path: Path) -> None:
    """By the descriptor, which is a file here: written, punched out, sealed, made immutable, opened again."""
    said = tmp_path / "neighbour"
    beside = ("bash", "-c", BESIDE, programs() / "load", programs() / "behind", "", said)
    ended = run(*beside, epc=200, options=way)
    assert ended.cases == dict.fromkeys(BEHIND, "ok"), ended.errors[-3000:]
    neighbour_is_unharmed(ended, said)


@pytest.mark.usefixtures("_unwatched")
def test_an_outsider_with_the_descriptor_harms_nobody_else(tmp_path: Path) -> None:
    """Opened by /proc/PID/fd, as if sent: no filter and no userfaultfd of ours sees what is done."""
    report = tmp_path / "report.json"
    options = ("--report", "json", "--report-file", str(report))
    script = '"$0" hold 100 & "$0" hold 100 & wait'
    with started(command("bash", "-c", script, programs() / "load", epc=150, options=options)) as machine:
        assert machine.stdout is not None
        assert [machine.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
        held = {pid: fd for pid in tree(machine.pid) if pid != machine.pid for fd in _enclave_files(pid)}
        (victim, path), (neighbour, _) = held.items()
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
            pages[:] = bytes(len(pages))  # what is evicted comes to be, and code is no more
            assert not wait_until_gone([victim], 60)
        time.sleep(0.5)  # the neighbour checks its contents all the time
        assert state_of(neighbour) not in ("", "Z"), machine.communicate(timeout=60)
        os.kill(neighbour, signal.SIGKILL)
        _, errors = machine.communicate(timeout=60)
    assert "internal error" not in errors
    assert {group["current"] for group in json.loads(report.read_text())["groups"]} == {0}


def _enclave_files(pid: int) -> list[Path]:
    files = Path(f"/proc/{pid}/fd").iterdir()
    return [file for file in files if "sgx_enclave" in str(file.readlink())]


@pytest.mark.parametrize("case", ["brought_in_late", "never_brought_in_at_create", "never_brought_in_at_add"])
def test_an_ioctl_that_waits_for_the_programs_own_userfaultfd_holds_up_nobody(case: str) -> None:
    """It waits as a system call would; brought in late, the page is used; never, others go on."""
    expect_case("slow_source", case, 128)
