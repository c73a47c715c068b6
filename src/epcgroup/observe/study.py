"""A run to look back at: its cgroups over time, its enclaves, and what they should have been given.

Made from the history of a server, from the samples of a simulation, or from the one
snapshot that `run --report json` leaves. What a run lacks (a single snapshot has no
course) is empty, and every view says what it has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput
from epcgroup.observe.history import Series
from epcgroup.observe.model import EnclaveView, GroupView, Snapshot
from epcgroup.observe.store import Point
from epcgroup.units import PAGE_SIZE, format_size, page_ceil

if TYPE_CHECKING:
    from epcgroup.observe.store import Store

MORE, LESS, FITS, UNLIMITED = "more", "less", "fits", "no limit"
_SLOW = 0.02  # of the time: who waits longer than this for pages should get more
_LOOSE = 2  # who never used more than 1/_LOOSE of its limit could do with less
_ROOM = 1.25  # what is proposed in place of a loose limit, of the peak
_NO_POINT = Point(0.0, None, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Advice:
    """What a cgroup should have been given: MORE, LESS, FITS or UNLIMITED, and why in words."""

    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class Course:
    """One cgroup through a run. Points in the order of time; counters of the last one are of the run."""

    path: str
    points: tuple[Point, ...]

    @property
    def last(self) -> Point:
        """The last moment at which the cgroup was there."""
        return next((point for point in reversed(self.points) if point.current is not None), _NO_POINT)

    @property
    def seconds(self) -> float:
        """How long it was watched."""
        return self.points[-1].at - self.points[0].at if self.points else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time in which a process waited (or, where only that is told, threads did)."""
        first, last = self.points[0] if self.points else _NO_POINT, self.last
        waited = (last.some_s - first.some_s) or (last.stall_s - first.stall_s)
        return min(1.0, waited / self.seconds) if self.seconds > 0 else 0.0

    @property
    def peak(self) -> int:
        """The most that was in use under its last limit; all of the run's, if it had no other."""
        last = self.last
        under: list[int] = []
        for point in reversed(self.points):
            if point.current is not None and point.limit != last.limit:
                return max(under, default=last.peak)
            under.append(max(point.high, point.current or 0))
        return last.peak

    def since(self, name: str) -> int:
        """How far a counter rose."""
        return int(getattr(self.last, name) - (getattr(self.points[0], name) if len(self.points) > 1 else 0))

    def series(self, begin: float) -> Series:
        """It over time, in seconds since ``begin``; without the moments at which it was not there."""
        series, before = Series(self.path, [], [], [], [], []), None
        for point in self.points:
            if point.current is not None:
                span = 0.0 if before is None else point.at - before.at
                series.time_s.append(point.at - begin)
                series.current.append(point.current)
                series.limit.append(point.limit)
                for rates, name in ((series.in_per_s, "pages_in"), (series.out_per_s, "pages_out")):
                    rise = getattr(point, name) - getattr(before, name) if span > 0 else 0
                    rates.append(max(rise, 0) / span if span > 0 else 0.0)
                before = point
        return series

    def advice(self) -> Advice:
        """What its limit should have been."""
        last, hits = self.last, self.since("events")
        if last.limit is None:
            return Advice(UNLIMITED, f"it used at most {format_size(last.peak)}")
        waited = f", and it waited {self.waiting:.0%} of the time" if self.waiting >= _SLOW else ""
        if hits and (self.waiting >= _SLOW or not self.seconds):
            return Advice(MORE, f"its limit of {format_size(last.limit)} was hit {hits:,} times{waited}")
        if self.peak * _LOOSE < last.limit:
            if not self.peak:
                return Advice(FITS, f"nothing of {format_size(last.limit)} was used")
            enough = page_ceil(int(self.peak * _ROOM) + 1) * PAGE_SIZE
            return Advice(LESS, f"never more than {format_size(self.peak)}: {format_size(enough)} would do")
        if hits:
            return Advice(FITS, f"hit {hits:,} times without a wait that counts")
        return Advice(FITS, f"at most {format_size(self.peak)} of {format_size(last.limit)}")


@dataclass(frozen=True, slots=True)
class Study:
    """One run. ``epc`` in bytes; ``started`` in seconds since 1970, 0 in virtual time."""

    name: str
    policy: str
    epc: int
    courses: tuple[Course, ...]
    enclaves: tuple[EnclaveView, ...] = ()
    started: float = 0.0

    def course(self, path: str) -> Course | None:
        """The cgroup at ``path``, if there was one."""
        return next((course for course in self.courses if course.path == path), None)

    @property
    def limited(self) -> list[Course]:
        """Cgroups that had a limit, those that paid most first."""
        return sorted(
            (course for course in self.courses if course.last.limit is not None),
            key=lambda course: (-course.waiting, -course.since("pages_in"), course.path),
        )

    def series(self, most: int) -> list[Series]:
        """Those over time that paid most or used most, below the root; in the order of their paths."""
        seen = [course for course in self.courses if course.path != "/" and len(course.points) > 1]
        seen.sort(key=lambda course: (-course.since("pages_in"), -course.last.peak, course.path))
        begin = min((course.points[0].at for course in seen[:most]), default=0.0)
        return [course.series(begin) for course in sorted(seen[:most], key=lambda course: course.path)]

    def sentence(self) -> str:
        """What there is to say in one sentence."""
        tight = [course for course in self.limited if course.advice().kind == MORE]
        loose = [course for course in self.limited if course.advice().kind == LESS]
        if not self.limited:
            return "Nothing was limited."
        words = [f"{len(self.limited)} cgroup{'s' * (len(self.limited) > 1)} had a limit"]
        if tight:
            most = tight[0]
            cost = f" and waited {most.waiting:.0%} of the time" if most.waiting else ""
            words.append(f"{most.path} paid most: it loaded {most.since('pages_in'):,} pages again{cost}")
        else:
            words.append("none of them paid for it")
        if loose:
            words.append(f"{', '.join(course.path for course in loose[:3])} could do with less")
        return "; ".join(words) + "."


def of_snapshots(name: str, snapshots: Iterable[Snapshot]) -> Study:
    """A run from its snapshots, in the order of time. Raises BadInput when there are none."""
    courses: dict[str, list[Point]] = {}
    last = None
    for snapshot in snapshots:
        for group in snapshot.groups:
            courses.setdefault(group.path, []).append(_point(snapshot.at, group))
        last = snapshot
    if last is None:
        raise BadInput(f"{name}: it has no samples")
    found = tuple(Course(path, tuple(points)) for path, points in courses.items())
    return Study(name, last.policy, last.epc_pages * PAGE_SIZE, found, last.enclaves, last.started)


def of_store(
    name: str, store: Store, begin: float = 0.0, end: float = float("inf"), most: int = 600
) -> Study:
    """A run from the history of a server. Raises BadInput when nothing is kept."""
    found = [Course(path, tuple(store.points(path, begin, end, most))) for path in store.paths()]
    kept = tuple(sorted((course for course in found if course.points), key=lambda course: course.path))
    if not kept:
        raise BadInput(f"{name}: no history of that time is kept")
    root = next((course for course in kept if course.path == "/"), None)
    return Study(name, "", root.last.limit or 0 if root else 0, kept, started=kept[0].points[0].at)


def to_csv(study: Study) -> str:
    """Every point as a row; amounts in bytes, times in seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = Point.__slots__
    writer.writerow(["cgroup", *names])
    for course in study.courses:
        for point in course.points:
            values = [getattr(point, name) for name in names]
            path = course.path.encode(errors="backslashreplace").decode()  # a name need not be UTF-8
            writer.writerow([path, *("" if value is None else value for value in values)])
    return text.getvalue()


def _point(at: float, group: GroupView) -> Point:
    return Point(
        at, group.limit, group.current, group.current, group.peak, group.unreclaimable, group.pages_in,
        group.pages_out, group.faults, group.events, group.stall_s, group.some_s, group.full_s,
    )  # fmt: skip
