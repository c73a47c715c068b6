"""An error of ours costs one program at most, says so, and never hangs it."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, PAGE, programs

from epcgroup.driver import Driver
from epcgroup.live import Supervisor
from epcgroup.live.paging import uffd
from epcgroup.live.tracing import ptrace
from epcgroup.live.tracing import syscalls as live_syscalls

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

PAGES = 300


def run_load(log: io.StringIO, tmp_path: Path) -> int:
    """The wait status of a program that pages against its limit."""
    output = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    try:
        with Supervisor(PAGES, log=log) as machine:
            machine.mkdir("/small", limit=100 * PAGE)
            pid = machine.spawn(
                [str(programs() / "load"), "pairs", "200", "4000", "7"], "/small", stdout=output
            )
            return machine.run()[pid]
    finally:
        os.close(output)


@pytest.mark.usefixtures("enclu")
def test_an_error_in_the_page_service_is_a_sigbus_and_a_log_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = 0
    fault = Driver.fault

    def failing(self: Driver, *args: object) -> object:
        nonlocal served
        served += 1
        if served == 500:
            raise RuntimeError("made to fail")
        return fault(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Driver, "fault", failing)
    log = io.StringIO()
    status = run_load(log, tmp_path)
    assert status != 0, "the program must not go on as if nothing had happened"
    assert "page poisoned" in log.getvalue()
    assert "made to fail" in log.getvalue()


def test_no_memory_for_a_page_is_a_sigbus_and_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No error of ours: the line names enclave, page and cause, without a stack trace."""
    copied = 0
    copy = uffd.copy

    def failing(*args: int) -> None:
        nonlocal copied
        copied += 1
        if copied == 50:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        copy(*args)

    monkeypatch.setattr(uffd, "copy", failing)
    log = io.StringIO()
    assert run_load(log, tmp_path) != 0
    told = [line for line in log.getvalue().splitlines() if "Cannot allocate memory" in line]
    assert [re.sub("0x[0-9a-f]+", "N", line) for line in told] == [
        "epcgroup: enclave 1: page N cannot be loaded: its frame cannot be filled: Cannot allocate memory"
    ]
    assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize("error", [RuntimeError, ProcessLookupError])
def test_an_error_in_the_tracer_ends_that_program_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that looks as if the program had been killed: it has not, and would wait for ever."""
    answer = live_syscalls.answer
    victim = 0

    def failing(tracer: object, task: object) -> None:
        if task.pid == victim:  # type: ignore[attr-defined]
            raise error("made to fail")
        answer(tracer, task)  # type: ignore[arg-type]

    monkeypatch.setattr(live_syscalls, "answer", failing)
    log = io.StringIO()
    with Supervisor(PAGES, log=log) as machine:
        survivor = machine.spawn([sys.executable, "-c", "import decimal"])
        victim = machine.spawn([sys.executable, "-c", "import decimal"])
        statuses = machine.run()
    assert os.WIFSIGNALED(statuses[victim])
    assert os.WTERMSIG(statuses[victim]) == signal.SIGKILL
    assert statuses[survivor] == 0
    assert "made to fail" in log.getvalue()


def test_a_program_that_is_killed_under_our_hands_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last stop has been met, and not been answered yet, when what we did to it fails."""
    wait_for = ptrace.wait_for

    def killing(tid: int, seconds: float) -> int:
        os.kill(tid, signal.SIGKILL)
        return wait_for(tid, seconds)

    monkeypatch.setattr(ptrace, "wait_for", killing)
    log = io.StringIO()
    with Supervisor(PAGES, log=log) as machine:
        victim = machine.spawn(["true"])
        status = machine.run()[victim]
    assert (os.WTERMSIG(status), log.getvalue()) == (signal.SIGKILL, "")
