"""Placeholders: files where the SGX devices of a system that has none would be.

Each is a small file that says what it is, made for the life of a server that watches
who opens it (`live.openers`). A lock on the directory tells whether such a server
lives. So one that a killed server left is known for what it is, and a real device is
never taken for one. Rejected: device nodes of some harmless driver, which would pass
for S_ISCHR; opens of special files can no longer be held (Linux 6.14).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epcgroup.errors import MissingCapability, Refused

DEVICES = Path("/dev")
NAMES = ("sgx_enclave", "sgx_provision", "sgx_vepc")
_TEXT = (
    b"a placeholder of `epcgroup serve --system`; `epcgroup doctor --fix` removes it when no server runs\n"
)


def is_placeholder(path: Path) -> bool:
    """Whether a placeholder stands there, of a living server or a dead one.

    Told by its type, without opening it: that would be held.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def stale() -> list[Path]:
    """Placeholders whose server is gone."""
    left = [path for name in NAMES if is_placeholder(path := DEVICES / name)]
    if not left:
        return []
    lock = os.open(DEVICES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return []
    finally:
        os.close(lock)
    return left


def remove(paths: list[Path]) -> list[Path]:
    """Take placeholders away; those that are gone afterwards."""
    for path in paths:
        with contextlib.suppress(OSError):
            if is_placeholder(path):
                path.unlink()
    return [path for path in paths if not path.exists()]


@contextmanager
def placed() -> Iterator[list[Path]]:
    """The placeholders, for as long as this lasts.

    Raises Refused where a device is, or another server's placeholders; MissingCapability
    where we may make none.
    """
    lock = os.open(DEVICES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    made: list[Path] = []
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another `epcgroup serve --system` has the devices in {DEVICES}; stop that one", errno.EBUSY
            ) from None
        remove([DEVICES / name for name in NAMES])  # what a killed server left
        for path in (DEVICES / name for name in NAMES):
            _make(path)
            made.append(path)
        yield made
    finally:
        remove(made)
        os.close(lock)


def _make(path: Path) -> None:
    try:
        with path.open("xb") as file:
            file.write(_TEXT)
        path.chmod(0o666)
    except FileExistsError:
        raise Refused(
            f"{path} is there already: this system has SGX; a whole system can only be served without",
            errno.EEXIST,
        ) from None
    except OSError as error:
        raise MissingCapability(f"{path}: {error.strerror}; placeholders need root, /dev writable") from error
