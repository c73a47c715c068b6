"""The tree that a server shows: by itself, or over a real cgroup2 (`--mirror`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cgroupfs import CgroupTree, Credentials
from epcgroup.cgroupfs.mirror import MirroredTree
from epcgroup.cgroupfs.real import RealCgroups
from epcgroup.errors import BadInput
from epcgroup.host import mounts
from epcgroup.serve.processes import SystemProcesses

if TYPE_CHECKING:
    from epcgroup.epc.group import Group
    from epcgroup.live.world import World


def make(world: World, mirror: Path | None, *, auto_delegate: bool) -> CgroupTree[Group]:
    """A tree that belongs to this user. Raises BadInput for what cannot be mirrored."""
    groups, processes = world.machine.groups, SystemProcesses(world.tasks)
    owner = Credentials(os.geteuid(), os.getegid())
    if mirror is None:
        return CgroupTree(groups, processes, auto_delegate=auto_delegate, owner=owner)
    top = mirror.resolve()
    try:
        made = not top.exists()
        top.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(f"--mirror {top}: {error.strerror}; name a directory of a cgroup2") from error
    try:
        real = RealCgroups(top, _name(top))
    except BadInput:
        if made:
            top.rmdir()
        raise
    if made:
        real.mark("/")
    return MirroredTree(groups, processes, real, auto_delegate=auto_delegate, owner=owner)


def _name(top: Path) -> str:
    """What /proc/PID/cgroup calls a directory of a cgroup2."""
    real = [mount for mount in mounts.mounts() if mount.type == "cgroup2"]
    found = [mount for mount in real if top.is_relative_to(mount.point)]
    if not found:
        return "/"
    mount = max(reversed(found), key=lambda mount: len(mount.point))
    return f"{mount.root.rstrip('/')}/{top.relative_to(mount.point)}".removesuffix("/.")
