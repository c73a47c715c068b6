"""Where the cgroup files are: a kernel's cgroup2 mount, or one of ours.

Named trees come first (an option, then $EPCGROUP_ROOT). Else the mounts are
looked through for one whose ``misc.capacity`` knows the resource: the kernel's
before ours, so that a machine with real EPC is never mistaken for an emulated
one. The kernel's root is where the mount is; in a container that is the
container's own cgroup, which has no misc.capacity: name it with --root.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from epcgroup.errors import BadInput, Refused
from epcgroup.host import mounts
from epcgroup.host.mounts import Mount

CGROUP2 = "cgroup2"


def trees(found: Iterable[Mount] | None = None) -> list[Mount]:
    """Mounts of cgroup v2, the kernel's first; each mount point once; of ours those that answer."""
    listed = list(mounts.mounts() if found is None else found)
    kernel = [mount for mount in listed if mount.type == CGROUP2]
    ours = [mount for mount in listed if mount.type == mounts.TYPE and mounts.answers(mount.point)]
    return list(dict.fromkeys(kernel + ours))


def capacity(root: Path) -> dict[str, int]:
    """Resources and capacities of a tree's root; empty where there is no such file."""
    try:
        text = (root / "misc.capacity").read_text()
    except OSError:
        return {}
    return {key: int(amount) for key, _, amount in (line.partition(" ") for line in text.splitlines())}


def find(named: Path | None, resource: str) -> Path:
    """The root of the tree to work on. Raises BadInput, Refused where there is none."""
    chosen = named or (Path(os.environ["EPCGROUP_ROOT"]) if os.environ.get("EPCGROUP_ROOT") else None)
    if chosen is not None:
        if not (chosen / "cgroup.controllers").exists():
            raise BadInput(f"{chosen} is no cgroup v2 directory: it has no cgroup.controllers")
        return chosen
    looked = trees()
    for mount in looked:
        if resource in capacity(Path(mount.point)):
            return Path(mount.point)
    points = ", ".join(f"{mount.point} ({mount.type})" for mount in looked) or "none is mounted"
    raise Refused(
        f"no cgroup tree here has {resource} (looked at: {points}); "
        "name one with --root, start one with `epcgroup serve`, or ask `epcgroup doctor`"
    )
