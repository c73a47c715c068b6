"""Snapshots and events as JSON, and back: the one form on sockets, in files, in a browser.

An object's fields are those of the model. ``version`` counts incompatible
changes; a reader ignores fields that it does not know and gives missing ones
their defaults, so that a newer and an older program understand each other.

Ten thousand cgroups are three megabytes. Whoever follows a machine gets the first
time everything and then what changed (:class:`Differ`, :class:`Follower`): of an
idle cgroup, nothing. Rows of cgroups travel as lists, named once by ``columns``.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from epcgroup.errors import BadInput
from epcgroup.observe.model import EnclaveView, Event, GroupView, NodeView, ProcessView, Snapshot, ThreadView

VERSION = 1
T = TypeVar("T")

COLUMNS = tuple(field.name for field in dataclasses.fields(GroupView))
_ROW = operator.attrgetter(*COLUMNS)
_EVENT = [(field.name, field.default) for field in dataclasses.fields(Event)]


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as plain data for json.dumps."""
    return {"version": VERSION, **_head(snapshot), "groups": [_plain(group) for group in snapshot.groups]}


def snapshot_from_json(data: Mapping[str, Any]) -> Snapshot:
    """The inverse. Raises BadInput for what is none, or of another version."""
    check_version(data)
    try:
        return _snapshot(data, tuple(_view(GroupView, group) for group in data["groups"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"no snapshot: {error!r}") from None


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as plain data: what has its default is left out."""
    return {name: value for name, default in _EVENT if (value := getattr(event, name)) != default}


def event_from_json(data: Mapping[str, Any]) -> Event:
    """The inverse. Raises BadInput for what is none."""
    try:
        return _view(Event, data)
    except TypeError as error:
        raise BadInput(f"no event: {error}") from None


def event_line(event: Event) -> str:
    """One line of the structured log, without its end."""
    return json.dumps({"version": VERSION, **event_to_json(event)})


def check_version(data: Mapping[str, Any]) -> None:
    """Raises BadInput unless this program reads that version."""
    if data.get("version") != VERSION:
        raise BadInput(f"a snapshot of version {data.get('version')!r}; this program reads {VERSION}")


class Differ:
    """The sending side: what changed since it was asked last.

    A group is unchanged when it is the same object as before, so a source that
    keeps the views of idle groups is cheap to follow.
    """

    def __init__(self) -> None:
        self._sent: dict[str, GroupView] = {}
        self._order: list[str] = []

    def delta(self, snapshot: Snapshot, events: Iterable[Event]) -> dict[str, Any]:
        """The message for the other side. ``order`` only when groups came or went."""
        before, now = self._sent, {group.path: group for group in snapshot.groups}
        changed = [
            group
            for path, group in now.items()
            if (old := before.get(path)) is not group and (old is None or old != group)
        ]
        self._sent = now
        message = {
            "version": VERSION,
            **_head(snapshot),
            "columns": COLUMNS,
            "rows": [_ROW(group) for group in changed],
            "events": [event_to_json(event) for event in events],
        }
        order = list(now)
        if order != self._order:
            self._order = message["order"] = order
        return message


class Follower:
    """The receiving side: whole snapshots again."""

    def __init__(self) -> None:
        self._groups: dict[str, GroupView] = {}
        self._order: list[str] = []

    def apply(self, message: Mapping[str, Any]) -> tuple[Snapshot, list[Event]]:
        """The machine as the message says it is now. Raises BadInput."""
        check_version(message)
        try:
            columns = tuple(message["columns"])
            for row in message["rows"]:
                if columns == COLUMNS and len(row) == len(columns):  # from a program of this version: quicker
                    group = GroupView(*row)
                else:
                    group = _view(GroupView, dict(zip(columns, row, strict=True)))
                self._groups[group.path] = group
            if "order" in message:
                self._order = message["order"]
                self._groups = {path: self._groups[path] for path in self._order}
            events = [event_from_json(event) for event in message["events"]]
            return _snapshot(message, tuple(self._groups.values())), events
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"no message of a machine: {error!r}") from None


def _head(snapshot: Snapshot) -> dict[str, Any]:
    """Everything but the groups."""
    return {
        "time_s": snapshot.time_s,
        "started": snapshot.started,
        "policy": snapshot.policy,
        "epc_pages": snapshot.epc_pages,
        "free_pages": snapshot.free_pages,
        "low_pages": snapshot.low_pages,
        "high_pages": snapshot.high_pages,
        "knows": sorted(snapshot.knows),
        "nodes": [_plain(node) for node in snapshot.nodes],
        "enclaves": [_plain(enclave) for enclave in snapshot.enclaves],
        "processes": [
            {**_plain(process), "threads": [_plain(thread) for thread in process.threads]}
            for process in snapshot.processes
        ],
    }


def _snapshot(data: Mapping[str, Any], groups: tuple[GroupView, ...]) -> Snapshot:
    return Snapshot(
        time_s=data["time_s"],
        policy=data["policy"],
        epc_pages=data["epc_pages"],
        free_pages=data["free_pages"],
        groups=groups,
        enclaves=_views(EnclaveView, data.get("enclaves", ())),
        processes=tuple(_process(process) for process in data.get("processes", ())),
        nodes=_views(NodeView, data.get("nodes", ())),
        started=data.get("started", 0.0),
        low_pages=data.get("low_pages", 0),
        high_pages=data.get("high_pages", 0),
        knows=frozenset(data["knows"]) if "knows" in data else Snapshot(0, "", 0, 0).knows,
    )


def _process(data: Mapping[str, Any]) -> ProcessView:
    return _view(ProcessView, {**data, "threads": _views(ThreadView, data.get("threads", ()))})


def _plain(view: Any) -> dict[str, Any]:
    return {name: getattr(view, name) for name in view.__slots__}


def _views(kind: Callable[..., T], rows: Sequence[Mapping[str, Any]]) -> tuple[T, ...]:
    return tuple(_view(kind, row) for row in rows)


def _view(kind: Callable[..., T], data: Mapping[str, Any]) -> T:
    known = kind.__slots__  # type: ignore[attr-defined]
    return kind(**{name: value for name, value in data.items() if name in known})
