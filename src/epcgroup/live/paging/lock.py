"""`World.lock`: one operation on the machine at a time, no lane open, no page between two places.

Sealing a batch of pages takes longer than all that is decided about it, and needs
nothing of the machine: the pages are isolated and blocked, their versions and places
in the store are set aside. So a round of background work gives the lock away for
that time (`part`, `rejoin`), as the kernel holds no lock during EWB, and the pages are
written out and freed when it has the lock again.

Who may come in meanwhile? Only who asks for it (`beside`): a page service with a fault,
which has room or needs none to be had first. For the engine that is an operation between two steps of a
round: a page that the round holds is Busy, as it is for the kernel's handler, and is
waited for. Lanes may open as well; of the tables that they read, the entries of the
pages on their way out are empty until the round has written them out. Everything else
(ioctls, mappings, forks, the end of a process, releases, snapshots, other rounds) waits
until the pages are whole again, and needs to know nothing of all this. Rejected: to
let that in too. A mapping made while a page is between its last read and its
removal could still be written to; a file given back could be another one by then.
"""

from __future__ import annotations

import threading
from operator import itemgetter
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from epcgroup.epc import Caller
    from epcgroup.live.paging.express import Lane
    from epcgroup.live.paging.mm import EnclaveVma
    from epcgroup.live.paging.stall import Stall


class MachineLock:
    """The lock; a context manager. It is not taken twice by the same thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whole = threading.Condition(self._lock)
        self._open: list[Lane] = []
        #: Pages are being sealed, by somebody who has given the lock away meanwhile. Hold the lock.
        self.sealing = False
        #: The holder does background work: it may give the lock away while it seals.
        self.background = False
        #: The same lock, also to be had while pages are being sealed.
        self.beside = Beside(self)

    def __enter__(self) -> Self:
        self._lock.acquire()
        while self.sealing:
            self._whole.wait()
        self._close_or_release()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def enter_beside(self) -> None:
        """As ``with``, and do not wait for pages that are being sealed."""
        self._lock.acquire()
        self._close_or_release()

    def part(self) -> bool:
        """Give the lock away, to faults alone, until `rejoin`; False where the holder may not."""
        if not self.background:
            return False
        self.sealing = True
        self._lock.release()
        return True

    def rejoin(self) -> None:
        """Have the lock again; the pages are whole."""
        self._lock.acquire()
        self.sealing = False
        self._whole.notify_all()
        self._close_lanes()

    def open(self, lane: Lane, vma: EnclaveVma, caller: Caller, stall: Stall) -> None:
        """Open ``lane`` beside those that are open, if it would have something to do."""
        with self._lock:
            granted = sum(other.granted for other in self._open)
            if lane not in self._open and lane.grant(vma, caller, stall, granted):
                self._open.append(lane)

    def _close_or_release(self) -> None:
        if self._open:
            try:
                self._close_lanes()
            except BaseException:
                self._lock.release()
                raise

    def _close_lanes(self) -> None:
        lanes, self._open = self._open, []
        if len(lanes) == 1:
            lanes[0].book(*lanes[0].close())
            return
        notes = [(end, lane, *note) for lane in lanes for *note, end in zip(*lane.close(), strict=True)]
        for end, lane, index, thread, start in sorted(notes, key=itemgetter(0)):
            lane.book([index], [thread], [start], [end])


class Beside:
    """A MachineLock for faults: also to be had while pages are being sealed; tells whether they are."""

    def __init__(self, lock: MachineLock) -> None:
        self._lock = lock

    def __enter__(self) -> bool:
        self._lock.enter_beside()
        return self._lock.sealing

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()


__all__ = ["Beside", "MachineLock"]
