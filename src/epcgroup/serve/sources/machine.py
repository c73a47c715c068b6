"""A machine in this process as a source of views."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from epcgroup.observe.journal import Journal
from epcgroup.observe.model import DISABLED, SET
from epcgroup.units import U64_MAX, format_size

if TYPE_CHECKING:
    from epcgroup.epc import Enclave
    from epcgroup.epc.group import Group
    from epcgroup.live import Supervisor
    from epcgroup.observe.model import Event, Snapshot


class MachineSource:
    """A Supervisor's machine; ``journal`` holds its events. Methods may be called from any thread."""

    def __init__(self, machine: Supervisor, name: str) -> None:
        self.name = name
        self.journal = Journal()
        self._machine = machine
        observer = machine.world.observer
        self._now = observer.now
        machine.world.tell = lambda kind, **what: self.journal.note(kind, observer.now(), **what)
        machine.world.driver.pager.on_disable = self._disabled
        groups = machine.world.machine.groups
        self._max_written, groups.max_written = groups.max_written, self._limit_set
        self._lock = threading.Lock()  # the journal sees snapshots in their order

    def snapshot(self) -> Snapshot:
        """The machine as it is now."""
        with self._lock:
            snapshot = self._machine.snapshot()
            self.journal.see(snapshot)
        return snapshot

    def events(self, after: int = 0) -> Sequence[Event]:
        """What happened since event number ``after``, up to the last snapshot."""
        return self.journal.since(after)

    def set_max(self, path: str, limit: int | None) -> None:
        """Set a cgroup's limit. Raises Refused (ENOENT), BadInput."""
        self._machine.set_max(path, limit)

    def close(self) -> None:
        """Nothing: the machine is not ours."""

    def _limit_set(self, group: Group, resource: int) -> None:
        """A limit was stored: when, and what was in use then; what follows from it follows now."""
        if resource == self._machine.world.machine.resource:
            limit = group.max[resource]
            self.journal.moment(
                SET, group.path, self._now(),
                limit=None if limit == U64_MAX else limit, current=group.usage[resource],
            )  # fmt: skip
        if self._max_written is not None:
            self._max_written(group, resource)

    def _disabled(self, enclave: Enclave) -> None:
        """An enclave loses its memory: whose limit it is that could not be kept otherwise."""
        resource = self._machine.world.machine.resource
        pages = (enclave.secs, *enclave.va_pages, *enclave.pages.values())
        group = next((page.group for page in pages if page is not None), None)
        while group is not None and group.usage[resource] <= group.max[resource]:
            group = group.parent
        what = {}
        if group is not None:
            used, limit = group.usage[resource], group.max[resource]
            words = f"{group.path} held {format_size(used)} under a limit of {format_size(limit)}"
            what = {"reason": f"{words}, and nothing of it could be evicted", "limit": limit, "current": used}
        self.journal.moment(DISABLED, enclave.id, self._now(), **what)
