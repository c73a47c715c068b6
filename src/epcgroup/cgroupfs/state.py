"""What of a tree survives a restart: directories, limits, owners; not processes.

Plain data in and out; who stores it is the server's business. Enclaves and
processes end with the machine, and so do usage, peaks and event counts.
"""

from __future__ import annotations

from typing import Any

from epcgroup.cgroupfs.access import Attributes, Credentials
from epcgroup.cgroupfs.cgroup import Cgroup
from epcgroup.cgroupfs.tree import CgroupTree
from epcgroup.errors import BadInput, EpcgroupError
from epcgroup.misc.files import set_max
from epcgroup.misc.tree import G
from epcgroup.units import U64_MAX

FORMAT = 1


def dump(tree: CgroupTree[G]) -> dict[str, Any]:
    """The tree as JSON values, parents before children."""
    return {"format": FORMAT, "cgroups": [_cgroup(tree, cgroup) for cgroup in tree.root.subtree()]}


def _cgroup(tree: CgroupTree[G], cgroup: Cgroup[G]) -> dict[str, Any]:
    limits = {}
    if cgroup.group is not None:
        keys = zip(tree.misc.rules.resources, cgroup.group.max, strict=True)
        limits = {key: limit for key, limit in keys if limit != U64_MAX}
    return {
        "path": cgroup.path,
        "delegates": cgroup.delegates,
        "max": limits,
        "max_depth": cgroup.max_depth,
        "max_descendants": cgroup.max_descendants,
        "freeze": cgroup.freeze,
        "maker": [cgroup.maker.uid, cgroup.maker.gid],
        "directory": _owner(cgroup.directory),
        "files": {name: _owner(at) for name, at in cgroup.attributes.items()},
    }


def _owner(at: Attributes) -> list[int]:
    return [at.uid, at.gid, at.mode]


def load(tree: CgroupTree[G], data: Any) -> None:
    """Put a dumped tree into an empty one. Raises BadInput for anything else than a dump."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BadInput(f"not a state of format {FORMAT}")
    try:
        for entry in data["cgroups"]:
            _restore(tree, entry)
        for entry in data["cgroups"]:  # only now: they may be lower than what is there
            cgroup = tree.lookup(entry["path"])
            cgroup.max_depth, cgroup.max_descendants = entry["max_depth"], entry["max_descendants"]
    except (KeyError, TypeError, ValueError, EpcgroupError) as error:
        raise BadInput(f"a state that cannot be read: {error!r}") from error


def _restore(tree: CgroupTree[G], entry: dict[str, Any]) -> None:
    path = entry["path"]
    cgroup = tree.root if path == "/" else tree.mkdir(path, Credentials(*entry["maker"]))
    tree.control(cgroup, entry["delegates"])
    cgroup.directory = Attributes(*entry["directory"])
    cgroup.attributes = {name: Attributes(*owner) for name, owner in entry["files"].items()}
    for key, limit in entry["max"].items():
        if cgroup.group is not None and key in tree.misc.rules.resources and cgroup is not tree.root:
            set_max(tree.misc, cgroup.group, tree.misc.resource(key), int(limit))
    tree.set_freeze(cgroup, entry["freeze"])
