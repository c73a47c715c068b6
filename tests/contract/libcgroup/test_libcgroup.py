"""libcgroup's tools (cgcreate, cgset, cgget, cgexec, cgdelete, lssubsys), unmodified, in a machine.

libcgroup looks for a mount of type cgroup2 in /proc/mounts and goes where that line says.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.served import NEEDS, Served, eventually, served, stressed

pytestmark = pytest.mark.needs(*NEEDS, "root", "cgroup-tools")

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("libcgroup")) as server:
        yield server


def tool(machine: Served, *words: str) -> str:
    """Run one of libcgroup's tools in the machine; what it printed."""
    done = machine.exec("/", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def group(machine: Served) -> Iterator[str]:
    tool(machine, "cgcreate", "-g", "misc:/lib")
    yield "lib"
    eventually(lambda: "populated 0" in machine.read("lib/cgroup.events"))
    tool(machine, "cgdelete", "-g", "misc:/lib")
    assert not machine.path("lib").exists()


def test_cgset_sets_a_limit_and_cgget_reads_it(machine: Served, group: str) -> None:
    tool(machine, "cgset", "-r", f"misc.max=sgx_epc {2 * MIB}", group)
    said = tool(machine, "cgget", "-n", "-r", "misc.max", "-r", "misc.current", "-r", "misc.events", group)
    assert f"misc.max: sgx_epc {2 * MIB}\n" in said
    assert "misc.current: sgx_epc 0\n" in said
    assert "misc.events: sgx_epc.max 0\n" in said


def test_cgset_hears_that_a_limit_is_wrong(machine: Served, group: str) -> None:
    with pytest.raises(AssertionError):
        tool(machine, "cgset", "-r", "misc.max=sgx_epc 4k", group)
    assert machine.value(f"{group}/misc.max") == "max"


def test_lssubsys_lists_the_one_controller(machine: Served) -> None:
    assert tool(machine, "lssubsys", "-a") == "misc\n"


def test_a_process_that_cgexec_starts_is_in_the_cgroup(machine: Served, group: str) -> None:
    procs = machine.path(f"{group}/cgroup.procs")
    said = tool(machine, "cgexec", "-g", f"misc:{group}", "sh", "-c", f"echo $$; cat {procs}")
    pid, *listed = said.split()
    assert listed[0] == pid


def test_an_enclave_under_cgexec_holds_its_limit(machine: Served, group: str) -> None:
    """The machine runs cgexec, which moves itself into the cgroup and becomes the SGX program."""
    limit = 2 * MIB
    tool(machine, "cgset", "-r", f"misc.max=sgx_epc {limit}", group)
    seen: list[int] = []
    with stressed(machine, "/", "--heap", "6M", wrap=("cgexec", "-g", f"misc:{group}")):
        while sum(charged > limit * 3 // 4 for charged in seen) < 30:
            seen.append(int(machine.value(f"{group}/misc.current")))
    assert max(seen) <= limit
    assert int(machine.value(f"{group}/misc.events", "sgx_epc.max")) > 0
    assert machine.value(f"{group}/misc.current") == "0"
