"""What the contract tests of container runtimes share: an image made by hand, and how to look from outside.

The image has busybox and our SGX program (`tests/programs/cases/load.c`), both static; nothing is
fetched. A container is looked at through the machine's tree, on the host's side.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.served import EPCGROUP, NEEDS, Served, eventually
from tests.programs.build import build

NEEDS_ALL = (*NEEDS, "root", "gcc", "busybox")
PAGE = 4096
MIB = 1 << 20
LIMIT = MIB
HEAP = 3 * MIB // PAGE  # pages of the enclave's heap: three times the limit
APPLETS = ("sh", "cat", "echo", "grep", "ls", "mkdir", "rmdir", "sleep", "stat", "true")
#: Fills an enclave's heap beyond the limit and checks every page of it; 0 if all contents were right.
ONCE = ("load", "once", str(HEAP))
#: The same round and round until it is ended.
HOLD = ("load", "hold", str(HEAP))


def inside(machine: Served, *command: str) -> list[str]:
    """`epcgroup exec` of a runtime, which raises resource limits even where root may not."""
    return [EPCGROUP, "exec", "--dir", str(machine.directory), "--ignore-rlimits", "--", *command]


def run(machine: Served, *command: str) -> str:
    """Run a command inside to its end, which must be a good one; what it printed."""
    done = subprocess.run(
        inside(machine, *command),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_rootfs(directory: Path) -> Path:
    """A root file system with busybox and `load`; returns its directory."""
    root = directory / "rootfs"
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin/busybox")
    shutil.copy(build() / "load-static", root / "bin/load")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return root


def config(*args: str, cgroup: str, limit: int = LIMIT, namespaces: tuple[str, ...] = ()) -> dict[str, Any]:
    """An OCI configuration: run ``args`` in the cgroup, with ``misc.max`` as its `unified` value."""
    capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["ro", "nosuid", "noexec"],
            },
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", *namespaces)],
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "unified": {"misc.max": f"sgx_epc {limit}"},
            },
        },
    }


def make_bundle(directory: Path, rootfs: Path, configuration: dict[str, Any]) -> Path:
    """An OCI bundle over a root file system made before."""
    directory.mkdir(parents=True, exist_ok=True)
    configuration["root"]["path"] = str(rootfs)
    (directory / "config.json").write_text(json.dumps(configuration))
    return directory


@dataclass
class Seen:
    """What the files of a cgroup said while something ran in it."""

    current: list[int] = field(default_factory=list)
    limits: set[str] = field(default_factory=set)
    events: int = 0
    processes: set[int] = field(default_factory=set)

    def look(self, machine: Served, group: str) -> bool:
        """One look; False when the cgroup is not there."""
        try:
            self.limits.add(machine.value(f"{group}/misc.max"))
            self.current.append(int(machine.value(f"{group}/misc.current")))
            self.events = max(self.events, int(machine.value(f"{group}/misc.events", "sgx_epc.max")))
            self.processes.update(map(int, machine.read(f"{group}/cgroup.procs").split()))
        except (FileNotFoundError, OSError, KeyError):
            return False
        return True

    def the_limit_held(self, limit: int = LIMIT) -> None:
        """The enclave wanted more than the limit, and got the limit."""
        assert str(limit) in self.limits
        assert limit * 3 // 4 < max(self.current) <= limit
        assert self.events > 10


def watch(machine: Served, group: str, command: list[str]) -> tuple[subprocess.CompletedProcess[str], Seen]:
    """Run a command of the host to its end and look at the cgroup meanwhile."""
    seen = Seen()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            seen.look(machine, group)
            time.sleep(0.01)
        output, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output, errors), seen


def watch_for(machine: Served, group: str, events: int = 50) -> Seen:
    """Look at the cgroup until its limit was hit so often."""
    seen = Seen()
    eventually(lambda: seen.look(machine, group) and seen.events >= events)
    return seen


@contextmanager
def nothing_left(machine: Served, *groups: str) -> Iterator[None]:
    """Afterwards cgroups and processes of the root are as before, no charge is left, and no mount."""
    before, processes = cgroups(machine), machine.read("cgroup.procs")
    mounts = mount_points()
    host = os.stat("/sys/fs/cgroup").st_dev
    yield
    eventually(lambda: machine.value("misc.current") == "0")
    eventually(lambda: machine.read("cgroup.procs") == processes)
    for group in groups:
        assert not machine.path(group).exists()
    assert cgroups(machine) == before
    assert mount_points() - mounts == set()
    assert os.stat("/sys/fs/cgroup").st_dev == host


def cgroups(machine: Served) -> set[str]:
    """Every cgroup of the machine, by path."""
    return {path for path, _, _ in os.walk(machine.mount)}


def mount_points() -> set[str]:
    """Where this mount namespace has something mounted that a container could have left."""
    points = {line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {point for point in points if "rootfs" in point or "merged" in point or "containers" in point}
