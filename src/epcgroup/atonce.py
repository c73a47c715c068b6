"""A file that appears at once and whole, or not at all, whatever kills its writer.

It has no name while it is written (O_TMPFILE), so the kernel takes it back when its
writer dies. Where a file system cannot do that (NFS, some overlays), a temporary
name beside the target is used, which a kill -9 would leave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import IO

from epcgroup.errors import BadInput


class AtOnce:
    """``file`` is open for writing; ``appear`` puts it at ``path``, ``close`` without that drops it."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput where it cannot be: no directory, no right, or a device or pipe is there."""
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadInput(f"{path}: it is no file, and is not replaced by one; name another")
        self._path = path = path.resolve() if path.is_symlink() else path
        self._name = ""  # while it is written, where it needs one
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            try:
                handle = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except OSError as refused:
                if not path.parent.is_dir() or isinstance(refused, PermissionError):
                    raise
                handle, self._name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(handle, 0o666 & ~umask)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
        self.file: IO[bytes] = os.fdopen(handle, "w+b")

    def appear(self) -> None:
        """Give the file its name; what was there before is replaced. Raises OSError."""
        self.file.flush()
        if not self._name:
            # A link cannot replace a file, a rename can: so through a free name.
            self._name = tempfile.mktemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            # With a directory's descriptor Python follows the link of /proc; the path is absolute anyhow.
            handle = self.file.fileno()
            os.link(f"/proc/self/fd/{handle}", self._name, src_dir_fd=handle, follow_symlinks=True)
        Path(self._name).replace(self._path)
        self._name = ""

    def close(self) -> None:
        """The end, with or without ``appear``."""
        with contextlib.suppress(OSError):  # what is still in its buffer may find no room
            self.file.close()
        if self._name:
            with contextlib.suppress(OSError):
                Path(self._name).unlink()
            self._name = ""


def check(path: Path) -> None:
    """Raises BadInput, naming it, if a file cannot be written: before what it is to hold takes its time."""
    above = path.absolute().parent
    if path.is_dir():
        raise BadInput(f"{path}: it is a directory; name a file")
    if not above.is_dir():
        raise BadInput(f"{path}: there is no such directory")
    if not os.access(path if path.exists() else above, os.W_OK):
        raise BadInput(f"{path}: it may not be written")


def write(path: Path, content: bytes) -> None:
    """Write a file at once; a device or a pipe as it is. Raises BadInput naming it."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
            return
        place = AtOnce(path)
        try:
            place.file.write(content)
            place.appear()
        finally:
            place.close()
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
