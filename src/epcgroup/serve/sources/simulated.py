"""The result of a simulation as a source of views: its samples, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from epcgroup.errors import Refused
from epcgroup.observe.journal import Journal
from epcgroup.observe.model import PAGING, STALL, GroupView, Snapshot
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.observe.model import Event
    from epcgroup.sim.result import Result

_KNOWS = frozenset({PAGING, STALL})  # how waits of several tenants overlap, a result does not say
_SUMMED = ("pages_in", "pages_out", "faults", "stall_s")


def snapshots(result: Result) -> Iterator[Snapshot]:
    """Every sample of a run in its order; times are virtual."""
    policy, epc_pages = result.summary["policy"], result.summary["epc_pages"]
    moment: list[dict[str, Any]] = []
    for row in result.groups.iter_rows(named=True):
        if moment and row["time_s"] != moment[0]["time_s"]:
            yield snapshot_of(moment, policy, epc_pages)
            moment = []
        moment.append(row)
    if moment:
        yield snapshot_of(moment, policy, epc_pages)


def snapshot_of(rows: list[dict[str, Any]], policy: str, epc_pages: int) -> Snapshot:
    """One moment from the rows of `Result.groups` that are of it."""
    groups = _subtrees(
        {
            row["cgroup"]: GroupView(
                path=row["cgroup"],
                limit=row["limit"],
                current=row["usage"],
                peak=row["peak"],
                events=row["events"],
                events_local=row["events_local"],
                pages_in=row["loaded"],
                pages_out=row["evicted"],
                faults=row["faults"],
                stall_s=row["stall_s"],
            )
            for row in rows
        }
    )
    used = groups[0].current // PAGE_SIZE if groups and groups[0].path == "/" else 0
    return Snapshot(
        time_s=rows[0]["time_s"],
        policy=policy,
        epc_pages=epc_pages,
        free_pages=epc_pages - used,
        groups=groups,
        knows=_KNOWS,
    )


def _subtrees(groups: dict[str, GroupView]) -> tuple[GroupView, ...]:
    """Paging as of whole subtrees; a simulation counts it for each group alone."""
    for path in reversed(list(groups)):
        parent = path.rpartition("/")[0] or "/"
        if path != "/" and parent in groups:
            above, below = groups[parent], groups[path]
            groups[parent] = replace(
                above, **{name: getattr(above, name) + getattr(below, name) for name in _SUMMED}
            )
    return tuple(groups.values())


class SimSource:
    """Plays a result from its beginning, ``speed`` virtual seconds a second; None: stand at its end."""

    def __init__(self, result: Result, name: str, speed: float | None = None) -> None:
        """Raises Refused for a result without samples."""
        self.name = name
        self.journal = Journal()
        self._snapshots = list(snapshots(result))
        self._next = 0
        self._speed = speed
        self._began = time.monotonic()
        if not self._snapshots:
            raise Refused(f"{name}: the simulation has no samples")

    def snapshot(self) -> Snapshot:
        """The sample that is due; the last one from the end on."""
        now = float("inf") if self._speed is None else (time.monotonic() - self._began) * self._speed
        first = self._snapshots[0].time_s
        while self._next < len(self._snapshots) and self._snapshots[self._next].time_s - first <= now:
            self.journal.see(self._snapshots[self._next])
            self._next += 1
        return self._snapshots[max(self._next - 1, 0)]

    def events(self, after: int = 0) -> Sequence[Event]:
        """What happened since event number ``after``, up to the last snapshot."""
        return self.journal.since(after)

    def set_max(self, path: str, limit: int | None) -> None:  # noqa: ARG002 - the protocol's
        """Refused: what is over cannot be changed."""
        raise Refused("a simulation that is over has no limits to set; change its scenario")

    def close(self) -> None:
        """Nothing is kept open."""
