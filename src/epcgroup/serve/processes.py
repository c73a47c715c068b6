"""Processes as the tree of cgroups needs them, and the membership of traced ones.

Traced programs (started by `epcgroup exec`) are followed by ptrace: forks, exits
and threads are exact. Any other process of the machine may be put into a cgroup
too, by its own or a runtime's write to cgroup.procs. It owns no enclave of ours
unless it joins (`joining`); its end is seen through a pidfd, its forks are not.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from typing import TYPE_CHECKING

from epcgroup.live.members import charge_to
from epcgroup.live.tracing import procfs
from epcgroup.serve.numbers import Numbers

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from epcgroup.cgroupfs import Cgroup, CgroupTree
    from epcgroup.epc.group import Group
    from epcgroup.live.world import World

_PF_NO_SETAFFINITY = 0x0400_0000


class SystemProcesses(Numbers):
    """The Processes of this system, by /proc and signals."""

    def leader(self, pid: int) -> int | None:
        """The process of a task."""
        try:
            return procfs.tgid(pid)
        except (OSError, KeyError):
            return None

    def unmovable(self, pid: int) -> bool:
        """Kernel threads bound to a processor, and the one that makes them."""
        return pid == 2 or procfs.flags(pid) & _PF_NO_SETAFFINITY != 0

    def threads(self, pid: int) -> list[int]:
        """Task ids of a process."""
        try:
            return procfs.tasks(pid)
        except OSError:
            return []

    def stop(self, pid: int, stopped: bool) -> None:
        """SIGSTOP or SIGCONT: a parent that waits for stopped children can tell."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class CgroupMembers:
    """Membership kept in the tree of cgroups (see live.members)."""

    def __init__(self, world: World, tree: CgroupTree[Group], outsiders: Outsiders) -> None:
        self._world = world
        self._tree = tree
        self._outsiders = outsiders
        self.entering: Cgroup[Group] | None = None  # where the program now being started belongs
        tree.moved = self._moved

    def started(self, pid: int, group: Group) -> None:  # noqa: ARG002 - the cgroup tells the group
        """A program was started in the cgroup ``entering``."""
        assert self.entering is not None
        self._tree.enter(pid, self.entering)

    def forked(self, parent: int, pid: int) -> None:
        """A child begins where its parent is."""
        self._tree.forked(parent, pid)

    def ended(self, pid: int) -> None:
        """A process is gone."""
        self._tree.ended(pid)

    def _moved(self, pid: int, group: Group) -> None:
        if pid in self._world.tasks:
            charge_to(self._world, pid, group)
        else:
            self._outsiders.watch(pid)


class Outsiders(threading.Thread):
    """Waits for the end of processes that are not traced."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        super().__init__(name="outsiders", daemon=True)
        self._lock = lock
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._watched: dict[int, int] = {}  # pidfd -> pid
        self._pids: set[int] = set()  # that are watched
        self._gone: list[int] = []
        self.tree: CgroupTree[Group] | None = None
        self._ending = False

    def watch(self, pid: int) -> None:
        """Tell the tree when ``pid`` ends; the lock is held."""
        if pid in self._pids:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            self._gone.append(pid)
        else:
            self._watched[pidfd] = pid
            self._pids.add(pid)
            self._poll.register(pidfd, select.POLLIN)
        os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        """End the thread."""
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self.join(5)

    def run(self) -> None:
        """Wait, and take the dead out of the tree."""
        while not self._ending:
            for fd, _ in self._poll.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                    continue
                with self._lock:
                    self._poll.unregister(fd)
                    pid = self._watched.pop(fd)
                    self._pids.discard(pid)
                    self._gone.append(pid)
                    os.close(fd)
            with self._lock:
                while self._gone and self.tree is not None:
                    self.tree.ended(self._gone.pop())
