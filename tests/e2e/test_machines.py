"""Several machines at once keep to themselves; one inside another is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.e2e.late import attached, late
from tests.e2e.machine import EPCGROUP, NEEDS, command, programs, run, started
from tests.e2e.served import served

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]


@pytest.mark.usefixtures("enclu")
@pytest.mark.needs("fuse")
def test_machines_do_not_disturb_each_other() -> None:
    """Three runs, two servers and a joined process at the same time; the killed one takes nobody along."""
    cases = ("heap", "two_enclaves", "threads")
    with ExitStack() as stack:
        directories = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        servers = [stack.enter_context(served(place, epc="64 pages")) for place in directories]
        program = stack.enter_context(late())
        stack.enter_context(attached("--epc", "32 pages", program.pid))
        victim = stack.enter_context(started(command("many", "again", "100000", epc=64)))
        runs = [
            stack.enter_context(started(command("basics", *cases, epc=epc, options=("--report", "json"))))
            for epc in (48, 64, 128)
        ]
        execs = [
            stack.enter_context(started(server.argv("/", str(programs() / "basics"), *cases)))
            for server in servers
        ]
        assert program.ask("own 60") == "own 60"
        victim.send_signal(signal.SIGKILL)
        for process in (*runs, *execs):
            output, errors = process.communicate(timeout=180)
            assert output.splitlines() == [f"ok {case}" for case in cases], errors
        assert program.ask("check") == "check 0 0"
        for server in servers:
            assert server.value("misc.current") == "0"
            assert 16 * 4096 < int(server.value("misc.peak")) <= 64 * 4096


def test_a_machine_inside_a_machine_is_refused() -> None:
    """It says so, and what to do; the outer one goes on."""
    inner = run(EPCGROUP, "run", "--epc", "1M", "--", "true", epc=64)
    assert inner.status == 2
    assert "is itself in the emulated machine of process" in inner.errors
    assert "start the program directly" in inner.errors


@pytest.mark.needs("strace")
def test_a_machine_under_another_tracer_is_refused() -> None:
    """strace -f has the program before us."""
    words = ["strace", "-f", "-o", os.devnull, EPCGROUP, "run", "--epc", "1M", "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "(strace) already: programs cannot be run in a machine that is itself traced" in done.stderr
