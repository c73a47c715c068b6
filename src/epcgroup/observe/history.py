"""Snapshots over time, and the rates between them."""

from __future__ import annotations

from dataclasses import dataclass

from epcgroup.observe.model import GroupView, Snapshot


@dataclass(frozen=True, slots=True)
class Series:
    """One group over time: parallel lists, one entry per snapshot in which it existed.

    ``current`` in bytes; the rates are pages per second since the snapshot
    before, 0 at the first.
    """

    path: str
    time_s: list[float]
    current: list[int]
    limit: list[int | None]
    in_per_s: list[float]
    out_per_s: list[float]


class History:
    """Collects snapshots of one machine in the order of time."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def __len__(self) -> int:
        return len(self.snapshots)

    def add(self, snapshot: Snapshot) -> None:
        """Append one; a second one of the same moment replaces the first."""
        if self.snapshots and snapshot.time_s <= self.snapshots[-1].time_s:
            self.snapshots.pop()
        self.snapshots.append(snapshot)

    @property
    def last(self) -> Snapshot | None:
        """The newest snapshot."""
        return self.snapshots[-1] if self.snapshots else None

    def paths(self) -> list[str]:
        """Every group that ever was, in the order of first appearance."""
        return list(dict.fromkeys(group.path for snapshot in self.snapshots for group in snapshot.groups))

    def series(self, path: str) -> Series:
        """The group at ``path`` over time; empty lists if it never was."""
        series = Series(path, [], [], [], [], [])
        before: tuple[float, GroupView] | None = None
        for snapshot in self.snapshots:
            group = snapshot.group(path)
            if group is None:
                continue
            series.time_s.append(snapshot.time_s)
            series.current.append(group.current)
            series.limit.append(group.limit)
            loaded, evicted = _rates(before, snapshot.time_s, group)
            series.in_per_s.append(loaded)
            series.out_per_s.append(evicted)
            before = snapshot.time_s, group
        return series


def _rates(before: tuple[float, GroupView] | None, now: float, group: GroupView) -> tuple[float, float]:
    if before is None:
        return 0.0, 0.0
    then, old = before
    span = now - then
    return (group.pages_in - old.pages_in) / span, (group.pages_out - old.pages_out) / span
