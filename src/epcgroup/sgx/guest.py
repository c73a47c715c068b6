"""The EPCM of a virtual machine's EPC, as far as EREMOVE asks it (SDM: EREMOVE; spec 6.6).

The host gives a guest pages and takes them back; what the guest makes of them it does
by itself. Of that the host meets three things when it takes them back: an SECS that
has children, children whose SECS is another instance's page, and a thread inside.
"""

from __future__ import annotations

from epcgroup.errors import InternalError
from epcgroup.sgx.layouts import SgxError


class GuestPage:
    """One page that a guest has made part of an enclave; ``secs`` is None for an SECS itself."""

    __slots__ = ("active", "children", "secs")

    def __init__(self, secs: GuestPage | None) -> None:
        self.secs = secs
        self.children = 0
        self.active = False  # a thread is inside


class GuestEpcm:
    """What the pages of one instance are, by index; those that are not here are invalid."""

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: dict[int, GuestPage] = {}

    def ecreate(self, index: int) -> GuestPage:
        """The guest makes the page an SECS."""
        return self._make(index, None)

    def eadd(self, index: int, secs: GuestPage) -> GuestPage:
        """The guest adds the page to the enclave of ``secs``, which may lie in another instance."""
        page = self._make(index, secs)
        secs.children += 1
        return page

    def eremove(self, index: int) -> SgxError:
        """The page is invalid again; harmless if it is already."""
        page = self.pages.get(index)
        if page is None:
            return SgxError.SUCCESS
        if page.active:
            return SgxError.ENCLAVE_ACT
        if page.children:
            return SgxError.CHILD_PRESENT
        if page.secs is not None:
            page.secs.children -= 1
        del self.pages[index]
        return SgxError.SUCCESS

    def _make(self, index: int, secs: GuestPage | None) -> GuestPage:
        if index in self.pages:
            raise InternalError(f"page {index} of the guest is in use")
        page = self.pages[index] = GuestPage(secs)
        return page
