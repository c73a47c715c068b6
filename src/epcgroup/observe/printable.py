"""Names on a terminal: anybody may name a cgroup, nobody may drive somebody else's terminal."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""A cgroup's name without anything that a terminal would obey.

    >>> printable("/pods/a\x1b[2J")
    '/pods/a\\x1b[2J'
    """
    return "".join(
        char if char.isprintable() and not "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]
        for char in name
    )
