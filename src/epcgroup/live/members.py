"""Which cgroup each process is in: told by the tracer, asked by whoever moves processes.

A process begins where its parent is, and may be moved while it runs. From then
on its faults and allocations are charged to the new group; what was charged
stays where it is (spec 8.3). Every call is made with `World.lock` held.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from epcgroup.epc import Caller
from epcgroup.live.tracing import procfs

if TYPE_CHECKING:
    from epcgroup.epc.group import Group
    from epcgroup.live.world import World
    from epcgroup.misc import Tree


class Members(Protocol):
    """Keeps count of the processes of each group."""

    def started(self, pid: int, group: Group) -> None:
        """A program was started in ``group``."""

    def forked(self, parent: int, pid: int) -> None:
        """Process ``parent`` made process ``pid``."""

    def ended(self, pid: int) -> None:
        """A process is gone."""


class TreeMembers:
    """Counts processes in the misc tree; nobody moves them."""

    def __init__(self, tree: Tree[Group]) -> None:
        self._tree = tree
        self._groups: dict[int, Group] = {}

    def started(self, pid: int, group: Group) -> None:
        """Count it."""
        self._groups[pid] = group
        self._tree.attach(group)

    def forked(self, parent: int, pid: int) -> None:
        """Count it where its parent is."""
        self.started(pid, self._groups[parent])

    def ended(self, pid: int) -> None:
        """Count it no more."""
        group = self._groups.pop(pid, None)
        if group is not None:
            self._tree.detach(group)


def caller_of(pid: int, group: Group) -> Caller:
    """The first thread of ``pid`` as the engine sees it: who pays, and whether a signal waits for it."""
    return as_thread(Caller(group), pid)


def as_thread(caller: Caller, tid: int) -> Caller:
    """``caller`` as thread ``tid``, whose own mask and signals count."""
    return replace(caller, signal_pending=functools.partial(_signal_pending, tid))


def charge_to(world: World, pid: int, group: Group) -> None:
    """From now on ``group`` pays for what the threads of ``pid`` do."""
    caller = caller_of(pid, group)
    for task in list(world.tasks.values()):
        if task.pid == pid:
            task.caller = world.caller_at(caller, task.tid)
            if task.mm.service is not None:
                task.mm.service.caller = caller


def _signal_pending(tid: int) -> bool:
    try:
        return procfs.pending_signals(tid) != 0
    except OSError:
        return True  # it is gone: as good as killed
