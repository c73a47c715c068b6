"""QEMU, unmodified, allocates a guest's EPC from /dev/sgx_vepc, and is refused at its limit.

`memory-backend-epc` with `prealloc=on` touches every page before the machine is
made, as `-M q35,sgx-epc.0.memdev=…` would have it; the guest itself is not
needed, and its processor is emulated in software (tcg).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.served import eventually, served

pytestmark = [pytest.mark.needs("x86-64", "qemu", "ptrace", "userfaultfd"), pytest.mark.timeout(300)]

MIB = 256  # pages


def qemu_with(size: int) -> list[str]:
    """QEMU's command line: a machine that is not started, with so many MiB of EPC allocated."""
    return [
        "qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "16M", "-S",
        "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio",
        "-object", f"memory-backend-epc,id=epc0,size={size}M,prealloc=on",
    ]  # fmt: skip


class Monitor:
    """One run of QEMU that allocates its EPC and is then told to quit."""

    def __init__(self, report: Path, size: int, *options: str) -> None:
        """``size`` of the guest's EPC in MiB; ``options`` of `epcgroup run`."""
        epcgroup = Path(sys.executable).parent / "epcgroup"
        qemu = qemu_with(size)
        options = (*options, "--report", "json", "--report-file", str(report))
        command = [str(epcgroup), "run", *options, "--", *qemu]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        asked = ["qmp_capabilities", "query-memdev", "quit"]
        try:
            output, self.errors = process.communicate(
                "".join(json.dumps({"execute": name}) + "\n" for name in asked), timeout=60
            )
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, self.errors = process.communicate()
            pytest.fail(f"QEMU still runs after 60 s:\n{output}\n{self.errors}", pytrace=False)
        self.status = process.returncode
        self.answers: list[Any] = [json.loads(line) for line in output.splitlines()]
        self.groups: list[dict[str, Any]] = json.loads(report.read_text())["groups"]


def test_qemu_allocates_its_guests_epc(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "report.json", 8, "--epc", "32M", "--max", "16M")
    assert monitor.status == 0, monitor.errors
    backends = [answer["return"] for answer in monitor.answers if isinstance(answer.get("return"), list)]
    assert ("epc0", 8 << 20, True) in [(b["id"], b["size"], b["prealloc"]) for b in backends[0]]
    assert [group["vepc_peak"] for group in monitor.groups] == [8 * MIB, 8 * MIB]
    assert [group["current"] for group in monitor.groups] == [0, 0]


@pytest.mark.parametrize("policy", ["standard", "v5", "v17"])
def test_qemu_is_refused_at_its_limit(tmp_path: Path, policy: str) -> None:
    """Spec 8.1 (6): the launch is aborted, in QEMU's own words, and everything is given back."""
    monitor = Monitor(tmp_path / "report.json", 8, "--epc", "32M", "--max", "4M", "--policy", policy)
    assert monitor.status == 1
    assert "preallocating memory failed" in monitor.errors
    assert monitor.answers == []
    assert [group["vepc_peak"] for group in monitor.groups] == [4 * MIB, 4 * MIB]
    assert [group["current"] for group in monitor.groups] == [0, 0]
    assert monitor.groups[1]["events"] > 0


def test_qemu_is_refused_by_a_full_machine(tmp_path: Path) -> None:
    """Without a limit the EPC itself is one."""
    monitor = Monitor(tmp_path / "report.json", 8, "--epc", "7M")
    assert monitor.status == 1
    assert "preallocating memory failed" in monitor.errors
    assert [group["vepc_peak"] for group in monitor.groups] == [7 * MIB, 7 * MIB]


@pytest.mark.needs("fuse")
def test_a_guests_epc_is_charged_to_the_cgroup_it_was_started_in(tmp_path: Path) -> None:
    with served(tmp_path, epc="32M") as machine:
        machine.path("vm").mkdir()
        machine.write("vm/misc.max", f"sgx_epc {12 << 20}")
        with subprocess.Popen(
            machine.argv("vm", *qemu_with(8)), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            eventually(lambda: machine.value("vm/misc.current") == str(8 << 20), 60)
            process.communicate('{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n', timeout=150)
        assert process.returncode == 0
        refused = machine.exec("vm", *qemu_with(16))
        assert refused.returncode == 1
        assert "preallocating memory failed" in refused.stderr
        assert int(machine.value("vm/misc.events", "sgx_epc.max")) > 0
        eventually(lambda: machine.value("vm/misc.current") == "0")
