"""Files of /proc and buffers of system calls, as they would be with a cgroup2 of the kernel's."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

from epcgroup.cgroupfs import names
from epcgroup.host.mounts import TYPE

FUSE_MAGIC, CGROUP2_MAGIC = 0x65735546, 0x63677270
TMPFS_MAGIC, PROC_MAGIC = 0x01021994, 0x9FA0
_STATFS = struct.Struct("<qqQQQQQ")  # f_type, f_bsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree
_FUSE_ONLY = (b"user_id=", b"group_id=", b"default_permissions", b"allow_other", b"max_read=")
_KERNELS = (b"cgroup", b"cgroup2")
OURS = TYPE.encode()


def statfs(buffer: bytes) -> bytes | None:
    """The first bytes of a struct statfs about our tree, corrected; None if it is of something else.

    Our file system marks itself by its number of files (`cgroupfs.names.STATFS_MARK`).
    """
    kind, size, *blocks, files, free = _STATFS.unpack_from(buffer)
    if (kind, files) != (FUSE_MAGIC, names.STATFS_MARK):
        return None
    return _STATFS.pack(CGROUP2_MAGIC, size, *blocks, 0, free)


def is_tmpfs(buffer: bytes) -> bool:
    """Whether a struct statfs is about a tmpfs, as files in memory are."""
    return bool(_STATFS.unpack_from(buffer)[0] == TMPFS_MAGIC)


def as_proc(buffer: bytes) -> bytes:
    """A struct statfs that says /proc instead: what stands in for a file of /proc should."""
    return struct.pack("<q", PROC_MAGIC) + buffer[8:]


def mountinfo(text: bytes, source: bytes, hidden: bytes, root: str = "/") -> bytes | None:
    """/proc/PID/mountinfo with the mounts of ``source`` as cgroup2; None if it has none.

    The kernel's own cgroup mounts are left out, and ``hidden``, the place where
    the server mounts the tree for the host. ``root`` of the reader's cgroup namespace.
    """
    lines, found = [], False
    for line in _lines(text):
        before, dash, after = line.partition(b" - ")
        kind, _, rest = after.partition(b" ")
        if kind in _KERNELS:
            continue
        if kind == OURS and rest.split(b" ", 1)[0] == source:
            fields = before.split(b" ")
            if fields[4] == hidden:
                continue
            found = True
            fields[3] = escaped(seen_from(unescaped(fields[3]), root))
            before = b" ".join(fields)
            options = rest.split(b" ")[1].rstrip(b"\n")
            line = before + dash + b"cgroup2 cgroup2 " + _options(options) + b"\n"
        lines.append(line)
    return b"".join(lines) if found else None


def mounts(text: bytes, source: bytes, hidden: bytes) -> bytes | None:
    """/proc/PID/mounts, likewise."""
    lines, found = [], False
    for line in _lines(text):
        name, point, kind, options, *rest = line.split(b" ")
        if kind in _KERNELS:
            continue
        if (name, kind) == (source, OURS):
            if point == hidden:
                continue
            found = True
            line = b" ".join((b"cgroup2", point, b"cgroup2", _options(options), *rest))
        lines.append(line)
    return b"".join(lines) if found else None


def _lines(text: bytes) -> list[bytes]:
    """Its lines, with their ends; a mount point may have a carriage return in its name."""
    return [line + b"\n" for line in text.split(b"\n") if line]


def _options(options: bytes) -> bytes:
    """Mount options without those that only FUSE has."""
    return b",".join(word for word in options.split(b",") if not word.startswith(_FUSE_ONLY))


def cgroup(path: str) -> bytes:
    """/proc/PID/cgroup of a process at ``path`` of a machine that has nothing but cgroup2."""
    return b"0::" + path.encode(errors="surrogateescape") + b"\n"


def controllers(cgroups: int) -> bytes:
    """/proc/cgroups of that machine."""
    return b"#subsys_name\thierarchy\tnum_cgroups\tenabled\nmisc\t0\t%d\t1\n" % cgroups


def seen_from(path: str, root: str) -> str:
    """A cgroup's path in a cgroup namespace with this root.

    >>> seen_from("/pods/a/b", "/pods/a"), seen_from("/pods/c", "/pods/a"), seen_from("/", "/pods/a")
    ('/b', '/../c', '/../..')
    """
    here, there = _parts(path), _parts(root)
    common = 0
    while common < min(len(here), len(there)) and here[common] == there[common]:
        common += 1
    return "/" + "/".join([".."] * (len(there) - common) + here[common:])


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def unescaped(text: bytes) -> str:
    """A path of mountinfo or mounts."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), text)
    return raw.decode(errors="surrogateescape")


def escaped(path: str) -> bytes:
    """A path as mountinfo and mounts write it."""
    raw: Iterable[int] = path.encode(errors="surrogateescape")
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in raw)
