"""Taking EPC pages: charge, then a physical page (spec 3.2).

Physical pressure is answered by the whole machine, whatever the limits: groups
may lend to each other (ALLOC-03). Who must not reclaim is told "busy" and ksgxd
does it.
"""

from __future__ import annotations

from epcgroup.epc.caller import Caller
from epcgroup.epc.charge import charge
from epcgroup.epc.group import Group
from epcgroup.epc.pages import EpcPage
from epcgroup.epc.queue import wake_ksgxd
from epcgroup.epc.reclaim import Effort
from epcgroup.epc.release import refund
from epcgroup.epc.state import Epc
from epcgroup.epc.walk import nothing_reclaimable
from epcgroup.errors import Busy, Interrupted, NoEpc
from epcgroup.units import PAGE_SHIFT


def allocate(epc: Epc, caller: Caller, pages: int, may_reclaim: bool) -> list[EpcPage]:
    """``pages`` EPC pages, charged to the caller's group; all or none.

    They have no owner and are on no list. Raises Busy, NoEpc, Interrupted; then
    nothing is held.
    """
    charge(epc, caller, pages, may_reclaim)
    return _take(epc, caller, pages, may_reclaim)


def allocate_one(epc: Epc, caller: Caller) -> EpcPage:
    """One page for a fault, which must not reclaim: as ``allocate``, with few words."""
    charge(epc, caller, 1, False)
    pool = epc.pool
    if pool.free > epc.low:  # so there is one, and what is left is not below the watermark
        return pool.take(caller.group, caller.node)
    return _take(epc, caller, 1, False)[0]


def headroom(epc: Epc, group: Group) -> int:
    """Pages that faults of ``group`` can have for sure, one by one: no charge is refused, no soft
    limit crossed, and none but the last leaves ksgxd something to do. Not positive: none."""
    resource = epc.resource
    capacity = epc.groups.capacity[resource]
    free = epc.pool.free
    pages = min(free, max(free - epc.low, 0) + 1)
    level: Group | None = group
    while level is not None:
        room = min(level.max[resource], level.high[resource], capacity) - level.usage[resource]
        pages = min(pages, room >> PAGE_SHIFT)
        level = level.parent
    return pages


def _take(epc: Epc, caller: Caller, pages: int, may_reclaim: bool) -> list[EpcPage]:
    # The physical pages, for what has been charged.
    pool, group = epc.pool, caller.group
    try:
        if pool.free < pages:
            _make_room(epc, caller, pages, may_reclaim)
        return [pool.take(group, caller.node) for _ in range(pages)]
    except BaseException:  # not charged for what was not had (ALLOC-02)
        refund(epc, group, pages)
        raise
    finally:
        if pool.free < epc.low and not nothing_reclaimable(epc, epc.groups.root):
            wake_ksgxd(epc, 0)


def _make_room(epc: Epc, caller: Caller, pages: int, may_reclaim: bool) -> None:
    root = epc.groups.root
    effort: Effort | None = None
    while epc.pool.free < pages:
        if nothing_reclaimable(epc, root):
            raise NoEpc("the EPC is full and nothing is reclaimable")
        if not may_reclaim:
            if epc.ksgxd_hopeless:
                epc.ksgxd_hopeless = False
                raise NoEpc("the EPC is full and no page can be written out")
            wake_ksgxd(epc, pages)
            raise Busy
        if caller.signal_pending():
            raise Interrupted
        if effort is None:
            effort = Effort(epc)
        if not effort.round(root, global_batch(epc, pages), machine_wide=True):
            raise NoEpc("the EPC is full and no page can be written out")


def global_batch(epc: Epc, wanted: int) -> int:
    """Pages of one round over the whole machine, with so many waited for."""
    if not epc.policy.batch_by_need:
        return epc.policy.global_batch
    return max(1, min(max(wanted, epc.high) - epc.pool.free, epc.policy.global_batch))
