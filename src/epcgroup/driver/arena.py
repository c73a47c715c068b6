"""Memory for sealed pages: slots side by side in chunks that never move, so that compiled code finds them."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from epcgroup.sgx.seal import SEALED_SIZE

CHUNK_SHIFT: Final = 10
_CHUNK_SLOTS = 1 << CHUNK_SHIFT
_CHUNK_MASK = _CHUNK_SLOTS - 1
_MOST_CHUNKS = 1 << 16  # 256 GiB of sealed pages
_MAP_NORESERVE = 0x4000


def reserved(size: int) -> mmap.mmap:
    """Zeros, of which only what is written to takes memory. Raises OSError."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


class Arena:
    """Memory for sealed pages in slots of SEALED_SIZE bytes, which never move."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap | None] = []
        self._views: list[memoryview] = []
        bases = reserved(8 * _MOST_CHUNKS)
        self._bases = memoryview(bases).cast("Q")
        self.bases = ctypes.addressof(ctypes.c_char.from_buffer(bases))  # where the addresses of chunks are
        self.free: list[int] = []  # the last one is used next

    def __len__(self) -> int:
        """Chunks held."""
        return len(self._chunks) - self._chunks.count(None)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return (len(self) << CHUNK_SHIFT) - len(self.free)

    def grow(self) -> bool:
        """A chunk more; False if there is no memory."""
        number = self._chunks.index(None) if None in self._chunks else len(self._chunks)
        if number == _MOST_CHUNKS:
            return False
        try:
            chunk = mmap.mmap(-1, _CHUNK_SLOTS * SEALED_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            return False
        if number == len(self._chunks):
            self._chunks.append(None)
            self._views.append(memoryview(b""))
        self._chunks[number] = chunk
        self._views[number] = memoryview(chunk)
        self._bases[number] = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
        first = number << CHUNK_SHIFT
        self.free += range(first + _CHUNK_SLOTS - 1, first - 1, -1)
        return True

    def view(self, place: int) -> memoryview:
        """The bytes of a slot."""
        at = (place & _CHUNK_MASK) * SEALED_SIZE
        return self._views[place >> CHUNK_SHIFT][at : at + SEALED_SIZE]

    def trim(self) -> None:
        """Give back the chunks that hold nothing."""
        if len(self.free) < _CHUNK_SLOTS:
            return  # not one chunk of them
        unused = [0] * len(self._chunks)
        for place in self.free:
            unused[place >> CHUNK_SHIFT] += 1
        empty = {number for number, count in enumerate(unused) if count == _CHUNK_SLOTS}
        if not empty:
            return
        self.free = [place for place in self.free if place >> CHUNK_SHIFT not in empty]
        for number in empty:
            self._views[number].release()
            self._bases[number] = 0
            self._chunks[number] = None  # unmapped with the last reference to it
