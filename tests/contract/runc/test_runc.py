"""runc, unmodified: containers whose EPC limit stands in the bundle's `unified` key."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.containers import (
    HOLD,
    LIMIT,
    NEEDS_ALL,
    ONCE,
    config,
    make_bundle,
    make_rootfs,
    nothing_left,
    watch,
    watch_for,
)
from tests.e2e.served import Served, eventually, served

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "runc"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("runc")) as server:
        server.path("pods").mkdir()
        yield server


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("image"))


def runc(machine: Served, *words: str) -> list[str]:
    """The command line of runc inside the machine."""
    return machine.argv("/", "runc", "--root", str(machine.directory / "runc"), *words)


def run(machine: Served, *words: str) -> str:
    """Run runc to its end; what it printed."""
    done = subprocess.run(
        runc(machine, *words),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_container_holds_the_limit_of_its_bundle(machine: Served, rootfs: Path, tmp_path: Path) -> None:
    """The enclave's heap is three times the limit, and every page of it comes back right."""
    script = f"cat /proc/self/cgroup; {' '.join(ONCE)} && cat /sys/fs/cgroup/pods/a/misc.peak"
    bundle = make_bundle(tmp_path, rootfs, config("sh", "-c", script, cgroup="/pods/a"))
    with nothing_left(machine, "pods/a"):
        done, seen = watch(machine, "pods/a", runc(machine, "run", "-b", str(bundle), "a"))
    assert done.returncode == 0, done.stdout + done.stderr
    seen.the_limit_held()
    where, ready, peak = done.stdout.splitlines()
    assert (where, ready) == ("0::/pods/a", "ready")
    assert LIMIT * 3 // 4 < int(peak.split()[1]) <= LIMIT


def test_a_detached_container_is_paused_killed_and_deleted(
    machine: Served, rootfs: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, rootfs, config(*HOLD, cgroup="/pods/b"))
    with nothing_left(machine, "pods/b"), (tmp_path / "output").open("w") as output:
        words = runc(machine, "run", "-d", "-b", str(bundle), "b")
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60, check=True)
        seen = watch_for(machine, "pods/b")
        state = json.loads(run(machine, "state", "b"))
        assert (state["status"], [state["pid"]]) == ("running", sorted(seen.processes))
        run(machine, "pause", "b")
        assert machine.read("pods/b/cgroup.events") == "populated 1\nfrozen 1\n"
        assert json.loads(run(machine, "state", "b"))["status"] == "paused"
        run(machine, "resume", "b")
        run(machine, "kill", "b", "KILL")
        eventually(lambda: json.loads(run(machine, "state", "b"))["status"] == "stopped")
        run(machine, "delete", "b")
    seen.the_limit_held()


def test_a_process_that_joins_a_container_is_charged_there(
    machine: Served, rootfs: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, rootfs, config("sleep", "60", cgroup="/pods/c"))
    with nothing_left(machine, "pods/c"):
        with subprocess.Popen(runc(machine, "run", "-b", str(bundle), "c"), stdin=subprocess.DEVNULL) as init:
            eventually(lambda: machine.path("pods/c/cgroup.procs").exists())
            eventually(lambda: json.loads(run(machine, "list", "-f", "json") or "null"))
            eventually(lambda: json.loads(run(machine, "state", "c"))["status"] == "running")
            done, seen = watch(machine, "pods/c", runc(machine, "exec", "c", *ONCE))
            run(machine, "kill", "c", "KILL")
        assert init.returncode == 137
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
    seen.the_limit_held()


def test_a_program_in_a_container_sees_a_device_that_its_dev_does_not_have(
    machine: Served, rootfs: Path, tmp_path: Path
) -> None:
    script = "ls /dev/sgx_enclave; cat /dev/sgx_provision; echo $?; ls /dev"
    bundle = make_bundle(tmp_path, rootfs, config("sh", "-c", script, cgroup="/pods/d"))
    with nothing_left(machine, "pods/d"):
        assert run(machine, "run", "-b", str(bundle), "d").splitlines()[:2] == ["/dev/sgx_enclave", "0"]
