"""The backing store: ordinary memory that holds evicted pages, sealed.

Nothing in it is trusted. Each entry is what EWB leaves outside the EPC (the
sealed bytes and the SECINFO flags of the PCMD) and the driver's note of which
VA slot holds the version. Exchange the bytes, the flags, or whole entries: the
next load finds out (spec 6.9, ELDU). Tests do just that.

Sealed bytes lie side by side in anonymous memory (`arena`), at addresses that stay: a page
costs its 4112 bytes, a row of words that says where (`evicted`), and no object of its
own. A page of zeros has no bytes, only a MAC in its row. Rejected:
one ``bytes`` per page (5 µs of page faults in malloc for each eviction), a file
(slower, and /dev/shm is smaller than memory).

Capacity can be limited, as a memory cgroup would: ``reserve`` then refuses and
the page stays in the EPC. So it does when there is no memory left.
"""

from __future__ import annotations

from collections.abc import Sequence

from epcgroup.driver.arena import Arena
from epcgroup.driver.evicted import FLAGS_MASK, SLOT_SHIFT, Evicted, EvictedPages
from epcgroup.sgx.seal import MAC_SIZE, SEALED_SIZE


class BackingStore:
    """Evicted pages of all enclaves. ``limit`` in bytes, None for no limit."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0  # bytes of sealed pages
        self.arena = Arena()
        self._entries: dict[int, EvictedPages] = {}
        self._promised = 0

    def reserve_all(self, pages: int) -> bool:
        """As reserve for so many, if that is sure to succeed; False: one by one may get further."""
        if self.limit is not None or len(self.arena.free) < self._promised + pages:
            return False
        self._promised += pages
        return True

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

    def pages(self, enclave: int) -> EvictedPages:
        """Evicted pages of one enclave by index; the SECS is -1."""
        pages = self._entries.get(enclave)
        if pages is None:
            pages = self._entries[enclave] = EvictedPages(self.arena)
        return pages

    def add(self, enclave: int, index: int, entry: Evicted) -> None:
        """Keep an entry that was made on a reservation."""
        self.pages(enclave)[index] = entry
        self.added(1, int(entry.place >= 0))

    def add_all(self, enclave: int, indices: Sequence[int], slots: Sequence[int]) -> None:
        """As add, for each of these pages, which have been prepared, with its VA slot."""
        self.added(len(indices), self.pages(enclave).keep(indices, slots))

    def added(self, count: int, stored: int) -> None:
        """So many pages were kept on reservations, of which so many have a place."""
        self._promised -= count
        self.used += stored * SEALED_SIZE + (count - stored) * MAC_SIZE

    def get(self, enclave: int, index: int) -> Evicted | None:
        """What is known of an evicted page."""
        pages = self._entries.get(enclave)
        return pages.find(index) if pages is not None else None

    def remove(self, enclave: int, index: int) -> None:
        """The page was loaded: its copy is truncated (ALLOC-40)."""
        self.dropped(self._entries[enclave].take((index,))[0])

    def withdraw(self, enclave: int, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """As get and remove, for pages whose contents are back: their flags and VA slots.

        KeyError if nothing is known of one.
        """
        places, rest = self._entries[enclave].take(indices)
        self.dropped(places)
        return [row & FLAGS_MASK for row in rest], [row >> SLOT_SHIFT for row in rest]

    def forget(self, enclave: int) -> None:
        """Drop everything of an enclave."""
        pages = self._entries.pop(enclave, None)
        if pages is not None:
            self.dropped(pages.take(list(pages))[0])
        self.arena.trim()

    def dropped(self, places: list[int]) -> None:
        """Pages are not kept any more, which had these places (negative for none)."""
        stored = places if min(places, default=0) >= 0 else [place for place in places if place >= 0]
        self.arena.free += stored
        self.used -= len(stored) * SEALED_SIZE + (len(places) - len(stored)) * MAC_SIZE
