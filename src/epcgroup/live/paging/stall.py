"""Who waits for pages, and for how long: per cgroup, as the kernel's PSI counts.

Three times grow for every cgroup and the cgroups above it: what threads waited in
sum; while *some* process waited; while *all* processes that have an enclave mapped
waited at once (*full*: no enclave work could be done there). PSI asks for tasks;
we ask for processes, because one page service answers the faults of a process one
after the other, and whether a thread would have run had it not waited is not ours
to see. For programs with one working thread it is the same.

Waits are counted as a fault when they end; their time is counted up to when it is read.
Services of several processes count at once: one lock, held for a microsecond and
never together with a wait for another.
"""

from __future__ import annotations

import threading
import time
from itertools import islice
from operator import ge
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epcgroup.epc.group import Group


class Stall:
    """One cgroup: seconds since it was made, and how many wait just now."""

    __slots__ = ("_since", "faults", "full", "members", "parent", "seconds", "some", "waiting")

    def __init__(self, parent: Stall | None) -> None:
        self.parent = parent
        self.seconds = 0.0
        self.some = 0.0
        self.full = 0.0
        self.faults = 0
        self.members = 0  # processes with enclaves
        self.waiting = 0  # of them
        self._since = 0.0  # what was before is in some and full

    def advance(self, now: float) -> None:
        """Count the time up to ``now``; then the numbers may change."""
        if self.waiting:
            span = now - self._since
            self.seconds += span * self.waiting
            self.some += span
            if self.waiting >= self.members:
                self.full += span
        self._since = now

    def catch_up(self, starts: Sequence[int], ends: Sequence[int], apart: bool) -> None:
        """Count what of these waits (ns) is not in some and full yet; ``apart``: none begins in another."""
        since = int(self._since * 1e9)
        if apart and starts[0] >= since:
            new = sum(ends) - sum(starts)
            since = ends[-1]
        else:
            new = 0
            for start, end in zip(starts, ends, strict=True):
                if end > since:
                    new += end - (start if start > since else since)
                    since = end
        self.some += new * 1e-9
        if self.members <= 1:
            self.full += new * 1e-9
        if not self.waiting:
            self._since = since * 1e-9


class Stalls:
    """The Stall of every cgroup. Times are of time.perf_counter()."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[Group, Stall] = {}

    def join(self, group: Group, now: float) -> Stall:
        """A process with an enclave is in ``group`` from now on."""
        with self._lock:
            stall = self._of(group)
            self._count(stall, now, members=1)
            return stall

    def leave(self, stall: Stall, now: float) -> None:
        """It is no more."""
        with self._lock:
            self._count(stall, now, members=-1)

    def begin(self, stall: Stall, now: float) -> None:
        """One of its processes waits from now on."""
        level: Stall | None = stall
        with self._lock:
            while level is not None:
                level.advance(now)
                level.waiting += 1
                level = level.parent

    def end(self, stall: Stall, now: float) -> None:
        """One of its waits is over."""
        level: Stall | None = stall
        with self._lock:
            while level is not None:
                level.advance(now)
                level.waiting -= 1
                level.faults += 1
                level = level.parent

    def passed(self, stall: Stall, starts: Sequence[int], ends: Sequence[int]) -> None:
        """One of its processes waited, from when to when (ns); told only now, in the order of the ends."""
        seconds = (sum(ends) - sum(starts)) * 1e-9
        apart = all(map(ge, islice(starts, 1, None), ends))
        level: Stall | None = stall
        with self._lock:
            while level is not None:
                level.seconds += seconds
                level.faults += len(ends)
                level.catch_up(starts, ends, apart)
                level = level.parent

    def read(self, group: Group) -> tuple[int, float, float, float]:
        """(faults, seconds in sum, some, full) of a cgroup up to this moment."""
        stall = self._groups.get(group)
        if stall is None:
            return 0, 0.0, 0.0, 0.0
        if stall.waiting:
            with self._lock:
                stall.advance(time.perf_counter())
        return stall.faults, stall.seconds, stall.some, stall.full

    def groups(self) -> list[Group]:
        """Every cgroup in which a process had an enclave."""
        with self._lock:
            return list(self._groups)

    def forget(self, group: Group) -> None:
        """The group is no more; those above keep what it counted."""
        self._groups.pop(group, None)

    def _count(self, stall: Stall, now: float, members: int) -> None:
        level: Stall | None = stall
        while level is not None:
            level.advance(now)
            level.members += members
            level = level.parent

    def _of(self, group: Group) -> Stall:
        stall = self._groups.get(group)
        if stall is None:
            parent = None if group.parent is None else self._of(group.parent)
            stall = self._groups[group] = Stall(parent)
        return stall
