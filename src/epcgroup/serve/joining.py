"""Processes that join the server's machine while they run: asked for, or by opening a device.

Which cgroup pays: the one that was asked for; else the one whose cgroup.procs the
process (or an ancestor of it, for forks of outsiders are not seen) was written to; else
the one of the same path as its cgroup in the kernel's hierarchy, where there is one;
else the root. A tree over a real cgroup2 (`--mirror`) knows where each process is, and
one that joins by itself is not moved there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cgroupfs.mirror import MirroredTree
from epcgroup.cgroupfs.real import kernels_path
from epcgroup.errors import BadInput
from epcgroup.host import placeholders
from epcgroup.live.devices import PATHS
from epcgroup.live.members import caller_of
from epcgroup.live.tracing import procfs

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from epcgroup.cgroupfs import Cgroup, CgroupTree
    from epcgroup.epc import Caller
    from epcgroup.epc.group import Group
    from epcgroup.live import Supervisor
    from epcgroup.serve.processes import CgroupMembers


class Joining:
    """Enters processes into the machine and the tree; used by the tracer's thread."""

    def __init__(self, machine: Supervisor, tree: CgroupTree[Group], members: CgroupMembers) -> None:
        self._machine = machine
        self._tree = tree
        self._members = members
        self._system = contextlib.ExitStack()

    def attach(self, pid: int, cgroup: Cgroup[Group] | None, without: Container[int]) -> list[int]:
        """Join a process, its threads and children, in ``cgroup`` or each where it is (Supervisor.attach)."""

        def adopt(process: int) -> Caller:
            return self._adopt(process, cgroup)

        return self._machine.attach(pid, without=without, adopt=adopt)

    def whole_system(self) -> None:
        """From now on every process of the system that opens an SGX device joins.

        Raises Refused, MissingCapability where that cannot be (see host.placeholders, live.openers).
        """
        openers = self._machine.take_openers(lambda pid: self._adopt(pid, None))
        self._system.callback(openers.end)
        for path in self._system.enter_context(placeholders.placed()):
            openers.watch(path, PATHS[str(path)])
        openers.start()

    def end(self) -> None:
        """The system has no devices again."""
        self._system.close()

    def _adopt(self, pid: int, cgroup: Cgroup[Group] | None) -> Caller:
        with self._machine.world.lock:
            place = cgroup if cgroup is not None else self.place_of(pid)
            if cgroup is None and isinstance(self._tree, MirroredTree):
                self._tree.found(pid, place)
            else:
                self._members.entering = place
                self._members.started(pid, place.effective)
        return caller_of(pid, place.effective)

    def place_of(self, pid: int) -> Cgroup[Group]:
        """The cgroup of a process that nobody named one for; the lock is held."""
        if isinstance(self._tree, MirroredTree):
            return self._tree.where(pid) or self._tree.root
        for ancestor in _line(pid):
            place = self._tree.of(ancestor)
            if place is not None and place is not self._tree.root:
                return place
            if ancestor == pid:
                place = self._tree.find(kernels_path(pid) or "/")
                if place is not None and place is not self._tree.root and not place.delegates:
                    return place
        return self._tree.root


def _line(pid: int) -> Iterator[int]:
    """A process, its parent, its parent's parent …"""
    while pid > 1:
        yield pid
        try:
            pid = int(procfs.status(pid)["PPid"])
        except (OSError, KeyError):
            return


def pid_of(pidfd: int) -> int:
    """The process behind a client's pidfd. Raises BadInput when it is none, or has ended."""
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    except (OSError, StopIteration) as error:
        raise BadInput("an attach comes with one descriptor, of a process") from error
    if pid <= 0:
        raise BadInput("the process has ended")
    return pid
