"""The text of the misc.* files, byte for byte (spec 1.2, 1.3).

Files are named without their prefix: ``max``, ``current``, ``events.local`` …
A refusal is an exception that carries the kernel's errno.
"""

from __future__ import annotations

import errno

from epcgroup.errors import OutOfRange, Refused
from epcgroup.misc.tree import G, Tree
from epcgroup.units import PAGE_SIZE, U64_MAX

# What the kernel calls white space when it strips a line (ASCII, and the
# no-break space of Latin-1).
_BLANK = b" \t\n\v\f\r\xa0"
_DIGITS = {8: b"01234567", 10: b"0123456789", 16: b"0123456789abcdefABCDEF"}


def names(tree: Tree[G], group: G) -> frozenset[str]:
    """Files that exist in a group's directory."""
    return tree.rules.root_files if group is tree.root else tree.rules.group_files


def read(tree: Tree[G], group: G, name: str) -> bytes:
    """Contents of a file.

    Raises OutOfRange (ENOENT) for a file that is not in that directory.
    """
    _must_exist(tree, group, name)
    lines = []
    for number, key in enumerate(tree.rules.resources):
        line = _line(tree, group, name, number, key)
        if line is not None:
            lines.append(line)
    return "".join(lines).encode()


def words(data: bytes) -> bytes:
    """What a write says: up to a NUL, without white space around it."""
    return data.split(b"\0", 1)[0].strip(_BLANK)


def write(tree: Tree[G], group: G, name: str, data: bytes) -> int:
    """Write to a file; returns the number of bytes taken, which is all of them.

    Raises OutOfRange (ENOENT: no such file here), Refused (E2BIG: more than a
    page; EINVAL; ERANGE: a number of more than 64 bits). A write of no bytes
    never arrives (spec 1.3).
    """
    _must_exist(tree, group, name)
    if not data:
        return 0
    if len(data) > PAGE_SIZE:
        raise Refused("more than 4096 bytes in one write", errno.E2BIG)
    if name not in ("max", "low", "high"):
        raise Refused(f"misc.{name} is read-only", errno.EINVAL)
    resource, limit = parse_max(tree, data)
    if name == "max":
        set_max(tree, group, resource, limit)
    else:
        set_soft(tree, group, name, resource, limit)
    return len(data)


def set_max(tree: Tree[G], group: G, resource: int, limit: int) -> None:
    """Store a limit (U64_MAX for none) and tell the resource's owner.

    A limit below the present usage is accepted; what follows is policy (MISC-20).
    """
    group.max[resource] = limit
    if tree.max_written is not None:
        tree.max_written(group, resource)


def set_soft(tree: Tree[G], group: G, name: str, resource: int, limit: int) -> None:
    """Store a protection (``low``) or a soft limit (``high``).

    Raises Refused (EINVAL) for a resource of which nothing can be taken back.
    """
    key = tree.rules.resources[resource]
    if key not in tree.rules.soft:
        raise Refused(f"nothing of {key!r} can be reclaimed; it has no misc.{name}", errno.EINVAL)
    (group.low if name == "low" else group.high)[resource] = limit
    if name == "high" and tree.high_written is not None:
        tree.high_written(group, resource)


def parse_max(tree: Tree[G], data: bytes) -> tuple[int, int]:
    """(resource number, limit) of one line written to misc.max, low or high.

    The order of the checks is the kernel's: the number is parsed before the
    resource's presence is asked for, so an absent resource may say ERANGE.
    """
    key, space, value = words(data).partition(b" ")
    if not space:
        raise Refused(f"{data!r}: write a resource and a number, like b'sgx_epc 67108864'", errno.EINVAL)
    name = key.decode("latin-1")
    if name not in tree.rules.resources:
        raise Refused(f"{name!r} is no resource; there are {', '.join(tree.rules.resources)}", errno.EINVAL)
    resource = tree.rules.index(name)
    limit = U64_MAX if value == b"max" else parse_u64(value)
    if not tree.capacity[resource]:
        raise Refused(f"{name!r} is not present on this machine", errno.EINVAL)
    return resource, limit


def parse_u64(text: bytes) -> int:
    """A 64-bit number as the kernel reads it: base by prefix, one ``+`` allowed.

    Raises Refused: ERANGE when the digits exceed 64 bits (tested first, whatever
    follows them), EINVAL when there is no digit or anything trails but a newline.
    """
    rest = text[1:] if text[:1] == b"+" else text
    base = 10
    if rest[:1] == b"0":
        base = 8
        if rest[1:2] in (b"x", b"X") and rest[2:3] and rest[2:3] in _DIGITS[16]:
            base, rest = 16, rest[2:]
    end = 0
    while end < len(rest) and rest[end : end + 1] in _DIGITS[base]:
        end += 1
    digits, trailing = rest[:end], rest[end:]
    if not digits:
        raise Refused(f"{text!r} is not a number", errno.EINVAL)
    number = int(digits, base)
    if number > U64_MAX:
        raise Refused(f"{text!r} is larger than 2^64-1", errno.ERANGE)
    if trailing not in (b"", b"\n"):
        raise Refused(f"{text!r} is not a number", errno.EINVAL)
    return number


def _must_exist(tree: Tree[G], group: G, name: str) -> None:
    if name not in names(tree, group):
        raise OutOfRange(f"no file misc.{name} in {group.path}", errno.ENOENT)


def _line(tree: Tree[G], group: G, name: str, number: int, key: str) -> str | None:
    present = bool(tree.capacity[number])
    if name == "capacity":
        return f"{key} {tree.capacity[number]}\n" if present else None
    if name in ("max", "low", "high"):
        if name != "max" and key not in tree.rules.soft:
            return None
        limit = (group.max if name == "max" else group.low if name == "low" else group.high)[number]
        return f"{key} {'max' if limit == U64_MAX else limit}\n" if present else None
    if name in ("events", "events.local"):
        count = (group.events if name == "events" else group.events_local)[number]
        return f"{key}.max {count}\n" if present or count else None
    value = (group.usage if name == "current" else group.peak)[number]
    return f"{key} {value}\n" if present or value else None
