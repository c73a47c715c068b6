"""The tree of cgroups as a user of cgroup v2 sees it: directories and processes.

A *cgroup* is a directory. It has a misc *group* (counters and limits, room
``misc``) only while its parent delegates the controller: ``+misc`` in the
parent's ``cgroup.subtree_control`` makes the children's groups, ``-misc`` ends
them. A process in a cgroup without a group of its own is charged to the
nearest one above: the cgroup's *effective* group.

The rules are the kernel's (Documentation/admin-guide/cgroup-v2, kernel/cgroup):
no processes in an inner cgroup that delegates, top-down enabling, no rmdir
while a process or child lives there. Charges do not block rmdir: the misc
group then stays, offline, until its last page is gone (spec 1.7).

Nothing here is thread-safe; the owner holds one lock around every call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Generic, Protocol

from epcgroup.cgroupfs import names
from epcgroup.cgroupfs.access import ROOT_USER, Attributes, Credentials
from epcgroup.cgroupfs.cgroup import Cgroup
from epcgroup.cgroupfs.extra import Extra
from epcgroup.cgroupfs.real import RealCgroups
from epcgroup.errors import OutOfRange, Refused
from epcgroup.misc.tree import G, Tree

MISC = "misc"


class Processes(Protocol):
    """What the tree must know of processes and do to them."""

    def leader(self, pid: int) -> int | None:
        """The process that task ``pid`` belongs to; None when there is no such task."""

    def meant(self, reader: int, number: int) -> int | None:
        """The task that task ``reader`` calls ``number`` in its pid namespace; None when there is none."""

    def shown(self, reader: int, tids: Iterable[int]) -> list[int]:
        """What task ``reader`` calls these tasks; 0 for those outside its pid namespace."""

    def unmovable(self, pid: int) -> bool:
        """Whether it is a kernel thread that no cgroup may be given."""

    def threads(self, pid: int) -> list[int]:
        """Task ids of a process; empty when it is gone."""

    def stop(self, pid: int, stopped: bool) -> None:
        """Freeze or thaw a process; nothing happens when it is gone."""

    def kill(self, pid: int) -> None:
        """End a process (SIGKILL); nothing happens when it is gone."""


class CgroupTree(Generic[G]):
    """All cgroups over one misc tree, which nobody else makes groups in.

    ``moved(pid, group)`` is called when a process is to be charged elsewhere;
    ``announce(path, file)`` when a file's contents were announced as changed.
    """

    def __init__(
        self,
        misc: Tree[G],
        processes: Processes,
        *,
        auto_delegate: bool = False,
        owner: Credentials = ROOT_USER,
    ) -> None:
        """``auto_delegate``: mkdir enables misc in the parent, for tools that never do.

        ``owner``: of the root's directory and files.
        """
        self.misc = misc
        self.processes = processes
        self.auto_delegate = auto_delegate
        self.moved: Callable[[int, G], None] | None = None
        self.announce: Callable[[str, str], None] | None = None
        self.extras: list[Extra[G]] = []  # files beyond the kernel's
        self.real: RealCgroups | None = None  # the cgroup2 that this tree mirrors
        self.changes = 0  # of what is kept over a restart
        self.root: Cgroup[G] = Cgroup(None, "", misc.root, owner)
        self.root.groups = 1
        self._by_path: dict[str, Cgroup[G]] = {"/": self.root}
        self._of: dict[int, Cgroup[G]] = {}
        # Groups that charges keep: where, and was the directory removed.
        self._ended: dict[G, tuple[Cgroup[G], bool]] = {}
        self._group_freed, misc.group_freed = misc.group_freed, self._freed
        misc.notify = self._counted

    # -- names ---------------------------------------------------------------

    def find(self, path: str) -> Cgroup[G] | None:
        """The cgroup at a path, or None."""
        return self._by_path.get(path)

    def lookup(self, path: str) -> Cgroup[G]:
        """The cgroup at a path; raises OutOfRange (ENOENT)."""
        found = self._by_path.get(path)
        if found is None:
            raise OutOfRange(f"no cgroup {path!r}", errno.ENOENT)
        return found

    def of(self, pid: int) -> Cgroup[G] | None:
        """The cgroup of a process; None when it was never seen here."""
        return self._of.get(pid)

    def sync(self, path: str) -> None:
        """Before somebody looks at ``path``; see MirroredTree."""

    def touch(self, cgroup: Cgroup[G]) -> None:
        """Something of the cgroup that is kept over a restart changed."""
        cgroup.saved = None
        self.changes += 1

    # -- directories ---------------------------------------------------------

    def mkdir(self, path: str, owner: Credentials = ROOT_USER) -> Cgroup[G]:
        """Create a cgroup; its files belong to its maker.

        Raises OutOfRange (ENOENT: no parent), Refused (EEXIST; EINVAL: a line
        feed in the name; EAGAIN: cgroup.max.depth or cgroup.max.descendants of
        an ancestor is reached).
        """
        above, _, name = path.rpartition("/")
        parent = self.lookup(above or "/")
        if not name or name in (".", ".."):
            raise Refused(f"{name!r} is no name for a cgroup", errno.EINVAL)
        if "\n" in name:
            raise Refused("a cgroup's name cannot have a line feed", errno.EINVAL)
        if path in self._by_path:
            raise Refused(f"cgroup {path!r} exists", errno.EEXIST)
        for level, cgroup in enumerate(parent.ancestors(), start=1):
            if cgroup.descendants >= cgroup.max_descendants or level > cgroup.max_depth:
                raise Refused(f"{cgroup.path}: cgroup.max.depth or max.descendants is reached", errno.EAGAIN)
        if self.auto_delegate and not parent.delegates and parent.group is not None:
            self._delegate(parent)
        group = self.misc.mkdir(path) if parent.delegates else None
        cgroup = Cgroup(parent, name, group, owner)
        cgroup.frozen = parent.frozen
        cgroup.groups = int(group is not None)
        parent.children[name] = cgroup
        self._by_path[path] = cgroup
        for ancestor in parent.ancestors():
            ancestor.descendants += 1
            ancestor.groups += cgroup.groups
        self.touch(cgroup)
        return cgroup

    def rmdir(self, path: str) -> None:
        """Remove an empty cgroup. Raises OutOfRange (ENOENT), Refused (EBUSY)."""
        cgroup = self.lookup(path)
        parent = cgroup.parent
        if parent is None:
            raise Refused("the root cgroup cannot be removed", errno.EBUSY)
        if cgroup.populated or cgroup.children:
            raise Refused(f"{path!r} has processes or child cgroups", errno.EBUSY)
        del parent.children[cgroup.name], self._by_path[path]
        for ancestor in parent.ancestors():
            ancestor.descendants -= 1
        if cgroup.group is not None:
            self._end_group(cgroup, removed=True)
        self.touch(cgroup)

    # -- the controller ------------------------------------------------------

    def control(self, cgroup: Cgroup[G], enable: bool) -> None:
        """``+misc`` or ``-misc`` in cgroup.subtree_control.

        Raises Refused: ENOENT, the cgroup does not have the controller itself;
        EBUSY, processes are in it, or a child delegates on.
        """
        if enable == cgroup.delegates:
            return
        if enable:
            if cgroup.group is None:
                raise Refused(f"{cgroup.path} has no misc controller to pass on", errno.ENOENT)
            if cgroup.members and cgroup is not self.root:
                raise Refused(f"{cgroup.path} has processes; move them to a child first", errno.EBUSY)
            self._delegate(cgroup)
        else:
            if any(child.delegates for child in cgroup.children.values()):
                raise Refused(f"a child of {cgroup.path} passes misc on", errno.EBUSY)
            cgroup.delegates = False
            for child in cgroup.children.values():
                self._regroup(child, None)
        self.touch(cgroup)

    def _delegate(self, cgroup: Cgroup[G]) -> None:
        cgroup.delegates = True
        for child in cgroup.children.values():
            self._regroup(child, self.misc.mkdir(child.path))

    def _regroup(self, child: Cgroup[G], group: G | None) -> None:
        """The child's own group comes or goes; processes in its subtree are charged elsewhere."""
        pids = [pid for cgroup in child.subtree() for pid in cgroup.members]
        for pid in pids:
            self.misc.detach(self._of[pid].effective)
        before, child.group = child.group, group
        for pid in pids:
            self._charge_to(pid, self._of[pid].effective)
        if group is not None:
            for level in child.ancestors():
                level.groups += 1
        elif before is not None:
            child.group = before
            self._end_group(child, removed=False)
        child.saved = None

    def _end_group(self, cgroup: Cgroup[G], *, removed: bool) -> None:
        """The cgroup's misc group goes offline; charges may keep it for a while."""
        group, cgroup.group = cgroup.group, None
        assert group is not None
        self._ended[group] = (cgroup, removed)
        for level in cgroup.ancestors():
            level.groups -= 1
            level.dying += removed
            level.dying_groups += 1
        self.misc.rmdir(cgroup.path)

    def _freed(self, group: G) -> None:
        cgroup, removed = self._ended.pop(group)
        for level in cgroup.ancestors():
            level.dying -= removed
            level.dying_groups -= 1
        if self._group_freed is not None:
            self._group_freed(group)

    def _charge_to(self, pid: int, group: G) -> None:
        self.misc.attach(group)
        if self.moved is not None:
            self.moved(pid, group)

    # -- processes -----------------------------------------------------------

    def may_enter(self, cgroup: Cgroup[G]) -> None:
        """Raises Refused (EBUSY) for an inner cgroup, which can have no processes."""
        if cgroup.delegates and cgroup is not self.root:
            raise Refused(f"{cgroup.path} passes controllers on; a process belongs in a child", errno.EBUSY)

    def enter(self, pid: int, cgroup: Cgroup[G]) -> None:
        """A process enters, from another cgroup or from outside. Raises Refused (EBUSY)."""
        before = self._of.get(pid)
        if before is cgroup:
            return
        self.may_enter(cgroup)
        if before is not None:
            self._leave(pid, before)
        self._join(pid, cgroup)
        if cgroup.frozen or (before is not None and before.frozen):
            self.processes.stop(pid, cgroup.frozen)

    def migrate(self, task: int, cgroup: Cgroup[G], who: Credentials) -> None:
        """Write of ``task`` to cgroup.procs: its whole process moves, its charges stay (spec 8.3).

        Raises Refused: ESRCH, no such task; EINVAL, a thread of the kernel; EACCES, cgroup.procs of the
        common ancestor may not be written; EBUSY as enter does.
        """
        pid = self.processes.leader(task)
        if pid is None:
            raise Refused(f"no process {task}", errno.ESRCH)
        if self.processes.unmovable(pid):
            raise Refused(f"{task} is a thread of the kernel that stays where it is", errno.EINVAL)
        self.may_move(pid, cgroup, who)
        self.enter(pid, cgroup)

    def may_move(self, pid: int, cgroup: Cgroup[G], who: Credentials) -> None:
        """Whether ``who`` may bring a process from where it is to ``cgroup``; raises Refused (EACCES)."""
        above = set(self._of.get(pid, self.root).ancestors())
        common = next(level for level in cgroup.ancestors() if level in above)
        if not self.attributes(common, "cgroup.procs").writable_by(who):
            raise Refused(f"cgroup.procs of {common.path} is not yours", errno.EACCES)

    def forked(self, parent: int, pid: int) -> G:
        """A process was born where its parent is; the group that pays for it."""
        cgroup = self._of.get(parent, self.root)
        self._join(pid, cgroup)
        return cgroup.effective

    def ended(self, pid: int) -> None:
        """A process is gone; nothing happens when it was never seen."""
        cgroup = self._of.get(pid)
        if cgroup is not None:
            self._leave(pid, cgroup)

    def _join(self, pid: int, cgroup: Cgroup[G]) -> None:
        self._of[pid] = cgroup
        cgroup.members[pid] = None
        self._populate(cgroup, 1)
        self._charge_to(pid, cgroup.effective)

    def _leave(self, pid: int, cgroup: Cgroup[G]) -> None:
        self.misc.detach(cgroup.effective)
        del self._of[pid], cgroup.members[pid]
        self._populate(cgroup, -1)

    def _populate(self, cgroup: Cgroup[G], by: int) -> None:
        for level in cgroup.ancestors():
            was = bool(level.populated)
            level.populated += by
            if was != bool(level.populated) and level is not self.root:
                self._tell(level.path, "cgroup.events")

    # -- freezing ------------------------------------------------------------

    def set_freeze(self, cgroup: Cgroup[G], freeze: bool) -> None:
        """Stop or continue every process of the subtree."""
        cgroup.freeze = freeze
        self.touch(cgroup)
        for level in cgroup.subtree():
            frozen = level.freeze or (level.parent is not None and level.parent.frozen)
            if frozen != level.frozen:
                level.frozen = frozen
                for pid in level.members:
                    self.processes.stop(pid, frozen)
                self._tell(level.path, "cgroup.events")

    @property
    def controllers(self) -> list[str]:
        """The controllers that go along, in the kernel's order."""
        others = {name.partition(".")[0] for extra in self.extras for name in extra.modes}
        return [*sorted(others - {MISC}), MISC]

    # -- owners --------------------------------------------------------------

    def directory(self, cgroup: Cgroup[G]) -> Attributes:
        """Owner and mode of a cgroup's directory."""
        return cgroup.directory

    def attributes(self, cgroup: Cgroup[G], file: str) -> Attributes:
        """Owner and mode of a file."""
        found = cgroup.attributes.get(file)
        if found is None:
            modes = (extra.modes[file] for extra in self.extras if file in extra.modes)
            mode = next(modes, None) or names.mode(file)
            return Attributes(cgroup.maker.uid, cgroup.maker.gid, mode)
        return found

    def set_attributes(
        self, cgroup: Cgroup[G], file: str | None, *, uid: int = -1, gid: int = -1, mode: int = -1
    ) -> None:
        """chown and chmod of a file, or of the directory (None); -1 leaves as it is."""
        at = cgroup.directory
        if file is not None:
            at = cgroup.attributes.setdefault(file, self.attributes(cgroup, file))
        at.uid = at.uid if uid == -1 else uid
        at.gid = at.gid if gid == -1 else gid
        at.mode = at.mode if mode == -1 else mode & 0o7777
        self.touch(cgroup)

    # -- who is told -----------------------------------------------------------

    def _tell(self, path: str, file: str) -> None:
        if self.announce is not None:
            self.announce(path, file)

    def _counted(self, group: G, file: str) -> None:
        if self.announce is not None and group.online and group.parent is not None:
            self.announce(group.path, f"misc.{file}")
