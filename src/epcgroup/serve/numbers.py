"""Process numbers of other pid namespaces.

A container counts its processes from 1; its /proc shows these numbers, they are
what it writes to cgroup.procs, and what it expects to read there. All its
processes descend from a traced one, so the traced are looked through (NSpid of
/proc/PID/status says a task's numbers, from our namespace inwards).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from epcgroup.live.tracing import procfs

if TYPE_CHECKING:
    from epcgroup.live.tracing.task import Task


class Numbers:
    """What a number means to a process."""

    def __init__(self, tasks: Mapping[int, Task]) -> None:
        self._tasks = tasks
        self._own = _namespace(os.getpid())

    def meant(self, reader: int, number: int) -> int | None:
        """The task that ``reader`` calls ``number``; None when there is none that we know."""
        try:
            namespace = _namespace(reader)
        except OSError:
            return number
        if namespace == self._own:
            return number
        for tid in list(self._tasks):
            try:
                if _namespace(tid) == namespace and _numbers(tid)[-1] == number:
                    return tid
            except (OSError, KeyError):
                continue
        return None

    def shown(self, reader: int, tids: Iterable[int]) -> list[int]:
        """What ``reader`` calls these tasks, 0 for those it cannot see."""
        try:
            namespace = _namespace(reader)
            if namespace == self._own:
                return list(tids)
            level = len(_numbers(reader)) - 1
        except (OSError, KeyError):
            return list(tids)
        return [_seen(tid, namespace, level) for tid in tids]


def _seen(tid: int, namespace: int, level: int) -> int:
    """The number of a task in a namespace ``level`` below ours; 0 when it is in none below that one."""
    try:
        numbers = _numbers(tid)
        if len(numbers) <= level or (len(numbers) == level + 1 and _namespace(tid) != namespace):
            return 0
    except (OSError, KeyError):
        return 0
    return numbers[level]


def _namespace(tid: int) -> int:
    return os.stat(f"/proc/{tid}/ns/pid").st_ino


def _numbers(tid: int) -> list[int]:
    return [int(word) for word in procfs.status(tid)["NSpid"].split()]
