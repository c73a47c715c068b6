"""inotifywait, unmodified, in a machine: it wakes when an enclave hits its limit, and when a cgroup fills."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tests.contract.containers import HOLD, LIMIT, NEEDS_ALL, inside, nothing_left, watch_for
from tests.e2e.served import Served, eventually, served
from tests.programs.build import build

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "inotifywait"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("inotify")) as machine:
        yield machine


@pytest.mark.parametrize("file", ["misc.events", "misc.events.local", "cgroup.events"])
def test_it_wakes_at_a_change(machine: Served, file: str) -> None:
    group = file.replace(".", "-")
    machine.path(group).mkdir()
    machine.write(f"{group}/misc.max", f"sgx_epc {LIMIT}")
    cgroup = f"/sys/fs/cgroup/{group}"
    script = f"echo 0 > {cgroup}/cgroup.procs; exec {build()}/{' '.join(HOLD)}"
    watching = inside(machine, "inotifywait", "-e", "modify", "--timeout", "120", f"{cgroup}/{file}")
    with (
        nothing_left(machine),
        subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher,
    ):
        assert watcher.stderr is not None
        eventually(lambda: "Watches established" in watcher.stderr.readline())
        with subprocess.Popen(inside(machine, "sh", "-c", script), stdout=subprocess.DEVNULL) as owner:
            seen = watch_for(machine, group)
            output, _ = watcher.communicate(timeout=150)
            owner.kill()
        eventually(lambda: machine.read(f"{group}/cgroup.procs") == "")
    seen.the_limit_held()
    assert output == f"{cgroup}/{file} MODIFY \n"
    assert watcher.returncode == 0
