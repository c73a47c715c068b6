"""The directory that a served tree is mounted on: made where there is none, and then also taken away."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from epcgroup.errors import BadInput, Refused
from epcgroup.host import mounts

_CGROUPS = Path("/sys/fs/cgroup")


def _is_cgroups(path: Path) -> bool:
    """Whether the kernel's own cgroups are there, over which a tree may be laid."""
    return path.is_relative_to(_CGROUPS) or (path / "cgroup.controllers").exists()


def real(path: Path) -> Path:
    """Where a path really is, as mount tables have it. A mount is not asked: it may be dead or stuck."""
    near = path.absolute().parent.resolve() / path.name
    return near if any(mount.point == str(near) for mount in mounts.mounts()) else near.resolve()


class MountPoint:
    """An empty directory at ``path``, or one of the kernel's cgroups; freed of a mount whose server is gone.

    ``ours``: nobody else has a use for it, so it goes at the end even if it was there before (a
    killed server leaves it). Raises Refused where another server is, BadInput where none can be made.
    """

    def __init__(self, path: Path, *, ours: bool) -> None:
        self._path = str(path)
        self._clear()
        try:
            ways = (path, *path.parents)
            self._made = [part for part in ways if not part.exists() or (ours and part == path)]
            path.mkdir(parents=True, exist_ok=True)
            hidden = None if _is_cgroups(path) else next(path.iterdir(), None)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; name another --mount") from error
        if hidden is not None:
            raise BadInput(f"{path} is not empty: {hidden.name} would be hidden; name another --mount")

    def unmount(self) -> None:
        """Whoever still uses the tree keeps it until they end."""
        if not mounts.unmount(self._path):
            mounts.unmount(self._path, lazy=True)

    def remove(self) -> None:
        """Take away what was made, as far as nothing was put there."""
        with contextlib.suppress(OSError):
            for directory in self._made:
                directory.rmdir()

    def _clear(self) -> None:
        at = self._path
        for mount in mounts.mounts():
            if mount.point == at and mount.type == mounts.TYPE:
                if not mounts.is_dead(at):
                    raise Refused(f"{at} is served already; stop that server, or name another --mount")
                print(f"epcgroup: taking away the mount that a dead server left at {at}", file=sys.stderr)
                mounts.unmount(at, lazy=True)
