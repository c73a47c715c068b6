"""Charging EPC pages to the group of whoever asks (spec 3.3, 3.5).

The charge comes before the physical page, so a group over its limit never takes
a free one (ALLOC-01). Refused, there are three ways on:

* nothing in the subtree can be taken: fail at once, no waiting;
* the caller must not reclaim (a fault): queue the worker and say "busy";
* else reclaim one round here and now, and charge again.

Whose subtree that is, is the policy's answer to ALLOC-10: the charging group's
own, even if an ancestor refused because of a sibling (v3 to v17, a livelock for
the fault path), or that of the group that refused.
"""

from __future__ import annotations

from epcgroup.epc.caller import Caller
from epcgroup.epc.group import Group
from epcgroup.epc.policy import Target
from epcgroup.epc.queue import above_high, excess, queue_work
from epcgroup.epc.reclaim import Effort
from epcgroup.epc.state import Epc
from epcgroup.epc.walk import nothing_reclaimable
from epcgroup.errors import Busy, Interrupted, NoEpc
from epcgroup.misc import try_charge
from epcgroup.units import PAGE_SIZE


def charge(epc: Epc, caller: Caller, pages: int, may_reclaim: bool) -> None:
    """Charge ``pages`` to the caller's group, all or none, and pin it.

    Raises NoEpc, Interrupted, and, if it may not reclaim, Busy.
    """
    group = caller.group
    refusing = try_charge(epc.groups, group, epc.resource, pages * PAGE_SIZE)
    if refusing is not None:
        _make_way(epc, caller, pages, may_reclaim, refusing)
    group.pins += pages
    if epc.policy.soft_limits:
        above_high(epc, group)


def _make_way(epc: Epc, caller: Caller, pages: int, may_reclaim: bool, refusing: Group | None) -> None:
    group, policy = caller.group, epc.policy
    effort: Effort | None = None
    while refusing is not None:
        target = refusing if policy.target is Target.REFUSING else group
        if nothing_reclaimable(epc, target):
            raise NoEpc(f"{refusing.path} is at its limit and nothing in {target.path} is reclaimable")
        if (may_reclaim or not policy.busy_before_signal) and caller.signal_pending():
            raise Interrupted
        if not may_reclaim:
            _ask_worker(epc, target, pages)
            raise Busy
        if effort is None:
            effort = Effort(epc)
        if not effort.round(target, _batch(epc, target, pages)):
            raise NoEpc(f"{refusing.path} is at its limit and no page of {target.path} can be written out")
        refusing = try_charge(epc.groups, group, epc.resource, pages * PAGE_SIZE)


def _ask_worker(epc: Epc, target: Group, pages: int) -> None:
    if target.hopeless:
        target.hopeless = False  # the next one may have better luck
        raise NoEpc(f"no page of {target.path} can be written out")
    target.wanted = max(target.wanted, pages)
    queue_work(epc, target)


def _batch(epc: Epc, target: Group, pages: int) -> int:
    policy = epc.policy
    if not policy.batch_by_need:
        return policy.direct_batch
    return max(policy.batch_min, min(excess(epc, target, pages), policy.batch_max))
