"""podman, unmodified, with both runtimes: `--cgroup-conf=misc.max=…` is kept by the container's enclave.

The image is imported from an archive made here; nothing is fetched, no network is set up. podman's default
seccomp profile stays on.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.containers import (
    HOLD,
    LIMIT,
    NEEDS_ALL,
    ONCE,
    inside,
    make_rootfs,
    nothing_left,
    run,
    watch,
    watch_for,
)
from tests.e2e.served import Served, eventually, served

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "podman", "runc", "crun"), pytest.mark.timeout(300)]

IMAGE = "localhost/sgx"
PARENT = "libpod_parent"


@dataclass
class Podman:
    """podman with storage of its own, in a machine."""

    machine: Served
    directory: Path

    def command(self, *words: str) -> tuple[str, ...]:
        """Its command line."""
        places = ("--root", f"{self.directory}/storage", "--runroot", f"{self.directory}/run")
        how = ("--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file")
        return ("podman", *places, "--tmpdir", f"{self.directory}/tmp", *how, *words)

    def run(self, *words: str) -> str:
        """Run it to its end; what it printed."""
        return run(self.machine, *self.command(*words))

    def container(self, runtime: str, *words: str) -> tuple[str, ...]:
        """A command line that runs a container under the limit; the words are options, image, command."""
        # The tree has no pids controller, which podman's default limit would need.
        options = ("--network", "none", "--pids-limit", "0", f"--cgroup-conf=misc.max=sgx_epc {LIMIT}")
        return (*self.command("--runtime", runtime, "run", *options), *words)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    directory = tmp_path_factory.mktemp("podman")
    with tarfile.open(directory / "image.tar", "w") as archive:
        archive.add(make_rootfs(tmp_path_factory.mktemp("image")), ".")
    with served(directory / "machine", "--auto-delegate") as machine:
        podman = Podman(machine, directory)
        podman.run("import", str(directory / "image.tar"), IMAGE)
        machine.path(f"{PARENT}/conmon").mkdir(parents=True)  # podman makes these two, and leaves them
        yield podman


def test_podman_finds_cgroup_v2_with_misc(podman: Podman) -> None:
    host = json.loads(podman.run("info", "--format", "json"))["host"]
    assert (host["cgroupVersion"], host["cgroupControllers"]) == ("v2", ["misc"])


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_container_holds_its_limit(podman: Podman, runtime: str) -> None:
    machine = podman.machine
    with nothing_left(machine):
        name = f"once-{runtime}"
        words = inside(machine, *podman.container(runtime, "-d", "--name", name, IMAGE, *HOLD))
        container = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=150, check=True, text=True
        ).stdout.strip()
        group = f"{PARENT}/libpod-{container}"
        seen = watch_for(machine, group)
        state = json.loads(podman.run("inspect", name))[0]["State"]
        assert {state["Pid"]} == seen.processes
        assert state["CgroupPath"].strip("/") == group
        podman.run("exec", name, "cat", "/sys/fs/cgroup/misc.max")
        podman.run("stop", "-t", "0", name)
        assert "ready" in podman.run("logs", name)
        podman.run("rm", name)
    seen.the_limit_held()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_container_sees_its_own_cgroup(podman: Podman, runtime: str) -> None:
    """The limit, the count of refusals, and the contents of three times the memory are right inside."""
    script = (
        f"cat /proc/self/cgroup /sys/fs/cgroup/misc.max; {' '.join(ONCE)} && cat /sys/fs/cgroup/misc.events"
    )
    with nothing_left(podman.machine):
        words = inside(podman.machine, *podman.container(runtime, "--rm", IMAGE, "sh", "-c", script))
        done, _ = watch(podman.machine, PARENT, words)
    assert done.returncode == 0, done.stdout + done.stderr
    where, limit, ready, events = done.stdout.splitlines()
    assert (where, limit, ready) == ("0::/", f"sgx_epc {LIMIT}", "ready")
    assert int(events.removeprefix("sgx_epc.max ")) > 10


def test_a_killed_machine_takes_its_containers_along(tmp_path: Path, podman: Podman) -> None:
    """Two machines, one storage: what the first left does not hinder the second."""
    with served(tmp_path, "--auto-delegate") as machine:
        mine = Podman(machine, podman.directory)
        with nothing_left(podman.machine):
            words = inside(machine, *mine.container("crun", "-d", "--name", "orphan", IMAGE, *HOLD))
            container = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=150, check=True, text=True
            ).stdout.strip()
            pids = watch_for(machine, f"{PARENT}/libpod-{container}").processes
            machine.process.kill()
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
            podman.run("rm", "-f", "orphan")
