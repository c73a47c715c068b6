"""`epcgroup selftest`: the series' scenarios on a served machine of the same policy.

With 32 MiB, so that it is quick; with 128 MiB the limits are those of which the scripts are certain.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .served import EPCGROUP, NEEDS, served

pytestmark = pytest.mark.needs(*NEEDS)


def selftest(directory: Path, mount: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [EPCGROUP, "selftest", "--dir", str(directory), "--root", str(mount), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("form", ["v5", "v17"])
def test_every_step_holds_and_nothing_stays(tmp_path: Path, form: str) -> None:
    with served(tmp_path, "--policy", form, "--memory", epc="32M") as machine:
        done = selftest(tmp_path, machine.mount, "--form", form, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        steps = json.loads(done.stdout)["steps"]
        assert [step for step in steps if step["passed"] is not True] == []
        assert steps[-1]["expected"] == "nothing is charged"
        assert [each.name for each in machine.mount.iterdir() if each.is_dir()] == []


def test_a_taken_name_is_told_and_left(tmp_path: Path) -> None:
    with served(tmp_path) as machine:
        machine.path("sgx_kselftest").mkdir()
        done = selftest(tmp_path, machine.mount)
        assert done.returncode == 4
        assert "sgx_kselftest exists" in done.stderr
        assert machine.path("sgx_kselftest").is_dir()
