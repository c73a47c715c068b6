"""Which rows there are, in which order: the tree of cgroups, and what hangs on it. Knows no terminal."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from epcgroup.errors import BadInput
from epcgroup.observe.model import EnclaveView, GroupView, ProcessView, Snapshot

if TYPE_CHECKING:
    from epcgroup.observe.why import PointsOf

SAMPLES = 120  # kept of each cgroup, for its history
SORTS = ("tree", "current", "unreclaimable", "in", "out", "stall", "hits")
T = TypeVar("T", EnclaveView, ProcessView)
Kind = Literal["group", "enclave", "process", "thread"]
Sample = tuple[int, float]  # bytes in use, pages in and out a second


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a cgroup since the snapshot before: pages and hits a second, shares of the time."""

    pages_in: float = 0.0
    pages_out: float = 0.0
    hits: float = 0.0
    some: float = 0.0
    full: float = 0.0


_NONE = Rates()


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``key`` stays the same over time; ``open`` None: nothing hangs on it."""

    kind: Kind
    key: str
    depth: int
    name: str
    group: GroupView | None = None
    enclave: EnclaveView | None = None
    process: ProcessView | None = None
    rates: Rates = _NONE
    open: bool | None = None
    stall_s: float = 0.0


@dataclass(slots=True)
class Selection:
    """What the user wants to see."""

    sort: str = "tree"
    filter: str = ""
    closed: set[str] = field(default_factory=set)  # cgroups whose children are hidden
    opened: set[str] = field(default_factory=set)  # cgroups and processes whose contents are shown


class Past:
    """Rates since the snapshot before, and a history of every cgroup.

    ``kept``: what somebody else has kept of a cgroup between two moments; it is asked for a cgroup that is
    looked at, once, and tells what was before we came, in steps of ``interval`` seconds.
    """

    def __init__(self, kept: PointsOf | None = None, interval: float = 1.0) -> None:
        self.snapshot: Snapshot | None = None
        self.rates: dict[str, Rates] = {}
        self._history: dict[str, deque[Sample]] = {}
        self._before: dict[str, GroupView] = {}
        self._kept, self._interval = kept, interval
        self._filled: set[str] = set()
        self._began = 0.0

    def samples(self, path: str) -> Sequence[Sample]:
        """The history of a cgroup, oldest first."""
        samples = self._history.get(path)
        if samples is None:
            return ()
        if self._kept is not None and path not in self._filled:
            self._filled.add(path)
            older = _stepped(self._kept, path, self._began, self._interval, SAMPLES - len(samples))
            samples.extendleft(reversed(older))
        return samples

    def see(self, snapshot: Snapshot) -> None:
        """The next snapshot; one of the same moment as the last is passed over."""
        last = self.snapshot
        if last is None:
            self._began = snapshot.at
        elif snapshot.at == last.at:
            return
        span = 0.0 if last is None or snapshot.at < last.at else snapshot.at - last.at
        now, rates = {}, {}
        for group in snapshot.groups:
            old = self._before.get(group.path)
            now[group.path] = group
            rate = _rates(old, group, span) if old is not None and old is not group and span else _NONE
            if rate is not _NONE:
                rates[group.path] = rate
            samples = self._history.get(group.path)
            if samples is None:
                samples = self._history[group.path] = deque(maxlen=SAMPLES)
            samples.append((group.current, rate.pages_in + rate.pages_out))
        for gone in self._history.keys() - now.keys():
            del self._history[gone]
        self.snapshot, self._before, self.rates = snapshot, now, rates


def _stepped(kept: PointsOf, path: str, end: float, step: float, most: int) -> list[Sample]:
    """The last samples before ``end``, at most so many; none from before there was anything."""
    try:
        points = [point for point in kept(path, end - (most + 1) * step, end) if point.current is not None]
    except BadInput:
        return []  # no history is better than no screen
    moments = [point.at for point in points]
    found: list[Sample] = []
    before: int | None = None
    for back in range(most + 1, 0, -1):
        at = bisect_right(moments, end - back * step)
        if not at:
            continue
        point = points[at - 1]
        paged = point.pages_in + point.pages_out
        if before is not None:
            found.append((point.current or 0, max(paged - before, 0) / step))
        before = paged
    return found


def _rates(old: GroupView, new: GroupView, span: float) -> Rates:
    """A counter that fell began anew: nothing is known of that span."""
    if new.pages_in < old.pages_in or new.pages_out < old.pages_out or new.some_s < old.some_s:
        return _NONE
    return Rates(
        (new.pages_in - old.pages_in) / span,
        (new.pages_out - old.pages_out) / span,
        max(new.events_local - old.events_local, 0) / span,
        min((new.some_s - old.some_s) / span, 1.0),
        min(max(new.full_s - old.full_s, 0.0) / span, 1.0),
    )


def rows(past: Past, selection: Selection) -> list[Row]:
    """The rows of the last snapshot.

    In the order of the tree, siblings by name; or flat, the largest first. A filter
    keeps the cgroups whose path contains it, in the tree with those above them.
    """
    snapshot = past.snapshot
    if snapshot is None:
        return []
    enclaves = _by_group(snapshot.enclaves)
    processes = _by_group(snapshot.processes)
    shown: list[Row] = []
    for group, depth, name, has_children in _chosen(snapshot.groups, past, selection):
        path = group.path
        hangs = path in enclaves or path in processes
        is_open = None
        if has_children:
            is_open = path not in selection.closed
        elif hangs:
            is_open = path in selection.opened
        shown.append(Row("group", path, depth, name, group, rates=past.rates.get(path, _NONE), open=is_open))
        if hangs and path in selection.opened:
            shown += _contents(path, depth + 1, enclaves.get(path, ()), processes.get(path, ()), selection)
    return shown


def _chosen(
    groups: Sequence[GroupView], past: Past, selection: Selection
) -> Iterable[tuple[GroupView, int, str, bool]]:
    """(group, depth, name, whether its children can be folded) in the order of display."""
    wanted = selection.filter.casefold()
    if selection.sort != "tree":
        matching = [group for group in groups if wanted in group.path.casefold()]
        matching.sort(
            key=lambda group: _weight(group, past.rates.get(group.path, _NONE), selection.sort), reverse=True
        )
        return [(group, 0, group.path, False) for group in matching]
    keep = _with_ancestors(groups, wanted) if wanted else None
    children: dict[str, list[GroupView]] = {}
    top: list[GroupView] = []
    for group in groups:
        if keep is not None and group.path not in keep:
            continue
        if group.path == "/":
            top.append(group)
        else:
            children.setdefault(group.path.rpartition("/")[0] or "/", []).append(group)
    if not top:
        top = children.pop("/", [])
    found: list[tuple[GroupView, int, str, bool]] = []
    stack = [(group, 0) for group in sorted(top, key=_path, reverse=True)]
    while stack:
        group, depth = stack.pop()
        below = children.get(group.path, [])
        name = group.path.rpartition("/")[2] or "/"
        found.append((group, depth, name, bool(below) and group.path != "/"))
        if group.path not in selection.closed:
            stack += [(child, depth + 1) for child in sorted(below, key=_path, reverse=True)]
    return found


def _path(group: GroupView) -> str:
    return group.path


def _with_ancestors(groups: Iterable[GroupView], wanted: str) -> set[str]:
    keep = set()
    for group in groups:
        if wanted in group.path.casefold():
            path = group.path
            while path not in keep:
                keep.add(path)
                path = path.rpartition("/")[0] or "/"
    return keep


def _weight(group: GroupView, rates: Rates, sort: str) -> float:
    match sort:
        case "current":
            return group.current
        case "unreclaimable":
            return group.unreclaimable
        case "in":
            return rates.pages_in
        case "out":
            return rates.pages_out
        case "stall":
            return rates.some
    return rates.hits or group.events_local / 1e12  # in this second first, then ever


def _by_group(views: Iterable[T]) -> Mapping[str, list[T]]:
    found: dict[str, list[T]] = {}
    for view in views:
        found.setdefault(view.group, []).append(view)
    return found


def _contents(
    path: str,
    depth: int,
    enclaves: Iterable[EnclaveView],
    processes: Iterable[ProcessView],
    selection: Selection,
) -> Iterable[Row]:
    for enclave in sorted(enclaves, key=lambda enclave: (enclave.ended, enclave.id)):
        name = f"enclave {enclave.id} {enclave.command}"
        yield Row("enclave", f"{path}\0e{enclave.id}", depth, name, enclave=enclave)
    for process in processes:
        key = f"{path}\0p{process.pid}"
        name = f"{process.pid} {process.command}"
        many = len(process.threads) > 1
        yield Row(
            "process", key, depth, name, process=process, stall_s=process.stall_s,
            open=key in selection.opened if many else None,
        )  # fmt: skip
        if many and key in selection.opened:
            for thread in process.threads:
                alone = ProcessView(process.pid, process.command, path, (thread,))
                where = f"{key}\0t{thread.tid}"
                name = f"thread {thread.tid}"
                yield Row("thread", where, depth + 1, name, process=alone, stall_s=thread.stall_s)
