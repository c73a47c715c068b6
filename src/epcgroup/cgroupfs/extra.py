"""Files beyond the kernel's, which the machine behind the tree fills (`serve --extensions`).

They lie beside the misc.* files of cgroups that have a misc group. The tree only
knows their names and modes; where they are and what they say comes from whoever owns
the machine, through :class:`Extra`. One that brings files of another controller
(memory.*) makes the tree name that controller beside misc: it goes along with misc.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Protocol, TypeVar

from epcgroup.errors import Refused
from epcgroup.misc import SGX_EPC
from epcgroup.misc.files import parse_u64, words
from epcgroup.misc.tree import Group

G_contra = TypeVar("G_contra", bound=Group, contravariant=True)
_SHIFTS = {b"K": 10, b"M": 20, b"G": 30, b"T": 40}


class Extra(Protocol[G_contra]):
    """What a machine can say of a group, and do to it, beyond the misc controller."""

    @property
    def modes(self) -> Mapping[str, int]:
        """The files by name, with their permission bits."""

    def has(self, group: G_contra, name: str) -> bool:
        """Whether the group has that file."""

    def read(self, group: G_contra, name: str) -> bytes:
        """Contents of a file; the tree's lock is held. Raises Refused (EINVAL: not readable)."""

    def pressure(self, group: G_contra, name: str) -> tuple[float, float] | None:
        """Of a pressure file, which takes triggers: seconds of ``some`` and of ``full``. None: it is none."""

    def write(self, group: G_contra, name: str, data: bytes) -> None:
        """One write, of at least one byte; the lock is not held. Raises Refused."""


def parse_amount(data: bytes) -> int:
    """Bytes of EPC: a number as the kernel reads it and perhaps K, M, G or T, perhaps after the key.

    >>> parse_amount(b"sgx_epc 16M\\n"), parse_amount(b"4096")
    (16777216, 4096)

    Raises Refused (EINVAL, ERANGE).
    """
    text = words(data)
    key, space, value = text.partition(b" ")
    if space and key != SGX_EPC.encode():
        raise Refused(f"{text!r}: write a size, like b'16M' or b'{SGX_EPC} 16777216'", errno.EINVAL)
    return parse_bytes(value if space else text)


def parse_bytes(text: bytes) -> int:
    """A number as the kernel reads it and perhaps K, M, G or T. Raises Refused (EINVAL, ERANGE)."""
    shift = _SHIFTS.get(text[-1:].upper(), 0)
    return parse_u64(text[:-1] if shift else text) << shift
