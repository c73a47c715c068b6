"""Containers and what they ask: pod specs and whatever holds a pod template, from YAML or JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from epcgroup.errors import BadInput, MissingCapability, to_install
from epcgroup.host.audit import handover
from epcgroup.host.audit.quantity import quantity, times, whole_bytes

YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Statement:
    """One amount somewhere: ``where`` it stands, its ``text``, and the bytes it means.

    ``amount`` None: no limit (``max``, 0), or, with ``problem``, not readable.
    """

    where: str
    text: str
    amount: int | None
    problem: str = ""


@dataclass(slots=True)
class Workload:
    """A container (or OCI bundle): what it asks, which limit is handed over, where it runs.

    ``ids``: what its cgroup's name holds (container id, else the pod's uid); ``cgroup``: its
    path where that is said. ``notes``: what is odd about the document itself.
    """

    source: str
    name: str
    asked: list[Statement] = field(default_factory=list)
    limits: list[Statement] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    cgroup: str | None = None
    container: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def asks(self) -> int | None:
        """Bytes asked for by the first readable statement."""
        return next((each.amount for each in self.asked if each.amount is not None), None)

    @property
    def limit(self) -> int | None:
        """Bytes of the first readable limit."""
        return next((each.amount for each in self.limits if each.amount is not None), None)


def state(where: str, text: object, parse: Callable[[str], int | None]) -> Statement:
    """A statement; what cannot be parsed is kept with the reason."""
    written = text if isinstance(text, str) else json.dumps(text)
    try:
        return Statement(where, written, parse(written))
    except BadInput as error:
        return Statement(where, written, None, str(error))


def mapping(source: str, where: str, value: Any) -> dict[str, Any]:
    """What a document has at ``where``, where names and their values belong; nothing there is none of them.

    Raises BadInput.
    """
    _check(source, where, value, dict, "names with their values")
    return value or {}


def sequence(source: str, where: str, value: Any) -> list[Any]:
    """As mapping, where a list belongs."""
    _check(source, where, value, list, "a list")
    return value or []


def _check(source: str, where: str, value: object, kind: type, want: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise BadInput(f"{source}: {where} is {json.dumps(value, default=str)[:60]}; want {want}")


def read(path: Path) -> list[Workload]:
    """The workloads of a YAML or JSON file, an OCI bundle or its config.json, or a directory of such.

    Raises BadInput naming the file (and line, for YAML), MissingCapability without a YAML reader.
    """
    from epcgroup.host.audit import bundles

    if path.is_dir():
        if (path / bundles.CONFIG).is_file():
            return [bundles.read(path / bundles.CONFIG)]
        files = sorted(each for each in path.rglob("*") if each.suffix in (*YAML_SUFFIXES, ".json"))
        return [workload for each in files for workload in read(each)]
    found: list[Workload] = []
    for document in documents(path):
        if bundles.is_bundle(document):
            found.append(bundles.workload(str(path), document))
        else:
            found += list(_of(str(path), document))
    return found


def documents(path: Path) -> list[Any]:
    """What a file holds, parsed. Raises BadInput, MissingCapability."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise BadInput(f"{path}: {why}") from error
    if path.suffix == ".json":
        try:
            return [json.loads(text)]
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{error.lineno}: no JSON: {error.msg}") from error
    try:
        import yaml
    except ImportError as error:
        raise MissingCapability(f"{path} is YAML; to read it: {to_install('audit')}") from error
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise BadInput(f"{path}{line}: no YAML: {getattr(error, 'problem', error)}") from error


def _of(source: str, document: Any) -> Iterator[Workload]:
    """The containers of one Kubernetes object; none of a kind that runs no pods."""
    if not isinstance(document, dict):
        raise BadInput(f"{source}: no Kubernetes object and no OCI configuration")
    if "items" in document:
        for item in sequence(source, "items", document["items"]):
            yield from _of(source, item)
        return
    pod = _template(source, document)
    if pod is None:
        return
    metadata = mapping(source, "metadata", document.get("metadata"))
    own = mapping(source, "metadata of the pod", pod.get("metadata"))
    where = f"{metadata.get('namespace', 'default')}/{metadata.get('name') or own.get('name', '?')}"
    spec = mapping(source, "spec", pod.get("spec"))
    containers = [
        mapping(source, f"an entry of {name}", each)
        for name in ("initContainers", "containers")
        for each in sequence(source, name, spec.get(name))
    ]
    annotations = mapping(source, "annotations", own.get("annotations"))
    made = [_container(source, where, annotations, container, len(containers)) for container in containers]
    if document is pod:
        _identify(made, source, mapping(source, "status", document.get("status")))
    _webhook(made, annotations)
    yield from made


def _template(source: str, document: dict[str, Any]) -> dict[str, Any] | None:
    """The pod of a Pod, the template of what makes pods."""
    if document.get("kind") == "Pod":
        return document
    spec = document.get("spec")
    while isinstance(spec, dict):
        if "template" in spec:
            return mapping(source, "template", spec["template"])
        spec = mapping(source, "jobTemplate", spec.get("jobTemplate")).get("spec")
    return None


def _container(
    source: str, where: str, annotations: dict[str, Any], container: dict[str, Any], siblings: int
) -> Workload:
    name = str(container.get("name", "?"))
    made = Workload(source, f"{where}/{name}", container=name)
    resources = mapping(source, f"resources of container {name}", container.get("resources"))
    limits: dict[str, Any] = {}
    for kind in ("requests", "limits"):
        limits |= mapping(source, f"{kind} of container {name}", resources.get(kind))
    if handover.RESOURCE in limits:
        made.asked.append(state(f'resource "{handover.RESOURCE}"', limits[handover.RESOURCE], quantity))
        if handover.ENCLAVE not in limits:
            made.notes.append(
                f"no resource {handover.ENCLAVE}: Intel's webhook did not see this pod (failurePolicy is "
                "ignore), or no device plug-in is meant"
            )
    for key, unit in handover.OLDER.items():
        if key in limits:
            made.asked.append(state(f'resource "{key}"', limits[key], partial(times, unit)))
    _nri(made, annotations, name, siblings)
    _crio(made, annotations, name)
    return made


def _identify(made: list[Workload], source: str, status: dict[str, Any]) -> None:
    """The ids of the containers that run."""
    ids: dict[str, list[str]] = {}
    for kind in ("containerStatuses", "initContainerStatuses"):
        for entry in sequence(source, kind, status.get(kind)):
            each = mapping(source, f"an entry of {kind}", entry)
            if each.get("containerID"):
                found = str(each["containerID"]).rpartition("/")[2]
                ids.setdefault(str(each.get("name")), []).append(found)
    for workload in made:
        workload.ids += ids.get(workload.container, [])


def _webhook(made: list[Workload], annotations: dict[str, Any]) -> None:
    """What Intel's webhook wrote: the sum of the pod as it was then."""
    if handover.RESOURCE not in annotations or not made:
        return
    said = state(f'annotation "{handover.RESOURCE}"', annotations[handover.RESOURCE], quantity)
    asked = sum(each.asks or 0 for each in made)
    if said.problem:
        made[0].notes.append(f"{said.where}: {said.problem}")
    elif said.amount != asked:
        made[0].notes.append(
            f"{said.where} says {said.text!r}, its containers ask for {asked} in sum: changed afterwards"
        )


def _nri(made: Workload, annotations: dict[str, Any], name: str, siblings: int) -> None:
    for key in handover.nri_keys(name):
        if key in annotations:
            statement = state(f'annotation "{key}"', annotations[key], lambda text: whole_bytes(text) or None)
            made.limits.append(statement)
            if key != handover.nri_keys(name)[0] and siblings > 1:
                made.notes.append(
                    f'annotation "{key}" limits each of the {siblings} containers, not their sum'
                )
            return


def _crio(made: Workload, annotations: dict[str, Any], name: str) -> None:
    for prefix in handover.CRIO:
        key = f"{prefix}{name}"
        if key in annotations:
            made.limits.append(state(f'annotation "{key}"', annotations[key], _crio_limit))


def _crio_limit(text: str) -> int | None:
    value = handover.crio_value(text)
    return None if value is None else handover.misc_max(value)
