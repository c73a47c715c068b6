"""Signals that reach `epcgroup run` and are meant for its command.

A wrapper is a process more than its user thinks of. What the keyboard sends (Ctrl-C) goes to
every process of the terminal's foreground group: the command has it already, and must not get
it twice. What somebody sends to us alone (`kill -INT`, a service manager) it does not have. The
keyboard's are told by their sender, as sudo(8) does it. But a process may send to the whole group
as well (timeout(1), a harness that ends its job), and to us that looks like the other: so
what a process sent waits for one look more, and is passed on only to those that have not met the same
signal of the same sender meanwhile. (One that they have blocked is still pending, and one more is no more.)

A handler in Python is not told who sent. So these signals are blocked, and taken between two rounds
of the supervisor; what comes before there is a command waits, and ends us as it would have
ended the command.

A terminal that hangs up tells the session's leader alone, and the group when the leader ends.
Where we are the leader (`xterm -e epcgroup run …`) the command would have been it without us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.programs import ignored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from epcgroup.live import Supervisor

_PASSED = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP} - ignored
_SI_KERNEL = 0x80  # siginfo's si_code: the terminal
_PAUSE = 0.05  # s between two looks; each is a system call
_SENDER = struct.Struct("<16xi")  # si_pid of a siginfo_t


class Early(Exception):
    """A signal came before there was a command that could have it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Takes them while it lasts; enter it before there are threads, which would get them else."""

    def __init__(self) -> None:
        self._machine: Supervisor | None = None
        self._command = 0
        self._hung_up = False
        self._looks = (0.0, 0.0)  # times of the last two
        self._taken: list[tuple[int, int]] = []  # signals with their senders, at the last look
        self._met: dict[tuple[int, int, int], float] = {}  # when a process met which signal of whom

    def __enter__(self) -> Signals:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED)
        return self

    def __exit__(self, *_: object) -> None:
        while signal.sigtimedwait(_PASSED, 0) is not None:
            pass  # the command is no more
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def early(self) -> None:
        """Raises Early if a signal came while there was no command yet."""
        came = signal.sigtimedwait(_PASSED, 0)
        if came is not None:
            raise Early(came.si_signo)

    def to(self, machine: Supervisor, command: int) -> None:
        """From now on what comes is for the process ``command`` of ``machine``, then for those it leaves."""
        self._machine, self._command = machine, command
        machine.listen(self._meets)

    def look(self) -> bool:
        """Pass on what came. To be called every round (``serving`` of `Supervisor.run`): says no."""
        now = time.monotonic()
        before, last = self._looks
        if now < last + _PAUSE:
            return False
        self._looks = last, now
        self._pass_on(before)
        while (came := signal.sigtimedwait(_PASSED, 0)) is not None:
            self._take(came)
        if self._hung_up and not self._alive():
            self._hung_up = False
            self._hang_up()
        return False

    def _take(self, came: signal.struct_siginfo) -> None:
        if came.si_code == _SI_KERNEL:
            if came.si_signo != signal.SIGHUP or os.getsid(0) != os.getpid():
                return  # sent to the whole group
            self._hung_up = True
        elif _is_ours(came.si_pid):
            return  # `kill 0` in the command: it has it
        else:
            self._taken.append((came.si_signo, came.si_pid))
            return
        for pid in self._meant():
            _send(pid, came.si_signo)

    def _pass_on(self, since: float) -> None:
        """Send what was taken at the last look, when it had come after the time ``since``."""
        for number, sender in self._taken:
            for pid in self._meant():
                if self._met.get((pid, number, sender), -1.0) < since:
                    _send(pid, number)
        self._taken.clear()
        self._met = {who: when for who, when in self._met.items() if when >= since}

    def _meets(self, pid: int, number: int, info: bytes) -> None:
        """A process of the machine is about to get a signal."""
        if number in _PASSED:
            self._met[pid, number, *_SENDER.unpack_from(info)] = time.monotonic()

    def _meant(self) -> Iterable[int]:
        return [self._command] if self._alive() else self._left()

    def _alive(self) -> bool:
        assert self._machine is not None
        return self._command not in self._machine.statuses

    def _left(self) -> set[int]:
        assert self._machine is not None
        return {task.pid for task in self._machine.world.tasks.values()}

    def _hang_up(self) -> None:
        """What the kernel does to the terminal's group when the session's leader ends."""
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) == os.getpgrp():
                    _send(pid, signal.SIGHUP)
                    _send(pid, signal.SIGCONT)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_ours(pid: int) -> bool:
    """Whether a process is traced by us, and so of our machine."""
    try:
        return f"\nTracerPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
