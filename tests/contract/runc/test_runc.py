"""runc, unmodified: containers whose EPC limit stands in the bundle's `unified` key."""

from __future__ import annotations

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
    inside,
    make_bundle,
    nothing_left,
    run,
    watch_for,
)
from tests.contract.oci import (  # noqa: F401 - tests of this module
    Runtime,
    serving,
    test_a_container_holds_the_limit_of_its_bundle,
    test_a_detached_container_is_paused_killed_and_deleted,
    test_a_process_that_joins_a_container_is_charged_there,
    test_a_program_sees_a_device_that_its_dev_does_not_have,
    test_an_enclave_lives_in_a_user_namespace,
)
from tests.e2e.served import EPCGROUP
from tests.programs.build import build

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "runc"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with serving("runc", tmp_path_factory) as runc:
        yield runc


def test_the_example_runs_a_program_that_is_its_own_image(runtime: Runtime) -> None:
    example = Path(__file__).parents[3] / "examples/containers/limited.sh"
    with nothing_left(runtime.machine):
        said = run(runtime.machine, str(example), str(LIMIT), str(build() / "load-static"), *ONCE[1:])
        runtime.machine.path("example").rmdir()  # runc leaves the parents of a container's cgroup
    lines = said.splitlines()
    assert lines[:2] == [f"misc.max sgx_epc {LIMIT}", "misc.current sgx_epc 0"]
    assert lines[2] == "ready"
    assert int(lines[3].removeprefix("misc.peak sgx_epc ")) <= LIMIT
    assert int(lines[4].removeprefix("misc.events sgx_epc.max ")) > 10


def test_the_chain_from_annotate_to_misc_max_holds_and_audit_finds_where_it_breaks(
    runtime: Runtime, tmp_path: Path
) -> None:
    """As CRI-O would have it: an annotation, the bundle's unified entry, the runtime, the file."""
    machine = runtime.machine
    configuration = config(*HOLD, cgroup="/pods/chain")
    del configuration["linux"]["resources"]["unified"]
    configuration["annotations"] = {"io.kubernetes.container.name": "web"}
    bundle = make_bundle(tmp_path / "bundle", runtime.rootfs, configuration)
    audit = ("audit", "--json", "--root", str(machine.mount), str(bundle))
    epcgroup("annotate", "--into", str(bundle), str(LIMIT))
    with nothing_left(machine, "pods/chain"), (tmp_path / "output").open("w") as output:
        words = inside(machine, *runtime.command("run", "-d", "-b", str(bundle), "chain"))
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=150, check=True)
        watch_for(machine, "pods/chain").the_limit_held()
        assert epcgroup(*audit).returncode == 0
        machine.write("pods/chain/misc.max", "sgx_epc max")
        broken = epcgroup(*audit)
        runtime.run("delete", "-f", "chain")
    assert broken.returncode == 1
    assert "the runtime did not write it" in broken.stdout


def epcgroup(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of ours on the host's side."""
    return subprocess.run([EPCGROUP, *words], capture_output=True, text=True, timeout=150, check=False)
