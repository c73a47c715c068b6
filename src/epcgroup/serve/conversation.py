"""The questions of one client, and what is kept for it between them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from epcgroup.errors import Refused
from epcgroup.live.paging.recording import ENOUGH, Recording
from epcgroup.observe.codec import Differ
from epcgroup.serve import tape

if TYPE_CHECKING:
    from epcgroup.live.world import World
    from epcgroup.serve.sources import MachineSource


class Conversation:
    """Answers ``where``, ``observe`` (what changed since the last time) and ``record`` (likewise)."""

    def __init__(self, world: World, source: MachineSource, mount: str) -> None:
        self._world = world
        self._source = source
        self._mount = mount
        self._differ = Differ()
        self._recording: Recording | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question."""
        match request.get("do"):
            case "where":
                return {"mount": self._mount, "pid": os.getpid()}
            case "observe":
                mine = request.get("server") == os.getpid()
                snapshot = self._source.snapshot()
                after = request.get("after", 0)  # null: none are wanted
                events = () if after is None else self._source.events(int(after) if mine else 0)
                return {"server": os.getpid(), **self._differ.delta(snapshot, events)}
            case "record":
                return self._record(0 if request.get("all") else ENOUGH)
            case other:
                return {"error": f"no request {other!r}"}

    def close(self) -> None:
        """The client is gone."""
        if self._recording is not None:
            self._recording.stop()

    def _record(self, least: int) -> dict[str, Any]:
        if self._recording is None:
            try:
                self._recording = Recording(self._world)
            except Refused as refused:
                return {"error": refused.strerror}
        return tape.packed(self._recording.take(least))
