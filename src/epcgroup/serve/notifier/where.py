"""Where a task stands: in which cgroup, seen from which root, and by which path it reaches the tree."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.serve.notifier import texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from epcgroup.cgroupfs import CgroupTree
    from epcgroup.epc.group import Group
    from epcgroup.live.tracing.task import Task


class CgroupNamespaces:
    """The root of every cgroup namespace: where its first process was when it made it.

    Told at unshare(2). One made by clone(2) is met later; its root is then taken
    to be where the task that is met first is.
    """

    def __init__(self, tree: CgroupTree[Group]) -> None:
        self._tree = tree
        self._roots = {_namespace(os.getpid()): "/"}

    def made(self, task: Task) -> None:
        """``task`` has just made one."""
        self._roots[_namespace(task.tid)] = self.path_of(task.pid)

    def root_of(self, task: Task) -> str:
        """Root of the namespace that ``task`` is in."""
        namespace = _namespace(task.tid)
        if namespace not in self._roots:
            self.made(task)
        return self._roots[namespace]

    def path_of(self, pid: int) -> str:
        """The cgroup of a process, by its path in the machine."""
        cgroup = self._tree.of(pid)
        return "/" if cgroup is None else cgroup.path


class Places:
    """Paths by which tasks reach cgroups of the tree that mount tables call ``source``."""

    def __init__(self, source: bytes) -> None:
        self._source = source

    def path_to(self, task: Task, cgroup: str) -> str | None:
        """A path at which ``task`` finds a cgroup; None where none is mounted."""
        for _, root, point in self._mounts(task):
            rest = texts.seen_from(cgroup, root)
            if not rest.startswith("/.."):
                return (point.rstrip("/") + rest).rstrip("/")
        return None

    def cgroup_of(self, task: Task, fd: int) -> str | None:
        """The cgroup whose directory descriptor ``fd`` of ``task`` is; None if it is none of ours."""
        about = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{task.tid}/fdinfo/{fd}").read_text().splitlines()
        )
        name = os.readlink(f"/proc/{task.tid}/fd/{fd}")  # noqa: PTH115 - a str
        for mount, root, point in self._mounts(task):
            if mount == about["mnt_id"] and (name + "/").startswith(point.rstrip("/") + "/"):
                return "/" + f"{root}/{name[len(point.rstrip('/')) :]}".strip("/").replace("//", "/")
        return None

    def _mounts(self, task: Task) -> Iterator[tuple[str, str, str]]:
        """(mount id, its root in the tree, mount point) of each mount of the tree."""
        for line in Path(f"/proc/{task.tid}/mountinfo").read_bytes().split(b"\n"):
            before, _, after = line.partition(b" - ")
            if after.startswith(texts.OURS + b" " + self._source + b" "):
                fields = before.split(b" ")
                yield fields[0].decode(), texts.unescaped(fields[3]), texts.unescaped(fields[4])


def _namespace(tid: int) -> int:
    return os.stat(f"/proc/{tid}/ns/cgroup").st_ino
