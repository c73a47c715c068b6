"""A simulation that runs, for others to look at.

A run that lasts is worth looking at before it ends, from other processes, and none of
them may slow it. So it is no server: the folder of its result has, as long as there is no
result, a folder ``running`` with

============  ========================================================================
``lock``      held while the simulation lives, so that a killed one is not taken for alive
``now.json``  the newest snapshot, replaced as a whole
``history``   samples and events so far, bounded (`observe.store.Store`)
============  ========================================================================

Writing is paced by the wall clock, and never takes more than a twentieth of the time,
however many cgroups there are. With the result written, ``running`` is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput, Refused
from epcgroup.observe import codec
from epcgroup.observe.journal import Journal
from epcgroup.observe.store import Keep, Store
from epcgroup.serve.sources.simulated import SimSource, snapshot_of

if TYPE_CHECKING:
    from epcgroup.observe.model import Event, Snapshot
    from epcgroup.sim.virtual import Simulation

_EVERY_S, _SHARE = 0.5, 0.05  # how often at most; how much of the simulation's processor time
_KEEP = Keep(most_bytes=64 << 20)
_TRIES, _PAUSE_S = 20, 0.05  # for the lock, which who looks at it holds for a moment


def now_of(folder: Path) -> Path:
    """Where the newest snapshot of a simulation is, until it has a result."""
    return folder / "running" / "now.json"


def history_of(folder: Path) -> Path:
    """Where its history is, until it has a result."""
    return folder / "running" / "history"


def last_of(folder: Path) -> Snapshot:
    """The newest snapshot. Raises BadInput when there is none."""
    file = now_of(folder)
    try:
        return codec.snapshot_from_json(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: no snapshot of a simulation: {error}") from None


def runs(folder: Path) -> bool:
    """Whether a simulation that writes its result to ``folder`` is running."""
    try:
        fd = os.open(folder / "running" / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def published(folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[Simulation], None]]:
    """What a simulation is to call after every quantum; write its result before the block ends well.

    Raises BadInput when the folder cannot be used, Refused when another simulation writes there.
    """
    running = folder / "running"
    try:
        running.mkdir(parents=True, exist_ok=True)
        lock = os.open(running / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        _take(lock, folder)
        for left in running.iterdir():  # by one that was killed
            if left.name != "lock":
                left.unlink()
        writer = _Writer(folder, say)
        try:
            yield writer.see
        finally:
            writer.close()
        over = folder / f".over-{os.getpid()}"
        running.rename(over)  # at once: half of it would look like a simulation that was killed
        shutil.rmtree(over)
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == (folder / "running" / "lock").stat().st_ino:
                return
            break  # that of a simulation that has just ended
        time.sleep(_PAUSE_S)
    raise Refused(f"another simulation writes its result to {folder}; wait for it, or name another folder")


class _Writer:
    """Writes what is to be seen, now and then. A full disk ends that, not the simulation."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._now = now_of(folder)
        self._say = say
        self._journal = Journal()
        self._told = 0
        self._due = 0.0
        self._store = Store(history_of(folder), _KEEP)

    def see(self, simulation: Simulation) -> None:
        """After a quantum: mostly it is too early."""
        began = time.monotonic()
        if began < self._due:
            return
        used = time.thread_time()
        try:
            self._write(_snapshot(simulation))
        except (OSError, BadInput) as error:
            self._say(f"{error}; nobody can follow this simulation")
            self._due = float("inf")
            return
        self._due = max(began + _EVERY_S, time.monotonic() + (time.thread_time() - used) / _SHARE)

    def close(self) -> None:
        """Nothing more comes."""
        self._store.close()

    def _write(self, snapshot: Snapshot) -> None:
        self._journal.see(snapshot)
        events = self._journal.since(self._told)
        if events:
            self._told = events[-1].number
        self._store.add(snapshot, events)
        new = self._now.with_suffix(".new")
        new.write_text(json.dumps(codec.snapshot_to_json(snapshot)))
        new.replace(self._now)


def _snapshot(simulation: Simulation) -> Snapshot:
    scenario = simulation.scenario
    return snapshot_of(
        list(simulation.moment().iter_rows(named=True)), scenario.policy.name, scenario.epc_pages
    )


class RunningSource:
    """Follows a simulation; when it is over, stands at the end of its result."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal()
        self._folder = folder
        self._seen: tuple[int, int] | None = None  # inode and time of the file that was read last
        self._last: Snapshot | None = None
        self._over: SimSource | None = None

    @property
    def name(self) -> str:
        """The folder; whether the simulation is over."""
        return f"{self._folder}{' (over)' if self._over is not None else ''}"

    def snapshot(self) -> Snapshot:
        """The newest one. Raises Refused before the first, and when the simulation was killed."""
        if self._over is None and not runs(self._folder):
            self._over = self._result()
        if self._over is not None:
            return self._over.snapshot()
        with contextlib.suppress(OSError, BadInput):  # not there yet, or it ended just now
            state = now_of(self._folder).stat()
            if self._seen != (state.st_ino, state.st_mtime_ns):
                self._last = last_of(self._folder)
                self._seen = state.st_ino, state.st_mtime_ns
                self.journal.see(self._last)
        if self._last is None:
            raise Refused(f"the simulation in {self._folder} has not begun yet")
        return self._last

    def events(self, after: int = 0) -> Sequence[Event]:
        """What happened since event number ``after``, up to the last snapshot."""
        return self.journal.since(after)

    def set_max(self, path: str, limit: int | None) -> None:  # noqa: ARG002 - the protocol's
        """Refused: a run is what its scenario says."""
        raise Refused("a simulation takes its limits from its scenario; change that and run it again")

    def close(self) -> None:
        """Nothing is kept open."""

    def _result(self) -> SimSource:
        if (self._folder / "running").is_dir():
            raise killed(self._folder)
        from epcgroup.sim import require

        require()
        from epcgroup.sim.result import Result

        over = SimSource(Result.read(self._folder), str(self._folder))
        self.journal.see(over.snapshot())
        return over


def killed(folder: Path) -> Refused:
    """What to say of a simulation that left no result."""
    return Refused(
        f"the simulation in {folder} was ended before it had a result; "
        f"`epcgroup report {folder}` tells how far it came"
    )
