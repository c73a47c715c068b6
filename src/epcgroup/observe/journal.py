"""The events of one machine: what two snapshots differ in, and what only the machine can tell.

Most events need no hook in the machine: a refused charge, an eviction, a limit
that was set or an enclave that is gone is a difference between two snapshots.
That costs the machine nothing where it is busiest, works for every source alike,
and merges the ten thousand refusals of a thrashing second into one event with a
count. The first is told at once, those that go on in spans that grow from a second
to a minute: counts stay exact, a day of thrashing does not flood the log. What
leaves no trace in a snapshot (an ioctl refused for some reason, a
sealed page that did not load) is told by :meth:`Journal.note`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from epcgroup.observe import model
from epcgroup.observe.model import EnclaveView, Event, GroupView, Snapshot

KEPT = 10_000  # events
BURST_PAGES = 256  # evicted a second: a megabyte; less is the hum of a working cgroup
_FEWEST = 32  # pages of a burst, however short
_SPANS_S = (1.0, 60.0)  # of an event that goes on: the first, the longest

Listener = Callable[[Event], None]


# What makes two events the same: the kind, and what is said of it.
_Key = tuple[str, tuple[tuple[str, Any], ...]]


@dataclass(slots=True)
class _Run:
    """Something that goes on: what of it is not told yet, and when it will be."""

    since: float
    until: float
    due: float
    span: float
    count: int = 0


class Journal:
    """Numbers events, keeps the last ones, tells listeners. From any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=kept)
        self._number = 0
        self._listeners: list[Listener] = []
        self._groups: dict[str, GroupView] | None = None
        self._runs: dict[_Key, _Run] = {}
        self._enclaves: dict[int, EnclaveView] = {}
        self._at = 0.0
        self._moments: dict[tuple[str, object], dict[str, Any]] = {}

    def listen(self, listener: Listener) -> None:
        """Call ``listener(event)`` for each event from now on, in their order, one at a time."""
        self._listeners.append(listener)

    def note(self, kind: str, at: float, **what: Any) -> None:
        """An event that the machine itself tells; the same again soon is counted, and told later."""
        with self._lock:
            self._count((kind, tuple(what.items())), 1, at, at)
            self._tell_runs(at)

    def moment(self, kind: str, of: object, at: float, **what: Any) -> None:
        """When exactly, and how, something happened: SET of a path, or DISABLED of a number.

        It is told with the next snapshot, which shows it up to a second later, when what was in use is gone.
        """
        with self._lock:
            self._moments[kind, of] = {"at": at, **what}

    def since(self, after: int = 0) -> list[Event]:
        """Events with a number above ``after``, oldest first."""
        with self._lock:
            missing = self._number - after
            return (
                list(islice(self._events, max(len(self._events) - missing, 0), None)) if missing > 0 else []
            )

    def see(self, snapshot: Snapshot) -> None:
        """Note what is different from the snapshot seen before; the first one tells only of enclaves."""
        with self._lock:
            self._see_groups(snapshot)
            self._see_enclaves(snapshot)
            self._tell_runs(snapshot.at)
            self._at = snapshot.at
            self._moments = {of: what for of, what in self._moments.items() if what["at"] > snapshot.at}

    def flush(self) -> None:
        """Tell now what would be told later: the machine ends."""
        with self._lock:
            self._tell_runs(float("inf"))

    def _add(self, kind: str, at: float, **what: Any) -> None:
        self._number += 1
        event = Event(self._number, at, kind, **what)
        self._events.append(event)
        for listener in self._listeners:
            listener(event)

    def _see_groups(self, snapshot: Snapshot) -> None:
        first = self._groups is None
        before, now = self._groups or {}, {group.path: group for group in snapshot.groups}
        inner = {path.rpartition("/")[0] or "/" for path in now if path != "/"}
        for path, group in now.items():
            old = before.get(path)
            if old is group:
                continue
            if old is None:
                if not first:
                    self._add(model.MADE, snapshot.at, group=path, limit=group.limit)
                continue
            if old.limit != group.limit:
                then = self._moments.get((model.SET, path), {})
                seen = {"at": snapshot.at, "limit": group.limit, "current": group.current}
                self._add(model.SET, **{**seen, **then, "group": path})
            self._see_counters(snapshot.at, old, group, leaf=path not in inner)
        for path in before.keys() - now.keys():
            self._add(model.REMOVED, snapshot.at, group=path)
        self._groups = now

    def _see_counters(self, now: float, old: GroupView, group: GroupView, *, leaf: bool) -> None:
        where = (("group", group.path),)
        self._count((model.LIMIT, where), group.events_local - old.events_local, self._at, now)
        if leaf:  # evictions of a subtree are those of its members: told where they happen, once
            self._count((model.BURST, where), group.pages_out - old.pages_out, self._at, now)

    def _count(self, key: _Key, count: int, since: float, now: float) -> None:
        if count <= 0:
            return
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(since, now, now, _SPANS_S[0])
        elif not run.count:
            run.since = since
        run.count += count
        run.until = now

    def _tell_runs(self, now: float) -> None:
        for key, run in list(self._runs.items()):
            if now < run.due:
                continue
            kind, what = key[0], dict(key[1])
            least = max(_FEWEST, BURST_PAGES * (run.until - run.since)) if kind == model.BURST else 1
            if run.count >= least:
                until = run.until if run.until > run.since else 0.0
                state = self._limit_of(what["group"]) if kind in (model.BURST, model.LIMIT) else {}
                self._add(kind, run.since, count=run.count, until=until, **what, **state)
                run.span = min(2 * run.span, _SPANS_S[1])
            elif not run.count:
                del self._runs[key]
                continue
            run.count = 0
            run.due = now + run.span

    def _see_enclaves(self, snapshot: Snapshot) -> None:
        before, now = self._enclaves, {enclave.id: enclave for enclave in snapshot.enclaves}
        for number, enclave in now.items():
            old = before.get(number)
            who = _who(enclave)
            if old is None:
                self._add(model.BEGAN, snapshot.started + enclave.began_s, **who)
            if enclave.disabled and not (old is not None and old.disabled):
                then = self._moments.get((model.DISABLED, number), {})
                self._add(
                    model.DISABLED, **{"at": snapshot.at, **who, **self._limit_of(enclave.group), **then}
                )
            if enclave.ended and not (old is not None and old.ended):
                ended = snapshot.time_s if enclave.ended_s is None else enclave.ended_s
                self._add(model.ENDED, snapshot.started + ended, **who)
        self._enclaves = now

    def _limit_of(self, path: str) -> dict[str, Any]:
        group = (self._groups or {}).get(path)
        return {} if group is None else {"limit": group.limit, "current": group.current}


def _who(enclave: EnclaveView) -> dict[str, Any]:
    return {
        "group": enclave.group,
        "enclave": enclave.id,
        "pid": enclave.pid,
        "command": enclave.command,
    }
