"""Mount points of ours: found in mountinfo, made, taken away, also when their server died."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from epcgroup.errors import MissingCapability

TYPE = "fuse.epcgroup"
_MNT_DETACH = 2
_PATIENCE = 2.0  # s
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo: where, of which type, and which directory of the file system."""

    point: str
    type: str
    root: str = "/"


def mounts(text: str | None = None) -> list[Mount]:
    """All mounts of this mount namespace, oldest first.

    >>> mounts("36 35 0:42 / /mnt/a\\\\040b rw - fuse.epcgroup epcgroup rw\\n")
    [Mount(point='/mnt/a b', type='fuse.epcgroup', root='/')]
    """
    if text is None:
        text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    found = []
    for line in text.split("\n"):  # a name may have any other line end
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) > 4 and kind:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.append(Mount(point, kind[0], fields[3]))
    return found


def stale() -> list[Mount]:
    """Mounts of ours whose server is gone."""
    return [mount for mount in mounts() if mount.type == TYPE and is_dead(mount.point)]


def is_dead(point: str) -> bool:
    """Whether a FUSE mount has lost its server."""
    return _ask(point) in _DEAD


def answers(point: str) -> bool:
    """Whether somebody serves a FUSE mount, and is not stopped or stuck."""
    return _ask(point) not in (None, *_DEAD)


def _ask(point: str) -> int | None:
    """errno of stat(2), 0 when it works; None: no answer in time.

    Who asks waits for as long as a server is stopped, so a thread does; the end of
    the process ends its wait.
    """
    said: list[int] = []

    def ask() -> None:
        try:
            os.stat(point)
        except OSError as error:
            said.append(error.errno or 0)
        else:
            said.append(0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return said[0] if said else None


def unmount(point: str, *, lazy: bool = False) -> bool:
    """Take a mount away; False when it is busy (``lazy`` never is) or not ours to take."""
    if os.geteuid() == 0:
        flags = _MNT_DETACH if lazy else 0
        return bool(_libc.umount2(os.fsencode(point), flags) == 0)
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is None:
        raise MissingCapability("fusermount3 is missing; on Debian: apt-get install fuse3")
    words = [tool, "-uz" if lazy else "-u", point]
    return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0
