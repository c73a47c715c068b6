"""Looks at the machine once a second, for its journal and its history."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput
from epcgroup.observe.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from epcgroup.serve.sources.machine import MachineSource

INTERVAL_S = 1.0


class Sampler(threading.Thread):
    """A thread of the server. History that cannot be kept is said once; the machine goes on."""

    def __init__(self, source: MachineSource, file: Path, say: Callable[[str], None]) -> None:
        super().__init__(name="sampler", daemon=True)
        self._source = source
        self._ending = threading.Event()
        self._told = 0
        self._say = say
        self.store: Store | None = None
        try:
            self.store = Store(file)
        except BadInput as error:
            self._give_up(error)

    def run(self) -> None:
        """Sample until `end`."""
        while not self._ending.wait(INTERVAL_S):
            self._sample()

    def end(self) -> None:
        """A last sample, and the file is closed."""
        self._ending.set()
        self.join(10)
        self._source.snapshot()
        self._source.journal.flush()
        self._sample()
        if self.store is not None:
            self.store.close()

    def _sample(self) -> None:
        snapshot = self._source.snapshot()
        events = self._source.events(self._told)
        if events:
            self._told = events[-1].number
        if self.store is not None:
            try:
                self.store.add(snapshot, events)
            except BadInput as error:
                self._give_up(error)

    def _give_up(self, error: BadInput) -> None:
        self._say(f"{error}; no history is kept")
        self.store = None
