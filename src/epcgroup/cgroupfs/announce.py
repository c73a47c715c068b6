"""Wakes who polls or watches a file, at most once in about 10 ms a file (spec 1.6).

The machine says "changed" thousands of times a second under thrashing, with its
lock held and on the threads that serve page faults; so saying it only leaves a
note. One thread here applies the rate limit and does the waking:

* poll: libfuse tells the kernel that the file is to be asked again.
* inotify: FUSE has no call that raises IN_MODIFY, but a local write through the
  mount does. So a token is written through an open file (`tokens`), which the
  file system recognises and ignores. The files have mode 0444; to the writer
  the file system shows them writable, for as long as the opening takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from epcgroup.cgroupfs.tokens import TokenWriter
from epcgroup.misc import RateLimiter

_LIMITERS = 4096
_IDLE = 0.5  # s without a change, after which no file is kept open
Key = tuple[str, str]


class Announcer(threading.Thread):
    """Call `changed` from anywhere; `wake` is called here, and a token is written."""

    def __init__(self, wake: Callable[[str, str], None], tokens: TokenWriter | None) -> None:
        """``tokens``: None to write none."""
        super().__init__(name="announcer", daemon=True)
        self._wake = wake
        self._tokens = tokens
        self._noted: set[Key] = set()
        self._removed: list[str] = []
        self._note = threading.Event()
        self._ending = False
        self._limiters: dict[Key, RateLimiter] = {}
        self._deferred: set[Key] = set()
        self._rested = True  # no file is open

    def changed(self, path: str, file: str) -> None:
        """A file of the cgroup at ``path`` changed; returns at once."""
        self._noted.add((path, file))
        self._note.set()

    def removed(self, path: str) -> None:
        """The cgroup is gone: let go of its files."""
        self._removed.append(path)
        self._note.set()

    def end(self) -> None:
        """Let go of every file and end; returns when it is so."""
        self._ending = True
        self._note.set()
        self.join(5)
        if self._tokens is not None:
            self._tokens.end()

    def run(self) -> None:
        """Wait for notes, and for the end of windows in which something was deferred."""
        while not self._ending:
            due = min((self._limiters[key].due or 0.0 for key in self._deferred), default=None)
            rest = None if self._rested else _IDLE
            noted = self._note.wait(rest if due is None else max(0.0, due - time.monotonic()))
            self._note.clear()
            self._look(time.monotonic())
            if not noted and due is None:
                self._rest()  # open files would keep others from unmounting the tree

    def _rest(self) -> None:
        if self._tokens is not None and not self._rested:
            self._tokens.rest()
        self._rested = True

    def _look(self, now: float) -> None:
        while self._removed:
            path = self._removed.pop()
            self._wake(path, "")
            if self._tokens is not None:
                self._tokens.forget(path)
        while self._noted:
            key = self._noted.pop()
            limiter = self._limiters.setdefault(key, RateLimiter())
            if limiter.changed(now):
                self._announce(key)
            else:
                self._deferred.add(key)
        for key in list(self._deferred):
            if self._limiters[key].expire(now):
                self._deferred.discard(key)
                self._announce(key)
        if len(self._limiters) > _LIMITERS:
            self._limiters = {key: self._limiters[key] for key in self._deferred}

    def _announce(self, key: Key) -> None:
        self._wake(*key)
        if self._tokens is not None:
            self._tokens.write(*key)
            self._rested = False
