"""Who may do what: owner and mode of a cgroup's directory and files.

The file system checks mode bits before anything arrives here (the mount option
``default_permissions``). What is left is the one rule that concerns a second
file: moving a process needs write access to ``cgroup.procs`` of the common
ancestor too, so that a delegated subtree can be arranged from inside but
neither left nor entered (cgroup v2, "Delegation Containment").
"""

from __future__ import annotations

from dataclasses import dataclass

S_IWUSR, S_IWGRP, S_IWOTH = 0o200, 0o020, 0o002


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of a process that acts on a file: user, group, and its other groups."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


ROOT_USER = Credentials(0, 0)


@dataclass(slots=True)
class Attributes:
    """Owner and permission bits of one file or directory."""

    uid: int
    gid: int
    mode: int

    def writable_by(self, who: Credentials) -> bool:
        """Whether the mode bits let ``who`` write; the super-user always may."""
        if who.uid == 0:
            return True
        if who.uid == self.uid:
            return bool(self.mode & S_IWUSR)
        if who.gid == self.gid or self.gid in who.groups:
            return bool(self.mode & S_IWGRP)
        return bool(self.mode & S_IWOTH)
