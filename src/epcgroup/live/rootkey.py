"""The machine's root key, kept between runs.

Everything that EGETKEY and EREPORT give is derived from it, so a file that an
enclave sealed in one run opens in the next only if this key stays. It is the
fuse key of a real processor: made once, the same for all programs of a user.
(What protects evicted pages is another key, new for every machine.)

The file appears with its contents or not at all: it is written under another
name and linked into place. Of two first runs at once, one wins and both use its
key. Rejected: O_EXCL on the name itself, whose loser may read an empty file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

from epcgroup.errors import BadInput

SIZE = 16  # bytes
_HEX = re.compile(rf"[0-9a-fA-F]{{{2 * SIZE}}}")


def default_path() -> Path:
    """``$XDG_STATE_HOME/epcgroup/root.key``, else below ``~/.local/state``; OSError without a home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    if base.startswith("/"):
        return Path(base) / "epcgroup" / "root.key"
    try:
        return Path.home() / ".local" / "state" / "epcgroup" / "root.key"
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "no home directory", "~") from error


def from_seed(seed: str) -> bytes:
    """The key that ``--seed`` gives: 32 hexadecimal digits, or a file with them.

    Raises BadInput.
    """
    if _HEX.fullmatch(seed):
        return bytes.fromhex(seed)
    path = Path(seed)
    if not path.exists():
        raise BadInput(f"--seed {seed!r}: give {2 * SIZE} hexadecimal digits, or a file that holds them")
    return read(path)


def read(path: Path) -> bytes:
    """The key in ``path``. Raises BadInput if there is none in it, or it cannot be read."""
    try:
        text = path.read_bytes()[:100].decode("ascii", "replace").strip()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; it must hold the root key") from error
    if not _HEX.fullmatch(text):
        raise BadInput(f"{path}: not a root key; it must hold {2 * SIZE} hexadecimal digits, no more")
    return bytes.fromhex(text)


def kept(path: Path | None = None) -> bytes:
    """The key in ``path`` (default: `default_path`), made and stored there if it is new.

    Raises BadInput if the file holds something else, OSError if it cannot be made.
    """
    path = default_path() if path is None else path
    if not os.path.lexists(path):
        _create(path)
    return read(path)


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(file, f"{secrets.token_hex(SIZE)}\n".encode())
            os.fsync(file)
        finally:
            os.close(file)
        with contextlib.suppress(FileExistsError):  # somebody was faster: theirs it is
            os.link(draft, path)
    finally:
        draft.unlink()


__all__ = ["SIZE", "default_path", "from_seed", "kept", "read"]
