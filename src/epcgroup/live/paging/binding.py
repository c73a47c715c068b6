"""A thread that pages heavily shares a processor with its page service, for as long as it does.

A fault is two wake-ups. On one processor each is a task switch; to another one it is an
interrupt, and where that processor is a halted virtual one, 35 to 50 µs pass before it
runs. The scheduler does not know that the two never run at the same time: it puts whoever
wakes up on an idle processor. Binding only the service (whose affinity is ours) does not
help, since then it is the thread that is moved away, at every second fault. So both are
bound to the processor on which the thread is found: the service, and the thread.

The program must not notice, and must not lose by it:

* One thread at a time of an address space, one such pair on a processor, and only while the
  faults follow one another. As soon as they do not (another thread pages, the program
  computes, somebody else needs the processor) both have their own masks back. `look` does
  so for who pages no more.
* Bound for `_TERM` at most: then a few faults are free, for the scheduler to move the thread.
* What is born of a bound thread has inherited the mask, and gets the real one before it has
  run (`born`); so does the new image of one (`execed`).
* A process that owns enclaves and asks for an affinity, or sets one, is stopped there and
  has all masks back before the call is made (`asked`). What is not ours is left alone: a mask
  that has changed since is not given back. /proc/PID/status shows the truth to whoever looks.
* A supervisor that dies takes the owners of enclaves with it, as ever.

Rejected, both measured: a service of policy SCHED_IDLE, whose processor counts as idle, so
that the thread stays by itself (beside other work it got no processor for 0.7 s, and an
ordinary user's thread cannot leave that policy again); keeping the other processor awake.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_ENOUGH = 8  # times in a row that work was done for the same thread
_REFUSED = 64  # times more before that is tried again
_LATE = 0.01  # s; between two of them
_TERM = 0.1  # s
_IDLE = 0.02  # s without a fault
_QUARREL = 1.0  # s for which a thread is left alone that has asked for affinities
_PROCESSOR = 36  # field of /proc/PID/stat, counted from the state
_EVERYWHERE = frozenset(range(1024))


class Binding:
    """Two threads and a processor. Numbers stay known when it is over, for what was born meanwhile."""

    __slots__ = ("last", "ours", "own", "processor", "real", "since", "tid", "valid")

    def __init__(self, tid: int, real: set[int], own: set[int], processor: int, now: float) -> None:
        self.tid, self.real = tid, real  # the program's thread, and its mask
        self.ours, self.own = threading.get_native_id(), own  # the same of the service
        self.processor = processor
        self.since = self.last = now
        self.valid = True


class Bindings:
    """Those of one machine. Called by its page services and its tracer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[int, Binding] = {}  # by thread of a program; the last one of each
        self._asked: dict[int, float] = {}  # who asked for affinities, and when

    def bind(self, tid: int, now: float) -> Binding | None:
        """Bind thread ``tid`` and the calling one to where ``tid`` is, if that can be."""
        with self._lock, contextlib.suppress(OSError):
            if now - self._asked.get(tid, -_QUARREL) < _QUARREL:
                return None
            own = os.sched_getaffinity(0)
            if len(own) == 1:
                return None
            real = os.sched_getaffinity(tid)
            processor = next(iter(real)) if len(real) == 1 else _processor_of(tid)
            taken = {other.processor for other in self._known.values() if other.valid}
            if processor not in own or (processor in taken and len(real) > 1):
                return None
            os.sched_setaffinity(0, {processor})
            binding = Binding(tid, real, own, processor, now)
            if len(real) > 1:
                try:
                    os.sched_setaffinity(tid, {processor})
                except OSError:  # of another user
                    os.sched_setaffinity(0, own)
                    raise
            self._known[tid] = binding
            return binding
        return None

    def end(self, binding: Binding) -> None:
        """Give both threads their masks back; harmless when done before."""
        with self._lock:
            self._end(binding)

    def bound(self, tid: int) -> bool:
        """Whether the mask of ``tid`` is ours, and not its own."""
        binding = self._known.get(tid)
        return binding is not None and binding.valid and len(binding.real) > 1

    def look(self, now: float) -> None:
        """Let those go who page no more."""
        for binding in list(self._known.values()):
            if binding.valid and now - binding.last > _IDLE:
                self.end(binding)

    def asked(self, tids: set[int]) -> None:
        """These threads are about to be asked for their affinity, or given one: they have their own."""
        now = time.perf_counter()
        with self._lock:
            for tid in tids:
                self._asked[tid] = now
                if tid in self._known:
                    self._end(self._known[tid])

    def born(self, parent: int, tid: int) -> None:
        """Thread or process ``tid``, which has not run yet, was made by ``parent``."""
        with self._lock, contextlib.suppress(OSError):
            binding = self._known.get(parent)
            if binding is None:
                return
            bound = {binding.processor}
            # One that was bound when it made the child, and is not any more, has more than one processor now.
            if binding.valid or os.sched_getaffinity(parent) != bound:
                _give_back(tid, bound, binding.real)

    def execed(self, former: int, tid: int) -> None:
        """Thread ``former`` has a new image, and is ``tid`` from now on."""
        if former != tid:
            self.gone(tid)
        with self._lock:
            binding = self._known.pop(former, None)
            if binding is not None:
                binding.tid = tid
                self._end(binding)

    def gone(self, tid: int) -> None:
        """The thread has ended."""
        with self._lock:
            binding = self._known.pop(tid, None)
            self._asked.pop(tid, None)
            if binding is not None:
                self._end(binding, alive=False)

    def _end(self, binding: Binding, alive: bool = True) -> None:
        if not binding.valid:
            return
        binding.valid = False
        bound = {binding.processor}
        with contextlib.suppress(OSError):  # the service has ended,
            _give_back(binding.ours, bound, binding.own)
        if alive:  # (else the number may be somebody else's)
            with contextlib.suppress(OSError):  # or the thread just now
                _give_back(binding.tid, bound, binding.real)


class Binder:
    """What one page service knows of the thread it serves."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._binding: Binding | None = None
        self._tid = 0
        self._times = 0
        self._last = 0.0

    def served(self, tid: int) -> None:
        """A fault of thread ``tid`` of the address space was served, or as many as a lane was open for."""
        now = time.perf_counter()
        late, self._last = now - self._last > _LATE, now
        binding = self._binding
        if binding is not None:
            binding.last = now
            if not (late or tid != binding.tid or not binding.valid):
                if now - binding.since < _TERM:
                    return
                self._times = _ENOUGH - 1  # bound again, where it then is, after the next faults
            else:
                self._times = 0
            self.leave()
            return
        self._times = 1 if late or tid != self._tid else self._times + 1
        self._tid = tid
        if self._times >= _ENOUGH:
            self._binding = self._bindings.bind(tid, now)
            if self._binding is None:
                self._times = -_REFUSED

    def leave(self) -> None:
        """Serve no more, or for somebody else."""
        binding, self._binding = self._binding, None
        if binding is not None:
            self._bindings.end(binding)


def _give_back(tid: int, bound: set[int], real: set[int]) -> None:
    """Give ``tid`` the mask ``real``, if it has no other one than ``bound``."""
    if real == bound or os.sched_getaffinity(tid) != bound:
        return
    # A thread that could run wherever its cpuset lets it shall also run there when that grows.
    os.sched_setaffinity(tid, _EVERYWHERE)
    if os.sched_getaffinity(tid) != real:
        os.sched_setaffinity(tid, real)


def _processor_of(tid: int) -> int:
    return int(Path(f"/proc/{tid}/stat").read_bytes().rpartition(b")")[2].split()[_PROCESSOR])


__all__ = ["Binder", "Binding", "Bindings"]
