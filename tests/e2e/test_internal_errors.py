"""An error of ours costs one program at most, says so, and never hangs it."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, PAGE, programs

from epcgroup.driver import Driver
from epcgroup.live import Supervisor
from epcgroup.live.tracing import syscalls as live_syscalls

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(120)]

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
