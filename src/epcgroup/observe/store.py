"""History that outlives its program: samples and events in one SQLite file of bounded size.

The last hours are kept at full resolution, weeks in steps of a minute, and never
more than a number of bytes: what is oldest goes first. A cgroup costs a row only
when it changed. An idle one costs nothing, and when it wakes its last row is
written once more, so that a step stays a step and a rate is never smeared over an
idle hour.

Anybody may read while the one writer writes (write-ahead log); a writer killed at
any moment leaves a file that opens. A file that SQLite cannot open is put aside.
Paths are kept as bytes: names of cgroups need not be UTF-8.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from epcgroup.errors import BadInput
from epcgroup.observe.codec import event_from_json, event_to_json
from epcgroup.observe.model import Event, GroupView, Snapshot

FORMAT = 1
_HOUR_S = 3600.0
_MAX_INT = (1 << 63) - 1
_COLUMNS = (
    "lim", "current", "high", "peak", "unreclaimable", "pages_in", "pages_out", "faults", "events",
    "stall_s", "some_s", "full_s",
)  # fmt: skip
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS paths (id INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS fine (path INTEGER, at REAL, {", ".join(_COLUMNS)}, PRIMARY KEY (path, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS coarse (path INTEGER, at REAL, {", ".join(_COLUMNS)}, PRIMARY KEY (path, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (at REAL, until REAL, kind TEXT, path BLOB, enclave INTEGER, pid INTEGER, event TEXT);
CREATE TABLE IF NOT EXISTS alive (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL);
CREATE INDEX IF NOT EXISTS events_at ON events (at);
PRAGMA user_version = {FORMAT};
"""  # noqa: E501 - as SQL is read best
_END_ALL = f"""
INSERT OR IGNORE INTO fine
SELECT path, (SELECT at FROM alive) + 0.001, lim, NULL, {", ".join(_COLUMNS[2:])} FROM fine AS row
WHERE current IS NOT NULL AND at = (SELECT max(at) FROM fine WHERE path = row.path)
"""


@dataclass(frozen=True, slots=True)
class Keep:
    """What a store keeps: seconds of every sample, seconds of steps, seconds of a step, bytes in all."""

    fine_s: float = 4 * _HOUR_S
    coarse_s: float = 14 * 24 * _HOUR_S
    step_s: float = 60.0
    most_bytes: int = 256 << 20
    events: int = 100_000


@dataclass(frozen=True, slots=True)
class Point:
    """A cgroup at a moment (`Snapshot.at`); fields as GroupView's.

    ``high``: the most in use since the point before. ``current`` None: from here
    on it was not there (removed, or nobody looked).
    """

    at: float
    limit: int | None
    current: int | None
    high: int
    peak: int
    unreclaimable: int
    pages_in: int
    pages_out: int
    faults: int
    events: int
    stall_s: float
    some_s: float
    full_s: float


Row = tuple[float | None, ...]  # of _COLUMNS


class Store:
    """One file, one writer; from any thread."""

    def __init__(self, path: Path, keep: Keep | None = None, *, read_only: bool = False) -> None:
        """Opens or makes the file. ``read_only``: it must be there, and somebody else writes it.

        Raises BadInput when it cannot be used.
        """
        self.path = path
        self._keep = keep or Keep()
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._seen: dict[str, GroupView] = {}
        self._last: dict[str, tuple[float, Row]] = {}  # the newest row of each cgroup
        self._high: dict[str, int] = {}  # the most in use in the step that runs
        self._at = self._step = 0.0
        self._steps: dict[str, tuple[float, Row]] = {}  # the newest coarse row of each cgroup
        self._db = _open(path, read_only=read_only)

    def add(self, snapshot: Snapshot, events: Iterable[Event] = ()) -> None:
        """Keep a snapshot, and events. Raises BadInput when the disk is full or the file gone."""
        at = snapshot.at
        with self._lock, self._changing():
            if at > self._at:
                self._groups(snapshot)
                self._close_step(at)
                self._at = at
                self._db.execute("INSERT OR REPLACE INTO alive VALUES (1, ?)", (at,))
            self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        e.at,
                        e.until or e.at,
                        e.kind,
                        os.fsencode(e.group),
                        e.enclave,
                        e.pid,
                        json.dumps(event_to_json(e)),
                    )
                    for e in events
                ],
            )

    def paths(self) -> list[str]:
        """Every cgroup of which something is kept."""
        with self._lock:
            return [os.fsdecode(path) for (path,) in self._db.execute("SELECT path FROM paths ORDER BY path")]

    def points(
        self, path: str, begin: float = 0.0, end: float = float("inf"), most: int = 1000
    ) -> list[Point]:
        """A cgroup from ``begin`` to ``end`` (as `Snapshot.at`): at most ``most`` points, oldest first.

        The first may be older than ``begin``: what held then. Minutes where the
        full resolution is gone; merged into fewer points where there are too many.
        """
        with self._lock:
            number = self._db.execute("SELECT id FROM paths WHERE path = ?", (os.fsencode(path),)).fetchone()
            if number is None:
                return []
            oldest = self._db.execute("SELECT min(at) FROM fine").fetchone()[0]
            fine_from = max(begin, oldest if oldest is not None else 0.0)
            rows = self._rows("coarse", number[0], begin, min(fine_from, end)) if begin < fine_from else []
            rows += self._rows("fine", number[0], fine_from if rows else begin, end)
            newest = self._newest()
        points = [Point(*row) for row in rows]  # type: ignore[arg-type]  # SQL has no types
        if (
            points
            and points[-1].current is not None
            and newest is not None
            and points[-1].at < min(newest, end)
        ):
            points.append(_at(points[-1], min(newest, end)))  # idle since: it holds until now
        return _thinned(points, most)

    def events(
        self,
        begin: float = 0.0,
        end: float = float("inf"),
        *,
        group: str | None = None,
        enclave: int | None = None,
        most: int = 1000,
    ) -> list[Event]:
        """The newest ``most`` events that touch the span, oldest first; ``group`` means it and all below."""
        where, values = ["until >= ?", "at <= ?"], [begin, end]
        if group is not None and group != "/":
            name = os.fsencode(group)
            where.append("(path = ? OR substr(path, 1, ?) = ?)")
            values += [name, len(name) + 1, name + b"/"]  # type: ignore[list-item]
        if enclave is not None:
            where.append("enclave = ?")
            values.append(enclave)
        query = f"SELECT event FROM events WHERE {' AND '.join(where)} ORDER BY at DESC, rowid DESC LIMIT ?"
        with self._lock:
            rows = self._db.execute(query, (*values, most)).fetchall()
        return [event_from_json(json.loads(text)) for (text,) in reversed(rows)]

    def span(self) -> tuple[float, float] | None:
        """The oldest and the newest moment of which something is kept."""
        with self._lock:
            query = (
                "SELECT min(at) FROM (SELECT min(at) AS at FROM fine UNION ALL SELECT min(at) FROM coarse)"
            )
            first, last = self._db.execute(query).fetchone()[0], self._newest()
        return None if first is None or last is None else (first, last)

    def close(self) -> None:
        """Close the file; harmless when done before."""
        with self._lock:
            self._db.close()

    # -- writing -----------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            with self._db:
                yield
        except sqlite3.Error as error:
            raise BadInput(f"{self.path}: history cannot be written: {error}") from error

    def _groups(self, snapshot: Snapshot) -> None:
        at, rows = snapshot.at, []
        now = {group.path: group for group in snapshot.groups}
        for path, group in now.items():
            if self._seen.get(path) is group:
                continue
            row = _row(group)
            last = self._last.get(path)
            if last is not None and last[1] == row:
                continue
            number = self._id(path)
            if last is not None and last[0] < self._at:
                rows.append((number, self._at, *last[1]))
            rows.append((number, at, *row))
            self._last[path] = at, row
            self._high[path] = max(self._high.get(path, 0), group.current)
        for path in self._last.keys() - now.keys():
            # A row without current ends it.
            _, row = self._last.pop(path)
            rows.append((self._id(path), at, row[0], None, *row[2:]))
            self._high.pop(path, None)
            self._steps.pop(path, None)
        self._seen = now
        self._insert("fine", rows)

    def _insert(self, table: str, rows: Sequence[Row]) -> None:
        places = ", ".join("?" * (len(_COLUMNS) + 2))
        self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)

    def _id(self, path: str) -> int:
        number = self._ids.get(path)
        if number is None:
            name = os.fsencode(path)
            self._db.execute("INSERT OR IGNORE INTO paths (path) VALUES (?)", (name,))
            (number,) = self._db.execute("SELECT id FROM paths WHERE path = ?", (name,)).fetchone()
            self._ids[path] = number
        assert number is not None
        return number

    def _close_step(self, at: float) -> None:
        """At the end of a step: keep it in the coarse table, forget what is too old or too much."""
        step = at - at % self._keep.step_s
        if step == self._step:
            return
        if self._step:
            rows = []
            for path, high in self._high.items():
                _, row = self._last[path]
                number, before = self._id(path), self._steps.get(path)
                if before is not None and before[0] < self._step:
                    rows.append((number, self._step, *before[1]))
                rows.append((number, step, *row[:2], max(high, int(row[1] or 0)), *row[3:]))
                self._steps[path] = step, row
            self._insert("coarse", rows)
            self._high.clear()
            self._forget(at)
        self._step = step

    def _forget(self, at: float) -> None:
        keep = self._keep
        for table, seconds in (("fine", keep.fine_s), ("coarse", keep.coarse_s)):
            horizon = at - seconds
            # What has been idle for so long is written anew, or it would be forgotten.
            idle = [(self._id(path), at, *row) for path, (then, row) in self._last.items() if then < horizon]
            self._insert(table, idle)
            if table == "fine":
                self._last.update(
                    {path: (at, row) for path, (then, row) in self._last.items() if then < horizon}
                )
            self._db.execute(f"DELETE FROM {table} WHERE at < ?", (horizon,))
        self._db.execute("DELETE FROM events WHERE at < ?", (at - keep.coarse_s,))
        self._db.execute(
            "DELETE FROM events WHERE rowid <= (SELECT max(rowid) FROM events) - ?", (keep.events,)
        )
        for table in ("fine", "fine", "fine", "coarse", "events"):
            if self._used() <= keep.most_bytes:
                break
            query = f"SELECT at FROM {table} ORDER BY at LIMIT 1 OFFSET (SELECT count(*) / 2 FROM {table})"
            middle = self._db.execute(query).fetchone()
            if middle is not None:
                self._db.execute(f"DELETE FROM {table} WHERE at < ?", middle)

    def _used(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    # -- reading -----------------------------------------------------------------

    def _newest(self) -> float | None:
        """When something was added last."""
        row = self._db.execute("SELECT at FROM alive").fetchone()
        return None if row is None else row[0]

    def _rows(self, table: str, number: int, begin: float, end: float) -> list[Row]:
        query = f"SELECT at, {', '.join(_COLUMNS)} FROM {table} WHERE path = ? AND at"
        before = self._db.execute(f"{query} < ? ORDER BY at DESC LIMIT 1", (number, begin)).fetchall()
        inside = self._db.execute(f"{query} BETWEEN ? AND ? ORDER BY at", (number, begin, end)).fetchall()
        return before + inside


def _row(group: GroupView) -> Row:
    return (
        None if group.limit is None or group.limit > _MAX_INT else group.limit,
        group.current, group.current, group.peak, group.unreclaimable, group.pages_in, group.pages_out,
        group.faults, group.events, group.stall_s, group.some_s, group.full_s,
    )  # fmt: skip


def _at(point: Point, moment: float) -> Point:
    return Point(moment, *(getattr(point, name) for name in Point.__slots__[1:]))


def _thinned(points: list[Point], most: int) -> list[Point]:
    """At most so many: of neighbours the last one stays, with the highest use of them all."""
    if len(points) <= most or most < 1:
        return points
    size = -(-len(points) // most)
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = {name: getattr(part[-1], name) for name in Point.__slots__}
        kept.append(Point(**{**values, "high": max(point.high for point in part)}))
    return kept


def _open(path: Path, *, read_only: bool) -> sqlite3.Connection:
    try:
        if read_only:
            if not path.exists():
                raise BadInput(f"{path}: no history is kept there")
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != FORMAT:
                raise BadInput(f"{path}: history of format {version}; this program reads {FORMAT}")
            return db
        try:
            return _made(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            path.replace(path.with_suffix(".broken"))
            return _made(path)
    except (sqlite3.Error, OSError) as error:
        raise BadInput(f"{path}: history cannot be opened: {error}") from error


def _made(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, FORMAT):
            raise sqlite3.DatabaseError(f"format {version}")
        db.executescript(_SCHEMA)
        with db:  # what was kept before ends where it ended: nobody looked since
            db.execute(_END_ALL)
    except BaseException:
        db.close()
        raise
    return db
