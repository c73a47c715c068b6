"""What of a tree survives a restart: directories, limits, owners; not processes.

JSON text out, its values in; who stores it is the server's business. Enclaves and
processes end with the machine, and so do usage, peaks and event counts.

Each cgroup keeps its own text until something of it changes: to save ten thousand
because one was made costs milliseconds, and the tree's lock is held meanwhile.
"""

from __future__ import annotations

import json
from typing import Any

from epcgroup.cgroupfs.access import Attributes, Credentials
from epcgroup.cgroupfs.cgroup import Cgroup
from epcgroup.cgroupfs.tree import CgroupTree
from epcgroup.errors import BadInput, EpcgroupError
from epcgroup.misc.files import set_max, set_soft
from epcgroup.misc.tree import G
from epcgroup.units import U64_MAX

FORMAT = 1


def dump(tree: CgroupTree[G]) -> str:
    """The tree as a JSON document, parents before children."""
    texts = []
    for cgroup in tree.root.subtree():
        if cgroup.saved is None:
            cgroup.saved = json.dumps(_cgroup(tree, cgroup))
        texts.append(cgroup.saved)
    lines = ",\n".join(texts)
    return f'{{"format": {FORMAT}, "cgroups": [\n{lines}\n]}}\n'


def _cgroup(tree: CgroupTree[G], cgroup: Cgroup[G]) -> dict[str, Any]:
    limits: dict[str, dict[str, int]] = {}
    if cgroup.group is not None:
        resources = tree.misc.rules.resources
        for name, amounts, unset in (
            ("max", cgroup.group.max, U64_MAX),
            ("low", cgroup.group.low, 0),
            ("high", cgroup.group.high, U64_MAX),
        ):
            keys = zip(resources, amounts, strict=True)
            limits[name] = {key: limit for key, limit in keys if limit != unset}
    return {
        "path": cgroup.path,
        "delegates": cgroup.delegates,
        **limits,
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
    if cgroup.group is not None and cgroup is not tree.root:
        _limit(tree, cgroup.group, entry)
    tree.set_freeze(cgroup, entry["freeze"])


def _limit(tree: CgroupTree[G], group: G, entry: dict[str, Any]) -> None:
    """Limits of resources that this machine has; soft ones where it has any."""
    rules = tree.misc.rules
    for key, limit in entry.get("max", {}).items():
        if key in rules.resources:
            set_max(tree.misc, group, tree.misc.resource(key), int(limit))
    for name in ("low", "high"):
        for key, limit in entry.get(name, {}).items():
            if key in rules.soft:
                set_soft(tree.misc, group, name, tree.misc.resource(key), int(limit))
