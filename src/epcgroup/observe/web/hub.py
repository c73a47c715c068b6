"""Looks at a source once a second and tells every browser what changed.

A source serves one thread at a time and may take a while, so it has a thread of its own;
browsers wait in the event loop of the server. A machine that is gone is a state like
any other: it is told, and looked for until it is back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput, EpcgroupError, words_of
from epcgroup.observe.journal import KEPT

if TYPE_CHECKING:
    from epcgroup.observe.model import Event, Snapshot
    from epcgroup.observe.source import Source
    from epcgroup.observe.store import Store

INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen: a snapshot, or why there is none. ``number`` counts looks."""

    number: int
    snapshot: Snapshot | None
    gone: str = ""


class Hub:
    """One source, any number of watchers, between `start` and `close`.

    ``store``: where samples are kept too, when nobody else keeps them.
    """

    def __init__(self, source: Source, interval: float = INTERVAL_S, store: Store | None = None) -> None:
        self._source, self._interval, self._store = source, interval, store
        self._last = Look(0, None, "the machine has not been looked at yet")
        self._events: deque[tuple[int, Event]] = deque(maxlen=KEPT)
        self._told = 0  # how many events there ever were
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking, and let every watcher go."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._wake()
        self._source.close()

    @property
    def name(self) -> str:
        """Which machine it is, as the source says now."""
        return self._source.name

    @property
    def last(self) -> Look:
        """The newest look."""
        return self._last

    def events_after(self, number: int) -> tuple[int, list[Event]]:
        """Events told since the ``number``th, and how many there are now."""
        with self._lock:
            return self._told, [event for count, event in self._events if count > number]

    async def watch(self) -> AsyncIterator[Look]:
        """Each new look, the current one first; a slow watcher misses some. Ends with the hub."""
        seen, turn = -1, asyncio.Event()
        with self._lock:
            self._waiting[turn] = asyncio.get_running_loop()
        try:
            while not self._ended.is_set():
                turn.clear()
                look = self._last
                if look.number != seen:
                    seen = look.number
                    yield look
                await turn.wait()
        finally:
            with self._lock:
                del self._waiting[turn]

    def _run(self) -> None:
        number, events = 0, 0
        while not self._ended.is_set():
            began, number = time.monotonic(), number + 1
            try:
                snapshot = self._source.snapshot()
                new = list(self._source.events(events))
            except EpcgroupError as error:
                text = words_of(error)
                look, new, events = Look(number, None, text), [], 0
            else:
                look = Look(number, snapshot)
                if new:
                    events = new[-1].number
                self._keep(snapshot, new)
            with self._lock:
                for event in new:
                    self._told += 1
                    self._events.append((self._told, event))
                self._last = look
            self._wake()
            self._ended.wait(max(0.05, self._interval - (time.monotonic() - began)))

    def _keep(self, snapshot: Snapshot, events: list[Event]) -> None:
        if self._store is not None:
            try:
                self._store.add(snapshot, events)
            except BadInput:  # a full disk: the page goes on without more history
                self._store = None

    def _wake(self) -> None:
        with self._lock:
            for turn, loop in self._waiting.items():
                if not loop.is_closed():
                    loop.call_soon_threadsafe(turn.set)
