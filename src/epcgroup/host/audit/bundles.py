"""OCI bundles: the limit in ``linux.resources.unified``, and where the container's cgroup is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epcgroup.errors import BadInput
from epcgroup.host.audit import handover
from epcgroup.host.audit.workloads import Workload, documents, mapping, state

CONFIG = "config.json"


def is_bundle(document: Any) -> bool:
    """Whether a parsed file is an OCI runtime configuration."""
    return isinstance(document, dict) and "ociVersion" in document


def read(config: Path) -> Workload:
    """The workload of a bundle's config.json. Raises BadInput."""
    found = documents(config)
    if len(found) != 1 or not is_bundle(found[0]):
        raise BadInput(f"{config}: no ociVersion; an OCI runtime configuration is expected")
    return workload(str(config), found[0])


def workload(source: str, document: dict[str, Any]) -> Workload:
    """What a configuration asks, by its unified entry. Raises BadInput for what is none."""
    annotations = mapping(source, "annotations", document.get("annotations"))
    name = str(annotations.get("io.kubernetes.container.name") or Path(source).parent.name or source)
    made = Workload(source, name, container=name)
    linux = mapping(source, "linux", document.get("linux"))
    resources = mapping(source, "linux.resources", linux.get("resources"))
    unified = mapping(source, "linux.resources.unified", resources.get("unified"))
    if handover.MISC_MAX in unified:
        where = f'linux.resources.unified["{handover.MISC_MAX}"]'
        made.limits.append(state(where, unified[handover.MISC_MAX], handover.misc_max))
    if linux.get("cgroupsPath"):
        made.cgroup = cgroup_of(str(linux["cgroupsPath"]))
    elif not is_unlimited_by_design(made):
        made.notes.append("no linux.cgroupsPath: the runtime chooses the cgroup, so it is not looked up")
    return made


def is_unlimited_by_design(made: Workload) -> bool:
    """No EPC is mentioned anywhere: nothing to look up."""
    return not made.limits and not made.asked


def cgroup_of(path: str) -> str:
    """The cgroup of a cgroupsPath: a path, or systemd's ``slice:prefix:name``.

    >>> cgroup_of("/pods/a"), cgroup_of("kube-pod.slice:runc:1f")
    ('/pods/a', '/kube.slice/kube-pod.slice/runc-1f.scope')
    """
    if path.count(":") != 2:
        return path if path.startswith("/") else f"/{path}"
    slice_, prefix, name = path.split(":")
    stem = slice_.removesuffix(".slice")
    parts = stem.split("-") if stem else []
    nested = ["-".join(parts[: depth + 1]) + ".slice" for depth in range(len(parts))]
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return "/" + "/".join([*(each for each in nested if each != ".slice"), unit])
