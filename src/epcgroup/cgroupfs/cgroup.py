"""One cgroup: a directory, its processes, and what it counts of its subtree.

A cgroup has a misc *group* (counters and limits, room ``misc``) only while its
parent delegates the controller. What the files ask of a whole subtree (processes,
directories, groups; the removed ones that charges keep) is counted along the
way to the root as it changes, so that no file walks ten thousand cgroups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from epcgroup.cgroupfs.access import Attributes, Credentials
from epcgroup.misc.tree import G

NO_LIMIT = 2**31 - 1  # "max" of cgroup.max.depth and cgroup.max.descendants
_DIR_MODE = 0o755


class Cgroup(Generic[G]):
    """One directory. ``members`` are processes, in the order in which they came."""

    __slots__ = (
        "attributes", "children", "delegates", "descendants", "directory", "dying", "dying_groups", "freeze",
        "frozen", "group", "groups", "maker", "max_depth", "max_descendants", "members", "name", "parent",
        "path", "populated", "saved",
    )  # fmt: skip

    def __init__(self, parent: Cgroup[G] | None, name: str, group: G | None, owner: Credentials) -> None:
        self.parent = parent
        self.name = name
        self.path: str = "/" if parent is None else f"{parent.path.rstrip('/')}/{name}"
        self.group = group  # the misc group, while the parent delegates
        self.children: dict[str, Cgroup[G]] = {}
        self.members: dict[int, None] = {}
        self.delegates = False  # "misc" stands in cgroup.subtree_control
        self.populated = 0  # processes here and below
        self.descendants = 0  # directories below
        self.groups = 0  # misc groups here and below
        self.dying = 0  # removed directories below whose group charges still keep
        self.dying_groups = 0  # groups that ended here or below and that charges still keep
        self.max_depth = NO_LIMIT
        self.max_descendants = NO_LIMIT
        self.freeze = False  # what cgroup.freeze says
        self.frozen = False  # what holds: ours or an ancestor's
        self.maker = owner  # owns the files; a later chown of the directory does not change that
        self.directory = Attributes(owner.uid, owner.gid, _DIR_MODE)
        self.attributes: dict[str, Attributes] = {}  # files whose owner or mode was set
        self.saved: str | None = None  # what is kept of it over a restart; None when that changed

    def __repr__(self) -> str:
        return f"<cgroup {self.path}>"

    @property
    def effective(self) -> G:
        """The misc group that processes of this cgroup are charged to."""
        level: Cgroup[G] | None = self
        while level is not None:
            if level.group is not None:
                return level.group
            level = level.parent
        raise AssertionError("the root always has a group")

    def ancestors(self) -> Iterator[Cgroup[G]]:
        """This cgroup, its parent, … the root."""
        level: Cgroup[G] | None = self
        while level is not None:
            yield level
            level = level.parent

    def subtree(self) -> Iterator[Cgroup[G]]:
        """This cgroup and all below, parents first."""
        todo = [self]
        while todo:
            cgroup = todo.pop()
            yield cgroup
            todo += reversed(cgroup.children.values())
