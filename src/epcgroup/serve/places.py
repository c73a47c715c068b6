"""Where a server keeps its things: one directory, its owner's alone.

::

    DIR/lock      held (flock) while the server lives; contains its pid
    DIR/control   the control socket, mode 0600
    DIR/history   samples and events (SQLite, observe.store)
    DIR/state     the tree and its limits, as JSON
    DIR/cgroup    the mount point, unless another one is named
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from epcgroup.errors import BadInput, Refused


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one server."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Held while the server lives."""
        return self.directory / "lock"

    @property
    def socket(self) -> Path:
        """Where clients connect."""
        return self.directory / "control"

    @property
    def state(self) -> Path:
        """What survives a restart."""
        return self.directory / "state"

    @property
    def history(self) -> Path:
        """Samples and events of this server and those before it."""
        return self.directory / "history"

    @property
    def mount(self) -> Path:
        """The default mount point."""
        return self.directory / "cgroup"


def default() -> Places:
    """$EPCGROUP_DIR, else /run/epcgroup for root and $XDG_RUNTIME_DIR/epcgroup for others."""
    named = os.environ.get("EPCGROUP_DIR")
    if named:
        return Places(Path(named))
    if os.geteuid() == 0:
        return Places(Path("/run/epcgroup"))
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise BadInput("XDG_RUNTIME_DIR is not set; name a directory with --dir or EPCGROUP_DIR")
    return Places(Path(runtime, "epcgroup"))


def take(places: Places) -> int:
    """Make the directory and take its lock; the descriptor that holds it.

    Raises Refused (EBUSY) while another server holds it, BadInput when the
    directory cannot be used.
    """
    try:
        places.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = places.directory.stat().st_uid
        if owner != os.geteuid():
            raise BadInput(f"{places.directory} belongs to user {owner}; name another with --dir")
        mode = stat.S_IMODE(places.directory.stat().st_mode)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            raise BadInput(f"{places.directory} may be written by others; chmod go-w, or another --dir")
        if os.geteuid() == 0:  # others reach the mount through it
            places.directory.chmod(mode | 0o711)
        fd = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"{places.directory}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
        os.close(fd)
        raise Refused(
            f"a server (pid {pid}) already runs in {places.directory}; stop it, or name another with --dir",
            errno.EBUSY,
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        raise BadInput(f"{places.lock}: {error.strerror}") from error
    return fd
