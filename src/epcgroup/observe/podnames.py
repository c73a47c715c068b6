"""Which pod and container a cgroup is, by what every Kubernetes node has on disk.

A kubelet names cgroups by the pod's uid and the container's id, people by
namespace, pod and container. The kubelet itself keeps the translation where log
collectors look for it: ``/var/log/pods/NAMESPACE_POD_UID/`` and links
``/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log``. That needs no API server,
no credentials and works while the cluster is down. Containers of podman and docker
are known by their short id.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

_REFRESH_S = 10.0
_POD = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})(?:\.slice)?(?=/|$)"
)
_CONTAINER = re.compile(r"(?:^|/)(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?=/|$)")
_ID = 64  # digits of a container's
_LOG = re.compile(r"(?P<pod>[^_]+)_(?P<namespace>[^_]+)_(?P<container>.+)-(?P<id>[0-9a-f]{64})\.log")


class PodNames:
    """Labels of cgroups; ``root`` is where ``pods`` and ``containers`` are (``/var/log``)."""

    def __init__(self, root: Path = Path("/var/log")) -> None:
        self._root = root
        self._read = float("-inf")
        self._pods: dict[str, tuple[str, str]] = {}
        self._containers: dict[str, tuple[str, str, str]] = {}
        self.version = 0  # counts changes: labels that were given before may be old

    def refresh(self) -> None:
        """Look again, unless that was done a moment ago."""
        if time.monotonic() - self._read < _REFRESH_S:
            return
        self._read = time.monotonic()
        pods, containers = {}, {}
        for name in _names(self._root / "pods"):
            namespace, _, rest = name.partition("_")
            pod, _, uid = rest.rpartition("_")
            pods[uid] = namespace, pod
        for name in _names(self._root / "containers"):
            found = _LOG.fullmatch(name)
            if found:
                containers[found["id"]] = found["namespace"], found["pod"], found["container"]
        if (pods, containers) != (self._pods, self._containers):
            self._pods, self._containers = pods, containers
            self.version += 1

    def of(self, path: str) -> dict[str, str]:
        """``namespace``, ``pod``, ``container`` of a cgroup, as far as they are known."""
        container = _CONTAINER.search(path) if len(path) > _ID else None  # cheap: most have neither
        if container is not None:
            known = self._containers.get(container[1])
            if known is not None:
                return dict(zip(("namespace", "pod", "container"), known, strict=True))
        pod = _POD.search(path) if "pod" in path else None
        labels: dict[str, str] = {}
        if pod is not None:
            uid = pod[1].replace("_", "-")
            namespace, name = self._pods.get(uid, ("", uid))
            labels = {"namespace": namespace, "pod": name} if namespace else {"pod": name}
        if container is not None:
            labels["container"] = container[1][:12]
        return labels


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are all we want
    except OSError:
        return []
