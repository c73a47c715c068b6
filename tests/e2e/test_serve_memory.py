"""`serve --memory`: evicted pages are memory, and who has more than its cgroup may have is killed."""

from __future__ import annotations

import errno
import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.machine import programs

from .served import NEEDS, eventually, served

pytestmark = pytest.mark.needs(*NEEDS, "gcc")


def test_over_its_memory_limit_a_program_is_killed_and_its_neighbour_is_not(tmp_path: Path) -> None:
    load = str(programs() / "load")
    with served(tmp_path, "--memory", epc="1M") as machine:
        machine.path("pods").mkdir()
        machine.write("pods/cgroup.subtree_control", "+memory +misc")
        for name in ("pods/a", "pods/b"):
            machine.path(name).mkdir()
        machine.write("pods/a/memory.max", "1M")
        assert machine.read("pods/a/memory.max") == "1048576\n"
        assert machine.read("pods/b/memory.max") == "max\n"
        assert machine.read("cgroup.controllers") == "memory misc\n"
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        neighbour = subprocess.Popen(machine.argv("/pods/b", load, "hold", "400"), **quiet)  # type: ignore[call-overload]
        try:
            eventually(lambda: int(machine.read("pods/b/memory.current")) > 0)
            done = machine.exec("/pods/a", load, "hold", "600")
            assert done.returncode == -signal.SIGKILL
            assert "oom_kill 1\n" in machine.read("pods/a/memory.events")
            eventually(lambda: machine.read("pods/a/memory.current") == "0\n")
            assert neighbour.poll() is None
        finally:
            neighbour.terminate()
            neighbour.wait(60)
        eventually(lambda: machine.read("pods/memory.current") == "0\n")


@pytest.mark.parametrize("text", ["-1", "1X", "", "max max"])
def test_what_is_no_limit_is_refused(tmp_path: Path, text: str) -> None:
    with served(tmp_path, "--memory") as machine:
        machine.path("a").mkdir()
        if text:
            with pytest.raises(OSError, match="Invalid argument") as refused:
                machine.write("a/memory.max", text)
            assert refused.value.errno == errno.EINVAL
        assert machine.read("a/memory.max") == "max\n"
        assert not machine.path("memory.max").exists()
