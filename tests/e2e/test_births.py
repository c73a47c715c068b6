"""A child whose parent is killed while it reports the birth is not forgotten; nor is a thread killed in exec.

The kernel takes such a report back, sometimes after we have seen it. Both are brought about here:
the parent is killed as soon as the kernel has its report, and that is kept from the tracer or not.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS

from epcgroup.live import Supervisor
from epcgroup.live.fastpath import programs
from epcgroup.live.tracing import answers, procfs, ptrace
from epcgroup.live.tracing.task import Task
from epcgroup.live.tracing.tracer import Tracer

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

Stop = tuple[int, int] | None
FORK = "os.fork()"
SYS_PTRACE, PTRACE_TRACEME = 101, 0
#: The child's parent is then the parent of who makes it, as `runc` does it.
CLONE_PARENT = "ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0)"
THREAD = "_thread.start_new_thread(time.sleep, (9,)) and 0"
PROGRAM = """
import _thread, ctypes, os, sys, time
if {make} == 0:
    time.sleep(0.2)
    os.write(1, b"the child lives")
    os._exit(0)
time.sleep(9)
"""


def killed(pid: int) -> None:
    """Kill a process that waits at a report, and wait until the thread has left that stop."""
    info = ptrace.getsiginfo(pid)
    os.kill(pid, signal.SIGKILL)
    while True:
        try:
            if ptrace.getsiginfo(pid) != info:
                return
        except ProcessLookupError:
            pass  # on its way


class Reports:
    """Stands between kernel and tracer: parents are killed at their first report of a birth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seen: bool = True) -> None:
        self._wait, self._seen, self.met = ptrace.wait_any, seen, False
        monkeypatch.setattr(ptrace, "wait_any", self.next)

    def next(self) -> Stop:
        stop = self._wait()
        if self.met or stop is None or not self.wanted(*stop):
            return stop
        self.met = True
        return self.birth(stop)

    def wanted(self, _tid: int, status: int) -> bool:
        """Whether this is what the parent is killed at."""
        return status >> 16 in (ptrace.EVENT_FORK, ptrace.EVENT_CLONE)

    def birth(self, stop: tuple[int, int]) -> Stop:
        """What the tracer gets in the place of the report."""
        killed(stop[0])
        return stop if self._seen else self._wait()


class ChildFirst(Reports):
    """The child is killed, and its end seen, before its parent's report is."""

    late: Stop = None
    child = 0

    def next(self) -> Stop:
        if self.late is not None and procfs.tracer_of(self.child) == 0:
            stop, self.late = self.late, None
            return stop
        return super().next()

    def birth(self, stop: tuple[int, int]) -> Stop:
        self.late, self.child = stop, ptrace.geteventmsg(stop[0])
        os.kill(self.child, signal.SIGKILL)
        return self._wait()


class ParentLast(Reports):
    """The child has stopped, and waits to be known, before its parent's report is seen."""

    late: Stop = None

    def next(self) -> Stop:
        if self.late is not None:
            stop, self.late = self.late, None
            if not self._seen:
                killed(stop[0])
            return stop
        return super().next()

    def birth(self, stop: tuple[int, int]) -> Stop:
        child, self.late = ptrace.geteventmsg(stop[0]), stop
        while (first := self._wait()) is None or first[0] != child:
            pass
        return first


class ExecOfThread(Reports):
    """The one that is killed has become another program, not in its first thread."""

    def wanted(self, tid: int, status: int) -> bool:
        return status >> 16 == ptrace.EVENT_EXEC and ptrace.geteventmsg(tid) != tid


def run(program: str, reports: Reports, tmp_path: Path) -> str:
    """Run a Python program; what it said."""
    output, log = tmp_path / "output", io.StringIO()
    with output.open("wb") as file, Supervisor(16, log=log) as machine:
        machine.spawn([sys.executable, "-S", "-E", "-c", program], stdout=file.fileno())
        machine.run()
    assert reports.met, "the moment did not come"
    assert "internal error" not in log.getvalue(), log.getvalue()
    return output.read_text()


SEEN = pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])


@SEEN
@pytest.mark.parametrize("make", [FORK, CLONE_PARENT], ids=["fork", "clone_parent"])
def test_a_child_lives_though_its_parent_was_killed_before_it_could_report_it(
    make: str, seen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reports = Reports(monkeypatch, seen=seen)
    assert run(PROGRAM.format(make=make), reports, tmp_path) == "the child lives"


@SEEN
def test_a_process_ends_though_it_was_killed_before_it_could_report_a_thread(
    seen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The thread that nobody knew kept the process from ending, and who waited for that waited for ever."""
    assert run(PROGRAM.format(make=THREAD), Reports(monkeypatch, seen=seen), tmp_path) == ""


def test_a_parent_goes_on_though_its_child_was_killed_before_it_reported_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import os\nos.wait() if os.fork() else 0\nos.write(1, b'on')"
    assert run(program, ChildFirst(monkeypatch), tmp_path) == "on"


@SEEN
def test_a_parent_goes_on_or_ends_though_its_child_is_killed_while_that_is_prepared(
    seen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was ended for our internal error; or, killed itself, it stayed at its last stop for ever."""

    def first_stop(_tracer: object, task: Task) -> None:
        monkeypatch.undo()  # once
        killed(task.tid)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    monkeypatch.setattr(programs, "first_stop", first_stop)
    program = "import os\nos.wait() if os.fork() else 0\nos.write(1, b'on')"
    assert run(program, ParentLast(monkeypatch, seen=seen), tmp_path) == ("on" if seen else "")


@SEEN
def test_a_process_ends_though_it_was_killed_before_its_thread_could_report_an_exec(
    seen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The thread is gone then, under a number of which no end is told; a machine waits for the end of all."""
    program = (
        "import _thread, os, time\n_thread.start_new_thread(os.execv, ('/bin/true', ['true']))\ntime.sleep(9)"
    )
    assert run(program, ExecOfThread(monkeypatch, seen=seen), tmp_path) == ""


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EFAULT, errno.ESRCH], ids=errno.errorcode.get)
def test_a_program_killed_while_its_image_is_prepared_is_no_error_of_ours(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc and its memory say so in many ways."""

    def replace(_tracer: object, task: Task, _places: object) -> None:
        killed(task.tid)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(programs, "replace", replace)
    log = io.StringIO()
    with Supervisor(16, log=log) as machine:
        pid = machine.spawn(["true"])
        assert machine.run()[pid] == signal.SIGKILL
    assert log.getvalue() == ""


def test_the_same_of_a_program_that_is_not_killed_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise OSError(errno.EFAULT, "of our own making")

    monkeypatch.setattr(programs, "replace", replace)
    log = io.StringIO()
    with Supervisor(16, log=log) as machine:
        pid = machine.spawn(["true"])
        assert machine.run()[pid] == signal.SIGKILL
    assert "of our own making" in log.getvalue()


#: Each child asks to be traced and ends; then there is nobody to wait for.
TRACED = """
import ctypes, os
for _ in range(2):
    if os.fork() == 0:
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)
        os._exit(0)
    os.wait()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    os.write(1, b"nobody is left")
"""


def test_a_child_killed_while_it_asks_to_be_traced_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its parent is a debugger already, whose waits are ours."""
    emulate, asked = answers.emulate, []

    def emulate_or_kill(tracer: Tracer, task: Task, regs: ptrace.UserRegs, result: int) -> None:
        if (regs.orig_rax, regs.rdi) == (SYS_PTRACE, PTRACE_TRACEME):
            asked.append(task.tid)
            if len(asked) == 2:
                os.kill(task.pid, signal.SIGKILL)
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        emulate(tracer, task, regs, result)

    monkeypatch.setattr(answers, "emulate", emulate_or_kill)
    with (tmp_path / "output").open("w+") as output, Supervisor(16) as machine:
        machine.spawn([sys.executable, "-S", "-E", "-c", TRACED], stdout=output.fileno())
        machine.run()
        output.seek(0)
        assert (len(asked), output.read()) == (2, "nobody is left")
