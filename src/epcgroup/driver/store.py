"""The backing store: ordinary memory that holds evicted pages, sealed.

Nothing in it is trusted. Each entry is what EWB leaves outside the EPC (the
sealed bytes and the SECINFO flags of the PCMD) and the driver's note of which
VA slot holds the version. Exchange the bytes, the flags, or whole entries: the
next load finds out (spec 6.9, ELDU). Tests do just that.

Sealed bytes lie side by side in chunks of anonymous memory, at addresses that
stay: a page costs its 4112 bytes and no object of its own, and compiled code can
seal into place. A page of zeros has no bytes, only a MAC in its entry. Rejected:
one ``bytes`` per page (5 µs of page faults in malloc for each eviction), a file
(slower, and /dev/shm is smaller than memory).

Capacity can be limited, as a memory cgroup would: ``reserve`` then refuses and
the page stays in the EPC. So it does when there is no memory left.
"""

from __future__ import annotations

import ctypes
import mmap

from epcgroup.driver.va import VaPage
from epcgroup.sgx.seal import MAC_SIZE, SEALED_SIZE

_CHUNK_SHIFT = 10
_CHUNK_SLOTS = 1 << _CHUNK_SHIFT
_CHUNK_MASK = _CHUNK_SLOTS - 1


class Evicted:
    """One evicted page: where its sealed bytes are, its PCMD flags, its VA slot.

    ``place`` numbers the slot of the arena that holds them, negative for none; then
    ``short`` holds them: the MAC of a page of zeros (or what an attacker put there).
    """

    __slots__ = ("_arena", "flags", "place", "short", "slot", "va_page")

    va_page: VaPage
    slot: int

    def __init__(self, arena: Arena, flags: int, place: int, short: bytes) -> None:
        self._arena = arena
        self.flags = flags
        self.place = place
        self.short = short

    @property
    def sealed(self) -> bytes:
        """Ciphertext and MAC; assign to tamper with them."""
        return self.short or bytes(self._arena.view(self.place))

    @sealed.setter
    def sealed(self, value: bytes) -> None:
        if self.place >= 0 and len(value) == SEALED_SIZE:
            self._arena.view(self.place)[:] = value
            self.short = b""
        else:
            self.short = value


class Arena:
    """Memory for sealed pages in slots of SEALED_SIZE bytes, which never move."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap | None] = []
        self._views: list[memoryview] = []
        self._bases: list[int] = []
        self.free: list[int] = []  # the last one is used next

    def __len__(self) -> int:
        """Chunks held."""
        return len(self._chunks) - self._chunks.count(None)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return (len(self) << _CHUNK_SHIFT) - len(self.free)

    def grow(self) -> bool:
        """A chunk more; False if there is no memory."""
        try:
            chunk = mmap.mmap(-1, _CHUNK_SLOTS * SEALED_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            return False
        number = self._chunks.index(None) if None in self._chunks else len(self._chunks)
        if number == len(self._chunks):
            self._chunks.append(None)
            self._views.append(memoryview(b""))
            self._bases.append(0)
        self._chunks[number] = chunk
        self._views[number] = memoryview(chunk)
        self._bases[number] = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
        first = number << _CHUNK_SHIFT
        self.free += range(first + _CHUNK_SLOTS - 1, first - 1, -1)
        return True

    def view(self, place: int) -> memoryview:
        """The bytes of a slot."""
        at = (place & _CHUNK_MASK) * SEALED_SIZE
        return self._views[place >> _CHUNK_SHIFT][at : at + SEALED_SIZE]

    def address(self, place: int) -> int:
        """Where a slot begins in our memory."""
        return self._bases[place >> _CHUNK_SHIFT] + (place & _CHUNK_MASK) * SEALED_SIZE

    def trim(self) -> None:
        """Give back the chunks that hold nothing."""
        unused = [0] * len(self._chunks)
        for place in self.free:
            unused[place >> _CHUNK_SHIFT] += 1
        empty = {number for number, count in enumerate(unused) if count == _CHUNK_SLOTS}
        if not empty:
            return
        self.free = [place for place in self.free if place >> _CHUNK_SHIFT not in empty]
        for number in empty:
            self._views[number].release()
            self._bases[number] = 0
            self._chunks[number] = None  # unmapped with the last reference to it


class BackingStore:
    """Evicted pages of all enclaves. ``limit`` in bytes, None for no limit."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0  # bytes of sealed pages
        self.arena = Arena()
        self._entries: dict[int, dict[int, Evicted]] = {}
        self._promised = 0

    def reserve(self, enclave: int, index: int) -> bool:  # noqa: ARG002 - for stores that choose
        """Have room for this page too; False when the limit is reached or memory is short.

        Pages are added in the order in which room was reserved for them.
        """
        promised = self._promised + 1
        if self.limit is not None and self.used + promised * SEALED_SIZE > self.limit:
            return False
        if len(self.arena.free) < promised and not self.arena.grow():
            return False
        self._promised = promised
        return True

    def pages(self, enclave: int) -> dict[int, Evicted]:
        """Evicted pages of one enclave by index; the SECS is -1."""
        return self._entries.setdefault(enclave, {})

    def add(self, enclave: int, index: int, entry: Evicted) -> None:
        """Keep an entry that was made on a reservation."""
        self._promised -= 1
        entries = self._entries.get(enclave)
        if entries is None:
            entries = self._entries[enclave] = {}
        entries[index] = entry
        self.used += SEALED_SIZE if entry.place >= 0 else MAC_SIZE

    def get(self, enclave: int, index: int) -> Evicted | None:
        """What is known of an evicted page."""
        entries = self._entries.get(enclave)
        return entries.get(index) if entries is not None else None

    def remove(self, enclave: int, index: int) -> None:
        """The page was loaded: its copy is truncated (ALLOC-40)."""
        self._drop(self._entries[enclave].pop(index))

    def forget(self, enclave: int) -> None:
        """Drop everything of an enclave."""
        for entry in self._entries.pop(enclave, {}).values():
            self._drop(entry)
        self.arena.trim()

    def _drop(self, entry: Evicted) -> None:
        place = entry.place
        if place >= 0:
            self.used -= SEALED_SIZE
            self.arena.free.append(place)
        else:
            self.used -= MAC_SIZE
