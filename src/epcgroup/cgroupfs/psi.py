"""The text of a pressure file, and its averages: the kernel's PSI (Documentation/accounting/psi).

Two lines, ``some`` and ``full``: the share of time in percent, averaged over the
last 10, 60 and 300 seconds, and the sum in microseconds. The averages decay by a
step every two seconds, as the kernel's do; steps that nobody made in time are
made up for as if nothing had happened in them.
"""

from __future__ import annotations

from math import exp

PERIOD = 2.0  # s
_DECAYS = tuple(exp(-PERIOD / window) for window in (10.0, 60.0, 300.0))


class Averages:
    """Of one cgroup; times in seconds, of one clock."""

    __slots__ = ("_averages", "_counted", "_last", "_next")

    def __init__(self, now: float) -> None:
        self._averages = ([0.0] * 3, [0.0] * 3)  # some, full
        self._counted = [0.0, 0.0]
        self._last = now
        self._next = now + PERIOD

    def update(self, now: float, some: float, full: float) -> None:
        """``some`` and ``full``: the sums up to ``now``. Does nothing before a period is over."""
        if now < self._next:
            return
        missed = int((now - self._next) / PERIOD)
        self._next += (1 + missed) * PERIOD
        period = now - (self._last + missed * PERIOD)
        self._last = now
        for which, total in enumerate((some, full)):
            sample = min(total - self._counted[which], period)
            self._counted[which] += sample
            averages = self._averages[which]
            for at, decay in enumerate(_DECAYS):
                averages[at] = averages[at] * decay ** (missed + 1) + 100 * sample / period * (1 - decay)

    def text(self, some: float, full: float) -> str:
        """Contents of the file."""
        return _line("some", self._averages[0], some) + _line("full", self._averages[1], full)


def nothing() -> str:
    """Contents of the file of a cgroup in which nobody ever waited."""
    return Averages(0.0).text(0.0, 0.0)


def _line(word: str, averages: list[float], total: float) -> str:
    ten, sixty, threehundred = averages
    return f"{word} avg10={ten:.2f} avg60={sixty:.2f} avg300={threehundred:.2f} total={int(total * 1e6)}\n"
