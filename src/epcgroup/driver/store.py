"""The backing store: ordinary memory that holds evicted pages, sealed.

Nothing in it is trusted. Each entry is what EWB leaves outside the EPC (the
sealed bytes and the SECINFO flags of the PCMD) and the driver's note of which
VA slot holds the version. Exchange the bytes, the flags, or whole entries: the
next load finds out (spec 6.9, ELDU). Tests do just that.

Capacity can be limited, as a memory cgroup would: ``reserve`` then refuses and
the page stays in the EPC.
"""

from __future__ import annotations

from epcgroup.driver.va import VaPage
from epcgroup.sgx.seal import SEALED_SIZE


class Evicted:
    """One evicted page."""

    __slots__ = ("flags", "sealed", "slot", "va_page")

    def __init__(self, sealed: bytes, flags: int, va_page: VaPage, slot: int) -> None:
        self.sealed = sealed
        self.flags = flags
        self.va_page = va_page
        self.slot = slot


class BackingStore:
    """Evicted pages of all enclaves. ``limit`` in bytes, None for no limit."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0  # bytes of sealed pages
        self._entries: dict[int, dict[int, Evicted]] = {}
        self._reserved: set[tuple[int, int]] = set()

    def reserve(self, enclave: int, index: int) -> bool:
        """Have room for one more page; False when the limit is reached."""
        if self.limit is None:
            return True
        if self.used + (len(self._reserved) + 1) * SEALED_SIZE > self.limit:
            return False
        self._reserved.add((enclave, index))
        return True

    def pages(self, enclave: int) -> dict[int, Evicted]:
        """Evicted pages of one enclave by index; the SECS is -1."""
        return self._entries.setdefault(enclave, {})

    def add(self, enclave: int, index: int, entry: Evicted) -> None:
        self._reserved.discard((enclave, index))
        self.pages(enclave)[index] = entry
        self.used += len(entry.sealed)

    def get(self, enclave: int, index: int) -> Evicted | None:
        return self._entries.get(enclave, {}).get(index)

    def remove(self, enclave: int, index: int) -> None:
        """The page was loaded: its copy is truncated (ALLOC-40)."""
        self.used -= len(self._entries[enclave].pop(index).sealed)

    def forget(self, enclave: int, index: int | None = None) -> None:
        """Drop a reservation, or everything of an enclave."""
        if index is not None:
            self._reserved.discard((enclave, index))
            return
        for entry in self._entries.pop(enclave, {}).values():
            self.used -= len(entry.sealed)
        self._reserved = {key for key in self._reserved if key[0] != enclave}
