"""On which processor the service of ENCLU leaves runs.

It wakes up who waits for it, and is woken, at once on that thread's own processor
(SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP); an older kernel wakes up a halted one elsewhere. Where the
thread that asks is bound to one processor, the service binds itself to the same one.
The page service does more (`binding`).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epcgroup.live.paging.binding import Bindings

_EVERY = 512  # requests between two looks at the thread's affinity


class Follower:
    """Keeps the calling thread on the processor of the threads it serves."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._requests = 0
        self._bound: set[int] | None = None

    def follow(self, tid: int) -> None:
        """A request of thread ``tid`` was served."""
        self._requests += 1
        if self._requests % _EVERY != 1:
            return
        with contextlib.suppress(OSError):
            allowed = os.sched_getaffinity(tid)
            if len(allowed) == 1 and not self._bindings.bound(tid) and allowed != self._bound:
                os.sched_setaffinity(0, allowed)
                self._bound = allowed
