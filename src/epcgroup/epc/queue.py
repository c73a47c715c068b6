"""When background work is asked for, and where it stops (spec 3.4, 3.5).

A group's worker is queued by a fault that was refused (a fault must not reclaim
by itself: it holds the enclave's lock) and, if the policy says so, by a written
limit. It is in the queue at most once, and may be queued again as soon as it has
begun. (v11's mail announces a third occasion, a successful charge close to the
limit; the recordings of v17 show no such run, so it is not here.)
"""

from __future__ import annotations

from epcgroup.epc.group import Group
from epcgroup.epc.policy import OnMaxWritten, Target
from epcgroup.epc.state import Epc
from epcgroup.epc.walk import nothing_reclaimable
from epcgroup.units import PAGE_SHIFT


def queue_work(epc: Epc, group: Group) -> None:
    """Queue a group's worker, unless it is in the queue."""
    if not group.queued:
        group.queued = True
        epc.works.append(group)


def wake_ksgxd(epc: Epc, wanted: int) -> None:
    """Wake ksgxd; ``wanted`` free pages are waited for."""
    epc.ksgxd_woken = True
    if wanted > epc.ksgxd_wanted:
        epc.ksgxd_wanted = wanted


def limit_pages(epc: Epc, group: Group) -> int:
    """The limit the worker aims below, in whole pages.

    Where the charging group pays for anybody's limit, that is the smallest one
    on its way to the root; where the group whose limit was hit pays, its own,
    and the root's is the EPC itself.
    """
    limit = group.max[epc.resource]
    if epc.policy.target is Target.REFUSING:
        return min(limit >> PAGE_SHIFT, epc.epc_pages)
    above = group.parent
    while above is not None:
        limit = min(limit, above.max[epc.resource])
        above = above.parent
    return limit >> PAGE_SHIFT


def usage_pages(epc: Epc, group: Group) -> int:
    """Pages charged to a group's subtree."""
    return group.usage[epc.resource] >> PAGE_SHIFT


def excess(epc: Epc, group: Group, wanted: int, *, hard: bool = False) -> int:
    """Pages by which a group is above the goal of its worker; not positive: nothing to do.

    The worker aims below the soft limit too; ``hard``: leave that out.
    """
    limit = limit_pages(epc, group)
    if epc.policy.soft_limits and not hard:
        limit = min(limit, group.high[epc.resource] >> PAGE_SHIFT)
    return usage_pages(epc, group) - epc.policy.goal(limit, epc.epc_pages, wanted)


def should_reclaim(epc: Epc, group: Group) -> bool:
    """Above the goal of the worker, with something to take (spec 3.5)."""
    return excess(epc, group, 0) > 0 and not nothing_reclaimable(epc, group)


def max_written(epc: Epc, group: Group) -> None:
    """What follows a stored limit (spec 5.6)."""
    what = epc.policy.on_max_written
    if what is OnMaxWritten.WORKER or (
        what is OnMaxWritten.WORKER_IF_ABOVE and usage_pages(epc, group) > limit_pages(epc, group)
    ):
        queue_work(epc, group)


def above_high(epc: Epc, group: Group) -> None:
    """After a charge: whoever is above its soft limit has work; nobody waits for it (spec 9.2)."""
    resource = epc.resource
    level: Group | None = group
    while level is not None:
        if level.usage[resource] > level.high[resource]:
            level.wanted = max(level.wanted, 1)  # room for some charges more, not page by page
            queue_work(epc, level)
        level = level.parent


def high_written(epc: Epc, group: Group) -> None:
    """What follows a stored soft limit."""
    if epc.policy.soft_limits and group.usage[epc.resource] > group.high[epc.resource]:
        queue_work(epc, group)
