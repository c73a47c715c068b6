"""What every OCI runtime does with a bundle, as promises.

A client's test imports these tests and gives them their runtime, by a fixture ``runtime``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.contract.containers import (
    HOLD,
    LIMIT,
    ONCE,
    config,
    inside,
    make_bundle,
    make_rootfs,
    nothing_left,
    run,
    watch,
    watch_for,
)
from tests.e2e.served import Served, eventually, served


@dataclass
class Runtime:
    """A runtime in a machine, with its own directory of states."""

    name: str
    machine: Served
    rootfs: Path

    def command(self, *words: str) -> tuple[str, ...]:
        """Its command line."""
        return (self.name, "--root", str(self.machine.directory / self.name), *words)

    def run(self, *words: str) -> str:
        """Run it to its end; what it printed."""
        return run(self.machine, *self.command(*words))

    def has(self, container: str) -> bool:
        """Whether it knows the container already."""
        words = inside(self.machine, *self.command("state", container))
        return subprocess.run(words, capture_output=True, timeout=150, check=False).returncode == 0

    def state(self, container: str) -> dict[str, Any]:
        """What it says of a container."""
        return json.loads(self.run("state", container))  # type: ignore[no-any-return]

    def bundle(self, directory: Path, *args: str, cgroup: str) -> str:
        """A bundle that runs ``args``."""
        return str(make_bundle(directory, self.rootfs, config(*args, cgroup=cgroup)))


@contextmanager
def serving(name: str, directories: pytest.TempPathFactory, *options: str) -> Iterator[Runtime]:
    """A server with these options, a cgroup ``pods`` and an image for the runtime of that name."""
    with served(directories.mktemp(name), *options) as machine:
        machine.path("pods").mkdir()
        yield Runtime(name, machine, make_rootfs(directories.mktemp("image")))


def test_a_container_holds_the_limit_of_its_bundle(runtime: Runtime, tmp_path: Path) -> None:
    """The enclave's heap is three times the limit, and every page of it comes back right."""
    machine = runtime.machine
    script = f"cat /proc/self/cgroup; {' '.join(ONCE)} && cat /sys/fs/cgroup/pods/a/misc.peak"
    bundle = runtime.bundle(tmp_path, "sh", "-c", script, cgroup="/pods/a")
    with nothing_left(machine, "pods/a"):
        words = inside(machine, *runtime.command("run", "-b", bundle, "a"))
        done, seen = watch(machine, "pods/a", words)
    assert done.returncode == 0, done.stdout + done.stderr
    seen.the_limit_held()
    where, ready, peak = done.stdout.splitlines()
    assert (where, ready) == ("0::/pods/a", "ready")
    assert LIMIT * 3 // 4 < int(peak.split()[1]) <= LIMIT


def test_a_detached_container_is_paused_killed_and_deleted(runtime: Runtime, tmp_path: Path) -> None:
    machine = runtime.machine
    bundle = runtime.bundle(tmp_path, *HOLD, cgroup="/pods/b")
    with nothing_left(machine, "pods/b"), (tmp_path / "output").open("w") as output:
        words = inside(machine, *runtime.command("run", "-d", "-b", bundle, "b"))
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=150, check=True)
        seen = watch_for(machine, "pods/b")
        state = runtime.state("b")
        assert (state["status"], [state["pid"]]) == ("running", sorted(seen.processes))
        runtime.run("pause", "b")
        assert machine.read("pods/b/cgroup.events") == "populated 1\nfrozen 1\n"
        assert runtime.state("b")["status"] == "paused"
        runtime.run("resume", "b")
        runtime.run("kill", "b", "KILL")
        eventually(lambda: runtime.state("b")["status"] == "stopped")
        runtime.run("delete", "b")
    seen.the_limit_held()


def test_a_process_that_joins_a_container_is_charged_there(runtime: Runtime, tmp_path: Path) -> None:
    machine = runtime.machine
    bundle = runtime.bundle(tmp_path, "sleep", "600", cgroup="/pods/c")
    with nothing_left(machine, "pods/c"):
        words = inside(machine, *runtime.command("run", "-b", bundle, "c"))
        with subprocess.Popen(words, stdin=subprocess.DEVNULL) as init:
            eventually(lambda: runtime.has("c"))
            eventually(lambda: runtime.state("c")["status"] == "running")
            joining = inside(machine, *runtime.command("exec", "c", *ONCE))
            done, seen = watch(machine, "pods/c", joining)
            runtime.run("kill", "c", "KILL")
        assert init.returncode == 137
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
    seen.the_limit_held()


def test_a_program_sees_a_device_that_its_dev_does_not_have(runtime: Runtime, tmp_path: Path) -> None:
    script = "ls /dev/sgx_enclave; cat /dev/sgx_provision; echo $?"
    bundle = runtime.bundle(tmp_path, "sh", "-c", script, cgroup="/pods/d")
    with nothing_left(runtime.machine, "pods/d"):
        said = runtime.run("run", "-b", bundle, "d")
    assert said.splitlines() == ["/dev/sgx_enclave", "0"]


def test_an_enclave_lives_in_a_user_namespace(runtime: Runtime, tmp_path: Path) -> None:
    """Its root is nobody outside: it may not raise its limit, nor look into the supervisor."""
    script = (
        f"cat /proc/self/cgroup; {' '.join(ONCE)}; cat /sys/fs/cgroup/misc.max; "
        "echo sgx_epc max 2> /dev/null > /sys/fs/cgroup/misc.max || echo refused"
    )
    configuration = config("sh", "-c", script, cgroup="/pods/u", namespaces=("cgroup", "user", "network"))
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    configuration["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    bundle = make_bundle(tmp_path / "bundle", runtime.rootfs, configuration)
    for path in (runtime.rootfs, *runtime.rootfs.parents, runtime.machine.directory):
        if "pytest" in str(path):  # the mapped root must get there
            path.chmod(path.stat().st_mode | 0o011)
    with nothing_left(runtime.machine, "pods/u"):
        said = runtime.run("run", "-b", str(bundle), "u")
    assert said.splitlines() == ["0::/", "ready", f"sgx_epc {LIMIT}", "refused"]
