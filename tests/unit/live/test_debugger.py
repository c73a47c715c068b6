"""What a debugger is told: the numbers of wait(2), and which tracees a wait is about."""

from __future__ import annotations

import os
import signal

import pytest

from epcgroup.live.tracing import ptrace
from epcgroup.live.tracing.debugger.state import Stop, event_stop, siginfo
from epcgroup.live.tracing.debugger.waits import Wait
from epcgroup.live.tracing.seccomp import SYS

ALL, PID, PGID = 0, 1, 2
WNOTHREAD = 0x20000000
TRACEE, DEBUGGER, ANOTHER = 77, 50, 51


def wait(kind: int, ident: int, options: int = 4) -> Wait:
    return Wait(SYS["waitid"], kind, ident, options, DEBUGGER, 0, 0)


def test_a_stop_reads_as_a_stop_by_its_signal() -> None:
    status = Stop(signal.SIGUSR1).status
    assert os.WIFSTOPPED(status)
    assert os.WSTOPSIG(status) == signal.SIGUSR1
    assert ptrace.stop_of(status) == (signal.SIGUSR1, 0)


@pytest.mark.parametrize("event", [ptrace.EVENT_FORK, ptrace.EVENT_EXEC, ptrace.EVENT_STOP])
def test_an_event_reads_as_a_trap_with_its_number_above(event: int) -> None:
    stop = event_stop(event, 5)
    assert ptrace.stop_of(stop.status) == (signal.SIGTRAP, event)
    assert stop.info == siginfo(signal.SIGTRAP, event << 8 | signal.SIGTRAP)


@pytest.mark.parametrize(
    ("asked", "tracer", "expected"),
    [
        (wait(ALL, 0), DEBUGGER, True),
        (wait(PID, TRACEE), DEBUGGER, True),
        (wait(PID, TRACEE + 1), DEBUGGER, False),
        (wait(PGID, 9), DEBUGGER, True),
        (wait(PGID, 8), DEBUGGER, False),
        (wait(ALL, 0), ANOTHER, True),
        (wait(ALL, 0, WNOTHREAD), ANOTHER, False),
        (wait(ALL, 0, WNOTHREAD), DEBUGGER, True),
    ],
)
def test_a_wait_is_about_whom_it_names(asked: Wait, tracer: int, expected: bool) -> None:
    """Another thread's tracees too, unless __WNOTHREAD forbids it."""
    assert asked.takes(TRACEE, TRACEE, tracer, group=9) is expected


def test_the_group_of_a_live_tracee_is_asked_of_the_kernel() -> None:
    assert wait(PGID, os.getpgid(0)).takes(TRACEE, os.getpid(), DEBUGGER)
    assert not wait(PGID, os.getpgid(0)).takes(TRACEE, 2**22 + 1, DEBUGGER)  # no such process
