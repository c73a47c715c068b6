"""A real cgroup2 below a directory: its files and directories as they are, by the kernel.

Paths are those of the mirrored tree: ``/`` is the directory, ``/a`` a cgroup in it.
What the kernel refuses is its OSError.

The directory is kept open and everything is reached through its descriptor: the tree
that mirrors it may well be mounted over it, and would wait for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from epcgroup.cgroupfs.access import Attributes, Credentials
from epcgroup.errors import BadInput

CGROUP2_MAGIC = 0x63677270
_IN_MODIFY, _IN_IGNORED, _IN_CLOEXEC = 0x2, 0x8000, 0o2000000
_MARK = "user.epcgroup"
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class RealCgroups:
    """The cgroups below ``top``."""

    def __init__(self, top: Path, name: str) -> None:
        """``name``: what /proc/PID/cgroup calls ``top``.

        Raises BadInput where ``top`` is no directory of a cgroup2 that we may write.
        """
        self.top = top
        self._name = name.rstrip("/")
        self._base = f"/proc/self/fd/{os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}"
        buffer = ctypes.create_string_buffer(256)
        if (
            _libc.statfs(f"{self._base}/.".encode(), buffer)
            or struct.unpack_from("q", buffer)[0] != CGROUP2_MAGIC
        ):
            raise BadInput(f"--mirror {top}: no directory of a cgroup2; mount one: mount -t cgroup2 none DIR")
        if not os.access(self.path("/", "cgroup.procs"), os.W_OK):
            raise BadInput(f"--mirror {top}: its cgroup.procs is not ours to write; name a delegated cgroup")

    def path(self, cgroup: str, name: str = "") -> str:
        """Where a cgroup, or a file of it, really is."""
        return f"{self._base}{cgroup.rstrip('/')}/{name or '.'}"

    # -- files -----------------------------------------------------------------

    def files(self, cgroup: str) -> list[str]:
        """Names of a cgroup's files."""
        with os.scandir(self.path(cgroup)) as entries:
            return [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]

    def children(self, cgroup: str) -> list[str]:
        """Names of the cgroups below."""
        with os.scandir(self.path(cgroup)) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def is_file(self, cgroup: str, name: str) -> bool:
        """Whether a cgroup has this file."""
        try:
            return stat.S_ISREG(os.lstat(self.path(cgroup, name)).st_mode)
        except OSError:
            return False

    def is_cgroup(self, cgroup: str) -> bool:
        """Whether there is this cgroup."""
        try:
            return stat.S_ISDIR(os.lstat(self.path(cgroup)).st_mode)
        except OSError:
            return False

    def read(self, cgroup: str, name: str) -> bytes:
        """Contents of a file."""
        return Path(self.path(cgroup, name)).read_bytes()

    def write(self, cgroup: str, name: str, data: bytes) -> int:
        """One write to a file; the bytes taken."""
        fd = os.open(self.path(cgroup, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    # -- directories -----------------------------------------------------------

    def mkdir(self, cgroup: str, owner: Credentials) -> bool:
        """Make a cgroup that belongs to ``owner``, its files too; False when it is there."""
        try:
            os.mkdir(self.path(cgroup).removesuffix("/."))  # noqa: PTH102 - names are any bytes
        except FileExistsError:
            return False
        self.mark(cgroup)
        if (owner.uid, owner.gid) != (os.geteuid(), os.getegid()):
            for name in ("", *self.files(cgroup)):
                os.chown(self.path(cgroup, name), owner.uid, owner.gid)
        return True

    def rmdir(self, cgroup: str) -> None:
        """Remove an empty cgroup; the top one by its name, when nothing is mounted over it any more."""
        os.rmdir(self.path(cgroup).removesuffix("/.") if cgroup != "/" else self.top)  # noqa: PTH106

    def mark(self, cgroup: str) -> None:
        """Remember, there and over any crash, that we made it."""
        os.setxattr(self.path(cgroup), _MARK, b"1")

    def is_marked(self, cgroup: str) -> bool:
        """Whether we made it."""
        try:
            return os.getxattr(self.path(cgroup), _MARK) == b"1"
        except OSError:
            return False

    def attributes(self, cgroup: str, name: str = "") -> Attributes:
        """Owner and mode of a file, or of the directory."""
        found = os.lstat(self.path(cgroup, name))
        return Attributes(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))

    def set_attributes(self, cgroup: str, name: str, *, uid: int, gid: int, mode: int) -> None:
        """chown and chmod; -1 leaves as it is."""
        if (uid, gid) != (-1, -1):
            os.chown(self.path(cgroup, name), uid, gid)
        if mode != -1:
            Path(self.path(cgroup, name)).chmod(mode & 0o7777)

    def where(self, pid: int) -> str | None:
        """The cgroup of a process, if it is one of these."""
        path = kernels_path(pid)
        if path is None:
            return None
        path = path.removesuffix(" (deleted)")
        if path == self._name or path.startswith(f"{self._name}/"):
            return path[len(self._name) :] or "/"
        return None


def kernels_path(pid: int) -> str | None:
    """The cgroup v2 path of a process as the kernel has it; None where it has none."""
    with contextlib.suppress(OSError):
        for line in os.fsdecode(Path(f"/proc/{pid}/cgroup").read_bytes()).split("\n"):
            if line.startswith("0::/"):
                return line[3:]
    return None


class Watcher(threading.Thread):
    """Tells when the kernel says that an event file changed (cgroup.events, memory.events …)."""

    def __init__(self, real: RealCgroups, announce: Callable[[str, str], None]) -> None:
        super().__init__(name="mirror", daemon=True)
        self._real = real
        self._announce = announce
        self._fd: int = _libc.inotify_init1(_IN_CLOEXEC)
        self._watches: dict[int, tuple[str, str]] = {}

    def watch(self, cgroup: str) -> None:
        """Watch the event files of a cgroup until it is removed."""
        with contextlib.suppress(OSError):
            for name in self._real.files(cgroup):
                if name.endswith((".events", ".events.local")):
                    path = os.fsencode(self._real.path(cgroup, name))
                    watch = _libc.inotify_add_watch(self._fd, path, _IN_MODIFY)
                    if watch >= 0:
                        self._watches[watch] = (cgroup, name)

    def run(self) -> None:
        """Pass on what the kernel says."""
        while True:
            data, at = os.read(self._fd, 65536), 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                found = self._watches.pop(watch, None) if mask & _IN_IGNORED else self._watches.get(watch)
                if found is not None and mask & _IN_MODIFY:
                    self._announce(*found)
