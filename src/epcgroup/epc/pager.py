"""The world as the engine needs it: one small protocol.

The engine decides *which* page goes; everything that touches contents, address
spaces or a processor is behind this seam. Live's pager asks page tables, seals
with AES-GCM and moves bytes; the testing pager is a table of two bits per page.

The engine calls it from inside an operation or a slice of background work, on
the caller's thread. A pager must not call the engine back for the same machine
except to remove or release (a page being reclaimed is then refused with Busy,
an enclave is released when the round is done with its pages). While it blocks pages
for background work, faults for which there is `headroom` may come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from epcgroup.epc.pages import Enclave, EpcPage


class Pager(Protocol):
    """What happens to pages outside the engine.

    A page's name is ``(page.enclave, page.index)``; the SECS has index
    ``SECS_INDEX`` (-1), a version-array page ``VA_INDEX`` (-2).
    """

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        """Test and clear the accessed bits of these pages, in order (spec 4.2).

        A page that no address space maps is old. Never called for a SECS.
        """

    def reserve(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        """Have backing store ready for these pages, in order; False: it must stay (spec 4.1 B)."""

    def block(self, pages: Sequence[EpcPage]) -> None:
        """Unmap these pages everywhere and wait for threads inside (EBLOCK, ETRACK)."""

    def write_out(self, pages: Sequence[EpcPage]) -> None:
        """EWB: seal the contents to the backing store, in order. The frames are free afterwards.

        All are of one enclave; a SECS comes alone.
        """

    def load(self, enclave: Enclave, index: int) -> None:
        """ELDU: verify and bring back the sealed contents.

        Raises LoadFailed when they do not verify or are lost.
        """

    def arrived(self, enclave: Enclave, indices: Sequence[int]) -> None:
        """As load, for pages that are verified and back already: only their sealed copies go."""

    def drop(self, page: EpcPage) -> None:
        """EREMOVE: the page's contents are gone. Called for every kind of page."""

    def disable(self, enclave: Enclave) -> None:
        """Unmap the whole enclave from every address space, for good (spec 5.3)."""
