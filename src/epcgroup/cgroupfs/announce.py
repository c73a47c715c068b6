"""Wakes who polls or watches a file, at most once in about 10 ms a file (spec 1.6).

The machine says "changed" thousands of times a second under thrashing, with its
lock held and on the threads that serve page faults; so saying it only leaves a
note. One thread here applies the rate limit and does the waking:

* poll: libfuse tells the kernel that the file is to be asked again.
* inotify: FUSE has no call that raises IN_MODIFY, but a local write through the
  mount does. So the thread writes a token through its own open file, which the
  file system recognises and ignores. The files have mode 0444; to this thread
  the file system shows them writable, for as long as the opening takes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from epcgroup.misc import RateLimiter

_OPEN_FILES = 64
_LIMITERS = 4096
_IDLE = 0.5  # s without a change, after which no file is kept open
_TOKEN = b"\n"
Key = tuple[str, str]


class Announcer(threading.Thread):
    """Call `changed` from anywhere; `wake` is called here, and a token is written."""

    def __init__(self, wake: Callable[[str, str], None], open_file: Callable[[str, str], int] | None) -> None:
        """``open_file(path, file)``: a descriptor to write tokens to; None to write none."""
        super().__init__(name="announcer", daemon=True)
        self._wake = wake
        self._open = open_file
        self._noted: set[Key] = set()
        self._removed: list[str] = []
        self._note = threading.Event()
        self._ending = False
        self._limiters: dict[Key, RateLimiter] = {}
        self._deferred: set[Key] = set()
        self._fds: OrderedDict[Key, int] = OrderedDict()

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

    def run(self) -> None:
        """Wait for notes, and for the end of windows in which something was deferred."""
        while not self._ending:
            due = min((self._limiters[key].due or 0.0 for key in self._deferred), default=None)
            rest = _IDLE if self._fds else None
            noted = self._note.wait(rest if due is None else max(0.0, due - time.monotonic()))
            self._note.clear()
            self._look(time.monotonic())
            if not noted and due is None:
                self._close()  # open files would keep others from unmounting the tree
        self._close()

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _look(self, now: float) -> None:
        while self._removed:
            path = self._removed.pop()
            self._wake(path, "")
            for key in [key for key in self._fds if key[0] == path]:
                os.close(self._fds.pop(key))
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
        if self._open is not None:
            with contextlib.suppress(OSError):  # removed meanwhile
                os.write(self._fd(self._open, key), _TOKEN)

    def _fd(self, opened: Callable[[str, str], int], key: Key) -> int:
        fd = self._fds.get(key)
        if fd is None:
            fd = opened(*key)
            self._fds[key] = fd
            if len(self._fds) > _OPEN_FILES:
                os.close(self._fds.popitem(last=False)[1])
        else:
            self._fds.move_to_end(key)
        return fd
