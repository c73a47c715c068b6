"""The machine of a server, by its control socket: cheap to follow, however many cgroups it has.

One connection stays open; each answer carries what changed since the one before
(`observe.codec`). A server that is started anew is found again.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epcgroup.errors import BadInput, Refused
from epcgroup.host import Hierarchy
from epcgroup.observe.codec import Follower
from epcgroup.observe.journal import KEPT
from epcgroup.serve import wire
from epcgroup.serve.client import connect, where

if TYPE_CHECKING:
    from epcgroup.observe.model import Event, Snapshot
    from epcgroup.serve.places import Places


_LONGEST = 1 << 28  # bytes of one answer: 10,000 cgroups with the longest names there can be


class SocketSource:
    """Follows the server of ``places``. Every method raises Refused while there is none."""

    def __init__(self, places: Places, *, events: bool = True) -> None:
        """``events``: whether they are wanted; of many cgroups they are as much as all the rest."""
        self._wanted = events
        self.name = str(places.directory)
        self._places = places
        self._connection: socket.socket | None = None
        self._follower = Follower()
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._server = 0  # pid of the server whose events these are

    def snapshot(self) -> Snapshot:
        """The machine as it is now."""
        if self._connection is None:
            self._follower = Follower()
            self._connection = connect(self._places)
        after = (self._events[-1].number if self._events else 0) if self._wanted else None
        answer = self._ask({"do": "observe", "server": self._server, "after": after})
        if answer["server"] != self._server:
            self._server = answer["server"]
            self._events.clear()
        snapshot, events = self._follower.apply(answer)
        self._events.extend(events)
        return snapshot

    def events(self, after: int = 0) -> Sequence[Event]:
        """What happened since event number ``after``, up to the last snapshot."""
        return [event for event in self._events if event.number > after]

    def set_max(self, path: str, limit: int | None) -> None:
        """Write the cgroup's misc.max at the server's mount. Raises Refused, BadInput."""
        Hierarchy(Path(where(self._places)["mount"])).set_max(path, limit)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._connection is not None
        try:
            wire.send(self._connection, request)
            received = wire.receive(self._connection, longest=_LONGEST)
        except (OSError, BadInput) as error:
            self.close()
            raise Refused(f"the server at {self._places.directory} is gone ({error})") from error
        if received is None:
            self.close()
            raise Refused(f"the server at {self._places.directory} is gone")
        answer = received[0]
        if "error" in answer:
            self.close()
            raise Refused(answer["error"])
        return answer
