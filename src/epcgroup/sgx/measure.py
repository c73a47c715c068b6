"""MRENCLAVE: the hash of how an enclave was built (spec 6.8).

SHA-256 over 64-byte records, integers little endian, unused bytes zero. The
order of EADD and EEXTEND matters; EAUGed pages never contribute.
"""

from __future__ import annotations

import hashlib
import struct

from epcgroup.units import PAGE_SIZE

CHUNK = 256  # bytes one EEXTEND measures

_ECREATE = struct.Struct("<8sIQ44x")
_EADD = struct.Struct("<8sQQ40x")
_EEXTEND = struct.Struct("<8sQ48x")
_CHUNKS = PAGE_SIZE // CHUNK
_EEXTENDS = struct.Struct("<" + f"8sQ48x{CHUNK}s" * _CHUNKS)  # of a page; thrice as fast as one by one
_SPLIT = struct.Struct(f"{CHUNK}s" * _CHUNKS)


class Measurement:
    """A running MRENCLAVE.

    >>> m = Measurement(ssa_frame_size=1, size=0x2000)
    >>> m.eadd(0, 0x203)
    >>> m.eextend_page(0, bytes(4096))
    >>> len(m.digest())
    32
    """

    __slots__ = ("_hash",)

    def __init__(self, ssa_frame_size: int, size: int) -> None:
        """Start as ECREATE does; ``ssa_frame_size`` in pages, ``size`` in bytes."""
        self._hash = hashlib.sha256(_ECREATE.pack(b"ECREATE", ssa_frame_size, size))

    def eadd(self, offset: int, secinfo_flags: int) -> None:
        """A page was added at ``offset`` bytes with these SECINFO flags."""
        self._hash.update(_EADD.pack(b"EADD", offset, secinfo_flags))

    def eextend(self, offset: int, chunk: bytes) -> None:
        """256 bytes at ``offset`` were measured."""
        self._hash.update(_EEXTEND.pack(b"EEXTEND", offset) + chunk)

    def eextend_page(self, offset: int, page: bytes) -> None:
        """All sixteen chunks of the page at ``offset``, in one update."""
        fields = [b"EEXTEND"] * (3 * _CHUNKS)
        fields[1::3] = range(offset, offset + PAGE_SIZE, CHUNK)  # type: ignore[assignment]
        fields[2::3] = _SPLIT.unpack(page)
        self._hash.update(_EEXTENDS.pack(*fields))

    def digest(self) -> bytes:
        """MRENCLAVE as it would be if EINIT came now; measuring may go on."""
        return self._hash.digest()
