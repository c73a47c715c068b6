"""Putting a page on its list and taking it off (spec 2.4: T2, T3, T8, T9).

The kernel's names are sgx_record_epc_page and sgx_drop_epc_page. Unlike there,
dropping a page twice is harmless (EPC-20).
"""

from __future__ import annotations

from epcgroup.epc.pages import (
    CHILD,
    FREE,
    NOT_TRACKED,
    RECLAIM_IN_PROGRESS,
    RECLAIMABLE,
    UNRECLAIMABLE,
    EpcPage,
)
from epcgroup.epc.state import Epc
from epcgroup.errors import Busy


def record(epc: Epc, page: EpcPage) -> None:
    """Put an in-use page at the tail of the list of the group that pays for it."""
    group = page.group
    assert group is not None
    if page.kind is CHILD:
        page.state = RECLAIMABLE
        group.reclaimable.append(page)
        group.count(1)
        return
    group.kinds[page.kind] += 1
    if epc.policy.track_unreclaimable:
        page.state = UNRECLAIMABLE
        group.unreclaimable.append(page)


def drop(page: EpcPage) -> None:
    """Take a page off its list, if it is on one.

    Raises Busy for a page that a reclaim round holds: it may be on its way out.
    """
    if page.state is RECLAIM_IN_PROGRESS:
        raise Busy("the page is being reclaimed")
    if page.state is FREE:
        return
    group = page.group
    assert group is not None
    if page.state is RECLAIMABLE:
        group.reclaimable.unlink(page)
        group.discount(1)
    elif page.state is UNRECLAIMABLE and (
        # The search for a victim may have unlinked it and left its state (T11).
        page.prev is not None or group.unreclaimable.head is page
    ):
        group.unreclaimable.unlink(page)
    page.state = NOT_TRACKED
