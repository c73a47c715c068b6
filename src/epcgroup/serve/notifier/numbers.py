"""Process numbers of other pid namespaces.

A container counts its processes from 1; its /proc shows these numbers, and they
are what it writes to cgroup.procs. All its processes descend from a traced one,
so the traced are looked through (NSpid of /proc/PID/status says a process's
numbers, from our namespace inwards).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from epcgroup.live import procfs

if TYPE_CHECKING:
    from epcgroup.live.task import Task


class Numbers:
    """What a number means to a process."""

    def __init__(self, tasks: Mapping[int, Task]) -> None:
        self._tasks = tasks

    def of(self, reader: int, number: int) -> int | None:
        """The process that ``reader`` calls ``number``; None when there is none that we know."""
        try:
            namespace = _namespace(reader)
            if namespace == _namespace(os.getpid()):
                return number
        except OSError:
            return None
        for pid in {task.pid for task in list(self._tasks.values())}:
            try:
                if _namespace(pid) == namespace and _innermost(pid) == number:
                    return pid
            except (OSError, KeyError):
                continue
        return None


def _namespace(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def _innermost(pid: int) -> int:
    return int(procfs.status(pid)["NSpid"].split()[-1])
