"""Signals that reach `epcgroup run` and are meant for its command.

A wrapper is a process more than its user thinks of. What somebody sends to us alone (`kill -INT`, a
service manager) the command does not have: it is passed on. What is sent to our whole process group
(the keyboard's Ctrl-C, timeout(1), a harness that ends its job, `kill 0` in the command) it has already,
and must not get it twice. A `Witness` in the group tells which it is.

A thread takes them at once, so that one that comes after the command has had its own is not lost in
it: what is pending is not pended twice. Passed on they are a moment later: timeout(1) sends to us and
right after that to the group, and means one. Nor are they passed on to a process that meanwhile has met
the same signal of the same sender, as where somebody ends all processes of a cgroup or of a name.

A handler in Python is not told who sent. So these signals are blocked; what comes before there is a
command waits, and ends us as it would have ended the command.

A terminal that hangs up tells the session's leader alone, and the group when the leader ends.
Where we are the leader (`xterm -e epcgroup run …`) the command would have been it without us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from epcgroup.cli.witness import ASK, Kind, Witness, kind_of
from epcgroup.programs import ignored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from epcgroup.live import Supervisor

_PASSED = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP} - ignored
_OURS = {*_PASSED, ASK}
_SI_KERNEL = 0x80  # siginfo's si_code: the terminal
_PAUSE = 0.05  # s between two looks; that long a signal waits for another that means the same
_KEPT = 1.0  # s that it is known what a process has met
_SIGINFO = struct.Struct("<i4xi4xi")  # number, si_code, si_pid of a siginfo_t


class Early(Exception):
    """A signal came before there was a command that could have it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Taken(NamedTuple):
    kind: Kind
    at: float
    shared: bool  # with our whole process group


class Signals:
    """Takes them while it lasts; enter it before there are threads, which would get them else."""

    def __init__(self) -> None:
        self._machine: Supervisor | None = None
        self._command = 0
        self._hung_up = False
        self._looked = 0.0
        self._taken: deque[_Taken] = deque()
        self._met: dict[tuple[int, Kind], float] = {}  # when a process met which signal
        self._taker = threading.Thread(target=self._take, name="signals", daemon=True)

    def __enter__(self) -> Signals:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        self._witness = Witness(_PASSED)
        return self

    def __exit__(self, *_: object) -> None:
        if self._taker.ident is not None:
            signal.pthread_kill(self._taker.ident, ASK)
            self._taker.join()
        self._witness.close()
        while signal.sigtimedwait(_OURS, 0) is not None:
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
        self._taker.start()

    def look(self) -> bool:
        """Pass on what came. To be called every round (``serving`` of `Supervisor.run`): says no."""
        now = time.monotonic()
        if now < self._looked + _PAUSE:
            return False
        self._looked = now
        while self._taken and self._taken[0].at < now - _PAUSE:
            self._pass_on(self._taken.popleft())
        self._witness.look()
        self._met = {who: when for who, when in self._met.items() if when > now - _KEPT}
        if self._hung_up and not self._alive():
            self._hung_up = False
            self._hang_up()
        return False

    def _take(self) -> None:
        """The thread's life: an ASK ends it."""
        while (came := signal.sigwaitinfo(_OURS)).si_signo != ASK:
            at, kind = time.monotonic(), kind_of(came)
            if kind.code != _SI_KERNEL:
                self._taken.append(_Taken(kind, at, self._witness.shared(kind, at)))
            elif kind.number == signal.SIGHUP and os.getsid(0) == os.getpid():
                self._taken.append(_Taken(kind, at, shared=False))

    def _pass_on(self, one: _Taken) -> None:
        if one.kind.code == _SI_KERNEL:
            self._hung_up = True
        shared = (
            one.shared
            or any(other.shared and other.kind == one.kind for other in tuple(self._taken))
            or self._witness.since(one.kind, one.at)
        )
        for pid in self._meant():
            if self._met.get((pid, one.kind), 0.0) < one.at and not (shared and _is_in_our_group(pid)):
                _send(pid, one.kind.number)

    def _meets(self, pid: int, number: int, info: bytes) -> None:
        """A process of the machine is about to get a signal."""
        if number in _PASSED:
            self._met[pid, Kind(*_SIGINFO.unpack_from(info))] = time.monotonic()

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
            if _is_in_our_group(pid):
                _send(pid, signal.SIGHUP)
                _send(pid, signal.SIGCONT)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_in_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return False
