"""runc, unmodified: containers whose EPC limit stands in the bundle's `unified` key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract import oci
from tests.contract.containers import LIMIT, NEEDS_ALL, ONCE, make_rootfs, nothing_left, run
from tests.e2e.served import served
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
