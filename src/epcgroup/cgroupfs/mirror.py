"""The tree over a real cgroup2 (`serve --mirror`): the kernel's files, and misc.* beside them.

Alone, the tree plays the kernel. Where a real cgroup2 can be written, it need not:
every directory here is one there, every file but misc.* is the kernel's own, and a
process that is moved here is moved there. So the kernel follows forks and exits,
freezes and kills, and limits memory and processors, and runtimes find all that.

What stays ours is who is charged for EPC. Traced programs are placed by our own
books, which are compared with /proc/PID/cgroup at every fork and move; directories
that come or go there, behind our back, come or go here when somebody looks.
"""

from __future__ import annotations

import contextlib
import errno

from epcgroup.cgroupfs.access import ROOT_USER, Attributes, Credentials
from epcgroup.cgroupfs.cgroup import Cgroup
from epcgroup.cgroupfs.real import RealCgroups, Watcher
from epcgroup.cgroupfs.tree import CgroupTree, Processes
from epcgroup.errors import Refused
from epcgroup.misc.tree import G, Tree

_NO_PROCESSES = (b"domain invalid\n", b"threaded\n")


class MirroredTree(CgroupTree[G]):
    """A CgroupTree whose directories and processes are also those of ``real``."""

    real: RealCgroups

    def __init__(
        self,
        misc: Tree[G],
        processes: Processes,
        real: RealCgroups,
        *,
        auto_delegate: bool = False,
        owner: Credentials = ROOT_USER,
    ) -> None:
        super().__init__(misc, processes, auto_delegate=auto_delegate, owner=owner)
        self.real = real
        self.watcher = Watcher(real, self._tell)

    # -- directories -----------------------------------------------------------

    def mkdir(self, path: str, owner: Credentials = ROOT_USER) -> Cgroup[G]:
        """As CgroupTree.mkdir, there too; a cgroup that is there only is taken over."""
        if self.find(path) is not None:
            raise Refused(f"cgroup {path!r} exists", errno.EEXIST)
        made = self.real.mkdir(path, owner)
        try:
            cgroup = super().mkdir(path, owner)
        except Refused:
            if made:
                self.real.rmdir(path)
            raise
        self.watcher.watch(path)
        return cgroup

    def rmdir(self, path: str) -> None:
        """The kernel decides whether it is empty."""
        self.lookup(path)
        self.real.rmdir(path)
        self._drop(path)

    def _drop(self, path: str) -> None:
        # Gone there: whoever we thought to be in it or below it is not.
        for cgroup in reversed(list(self.lookup(path).subtree())):
            for pid in list(cgroup.members):
                self.ended(pid)
            super().rmdir(cgroup.path)

    def sync(self, path: str) -> None:
        """Take over a cgroup that came or went there."""
        if path != "/" and not self.real.is_cgroup(path):
            if self.find(path) is not None:
                self._drop(path)
            return
        if self.find(path) is None:
            self.sync(path.rpartition("/")[0] or "/")
            owner = self.real.attributes(path, "cgroup.controllers")
            self.mkdir(path, Credentials(owner.uid, owner.gid))

    def sync_all(self, path: str = "/") -> None:
        """Take over every cgroup that is there."""
        self.sync(path)
        for name in self.real.children(path):
            self.sync_all(f"{path.rstrip('/')}/{name}")

    def close(self) -> None:
        """Remove what we made there, now or before a crash, and is empty."""
        for cgroup in reversed(list(self.root.subtree())):
            if self.real.is_marked(cgroup.path):
                with contextlib.suppress(OSError):
                    self.real.rmdir(cgroup.path)

    # -- processes -------------------------------------------------------------

    def may_enter(self, cgroup: Cgroup[G]) -> None:
        """What the kernel would say, before a process is there to be refused."""
        super().may_enter(cgroup)
        with contextlib.suppress(FileNotFoundError):  # the root of all has no cgroup.type
            if self.real.read(cgroup.path, "cgroup.type") in _NO_PROCESSES:
                raise Refused(f"{cgroup.path} takes no processes (cgroup.type)", errno.EOPNOTSUPP)
            if self.real.read(cgroup.path, "cgroup.subtree_control").strip():
                raise Refused(
                    f"{cgroup.path} passes controllers on; a process belongs in a child", errno.EBUSY
                )

    def enter(self, pid: int, cgroup: Cgroup[G]) -> None:
        """There first: what the kernel refuses does not happen."""
        self.real.write(cgroup.path, "cgroup.procs", str(pid).encode())
        super().enter(pid, cgroup)

    def may_move(self, pid: int, cgroup: Cgroup[G], who: Credentials) -> None:
        """As CgroupTree.may_move, from where the process really is."""
        self._place(pid)
        super().may_move(pid, cgroup, who)

    def forked(self, parent: int, pid: int) -> G:
        """A child begins where the kernel put it."""
        super().forked(parent, pid)
        self._place(pid)
        found = self.of(pid)
        assert found is not None
        return found.effective

    def where(self, pid: int) -> Cgroup[G] | None:
        """The cgroup that a process is really in; None when that is outside of this tree."""
        path = self.real.where(pid)
        if path is None:
            return None
        self.sync(path)
        return self.find(path)

    def found(self, pid: int, cgroup: Cgroup[G]) -> None:
        """A process counts as ``cgroup``'s from now on; it is not moved."""
        before = self.of(pid)
        if cgroup is not before:
            if before is not None:
                self._leave(pid, before)
            self._join(pid, cgroup)

    def _place(self, pid: int) -> None:
        """Somebody may have moved it in the real tree."""
        cgroup = self.where(pid)
        if cgroup is not None:
            self.found(pid, cgroup)

    # -- owners ----------------------------------------------------------------

    def directory(self, cgroup: Cgroup[G]) -> Attributes:
        """The real directory's."""
        return self.real.attributes(cgroup.path)

    def attributes(self, cgroup: Cgroup[G], file: str) -> Attributes:
        """The real file's; misc.* are ours."""
        if file.startswith("misc."):
            return super().attributes(cgroup, file)
        return self.real.attributes(cgroup.path, file)

    def set_attributes(
        self, cgroup: Cgroup[G], file: str | None, *, uid: int = -1, gid: int = -1, mode: int = -1
    ) -> None:
        """There, but for misc.*."""
        if file is not None and file.startswith("misc."):
            super().set_attributes(cgroup, file, uid=uid, gid=gid, mode=mode)
        else:
            self.real.set_attributes(cgroup.path, file or "", uid=uid, gid=gid, mode=mode)
