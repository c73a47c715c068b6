"""On which processor the page service runs.

A fault costs 11 µs when the service wakes up on the faulting thread's own
processor and 100 µs when it wakes up a halted virtual one elsewhere. Where the
faulting thread is bound to one processor, the service binds itself to the same
one. A thread that may roam is left alone: binding only ourselves would make the
scheduler move *it* away at every wake-up, and its affinity is not ours to change.
"""

from __future__ import annotations

import contextlib
import os

_EVERY = 512  # faults between two looks at the thread's affinity


class Follower:
    """Keeps the calling thread on the processor of the threads it serves."""

    def __init__(self) -> None:
        self._faults = 0
        self._bound: set[int] | None = None

    def follow(self, tid: int) -> None:
        """A fault of thread ``tid`` was served."""
        self._faults += 1
        if self._faults % _EVERY != 1:
            return
        with contextlib.suppress(OSError):
            allowed = os.sched_getaffinity(tid)
            if len(allowed) == 1 and allowed != self._bound:
                os.sched_setaffinity(0, allowed)
                self._bound = allowed
