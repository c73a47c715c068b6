"""busybox in a container, unmodified: a shell and a `cat` administer the container's own cgroup.

Its `cat` copies by sendfile(2), which stops at the size that a file reports.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.containers import NEEDS_ALL, ONCE, config, make_bundle, make_rootfs, nothing_left, run
from tests.e2e.served import Served, served

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "runc", "cgroup2"), pytest.mark.timeout(300)]

# In a cgroup namespace, with the tree writable: the container's cgroup is the root of what it sees.
SCRIPT = f"""
set -e
cd /sys/fs/cgroup
cat /proc/self/cgroup cgroup.controllers
mkdir init enclave
echo $$ > init/cgroup.procs
cat init/cgroup.procs
echo +misc > cgroup.subtree_control
echo sgx_epc 524288 > enclave/misc.max
cat enclave/misc.max
(echo 0 > enclave/cgroup.procs; cat /proc/self/cgroup; exec {" ".join(ONCE)})
cat enclave/misc.peak
grep -c cgroup2 /proc/self/mountinfo
cat enclave/misc.current
rmdir enclave
"""


@pytest.fixture(scope="module", params=["alone", "over a real cgroup2"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tree that plays the kernel, and one that mirrors this kernel's."""
    directory = tmp_path_factory.mktemp("busybox")
    if request.param == "alone":
        with served(directory) as machine:
            machine.path("pods").mkdir()
            yield machine
        return
    real = tmp_path_factory.mktemp("cgroup2")
    subprocess.run(["mount", "-t", "cgroup2", "none", real], check=True)
    top = real / f"epcgroup-busybox-{os.getpid()}"
    try:
        with served(directory, "--mirror", str(top)) as machine:
            machine.path("pods").mkdir()
            yield machine
            machine.stop()
    finally:
        for path, _, _ in os.walk(top, topdown=False):
            Path(path).rmdir()
        subprocess.run(["umount", real], check=True)


def test_a_shell_in_a_container_limits_an_enclave_in_a_cgroup_of_its_own(
    machine: Served, tmp_path: Path
) -> None:
    rootfs = make_rootfs(tmp_path)
    configuration = config("sh", "-c", SCRIPT, cgroup="/pods/box", namespaces=("cgroup",))
    bundle = make_bundle(tmp_path / "bundle", rootfs, configuration)
    with nothing_left(machine, "pods/box"):
        said = run(
            machine, "runc", "--root", str(machine.directory / "runc"), "run", "-b", str(bundle), "box"
        )
    assert len(said.splitlines()) == 9, said
    where, controllers, listed, limit, inner, ready, peak, mounts, current = said.splitlines()
    assert controllers.split()[-1] == "misc"
    assert (where, listed, limit) == ("0::/", "1", "sgx_epc 524288")
    assert (inner, ready, mounts, current) == ("0::/enclave", "ready", "1", "sgx_epc 0")
    assert 393216 < int(peak.split()[1]) <= 524288
