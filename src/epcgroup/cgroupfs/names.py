"""Which core files a cgroup's directory has, and their modes."""

from __future__ import annotations

#: Number of files in a statfs of a tree: no other FUSE file system says that.
STATFS_MARK = int.from_bytes(b"epcgroup", "little")
#: Files of every cgroup, the root too, with their modes.
EVERYWHERE = {
    "cgroup.controllers": 0o444,
    "cgroup.max.depth": 0o644,
    "cgroup.max.descendants": 0o644,
    "cgroup.procs": 0o644,
    "cgroup.stat": 0o444,
    "cgroup.subtree_control": 0o644,
    "cgroup.threads": 0o644,
}
#: Files that the root has not.
BELOW_ROOT = {
    "cgroup.events": 0o444,
    "cgroup.freeze": 0o644,
    "cgroup.kill": 0o200,
    "cgroup.type": 0o644,
}
_LIMITS = {"misc.max", "misc.low", "misc.high"}
_MODES = EVERYWHERE | BELOW_ROOT


def mode(file: str) -> int:
    """Permission bits that a file is created with."""
    return _MODES.get(file, 0o644 if file in _LIMITS else 0o444)
