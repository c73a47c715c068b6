"""An interrupt ends the work of a command, and never takes its result.

Python raises KeyboardInterrupt wherever it is: a second Ctrl-C, or one that comes when the work has
just been done, would take what somebody has waited for. So only one is raised, while there is work;
from then on they are ignored, by the kernel: polars looks for SIGINT by a handler of its own, and gives up
what it does. Print outside of the block, whole words at once: a reader that does not read (`| less`)
must not make us deaf.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

from epcgroup.programs import ignored

if TYPE_CHECKING:
    from types import TracebackType

NUMBERS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored
"""Signals by which a user ends a command, without those that we were started to ignore."""


class Interrupted(KeyboardInterrupt):
    """The work is to end; ``number`` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Use it in a ``with`` block around the work and all that is made of it, in the main thread."""

    def __init__(self) -> None:
        self._number = 0  # of the first that came
        self._at_once = True
        self._owed = False
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status where a signal came, 0 where none did."""
        return 128 + self._number if self._number else 0

    def ask(self) -> None:
        """A good place to end the work: from the first call on it ends only here. Raises Interrupted."""
        self._at_once = False
        if self._owed:
            self._owed = False
            raise Interrupted(self._number)

    def keep(self) -> None:
        """There is a result, and what is made of it takes a moment: nothing ends that."""
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _frame: object) -> None:
        self.keep()
        if self._number:  # two at once
            return
        self._number = number
        if self._at_once:
            raise Interrupted(number)
        self._owed = True

    def __enter__(self) -> Self:
        for number in NUMBERS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if isinstance(error, Interrupted):
            with contextlib.suppress(OSError):  # its terminal may be gone
                print("epcgroup: interrupted before there was a result; nothing was written", file=sys.stderr)
