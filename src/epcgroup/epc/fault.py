"""A touch of a page that is not mapped: use it, load it, or add it (spec 6.3, 6.4).

The handler holds the enclave's lock, so it never reclaims: refused, it says
"busy", the processor faults again, and meanwhile background work makes room.
Every error but that one is a SIGBUS.

The SECS comes first: no page can be loaded without it. A policy that charges
one by one may get the SECS and not the page; the SECS then stays, childless, and
nothing can evict it (FAULT-02). With a limit of a few pages that can starve a
whole group. ``all_at_once`` takes SECS and page together.
"""

from __future__ import annotations

from collections.abc import Sequence

from epcgroup.epc.alloc import allocate, allocate_one, headroom
from epcgroup.epc.caller import Caller
from epcgroup.epc.charge import charge
from epcgroup.epc.enclaves import grow, new_page, place_new, put_new, va_due
from epcgroup.epc.pages import CHILD, RECLAIM_IN_PROGRESS, RECLAIMABLE, SECS_INDEX, Enclave, EpcPage, Kind
from epcgroup.epc.release import free_page, refund
from epcgroup.epc.state import Epc
from epcgroup.epc.track import record
from epcgroup.errors import Busy, EnclaveDisabled, OutOfRange, PageExists, Refused


def fault(epc: Epc, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
    """The page at ``index``, resident; see Machine.fault."""
    if enclave.disabled:
        raise EnclaveDisabled
    try:
        page = enclave.pages[index]
    except KeyError:
        raise OutOfRange(f"the enclave has no page {index}") from None
    if page is not None:
        if page.state is RECLAIM_IN_PROGRESS:
            raise Busy("the page is being reclaimed")
        return page
    counters, group_counters = enclave.counters, caller.group.counters
    counters.faults += 1
    group_counters.faults += 1
    try:
        rest = _secs_and(epc, caller, enclave, 1) if enclave.secs is None else None
        page = rest[0] if rest else allocate_one(epc, caller)
    except Busy:
        counters.retried += 1
        group_counters.retried += 1
        raise
    _fill(epc, enclave, index, page, ())
    page.enclave, page.kind, page.index = enclave, CHILD, index
    enclave.pages[index] = page
    enclave.child_count += 1
    record(epc, page)
    return page


def load_all(epc: Epc, caller: Caller, enclave: Enclave, indices: Sequence[int]) -> None:
    """As ``fault`` for each of these evicted pages in turn; see Machine.load_all.

    Where there is room for all of them, no step of the first can refuse the last:
    so what counts and charges does it once.
    """
    group, pages, count = caller.group, enclave.pages, len(indices)
    together = enclave.secs is not None and not enclave.disabled and headroom(epc, group) >= count
    # (Who is asked for twice is evicted once; who does not exist is not None.)
    if not together or len({*indices}) < count or any(pages.get(i, enclave) is not None for i in indices):
        for index in indices:
            fault(epc, caller, enclave, index)
        return
    charge(epc, caller, count, False)
    pool, load, node = epc.pool, epc.pager.load, caller.node
    loaded: list[EpcPage] = []
    try:
        for index in indices:
            page = pool.take(group, node)
            try:
                load(enclave, index)
            except Refused:
                page.group = None
                pool.give(page)
                raise
            page.enclave, page.kind, page.index = enclave, CHILD, index
            page.state = RECLAIMABLE
            pages[index] = page
            loaded.append(page)
    finally:
        done = len(loaded)
        asked = min(done + 1, count)  # one more, if that was refused
        for counters in (enclave.counters, group.counters):
            counters.faults += asked
            counters.loaded += done
        if loaded:
            enclave.child_count += done
            group.reclaimable.extend(loaded)
            group.count(done)
        if done < count:
            refund(epc, group, count - done)


def augment(epc: Epc, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
    """EAUG: a page that did not exist, in an initialised enclave; see Machine.augment."""
    if enclave.disabled:
        raise EnclaveDisabled
    if not enclave.initialised or enclave.released:
        raise OutOfRange("pages can be added by touching only after INIT")
    if not 0 <= index < enclave.size:
        raise OutOfRange(f"page {index} of an enclave of {enclave.size} pages")
    if index in enclave.pages:
        raise PageExists(f"page {index} exists")
    counters, group_counters = enclave.counters, caller.group.counters
    counters.faults += 1
    group_counters.faults += 1
    try:
        page = _augment(epc, caller, enclave, index)
    except Busy:
        counters.retried += 1
        group_counters.retried += 1
        raise
    counters.augmented += 1
    group_counters.augmented += 1
    return page


def _augment(epc: Epc, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
    if enclave.secs is not None and not va_due(enclave):  # as below, with few words
        page = allocate_one(epc, caller)
        grow(epc, enclave, None)
        return put_new(epc, enclave, index, page)
    rest = _secs_and(epc, caller, enclave, 1 + va_due(enclave)) if enclave.secs is None else []
    if rest:
        return place_new(epc, enclave, index, rest)
    return new_page(epc, caller, enclave, index, may_reclaim=False)


def _secs_and(epc: Epc, caller: Caller, enclave: Enclave, pages: int) -> list[EpcPage]:
    # Load the SECS. Where the policy takes everything at once, the `pages` that
    # the caller needs next come with it.
    rest = allocate(epc, caller, 1 + (pages if epc.policy.all_at_once else 0), may_reclaim=False)
    secs = rest.pop(0)
    _fill(epc, enclave, SECS_INDEX, secs, rest)
    secs.enclave, secs.kind, secs.index = enclave, Kind.SECS, SECS_INDEX
    enclave.secs = secs
    enclave.counters.secs_loaded += 1
    secs.group.counters.secs_loaded += 1  # type: ignore[union-attr]  # in use, so charged
    record(epc, secs)
    return rest


def _fill(epc: Epc, enclave: Enclave, index: int, page: EpcPage, others: Sequence[EpcPage]) -> None:
    # ELDU; if the sealed page does not verify, nothing is kept.
    try:
        epc.pager.load(enclave, index)
    except Refused:
        for unused in (page, *others):
            free_page(epc, unused)
        raise
    enclave.counters.loaded += 1
    assert page.group is not None
    page.group.counters.loaded += 1
