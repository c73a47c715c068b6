"""A thread that spins in an enclave after an answer it did not like.

Hardened enclaves answer any surprise with an endless loop, which looks like slow
work from outside. So each #GP, each #UD and each leaf that ended with an error
code inside an enclave is remembered as the thread's last *surprise*; a thread
that then uses so much user time without leaving is told to the user, once.

A stay counts if the surprise came during it or shortly before it began: the
handler of an exception is a stay of its own, and the loop may be in what is
resumed after it. An enclave that had its CPUID emulated and computes on looks
the same; hence one line a thread and not one a surprise. Rejected: to look at
the instructions for a loop (any long computation is one).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.sgx.faults import VECTOR_GP, VECTOR_UD
from epcgroup.sgx.layouts import Enclu, SgxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.task import Inside, Task

PATIENCE = 3.0  # s of user time in one stay
INTERVAL = 0.5  # s between two looks
_SHORTLY = 1.5  # s; by how much a surprise may precede the first look at a stay
_TICK = 100  # per s: USER_HZ, the unit of /proc/TID/stat on x86-64
_UTIME = 11  # field of /proc/TID/stat, counted from the one behind the name
_VECTORS = {VECTOR_GP: "#GP", VECTOR_UD: "#UD"}
_LEAVES = {leaf.value: f" ({leaf.name})" for leaf in Enclu}
_ERRORS = {error.value: f" ({error.name})" for error in SgxError}


@dataclass(frozen=True, slots=True)
class Surprise:
    """What a thread in an enclave was given, for which instruction; ``at`` by time.monotonic()."""

    what: str
    at: float


def by_vector(task: Task, vector: int, addr: int, leaf: int | None) -> None:
    """The instruction at ``addr`` raised ``vector``; ``leaf`` if it was an ENCLU."""
    name = _VECTORS.get(vector)
    if name is not None:
        instruction = "the instruction" if leaf is None else _leaf(leaf)
        task.surprise = Surprise(f"{instruction} at {addr:#x} was answered by {name}", time.monotonic())


def by_leaf(task: Task, leaf: int, code: int, addr: int) -> None:
    """The ENCLU at ``addr`` ended with an error code in RAX."""
    what = f"{_leaf(leaf)} at {addr:#x} was answered by error {code}{_ERRORS.get(code, '')}"
    task.surprise = Surprise(what, time.monotonic())


def _leaf(leaf: int) -> str:
    return f"ENCLU leaf {leaf}{_LEAVES.get(leaf, '')}"


@dataclass(frozen=True, slots=True)
class _Where:
    """A stay in an enclave: by ``inside``, or number ``count`` of those that needed no trap."""

    device: Device
    inside: Inside | None
    count: int

    def is_still(self, other: _Where) -> bool:
        return self.device is other.device and self.inside is other.inside and self.count == other.count


def _where(task: Task) -> _Where | None:
    if task.inside is not None:
        return _Where(task.inside.device, task.inside, 0)
    fast = task.mm.fast
    outside = fast.table.outside(task.inner_tid) if fast is not None and fast.table is not None else None
    return _Where(outside.entry.device, None, outside.stay) if outside is not None else None


@dataclass(slots=True)
class _Stay:
    where: _Where
    surprise: Surprise
    used: float  # s of user time of the thread when the stay was first seen
    suspicious: bool


class Watch:
    """Looks at all threads now and then."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._stays: dict[int, _Stay] = {}
        self._told: set[int] = set()
        self._next = 0.0

    def look(self, tasks: Iterable[Task], now: float) -> None:
        """Call it often: it looks every INTERVAL seconds. ``now`` is time.monotonic()."""
        if now < self._next:
            return
        self._next = now + INTERVAL
        stays = {}
        for task in tasks:
            if task.surprise is None or task.tid in self._told or (where := _where(task)) is None:
                continue
            try:
                used = user_time(task.tid)
            except OSError:
                continue  # gone
            stay = self._stays.get(task.tid)
            if stay is None or not stay.where.is_still(where) or stay.surprise is not task.surprise:
                stay = _Stay(where, task.surprise, used, now - task.surprise.at <= _SHORTLY)
            elif stay.suspicious and used - stay.used >= PATIENCE:
                self._tell(task, stay)
            stays[task.tid] = stay
        self._stays = stays

    def _tell(self, task: Task, stay: _Stay) -> None:
        self._told.add(task.tid)
        file = stay.where.device.file
        enclave = file.enclave.id if file is not None and file.created else "?"
        self._log(
            f"thread {task.tid} of process {task.pid} ({task.command}) has computed for {PATIENCE:g} s in "
            f"enclave {enclave} without leaving it, since {stay.surprise.what}; "
            "if it never comes back, it did not like that"
        )

    def forget(self, tid: int) -> None:
        """The thread is gone; its number may be used again."""
        self._told.discard(tid)


def user_time(tid: int) -> float:
    """Seconds of user time of one thread."""
    line = Path(f"/proc/{tid}/task/{tid}/stat").read_text()
    return int(line.rpartition(")")[2].split()[_UTIME]) / _TICK


__all__ = ["Surprise", "Watch", "by_leaf", "by_vector", "user_time"]
