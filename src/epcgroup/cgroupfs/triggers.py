"""Triggers of a pressure file: so much waiting within a window wakes who polls (kernel/sched/psi.c).

``some 150000 2000000`` written to an open file asks for POLLPRI there as soon as 150 ms
of the last 2 s were stalled, at most once a window, until the file is closed. Growth
within a window that has just begun counts the last one's in proportion, as the kernel
counts it. A thread looks ten times a window; it lives as long as there are triggers.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Hashable

from epcgroup.errors import Refused

_FORM = re.compile(rb"(some|full)\s*(\d+)\s+(\d+)")
_LONGEST, _ANYBODYS = 10_000_000, 2_000_000  # µs
_LOOKS = 10  # in a window
_BRIEFEST = 0.01  # s between two looks

#: Seconds of ``some`` and of ``full`` so far.
Sums = Callable[[], tuple[float, float]]


class Trigger:
    """One trigger; times in seconds of one clock."""

    __slots__ = ("_before", "_fired", "_since", "_start", "fired", "full", "threshold", "window")

    def __init__(self, data: bytes, *, privileged: bool, now: float, sums: tuple[float, float]) -> None:
        """``privileged``: has CAP_SYS_RESOURCE; others may have windows of whole 2 s only.

        Raises Refused (EINVAL).
        """
        form = _FORM.match(data)
        if form is None:
            raise Refused(f"{data!r}: write like b'some 150000 2000000' (µs, and µs of window)", errno.EINVAL)
        threshold, window = int(form[2]), int(form[3])
        if not 0 < window <= _LONGEST or not 0 < threshold <= window:
            raise Refused(f"{data!r}: 0 < threshold <= window <= {_LONGEST} µs", errno.EINVAL)
        if window % _ANYBODYS and not privileged:
            raise Refused(
                f"a window of {window} µs, no multiple of 2 s, needs CAP_SYS_RESOURCE", errno.EINVAL
            )
        self.full = form[1] == b"full"
        self.threshold, self.window = threshold / 1e6, window / 1e6
        self._start, self._since, self._before = now, sums[self.full], 0.0
        self._fired = now - self.window
        self.fired = False  # and nobody polled since

    def look(self, now: float, sums: tuple[float, float]) -> bool:
        """Whether it fires now."""
        total, elapsed = sums[self.full], now - self._start
        growth = total - self._since
        if elapsed > self.window:
            self._start, self._since, self._before = now, total, growth
        else:
            growth += self._before * (1 - elapsed / self.window)
        if growth < self.threshold or now < self._fired + self.window:
            return False
        self._fired, self.fired = now, True
        return True


class Triggers:
    """The triggers of all open files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[Hashable, tuple[Trigger, Sums, Callable[[], None]]] = {}
        self._running = False

    def add(self, key: Hashable, trigger: Trigger, sums: Sums, wake: Callable[[], None]) -> None:
        """``wake`` is called by a thread of ours when it fires."""
        with self._lock:
            self._all[key] = trigger, sums, wake
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="triggers", daemon=True).start()

    def remove(self, key: Hashable) -> None:
        """The file is closed."""
        with self._lock:
            self._all.pop(key, None)

    def _run(self) -> None:
        while True:
            with self._lock:
                present = list(self._all.values())
                if not present:
                    self._running = False
                    return
            for trigger, sums, wake in present:
                if trigger.look(time.monotonic(), sums()):
                    wake()
            time.sleep(max(_BRIEFEST, min(trigger.window for trigger, _, _ in present) / _LOOKS))
