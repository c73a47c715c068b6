"""The files of cgroup v2 over the misc controller, for every tool that speaks them.

:class:`CgroupTree` and :mod:`.files` are the model: pure, no file system needed.
:mod:`.fuse` (extra ``serve``) puts it at a mount point, :mod:`.announce` wakes
who polls or watches.
"""

from epcgroup.cgroupfs import files
from epcgroup.cgroupfs.access import ROOT_USER, Credentials
from epcgroup.cgroupfs.cgroup import NO_LIMIT, Cgroup
from epcgroup.cgroupfs.tree import CgroupTree, Processes

__all__ = ["NO_LIMIT", "ROOT_USER", "Cgroup", "CgroupTree", "Credentials", "Processes", "files"]
