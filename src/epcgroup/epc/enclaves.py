"""Building an enclave: SECS, version arrays, pages added and removed (spec 2.7, 6.5).

Version-array pages are reserved ahead: ``grow`` counts every page of the enclave,
the SECS first, and takes a VA page whenever the count is a multiple of 512. So
one added page may need two charges, and where both do not fit, the first must
be given back (B-34, EX-7). Most policies charge them one after the other;
``all_at_once`` charges both or neither.
"""

from __future__ import annotations

from epcgroup.epc.alloc import allocate
from epcgroup.epc.caller import Caller
from epcgroup.epc.pages import CHILD, SECS_INDEX, VA_INDEX, VA_SLOTS, Enclave, EpcPage, Kind
from epcgroup.epc.release import erase, free_page
from epcgroup.epc.state import Epc
from epcgroup.epc.track import record
from epcgroup.errors import BadInput, EnclaveDisabled, OutOfRange, PageExists, Refused


def create(epc: Epc, caller: Caller, size: int, enclave_id: int) -> Enclave:
    """CREATE steps 5 and 7: the first VA page, then the SECS; on error neither."""
    if size < 1:
        raise BadInput(f"an enclave of {size} pages; it needs at least 1")
    enclave = Enclave(enclave_id, size)
    both = epc.policy.all_at_once
    pages = allocate(epc, caller, 2 if both else 1, may_reclaim=True)
    grow(epc, enclave, pages[0])
    if not both:
        try:
            pages += allocate(epc, caller, 1, may_reclaim=True)
        except Refused:
            shrink(epc, enclave)
            raise
    secs = pages[1]
    secs.enclave, secs.kind, secs.index = enclave, Kind.SECS, SECS_INDEX
    enclave.secs = secs
    record(epc, secs)
    enclave.created = True  # last: until now it cannot be a victim (B-65)
    epc.enclaves[enclave.id] = enclave
    return enclave


def va_due(enclave: Enclave) -> bool:
    """Whether the next page of this enclave needs a VA page first."""
    return enclave.page_cnt % VA_SLOTS == 0


def grow(epc: Epc, enclave: Enclave, va: EpcPage | None) -> None:
    """Count one page more; ``va`` is the page for its version array, when due."""
    if va is not None:
        va.enclave, va.kind, va.index = enclave, Kind.VA, VA_INDEX
        enclave.va_pages.append(va)
        record(epc, va)
    enclave.page_cnt += 1


def shrink(epc: Epc, enclave: Enclave) -> None:
    """Undo the last grow, and its VA page (spec EPC-43)."""
    enclave.page_cnt -= 1
    if va_due(enclave):
        erase(epc, enclave.va_pages.pop())


def check_open(enclave: Enclave, index: int) -> None:
    """What ADD_PAGES asks first: being built, not disabled, inside the range."""
    if not enclave.created or enclave.initialised or enclave.released:
        raise OutOfRange("pages are added after CREATE and before INIT")
    if enclave.disabled:
        raise EnclaveDisabled
    if not 0 <= index < enclave.size:
        raise OutOfRange(f"page {index} of an enclave of {enclave.size} pages")


def add_page(epc: Epc, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
    """EADD: the EPC page, then the VA page when due, then the map (spec 6.5)."""
    check_open(enclave, index)
    page = new_page(epc, caller, enclave, index, may_reclaim=True)
    enclave.counters.added += 1
    caller.group.counters.added += 1
    return page


def new_page(epc: Epc, caller: Caller, enclave: Enclave, index: int, may_reclaim: bool) -> EpcPage:
    """A page that did not exist: allocated, counted, in the map, on the list."""
    due = va_due(enclave)
    if not due or epc.policy.all_at_once:
        pages = allocate(epc, caller, 1 + due, may_reclaim)
    else:
        pages = allocate(epc, caller, 1, may_reclaim)
        try:
            pages += allocate(epc, caller, 1, may_reclaim)
        except Refused:
            free_page(epc, pages[0])
            raise
    return place_new(epc, enclave, index, pages)


def place_new(epc: Epc, enclave: Enclave, index: int, pages: list[EpcPage]) -> EpcPage:
    """Make ``pages[0]`` the enclave's page ``index``, and ``pages[1]``, when due, its VA page."""
    page = pages[0]
    grow(epc, enclave, pages[1] if va_due(enclave) else None)
    if index in enclave.pages:
        shrink(epc, enclave)
        free_page(epc, page)
        raise PageExists(f"page {index} was added already")
    return put_new(epc, enclave, index, page)


def put_new(epc: Epc, enclave: Enclave, index: int, page: EpcPage) -> EpcPage:
    """Put an allocated page, which has been counted, into the map and on the list."""
    page.enclave, page.kind, page.index = enclave, CHILD, index
    enclave.pages[index] = page
    enclave.child_count += 1
    record(epc, page)
    return page


def cancel_page(epc: Epc, enclave: Enclave, index: int) -> None:
    """Undo new_page: its contents could not be made."""
    page = enclave.pages.get(index)
    if page is None:
        raise OutOfRange(f"page {index} is not resident")
    erase(epc, page)
    del enclave.pages[index]
    enclave.child_count -= 1
    shrink(epc, enclave)


def initialise(enclave: Enclave) -> None:
    """EINIT. From now on the SECS follows the last resident page out."""
    if not enclave.created or enclave.initialised:
        raise OutOfRange("the enclave is initialised once, after CREATE")
    if enclave.disabled:
        raise EnclaveDisabled
    enclave.initialised = True


def remove_page(epc: Epc, enclave: Enclave, index: int) -> None:
    """REMOVE_PAGES of a resident page; VA pages stay (spec EPC-42)."""
    page = enclave.pages.get(index)
    if page is None:
        raise OutOfRange(f"page {index} is not resident")
    erase(epc, page)
    del enclave.pages[index]
    enclave.child_count -= 1
    enclave.page_cnt -= 1
    enclave.counters.removed += 1
