"""systemd-cgls, unmodified, lists the cgroups of a machine and who is in them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tests.contract.containers import HOLD, LIMIT, NEEDS_ALL, Seen, run
from tests.e2e.served import Served, eventually, served
from tests.programs.build import build

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "systemd-cgls"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("cgls")) as machine:
        yield machine


def test_the_tree_with_an_enclaves_owner(machine: Served) -> None:
    run(machine, "mkdir", "-p", "/sys/fs/cgroup/pods/web")
    run(machine, "sh", "-c", "echo +misc > /sys/fs/cgroup/pods/cgroup.subtree_control")
    run(machine, "sh", "-c", f"echo sgx_epc {LIMIT} > /sys/fs/cgroup/pods/web/misc.max")
    seen = Seen()
    words = machine.argv("pods/web", str(build() / HOLD[0]), *HOLD[1:])
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as owner:
        eventually(lambda: seen.look(machine, "pods/web") and seen.events > 50)
        listed = run(machine, "systemd-cgls", "--no-pager", "--full")
        below = run(machine, "systemd-cgls", "--no-pager", "/sys/fs/cgroup/pods")
        owner.kill()
    seen.the_limit_held()
    (pid,) = seen.processes
    lines = [line.strip(" │├└─") for line in listed.splitlines()]
    assert lines[0] == "Control group /:"
    assert f"{pid} {build() / HOLD[0]} {' '.join(HOLD[1:])}" in lines
    assert lines.index("web") == lines.index("pods") + 1
    assert f"{pid} " in below
    eventually(lambda: machine.read("pods/web/cgroup.procs") == "")
    assert machine.value("misc.current") == "0"
