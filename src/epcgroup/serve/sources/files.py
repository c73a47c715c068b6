"""A kernel's misc.* files as a source of views: limits, usage and events, and nothing of paging."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.host import Hierarchy, discover
from epcgroup.observe.journal import Journal
from epcgroup.observe.model import GroupView, Snapshot
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from epcgroup.observe.model import Event

_KNOWS: frozenset[str] = frozenset()
_UNKNOWN = -1


class FilesSource:
    """The tree of cgroups at ``root``. Groups without misc files are shown by what they contain."""

    def __init__(self, root: Path) -> None:
        """Raises Refused when the tree's root knows no sgx_epc."""
        self.name = str(root)
        self._tree = Hierarchy(root)
        self._capacity = discover.capacity(root).get(self._tree.resource, 0)
        self._began = time.time()
        self.journal = Journal()
        if not self._capacity:
            raise Refused(f"{root}: its misc.capacity has no sgx_epc; ask `epcgroup doctor`")

    def snapshot(self) -> Snapshot:
        """Every cgroup as its files say now."""
        groups = _with_local_events(list(self._walk("/")))
        used = groups[0].current
        snapshot = Snapshot(
            time_s=time.time() - self._began,
            policy="kernel",
            epc_pages=self._capacity // PAGE_SIZE,
            free_pages=max(self._capacity - used, 0) // PAGE_SIZE,
            groups=groups,
            started=self._began,
            knows=_KNOWS,
        )
        self.journal.see(snapshot)
        return snapshot

    def events(self, after: int = 0) -> Sequence[Event]:
        """What happened since event number ``after``, up to the last snapshot."""
        return self.journal.since(after)

    def set_max(self, path: str, limit: int | None) -> None:
        """Write misc.max. Raises Refused, BadInput."""
        self._tree.set_max(path, limit)

    def close(self) -> None:
        """Nothing is kept open."""

    def _walk(self, path: str) -> Iterator[GroupView]:
        group = self._view(path)
        if group is None:
            return
        yield group
        for child in self._tree.children(path):
            yield from self._walk(child)

    def _view(self, path: str) -> GroupView | None:
        """What the files say; None where misc is not delegated (nor is it below)."""
        used = self._value(path, "misc.current")
        if used is None and path != "/":
            return None
        limit = (self._tree.keyed(path, "misc.max") or {}).get(self._tree.resource, "max")
        local = self._value(path, "misc.events.local", ".max")
        return GroupView(
            path=path,
            limit=None if limit == "max" else int(limit),
            current=used or 0,
            peak=self._value(path, "misc.peak") or 0,
            events=self._value(path, "misc.events", ".max") or 0,
            events_local=_UNKNOWN if local is None else local,
        )

    def _value(self, path: str, name: str, suffix: str = "") -> int | None:
        text = (self._tree.keyed(path, name) or {}).get(self._tree.resource + suffix)
        return None if text is None else int(text)


def _with_local_events(groups: list[GroupView]) -> tuple[GroupView, ...]:
    """Fill in what a kernel before 6.11 has no file for: of all events, those that no child counted."""
    below: dict[str, int] = {}
    for group in groups:
        if group.path != "/":
            parent = group.path.rpartition("/")[0] or "/"
            below[parent] = below.get(parent, 0) + group.events
    return tuple(
        replace(group, events_local=max(group.events - below.get(group.path, 0), 0))
        if group.events_local == _UNKNOWN
        else group
        for group in groups
    )
