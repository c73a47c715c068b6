"""Giving pages back: one page, a whole enclave, a group's last remains (spec 6.1, 2.4)."""

from __future__ import annotations

from collections.abc import Sequence

from epcgroup.epc.group import Group
from epcgroup.epc.pages import CHILD, NOBODY, Enclave, EpcPage
from epcgroup.epc.queue import queue_work
from epcgroup.epc.state import Epc
from epcgroup.epc.track import drop
from epcgroup.epc.walk import behind
from epcgroup.misc import uncharge
from epcgroup.units import PAGE_SIZE


def free_page(epc: Epc, page: EpcPage) -> None:
    """T10: uncharge the group that paid, then back to the free list.

    The page is on no list. Its group may now wait for its release.
    """
    group = page.group
    assert group is not None
    if page.kind is not CHILD:
        group.kinds[page.kind] -= 1
        page.kind = CHILD
    page.group = None
    page.enclave = NOBODY
    page.vepc = None
    uncharge(epc.groups, group, epc.resource, PAGE_SIZE)
    epc.pool.give(page)
    epc.groups.unpin(group)


def free_children(epc: Epc, group: Group, pages: Sequence[EpcPage]) -> None:
    """T10 for pages of an enclave that one group pays for, in order."""
    for page in pages:
        page.group = None
        page.enclave = NOBODY
    epc.pool.give_all(pages)
    refund(epc, group, len(pages))


def refund(epc: Epc, group: Group, pages: int) -> None:
    """Take back the charges, and the pins, of so many pages."""
    uncharge(epc.groups, group, epc.resource, pages * PAGE_SIZE)
    epc.groups.unpin(group, pages)


def erase(epc: Epc, page: EpcPage) -> None:
    """EREMOVE a page that is in use, and free it. Raises Busy while it is being reclaimed."""
    drop(page)
    epc.pager.drop(page)
    assert page.group is not None
    page.group.counters.removed += 1
    free_page(epc, page)


def release(epc: Epc, enclave: Enclave) -> None:
    """The last reference to an enclave is gone.

    A reclaim round that holds some of its pages holds a reference too: then the
    release happens when the round lets go (RECL-01, B-47).
    """
    if enclave.released:
        return
    enclave.released = True
    if not enclave.isolated:
        finish_release(epc, enclave)


def finish_release(epc: Epc, enclave: Enclave) -> None:
    """Free every page: children in ascending order, then the SECS, then the VA pages."""
    for index in sorted(enclave.pages):
        page = enclave.pages[index]
        if page is not None:
            erase(epc, page)
            enclave.counters.removed += 1
    enclave.pages.clear()
    enclave.child_count = 0
    if enclave.secs is not None:
        erase(epc, enclave.secs)
        enclave.secs = None
    for page in enclave.va_pages:
        erase(epc, page)
    enclave.va_pages.clear()
    epc.enclaves.pop(enclave.id, None)
    for group in epc.waiting_for.pop(enclave, ()):
        group.victim = None
        if not group.released:
            queue_work(epc, group)  # if that did not suffice, the next one (B-63)


def group_freed(epc: Epc, group: Group) -> None:
    """A removed group is freed: its pending work is cancelled, cursors on it move on."""
    if group.queued:
        epc.works.remove(group)
        group.queued = False
    for job in epc.jobs:
        if job.group is group:
            epc.jobs.remove(job)
            break
    if group.victim is not None:
        epc.waiting_for[group.victim].remove(group)
    above = group.parent
    if above is not None:
        above.past.add(group.counters)
        above.past.add(group.past)
    while above is not None:
        if above.cursor is group:
            above.cursor = behind(epc, group, above)
        above = above.parent
