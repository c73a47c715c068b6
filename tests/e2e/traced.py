"""A small tracer for the tests of the mechanisms: one child, one stop at a time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from epcgroup.live.tracing import inject, ptrace, seccomp

Stop = tuple[int, int]  # (signal, event)


class Traced:
    """One traced process; kills it at the end of the ``with``."""

    def __init__(
        self, argv: list[str], *, stdin: int = 0, stdout: int = 1, program: bytes | None = None
    ) -> None:
        self.injector = inject.Injector()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGSTOP)
                os.dup2(stdin, 0)
                os.dup2(stdout, 1)
                seccomp.install(seccomp.base_filter() if program is None else program)
                os.execv(argv[0], argv)
            finally:
                os._exit(127)
        os.waitpid(self.pid, os.WUNTRACED)
        ptrace.seize(self.pid, ptrace.OPTIONS)
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Traced:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.wait() is not None:
                ptrace.cont(self.pid)

    def wait(self) -> Stop | None:
        """The next stop; None when the process has ended (see ``status``)."""
        status = self.injector.events.popleft()[1] if self.injector.events else ptrace.wait_for(self.pid)
        if not os.WIFSTOPPED(status):
            self.status = status
            return None
        return ptrace.stop_of(status)

    def run_until(self, wanted: Callable[[Stop], bool]) -> Stop | None:
        """Go on, delivering signals, to the first stop that is ``wanted``; None at the end."""
        while (stop := self.wait()) is not None:
            if wanted(stop):
                return stop
            self.go_on(stop)
        return None

    def go_on(self, stop: Stop) -> None:
        """Resume after ``stop`` as if nobody were looking."""
        sig, event = stop
        ptrace.cont(self.pid, sig if event == 0 and sig != ptrace.SYSCALL_STOP else 0)

    def to_exec(self) -> None:
        """Run to the exit of the first execve."""
        assert self.run_until(lambda stop: stop[1] == ptrace.EVENT_EXEC) is not None
        ptrace.syscall(self.pid)
        assert self.wait() == (ptrace.SYSCALL_STOP, 0)

    def at_syscall(self, nr: int) -> ptrace.UserRegs:
        """Run to the seccomp stop of system call ``nr``."""

        def wanted(stop: Stop) -> bool:
            return stop[1] == ptrace.EVENT_SECCOMP and ptrace.getregs(self.pid).orig_rax == nr

        assert self.run_until(wanted) is not None, f"no system call {nr} was made"
        return ptrace.getregs(self.pid)

    def stop(self) -> None:
        """Interrupt it wherever it is."""
        ptrace.interrupt(self.pid)
        assert self.run_until(lambda stop: stop[1] == ptrace.EVENT_STOP) is not None

    def inject(self, nr: int, *args: int) -> int:
        """Have it make one system call."""
        return self.injector.inject(self.pid, nr, *args, syscall_insn=inject.find_syscall_insn(self.pid))

    def finish(self) -> int:
        """Let it run to its end; its exit code, or -signal."""
        ptrace.cont(self.pid)
        assert self.run_until(lambda _: False) is None
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)


def compile_c(source: Path, target: Path, *flags: str) -> Path:
    """Compile one C or assembly file with gcc."""
    subprocess.run(["gcc", "-O1", "-o", target, source, *flags], check=True, timeout=60)
    return target
