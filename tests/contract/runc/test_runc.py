"""runc, unmodified: containers whose EPC limit stands in the bundle's `unified` key."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract import oci
from tests.contract.containers import (
    HOLD,
    LIMIT,
    NEEDS_ALL,
    ONCE,
    config,
    inside,
    make_bundle,
    make_rootfs,
    nothing_left,
    run,
    watch_for,
)
from tests.e2e.served import EPCGROUP, served
from tests.programs.build import build

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "runc"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def runc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oci.Runtime]:
    with served(tmp_path_factory.mktemp("runc")) as machine:
        machine.path("pods").mkdir()
        yield oci.Runtime("runc", machine, make_rootfs(tmp_path_factory.mktemp("image")))


def test_a_container_holds_the_limit_of_its_bundle(runc: oci.Runtime, tmp_path: Path) -> None:
    oci.a_container_holds_the_limit_of_its_bundle(runc, tmp_path)


def test_a_detached_container_is_paused_killed_and_deleted(runc: oci.Runtime, tmp_path: Path) -> None:
    oci.a_detached_container_is_paused_killed_and_deleted(runc, tmp_path)


def test_a_process_that_joins_a_container_is_charged_there(runc: oci.Runtime, tmp_path: Path) -> None:
    oci.a_process_that_joins_a_container_is_charged_there(runc, tmp_path)


def test_a_program_sees_a_device_that_its_dev_does_not_have(runc: oci.Runtime, tmp_path: Path) -> None:
    oci.a_program_sees_a_device_that_its_dev_does_not_have(runc, tmp_path)


def test_an_enclave_lives_in_a_user_namespace(runc: oci.Runtime, tmp_path: Path) -> None:
    oci.an_enclave_lives_in_a_user_namespace(runc, tmp_path)


def test_the_example_runs_a_program_that_is_its_own_image(runc: oci.Runtime) -> None:
    example = Path(__file__).parents[3] / "examples/containers/limited.sh"
    with nothing_left(runc.machine):
        said = run(runc.machine, str(example), str(LIMIT), str(build() / "load-static"), *ONCE[1:])
        runc.machine.path("example").rmdir()  # runc leaves the parents of a container's cgroup
    lines = said.splitlines()
    assert lines[:2] == [f"misc.max sgx_epc {LIMIT}", "misc.current sgx_epc 0"]
    assert lines[2] == "ready"
    assert int(lines[3].removeprefix("misc.peak sgx_epc ")) <= LIMIT
    assert int(lines[4].removeprefix("misc.events sgx_epc.max ")) > 10


def test_the_chain_from_annotate_to_misc_max_holds_and_audit_finds_where_it_breaks(
    runc: oci.Runtime, tmp_path: Path
) -> None:
    """As CRI-O would have it: an annotation, the bundle's unified entry, the runtime, the file."""
    machine = runc.machine
    configuration = config(*HOLD, cgroup="/pods/chain")
    del configuration["linux"]["resources"]["unified"]
    configuration["annotations"] = {"io.kubernetes.container.name": "web"}
    bundle = make_bundle(tmp_path / "bundle", runc.rootfs, configuration)
    audit = ("audit", "--json", "--root", str(machine.mount), str(bundle))
    epcgroup("annotate", "--into", str(bundle), str(LIMIT))
    with nothing_left(machine, "pods/chain"), (tmp_path / "output").open("w") as output:
        words = inside(machine, *runc.command("run", "-d", "-b", str(bundle), "chain"))
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60, check=True)
        watch_for(machine, "pods/chain").the_limit_held()
        assert epcgroup(*audit).returncode == 0
        machine.write("pods/chain/misc.max", "sgx_epc max")
        broken = epcgroup(*audit)
        runc.run("delete", "-f", "chain")
    assert broken.returncode == 1
    assert "the runtime did not write it" in broken.stdout


def epcgroup(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of ours on the host's side."""
    return subprocess.run([EPCGROUP, *words], capture_output=True, text=True, timeout=60, check=False)
