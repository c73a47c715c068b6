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
from itertools import repeat

from epcgroup.epc.alloc import allocate, allocate_one, headroom
from epcgroup.epc.caller import Caller
from epcgroup.epc.charge import charge
from epcgroup.epc.enclaves import grow, new_page, place_new, put_new, va_due
from epcgroup.epc.pages import CHILD, RECLAIM_IN_PROGRESS, RECLAIMABLE, SECS_INDEX, Enclave, EpcPage, Kind
from epcgroup.epc.queue import wake_ksgxd
from epcgroup.epc.release import free_page
from epcgroup.epc.state import Epc
from epcgroup.epc.track import record
from epcgroup.epc.walk import nothing_reclaimable
from epcgroup.errors import Busy, EnclaveDisabled, OutOfRange, PageExists, Refused


def fault(epc: Epc, caller: Caller, enclave: Enclave, index: int, arrived: bool = False) -> EpcPage:
    """The page at ``index``, resident; see Machine.fault. ``arrived``: its contents are there already."""
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
    if arrived:
        epc.pager.arrived(enclave, (index,))
        counters.loaded += 1
        group_counters.loaded += 1
    else:
        _fill(epc, enclave, index, page, ())
    page.enclave, page.kind, page.index = enclave, CHILD, index
    enclave.pages[index] = page
    enclave.child_count += 1
    record(epc, page)
    return page


def arrived(epc: Epc, caller: Caller, enclave: Enclave, indices: Sequence[int]) -> None:
    """As ``fault`` for each of these pages, which have been loaded already; see Machine.arrived.

    Where there is room for all of them, no step of the first can refuse the last:
    so what counts and charges does it once.
    """
    group, pages, count = caller.group, enclave.pages, len(indices)
    together = enclave.secs is not None and not enclave.disabled and headroom(epc, group) >= count
    # (Who is asked for twice is evicted once; who does not exist is not None.)
    if not together or len({*indices}) < count or {*map(pages.get, indices, repeat(enclave))} != {None}:
        for index in indices:
            fault(epc, caller, enclave, index, True)
        return
    charge(epc, caller, count, False)
    epc.pager.arrived(enclave, indices)
    loaded = epc.pool.take_all(group, caller.node, count)
    for page, index in zip(loaded, indices, strict=True):
        page.enclave, page.index = enclave, index  # (whatever is free is a child)
        page.state = RECLAIMABLE
    pages.update(zip(indices, loaded, strict=True))
    for counters in (enclave.counters, group.counters):
        counters.faults += count
        counters.loaded += count
    enclave.child_count += count
    last = loaded.pop() if epc.pool.free < epc.low else None
    if loaded:
        group.reclaimable.extend(loaded)
        group.count(len(loaded))
    if last is not None:  # the one that left too few
        if not nothing_reclaimable(epc, epc.groups.root):
            wake_ksgxd(epc, 0)
        record(epc, last)


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
