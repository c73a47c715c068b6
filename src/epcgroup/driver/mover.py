"""The way of a page's contents: out of its frame into the backing store, and back.

EWB and ELDU without their bookkeeping (`pager`), one batch of pages at a time:
neighbours are revoked together, and a twin in compiled code can do a batch in one
call. This one is the reference; what the two do to pages, and what they leave in
the store, is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from epcgroup.driver.evicted import Evicted
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epcgroup.driver.seams import Frames
    from epcgroup.driver.store import BackingStore
    from epcgroup.driver.va import VaSlots
    from epcgroup.sgx.seal import PageSealer


class Mover(Protocol):
    """Moves contents of pages; ``base`` is the address of the enclave's page 0."""

    def out(self, enclave: int, base: int, indices: Sequence[int], flags: Sequence[int]) -> Sequence[int]:
        """Revoke these pages and seal them, on reservations; their rows are ready. The versions."""

    def kept(self, enclave: int, indices: Sequence[int], versions: Sequence[int], slots: VaSlots) -> None:
        """What went out is in the store from now on, and the versions are in VA slots."""

    def arrived(self, enclave: int, indices: Sequence[int], slots: VaSlots) -> Sequence[int]:
        """The contents of these pages are back, and gone from the store, their VA slots free: their flags.

        KeyError if nothing is known of one.
        """

    def back(self, enclave: int, base: int, index: int, entry: Evicted, version: int) -> None:
        """Unseal a page and give it to its frame. Raises MacCompareFail, and nothing happened."""

    def forget(self, enclave: int) -> None:
        """The enclave is gone."""

    def seal(self, contents: bytes, enclave: int, flags: int) -> tuple[int, Evicted]:
        """Seal what has no frame and no address (the SECS), on a reservation."""

    def unseal(self, enclave: int, entry: Evicted, version: int, addr: int = 0) -> bytes:
        """What was sealed; a page at the address ``addr``, or the SECS. Raises MacCompareFail."""


class PlainMover:
    """Page by page, in Python. Implements Mover."""

    def __init__(self, frames: Frames, sealer: PageSealer, store: BackingStore) -> None:
        self._frames = frames
        self._sealer = sealer
        self._store = store
        self._arena = store.arena

    def out(self, enclave: int, base: int, indices: Sequence[int], flags: Sequence[int]) -> Sequence[int]:
        contents = self._frames.take(enclave, indices)
        prepare, versions = self._store.pages(enclave).prepare, []
        for plain, index, word in zip(contents, indices, flags, strict=True):
            version, place, short = self._seal(plain, base + (index << PAGE_SHIFT), enclave, word)
            prepare(index, word, place, short, version)
            versions.append(version)
        return versions

    def kept(self, enclave: int, indices: Sequence[int], versions: Sequence[int], slots: VaSlots) -> None:
        self._store.add_all(enclave, indices, slots.take(versions))

    def arrived(self, enclave: int, indices: Sequence[int], slots: VaSlots) -> Sequence[int]:
        flags, given = self._store.withdraw(enclave, indices)
        slots.give(given)
        return flags

    def back(self, enclave: int, base: int, index: int, entry: Evicted, version: int) -> None:
        contents = self.unseal(enclave, entry, version, base + (index << PAGE_SHIFT))
        self._frames.put(enclave, index, contents, entry.flags)

    def forget(self, enclave: int) -> None:
        pass

    def seal(self, contents: bytes, enclave: int, flags: int) -> tuple[int, Evicted]:
        version, place, short = self._seal(contents, 0, enclave, flags)
        return version, Evicted(self._arena, flags, place, short)

    def unseal(self, enclave: int, entry: Evicted, version: int, addr: int = 0) -> bytes:
        sealed = entry.short or self._arena.view(entry.place)
        return self._sealer.eldu(sealed, version, entry.flags, addr, enclave)

    def _seal(self, contents: bytes, addr: int, enclave: int, flags: int) -> tuple[int, int, bytes]:
        arena = self._arena
        place = arena.free.pop()
        version, short = self._sealer.ewb_into(contents, flags, addr, enclave, arena.view(place))
        if short:
            arena.free.append(place)
            place = -1
        return version, place, short
