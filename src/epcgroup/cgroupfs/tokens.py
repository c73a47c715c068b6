"""The process that writes tokens through the mount, so that inotify wakes (see `announce`).

It cannot be a thread of the server. A thread that waits for an answer of its own
file system when the process is killed keeps the process's descriptors open, among
them the one by which the kernel would notice that nobody answers any more: it
waits for ever, and so does everybody who looks at the mount. A process of its own
gets ENOTCONN, reads the end of its pipe, and ends.

It is forked before there is a mount, so that it never holds that descriptor.
Messages are lines: ``t PATH NUL FILE`` write a token, ``f PATH`` forget a cgroup,
``r`` close all files, since open ones would keep others from unmounting the tree.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections import OrderedDict
from typing import NoReturn

_OPEN_FILES = 64
_TOKEN = b"\n"
_LONGEST_FD = 1 << 20
_AT_FDCWD, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS = -100, 0x2000, 0x7FF
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class TokenWriter:
    """Our end. ``pid``: whose writes are tokens."""

    def __init__(self, root: str) -> None:
        """``root``: the mount point, not mounted yet."""
        read, self._pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _work(root, read)
        os.close(read)

    def write(self, path: str, file: str) -> None:
        """Write a token to a file of the cgroup at ``path``, soon."""
        self._send(b"t" + os.fsencode(path) + b"\0" + os.fsencode(file))

    def forget(self, path: str) -> None:
        """The cgroup is gone."""
        self._send(b"f" + os.fsencode(path))

    def rest(self) -> None:
        """Keep no file open."""
        self._send(b"r")

    def end(self) -> None:
        """Close all files and end; returns when it is so."""
        os.close(self._pipe)
        until = time.monotonic() + 5
        with contextlib.suppress(ChildProcessError):  # somebody waited for it already
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
                time.sleep(0.002)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, message + b"\n")


def _work(root: str, pipe: int) -> NoReturn:
    """The child's life."""
    try:
        for number in _IGNORED:  # what a terminal sends to all in front of it
            signal.signal(number, signal.SIG_IGN)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, _LONGEST_FD)
        files = _Files(os.fsencode(root))
        with open(pipe, "rb") as messages:
            for line in messages:
                path, _, file = line[1:-1].partition(b"\0")
                with contextlib.suppress(OSError):  # removed meanwhile, or nobody serves
                    files.obey(line[:1], path, file)
    finally:
        os._exit(0)


class _Files:
    """Open files of the child."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._fds: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()
        self._libc = ctypes.CDLL(None)
        self._statx = ctypes.create_string_buffer(256)

    def obey(self, order: bytes, path: bytes, file: bytes) -> None:
        """One message."""
        if order == b"t":
            os.write(self._open((path, file)), _TOKEN)
            return
        for key in [key for key in self._fds if order == b"r" or key[0] == path]:
            os.close(self._fds.pop(key))

    def _open(self, key: tuple[bytes, bytes]) -> int:
        fd = self._fds.get(key)
        if fd is not None:
            self._fds.move_to_end(key)
            return fd
        name = b"/".join((self._root + key[0].rstrip(b"/"), key[1]))
        fd = self._fds[key] = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
        # Others are to see the true mode again (see `fuse`).
        self._libc.statx(_AT_FDCWD, name, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, self._statx)
        if len(self._fds) > _OPEN_FILES:
            os.close(self._fds.popitem(last=False)[1])
        return fd
