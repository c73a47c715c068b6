"""Where snapshots come from: the seam between a machine and its views.

A view (top, exporter, web page, report) knows this and the model, and nothing of
machines. The sources themselves stand above both: in `serve.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from epcgroup.observe.model import Event, Snapshot


class Source(Protocol):
    """A machine, however it is reached. Methods may be called from any one thread at a time."""

    @property
    def name(self) -> str:
        """Which machine this is, for a title: a directory, a mount point, a file."""

    def snapshot(self) -> Snapshot:
        """The machine as it is now. Raises Refused when it is gone."""

    def events(self, after: int = 0) -> Sequence[Event]:
        """What happened since event number ``after``, oldest first; what is too old is forgotten."""

    def set_max(self, path: str, limit: int | None) -> None:
        """Set a cgroup's limit, in bytes, None for none. Raises Refused, BadInput."""

    def close(self) -> None:
        """Let go of it; harmless when done before."""
