"""A machine in this process as a source of views."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from epcgroup.observe.journal import Journal

if TYPE_CHECKING:
    from epcgroup.live import Supervisor
    from epcgroup.observe.model import Event, Snapshot


class MachineSource:
    """A Supervisor's machine; ``journal`` holds its events. Methods may be called from any thread."""

    def __init__(self, machine: Supervisor, name: str) -> None:
        self.name = name
        self.journal = Journal()
        self._machine = machine
        observer = machine.world.observer
        machine.world.tell = lambda kind, **what: self.journal.note(kind, observer.now(), **what)
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
