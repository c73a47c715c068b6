"""Guests: virtual EPC (spec 6.6).

A guest's pages are charged to the virtual machine monitor's group when the guest
touches them, are on no list, are never taken back, and so can hold a group above
a lowered limit for as long as the guest lives (VEPC-03, B-67).

Whether EREMOVE of a guest's page succeeds is the architecture's business (a SECS
with children in another instance does not, VEPC-05): the driver frees page by
page, and what is left stays charged.
"""

from __future__ import annotations

from epcgroup.epc.alloc import allocate
from epcgroup.epc.caller import Caller
from epcgroup.epc.pages import EpcPage, Kind, Vepc
from epcgroup.epc.release import erase
from epcgroup.epc.state import Epc
from epcgroup.errors import OutOfRange


def fault_vepc(epc: Epc, caller: Caller, vepc: Vepc, index: int) -> EpcPage:
    """The guest's page ``index``, allocated at the first touch."""
    if not 0 <= index < vepc.size:
        raise OutOfRange(f"page {index} of a virtual EPC of {vepc.size} pages")
    page = vepc.pages.get(index)
    if page is not None:
        return page
    page = allocate(epc, caller, 1, may_reclaim=False)[0]
    page.vepc, page.kind, page.index = vepc, Kind.VEPC, index
    vepc.pages[index] = page
    assert page.group is not None
    page.group.kinds[Kind.VEPC] += 1
    return page


def free_vepc_page(epc: Epc, vepc: Vepc, index: int) -> None:
    """Free one page of a guest."""
    page = vepc.pages.pop(index, None)
    if page is None:
        raise OutOfRange(f"the guest has no page {index}")
    erase(epc, page)


def release_vepc(epc: Epc, vepc: Vepc) -> None:
    """Free all pages of a guest, in ascending order."""
    for index in sorted(vepc.pages):
        free_vepc_page(epc, vepc, index)
    epc.vepcs.pop(vepc.id, None)
